//! What a script says, as what the machine is told.

use std::{collections::BTreeMap, error::Error, iter::Peekable};

use bytes::Bytes;
use goldenscript::ArgumentConsumer;
use holdfast_txn::{
    Act, Answer, BranchId, BranchSpec, Captures, Decision, Gid, Mode, Op, Options, Order,
    Participant, Recovery, Refusal, Remedy, Report, TriedBy,
};

pub(crate) type Parsed<T> = Result<T, Box<dyn Error>>;

pub(crate) fn gid(args: &mut ArgumentConsumer<'_>) -> Parsed<Gid> {
    Ok(Gid::parse(args.next_pos().ok_or("which gid?")?)?)
}

pub(crate) fn words(args: &mut ArgumentConsumer<'_>, otherwise: &str) -> String {
    args.next_pos().unwrap_or(otherwise).to_owned()
}

/// `30s`, `500ms`, `1d` or bare milliseconds.
pub(crate) fn duration_ms(text: &str) -> Parsed<u64> {
    let (digits, unit) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "ms" => 1,
        "s" => 1_000,
        "d" => 86_400_000,
        _ => return Err(format!("no unit of time: {unit}").into()),
    };
    Ok(digits.parse::<u64>()? * factor)
}

pub(crate) fn branch_id(text: &str) -> Parsed<BranchId> {
    let number = text.strip_prefix('b').ok_or_else(|| format!("no branch: {text}"))?;
    Ok(BranchId(number.parse()?))
}

fn after(text: &str) -> Parsed<Vec<BranchId>> {
    match text {
        "none" => Ok(Vec::new()),
        ids => ids.split('/').map(branch_id).collect(),
    }
}

pub(crate) struct Begin {
    pub(crate) gid: Gid,
    pub(crate) mode: Mode,
    pub(crate) options: Options,
    pub(crate) branches: Vec<BranchSpec>,
    pub(crate) enlisted: bool,
}

/// `begin GID tcc|saga|xa [enlisted] [OPTION=...] PARTICIPANT... [bN.after=bM/bK|none] [bN.pivot=yes] [bN.payload=BYTES]`;
/// `branches=N` adds N participants of the same kind; `headers=N`, `tags=N` add labels, of `label-bytes=N` each.
pub(crate) fn begin(args: &mut ArgumentConsumer<'_>) -> Parsed<Begin> {
    let gid = gid(args)?;
    let mode = match args.next_pos() {
        Some("tcc") => Mode::Tcc,
        Some("saga") => Mode::Saga,
        Some("xa") => Mode::Xa,
        other => return Err(format!("no mode: {other:?}").into()),
    };
    let options = options(args, mode)?;
    let mut enlisted = false;
    let mut branches = Vec::new();
    while let Some(word) = args.next_pos() {
        match word {
            "enlisted" => enlisted = true,
            name => branches.push(spec(name)?),
        }
    }
    for number in 0..args.take_key("branches").unwrap_or("0").parse::<usize>()? {
        branches.push(spec(&format!("deposit@shard-{number}"))?);
    }
    while let Some((key, value)) = args.next_key() {
        let (id, what) = key.split_once('.').ok_or_else(|| format!("no option: {key}"))?;
        let index = branch_id(id)?.0 as usize - 1;
        let branch = branches.get_mut(index).ok_or_else(|| format!("no such branch: {key}"))?;
        detail(branch, what, value)?;
    }
    Ok(Begin { gid, mode, options, branches, enlisted })
}

/// `add GID bN PARTICIPANT [after=...] [pivot=yes] [payload=BYTES]`.
pub(crate) fn added(args: &mut ArgumentConsumer<'_>) -> Parsed<(BranchId, BranchSpec)> {
    let branch = branch_id(args.next_pos().ok_or("which branch?")?)?;
    let mut spec = spec(args.next_pos().ok_or("which participant?")?)?;
    while let Some((key, value)) = args.next_key() {
        detail(&mut spec, key, value)?;
    }
    Ok((branch, spec))
}

/// `submit GID [bN=TEXT] [bN.payload=BYTES]`.
pub(crate) fn captures(args: &mut ArgumentConsumer<'_>) -> Parsed<Captures> {
    let mut captures = BTreeMap::new();
    while let Some((key, value)) = args.next_key() {
        let (id, payload) = match key.split_once('.') {
            Some((id, "payload")) => (id, Bytes::from(vec![b'x'; value.parse()?])),
            Some(_) => return Err(format!("a submit has no {key}").into()),
            None => (key, Bytes::copy_from_slice(value.as_bytes())),
        };
        captures.insert(branch_id(id)?, payload);
    }
    Ok(captures.into())
}

fn spec(participant: &str) -> Parsed<BranchSpec> {
    let participant = Participant::parse(participant)?;
    Ok(BranchSpec { participant, payload: Bytes::new(), after: None, pivot: false })
}

fn detail(spec: &mut BranchSpec, key: &str, value: &str) -> Parsed<()> {
    match key {
        "after" => spec.after = Some(after(value)?),
        "pivot" => spec.pivot = value == "yes",
        "payload" => spec.payload = Bytes::from(vec![b'x'; value.parse()?]),
        other => return Err(format!("a branch has no {other}").into()),
    }
    Ok(())
}

fn options(args: &mut ArgumentConsumer<'_>, mode: Mode) -> Parsed<Options> {
    let mut options = Options::of(mode);
    let mut ms = |key: &str, into: &mut u64| -> Parsed<()> {
        if let Some(text) = args.take_key(key) {
            *into = duration_ms(text)?;
        }
        Ok(())
    };
    ms("timeout", &mut options.timeout_ms)?;
    ms("call", &mut options.call_timeout_ms)?;
    ms("first", &mut options.retry.first_ms)?;
    ms("ceiling", &mut options.retry.ceiling_ms)?;
    ms("grace", &mut options.second_phase_grace_ms)?;
    if let Some(attempts) = args.take_key("attempts") {
        options.retry.attempts_max = attempts.parse()?;
    }
    match args.take_key("order") {
        None => {}
        Some("sequential") => options.order = Order::Sequential,
        Some("concurrent") => options.order = Order::Concurrent,
        Some(other) => return Err(format!("no order: {other}").into()),
    }
    match args.take_key("recovery") {
        None => {}
        Some("forward") => options.recovery = Recovery::Forward,
        Some("backward") => options.recovery = Recovery::Backward,
        Some(other) => return Err(format!("no recovery: {other}").into()),
    }
    match args.take_key("tries") {
        None => {}
        Some("caller") => options.tried_by = TriedBy::Caller,
        Some("coordinator") => options.tried_by = TriedBy::Coordinator,
        Some(other) => return Err(format!("nobody who tries: {other}").into()),
    }
    if let Some(purpose) = args.take_key("purpose") {
        options.tags.insert("purpose", purpose);
    }
    let bytes: usize = args.take_key("label-bytes").unwrap_or("6").parse()?;
    for key in ["headers", "tags"] {
        for number in 0..args.take_key(key).unwrap_or("0").parse::<usize>()? {
            let name = format!("l{number:02}");
            let value = "v".repeat(bytes - name.len());
            match key {
                "headers" => options.headers.insert(&name, &value),
                _ => options.tags.insert(&name, &value),
            }
        }
    }
    Ok(options)
}

/// `bN OP done | refused[/CODE] "WORDS" | given-up[/ATTEMPTS] ["WORDS"]`, as often as it is said.
pub(crate) fn reports(args: &mut ArgumentConsumer<'_>) -> Parsed<Vec<Report>> {
    let all: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
    let mut all = all.into_iter().peekable();
    let mut reports = Vec::new();
    while let Some(word) = all.next() {
        let branch = branch_id(word)?;
        let op = op(all.next().ok_or("which operation?")?)?;
        let answer = all.next().ok_or("which answer?")?;
        let (kind, detail) = answer.split_once('/').unwrap_or((answer, ""));
        let answer = match kind {
            "done" => Answer::Done,
            "refused" => {
                let message = remark(&mut all, "");
                Answer::Refused(Refusal { code: detail.to_owned(), message })
            }
            "given-up" => Answer::GivenUp {
                attempts: if detail.is_empty() { 3 } else { detail.parse()? },
                last: remark(&mut all, "connection refused"),
            },
            other => return Err(format!("no answer: {other}").into()),
        };
        reports.push(Report { branch, op, answer });
    }
    Ok(reports)
}

/// `finish GID commit|rollback [bN...]`: no branch is every branch.
pub(crate) fn finished(args: &mut ArgumentConsumer<'_>) -> Parsed<(Decision, Vec<BranchId>)> {
    let decision = match args.next_pos() {
        Some("commit") => Decision::Commit,
        Some("rollback") => Decision::RollBack,
        other => return Err(format!("no decision: {other:?}").into()),
    };
    let branches = std::iter::from_fn(|| args.next_pos()).map(branch_id).collect::<Result<_, _>>();
    Ok((decision, branches?))
}

/// The words behind an answer, unless another branch comes.
fn remark<'a>(rest: &mut Peekable<impl Iterator<Item = &'a str>>, otherwise: &str) -> String {
    rest.next_if(|word| branch_id(word).is_err()).unwrap_or(otherwise).to_owned()
}

fn op(text: &str) -> Parsed<Op> {
    Op::ALL
        .into_iter()
        .find(|op| op.as_str() == text)
        .ok_or_else(|| format!("no operation: {text}").into())
}

/// `retry|rollback|approve|abandon`, or `done bN`, `refused bN`, `believed bN`.
pub(crate) fn act(args: &mut ArgumentConsumer<'_>) -> Parsed<Act> {
    let word = args.next_pos().ok_or("which act?")?.to_owned();
    let mut branch = || branch_id(args.next_pos().ok_or("which branch?")?);
    Ok(match word.as_str() {
        "retry" => Act::Retry,
        "rollback" => Act::RollBack,
        "approve" => Act::Approve,
        "abandon" => Act::Propose(Remedy::Abandon),
        "done" => Act::Propose(Remedy::MarkDone(branch()?)),
        "refused" => Act::Propose(Remedy::MarkRefused(branch()?)),
        "believed" => Act::Propose(Remedy::BelieveRefused(branch()?)),
        other => return Err(format!("no act: {other}").into()),
    })
}

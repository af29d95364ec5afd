//! Whatever the machine can be told or can hold survives the way through bytes, and no bytes make a reader panic.

use std::{cell::Cell, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use holdfast_proto::Pairs;
use holdfast_txn::{
    Act, Answer, AuditRecord, Books, Branch, BranchId, BranchSpec, BranchState, Captures, Command,
    Decision, Deed, Digest, Gid, GlobalTransaction, Mode, Op, Options, Order, Participant,
    Proposal, Recovery, Refusal, Remedy, Report, RetryPolicy, RulesVersion, Snapshot, Status,
    Timestamp, Trail, TriedBy,
};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
    strategy::ValueTree as _,
    test_runner::TestRunner,
};
use prost::Message as _;

use super::*;

fn gids() -> impl Strategy<Value = Gid> {
    "[A-Za-z0-9-]{1,35}".prop_map(|text| Gid::parse(&text).unwrap())
}

fn participants() -> impl Strategy<Value = Participant> {
    "[a-z0-9.@-]{1,64}".prop_map(|text| Participant::parse(&text).unwrap())
}

fn texts() -> impl Strategy<Value = String> {
    vec(any::<char>(), 0..12).prop_map(|chars| chars.into_iter().collect())
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(texts(), texts(), 0..4)
}

/// A trace's context in its usual form or nearly so, in place of whatever there is.
fn headers() -> impl Strategy<Value = BTreeMap<String, String>> {
    let context = option::of("0[01]-[0-9a-f]{32}-[0-9a-fA]{16}-0[01]");
    (labels(), context).prop_map(|(mut headers, context)| {
        headers.extend(context.map(|context| ("traceparent".to_owned(), context)));
        headers
    })
}

fn specs() -> impl Strategy<Value = BranchSpec> {
    let after = option::of(vec(any::<u32>().prop_map(BranchId), 0..4));
    (participants(), vec(any::<u8>(), 0..64), after, any::<bool>()).prop_map(
        |(participant, payload, after, pivot)| BranchSpec {
            participant,
            payload: Bytes::from(payload),
            after,
            pivot,
        },
    )
}

fn options() -> impl Strategy<Value = Options> {
    let retry = (any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(first_ms, ceiling_ms, attempts_max)| RetryPolicy { first_ms, ceiling_ms, attempts_max },
    );
    (
        (any::<u64>(), any::<u64>(), retry),
        select(vec![Order::Sequential, Order::Concurrent]),
        select(vec![Recovery::Backward, Recovery::Forward]),
        select(vec![TriedBy::Coordinator, TriedBy::Caller]),
        (headers(), labels()),
        any::<u64>(),
    )
        .prop_map(|(times, order, recovery, tried_by, labels, second_phase_grace_ms)| {
            let (timeout_ms, call_timeout_ms, retry) = times;
            let (headers, tags) = (labels.0.into_iter().collect(), labels.1.into_iter().collect());
            Options {
                timeout_ms,
                call_timeout_ms,
                retry,
                order,
                recovery,
                tried_by,
                headers,
                tags,
                second_phase_grace_ms,
            }
        })
}

fn refusals() -> impl Strategy<Value = Refusal> {
    (texts(), texts()).prop_map(|(code, message)| Refusal { code, message })
}

fn modes() -> impl Strategy<Value = Mode> {
    select(Mode::ALL.to_vec())
}

fn reports() -> impl Strategy<Value = Report> {
    let ops = select(Op::ALL.to_vec());
    let answers = prop_oneof![
        Just(Answer::Done),
        refusals().prop_map(Answer::Refused),
        (any::<u32>(), texts()).prop_map(|(attempts, last)| Answer::GivenUp { attempts, last }),
    ];
    (any::<u32>(), ops, answers).prop_map(|(branch, op, answer)| Report {
        branch: BranchId(branch),
        op,
        answer,
    })
}

fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![
        (gids(), modes(), options(), vec(specs(), 0..4), any::<(bool, Option<[u8; 32]>)>())
            .prop_map(|(gid, mode, options, branches, (enlisted, content))| Command::Begin {
                gid,
                mode,
                options,
                branches,
                enlisted,
                content: content.map(Digest),
            }),
        (gids(), any::<u32>(), specs()).prop_map(|(gid, branch, spec)| Command::AddBranch {
            gid,
            branch: BranchId(branch),
            spec
        }),
        (gids(), any::<u32>(), any::<u32>(), specs()).prop_map(|(gid, parent, branch, spec)| {
            let (parent, branch) = (BranchId(parent), BranchId(branch));
            Command::Nest { gid, parent, branch, spec }
        }),
        (gids(), captures()).prop_map(|(gid, captures)| Command::Submit { gid, captures }),
        (gids(), texts()).prop_map(|(gid, reason)| Command::RollBack { gid, reason }),
        (gids(), vec(reports(), 0..4)).prop_map(|(gid, reports)| Command::Report { gid, reports }),
        gids().prop_map(|gid| Command::Expire { gid }),
        (gids(), texts()).prop_map(|(gid, reason)| Command::Retry { gid, reason }),
        (gids(), texts()).prop_map(|(gid, reason)| Command::Fence { gid, reason }),
        (gids(), vec(any::<u32>().prop_map(BranchId), 0..4), decisions())
            .prop_map(|(gid, branches, decision)| Command::Finish { gid, branches, decision }),
        (gids(), acts(), texts(), texts()).prop_map(|(gid, act, by, reason)| Command::Operate {
            gid,
            act,
            by,
            reason
        }),
        (texts(), any::<u64>(), texts(), texts()).prop_map(|(text, expected, by, reason)| {
            Command::SetRules { text, expected, by, reason }
        }),
        deeds().prop_map(|deed| Command::Note { deed }),
    ]
}

fn captures() -> impl Strategy<Value = Captures> {
    let payloads = vec(any::<u8>(), 0..20).prop_map(Bytes::from);
    let branches = any::<u32>().prop_map(BranchId);
    proptest::collection::btree_map(branches, payloads, 0..3).prop_map(Captures::from)
}

fn remedies() -> impl Strategy<Value = Remedy> {
    prop_oneof![
        any::<u32>().prop_map(|branch| Remedy::MarkDone(BranchId(branch))),
        any::<u32>().prop_map(|branch| Remedy::MarkRefused(BranchId(branch))),
        any::<u32>().prop_map(|branch| Remedy::BelieveRefused(BranchId(branch))),
        Just(Remedy::Abandon),
    ]
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        Just(Act::Retry),
        Just(Act::RollBack),
        remedies().prop_map(Act::Propose),
        Just(Act::Approve),
    ]
}

fn deeds() -> impl Strategy<Value = Deed> {
    (texts(), texts(), texts(), texts()).prop_map(|(by, act, about, words)| Deed {
        by,
        act,
        about,
        words,
    })
}

fn books() -> impl Strategy<Value = Books> {
    let versions = (any::<u64>(), texts(), any::<u64>(), texts(), texts()).prop_map(
        |(epoch, text, at, by, reason)| {
            RulesVersion { epoch, text, at: Timestamp(at), by, reason }.into()
        },
    );
    let records = (any::<u64>(), any::<u64>(), deeds(), any::<[u8; 32]>()).prop_map(
        |(number, at, deed, before)| {
            AuditRecord { number, at: Timestamp(at), deed, before: Digest(before) }.into()
        },
    );
    let proposals = (remedies(), texts(), texts(), any::<u64>(), any::<u64>()).prop_map(
        |(remedy, by, reason, at, until)| Proposal {
            remedy,
            by,
            reason,
            at: Timestamp(at),
            until: Timestamp(until),
        },
    );
    (
        vec(versions, 0..3),
        (any::<u64>(), any::<[u8; 32]>(), vec(records, 0..4)),
        proptest::collection::btree_map(gids(), proposals, 0..3),
    )
        .prop_map(|(rules, (count, head, kept), proposals)| Books {
            rules: rules.into(),
            trail: Trail { count, head: Digest(head), kept: kept.into() },
            proposals,
        })
}

fn decisions() -> impl Strategy<Value = Decision> {
    select(vec![Decision::Commit, Decision::RollBack])
}

fn branches() -> impl Strategy<Value = Branch> {
    let states = select(vec![
        BranchState::Pending,
        BranchState::Done,
        BranchState::Refused,
        BranchState::Confirmed,
        BranchState::Undone,
    ]);
    (specs(), states, option::of(refusals())).prop_map(|(spec, state, refusal)| Branch {
        spec,
        state,
        refusal: refusal.map(Box::new),
    })
}

pub(crate) fn transactions() -> impl Strategy<Value = GlobalTransaction> {
    let statuses = || select(Status::ALL.to_vec());
    let instants = || any::<u64>().prop_map(Timestamp);
    let decisions = option::of(decisions());
    (
        (gids(), modes(), options(), any::<[u8; 32]>(), any::<bool>()),
        (statuses(), option::of(statuses()), vec(branches(), 0..4), captures()),
        (instants(), instants(), decisions, option::of(instants()), option::of(instants())),
        (any::<bool>(), option::of(texts())),
    )
        .prop_map(|(begun, (status, interrupted, branches, captures), times, rest)| {
            let (gid, mode, options, content, enlisted) = begun;
            let (pivot_reached, reason) = rest;
            let (begun_at, deadline, decision, decided_at, finished_at) = times;
            GlobalTransaction {
                gid,
                mode,
                options,
                content: Digest(content),
                enlisted,
                status,
                interrupted,
                branches,
                captures,
                begun_at,
                deadline,
                decision,
                decided_at,
                finished_at,
                pivot_reached,
                reason,
            }
        })
}

proptest! {
    #[test]
    fn an_entry_reads_as_it_was_written(at in any::<u64>(), commands in vec(commands(), 0..6)) {
        let encoded: Vec<_> = commands.iter().map(EncodedCommand::of).collect();
        let bytes = encode_entry(Timestamp(at), encoded.iter());
        let whole = v1::LogEntry::decode(bytes.clone()).unwrap();
        prop_assert_eq!(whole.format, commands.iter().map(command::format_of).max().unwrap_or(1));
        prop_assert_eq!(whole.encoded_len(), bytes.len());
        for command in &whole.commands {
            let message = v1::RecordedCommand::decode(command.clone()).unwrap();
            prop_assert_eq!(&message.encode_to_vec(), command, "written field by field or as a whole");
        }
        let alone = encode_entry(Timestamp(at), [].iter()).len();
        let added: usize = encoded.iter().map(EncodedCommand::len_in_entry).sum();
        prop_assert_eq!(bytes.len(), alone + added);
        prop_assert_eq!(decode_entry(&bytes), Ok((Timestamp(at), commands)));
    }

    /// However bytes differ from what is written: what is read without the message is what the message says.
    #[test]
    fn what_is_read_directly_is_what_the_message_says(
        command in commands(),
        changes in vec((any::<Index>(), any::<u8>()), 0..3),
        doubled in option::of((any::<Index>(), any::<Index>())),
    ) {
        let by_message = |bytes: &[u8]| command::of_record(v1::RecordedCommand::decode(bytes).ok()?).ok();
        let mut bytes = EncodedCommand::of(&command).bytes.to_vec();
        let is_usual = match &command {
            Command::Begin { .. } => true,
            Command::Report { reports, .. } => reports.iter().all(|report| report.answer == Answer::Done),
            _ => false,
        };
        prop_assert_eq!(direct::command(&bytes), is_usual.then_some(command));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some((from, to)) = doubled {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            bytes.extend_from_within(from.min(to)..from.max(to));
        }
        if let Some(read) = direct::command(&bytes) {
            prop_assert_eq!(Some(read), by_message(&bytes));
        }
    }

    #[test]
    fn an_entry_read_directly_is_what_the_message_says(
        at in any::<u64>(),
        commands in vec(commands(), 0..4),
        changes in vec((any::<Index>(), any::<u8>()), 0..3),
    ) {
        let encoded: Vec<_> = commands.iter().map(EncodedCommand::of).collect();
        let mut bytes = encode_entry(Timestamp(at), encoded.iter()).to_vec();
        let read = |bytes: &[u8]| {
            let (format, at_ms, commands) = direct::entry(bytes)?;
            let commands = commands.into_iter().map(Bytes::copy_from_slice).collect();
            Some(v1::LogEntry { format, at_ms, commands })
        };
        prop_assert_eq!(read(&bytes), v1::LogEntry::decode(&*bytes).ok());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(read) = read(&bytes) {
            prop_assert_eq!(v1::LogEntry::decode(&*bytes), Ok(read));
        }
    }

    #[test]
    fn a_snapshot_reads_as_it_was_written(
        clock in any::<u64>(),
        open in vec(transactions(), 0..4),
        finished in vec(transactions(), 0..4),
        books in option::of(books()),
        index in any::<u64>(),
    ) {
        let books = books.filter(|books| !books.is_empty()).unwrap_or_default().into();
        let shared = |some: Vec<GlobalTransaction>| some.into_iter().map(Arc::new).collect();
        let (open, finished) = (shared(open), shared(finished));
        let snapshot = Snapshot { clock: Timestamp(clock), open, finished, books };
        let bytes = encode_snapshot(&snapshot, index, || ());
        let whole = v1::MachineSnapshot::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(&whole.encode_to_vec(), &bytes, "written piece by piece or as a whole");
        prop_assert_eq!(decode_snapshot(&bytes), Ok((snapshot, index)));
    }

    #[test]
    fn a_snapshot_read_piece_by_piece_is_what_the_message_says(
        open in vec(transactions(), 0..3),
        finished in vec(transactions(), 0..3),
        index in any::<u64>(),
        changes in vec((any::<Index>(), any::<u8>()), 0..3),
        twice in (any::<Index>(), any::<Index>()),
    ) {
        let shared = |some: Vec<GlobalTransaction>| some.into_iter().map(Arc::new).collect();
        let (open, finished) = (shared(open), shared(finished));
        let books = Default::default();
        let snapshot = Snapshot { clock: Timestamp(index), open, finished, books };
        let mut bytes = encode_snapshot(&snapshot, index, || ());
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let (from, to) = (twice.0.index(bytes.len()), twice.1.index(bytes.len()));
        if from < to {
            bytes.extend_from_within(from..to);
        }
        // Both know what is wrong, in words of their own.
        prop_assert_eq!(decode_snapshot(&bytes).ok(), snapshot::decode_whole(&bytes).ok());
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_a_record_but_never_a_panic(bytes in vec(any::<u8>(), 0..256)) {
        let _ = decode_snapshot(&bytes);
        let _ = decode_entry(&bytes.into());
    }

    #[test]
    fn a_damaged_entry_is_an_error_or_a_record_but_never_a_panic(
        commands in vec(commands(), 1..4),
        at in any::<prop::sample::Index>(),
        with in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let encoded: Vec<_> = commands.iter().map(EncodedCommand::of).collect();
        let mut bytes = encode_entry(Timestamp(1), encoded.iter()).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= with;
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = decode_entry(&bytes.into());
    }
}

#[test]
fn another_format_is_refused_with_its_number() {
    let entry = v1::LogEntry { format: FORMAT + 1, at_ms: 1, commands: Vec::new() };
    assert_eq!(decode_entry(&entry.encode_to_vec().into()), Err(RecordError::Format(FORMAT + 1)));
    let snapshot = v1::MachineSnapshot { format: 7, ..Default::default() };
    assert_eq!(decode_snapshot(&snapshot.encode_to_vec()), Err(RecordError::Format(7)));
}

#[test]
fn an_empty_entry_is_no_entry() {
    assert_eq!(decode_entry(&Bytes::new()), Err(RecordError::Format(0)));
}

#[test]
fn a_command_without_a_kind_a_strange_gid_and_a_strange_number_are_refused() {
    let entry = |command: v1::RecordedCommand| {
        let commands = vec![command.encode_to_vec().into()];
        let entry = v1::LogEntry { format: FORMAT, at_ms: 1, commands };
        decode_entry(&entry.encode_to_vec().into()).unwrap_err()
    };
    let none = v1::RecordedCommand { gid: "g1".into(), command: None };
    assert_eq!(entry(none), RecordError::Missing("command"));
    let submit = v1::recorded_command::Command::Submit(v1::RecordedSubmit::default());
    let strange = v1::RecordedCommand { gid: "g 1".into(), command: Some(submit) };
    assert!(matches!(entry(strange), RecordError::Value { field: "gid", .. }));
    let begin = v1::RecordedBegin { mode: 99, ..Default::default() };
    let begin = v1::RecordedCommand {
        gid: "g1".into(),
        command: Some(v1::recorded_command::Command::Begin(begin)),
    };
    assert_eq!(entry(begin), RecordError::Value { field: "mode", value: "99".into() });
}

#[test]
fn a_hash_or_a_context_of_another_length_and_a_context_that_is_a_header_too_are_refused() {
    let plain = Command::Begin {
        gid: Gid::parse("g1").unwrap(),
        mode: Mode::Tcc,
        options: Options::of(Mode::Tcc),
        branches: Vec::new(),
        enlisted: true,
        content: None,
    };
    let entry = |change: &dyn Fn(&mut v1::RecordedBegin)| {
        let command = EncodedCommand::of(&plain.clone().hashed());
        let mut record = v1::RecordedCommand::decode(&*command.bytes).unwrap();
        let Some(v1::recorded_command::Command::Begin(begin)) = &mut record.command else {
            panic!("it is another one");
        };
        change(begin);
        let commands = vec![record.encode_to_vec().into()];
        let entry = v1::LogEntry { format: FORMAT, at_ms: 1, commands };
        decode_entry(&entry.encode_to_vec().into())
    };
    assert_eq!(entry(&|_| ()).unwrap().1, [plain.clone().hashed()]);
    for length in [31, 33] {
        let cut = entry(&|begin| begin.content = vec![1; length].into()).unwrap_err();
        assert!(matches!(cut, RecordError::Value { field: "content", .. }), "{cut}");
    }
    let traced = |context: &[u8], header: &str| {
        entry(&|begin| {
            let options = begin.options.as_mut().unwrap();
            options.traceparent = Bytes::copy_from_slice(context);
            options.headers = Pairs::from_iter([(header, "1")]).into();
        })
    };
    assert!(traced(&[1; 25], "tracestate").is_ok());
    for (context, header) in [(&[1; 24][..], "a"), (&[1; 26], "a"), (&[1; 25], "traceparent")] {
        let bad = traced(context, header).unwrap_err();
        assert!(matches!(bad, RecordError::Value { field: "traceparent", .. }), "{bad}");
    }
}

#[test]
fn a_label_that_is_there_twice_or_cut_is_refused() {
    for second in ["\u{a}\u{1}a\u{12}\u{1}b", "\u{a}\u{9}a"] {
        let mut bytes = Vec::new();
        write::options(&Options::of(Mode::Tcc), write::Context::Header, &mut bytes);
        let mut options = v1::RecordedOptions::decode(&*bytes).unwrap();
        options.tags = vec!["\u{a}\u{1}a".into(), second.into()];
        assert!(matches!(
            command::options_of_record(options),
            Err(RecordError::Value { field: "tags", .. })
        ));
    }
}

#[test]
fn a_snapshot_leaves_time_for_others_behind_each_few_transactions() {
    let one = transactions().new_tree(&mut TestRunner::deterministic()).unwrap().current();
    let one = Arc::new(one);
    let some = |count| std::iter::repeat_n(&one, count).cloned().collect();
    let (open, finished) = (some(2 * 64 + 1), some(63));
    let snapshot = Snapshot { clock: Timestamp(1), open, finished, books: Default::default() };
    let times = Cell::new(0);
    encode_snapshot(&snapshot, 1, || times.set(times.get() + 1));
    assert_eq!(times.get(), 2);
}

//! The stage: a machine, a leader's memory and a clock. The only place of the stories that calls the machine.

use std::{collections::BTreeMap, error::Error};

use goldenscript::{ArgumentConsumer, Context, Runner};
use holdfast_txn::{Command, Deed, Digest, Gid, Machine, Next, Report, Timestamp};

use crate::{
    parse::{self, Parsed},
    tell,
};

/// Keeps the log too: at the end of each story, a second machine that applies it must be equal.
#[derive(Default)]
pub(crate) struct Stage {
    machine: Machine,
    bounds: Option<(usize, usize)>,
    log: Vec<(Timestamp, Command)>,
    now: Timestamp,
    /// What the leader has heard and the log has not.
    heard: BTreeMap<Gid, Vec<Report>>,
    hashes: BTreeMap<String, Digest>,
}

impl Runner for Stage {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &Self::Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        // An entry may carry an older time, from a leader whose clock is behind.
        let at = args.take_key("at").map(parse::duration_ms).transpose()?;
        let at = at.map_or(self.now, Timestamp);
        let told = self.perform(&command.name, at, &mut args)?;
        args.reject_next()?;
        Ok(told)
    }

    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        let mut other = self.bounds.map_or_else(Machine::new, |(o, f)| Machine::bounded(o, f));
        for (at, command) in &self.log {
            let _ = other.apply(*at, command.clone());
        }
        if other.state_hash() != self.machine.state_hash() {
            return Err("the same log gave another state".into());
        }
        self.check_restored(&Machine::restore(self.machine.snapshot()))
    }
}

impl Stage {
    fn perform(
        &mut self,
        verb: &str,
        at: Timestamp,
        args: &mut ArgumentConsumer<'_>,
    ) -> Parsed<String> {
        match verb {
            // bounds open=N finished=N: a small machine, before anything else.
            "bounds" => {
                let mut bound = |key| -> Parsed<usize> {
                    Ok(args.take_key(key).ok_or("open= and finished=")?.parse()?)
                };
                let (open, finished) = (bound("open")?, bound("finished")?);
                self.bounds = Some((open, finished));
                self.machine = Machine::bounded(open, finished);
                Ok(String::new())
            }
            "begin" => {
                let parse::Begin { gid, mode, options, branches, enlisted } = parse::begin(args)?;
                self.apply(
                    at,
                    &gid.clone(),
                    Command::Begin { gid, mode, options, branches, enlisted, content: None },
                )
            }
            "add" => {
                let gid = parse::gid(args)?;
                let (branch, spec) = parse::added(args)?;
                self.apply(at, &gid.clone(), Command::AddBranch { gid, branch, spec })
            }
            // nest GID bPARENT bN PARTICIPANT ...
            "nest" => {
                let gid = parse::gid(args)?;
                let parent = parse::branch_id(args.next_pos().ok_or("which parent?")?)?;
                let (branch, spec) = parse::added(args)?;
                self.apply(at, &gid.clone(), Command::Nest { gid, parent, branch, spec })
            }
            // submit GID [bN=TEXT]; bN.payload=BYTES: what the confirm of bN carries.
            "submit" => {
                let gid = parse::gid(args)?;
                let captures = parse::captures(args)?;
                self.apply(at, &gid.clone(), Command::Submit { gid, captures })
            }
            // rollback GID ["WHY"]; words=N: a reason of N letters.
            "rollback" => {
                let gid = parse::gid(args)?;
                let reason = match args.take_key("words") {
                    Some(length) => "é".repeat(length.parse()?),
                    None => parse::words(args, "the customer changed her mind"),
                };
                self.apply(at, &gid.clone(), Command::RollBack { gid, reason })
            }
            // fence GID ["WHY"]
            "fence" => {
                let gid = parse::gid(args)?;
                let reason = parse::words(args, "prepared at pg-1, and nobody knows it");
                self.apply(at, &gid.clone(), Command::Fence { gid, reason })
            }
            "finish" => {
                let gid = parse::gid(args)?;
                let (decision, branches) = parse::finished(args)?;
                self.apply(at, &gid.clone(), Command::Finish { gid, branches, decision })
            }
            "expire" => {
                let gid = parse::gid(args)?;
                self.apply(at, &gid.clone(), Command::Expire { gid })
            }
            "retry" => {
                let gid = parse::gid(args)?;
                let reason = parse::words(args, "the operator has looked");
                self.apply(at, &gid.clone(), Command::Retry { gid, reason })
            }
            // operate GID retry|rollback|done|refused|believed|abandon|approve [bN] [by=WHO]
            "operate" => {
                let gid = parse::gid(args)?;
                let act = parse::act(args)?;
                let by = args.take_key("by").unwrap_or("user/alice").to_owned();
                let reason = parse::words(args, "ticket 7311");
                self.apply(at, &gid.clone(), Command::Operate { gid, act, by, reason })
            }
            // rules TEXT expected=N [by=WHO]; bytes=N: a text of N bytes.
            "rules" => {
                let expected = args.take_key("expected").ok_or("expected=")?.parse()?;
                let by = args.take_key("by").unwrap_or("user/dora").to_owned();
                let text = match args.take_key("bytes") {
                    Some(bytes) => "x".repeat(bytes.parse()?),
                    None => parse::words(args, "rules"),
                };
                let reason = "shard-2 is full".to_owned();
                self.beside(at, Command::SetRules { text, expected, by, reason })
            }
            "note" => {
                let by = args.take_key("by").unwrap_or("user/sam").to_owned();
                let words = parse::words(args, "node 4");
                let (act, about) = ("cluster.add".to_owned(), "node 4".to_owned());
                self.beside(at, Command::Note { deed: Deed { by, act, about, words } })
            }
            "trail" => {
                let trail = &self.machine.books().trail;
                trail.check()?;
                Ok(tell::trail(trail))
            }
            // Puts answers into the log as they are: what a leader did that is somewhere else.
            "report" => {
                let gid = parse::gid(args)?;
                let reports = parse::reports(args)?;
                self.apply(at, &gid.clone(), Command::Report { gid, reports })
            }
            "answer" => self.answer(at, args),
            "owed" => {
                let gid = parse::gid(args)?;
                let next = self.machine.owed(&gid, self.heard(&gid));
                Ok(match self.machine.get(&gid) {
                    Some(transaction) => tell::next(&next, transaction).join("\n"),
                    None => format!("{gid} is not known: {next:?}"),
                })
            }
            "due" => self.due(args),
            "show" => {
                let gid = parse::gid(args)?;
                Ok(match self.machine.get(&gid) {
                    Some(transaction) => tell::transaction(transaction),
                    None => format!("{gid} is not known"),
                })
            }
            "list" => {
                let after = args.take_key("after").map(Gid::parse).transpose()?;
                let all = self.machine.list(after.as_ref());
                Ok(all.map(|one| format!("{} {}\n", one.gid, one.status)).collect())
            }
            "census" => Ok(tell::census(&self.machine)),
            "clock" => {
                let ms = parse::duration_ms(args.next_pos().ok_or("how long?")?)?;
                self.now = self.now.plus_ms(ms);
                Ok(format!("it is {}", tell::time(self.now)))
            }
            "leader-change" => {
                self.heard.clear();
                Ok("a new leader, which has heard nothing".to_owned())
            }
            "snapshot" => {
                let restored = Machine::restore(self.machine.snapshot());
                self.check_restored(&restored)?;
                self.machine = restored;
                Ok("restored, with the same hash".to_owned())
            }
            "hash" => Ok(self.hash(args.next_pos())),
            other => Err(format!("no verb: {other}").into()),
        }
    }

    /// `answer GID ...`: the leader hears it, and does what a leader does: it proposes a report when that is worth one.
    fn answer(&mut self, at: Timestamp, args: &mut ArgumentConsumer<'_>) -> Parsed<String> {
        let gid = parse::gid(args)?;
        let reports = parse::reports(args)?;
        let mut told: Vec<_> =
            reports.iter().map(|r| format!("heard {}", tell::report(r))).collect();
        self.heard.entry(gid.clone()).or_default().extend(reports);
        match self.machine.owed(&gid, self.heard(&gid)) {
            Next::Become(..) | Next::Record => {
                let reports = self.heard.remove(&gid).unwrap_or_default();
                let promised = self.machine.owed(&gid, &reports);
                let was_reached = self.machine.get(&gid).is_some_and(|one| one.pivot_reached);
                told.push(self.apply(at, &gid, Command::Report { gid: gid.clone(), reports })?);
                let is_reached = self.machine.get(&gid).is_some_and(|one| one.pivot_reached);
                if promised == Next::Record && (was_reached || !is_reached) {
                    return Err("a report that reaches the pivot did not".into());
                }
            }
            Next::Call(_) | Next::Wait => {}
        }
        Ok(told.join("\n"))
    }

    /// `due [limit=N]`: the calls and deadlines of all transactions, as the leader sees them now.
    fn due(&self, args: &mut ArgumentConsumer<'_>) -> Parsed<String> {
        let limit = args.take_key("limit").unwrap_or("100").parse()?;
        let due = self.machine.due(self.now, limit);
        let mut told = Vec::new();
        for gid in &due.owing {
            let next = self.machine.owed(gid, self.heard(gid));
            let transaction = self.machine.get(gid).unwrap();
            told.extend(tell::next(&next, transaction).iter().map(|line| format!("{gid}: {line}")));
        }
        told.extend(due.expired.iter().map(|gid| format!("{gid}: expire")));
        if told.is_empty() {
            told.push("nothing".to_owned());
        }
        if let Some(deadline) = self.machine.next_deadline() {
            told.push(format!("next deadline {}", tell::time(deadline)));
        }
        Ok(told.join("\n"))
    }

    /// `hash NAME`: remembers the hash, or compares it with the one of that name. `hash`: shows it.
    fn hash(&mut self, name: Option<&str>) -> String {
        let hash = self.machine.state_hash();
        let Some(name) = name else { return hash.to_string() };
        match self.hashes.get(name) {
            None => {
                self.hashes.insert(name.to_owned(), hash);
                format!("remembered as {name}")
            }
            Some(before) if *before == hash => format!("the same as {name}"),
            Some(_) => format!("other than {name}"),
        }
    }

    fn heard(&self, gid: &Gid) -> &[Report] {
        self.heard.get(gid).map_or(&[], Vec::as_slice)
    }

    /// Applies, writes the log, and sees to it that a refused command changes nothing but the clock.
    fn apply(&mut self, at: Timestamp, gid: &Gid, command: Command) -> Parsed<String> {
        let before = self.machine.snapshot();
        self.log.push((at, command.clone()));
        match self.machine.apply(at, command) {
            Ok(outcome) => {
                let transaction = self.machine.get(gid).ok_or("applied, and gone")?;
                Ok(tell::outcome(&outcome, transaction))
            }
            Err(rejection) => {
                let after = self.machine.snapshot();
                if (before.open, before.finished, before.books)
                    != (after.open, after.finished, after.books)
                {
                    return Err("a refused command changed something".into());
                }
                Err(format!("{} {rejection}", rejection.code()).into())
            }
        }
    }

    /// Applies what is about no transaction.
    fn beside(&mut self, at: Timestamp, command: Command) -> Parsed<String> {
        let before = self.machine.books().clone();
        self.log.push((at, command.clone()));
        match self.machine.apply(at, command) {
            Ok(outcome) => {
                let books = self.machine.books();
                let repeated = if outcome.repeated { ", known already" } else { "" };
                Ok(format!(
                    "epoch {}, {} versions kept, {} records{repeated}",
                    books.epoch(),
                    books.rules.len(),
                    books.trail.count
                ))
            }
            Err(_) if before != *self.machine.books() => {
                Err("a refused command changed the books".into())
            }
            Err(rejection) => Err(format!("{} {rejection}", rejection.code()).into()),
        }
    }

    fn check_restored(&self, restored: &Machine) -> Parsed<()> {
        let (machine, end) = (&self.machine, Timestamp(u64::MAX));
        if restored.state_hash() != machine.state_hash()
            || restored.snapshot() != machine.snapshot()
            || restored.due(end, usize::MAX) != machine.due(end, usize::MAX)
            || restored.census() != machine.census()
        {
            return Err("the restored machine is another one".into());
        }
        Ok(())
    }
}

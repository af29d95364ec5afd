//! Canonical encodings and their hashes: equal content, equal digest, whatever the memory looks like.
//!
//! Every field is written in one order; numbers have eight bytes, texts and lists their length before them, options a
//! mark. So no two contents have one encoding. The numbers of variants are written here and never follow from the order
//! in which a type lists them: a digest outlives a version of the program.

use sha2::{Digest as _, Sha256};

use crate::{
    AuditRecord, Books, Branch, BranchSpec, BranchState, Decision, Digest, GlobalTransaction,
    Headers, Labels, Mode, Options, Order, Recovery, Status, Timestamp, TriedBy,
};

/// Of what begins a transaction: a repeat must match.
pub(crate) fn of_content(
    mode: Mode,
    options: &Options,
    branches: &[BranchSpec],
    enlisted: bool,
) -> Digest {
    let mut writer = Writer::new("holdfast transaction content 1");
    writer.mode(mode);
    writer.options(options);
    writer.flag(enlisted);
    writer.list(branches.len(), branches.iter(), Writer::spec);
    writer.finish()
}

/// Of what was fenced before it was begun: no content has it.
pub(crate) fn of_fence() -> Digest {
    Writer::new("holdfast fence 1").finish()
}

/// Of a machine: the clock, all transactions, of which the first `open` are open, and the books.
pub(crate) fn of_state<'a>(
    clock: Timestamp,
    open: usize,
    transactions: impl Iterator<Item = &'a GlobalTransaction>,
    books: &Books,
) -> Digest {
    let mut writer = Writer::new("holdfast machine state 1");
    writer.time(clock);
    writer.count(open);
    let mut total = 0;
    for transaction in transactions {
        writer.transaction(transaction);
        total += 1;
    }
    writer.count(total);
    // Books that nobody ever wrote into leave no mark: older states keep their digest.
    if !books.is_empty() {
        writer.books(books);
    }
    writer.finish()
}

/// Of a record of the audit trail, which the next one bears.
pub(crate) fn of_record(record: &AuditRecord) -> Digest {
    let AuditRecord { number, at, deed, before } = record;
    let mut writer = Writer::new("holdfast audit record 1");
    writer.number(*number);
    writer.time(*at);
    for words in [&deed.by, &deed.act, &deed.about, &deed.words] {
        writer.text(words);
    }
    writer.bytes(&before.0);
    writer.finish()
}

/// Gathers the encoding, so that the hash is fed in few large pieces.
struct Writer {
    hash: Sha256,
    gathered: Vec<u8>,
}

/// Bytes gathered before they are hashed.
const GATHERED_MAX: usize = 1_024;

impl Writer {
    /// `subject` keeps the digests of different things apart.
    fn new(subject: &str) -> Self {
        let mut writer = Self { hash: Sha256::new(), gathered: Vec::with_capacity(GATHERED_MAX) };
        writer.text(subject);
        writer
    }

    fn finish(mut self) -> Digest {
        self.hash.update(&self.gathered);
        Digest(self.hash.finalize().into())
    }

    fn raw(&mut self, bytes: &[u8]) {
        if self.gathered.len() + bytes.len() > GATHERED_MAX {
            self.hash.update(&self.gathered);
            self.gathered.clear();
            if bytes.len() > GATHERED_MAX {
                return self.hash.update(bytes);
            }
        }
        self.gathered.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.number(count as u64);
    }

    fn flag(&mut self, flag: bool) {
        self.raw(&[u8::from(flag)]);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn time(&mut self, time: Timestamp) {
        self.number(time.0);
    }

    fn option<T>(&mut self, option: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(option.is_some());
        if let Some(value) = option {
            write(self, value);
        }
    }

    fn list<T>(
        &mut self,
        length: usize,
        items: impl Iterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.count(length);
        items.for_each(|item| write(self, item));
    }

    fn labels(&mut self, labels: &Labels) {
        self.list(labels.len(), labels.iter(), |writer, (name, value)| {
            writer.text(name);
            writer.text(value);
        });
    }

    /// As labels, whatever lies where.
    fn headers(&mut self, headers: &Headers) {
        self.count(headers.len());
        headers.for_each(|name, value| {
            self.text(name);
            self.text(value);
        });
    }

    fn options(&mut self, options: &Options) {
        let Options {
            timeout_ms,
            call_timeout_ms,
            retry,
            order,
            recovery,
            tried_by,
            headers,
            tags,
            second_phase_grace_ms,
        } = options;
        self.number(*timeout_ms);
        self.number(*call_timeout_ms);
        self.number(retry.first_ms);
        self.number(retry.ceiling_ms);
        self.number(retry.attempts_max.into());
        self.number(match order {
            Order::Sequential => 1,
            Order::Concurrent => 2,
        });
        self.number(match recovery {
            Recovery::Backward => 1,
            Recovery::Forward => 2,
        });
        self.number(match tried_by {
            TriedBy::Coordinator => 1,
            TriedBy::Caller => 2,
        });
        self.headers(headers);
        self.labels(tags);
        // What came later is written only where it says something, so that older contents keep their digest. Its name keeps
        // it apart from what follows: no flag and no length of a digest begins with the length of this text.
        if *second_phase_grace_ms > 0 {
            self.text("second_phase_grace_ms");
            self.number(*second_phase_grace_ms);
        }
    }

    fn spec(&mut self, spec: &BranchSpec) {
        let BranchSpec { participant, payload, after, pivot } = spec;
        self.text(participant.as_str());
        self.bytes(payload);
        self.option(after.as_deref(), |writer, after| {
            writer.list(after.len(), after.iter(), |writer, id| writer.number(id.0.into()));
        });
        self.flag(*pivot);
    }

    fn branch(&mut self, branch: &Branch) {
        let Branch { spec, state, refusal } = branch;
        self.spec(spec);
        self.number(match state {
            BranchState::Pending => 1,
            BranchState::Done => 2,
            BranchState::Refused => 3,
            BranchState::Confirmed => 4,
            BranchState::Undone => 5,
        });
        self.option(refusal.as_deref(), |writer, refusal| {
            writer.text(&refusal.code);
            writer.text(&refusal.message);
        });
    }

    fn mode(&mut self, mode: Mode) {
        self.number(match mode {
            Mode::Tcc => 1,
            Mode::Saga => 2,
            Mode::Xa => 3,
        });
    }

    fn status(&mut self, status: Status) {
        self.number(match status {
            Status::Active => 1,
            Status::Trying => 2,
            Status::Running => 3,
            Status::Committing => 4,
            Status::RollingBack => 5,
            Status::Compensating => 6,
            Status::Committed => 7,
            Status::RolledBack => 8,
            Status::NeedsAttention => 9,
        });
    }

    fn books(&mut self, books: &Books) {
        let Books { rules, trail, proposals } = books;
        self.text("books");
        self.list(rules.len(), rules.iter(), |writer, version| {
            writer.number(version.epoch);
            writer.time(version.at);
            for words in [&version.text, &version.by, &version.reason] {
                writer.text(words);
            }
        });
        // The head stands for every record; that each is as it was written, the chain says.
        self.number(trail.count);
        self.bytes(&trail.head.0);
        self.count(trail.kept.len());
        self.list(proposals.len(), proposals.iter(), |writer, (gid, proposal)| {
            writer.text(gid.as_str());
            writer.text(&proposal.remedy.to_string());
            writer.text(&proposal.by);
            writer.text(&proposal.reason);
            writer.time(proposal.at);
            writer.time(proposal.until);
        });
    }

    fn transaction(&mut self, transaction: &GlobalTransaction) {
        let GlobalTransaction {
            gid,
            mode,
            options,
            content,
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
        } = transaction;
        self.text(gid.as_str());
        self.mode(*mode);
        self.options(options);
        self.bytes(&content.0);
        self.flag(*enlisted);
        self.status(*status);
        self.option(*interrupted, Self::status);
        self.list(branches.len(), branches.iter(), Self::branch);
        self.time(*begun_at);
        self.time(*deadline);
        self.option(*decision, |writer, decision| {
            writer.number(match decision {
                Decision::Commit => 1,
                Decision::RollBack => 2,
            });
        });
        self.option(*decided_at, Self::time);
        self.option(*finished_at, Self::time);
        self.flag(*pivot_reached);
        self.option(reason.as_deref(), Self::text);
        // Written only where it says something, so that older states keep their digest. No gid, with which the next
        // transaction begins, has a space in it.
        if !captures.is_empty() {
            self.text("confirm captures");
            self.list(captures.len(), captures.iter(), |writer, (branch, payload)| {
                writer.number(branch.0.into());
                writer.bytes(payload);
            });
        }
    }
}

//! The machine under the log: carries out entries in their order, and tells the dispatcher and those who wait.

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use holdfast_fault::{Site, reached};
use holdfast_raft::{Capture, Position, StateMachine};
use holdfast_txn::{
    Command, Gid, GlobalTransaction, Machine, Moved, Outcome, Rejection, Snapshot, Status,
    Timestamp,
};
use tokio::sync::Notify;

use crate::{history::History, meters::Meters, record, waiters::Waiters, watchers::Watchers};

/// What an entry's commands did, one each, in their order.
pub(crate) type Results = Vec<Result<Outcome, Rejection>>;

/// The machine, and how far it is. Held shortly; never across an await.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) machine: Machine,
    pub(crate) applied_index: u64,
}

/// The state as everybody on this node shares it.
#[derive(Clone, Debug)]
pub(crate) struct SharedState(Arc<Mutex<State>>);

impl SharedState {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(State { machine: Machine::new(), applied_index: 0 })))
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("the machine never panics")
    }

    /// What would become of a known transaction by `command` at `at`: the same rules, on a machine of its own.
    pub(crate) fn foresee(
        &self,
        gid: &Gid,
        command: Command,
        at: Timestamp,
    ) -> Result<(Outcome, Arc<GlobalTransaction>), Rejection> {
        let snapshot = {
            let state = self.held();
            let known = state.machine.share(gid);
            let known = known.ok_or_else(|| Rejection::UnknownGid { gid: gid.clone() })?;
            let (clock, books) = (state.machine.clock(), Arc::clone(state.machine.books()));
            let (open, finished) =
                if known.status.is_final() { (vec![], vec![known]) } else { (vec![known], vec![]) };
            Snapshot { clock, open, finished, books }
        };
        let mut machine = Machine::restore(snapshot);
        let outcome = machine.apply(at, command)?;
        Ok((outcome, machine.share(gid).expect("it is there")))
    }

    /// The whole state as it is now, and the last entry in it. Cheap beside what reading it costs.
    pub(crate) fn snapshot(&self) -> (Snapshot, u64) {
        let state = self.held();
        (state.machine.snapshot(), state.applied_index)
    }

    /// The transaction as it is now; cheap.
    pub(crate) fn get(&self, gid: &Gid) -> Option<Arc<GlobalTransaction>> {
        self.held().machine.share(gid)
    }
}

/// Transactions that moved since the dispatcher last looked. Bounded: what is too much becomes "look at everything".
#[derive(Debug)]
pub(crate) struct Touched {
    since: Mutex<Since>,
    pub(crate) wake: Notify,
}

#[derive(Debug, Default)]
struct Since {
    listening: bool,
    gids: Vec<Touch>,
    overflowed: bool,
}

/// One that moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) gid: Gid,
    /// It was retried: answers to what was asked before count no more.
    pub(crate) anew: bool,
}

/// What moved.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Moves {
    /// These.
    These(Vec<Touch>),
    /// Too many to tell, or the state was replaced: ask the machine what is due.
    Anything,
}

impl Touched {
    /// Transactions that are remembered one by one.
    const GIDS_MAX: usize = 262_144;

    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { since: Mutex::default(), wake: Notify::new() })
    }

    /// Starts or stops listening; either way what was heard is forgotten.
    pub(crate) fn listen(&self, listening: bool) {
        *self.held() = Since { listening, ..Since::default() };
    }

    /// What moved since the last time.
    pub(crate) fn take(&self) -> Moves {
        let mut since = self.held();
        let gids = std::mem::take(&mut since.gids);
        if std::mem::take(&mut since.overflowed) { Moves::Anything } else { Moves::These(gids) }
    }

    fn add(&self, gids: Vec<Touch>) {
        let mut since = self.held();
        if !since.listening || gids.is_empty() {
            return;
        }
        if since.gids.len() + gids.len() > Self::GIDS_MAX {
            since.overflowed = true;
            since.gids = Vec::new();
        } else if since.gids.is_empty() {
            since.gids = gids;
        } else if !since.overflowed {
            since.gids.extend(gids);
        }
        drop(since);
        self.wake.notify_one();
    }

    fn everything(&self) {
        self.held().overflowed = true;
        self.wake.notify_one();
    }

    fn held(&self) -> MutexGuard<'_, Since> {
        self.since.lock().expect("nobody panics while holding the moves")
    }
}

/// The log's state machine.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Its number. Only group 0 has shard rules.
    pub(crate) group: u32,
    pub(crate) state: SharedState,
    pub(crate) touched: Arc<Touched>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) meters: Arc<Meters>,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) history: Option<Arc<History>>,
}

impl StateMachine for Replica {
    type Response = Results;

    fn apply(&mut self, position: Position, entry: &Bytes) -> Results {
        reached(Site::ReplicaBeforeApply);
        let (at, commands) = match record::decode_entry(entry) {
            Ok(read) => read,
            Err(fault) => stop(position.index, &fault),
        };
        let mut touched = Vec::with_capacity(commands.len());
        let mut results = Vec::with_capacity(commands.len());
        let mut finished = Vec::new();
        let mut state = self.state.held();
        for command in commands {
            let gid = command.gid().cloned();
            let result = state.machine.apply(at, command);
            if let (Ok(outcome), Some(gid)) = (&result, gid)
                && !outcome.repeated
            {
                if let Some(moved) = outcome.moved {
                    finished.extend(self.tell(&state.machine, &gid, moved));
                }
                let from = outcome.moved.and_then(|moved| moved.from);
                touched.push(Touch { gid, anew: from == Some(Status::NeedsAttention) });
            }
            results.push(result);
        }
        state.applied_index = position.index;
        self.rules_at(&state.machine);
        drop(state);
        reached(Site::ReplicaAppliedUntold);
        self.touched.add(touched);
        // Every node writes its own history, so that whoever leads next has it.
        if let Some(history) = self.history.as_ref().filter(|_| !finished.is_empty()) {
            history.finished(finished);
        }
        results
    }

    fn snapshot(&self) -> Capture {
        // It shares its transactions with the machine; they are read and encoded beside the work.
        let (snapshot, applied_index) = self.state.snapshot();
        Box::new(move |leisure| {
            record::encode_snapshot(&snapshot, applied_index, || leisure.leave_way())
        })
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (snapshot, applied_index) =
            record::decode_snapshot(bytes).map_err(|fault| fault.to_string())?;
        let machine = Machine::restore(snapshot);
        self.rules_at(&machine);
        let replaced = std::mem::replace(&mut *self.state.held(), State { machine, applied_index });
        // Giving a large state back takes its time: nobody waits for it.
        drop(replaced);
        self.touched.everything();
        if let Some(history) = &self.history {
            history.everything();
        }
        Ok(())
    }
}

impl Replica {
    /// Tells a move to those who count it, wait for it or watch it. Answers the transaction, if it ended by that and is to be written down.
    fn tell(&self, machine: &Machine, gid: &Gid, moved: Moved) -> Option<Arc<GlobalTransaction>> {
        let told = self.is_somebody_told();
        let written = self.history.is_some() && moved.to.is_final();
        if !told && !written {
            return None;
        }
        let transaction = machine.share(gid)?;
        if told {
            self.meters.moved(&transaction, moved);
            self.waiters.moved(&transaction);
            self.watchers.moved(&transaction);
        }
        written.then_some(transaction)
    }

    /// Whether a move is counted here, waited for or watched: not on most followers.
    fn is_somebody_told(&self) -> bool {
        self.meters.leads() || self.waiters.count() > 0 || self.watchers.anyone()
    }

    fn rules_at(&self, machine: &Machine) {
        if self.group == 0 {
            self.watchers.rules_at(machine.books().epoch());
        }
    }
}

/// Ends the process: a node that cannot read what its peers carry out must not go on with another state.
fn stop(index: u64, fault: &record::RecordError) -> ! {
    tracing::error!(index, %fault, "HF1201 an applied entry cannot be read; this node stops rather than differ from its peers. Run the version that wrote it, or replace the node");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use holdfast_raft::Leisure;
    use holdfast_txn::{BranchSpec, Mode, Options, Participant};

    use super::*;

    fn gid(text: &str) -> Touch {
        Touch { gid: Gid::parse(text).unwrap(), anew: false }
    }

    fn replica() -> Replica {
        Replica {
            group: 0,
            state: SharedState::new(),
            touched: Touched::new(),
            waiters: Waiters::new(1),
            meters: Arc::new(Meters::new()),
            watchers: Watchers::new(),
            history: None,
        }
    }

    fn begin(gid: &str) -> Command {
        Command::Begin {
            gid: Gid::parse(gid).unwrap(),
            mode: Mode::Tcc,
            options: Options::of(Mode::Tcc),
            branches: vec![BranchSpec {
                participant: Participant::parse("deposit").unwrap(),
                payload: Bytes::from_static(b"50.00"),
                after: None,
                pivot: false,
            }],
            enlisted: false,
            content: None,
        }
    }

    fn entry(at_ms: u64, commands: &[Command]) -> Bytes {
        let encoded: Vec<_> = commands.iter().map(record::EncodedCommand::of).collect();
        record::encode_entry(Timestamp(at_ms), encoded.iter())
    }

    #[test]
    fn each_command_of_an_entry_has_its_own_result_in_order() {
        let mut replica = replica();
        let unknown = Command::Submit {
            gid: Gid::parse("g9").unwrap(),
            captures: holdfast_txn::Captures::default(),
        };
        let commands = [begin("g1"), unknown, begin("g1"), begin("g2")];
        let results = replica.apply(Position { index: 7, term: 1 }, &entry(1_000, &commands));
        let told: Vec<_> =
            results.iter().map(|one| one.as_ref().map(|outcome| outcome.repeated).ok()).collect();
        assert_eq!(told, [Some(false), None, Some(true), Some(false)]);
        assert_eq!(replica.state.held().applied_index, 7);
    }

    #[test]
    fn a_snapshot_carries_the_whole_state_to_another_replica() {
        let mut first = replica();
        first.apply(Position { index: 3, term: 1 }, &entry(1_000, &[begin("g1"), begin("g2")]));
        let mut second = replica();
        second.touched.listen(true);
        second.restore(&first.snapshot()(Leisure::none())).unwrap();
        let (one, other) = (first.state.held(), second.state.held());
        assert_eq!(one.machine.state_hash(), other.machine.state_hash());
        assert_eq!((one.applied_index, other.applied_index), (3, 3));
        assert_eq!(second.touched.take(), Moves::Anything);
        drop((one, other));
        assert_eq!(first.snapshot()(Leisure::none()), second.snapshot()(Leisure::none()));
        assert!(second.restore(b"\xffno snapshot").is_err());
        assert_eq!(second.state.held().applied_index, 3, "what cannot be read changes nothing");
    }

    #[test]
    fn moves_are_told_once_and_only_to_a_listener() {
        let touched = Touched::new();
        touched.add(vec![gid("g1")]);
        assert_eq!(touched.take(), Moves::These(vec![]));
        touched.listen(true);
        touched.add(vec![gid("g1")]);
        touched.add(vec![gid("g2"), gid("g1")]);
        assert_eq!(touched.take(), Moves::These(vec![gid("g1"), gid("g2"), gid("g1")]));
        assert_eq!(touched.take(), Moves::These(vec![]));
    }

    #[test]
    fn moves_at_the_limit_are_told_and_one_more_becomes_anything() {
        let touched = Touched::new();
        touched.listen(true);
        touched.add(vec![gid("g1"); Touched::GIDS_MAX]);
        assert!(matches!(touched.take(), Moves::These(gids) if gids.len() == Touched::GIDS_MAX));
        touched.add(vec![gid("g1"); Touched::GIDS_MAX]);
        touched.add(vec![gid("g2")]);
        touched.add(vec![gid("g3")]);
        assert_eq!(touched.take(), Moves::Anything);
        touched.add(vec![gid("g3")]);
        assert_eq!(touched.take(), Moves::These(vec![gid("g3")]));
    }
}

//! The proposer before a log that the test holds by the hand: what goes together, how much is under way, who is told what.

use std::{sync::Mutex, time::Duration};

use holdfast_txn::{Captures, Outcome, Timestamp};
use tokio::time::timeout;

use super::*;
use crate::live::Live;

/// Keeps entries until the test lets one through, and rejects commands for the gid `bad`.
#[derive(Debug)]
struct HeldLog {
    entries: Mutex<Vec<(Timestamp, Vec<Command>)>>,
    gate: Semaphore,
    fault: Option<ProposeError>,
}

impl HeldLog {
    fn new(fault: Option<ProposeError>) -> Arc<Self> {
        let gate = Semaphore::new(0);
        Arc::new(Self { entries: Mutex::default(), gate, fault })
    }

    /// How many commands each entry has.
    fn sizes(&self) -> Vec<usize> {
        self.entries.lock().unwrap().iter().map(|(_, commands)| commands.len()).collect()
    }

    async fn has_entries(&self, count: usize) {
        within(async {
            while self.sizes().len() < count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

impl Entries for HeldLog {
    async fn propose(&self, entry: Bytes) -> Result<Results, ProposeError> {
        let (at, commands) = record::decode_entry(&entry).unwrap();
        let results = commands.iter().map(|command| match command.gid() {
            Some(gid) if gid.as_str() == "bad" => Err(Rejection::UnknownGid { gid: gid.clone() }),
            _ => Ok(Outcome { moved: None, repeated: false }),
        });
        let results = results.collect();
        self.entries.lock().unwrap().push((at, commands));
        self.gate.acquire().await.unwrap().forget();
        self.fault.clone().map_or(Ok(results), Err)
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("within ten seconds")
}

fn submit(gid: &str) -> Command {
    Command::Submit { gid: Gid::parse(gid).unwrap(), captures: Captures::default() }
}

fn roll_back(bytes: usize) -> Command {
    Command::RollBack { gid: Gid::parse("g1").unwrap(), reason: "r".repeat(bytes) }
}

struct Bench {
    log: Arc<HeldLog>,
    proposer: Proposer,
    proposed: mpsc::Receiver<Vec<Proposed>>,
    stop: CancellationToken,
}

fn live(limits: Limits) -> Live {
    Live {
        global_timeout_ms: 1_000,
        call_timeout_ms: 1_000,
        batch_max: limits.batch_max,
        history: crate::config::Retention::default(),
    }
}

fn bench(limits: Limits, fault: Option<ProposeError>) -> Bench {
    let log = HeldLog::new(fault);
    let stop = CancellationToken::new();
    let (sender, proposed) = mpsc::channel(16);
    let proposer = Proposer::start(
        Arc::clone(&log),
        Arc::new(Clock::new()),
        limits,
        Arc::new(live(limits).into()),
        Arc::new(Meters::new()),
        sender,
        stop.clone(),
    );
    Bench { log, proposer, proposed, stop }
}

fn limits(queue_max: usize, batch_max: usize, in_flight_max: usize) -> Limits {
    Limits { queue_max, batch_max, in_flight_max, request_bytes_max: 1, ..Limits::default() }
}

/// Proposes beside the test.
fn proposing(
    bench: &Bench,
    command: Command,
) -> tokio::task::JoinHandle<Result<Applied, ProposeError>> {
    let proposer = bench.proposer.clone();
    tokio::spawn(async move { proposer.propose(&command).await })
}

async fn waiting(bench: &Bench, count: usize) {
    within(async {
        while bench.proposer.waiting() < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_waits_goes_together_and_each_hears_its_own_result() {
    let bench = bench(limits(16, 16, 1), None);
    let first = proposing(&bench, submit("g1"));
    bench.log.has_entries(1).await;
    let good = proposing(&bench, submit("g2"));
    let bad = proposing(&bench, submit("bad"));
    waiting(&bench, 2).await;
    bench.log.gate.add_permits(2);
    assert!(within(first).await.unwrap().unwrap().result.is_ok());
    assert!(within(good).await.unwrap().unwrap().result.is_ok());
    assert!(within(bad).await.unwrap().unwrap().result.is_err());
    assert_eq!(bench.log.sizes(), [1, 2]);
    let entries = bench.log.entries.lock().unwrap();
    assert!(entries[0].0 <= entries[1].0, "time never goes back");
}

#[tokio::test]
async fn the_queue_at_its_limit_takes_and_one_past_it_is_told_to_try_again() {
    let bench = bench(limits(3, 16, 1), None);
    let under_way = proposing(&bench, submit("g0"));
    bench.log.has_entries(1).await;
    let mut queued = Vec::new();
    for number in 1..=3 {
        queued.push(proposing(&bench, submit(&format!("g{number}"))));
    }
    waiting(&bench, 3).await;
    let past = bench.proposer.propose(&submit("g4")).await;
    assert!(matches!(past, Err(ProposeError::Overloaded { waiting: 3 })), "{past:?}");
    bench.log.gate.add_permits(8);
    for proposal in queued.into_iter().chain([under_way]) {
        assert!(within(proposal).await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn no_more_entries_than_allowed_are_under_way() {
    let bench = bench(limits(64, 1, 2), None);
    let proposals: Vec<_> =
        (0..5).map(|number| proposing(&bench, submit(&format!("g{number}")))).collect();
    bench.log.has_entries(2).await;
    waiting(&bench, 3).await;
    assert_eq!(bench.log.sizes(), [1, 1], "two are under way, three wait");
    bench.log.gate.add_permits(5);
    for proposal in proposals {
        within(proposal).await.unwrap().unwrap();
    }
    assert_eq!(bench.log.sizes(), [1; 5]);
}

#[tokio::test]
async fn an_entry_is_cut_at_its_bytes_and_what_did_not_fit_goes_next() {
    let bench = bench(limits(64, 64, 1), None);
    let first = proposing(&bench, submit("g0"));
    bench.log.has_entries(1).await;
    let half = limit::ENTRY_BYTES_MAX / 2;
    let large: Vec<_> = (0..3).map(|_| proposing(&bench, roll_back(half))).collect();
    waiting(&bench, 3).await;
    bench.log.gate.add_permits(8);
    for proposal in large.into_iter().chain([first]) {
        within(proposal).await.unwrap().unwrap();
    }
    assert_eq!(bench.log.sizes(), [1, 1, 1, 1]);
}

#[tokio::test]
async fn reports_go_before_commands_of_callers_and_are_told_together() {
    let mut bench = bench(limits(64, 2, 1), None);
    let first = proposing(&bench, submit("g0"));
    bench.log.has_entries(1).await;
    let caller = proposing(&bench, submit("g1"));
    waiting(&bench, 1).await;
    for gid in ["r1", "r2"] {
        assert!(bench.proposer.report(Gid::parse(gid).unwrap(), &submit(gid), Kind::Lazy));
    }
    bench.log.gate.add_permits(8);
    let told = within(bench.proposed.recv()).await.unwrap();
    let told: Vec<_> = told.iter().map(|one| one.gid.as_str().to_owned()).collect();
    assert_eq!(told, ["r1", "r2"]);
    within(first).await.unwrap().unwrap();
    within(caller).await.unwrap().unwrap();
    assert_eq!(bench.log.sizes(), [1, 2, 1]);
}

#[tokio::test]
async fn a_fault_of_the_log_is_told_to_everyone_in_the_entry() {
    let bench = bench(limits(64, 64, 1), Some(ProposeError::Unknown { cause: "cut".to_owned() }));
    let first = proposing(&bench, submit("g0"));
    bench.log.gate.add_permits(1);
    let told = within(first).await.unwrap();
    assert!(told.is_err_and(|fault| fault.is_unknown()));
}

#[tokio::test]
async fn at_the_end_those_who_wait_are_told_that_nothing_happened() {
    let bench = bench(limits(64, 64, 1), None);
    let under_way = proposing(&bench, submit("g0"));
    bench.log.has_entries(1).await;
    let waits = proposing(&bench, submit("g1"));
    waiting(&bench, 1).await;
    bench.stop.cancel();
    assert!(matches!(within(waits).await.unwrap(), Err(ProposeError::Stopped)));
    bench.log.gate.add_permits(1);
    within(under_way).await.unwrap().expect("what is under way is answered by the log");
    let late = bench.proposer.propose(&submit("g2")).await;
    assert!(matches!(late, Err(ProposeError::Stopped)));
    assert_eq!(bench.log.sizes(), [1]);
}

#[tokio::test]
async fn while_it_is_shut_nothing_goes_and_behind_it_everything_does() {
    let mut bench = bench(limits(64, 64, 4), None);
    let under_way = proposing(&bench, submit("g0"));
    bench.log.has_entries(1).await;
    let mut shut = std::pin::pin!(bench.proposer.shut());
    assert!(timeout(LAZY_WAIT, &mut shut).await.is_err(), "an entry is under way");
    bench.log.gate.add_permits(8);
    let shut = within(shut).await;
    within(under_way).await.unwrap().unwrap();
    let caller = proposing(&bench, submit("g1"));
    assert!(bench.proposer.report(Gid::parse("r1").unwrap(), &submit("r1"), Kind::Blocking));
    tokio::time::sleep(3 * LAZY_WAIT).await;
    assert_eq!((bench.log.sizes(), caller.is_finished()), (vec![1], false));
    drop(shut);
    within(caller).await.unwrap().unwrap();
    assert_eq!(within(bench.proposed.recv()).await.unwrap().len(), 1);
    // Nobody has to come for it to be shut.
    drop(within(bench.proposer.shut()).await);
}

#[tokio::test]
async fn the_largest_command_goes_and_one_byte_more_is_refused() {
    let bench = bench(limits(64, 64, 1), None);
    bench.log.gate.add_permits(2);
    let frame = EncodedCommand::of(&roll_back(limit::COMMAND_BYTES_MAX)).len_in_entry()
        - limit::COMMAND_BYTES_MAX;
    let largest = roll_back(limit::COMMAND_BYTES_MAX - frame);
    assert!(bench.proposer.propose(&largest).await.unwrap().result.is_ok());
    let larger = roll_back(limit::COMMAND_BYTES_MAX - frame + 1);
    let refused = bench.proposer.propose(&larger).await.unwrap().result;
    assert!(matches!(refused, Err(Rejection::OutOfRange { .. })), "{refused:?}");
    assert_eq!(bench.log.sizes(), [1]);
}

#[tokio::test]
async fn a_lazy_command_waits_for_company_and_then_goes_alone() {
    let mut bench = bench(limits(64, 64, 4), None);
    bench.log.gate.add_permits(8);
    let begun = Instant::now();
    assert!(bench.proposer.report(Gid::parse("r1").unwrap(), &submit("r1"), Kind::Lazy));
    let told = within(bench.proposed.recv()).await.unwrap();
    assert_eq!(told.len(), 1);
    assert!(begun.elapsed() >= LAZY_WAIT, "{:?}", begun.elapsed());
    assert_eq!(bench.log.sizes(), [1]);
}

#[tokio::test]
async fn a_lazy_command_rides_along_with_a_blocking_one() {
    let mut bench = bench(limits(64, 64, 1), None);
    // The batcher runs only when this test waits, so it finds both.
    assert!(bench.proposer.report(Gid::parse("r1").unwrap(), &submit("r1"), Kind::Lazy));
    assert!(bench.proposer.report(Gid::parse("r2").unwrap(), &submit("r2"), Kind::Blocking));
    bench.log.gate.add_permits(8);
    let told = within(bench.proposed.recv()).await.unwrap();
    assert_eq!(told.len(), 2);
    assert_eq!(bench.log.sizes(), [2]);
}

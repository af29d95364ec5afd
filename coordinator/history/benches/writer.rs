//! What the writer of a history costs in CPU a record, with the code that ships and without sled: a shelf that forgets what it is given.
//! Run by `cargo bench -p holdfast-history`. It measures the time of its own thread, so other work on the machine
//! changes it by some hundredths.

use std::{fs::File, hint::black_box, os::unix::fs::FileExt, sync::Arc, thread};

use bytes::Bytes;
use holdfast_history::{Archive, Change, Pair, Retention, Shelf, ShelfError};
use holdfast_txn::{
    Branch, BranchSpec, BranchState, Captures, Decision, Digest, Gid, GlobalTransaction, Mode, Op,
    Options, Participant, Status, Timestamp,
};

/// What the coordinator writes is in its crate, which takes minutes to build. So its files are compiled here once more.
#[expect(unused_imports, reason = "of its tests, which are none here")]
#[path = "../../src/fields.rs"]
mod fields;

mod branch_call {
    use holdfast_proto::v1;
    use holdfast_txn::Op;

    pub(crate) fn op_on_the_wire(op: Op) -> v1::Op {
        match op {
            Op::Try => v1::Op::Try,
            _ => v1::Op::Confirm,
        }
    }
}

#[path = "../../src/dispatcher"]
mod dispatcher {
    #[expect(dead_code, reason = "nobody asks what was seen")]
    pub(crate) mod attempts;

    use std::sync::Arc;

    use attempts::{Attempt, Attempts};
    use holdfast_txn::{BranchId, Op, Timestamp};

    /// A call that was answered at once.
    pub(crate) fn add(attempts: &mut Attempts, branch: u32, op: Op, at: u64, instance: &Arc<str>) {
        attempts.add(Attempt {
            branch: BranchId(branch),
            op,
            number: 1,
            at: Timestamp(at),
            took_ms: 3,
            outcome: "done",
            instance: Arc::clone(instance),
        });
    }
}

mod record {
    pub(crate) mod tests {
        /// In place of a strategy of the tests that are none here.
        #[expect(dead_code, reason = "it is there to be named")]
        pub(crate) fn transactions() {}
    }
}

mod rpc {
    pub(crate) mod show {
        use holdfast_proto::v1;
        use holdfast_txn::{Mode, Status};

        pub(crate) fn mode_to_wire(mode: Mode) -> v1::Mode {
            match mode {
                Mode::Tcc => v1::Mode::Tcc,
                Mode::Saga => v1::Mode::Saga,
                Mode::Xa => v1::Mode::Xa,
            }
        }

        pub(crate) fn status_to_wire(status: Status) -> v1::Status {
            match status {
                Status::Committed => v1::Status::Committed,
                _ => v1::Status::RolledBack,
            }
        }
    }
}

#[path = "../../src/history"]
mod history {
    #[expect(unused_imports, reason = "of its tests")]
    pub(crate) mod ended;
    #[expect(unused_imports, reason = "of its tests")]
    pub(crate) mod gathered;
}

use dispatcher::attempts::Attempts;
use history::gathered::Gathered;

/// As the coordinator has it.
#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

const RECORDS: usize = 400_000;
/// That are taken in together, as under load.
const TOGETHER: usize = 1_250;
/// That finish in one ms.
const PER_MS: usize = 25;
const ROUNDS: usize = 11;
const BEGUN_MS: u64 = 1_795_399_516_007;

/// More than the caches nearest to a processor hold.
const CACHE_BYTES: usize = 16 << 20;

/// Forgets what it is given.
#[derive(Debug)]
struct NoShelf;

impl Shelf for NoShelf {
    fn write(&self, changes: Vec<Change>) -> Result<(), ShelfError> {
        black_box(changes);
        Ok(())
    }

    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, ShelfError> {
        Ok(None)
    }

    fn scan(&self, _: &[u8]) -> Result<Vec<Pair>, ShelfError> {
        Ok(Vec::new())
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}

/// The CPU time of this thread.
struct Clock(File);

impl Clock {
    fn ns(&self) -> u64 {
        // The kernel adds up when it changes threads.
        thread::yield_now();
        let mut told = [0; 64];
        let length = self.0.read_at(&mut told, 0).expect("Linux tells it");
        let told = str::from_utf8(&told[..length]).expect("numbers");
        told.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
    }
}

/// Chance, alike in every run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A ULID: ten characters of time, and sixteen of chance.
fn gid(ms: u64, chance: &mut Chance) -> Gid {
    const DIGITS: &[u8] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let digit = |number: u64, at: u64| char::from(DIGITS[(number >> (5 * at)) as usize & 31]);
    let (one, other) = (chance.next() >> 8, chance.next() >> 8);
    let time = (0..10).rev().map(|at| digit(ms, at));
    let text: String = time
        .chain((0..8).map(|at| digit(one, at)))
        .chain((0..8).map(|at| digit(other, at)))
        .collect();
    Gid::parse(&text).expect("letters and digits")
}

/// A TCC between two of eight shards, without tags.
fn transaction(n: usize, chance: &mut Chance) -> GlobalTransaction {
    let finished_ms = BEGUN_MS + (n / PER_MS) as u64;
    // They take 20 to 27 ms, so their gids are not in the order in which they finish.
    let begun_ms = finished_ms - 20 - chance.next() % 8;
    let branch = |name: &str| {
        let participant = Participant::parse(name).expect("a name");
        let spec = BranchSpec { participant, payload: Bytes::new(), after: None, pivot: false };
        Branch { spec, state: BranchState::Confirmed, refusal: None }
    };
    let debit = branch(&format!("debit@shard-{}", chance.next() % 8));
    let credit = branch(&format!("credit@shard-{}", chance.next() % 8));
    GlobalTransaction {
        gid: gid(begun_ms, chance),
        mode: Mode::Tcc,
        options: Options::of(Mode::Tcc),
        content: Digest([7; 32]),
        enlisted: false,
        status: Status::Committed,
        interrupted: None,
        branches: vec![debit, credit],
        captures: Captures::default(),
        begun_at: Timestamp(begun_ms),
        deadline: Timestamp(begun_ms + 30_000),
        decision: Some(Decision::Commit),
        decided_at: Some(Timestamp(finished_ms - 8)),
        finished_at: Some(Timestamp(finished_ms)),
        pivot_reached: false,
        reason: None,
    }
}

/// What a leader saw of it.
fn seen(known: &GlobalTransaction, instances: &[Arc<str>]) -> Attempts {
    let mut attempts = Attempts::default();
    for (op, at) in [(Op::Try, known.begun_at), (Op::Confirm, known.decided_at.unwrap_or_default())]
    {
        for (branch, instance) in (1..).zip(instances) {
            dispatcher::add(&mut attempts, branch, op, at.0 + 1, instance);
        }
    }
    attempts
}

/// CPU a record, us, on a node that leads or one that follows.
fn round(clock: &Clock, leads: bool) -> f64 {
    let archive = Archive::open(Arc::new(NoShelf), Retention::default()).expect("it is empty");
    let instances = ["host-7-4711", "host-12-982"].map(Arc::from);
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let (mut ns, mut cache) = (0, vec![0_u8; CACHE_BYTES]);
    for first in (0..RECORDS).step_by(TOGETHER) {
        let numbers = first..first + TOGETHER;
        let finished: Vec<_> = numbers.map(|n| Arc::new(transaction(n, &mut chance))).collect();
        // The machine remembers them, so that the writer's are not the last.
        let remembered = finished.clone();
        let attempts = finished.iter().filter(|_| leads);
        let attempts = attempts.map(|known| (known.gid.clone(), seen(known, &instances))).collect();
        // What finishes was made by another thread, on another processor: here it is in no cache.
        cache.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        black_box(&mut cache);
        let from_ns = clock.ns();
        let mut gathered = Gathered::default();
        gathered.finished(finished);
        gathered.attempts(attempts);
        let added = gathered.take_in(&archive, 1).expect("nothing fails");
        ns += clock.ns() - from_ns;
        assert_eq!(added, TOGETHER as u64);
        drop(remembered);
    }
    ns as f64 / 1_000.0 / RECORDS as f64
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn main() {
    let clock = Clock(File::open("/proc/thread-self/schedstat").expect("Linux tells it"));
    let [follower, leader] = [false, true].map(|leads| {
        let mut us: Vec<f64> = (0..ROUNDS).map(|_| round(&clock, leads)).collect();
        us.sort_by(f64::total_cmp);
        println!(
            "{}: {:.3} us of CPU a record, {:.3} to {:.3}",
            if leads { "leader" } else { "follower" },
            us[ROUNDS / 2],
            us[0],
            us[ROUNDS - 1]
        );
        us[ROUNDS / 2]
    });
    println!("three nodes: {:.3} us of CPU a record", 2.0 * follower + leader);
}

//! What the machine costs: `due` must follow what is due and not what is open. Run by `cargo bench -p holdfast-txn`.

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, counter::ItemsCount};
use holdfast_txn::{
    Answer, BranchId, BranchSpec, Command, Gid, Machine, Mode, Op, Options, Participant, Report,
    Timestamp, TriedBy,
};

/// Counts bytes, so that the memory of an open transaction can be read off `begin_two_branches`.
#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const NOW: Timestamp = Timestamp(1_000_000);

fn main() {
    divan::main();
}

/// 26 characters, as a ULID has.
fn gid(number: usize) -> Gid {
    Gid::parse(&format!("01JABCDEFGHJKM{number:012}")).expect("letters and digits")
}

fn spec(participant: &str) -> BranchSpec {
    let participant = Participant::parse(participant).expect("a name");
    BranchSpec { participant, payload: Bytes::from(vec![b'x'; 100]), after: None, pivot: false }
}

fn begin(number: usize) -> Command {
    Command::Begin {
        gid: gid(number),
        mode: Mode::Tcc,
        options: Options::of(Mode::Tcc),
        branches: vec![spec("debit@shard-1"), spec("credit@shard-2")],
        enlisted: false,
        content: None,
    }
}

fn answers(number: usize, op: Op) -> Command {
    let report = |branch| Report { branch: BranchId(branch), op, answer: Answer::Done };
    Command::Report { gid: gid(number), reports: vec![report(1), report(2)] }
}

/// Open ones that wait for their callers, and ten that are owed calls.
fn waiting(open: usize) -> Machine {
    let mut machine = Machine::new();
    for number in 0..open {
        let mut options = Options::of(Mode::Tcc);
        options.tried_by = TriedBy::Caller;
        let enlist = Command::Begin {
            gid: gid(number),
            mode: Mode::Tcc,
            options,
            branches: Vec::new(),
            enlisted: true,
            content: None,
        };
        machine.apply(NOW, enlist).expect("a new gid");
    }
    for number in 0..10 {
        machine.apply(NOW, begin(open + number)).expect("a new gid");
    }
    machine
}

#[divan::bench(args = [1_000, 10_000, 100_000, 1_000_000])]
fn due(bencher: Bencher<'_, '_>, open: usize) {
    let machine = waiting(open);
    bencher.bench_local(|| machine.due(NOW, 100));
}

#[divan::bench(args = [1_000, 1_000_000])]
fn next_deadline(bencher: Bencher<'_, '_>, open: usize) {
    let machine = waiting(open);
    bencher.bench_local(|| machine.next_deadline());
}

#[divan::bench]
fn owed(bencher: Bencher<'_, '_>) {
    let mut machine = waiting(1_000);
    machine.apply(NOW, begin(999_999)).expect("a new gid");
    let (gid, heard) =
        (gid(999_999), [Report { branch: BranchId(1), op: Op::Try, answer: Answer::Done }]);
    bencher.bench_local(|| machine.owed(&gid, &heard));
}

/// Begin, decision, end: a whole transaction beside others that are open.
#[divan::bench(args = [0, 100_000], sample_count = 20)]
fn whole_transactions(bencher: Bencher<'_, '_>, open: usize) {
    const COUNT: usize = 1_000;
    let mut machine = waiting(open);
    let mut first = open + 10;
    bencher
        .counter(ItemsCount::new(COUNT))
        .with_inputs(|| {
            let numbers = first..first + COUNT;
            first += COUNT;
            numbers.flat_map(|n| [begin(n), answers(n, Op::Try), answers(n, Op::Confirm)]).collect()
        })
        .bench_local_values(|commands: Vec<Command>| {
            for command in commands {
                machine.apply(NOW, command).expect("a legal command");
            }
        });
}

/// Its net growth, divided by the number of items, is the memory of one open transaction, payloads of 200 bytes included.
#[divan::bench(sample_count = 10)]
fn begin_two_branches(bencher: Bencher<'_, '_>) {
    const COUNT: usize = 10_000;
    bencher.counter(ItemsCount::new(COUNT)).bench_local(|| {
        let mut machine = Machine::new();
        for number in 0..COUNT {
            machine.apply(NOW, begin(number)).expect("a new gid");
        }
        machine
    });
}

/// What applying waits for while a snapshot is taken: the state is held fast and read beside the work.
#[divan::bench(args = [10_000, 1_000_000], sample_count = 10)]
fn snapshot(bencher: Bencher<'_, '_>, open: usize) {
    let machine = waiting(open);
    // What is dropped is not counted: nobody waits for it.
    bencher.bench_local(|| machine.snapshot());
}

/// Reads everything: for tests and an occasional status.
#[divan::bench(args = [10_000], sample_count = 10)]
fn state_hash(bencher: Bencher<'_, '_>, open: usize) {
    let machine = waiting(open);
    bencher.bench_local(|| machine.state_hash());
}

//! What an open transaction takes. Alone in its file: it reads the memory of the whole process.

#![cfg(target_os = "linux")]

use bytes::Bytes;
use holdfast_txn::{BranchSpec, Command, Gid, Machine, Mode, Options, Participant, Timestamp};

const COUNT: usize = 20_000;
const PAYLOAD_BYTES: usize = 100;
/// A node may take 1,024 in all (`holdfast bench scale`). The C library's allocator, which a test has, gives more away than a node's does.
const BYTES_MAX: usize = 960;

fn begin(number: usize) -> Command {
    let spec = |participant| BranchSpec {
        participant: Participant::parse(participant).expect("a name"),
        payload: Bytes::from(vec![b'x'; PAYLOAD_BYTES]),
        after: None,
        pivot: false,
    };
    Command::Begin {
        gid: Gid::parse(&format!("01JABCDEFGHJKM{number:012}")).expect("letters and digits"),
        mode: Mode::Tcc,
        options: Options::of(Mode::Tcc),
        branches: vec![spec("debit@shard-1"), spec("credit@shard-2")],
        enlisted: false,
        content: None,
    }
}

/// Of this process, bytes (proc(5), `statm`, the second field in pages).
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("there is /proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number of pages") * 4_096
}

#[test]
fn an_open_transaction_takes_no_more_than_it_may() {
    let mut machine = Machine::new();
    let now = Timestamp(1_000_000);
    // What the process and the tables of the machine take at first is not of this transaction.
    machine.apply(now, begin(COUNT)).expect("a new gid");
    let before = resident();
    for number in 0..COUNT {
        machine.apply(now, begin(number)).expect("a new gid");
    }
    let each = (resident() - before) / COUNT - 2 * PAYLOAD_BYTES;
    assert!(each <= BYTES_MAX, "{each} bytes beside its payloads");
    drop(machine);
}

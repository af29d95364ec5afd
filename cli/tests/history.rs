//! `holdfast tx list` as an operator uses it: each filter and each pair of them, of open and of finished transactions of a real node.

mod role;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use role::{PATIENCE, holdfast};
use serde_json::{Value, json};

const LOOK: Duration = Duration::from_millis(50);

/// `holdfast dev`, with its built-in participants; it ends with the test.
struct Dev {
    child: Child,
    grpc: String,
}

impl Dev {
    fn start() -> Self {
        let mut command = holdfast();
        command.args(["dev", "--any-port"]).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("the binary starts");
        // Whatever fails from here on, it ends with the test.
        let mut dev = Self { child, grpc: String::new() };
        let lines = BufReader::new(dev.child.stderr.take().expect("it is piped")).lines();
        let (said, heard) = mpsc::channel();
        // Read to the end, so that it never waits for a reader.
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(said.send(line))));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = heard.recv_timeout(left).expect("it says where its doors are");
            assert!(!line.contains("WARN"), "a start that alarms for nothing: {line}");
            if let Some(grpc) = line.trim_start().strip_prefix("gRPC") {
                dev.grpc = grpc.split_whitespace().next().expect("an address").to_owned();
                return dev;
            }
        }
    }

    fn run(&self, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let mut command = holdfast();
        command.args(arguments).args(["--coordinator", &self.grpc, "--output", "json"]);
        let output = command.output().expect("the binary runs");
        let said = String::from_utf8(output.stderr).expect("what we print is UTF-8");
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        (output.status.code(), json, said)
    }

    /// Sorted gids that `tx list` shows.
    fn listed(&self, arguments: &[&str]) -> Vec<String> {
        let (code, page, said) = self.run(&[&["tx", "list"], arguments].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        let listed = page["transactions"].as_array().expect("a list");
        let gid = |one: &Value| one["gid"].as_str().expect("a gid").to_owned();
        let mut gids: Vec<String> = listed.iter().map(gid).collect();
        gids.sort();
        gids
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        let _gone = kill(Pid::from_raw(id), Signal::SIGTERM);
        let begun = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && begun.elapsed() < PATIENCE
        {
            thread::sleep(LOOK);
        }
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One transaction, and what a filter may find it by.
#[derive(Debug)]
struct Row {
    gid: &'static str,
    mode: &'static str,
    participant: &'static str,
    run: &'static str,
    amount: &'static str,
    status: String,
    at: String,
}

/// Submits and reads back; `instant`: the one by which a list goes.
fn submitted(dev: &Dev, rows: [[&'static str; 5]; 4], wait: &str, instant: &str) -> Vec<Row> {
    let dir = tempfile::tempdir().expect("a folder");
    let row = |[gid, mode, participant, run, amount]: [&'static str; 5]| {
        let file = dir.path().join("one.json");
        let text = json!({
            "gid": gid, "mode": mode,
            "options": {"timeout_ms": 86_400_000, "tags": {"run": run, "amount": amount}},
            "branches": [{"participant": participant, "payload": 1}],
        });
        std::fs::write(&file, text.to_string()).expect("a transaction");
        let file = file.to_str().expect("UTF-8");
        let (code, answer, said) = dev.run(&["tx", "submit", "--file", file, "--wait", wait]);
        assert!(matches!(code, Some(0 | 3)), "{said}");
        let text =
            |field: &str| answer["transaction"][field].as_str().unwrap_or_default().to_owned();
        // Two processes apart, so no two are of the same millisecond.
        Row { gid, mode, participant, run, amount, status: text("status"), at: text(instant) }
    };
    let rows: Vec<Row> = rows.into_iter().map(row).collect();
    assert!(rows.is_sorted_by(|one, other| one.at < other.at), "{rows:?}");
    rows
}

type Filter<'a> = (Vec<&'a str>, Box<dyn Fn(&Row) -> bool + 'a>);

/// Each option, with a value that fits some of `rows` and not others.
fn filters(rows: &[Row]) -> Vec<Filter<'_>> {
    vec![
        (vec!["--status", &rows[1].status], Box::new(|row| row.status == rows[1].status)),
        (vec!["--mode", "saga"], Box::new(|row| row.mode == "saga")),
        (
            vec!["--participant", rows[0].participant],
            Box::new(|row| row.participant == rows[0].participant),
        ),
        (vec!["--tag", "run=red"], Box::new(|row| row.run == "red")),
        (
            vec!["--amount-min", "15 EUR", "--amount-max", "20.00 EUR"],
            Box::new(|row| row.amount == "20 EUR"),
        ),
        (vec!["--since", &rows[1].at], Box::new(|row| row.at >= rows[1].at)),
        (vec!["--until", &rows[2].at], Box::new(|row| row.at < rows[2].at)),
    ]
}

fn each_and_each_pair(dev: &Dev, rows: &[Row], which: &str) {
    let filters = filters(rows);
    for (one, (option, fits)) in filters.iter().enumerate() {
        let fitting = rows.iter().filter(|row| fits(row)).count();
        assert!(fitting > 0 && fitting < rows.len(), "{option:?} tells nothing apart: {rows:?}");
        for (other, also) in &filters[one..] {
            let mut arguments = vec![which];
            arguments.extend(option);
            if other != option {
                arguments.extend(other);
            }
            let wanted = rows.iter().filter(|row| fits(row) && also(row));
            let wanted: Vec<&str> = wanted.map(|row| row.gid).collect();
            assert_eq!(dev.listed(&arguments), wanted, "tx list {arguments:?} of {rows:?}");
        }
    }
}

#[test]
fn each_filter_of_tx_list_and_each_pair_of_them_finds_what_fits_and_nothing_else() {
    let dev = Dev::start();
    let finished = submitted(
        &dev,
        [
            ["h-a", "saga", "accept", "red", "20 EUR"],
            ["h-b", "tcc", "refuse", "red", "20 USD"],
            ["h-c", "saga", "refuse", "blue", "20 EUR"],
            ["h-d", "tcc", "accept", "blue", "1000.00 EUR"],
        ],
        "end",
        "finished_at",
    );
    let begun = Instant::now();
    while dev.listed(&["--finished"]).len() < finished.len() {
        assert!(begun.elapsed() < PATIENCE, "the history lags for ever");
        thread::sleep(LOOK);
    }
    each_and_each_pair(&dev, &finished, "--finished");
    for row in &finished {
        let (code, shown, said) = dev.run(&["tx", "show", row.gid]);
        assert_eq!((code, &shown["transaction"]["gid"]), (Some(0), &json!(row.gid)), "{said}");
    }
    let (code, _, said) = dev.run(&["tx", "show", "h-z"]);
    assert!(code == Some(3) && said.contains("HF2001") && said.contains("never begun"), "{said}");

    // Nobody serves these, so they stay open.
    let open = submitted(
        &dev,
        [
            ["o-a", "saga", "nobody", "red", "20 EUR"],
            ["o-b", "tcc", "nothing", "red", "20 USD"],
            ["o-c", "saga", "nothing", "blue", "20 EUR"],
            ["o-d", "tcc", "nobody", "blue", "1000.00 EUR"],
        ],
        "none",
        "begun_at",
    );
    // The finished ones are recent ones still: told apart by their times.
    let since = open[0].at.as_str();
    let narrowed = |more: &[&str]| dev.listed(&[&["--open", "--since", since], more].concat());
    assert_eq!(narrowed(&[]), ["o-a", "o-b", "o-c", "o-d"]);
    assert_eq!(narrowed(&["--tag", "run=red"]), ["o-a", "o-b"]);
    assert_eq!(narrowed(&["--mode", "saga", "--participant", "nothing"]), ["o-c"]);
    assert_eq!(narrowed(&["--until", &open[1].at]), ["o-a"]);
    assert_eq!(narrowed(&["--amount-min", "20 EUR", "--amount-max", "20 EUR"]), ["o-a", "o-c"]);
    // An open status says by itself that the history is not meant.
    assert_eq!(dev.listed(&["--status", "trying", "--tag", "run=blue"]), ["o-d"]);
    // And without a word on it, a filter asks the history.
    assert_eq!(dev.listed(&["--tag", "run=red"]), ["h-a", "h-b"]);
    let (code, ..) = dev.run(&["tx", "list", "--open", "--finished"]);
    assert_eq!(code, Some(2), "one or the other");
}

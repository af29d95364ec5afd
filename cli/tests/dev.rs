//! `holdfast dev` as a service team meets it: it says where it is, serves, and leaves nothing when it ends.

mod role;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use role::{holdfast, utf8};
use serde_json::Value;

/// It dies with the test.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_node_for_development_says_where_it_is_and_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("a folder");
    let mut command = holdfast();
    command.args(["dev", "--any-port", "--output", "json"]).env("TMPDIR", scratch.path());
    let log = fs::File::create(scratch.path().join("log")).expect("a log");
    let child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("the binary starts");
    let mut dev = Dev(child);
    let mut line = String::new();
    let mut stdout = BufReader::new(dev.0.stdout.take().expect("it is piped"));
    stdout.read_line(&mut line).expect("UTF-8");
    let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
        panic!("{error}: {line:?}\n{:?}", fs::read_to_string(scratch.path().join("log")))
    });
    let grpc = said["grpc"].as_str().expect("an address");

    let submit = |participant: &str| {
        let file = scratch.path().join(format!("{participant}.json"));
        let text = format!(
            "{{\"mode\": \"tcc\", \"branches\": [{{\"participant\": {participant:?}, \"payload\": {{}}}}]}}"
        );
        fs::write(&file, text).expect("a transaction");
        let file = file.to_str().expect("UTF-8").to_owned();
        let arguments = ["tx", "submit", "--coordinator", grpc, "--file", &file];
        holdfast().args(arguments).output().expect("the binary runs")
    };
    let participants = said["participants"].as_array().expect("a list").iter();
    for (participant, code) in participants.zip([0, 3, 0]) {
        let output = submit(participant.as_str().expect("a name"));
        assert_eq!(output.status.code(), Some(code), "{participant}: {}", utf8(&output.stderr));
    }

    let id = i32::try_from(dev.0.id()).expect("a process id");
    kill(Pid::from_raw(id), Signal::SIGINT).expect("our own child can be signalled");
    let ended = dev.0.wait().expect("our own child");
    let log = fs::read_to_string(scratch.path().join("log")).expect("UTF-8");
    assert_eq!(ended.code(), Some(0), "{log}");
    let (start, _) = log.split_once("Ready after").expect("it says that it can be used");
    assert!(!start.contains("WARN"), "a start that alarms for nothing: {log}");
    let left: Vec<_> = fs::read_dir(scratch.path())
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
        .filter(|name| name.starts_with("holdfast-"))
        .collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

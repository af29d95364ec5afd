//! Roles as an operator meets them: they start, say that they are ready, serve, and stop in good order.

mod role;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use nix::sys::signal::Signal;

use role::{
    LOOK, PATIENCE, Role, coordinator_toml, free, get, holdfast, run, utf8, wait_until_ready,
};

#[test]
fn a_coordinator_starts_says_it_is_ready_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().expect("a folder");
    let doors: [SocketAddr; 3] = free();
    let file = coordinator_toml(dir.path(), doors);
    let mut role = Role::start(dir.path(), "coordinator", &["coordinator", "--config", &file]);
    wait_until_ready(&mut role, doors[0]);
    assert_eq!(get(doors[0], "/livez").map(|(status, _)| status), Some(200));
    let (_, metrics) = get(doors[0], "/metrics").expect("metrics");
    assert!(metrics.contains("holdfast_build_info"), "{metrics}");
    assert!(metrics.contains("holdfast_log_fsync_seconds_bucket"), "{metrics}");

    let grpc = doors[1].to_string();
    let status = run(&["cluster", "status", "--coordinator", &grpc]);
    assert_eq!(status.status.code(), Some(0), "{}", utf8(&status.stderr));
    assert!(utf8(&status.stdout).contains("leader"), "{}", utf8(&status.stdout));

    // A second one on the same addresses is told who has them, and starts nothing.
    let other = dir.path().join("other");
    let second =
        run(&["coordinator", "--config", &file, "--data-dir", other.to_str().expect("UTF-8")]);
    let said = utf8(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("HF1015").count(), 4, "three doors and the hint: {said}");
    assert!(said.contains(&format!("held by process {} (holdfast)", role.child.id())), "{said}");

    role.signal(Signal::SIGTERM);
    let ended = role.ended();
    let log = role.log();
    assert_eq!(ended.code(), Some(0), "{log}");
    for line in
        ["coordinator starts", "coordinator ready", "SIGTERM: draining", "coordinator stopped"]
    {
        assert_eq!(log.matches(line).count(), 1, "{line}:\n{log}");
    }
}

#[test]
fn a_coordinator_stops_on_ctrl_c_before_it_was_ready() {
    let dir = tempfile::tempdir().expect("a folder");
    let doors: [SocketAddr; 3] = free();
    let file = coordinator_toml(dir.path(), doors);
    // The other two members never come, so there is no leader.
    let [h2, g2, r2, h3, g3, r3]: [SocketAddr; 6] = free();
    let members = format!(
        "cluster.member=[{{ id = 1, http = \"{}\", grpc = \"{}\", raft = \"{}\" }}, \
         {{ id = 2, http = \"{h2}\", grpc = \"{g2}\", raft = \"{r2}\" }}, \
         {{ id = 3, http = \"{h3}\", grpc = \"{g3}\", raft = \"{r3}\" }}]",
        doors[0], doors[1], doors[2]
    );
    let arguments = ["coordinator", "--config", &file, "--set", &members];
    let mut role = Role::start(dir.path(), "coordinator", &arguments);
    let begun = Instant::now();
    while get(doors[0], "/livez").is_none() {
        assert!(begun.elapsed() < PATIENCE, "no door:\n{}", role.log());
        thread::sleep(LOOK);
    }
    let (status, why) = get(doors[0], "/readyz").expect("an answer");
    assert_eq!(status, 503, "{why}");
    role.signal(Signal::SIGINT);
    assert_eq!(role.ended().code(), Some(0), "{}", role.log());
    assert!(!role.log().contains("coordinator ready"), "{}", role.log());
}

#[test]
fn a_data_directory_that_is_a_file_is_told_before_anything_starts() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = coordinator_toml(dir.path(), free());
    fs::write(dir.path().join("data"), "in the way").expect("a file");
    let output = run(&["coordinator", "--config", &file]);
    let said = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("HF1014 this machine: node.data_dir"), "{said}");
    assert!(said.contains("A part of the path is a file"), "{said}");
}

#[test]
fn no_role_starts_without_a_word_on_security() {
    let flags = [
        "--service",
        "loyalty",
        "--app",
        "http://127.0.0.1:8080",
        "--coordinator",
        "127.0.0.1:7401",
    ];
    let output = holdfast().arg("agent").args(flags).output().expect("the binary runs");
    let said = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("HF1016") && said.contains("--dev-plaintext"), "{said}");
    assert!(said.contains("1 mistake."), "{said}");
}

#[test]
fn log_directives_that_make_no_sense_are_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = coordinator_toml(dir.path(), free());
    let output = holdfast()
        .args(["coordinator", "--config", &file])
        .env("HOLDFAST_LOG", "holdfast=loud")
        .output()
        .expect("the binary runs");
    let said = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("HF1022"), "{said}");
}

#[test]
fn an_agent_runs_without_a_file_and_without_a_coordinator() {
    let dir = tempfile::tempdir().expect("a folder");
    let [http, absent]: [SocketAddr; 2] = free();
    let (http_text, absent) = (http.to_string(), absent.to_string());
    let mut arguments = vec!["agent", "--service", "loyalty", "--app", "http://127.0.0.1:8080"];
    arguments.extend(["--coordinator", &absent, "--http", &http_text, "--dev-plaintext"]);
    arguments.extend(["--set", "telemetry.format=json"]);
    let mut role = Role::start(dir.path(), "agent", &arguments);
    let begun = Instant::now();
    let (status, why) = loop {
        if let Some(answer) = get(http, "/readyz") {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "no door:\n{}", role.log());
        thread::sleep(LOOK);
    };
    assert_eq!(status, 503);
    assert!(why.contains("no coordinator has welcomed this agent yet"), "{why}");
    role.signal(Signal::SIGTERM);
    assert_eq!(role.ended().code(), Some(0), "{}", role.log());
    for line in role.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn a_bank_waits_for_its_database_and_stops_in_good_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let [http, absent, database]: [SocketAddr; 3] = free();
    let file = dir.path().join("bank.toml");
    let text = format!(
        "[bank]\nshard = \"shard-1\"\ndatabase = \"given by environment\"\n\
         [coordinators]\naddresses = [\"{absent}\"]\n[bind]\nhttp = \"{http}\"\n"
    );
    fs::write(&file, &text).expect("a configuration");
    let log = dir.path().join("bank.log");
    let child = holdfast()
        .args(["bank", "--dev-plaintext", "--config", file.to_str().expect("UTF-8")])
        .env(
            "HOLDFAST_BANK_DATABASE",
            format!(
                "host=127.0.0.1 port={} user=bank password=sesame dbname=bank",
                database.port()
            ),
        )
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).expect("a log"))
        .spawn();
    let mut role = Role { child: child.expect("the binary starts"), log };
    let begun = Instant::now();
    while !role.log().contains("PostgreSQL is not ready") || get(http, "/livez").is_none() {
        assert!(begun.elapsed() < PATIENCE, "no word on the database:\n{}", role.log());
        thread::sleep(LOOK);
    }
    assert_eq!(get(http, "/readyz").map(|(status, _)| status), Some(503));
    fs::write(&file, format!("{text}[limits]\nbatch_max = 64\nconnections = 3\ncredit = 128\n"))
        .expect("a change");
    role.signal(Signal::SIGHUP);
    role.says(1, "taken over key=\"limits.batch_max\"");
    role.says(1, "taken over key=\"limits.connections\"");
    role.says(1, "counts after a restart key=\"limits.credit\"");
    role.signal(Signal::SIGTERM);
    assert_eq!(role.ended().code(), Some(0), "{}", role.log());
    let log = role.log();
    assert!(log.contains("deposit@shard-1") && log.contains("password=***"), "{log}");
    assert!(!log.contains("sesame"), "{log}");
}

/// A service that answers what its payload asks for; what it freezes it confirms once `thawed`.
fn service(thawed: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let thawed = Arc::clone(thawed);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            let thawed = Arc::clone(&thawed);
            thread::spawn(move || serve(&stream, &thawed));
        }
    });
    address
}

fn serve(stream: &TcpStream, thawed: &AtomicBool) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut request = String::new();
        reader.read_line(&mut request).ok().filter(|read| *read > 0)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let refuse = request.contains("/try ") && utf8(&body).contains("refuse");
        let freeze = request.contains("/confirm ") && utf8(&body).contains("freeze");
        let (status, words) = match (refuse, freeze && !thawed.load(Ordering::SeqCst)) {
            (true, _) => ("409 Conflict", r#"{"code":"no_points","message":"not enough points"}"#),
            (_, true) => ("409 Conflict", r#"{"code":"frozen","message":"frozen by a court"}"#),
            (false, false) => ("200 OK", "{}"),
        };
        let mut stream = stream;
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{words}", words.len());
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

#[test]
fn each_fate_has_its_exit_code() {
    let thawed = Arc::new(AtomicBool::new(false));
    let dir = tempfile::tempdir().expect("a folder");
    let [http, grpc, raft, agent_http]: [SocketAddr; 4] = free();
    let file = coordinator_toml(dir.path(), [http, grpc, raft]);
    let mut coordinator =
        Role::start(dir.path(), "coordinator", &["coordinator", "--config", &file]);
    let (app, at) = (format!("http://{}", service(&thawed)), grpc.to_string());
    let agent_at = agent_http.to_string();
    let mut arguments = vec!["agent", "--service", "loyalty", "--app", &app, "--coordinator", &at];
    arguments.extend(["--http", &agent_at, "--dev-plaintext"]);
    let mut agent = Role::start(dir.path(), "agent", &arguments);
    wait_until_ready(&mut coordinator, http);
    wait_until_ready(&mut agent, agent_http);

    let submit = |gid: &str, participant: &str, payload: &str, patience_ms: &str| {
        let file = dir.path().join(format!("{gid}.json"));
        let text = format!(
            "{{\"gid\":\"{gid}\",\"mode\":\"tcc\",\"options\":{{\"tags\":{{\"run\":\"test\"}}}},\
             \"branches\":[{{\"participant\":\"{participant}\",\"payload\":\"{payload}\"}}]}}"
        );
        fs::write(&file, text).expect("a transaction");
        let file = file.to_str().expect("UTF-8");
        run(&["tx", "submit", "--file", file, "--coordinator", &at, "--patience-ms", patience_ms])
    };
    let committed = submit("g-good", "loyalty", "take", "30000");
    assert_eq!(committed.status.code(), Some(0), "{}", utf8(&committed.stderr));
    assert!(utf8(&committed.stdout).contains("outcome   committed"), "{}", utf8(&committed.stdout));
    let again = submit("g-good", "loyalty", "take", "30000");
    assert_eq!(again.status.code(), Some(0));
    assert!(utf8(&again.stdout).contains("nothing was done twice"), "{}", utf8(&again.stdout));

    let refused = submit("g-bad", "loyalty", "refuse", "30000");
    let said = utf8(&refused.stdout);
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(
        said.contains("rolled back") && said.contains("no_points: not enough points"),
        "{said}"
    );

    let other = submit("g-good", "loyalty", "something else", "30000");
    assert_eq!(other.status.code(), Some(3));
    assert!(utf8(&other.stderr).contains("HF2002"), "{}", utf8(&other.stderr));

    // Nobody serves it, so its fate is open: unknown, and never told as failure.
    let open = submit("g-open", "nobody", "wait", "300");
    assert_eq!(open.status.code(), Some(4), "{}", utf8(&open.stdout));
    assert!(utf8(&open.stdout).contains("holdfast tx wait g-open"), "{}", utf8(&open.stdout));

    let list = run(&["tx", "list", "--status", "trying", "--coordinator", &at, "--output", "json"]);
    let page: serde_json::Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(page["transactions"][0]["gid"], "g-open", "{page:#}");
    assert_eq!(page["transactions"][0]["tags"]["run"], "test");

    let arguments = ["tx", "rollback", "g-open", "--reason", "nobody came", "--coordinator", &at];
    let back = run(&arguments);
    assert_eq!(back.status.code(), Some(0), "{}{}", utf8(&back.stdout), utf8(&back.stderr));
    let waited = run(&["tx", "wait", "g-open", "--coordinator", &at]);
    assert_eq!(waited.status.code(), Some(3), "{}", utf8(&waited.stdout));
    let absent = run(&["tx", "get", "g-never", "--coordinator", &at]);
    assert_eq!(absent.status.code(), Some(3));
    assert!(utf8(&absent.stderr).contains("HF2001"), "{}", utf8(&absent.stderr));

    // Decided, and refused at its confirm: people must look, and are told which command lets it go on.
    let stuck = submit("g-stuck", "loyalty", "freeze", "30000");
    assert_eq!(stuck.status.code(), Some(0), "{}", utf8(&stuck.stdout));
    let ended = run(&["tx", "wait", "g-stuck", "--until", "end", "--coordinator", &at]);
    assert_eq!(ended.status.code(), Some(0), "it is committed: {}", utf8(&ended.stdout));
    let said = utf8(&run(&["tx", "get", "g-stuck", "--coordinator", &at]).stdout);
    assert!(said.contains("needs attention") && said.contains("frozen by a court"), "{said}");
    let remedy = "remedy    repair what the reason names, then: holdfast tx retry g-stuck --reason";
    assert!(said.contains(remedy), "{said}");
    let list = ["tx", "list", "--status", "needs_attention", "--coordinator", &at];
    let said = utf8(&run(&list).stdout);
    assert!(said.contains("g-stuck") && said.contains("holdfast tx retry GID"), "{said}");
    let retry = |gid: &str, reason: &str| {
        run(&["tx", "retry", gid, "--reason", reason, "--coordinator", &at])
    };
    assert_eq!(retry("g-stuck", " ").status.code(), Some(2));
    let again = retry("g-stuck", "hoping");
    assert_eq!(again.status.code(), Some(3), "{}", utf8(&again.stdout));
    assert!(utf8(&again.stdout).contains(remedy), "{}", utf8(&again.stdout));
    let many = |more: &[&str]| {
        let fixed = ["tx", "retry", "--reason", "all thawed", "--output", "json"];
        run(&[&fixed[..], &["--coordinator", &at], more].concat())
    };
    for wrong in [&["--status", "trying"][..], &["--participant", "loyalty"], &[]] {
        assert_eq!(many(wrong).status.code(), Some(2), "{wrong:?}");
    }
    for (participant, count) in [("loyalty", 1), ("nobody", 0)] {
        let waiting = ["--status", "needs-attention", "--participant", participant, "--dry-run"];
        let said = many(&waiting);
        assert_eq!(said.status.code(), Some(0), "{}", utf8(&said.stderr));
        let told: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
        assert_eq!((&told["went_on"], &told["failed"]), (&count.into(), &0.into()), "{told:#}");
    }
    thawed.store(true, Ordering::SeqCst);
    let gone_on = retry("g-stuck", "thawed, ticket 7311");
    let said = utf8(&gone_on.stdout);
    assert_eq!(gone_on.status.code(), Some(0), "{said}{}", utf8(&gone_on.stderr));
    assert!(said.contains("status    committed") && !said.contains("remedy"), "{said}");
    assert!(said.contains("retried: thawed, ticket 7311"), "{said}");
    let late = retry("g-stuck", "thawed");
    assert_eq!(late.status.code(), Some(3));
    assert!(utf8(&late.stderr).contains("HF2004"), "{}", utf8(&late.stderr));

    agent.signal(Signal::SIGTERM);
    assert_eq!(agent.ended().code(), Some(0), "{}", agent.log());
    assert_eq!(agent.log().matches("agent ready").count(), 1, "{}", agent.log());
}

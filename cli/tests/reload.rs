//! Configuration that is read again while a role runs: on SIGHUP, for an operator at a coordinator, and for people on the role's machine.

mod role;

use std::{
    fs,
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::{Command, Output},
    time::{Duration, Instant},
};

use holdfast_shard_router::Verifier;
use nix::sys::signal::Signal;

use role::{Role, coordinator_toml, free, get, holdfast, run, utf8, wait_until_ready};

/// A node of its own that is ready, and its configuration as it began.
struct Coordinator {
    // Before its folder, which must not go while it runs.
    role: Role,
    doors: [SocketAddr; 3],
    file: String,
    sound: String,
    dir: tempfile::TempDir,
}

impl Coordinator {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let doors = free();
        let file = coordinator_toml(dir.path(), doors);
        let sound = fs::read_to_string(&file).expect("it was written");
        let mut role = Role::start(dir.path(), "coordinator", &["coordinator", "--config", &file]);
        wait_until_ready(&mut role, doors[0]);
        Self { role, doors, file, sound, dir }
    }
}

#[test]
fn a_changed_file_counts_on_sighup_as_far_as_it_can_and_the_rest_is_named() {
    let Coordinator { mut role, doors, file, sound, dir: _dir } = Coordinator::start();
    role.signal(Signal::SIGHUP);
    role.says(1, "says what this process runs with");

    let changed = format!("{sound}[limits]\nqueue_max = 2048\n[telemetry]\nlevel = \"warn\"\n");
    fs::write(&file, &changed).expect("a change");
    role.signal(Signal::SIGHUP);
    role.says(1, "taken over");
    role.says(1, "counts after a restart");
    let log = role.log();
    let restart = log.lines().find(|line| line.contains("counts after a restart")).expect("said");
    for word in ["limits.queue_max", "65536", "2048"] {
        assert!(restart.contains(word), "{restart}");
    }
    // The level counts: a line of level info is not said any more. What counts after a restart is named again.
    role.signal(Signal::SIGHUP);
    role.says(2, "counts after a restart");
    assert_eq!(role.log().matches("taken over").count(), 1, "{}", role.log());

    fs::write(&file, format!("{sound}[telemetry]\nlevel = \"loud\"\n")).expect("a mistake");
    role.signal(Signal::SIGHUP);
    role.says(1, "nothing changes");
    assert!(role.log().contains("HF1017"), "{}", role.log());
    assert_eq!(get(doors[0], "/readyz").map(|(status, _)| status), Some(200));
    role.signal(Signal::SIGTERM);
    assert_eq!(role.ended().code(), Some(0), "{}", role.log());
}

#[test]
fn an_operator_has_a_node_read_its_file_again_and_hears_what_became_of_each_difference() {
    let Coordinator { role: _role, doors, file, sound, dir } = Coordinator::start();
    let grpc = doors[1].to_string();
    let reload = |more: &[&str]| {
        let arguments = ["config", "reload", "--coordinator", &grpc, "--reason", "a test"];
        run(&[&arguments, more].concat())
    };
    let verdicts = |output: &Output| {
        let replies: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let differences = replies[0]["differences"].as_array().cloned().unwrap_or_default();
        let pair = |one: &serde_json::Value| {
            let text = |field: &str| one[field].as_str().unwrap_or_default().to_owned();
            (text("key"), text("from"), text("to"), text("verdict"))
        };
        differences.iter().map(pair).collect::<Vec<_>>()
    };
    let same = reload(&["--output", "json"]);
    assert_eq!((same.status.code(), verdicts(&same)), (Some(0), Vec::new()), "{same:?}");

    let groups = sound.replace("[[cluster.member]]", "groups = 2\n[[cluster.member]]");
    let changed = format!(
        "{groups}[timeouts]\nglobal_timeout_ms = 2000\ncall_timeout_ms = 700\n\
         [limits]\nqueue_max = 2048\nbatch_max = 64\n[history]\nrecords_max = 1000\n"
    );
    fs::write(&file, &changed).expect("a change");
    let told = |key: &str, from: &str, to: &str, verdict: &str| {
        (key.to_owned(), from.to_owned(), to.to_owned(), verdict.to_owned())
    };
    let left = [
        told("cluster.groups", "1", "2", "refused"),
        told("limits.queue_max", "65536", "2048", "after_restart"),
    ];
    let all = [
        left[0].clone(),
        told("history.records_max", "20000000", "1000", "taken_over"),
        told("limits.batch_max", "1024", "64", "taken_over"),
        left[1].clone(),
        told("timeouts.call_timeout_ms", "3000", "700", "taken_over"),
        told("timeouts.global_timeout_ms", "30000", "2000", "taken_over"),
    ];
    // Twice dry: nothing happened by the first.
    for _ in 0..2 {
        let dry = reload(&["--dry-run", "--output", "json"]);
        assert_eq!((dry.status.code(), verdicts(&dry).as_slice()), (Some(3), &all[..]), "{dry:?}");
    }
    let done = reload(&[]);
    let table = utf8(&done.stdout);
    assert!(table.contains("it was fixed when the cluster was founded"), "{table}");
    assert!(table.contains("counts after a restart"), "{table}");
    let again = reload(&["--output", "json"]);
    assert_eq!(
        verdicts(&again).as_slice(),
        &left[..],
        "what was taken over is no difference any more"
    );

    // A transaction that does not say has the new time.
    let transaction = dir.path().join("transaction.json");
    fs::write(
        &transaction,
        r#"{"gid": "r-1", "mode": "tcc", "branches": [{"participant": "nobody", "payload": {}}]}"#,
    )
    .expect("a transaction");
    let begun = Instant::now();
    let transaction = transaction.to_str().expect("UTF-8");
    let ended =
        run(&["tx", "submit", "--coordinator", &grpc, "--file", transaction, "--wait", "decision"]);
    assert!(utf8(&ended.stdout).contains("rolled back"), "{ended:?}");
    assert!(
        begun.elapsed() < Duration::from_secs(29),
        "the old time is 30 s: {:?}",
        begun.elapsed()
    );

    fs::write(&file, format!("{sound}[limits]\nqueue_max = 0\n")).expect("a mistake");
    let mistaken = reload(&[]);
    let said = utf8(&mistaken.stderr);
    assert_eq!(mistaken.status.code(), Some(3), "{said}");
    assert!(said.contains("HF2411") && said.contains("limits.queue_max"), "{said}");
}

/// The SQLSTATE with which a router turns somebody away.
fn turned_away(router: SocketAddr, user: &str, password: &str) -> String {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(router.port()).user(user).password(password).dbname("bank");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let connected =
        runtime.expect("a runtime").block_on(config.connect(tokio_postgres::NoTls)).map(drop);
    let error = connected.expect_err("no server stands behind it");
    error.code().unwrap_or_else(|| panic!("{error:?}")).code().to_owned()
}

/// Where this test may become another user, and that one may run the program: whoever is neither the role's user nor root is turned away.
fn others_are_refused(asked: &[&str]) {
    const NOBODY: u32 = 65_534;
    let program = env!("CARGO_BIN_EXE_holdfast");
    let may_run = Command::new("test").args(["-x", program]).uid(NOBODY).status();
    if !may_run.is_ok_and(|status| status.success()) {
        return;
    }
    let output = holdfast().args(asked).current_dir("/").uid(NOBODY).output().expect("it runs");
    let said = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("HF2602") && said.contains("user 65534"), "{said}");
}

#[test]
fn nobody_is_asked_where_no_process_of_the_role_runs() {
    let output = run(&["config", "reload", "--role", "agent", "--pid", "1", "--reason", "a test"]);
    let said = utf8(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("HF1025 process 1 is no agent that runs here"), "{said}");
}

#[test]
fn a_user_taken_out_of_a_routers_file_is_shut_out_and_a_changed_secret_is_told() {
    const NO_SERVER: &str = "08001";
    const NO_LOGIN: &str = "28P01";
    let dir = tempfile::tempdir().expect("a folder");
    let [postgres, http, absent]: [SocketAddr; 3] = free();
    let file = dir.path().join("router.toml");
    let write = |users: &[(&str, &str)], secret: &str, more: &str| {
        let users: String = users
            .iter()
            .map(|(name, password)| {
                let verifier = Verifier::of_password(password, b"0123456789abcdef", 4096).to_text();
                format!("[[auth.user]]\nname = {name:?}\nverifier = {verifier:?}\n")
            })
            .collect();
        let text = format!(
            "[bind]\npostgres = \"{postgres}\"\nhttp = \"{http}\"\n[security]\nmode = \"dev-plaintext\"\n\
             [[sources.source]]\nname = \"main\"\ndatabase = \"host=127.0.0.1 port={} user=app \
             password={secret} dbname=bank\"\n{users}{more}",
            absent.port()
        );
        fs::write(&file, text).expect("a configuration");
    };
    write(&[("anna", "one"), ("ben", "two")], "sesame", "");
    let path = file.to_str().expect("UTF-8");
    let mut role = Role::start(dir.path(), "router", &["router", "--config", path]);
    role.says(1, "router starts");
    assert_eq!(turned_away(postgres, "anna", "one"), NO_SERVER, "she is let in as far as that");
    assert_eq!(turned_away(postgres, "ben", "two"), NO_SERVER);

    write(&[("ben", "three")], "mellon", "[limits]\npool_size = 3\norphan_age_ms = 4000\n");
    let pid = role.child.id().to_string();
    let asked =
        ["config", "reload", "--role", "router", "--pid", &pid, "--reason", "Anna has left"];
    let dry = run(&[&asked[..], &["--dry-run", "--output", "json"]].concat());
    let told: serde_json::Value =
        serde_json::from_slice(&dry.stdout).unwrap_or_else(|error| panic!("{error}: {dry:?}"));
    assert_eq!((&told[0]["role"], &told[0]["dry_run"]), (&"router".into(), &true.into()));
    let keys = |taken_over: bool| {
        let list = told[0]["differences"].as_array().expect("differences").iter();
        let kept = list.filter(|one| (one["verdict"] == "taken_over") == taken_over);
        kept.map(|one| one["key"].as_str().expect("a key")).collect::<Vec<_>>()
    };
    assert_eq!(
        keys(true),
        [
            "auth.user[anna].name",
            "auth.user[anna].verifier",
            "auth.user[ben].verifier",
            "limits.pool_size"
        ]
    );
    assert_eq!(keys(false), ["limits.orphan_age_ms", "sources.source[main].database"]);
    assert_eq!(turned_away(postgres, "anna", "one"), NO_SERVER, "nothing was done");
    others_are_refused(&asked);
    let done = run(&asked);
    let table = utf8(&done.stdout);
    assert_eq!(done.status.code(), Some(0), "{table}");
    assert!(table.contains(&format!("router {pid}")) && table.contains("taken over"), "{table}");
    assert!(!table.contains("sesame") && !table.contains("mellon"), "{table}");
    role.says(4, "taken over");
    role.says(2, "counts after a restart");
    role.says(1, "Anna has left");
    assert_eq!(turned_away(postgres, "anna", "one"), NO_LOGIN, "she is a user no more");
    assert_eq!(turned_away(postgres, "ben", "two"), NO_LOGIN, "the old password is none");
    assert_eq!(turned_away(postgres, "ben", "three"), NO_SERVER);
    let log = role.log();
    let told = |key: &str| {
        let line = log.lines().find(|line| line.contains(&format!("key=\"{key}\"")));
        line.unwrap_or_else(|| panic!("{key} is not told:\n{log}"))
    };
    assert!(told("limits.pool_size").contains("taken over"), "{log}");
    for secret in ["auth.user[ben].verifier", "sources.source[main].database"] {
        assert!(told(secret).contains("changed, not shown"), "{log}");
    }
    assert!(told("sources.source[main].database").contains("counts after a restart"), "{log}");
    assert!(!log.contains("sesame") && !log.contains("mellon"), "{log}");

    // What was taken over is no difference any more; what waits for a restart is named again.
    role.signal(Signal::SIGHUP);
    role.says(4, "counts after a restart");
    assert_eq!(role.log().matches("taken over").count(), 4, "{}", role.log());
    write(&[], "mellon", "");
    role.signal(Signal::SIGHUP);
    role.says(1, "nothing changes");
    let mistaken = run(&asked);
    let said = utf8(&mistaken.stderr);
    assert_eq!(mistaken.status.code(), Some(3), "{said}");
    assert!(said.contains("HF2411") && said.contains("auth.user"), "{said}");
    assert_eq!(turned_away(postgres, "ben", "three"), NO_SERVER);
}

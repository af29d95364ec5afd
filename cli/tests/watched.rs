//! `holdfast top` as an operator uses it at a cluster that wants certificates.

mod role;

use std::{fs, net::SocketAddr, thread, time::Instant};

use role::{LOOK, PATIENCE, Role, coordinator_toml, free, run, utf8};

#[test]
fn a_node_that_wants_certificates_is_watched_with_one_its_metrics_included() {
    let dir = tempfile::tempdir().expect("a folder");
    let certs = dir.path().join("certs");
    let at = |file: &str| certs.join(file).to_str().expect("UTF-8").to_owned();
    let folder = at("");
    let made = run(&[
        "certs",
        "dev",
        "--dir",
        &folder,
        "--cluster",
        "test",
        "--nodes",
        "1",
        "--user",
        "sam:sre",
    ]);
    assert!(made.status.success(), "{}", utf8(&made.stderr));
    let doors: [SocketAddr; 3] = free();
    let file = coordinator_toml(dir.path(), doors);
    let plain = fs::read_to_string(&file).expect("it was written");
    let tls = format!(
        "\"mutual-tls\"\n[tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
        at("ca.pem"),
        at("node-1.pem"),
        at("node-1.key")
    );
    fs::write(&file, plain.replace("\"dev-plaintext\"\n", &tls)).expect("a change");
    let mut role = Role::start(dir.path(), "coordinator", &["coordinator", "--config", &file]);

    let (grpc, begun) = (doors[1].to_string(), Instant::now());
    let (ca, cert, key) = (at("ca.pem"), at("user-sam.pem"), at("user-sam.key"));
    let told = loop {
        let told = run(&[
            "top",
            "--once",
            "--every-ms",
            "100",
            "--coordinator",
            &grpc,
            "--tls-ca",
            &ca,
            "--tls-cert",
            &cert,
            "--tls-key",
            &key,
        ]);
        let text = utf8(&told.stdout);
        if text.contains("leader") {
            break text;
        }
        let ended = role.child.try_wait().expect("our own child");
        assert!(ended.is_none(), "it ended with {ended:?}:\n{}", role.log());
        assert!(begun.elapsed() < PATIENCE, "{text}{}\n{}", utf8(&told.stderr), role.log());
        thread::sleep(LOOK);
    };
    let row: Vec<&str> = told
        .lines()
        .find(|line| line.contains("leader"))
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // Node, role, term, applied, behind, sessions, fsyncs: the last two stand on its metrics page, which wants a certificate too.
    assert_eq!(row.get(5), Some(&"0"), "{told}");
    assert!(row.get(6).is_some_and(|fsyncs| fsyncs.parse::<u32>().is_ok()), "{told}");
}

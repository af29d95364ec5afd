//! The first five minutes of each kind of user, as docs/guide/first-five-minutes tells them: each script ends well and leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use holdfast_chaos_tests::{holdfast, ports};

fn play(script: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let scene = tempfile::tempdir().unwrap();
    // A block of ports: the script takes the first and those behind it.
    let port = ports::free(1).unwrap()[0];
    let output = Command::new("bash")
        .arg(root.join("docs/guide/first-five-minutes").join(script))
        .current_dir(&root)
        .env("HOLDFAST", holdfast().unwrap().canonicalize().unwrap())
        .env("PORT", port.to_string())
        .env("TMPDIR", scene.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("Good.\n"), "{said}\n{complained}");
    let left: Vec<_> =
        std::fs::read_dir(scene.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn of_a_service_team() {
    play("service-team.sh");
}

#[test]
fn of_a_dba() {
    play("dba.sh");
}

#[test]
fn of_an_sre() {
    play("sre.sh");
}

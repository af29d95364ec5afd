//! A role of the binary as a process of its own, and how to talk to it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// For anything that a healthy machine does in a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

pub(crate) fn holdfast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HOLDFAST_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    holdfast().args(arguments).output().expect("the binary runs")
}

pub(crate) fn utf8(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("what we print is UTF-8")
}

/// A role that runs; it dies with the test.
pub(crate) struct Role {
    pub(crate) child: Child,
    pub(crate) log: std::path::PathBuf,
}

impl Role {
    pub(crate) fn start(dir: &Path, name: &str, arguments: &[&str]) -> Self {
        let log = dir.join(format!("{name}.log"));
        let file = fs::File::create(&log).expect("a log");
        let child = holdfast().args(arguments).stdout(Stdio::null()).stderr(file).spawn();
        Self { child: child.expect("the binary starts"), log }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log has said `what` so many times.
    pub(crate) fn says(&mut self, times: usize, what: &str) {
        let begun = Instant::now();
        while self.log().matches(what).count() < times {
            let ended = self.child.try_wait().expect("our own child");
            assert!(ended.is_none(), "it ended with {ended:?}:\n{}", self.log());
            assert!(begun.elapsed() < PATIENCE, "{what:?} is not said:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("our own child can be signalled");
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Status and body of a GET; `None` while nobody answers.
pub(crate) fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

pub(crate) fn wait_until_ready(role: &mut Role, address: SocketAddr) {
    let begun = Instant::now();
    while get(address, "/readyz").is_none_or(|(status, _)| status != 200) {
        let ended = role.child.try_wait().expect("our own child");
        assert!(ended.is_none(), "it ended with {ended:?}:\n{}", role.log());
        assert!(begun.elapsed() < PATIENCE, "never ready:\n{}", role.log());
        thread::sleep(LOOK);
    }
}

/// Addresses that are free now. Another program may take one before we do, which then shows as HF1015.
pub(crate) fn free<const N: usize>() -> [SocketAddr; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound"))
}

pub(crate) fn coordinator_toml(dir: &Path, [http, grpc, raft]: [SocketAddr; 3]) -> String {
    let file = dir.join("coordinator.toml");
    let doors = format!("http = \"{http}\"\ngrpc = \"{grpc}\"\nraft = \"{raft}\"\n");
    let data = dir.join("data");
    let text = format!(
        "[node]\nid = 1\ndata_dir = {data:?}\n[cluster]\nname = \"test\"\n[[cluster.member]]\nid = 1\n{doors}\
         [bind]\n{doors}[security]\nmode = \"dev-plaintext\"\n[log]\nsegment_bytes = 4194304\n"
    );
    fs::write(&file, text).expect("a configuration");
    file.to_str().expect("UTF-8").to_owned()
}

//! Clients that are connected and silent: what each costs a process in memory.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::ensure;

use super::meters::resident_bytes;
use crate::demo::postgres::{DATABASE, USER};

/// Raises the limit of open files to what this user may have.
/// # Errors
/// The system says no.
pub(crate) fn allow_many_files() -> anyhow::Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

/// Connects so many clients that log in and say nothing more; answers what each added to the memory of `pid`, bytes.
/// # Errors
/// A client is not let in.
pub(crate) fn bytes_a_client(port: u16, pid: u32, clients: usize) -> anyhow::Result<f64> {
    let before = resident_bytes(pid)?;
    let mut open = Vec::with_capacity(clients);
    for _ in 0..clients {
        open.push(log_in(port)?);
    }
    let after = resident_bytes(pid)?;
    Ok((after - before).max(0.0) / clients as f64)
}

fn log_in(port: u16) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut message = Vec::new();
    message.extend_from_slice(&196_608_i32.to_be_bytes());
    for text in ["user", USER, "database", DATABASE, ""] {
        message.extend_from_slice(text.as_bytes());
        message.push(0);
    }
    let length = i32::try_from(message.len() + 4)?.to_be_bytes();
    stream.write_all(&[&length[..], &message].concat())?;
    // The login ends with ReadyForQuery, which is six bytes.
    let mut said = Vec::new();
    let mut some = [0; 2048];
    while !said.ends_with(&[b'Z', 0, 0, 0, 5, b'I']) {
        let count = stream.read(&mut some)?;
        ensure!(count > 0, "a client was not let in: {}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&some[..count]);
    }
    Ok(stream)
}

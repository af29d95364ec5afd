//! An application beside an agent, whose every answer a story gives by hand.

use std::time::Duration;

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};

/// Bytes of one request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Listens for an agent's calls.
#[derive(Debug)]
pub struct Service {
    /// Where.
    pub address: String,
    asked: mpsc::UnboundedReceiver<Asked>,
    accepting: JoinHandle<()>,
}

/// One call that waits for its answer. Dropped without one, the connection is closed: unknown.
#[derive(Debug)]
pub struct Asked {
    /// `try`, `confirm`, `cancel`, `action` or `compensate`.
    pub op: String,
    /// The transaction.
    pub gid: String,
    /// Of the branch, from 1.
    pub branch: u32,
    /// What it carries.
    pub body: Vec<u8>,
    stream: TcpStream,
}

impl Service {
    /// Starts to listen.
    /// # Errors
    /// No port.
    pub async fn start() -> anyhow::Result<Self> {
        Self::listen(TcpListener::bind("127.0.0.1:0").await?)
    }

    /// Accepts what `listener` is dialed for.
    /// # Errors
    /// It has no address.
    pub fn listen(listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr()?.to_string();
        let (sender, asked) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    if let Ok(asked) = read(stream).await {
                        let _ = sender.send(asked);
                    }
                });
            }
        });
        Ok(Self { address, asked, accepting })
    }

    /// The next call.
    /// # Errors
    /// None comes within `within`.
    pub async fn next(&mut self, within: Duration) -> anyhow::Result<Asked> {
        let asked =
            timeout(within, self.asked.recv()).await.context("the service is asked nothing")?;
        asked.context("the service is gone")
    }

    /// Answers every call with 200 until `idle` has passed without one; the operations in the order of their coming.
    /// # Errors
    /// An answer could not be sent.
    pub async fn agree(&mut self, idle: Duration) -> anyhow::Result<Vec<String>> {
        self.answer_with(idle, |_| 200).await
    }

    /// As [`Self::agree`], with the status that `judge` gives.
    /// # Errors
    /// An answer could not be sent.
    pub async fn answer_with(
        &mut self,
        idle: Duration,
        judge: impl Fn(&str) -> u16,
    ) -> anyhow::Result<Vec<String>> {
        let mut ops = Vec::new();
        while let Ok(Some(asked)) = timeout(idle, self.asked.recv()).await {
            ops.push(asked.op.clone());
            let status = judge(&asked.op);
            asked.answer(status).await?;
        }
        Ok(ops)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Asked {
    /// Answers with this HTTP status.
    /// # Errors
    /// The agent has gone meanwhile.
    pub async fn answer(mut self, status: u16) -> anyhow::Result<()> {
        let head = format!("HTTP/1.1 {status} -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        Ok(self.stream.write_all(head.as_bytes()).await?)
    }
}

async fn read(mut stream: TcpStream) -> anyhow::Result<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head)?;
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut values = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.to_owned()).with_context(|| format!("no {name}"))
    };
    let mut body = vec![0; header("content-length")?.parse::<usize>()?.min(128 * 1024)];
    stream.read_exact(&mut body).await?;
    Ok(Asked {
        op: header("holdfast-op")?,
        gid: header("holdfast-gid")?,
        branch: header("holdfast-branch")?.parse()?,
        body,
        stream,
    })
}

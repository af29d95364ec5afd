//! One HTTP/1.1 request over a bare socket: nothing is mended on the way, so that wrong ones arrive wrong.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// For one answer: longer than the longest wait that a story asks a coordinator for.
const ANSWER_MAX: Duration = Duration::from_secs(40);

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// 200 and so on.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// What follows them.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as JSON; `null` where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The text at this JSON pointer, or nothing.
    #[must_use]
    pub fn text(&self, pointer: &str) -> String {
        self.json().pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

/// `GET path`.
/// # Errors
/// No connection, or no answer.
pub async fn get(address: &str, path: &str) -> anyhow::Result<Reply> {
    send(address, "GET", path, &[], b"").await
}

/// `POST path` with a JSON body.
/// # Errors
/// No connection, or no answer.
pub async fn post(address: &str, path: &str, body: &Value) -> anyhow::Result<Reply> {
    let json = [("Content-Type", "application/json")];
    send(address, "POST", path, &json, body.to_string().as_bytes()).await
}

/// Any request.
/// # Errors
/// No connection, or no answer.
pub async fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> anyhow::Result<Reply> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    let answer = exchange(address, &bytes).await?;
    parse(&answer).with_context(|| format!("{method} {path} at {address}"))
}

/// Sends any bytes, and answers all that comes back until the other side closes.
/// # Errors
/// No connection, or it is still open after a while.
pub async fn exchange(address: &str, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let talk = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut answer = Vec::new();
        // Who is turned away early may hear so before all was sent, and a reset behind the answer is an end as well.
        let _ = stream.write_all(bytes).await;
        let mut part = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            answer.extend_from_slice(&part[..count]);
        }
        anyhow::Ok(answer)
    };
    timeout(ANSWER_MAX, talk).await.with_context(|| format!("no end of the answer of {address}"))?
}

fn parse(answer: &[u8]) -> anyhow::Result<Reply> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.with_context(|| format!("no HTTP: {:?}", String::from_utf8_lossy(answer)))?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    ensure!(head.starts_with("HTTP/1.1 "), "no HTTP/1.1: {head}");
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    Ok(Reply { status: status.context("no status")?, head, body: answer[end + 4..].to_vec() })
}

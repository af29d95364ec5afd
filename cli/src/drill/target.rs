//! A process with a drill door, as the runner sees it.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use super::door::Order;

/// For one request to a door of this machine.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Bytes of one answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of all metrics of one process.
const METRICS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The page of a door that says who it is, strikes, and ends.
const DRILL: &str = "/v1/drill";
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// One process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// `coordinator` or `bank`.
    pub(crate) role: String,
    /// For people.
    pub(crate) name: String,
    /// Its door.
    pub(crate) door: String,
    /// Where clients reach a coordinator.
    pub(crate) grpc: Option<String>,
    /// A coordinator's number.
    pub(crate) node: Option<u64>,
}

impl Target {
    /// Asks who stands behind `door`.
    /// # Errors
    /// HF6102: nobody does.
    pub(crate) async fn find(door: &str) -> anyhow::Result<Self> {
        let said = ask(door, "GET", None).await.with_context(|| {
            format!(
                "HF6102 no drill door at {door}. The process must run with drill.allowed = true and drill.bind = \"{door}\""
            )
        })?;
        let text = |name: &str| said[name].as_str().map(str::to_owned);
        Ok(Self {
            role: text("role").context("a door says its role")?,
            name: text("name").context("a door says its name")?,
            door: door.to_owned(),
            grpc: text("grpc"),
            node: said["node"].as_u64(),
        })
    }

    /// Has it struck.
    /// # Errors
    /// HF6101: it refuses, and says why; or it does not answer.
    pub(crate) async fn strike(&self, order: &Order) -> anyhow::Result<()> {
        let order = serde_json::to_string(order)?;
        ask(&self.door, "POST", Some(&order)).await.map(drop)
    }

    /// Ends all that it holds.
    /// # Errors
    /// It does not answer.
    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        ask(&self.door, "DELETE", None).await.map(drop)
    }

    /// What it says of itself.
    pub(crate) async fn look(&self) -> Option<Value> {
        ask(&self.door, "GET", None).await.ok()
    }

    /// Its metrics, in the text format of Prometheus, while it answers.
    pub(crate) async fn metrics(&self) -> Option<String> {
        let asked = request(&self.door, "GET", "/v1/drill/metrics", None, METRICS_BYTES_MAX).await;
        asked.ok().filter(|(status, _)| status == "200").map(|(_, text)| text)
    }

    /// Its process number, while it answers.
    pub(crate) async fn pid(&self) -> Option<i32> {
        i32::try_from(self.look().await?["pid"].as_i64()?).ok()
    }

    /// Whether it answers and holds nothing.
    pub(crate) async fn is_well(&self) -> bool {
        let held = self.look().await.map(|said| said["held"].as_array().map(Vec::len));
        held == Some(Some(0))
    }

    /// Waits until the process of that number is gone or stands still.
    pub(crate) async fn is_down(pid: i32, within: Duration) -> bool {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if !is_running(pid) {
                return true;
            }
            sleep(LOOK_AGAIN).await;
        }
        false
    }
}

/// Whether that process runs, and is neither stopped nor dead.
pub(crate) fn is_running(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name stands in parentheses and may hold anything.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    !matches!(state, None | Some('T' | 'Z' | 'X'))
}

/// One request, one JSON answer.
async fn ask(door: &str, method: &str, body: Option<&str>) -> anyhow::Result<Value> {
    let (status, body) = request(door, method, DRILL, body, ANSWER_BYTES_MAX).await?;
    if status == "200" {
        return serde_json::from_str(&body).context("no JSON");
    }
    ensure!(!body.trim().is_empty(), "the door answers {status}");
    match serde_json::from_str::<Value>(&body)
        .ok()
        .and_then(|said| said["message"].as_str().map(str::to_owned))
    {
        Some(why) => bail!(why),
        None => bail!("the door answers {status}: {}", body.trim()),
    }
}

/// One request; the status and the body of its answer.
async fn request(
    door: &str,
    method: &str,
    path: &str,
    body: Option<&str>,
    bytes_max: u64,
) -> anyhow::Result<(String, String)> {
    let asked = async {
        let mut stream = TcpStream::connect(door).await?;
        let body = body.unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {door}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(bytes_max).read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(ASK_MAX, asked).await.context("no answer in time")??;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    Ok((status.to_owned(), body.to_owned()))
}

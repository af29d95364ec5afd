//! What processes and nodes have used so far: CPU from `/proc`, counters from a node's metrics page.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, ensure};
use holdfast_client::ClientOptions;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

/// Bytes of a metrics page that are read: some hundred times of what a node has.
const PAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// CPU that a process has used, all threads, in user and kernel, us. The kernel counts in ticks, mostly of 10 ms.
pub(crate) fn cpu_us(pid: u32) -> anyhow::Result<f64> {
    let (own, _) = ticks(pid).with_context(|| format!("process {pid} has no times"))?;
    Ok(own * tick_us()?)
}

/// The same of a process with all its children, those that have ended included.
pub(crate) fn family_cpu_us(pid: u32) -> anyhow::Result<f64> {
    let (own, ended) = ticks(pid).with_context(|| format!("process {pid} has no times"))?;
    let children = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|child| parent(*child) == Some(pid))
        .filter_map(|child| ticks(child).map(|(own, ended)| own + ended));
    Ok((own + ended + children.sum::<f64>()) * tick_us()?)
}

/// Memory of a process that is in RAM, bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has no status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line.context("no VmRSS")?.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kib * 1024.0)
}

fn tick_us() -> anyhow::Result<f64> {
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    Ok(1e6 / a_second.context("the kernel counts in no ticks")? as f64)
}

/// Of the process itself, and of its children that have ended.
fn ticks(pid: u32) -> Option<(f64, f64)> {
    let fields = stat(pid)?;
    let at = |place: usize| fields.get(place)?.parse::<f64>().ok();
    Some((at(11)? + at(12)?, at(13)? + at(14)?))
}

fn parent(pid: u32) -> Option<u32> {
    stat(pid)?.get(1)?.parse().ok()
}

/// The fields behind the name, which may hold anything; the first is the state.
fn stat(pid: u32) -> Option<Vec<String>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = line.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The counters of a node by their names with labels, as `GET /metrics` at `http` tells them in plaintext.
pub(crate) async fn counters(http: &str) -> anyhow::Result<BTreeMap<String, f64>> {
    counters_as(http, &ClientOptions::default()).await
}

/// The same, as whoever `options` say: by TLS if they hold credentials.
pub(crate) async fn counters_as(
    http: &str,
    options: &ClientOptions,
) -> anyhow::Result<BTreeMap<String, f64>> {
    let bearer = options.token.as_ref().filter(|_| options.credentials.is_some());
    let bearer = bearer
        .map(|token| format!("Authorization: Bearer {}\r\n", token.reveal()))
        .unwrap_or_default();
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: {http}\r\n{bearer}Connection: close\r\n\r\n");
    let page = match &options.credentials {
        None => asked(TcpStream::connect(http).await?, &request).await?,
        Some(credentials) => {
            asked(credentials.connector(None).open(http, b"http/1.1").await?, &request).await?
        }
    };
    ensure!(page.starts_with("HTTP/1.1 200"), "{http} does not tell its metrics");
    Ok(parse(&page))
}

async fn asked(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> anyhow::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.take(PAGE_BYTES_MAX).read_to_string(&mut page).await?;
    Ok(page)
}

fn parse(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| line.starts_with("holdfast_"));
    lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cpu_grows_with_work() {
        let pid = std::process::id();
        let before = cpu_us(pid).unwrap();
        let mut sum = 0_u64;
        while cpu_us(pid).unwrap() < before + 30_000.0 {
            sum = (0..100_000).fold(sum, |sum, n| sum.rotate_left(3) ^ n);
        }
        assert!(family_cpu_us(pid).unwrap() >= cpu_us(pid).unwrap() - 20_000.0, "{sum}");
    }

    #[test]
    fn counters_are_read_with_their_labels() {
        let page = "HTTP/1.1 200 OK\r\n\r\n# TYPE holdfast_proposals_total counter\n\
                    holdfast_proposals_total{kind=\"lazy\"} 12\nother 3\nholdfast_log_fsyncs_total 7\n";
        let counters = parse(page);
        assert_eq!(counters.get("holdfast_proposals_total{kind=\"lazy\"}"), Some(&12.0));
        assert_eq!(counters.get("holdfast_log_fsyncs_total"), Some(&7.0));
        assert_eq!(counters.len(), 2);
    }
}

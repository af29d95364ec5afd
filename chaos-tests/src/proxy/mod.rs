//! A TCP proxy that spoils what passes: delay, jitter, resets, half-open connections, slow closes, slices, narrow lines, changed bytes.
//!
//! All chance comes from a seed, drawn anew for each connection and direction, so one connection's traffic does not shift another's.
//! It is told what to do by [`Proxy::set`], or at its control port by a line (`set delay_ms=50`, `clear`, `cut`, `show`), one answer a line.

mod faults;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
pub use faults::Faults;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream, tcp},
    sync::{Semaphore, watch},
    task::JoinHandle,
    time::sleep,
};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 16 * 1024;
/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of one line at the control port.
const LINE_BYTES_MAX: u64 = 1_024;
/// Between two looks whether a muted direction may go on.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where it is told what to do.
    pub control: SocketAddr,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    seed: u64,
    faults: Mutex<Faults>,
    /// Counts cuts: connections of an earlier count end.
    cut: watch::Sender<u64>,
    connections: AtomicU64,
    struck: AtomicU64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.cut.send_modify(|cut| *cut += 1);
    }
}

impl Proxy {
    /// Listens at `port` of the loopback address, any free one for 0, and passes connections on to `upstream`.
    /// # Errors
    /// The port is taken.
    pub async fn start(port: u16, upstream: &str, seed: u64) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(("127.0.0.1", port)).await.context("a port for a proxy")?;
        let controls = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, control) = (listener.local_addr()?, controls.local_addr()?);
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            seed,
            faults: Mutex::default(),
            cut: watch::Sender::new(0),
            connections: AtomicU64::new(0),
            struck: AtomicU64::new(0),
        });
        let tasks = vec![
            tokio::spawn(serve(Arc::clone(&shared), listener)),
            tokio::spawn(obey(Arc::clone(&shared), controls)),
        ];
        Ok(Self { shared, address, control, tasks })
    }

    /// Sets faults in words, see [`Faults::set`].
    /// # Errors
    /// They are not understood.
    pub fn set(&self, words: &str) -> anyhow::Result<()> {
        self.shared.faults.lock().expect("no holder panics").set(words)
    }

    /// Ends all faults.
    pub fn clear(&self) {
        *self.shared.faults.lock().expect("no holder panics") = Faults::default();
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// How many pieces and connections a fault has struck.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn faults(&self) -> Faults {
        *self.faults.lock().expect("no holder panics")
    }

    fn strike(&self) {
        self.struck.fetch_add(1, Ordering::Relaxed);
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.expect("it is never closed");
        let Ok((client, _)) = listener.accept().await else {
            sleep(LOOK_AGAIN).await;
            continue;
        };
        if shared.faults().refuse {
            shared.strike();
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            carry(shared, client).await;
            drop(permit);
        });
    }
}

async fn carry(shared: Arc<Shared>, client: TcpStream) {
    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut cut = shared.cut.subscribe();
    let Ok(server) = TcpStream::connect(&shared.upstream).await else { return };
    // Slices must leave as they are cut.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let carried = async {
        tokio::join!(
            pump(&shared, number, Way::Up, from_client, to_server),
            pump(&shared, number, Way::Down, from_server, to_client),
        )
    };
    tokio::select! {
        _ = carried => {}
        _ = cut.changed() => {}
    }
}

/// Carries bytes one way until the end, or until chance ends it.
async fn pump(
    shared: &Shared,
    number: u64,
    way: Way,
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
) {
    let own = shared.seed
        ^ (number * 2 + u64::from(way == Way::Down)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut chance = StdRng::seed_from_u64(own);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let faults = shared.faults();
        let room = match usize::try_from(faults.slice_bytes) {
            Ok(bytes @ 1..) => bytes.min(PIECE_BYTES),
            _ => PIECE_BYTES,
        };
        let Ok(count) = from.read(&mut piece[..room]).await else { return };
        let faults = shared.faults();
        if count == 0 {
            if faults.slow_close_ms > 0 {
                shared.strike();
                sleep(Duration::from_millis(faults.slow_close_ms)).await;
            }
            let _ = to.shutdown().await;
            return;
        }
        if chance.random_range(0..1_000) < faults.reset_permille {
            shared.strike();
            shared.cut.send_modify(|cut| *cut += 1);
            return;
        }
        pause(shared, &faults, count, &mut chance).await;
        for byte in &mut piece[..count] {
            if faults.corrupt_ppm > 0 && chance.random_range(0..1_000_000) < faults.corrupt_ppm {
                shared.strike();
                *byte ^= 1 << chance.random_range(0..8);
            }
        }
        wait_while_muted(shared, way).await;
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

async fn pause(shared: &Shared, faults: &Faults, count: usize, chance: &mut StdRng) {
    let jitter_ms = chance.random_range(0..=faults.jitter_ms);
    let mut wait = Duration::from_millis(faults.delay_ms + jitter_ms);
    if let Some(rate) = std::num::NonZeroU64::new(faults.bytes_per_second) {
        wait += Duration::from_micros(count as u64 * 1_000_000 / rate);
    }
    if faults.slice_bytes > 0 || !wait.is_zero() {
        shared.strike();
    }
    if !wait.is_zero() {
        sleep(wait).await;
    }
}

async fn wait_while_muted(shared: &Shared, way: Way) {
    let muted = |faults: Faults| match way {
        Way::Up => faults.mute_up,
        Way::Down => faults.mute_down,
    };
    if muted(shared.faults()) {
        shared.strike();
    }
    while muted(shared.faults()) {
        sleep(LOOK_AGAIN).await;
    }
}

/// One line, one answer.
async fn obey(shared: Arc<Shared>, controls: TcpListener) {
    while let Ok((stream, _)) = controls.accept().await {
        let (from, mut to) = stream.into_split();
        let mut lines = BufReader::new(from.take(LINE_BYTES_MAX)).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("set", words) => {
                    let set = shared.faults.lock().expect("no holder panics").set(words);
                    set.map_or_else(|error| format!("{error:#}"), |()| "ok".to_owned())
                }
                ("clear", _) => {
                    *shared.faults.lock().expect("no holder panics") = Faults::default();
                    "ok".to_owned()
                }
                ("cut", _) => {
                    shared.cut.send_modify(|cut| *cut += 1);
                    "ok".to_owned()
                }
                ("show", _) => format!("{:?}", shared.faults()),
                (word, _) => format!("{word}: say set, clear, cut or show"),
            };
            if to.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
                break;
            }
            lines.get_mut().get_mut().set_limit(LINE_BYTES_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    /// A server that gives back what it gets.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn asked(proxy: &Proxy, words: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(proxy.address).await?;
        stream.write_all(words).await?;
        let mut answer = vec![0; words.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn without_faults_everything_passes_unchanged() {
        let proxy = Proxy::start(0, &echo().await.to_string(), 1).await.unwrap();
        let words: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        assert_eq!(asked(&proxy, &words).await.unwrap(), words);
        assert_eq!(proxy.struck(), 0);
    }

    #[tokio::test]
    async fn each_fault_does_what_its_name_says_and_ends_when_cleared() {
        let proxy = Proxy::start(0, &echo().await.to_string(), 1).await.unwrap();
        let started = Instant::now();
        proxy.set("delay_ms=40").unwrap();
        asked(&proxy, b"slow").await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(80), "there and back");
        proxy.clear();

        proxy.set("slice_bytes=3 bytes_per_second=10000").unwrap();
        assert_eq!(asked(&proxy, b"in slices").await.unwrap(), b"in slices");
        proxy.clear();

        proxy.set("corrupt_ppm=1000000").unwrap();
        assert_ne!(asked(&proxy, b"changed").await.unwrap(), b"changed");
        proxy.clear();

        proxy.set("reset_permille=1000").unwrap();
        assert!(timeout(SOON, asked(&proxy, b"gone")).await.unwrap().is_err());
        proxy.clear();

        proxy.set("refuse=1").unwrap();
        assert!(timeout(SOON, asked(&proxy, b"refused")).await.unwrap().is_err());
        proxy.clear();

        proxy.set("mute_down=1").unwrap();
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(b"later").await.unwrap();
        let mut answer = [0; 5];
        let silent = timeout(Duration::from_millis(100), stream.read_exact(&mut answer)).await;
        assert!(silent.is_err(), "a half-open connection says nothing");
        proxy.clear();
        timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"later");

        proxy.cut();
        assert_eq!(timeout(SOON, stream.read(&mut answer)).await.unwrap().unwrap_or(0), 0);
        assert!(proxy.struck() >= 6);
    }

    #[tokio::test]
    async fn it_is_told_at_its_control_port() {
        let proxy = Proxy::start(0, &echo().await.to_string(), 1).await.unwrap();
        let stream = TcpStream::connect(proxy.control).await.unwrap();
        let (from, mut to) = stream.into_split();
        let mut lines = BufReader::new(from).lines();
        for (line, expected) in [
            ("set delay_ms=5", "ok"),
            ("show", "delay_ms: 5"),
            ("set speed=1", "no fault is called speed"),
            ("clear", "ok"),
            ("show", "delay_ms: 0"),
            ("dance", "say set"),
        ] {
            to.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            let answer = lines.next_line().await.unwrap().unwrap();
            assert!(answer.contains(expected), "{line}: {answer}");
        }
    }
}

//! The door by which people on its machine have a running role read its configuration again: `holdfast config reload --role router`.
//!
//! An abstract Unix socket named after role and process: there is nothing to configure, and nothing is left when the process is gone. Who asks
//! is said by the kernel and not by the one who asks: the user that the process runs as, or root, who could send it SIGHUP as well. A
//! connection carries one request, and is answered before the next one is taken.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
    },
    sync::Arc,
    time::Duration,
};

use holdfast_client::ClientError;
use holdfast_coordinator::live::{Difference, Reread};
use holdfast_txn::limit::REASON_BYTES_MAX;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tokio_util::sync::CancellationToken;

/// Bytes of a request: a reason, and as many again for what JSON makes of it.
const REQUEST_BYTES_MAX: u64 = 8 * 1024;
/// Bytes of an answer: a thousand users, each with its difference.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// For a request to arrive, and for an answer to be taken in.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a process to read its files and to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Before another connection is taken, when one could not be: file descriptors may be free again.
const PAUSE: Duration = Duration::from_secs(1);
/// Before role and process in the name of a door.
const PREFIX: &str = "holdfast/";
/// `__SO_ACCEPTCON`: the flag of a socket that listens, in `/proc/net/unix`.
const LISTENS: &str = "00010000";

/// A process that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) role: String,
    pub(crate) pid: u32,
}

/// What is asked.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ask {
    pub(crate) reason: String,
    pub(crate) dry_run: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Differences(Vec<Difference>),
    Refused { code: String, message: String },
}

impl Process {
    fn address(&self) -> io::Result<SocketAddr> {
        SocketAddr::from_abstract_name(format!("{PREFIX}{}/{}", self.role, self.pid))
    }

    /// Every process of this machine whose door is open.
    pub(crate) fn all() -> Vec<Self> {
        listed(&std::fs::read_to_string("/proc/net/unix").unwrap_or_default())
    }

    /// Has it read its configuration again.
    /// # Errors
    /// It refuses: HF2602, HF2301, HF2411. HF1025: it cannot be reached, or another process sits behind its name.
    pub(crate) async fn ask(&self, ask: &Ask) -> anyhow::Result<Vec<Difference>> {
        self.ask_within(ask, ANSWER_TIMEOUT).await
    }

    async fn ask_within(&self, ask: &Ask, patience: Duration) -> anyhow::Result<Vec<Difference>> {
        let Self { role, pid } = self;
        let answered = tokio::time::timeout(patience, self.exchange(ask)).await;
        let answered = answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match answered {
            Ok(Answer::Differences(differences)) => Ok(differences),
            Ok(Answer::Refused { code, message }) => {
                let message = format!("{role} {pid}: {message}");
                Err(ClientError::Refused { code, message }.into())
            }
            Err(error) => anyhow::bail!(
                "HF1025 {role} {pid} did not answer: {error}. Its log says what it did; kill -HUP {pid} has it read its configuration again as well"
            ),
        }
    }

    async fn exchange(&self, ask: &Ask) -> io::Result<Answer> {
        let stream = StdStream::connect_addr(&self.address()?)?;
        stream.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(stream)?;
        // Any user can take a free name: whoever does is told nothing.
        let behind = stream.peer_cred()?.pid();
        if behind != i32::try_from(self.pid).ok() {
            return Err(io::Error::other("another process has taken its name"));
        }
        stream.write_all(&serde_json::to_vec(ask)?).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
        Ok(serde_json::from_slice(&answer)?)
    }
}

/// The doors in a table such as `/proc/net/unix`.
fn listed(table: &str) -> Vec<Process> {
    let one = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let name = columns.get(7)?.strip_prefix('@')?.strip_prefix(PREFIX)?;
        let (role, pid) = name.split_once('/')?;
        (columns[3] == LISTENS).then_some(())?;
        Some(Process { role: role.to_owned(), pid: pid.parse().ok()? })
    };
    let mut processes: Vec<Process> = table.lines().filter_map(one).collect();
    processes.sort();
    processes
}

/// Opens the door of this process, until `stop`. Where it cannot be opened, SIGHUP is what is left.
pub(crate) fn open(role: &str, reread: Arc<dyn Reread>, stop: CancellationToken) {
    let process = Process { role: role.to_owned(), pid: std::process::id() };
    match listen(&process) {
        Ok(listener) => {
            tokio::spawn(stop.run_until_cancelled_owned(serve(listener, reread)));
        }
        Err(error) => {
            tracing::warn!(%error, "no door for `holdfast config reload` on this machine; SIGHUP has the configuration read again");
        }
    }
}

fn listen(process: &Process) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&process.address()?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(listener: UnixListener, reread: Arc<dyn Reread>) {
    loop {
        let served = match listener.accept().await {
            Ok((stream, _)) => answer(stream, &reread, PATIENCE).await,
            Err(error) => {
                tokio::time::sleep(PAUSE).await;
                Err(error)
            }
        };
        if let Err(error) = served {
            tracing::warn!(%error, "a request to read the configuration again was not answered");
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    reread: &Arc<dyn Reread>,
    patience: Duration,
) -> io::Result<()> {
    let asker = stream.peer_cred()?.uid();
    let mut request = Vec::new();
    let mut bounded = (&mut stream).take(REQUEST_BYTES_MAX + 1);
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let reading = bounded.read_to_end(&mut request);
    tokio::time::timeout(patience, reading).await.map_err(late)??;
    let answer = match judge(asker, geteuid().as_raw(), &request) {
        Ok(ask) => carry_out(asker, ask, reread).await,
        Err((code, message)) => {
            tracing::warn!(asker, code, "nobody is told the configuration for this request");
            Answer::Refused { code: code.to_owned(), message }
        }
    };
    let answer = serde_json::to_vec(&answer)?;
    tokio::time::timeout(patience, stream.write_all(&answer)).await.map_err(late)?
}

/// Whether user `asker` may ask a process of user `owner` for it, and what is asked.
fn judge(asker: u32, owner: u32, request: &[u8]) -> Result<Ask, (&'static str, String)> {
    if asker != owner && asker != 0 {
        let message = format!(
            "user {asker} of this machine may not have a process of user {owner} read its configuration again. Ask as that user, or as root"
        );
        return Err(("HF2602", message));
    }
    if request.len() as u64 > REQUEST_BYTES_MAX {
        return Err(("HF2301", format!("the request has more than {REQUEST_BYTES_MAX} bytes")));
    }
    let ask: Ask = serde_json::from_slice(request)
        .map_err(|error| ("HF2301", format!("the request cannot be read: {error}")))?;
    let reason = &ask.reason;
    if reason.trim().is_empty()
        || reason.len() > REASON_BYTES_MAX
        || reason.chars().any(char::is_control)
    {
        let message = format!(
            "reason: say why, in 1 to {REASON_BYTES_MAX} bytes without control characters, for the people who read it later"
        );
        return Err(("HF2301", message));
    }
    Ok(ask)
}

async fn carry_out(asker: u32, ask: Ask, reread: &Arc<dyn Reread>) -> Answer {
    let Ask { reason, dry_run } = ask;
    if !dry_run {
        let by = format!("user {asker} of this machine");
        tracing::warn!(by, reason, "the configuration is read again");
    }
    let reread = Arc::clone(reread);
    let reading = tokio::task::spawn_blocking(move || reread.reread(dry_run)).await;
    match reading.unwrap_or_else(|fault| Err(fault.to_string())) {
        Ok(differences) => Answer::Differences(differences),
        Err(words) => Answer::Refused {
            code: "HF2411".to_owned(),
            message: format!("nothing was changed: {words}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use holdfast_coordinator::live::Verdict;

    use super::*;

    /// Shorter than what is waited for in earnest.
    const MOMENT: Duration = Duration::from_millis(20);

    fn request(reason: &str) -> Vec<u8> {
        serde_json::to_vec(&Ask { reason: reason.to_owned(), dry_run: true }).unwrap()
    }

    #[test]
    fn only_its_own_user_and_root_may_ask() {
        let code = |asker, owner| judge(asker, owner, &request("why")).map_err(|no| no.0).err();
        assert_eq!((code(7, 7), code(0, 7)), (None, None));
        assert_eq!((code(8, 7), code(7, 0)), (Some("HF2602"), Some("HF2602")));
    }

    #[test]
    fn a_request_is_taken_at_its_limits_and_refused_one_past_them() {
        let code = |request: &[u8]| judge(7, 7, request).map_err(|no| no.0).err();
        assert_eq!(code(&request(&"r".repeat(REASON_BYTES_MAX))), None);
        for reason in [&"r".repeat(REASON_BYTES_MAX + 1), " ", "a\nb"] {
            assert_eq!(code(&request(reason)), Some("HF2301"), "{reason:?}");
        }
        let padded = |bytes: usize| {
            let mut request = request("why");
            request.resize(bytes, b' ');
            request
        };
        let most = usize::try_from(REQUEST_BYTES_MAX).unwrap();
        assert_eq!((code(&padded(most)), code(&padded(most + 1))), (None, Some("HF2301")));
        assert_eq!(code(br#"{"reason": "why", "dry_run": true, "more": 1}"#), Some("HF2301"));
    }

    /// A configuration that is as it was.
    #[derive(Debug)]
    struct Same;

    impl Reread for Same {
        fn reread(&self, _dry_run: bool) -> Result<Vec<Difference>, String> {
            Ok(Vec::new())
        }
    }

    #[tokio::test]
    async fn a_request_that_arrives_in_time_is_answered_and_one_that_does_not_is_hung_up_on() {
        let reread: Arc<dyn Reread> = Arc::new(Same);
        let request = request("why");
        for (patience, sent) in [(PATIENCE, request.len()), (MOMENT, request.len() - 1)] {
            let (mut asker, asked) = UnixStream::pair().unwrap();
            asker.write_all(&request[..sent]).await.unwrap();
            let all = sent == request.len();
            if all {
                asker.shutdown().await.unwrap();
            }
            let answered = answer(asked, &reread, patience).await;
            let late =
                answered.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            assert_eq!((answered.is_ok(), late), (all, !all), "{answered:?}");
        }
    }

    /// What a process says that answers so many bytes, to somebody who waits so long; with `None` it says nothing.
    async fn said(bytes: Option<usize>, patience: Duration) -> Result<usize, String> {
        let process = Process { role: "a-test-of-answers".to_owned(), pid: std::process::id() };
        let listener = listen(&process).unwrap();
        let door = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            match bytes {
                // The asker takes no more than it wants.
                Some(bytes) => drop(stream.write_all(&of_bytes(bytes)).await),
                None => std::future::pending().await,
            }
            drop(stream);
            std::future::pending::<()>().await;
        };
        let ask = Ask { reason: "why".to_owned(), dry_run: true };
        let answered = tokio::select! {
            () = door => unreachable!("it is open until the test ends"),
            answered = process.ask_within(&ask, patience) => answered,
        };
        answered.map(|all| all.len()).map_err(|error| error.to_string())
    }

    /// One difference, with a key of as many letters as that takes.
    fn of_bytes(bytes: usize) -> Vec<u8> {
        let with = |letters: usize| {
            let difference = Difference {
                key: "k".repeat(letters),
                from: String::new(),
                to: String::new(),
                verdict: Verdict::Refused,
                cause: String::new(),
            };
            serde_json::to_vec(&Answer::Differences(vec![difference])).unwrap()
        };
        with(bytes - with(0).len())
    }

    #[tokio::test]
    async fn an_answer_is_taken_in_time_and_up_to_its_bytes_and_not_one_past_them() {
        let most = usize::try_from(ANSWER_BYTES_MAX).unwrap();
        assert_eq!(said(Some(most), ANSWER_TIMEOUT).await, Ok(1));
        for (bytes, patience) in [(Some(most + 1), ANSWER_TIMEOUT), (None, MOMENT)] {
            let why = said(bytes, patience).await.unwrap_err();
            assert!(why.starts_with("HF1025") && why.contains("kill -HUP"), "{why}");
        }
    }

    #[test]
    fn only_doors_that_listen_are_found() {
        let table = "Num RefCount Protocol Flags Type St Inode Path\n\
                     0: 2 0 00010000 0001 01 20 @holdfast/router/4712\n\
                     0: 2 0 00010000 0001 01 21 @holdfast/bank/4711\n\
                     0: 3 0 00000000 0001 03 22 @holdfast/bank/4711\n\
                     0: 2 0 00010000 0001 01 23 /run/holdfast/bank/4713\n\
                     0: 2 0 00010000 0001 01 24 @holdfast/bank/x\n\
                     0: 2 0 00010000 0001 01 25\n";
        let process = |role: &str, pid| Process { role: role.to_owned(), pid };
        assert_eq!(listed(table), [process("bank", 4711), process("router", 4712)]);
    }
}

//! The folder a demo lives in, and the promise that nothing of it stays behind, however the demo ends.
//!
//! A small shell holds one end of a pipe whose other end is ours. When the pipe closes, because the demo is done or
//! because it was killed, the shell stops what PostgreSQL servers and poolers still run below the folder and removes it.
//! Folders of demos whose shell was killed too are swept when the next demo starts.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::Context;

/// What every demo folder's name starts with.
const PREFIX: &str = "holdfast-demo-";
/// Holds the process id of the demo and when that process started.
const OWNER: &str = "owner";
/// Its presence says that somebody wants the folder to stay.
const KEEP: &str = "keep";
/// The folder of the PostgreSQL servers' data, one subfolder each, and of files with the process ids of poolers.
pub(crate) const POSTGRES: &str = "postgres";
/// A folder without an owner file this old was left by a demo that died at once.
const OWNERLESS_AFTER: Duration = Duration::from_secs(60);

/// `$1` is the folder. A process is signaled only if its command line names it, so that it is the one meant.
const CLEANER: &str = r#"
cat >/dev/null
stop() {
  for pidfile in "$1"/postgres/*/postmaster.pid "$1"/postgres/*.pid; do
    [ -r "$pidfile" ] && read -r pid <"$pidfile" || continue
    case "$pidfile" in */postmaster.pid) at_once=QUIT ;; *) at_once=TERM ;; esac
    grep -qaF -- "$1/" "/proc/$pid/cmdline" && kill "-$at_once" "$pid" && running=1
  done
}
for attempt in 1 2 3 4 5 6 7 8 9 10; do
  running=; stop "$1" 2>/dev/null
  [ -z "$running" ] && { [ -e "$1/keep" ] || rm -rf -- "$1" 2>/dev/null; } && break
  sleep 0.3
done
"#;

/// A demo's folder, with the shell that cleans up behind it.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    cleaner: Child,
}

impl Scratch {
    /// Sweeps what dead demos left, then makes a folder of our own below the system's temporary folder.
    pub(crate) fn create(keep: bool) -> anyhow::Result<Self> {
        let parent = std::env::temp_dir();
        let parent = parent.canonicalize().with_context(|| {
            format!("the temporary folder {} cannot be used; set TMPDIR", parent.display())
        })?;
        for stale in stale_folders(&parent) {
            tracing::info!(folder = %stale.display(), "removing the folder of a demo that is no more");
            if let Err(error) = clean(&stale) {
                tracing::warn!(folder = %stale.display(), %error, "could not be removed");
            }
        }
        Self::create_in(&parent, keep)
    }

    /// Runs `work` in a folder of its own, and cleans up behind it however it ended.
    pub(crate) async fn during<T>(
        keep: bool,
        work: impl AsyncFnOnce(&Path) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let scratch = tokio::task::spawn_blocking(move || Self::create(keep)).await??;
        let done = Box::pin(work(scratch.path())).await;
        let cleaned = tokio::task::spawn_blocking(|| scratch.clean_up()).await?;
        let done = done?;
        cleaned?;
        Ok(done)
    }

    fn create_in(parent: &Path, keep: bool) -> anyhow::Result<Self> {
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .with_context(|| {
                format!("no folder could be made below {}; set TMPDIR to another", parent.display())
            })?
            .keep();
        // PostgreSQL may run as another user, who must be able to pass through.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711))?;
        fs::write(
            path.join(OWNER),
            owner_line(std::process::id()).context("reading our own start time")?,
        )?;
        if keep {
            fs::write(path.join(KEEP), "")?;
        }
        let cleaner =
            cleaner(&path, Stdio::piped()).spawn().context("starting /bin/sh, which cleans up")?;
        Ok(Self { path, cleaner })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Stops what still runs below the folder and removes it, unless it is to be kept.
    pub(crate) fn clean_up(mut self) -> anyhow::Result<()> {
        drop(self.cleaner.stdin.take());
        self.cleaner.wait().context("waiting for the shell that cleans up")?;
        if self.path.exists() && !self.path.join(KEEP).exists() {
            fs::remove_dir_all(&self.path)
                .with_context(|| format!("removing {}", self.path.display()))?;
        }
        Ok(())
    }
}

fn cleaner(folder: &Path, stdin: Stdio) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(CLEANER).arg("holdfast-demo-cleaner").arg(folder);
    // A group of its own: Ctrl-C at the terminal reaches the demo alone, which then ends in good order.
    command
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .current_dir("/");
    command
}

fn clean(folder: &Path) -> anyhow::Result<()> {
    cleaner(folder, Stdio::null()).status()?;
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(())
}

/// Folders of ours below `parent` whose demo is dead and which nobody wants to keep.
fn stale_folders(parent: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(parent) else { return Vec::new() };
    let own_uid = nix::unistd::geteuid().as_raw();
    let mut stale: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == own_uid))
        .map(|entry| entry.path())
        .filter(|path| is_stale(path))
        .collect();
    stale.sort();
    stale
}

fn is_stale(folder: &Path) -> bool {
    if folder.join(KEEP).exists() {
        return false;
    }
    match fs::read_to_string(folder.join(OWNER)) {
        Ok(line) => {
            let pid = line.split_whitespace().next().and_then(|word| word.parse().ok());
            pid.and_then(owner_line).is_none_or(|running| running != line)
        }
        Err(_) => fs::metadata(folder).and_then(|metadata| metadata.modified()).is_ok_and(|at| {
            SystemTime::now().duration_since(at).is_ok_and(|age| age > OWNERLESS_AFTER)
        }),
    }
}

/// The process's id and start time, which together are never used twice; `None` if there is no such process.
fn owner_line(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything, so count from its end.
    let (_, behind_name) = stat.rsplit_once(')')?;
    let started = behind_name.split_whitespace().nth(19)?;
    Some(format!("{pid} {started}\n"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A demo folder for a test of something else.
    pub(crate) fn folder() -> Scratch {
        Scratch::create_in(&std::env::temp_dir().canonicalize().unwrap(), false).unwrap()
    }

    #[test]
    fn a_folder_is_removed_at_the_end_and_kept_when_asked() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::create_in(parent.path(), false).unwrap();
        let path = scratch.path().to_path_buf();
        fs::create_dir_all(path.join("deep/er")).unwrap();
        fs::write(path.join("deep/er/file"), "x").unwrap();
        scratch.clean_up().unwrap();
        assert!(!path.exists());

        let kept = Scratch::create_in(parent.path(), true).unwrap();
        let path = kept.path().to_path_buf();
        kept.clean_up().unwrap();
        assert!(path.exists());
    }

    #[test]
    fn only_folders_of_dead_demos_are_stale() {
        let parent = tempfile::tempdir().unwrap();
        let folder = |name: &str, owner: Option<String>, keep: bool| {
            let path = parent.path().join(format!("{PREFIX}{name}"));
            fs::create_dir(&path).unwrap();
            if let Some(line) = owner {
                fs::write(path.join(OWNER), line).unwrap();
            }
            if keep {
                fs::write(path.join(KEEP), "").unwrap();
            }
            path
        };
        let mut child = Command::new("/bin/sh").arg("-c").arg("exit 0").spawn().unwrap();
        let dead = owner_line(child.id()).unwrap();
        child.wait().unwrap();
        let ours = owner_line(std::process::id()).unwrap();
        let reused = format!("{} 1\n", std::process::id());

        let stale =
            [folder("a-dead", Some(dead.clone()), false), folder("b-reused", Some(reused), false)];
        folder("c-alive", Some(ours), false);
        folder("d-dead-but-kept", Some(dead), true);
        folder("e-just-made", None, false);
        fs::create_dir(parent.path().join("somebody-elses")).unwrap();

        assert_eq!(stale_folders(parent.path()), stale);
        for path in &stale {
            clean(path).unwrap();
            assert!(!path.exists());
        }
        assert_eq!(stale_folders(parent.path()), [] as [PathBuf; 0]);
    }

    #[test]
    fn what_names_the_folder_is_stopped_and_nobody_else() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = Scratch::create_in(parent.path(), false).unwrap();
        let postgres = scratch.path().join(POSTGRES);
        fs::create_dir(&postgres).unwrap();
        let reads = |file: &Path, name: &str| {
            let child = Command::new("tail").arg("-f").arg(file).stdout(Stdio::null()).spawn();
            let child = child.unwrap();
            fs::write(postgres.join(format!("{name}.pid")), format!("{}\n", child.id())).unwrap();
            child
        };
        let mut pooler = reads(&scratch.path().join(OWNER), "pooler");
        let mut stranger = reads(Path::new("/dev/null"), "stranger");
        scratch.clean_up().unwrap();
        let ended = pooler.try_wait();
        let stays = stranger.try_wait();
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert!(ended.unwrap().is_some());
        assert_eq!(stays.unwrap(), None);
    }

    #[test]
    fn the_folder_goes_when_the_demo_is_killed() {
        // The shell's pipe closing is all it sees of that; close it without the rest of a good ending.
        let parent = tempfile::tempdir().unwrap();
        let Scratch { path, mut cleaner } = Scratch::create_in(parent.path(), false).unwrap();
        assert!(path.exists());
        drop(cleaner.stdin.take());
        cleaner.wait().unwrap();
        assert!(!path.exists());
    }
}

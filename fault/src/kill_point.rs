//! Kill points: a process told to die at a named site does, at once and without a last word to its peers.
//!
//! `HOLDFAST_KILL_AT=site` or `site:n` (the n-th time, from 1) is read when the first site is reached. `HOLDFAST_KILL_FILE=path` names a
//! file that may hold the same words and is looked at again and again, so that a process can be told while it runs, and told otherwise;
//! of several processes that share the file, the one that renames it to `path.hit` dies. Before it aborts, a process says which site it
//! was, on standard error. With the word `stop` before the site it stands still there (SIGSTOP) until somebody lets it go on, so that
//! others can be killed while it is in the middle of something. With the word `fail` what it is about to do there fails, as it does on
//! a broken disk, where the site is one of [`may_fail`].

use std::io;

use crate::Site;

/// Whether this build has kill points.
pub const ARMED: bool = cfg!(any(debug_assertions, feature = "armed"));

/// The process is at `site`. Returns, unless it was told to die here.
#[cfg(not(any(debug_assertions, feature = "armed")))]
#[inline(always)]
pub fn reached(_site: Site) {}

/// The process is at `site`. Returns, unless it was told to die here.
#[cfg(any(debug_assertions, feature = "armed"))]
#[inline]
pub fn reached(site: Site) {
    drop(may_fail(site));
}

/// As [`reached`], before something is made durable.
/// # Errors
/// EIO, if the process was told that this fails.
#[cfg(not(any(debug_assertions, feature = "armed")))]
#[inline(always)]
pub fn may_fail(_site: Site) -> io::Result<()> {
    Ok(())
}

/// As [`reached`], before something is made durable.
/// # Errors
/// EIO, if the process was told that this fails.
#[cfg(any(debug_assertions, feature = "armed"))]
#[inline]
pub fn may_fail(site: Site) -> io::Result<()> {
    armed::plan().map_or(Ok(()), |plan| plan.reached(site))
}

#[cfg(any(debug_assertions, feature = "armed"))]
mod armed {
    use std::{
        fs,
        io::{self, Write as _},
        path::PathBuf,
        sync::{Mutex, OnceLock},
        time::{Duration, Instant},
    };

    use crate::Site;

    /// Between two looks at the file.
    pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);

    pub(super) struct Plan {
        file: Option<PathBuf>,
        now: Mutex<Now>,
    }

    /// What happens at the site.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Act {
        Die,
        Stop,
        Fail,
    }

    struct Now {
        order: Option<(Act, Site, u64)>,
        /// What the file said when it was looked at last.
        words: Option<String>,
        looked: Option<Instant>,
    }

    /// What the environment said, if it said anything.
    pub(super) fn plan() -> Option<&'static Plan> {
        static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
        PLAN.get_or_init(|| {
            let file = std::env::var_os("HOLDFAST_KILL_FILE").map(PathBuf::from);
            let order = std::env::var("HOLDFAST_KILL_AT").ok().map(|words| {
                parse(&words).unwrap_or_else(|| panic!("HOLDFAST_KILL_AT={words} is no kill point"))
            });
            (file.is_some() || order.is_some()).then(|| Plan::of(file, order))
        })
        .as_ref()
    }

    /// `site` or `site:n`, and `stop ` or `fail ` before it.
    pub(super) fn parse(words: &str) -> Option<(Act, Site, u64)> {
        let words = words.trim();
        let (act, words) = match words.split_once(' ') {
            Some(("stop", words)) => (Act::Stop, words),
            Some(("fail", words)) => (Act::Fail, words),
            Some(_) => return None,
            None => (Act::Die, words),
        };
        let (name, times) = words.split_once(':').unwrap_or((words, "1"));
        let site = Site::named(name)?;
        let may = act != Act::Fail || site == Site::DiskBeforeSync;
        Some((act, site, times.parse().ok().filter(|&times| may && times > 0)?))
    }

    impl Plan {
        pub(super) fn of(file: Option<PathBuf>, order: Option<(Act, Site, u64)>) -> Self {
            Self { file, now: Mutex::new(Now { order, words: None, looked: None }) }
        }

        /// What is ordered once the file may be looked at again.
        #[cfg(test)]
        pub(super) fn order_after(&self, pause: Duration) -> Option<(Act, Site, u64)> {
            std::thread::sleep(pause);
            let mut now = self.now.lock().expect("no holder panics");
            self.look(&mut now);
            now.order
        }

        pub(super) fn reached(&self, site: Site) -> io::Result<()> {
            let mut now = self.now.lock().expect("no holder panics");
            self.look(&mut now);
            let Some((act, wanted, left)) = &mut now.order else { return Ok(()) };
            if *wanted != site {
                return Ok(());
            }
            *left -= 1;
            if *left > 0 {
                return Ok(());
            }
            let act = *act;
            now.order = None;
            if self.claim() {
                match act {
                    Act::Die => die(site),
                    Act::Stop => stop(site),
                    // EIO
                    Act::Fail => return Err(io::Error::from_raw_os_error(5)),
                }
            }
            Ok(())
        }

        /// Whether it falls to this process: it does where the order came by environment, or the file is still there.
        fn claim(&self) -> bool {
            let Some(file) = &self.file else { return true };
            fs::rename(file, file.with_extension("hit")).is_ok()
        }

        fn look(&self, now: &mut Now) {
            let Some(file) = &self.file else { return };
            if now.looked.is_some_and(|looked| looked.elapsed() < LOOK_AGAIN) {
                return;
            }
            now.looked = Some(Instant::now());
            // An order that is withdrawn, or another one, ends the one before; the same goes on counting.
            let words = fs::read_to_string(file).ok();
            if words != now.words {
                now.order = words.as_deref().and_then(parse);
                now.words = words;
            }
        }
    }

    /// By the program `kill`, which stops every thread of this process before it ends.
    fn stop(site: Site) {
        let _ = writeln!(std::io::stderr(), "kill point {} reached: stopping", site.name());
        let own = std::process::id().to_string();
        let told = std::process::Command::new("kill").args(["-STOP", &own]).status();
        assert!(told.is_ok_and(|status| status.success()), "kill -STOP {own}");
    }

    fn die(site: Site) -> ! {
        // Nobody may be reading; that is no reason to live.
        let _ = writeln!(std::io::stderr(), "kill point {} reached: aborting", site.name());
        std::process::abort()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        armed::{Act, LOOK_AGAIN, Plan, parse},
        *,
    };

    #[test]
    fn an_order_names_a_site_and_how_many_times_it_is_passed() {
        assert_eq!(parse("log-sealed"), Some((Act::Die, Site::LogSealed, 1)));
        assert_eq!(parse(" agent-answered:3\n"), Some((Act::Die, Site::AgentAnswered, 3)));
        assert_eq!(parse("stop router-decided"), Some((Act::Stop, Site::RouterDecided, 1)));
        assert_eq!(parse("fail disk-before-sync:7"), Some((Act::Fail, Site::DiskBeforeSync, 7)));
        for bad in [
            "",
            "log-sealed:0",
            "log-sealed:x",
            "log-sealed:",
            "somewhere",
            "stop",
            "stop ",
            "halt log-sealed",
            "fail log-sealed",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_order_that_is_withdrawn_is_let_go_of_and_a_later_one_is_read() {
        let file = std::env::temp_dir().join(format!("holdfast-order-{}", std::process::id()));
        let plan = Plan::of(Some(file.clone()), None);
        let ordered = || plan.order_after(LOOK_AGAIN);
        std::fs::write(&file, "log-sealed:3").unwrap();
        assert_eq!(ordered(), Some((Act::Die, Site::LogSealed, 3)));
        plan.reached(Site::LogSealed).unwrap();
        assert_eq!(ordered(), Some((Act::Die, Site::LogSealed, 2)), "it goes on counting");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(ordered(), None);
        std::fs::write(&file, "log-before-write:2").unwrap();
        assert_eq!(ordered(), Some((Act::Die, Site::LogBeforeWrite, 2)));
        std::fs::remove_file(&file).unwrap();
    }

    #[test]
    fn what_is_told_to_fail_fails_once_and_at_its_time() {
        let plan = Plan::of(None, parse("fail disk-before-sync:2"));
        let fails = |site| plan.reached(site).is_err_and(|fault| fault.raw_os_error() == Some(5));
        let passed =
            [Site::DiskBeforeSync, Site::LogSealed, Site::DiskBeforeSync, Site::DiskBeforeSync];
        assert_eq!(passed.map(fails), [false, false, true, false]);
    }

    #[test]
    fn nobody_dies_who_was_told_nothing() {
        assert!(std::env::var_os("HOLDFAST_KILL_AT").is_none(), "this test must not be told");
        for site in Site::ALL {
            reached(*site);
        }
    }
}

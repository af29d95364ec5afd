//! What `holdfast demo` can be told on the command line.

use std::path::PathBuf;
use std::time::Duration;

/// Shows the whole house at work on this machine: three coordinators, four PostgreSQL servers with a bank's deposit
/// module each, transfers at full speed, a leader killed in between, and an audit of every account at the end.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Stop after so many transfers instead of after --duration.
    #[arg(long, value_name = "N", conflicts_with = "duration",
          value_parser = clap::value_parser!(u64).range(1..=TRANSFERS_MAX))]
    pub(crate) transfers: Option<u64>,

    /// How long transfers run, for example 20s, 2m or 1500ms.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_duration)]
    pub(crate) duration: Duration,

    /// Transfers under way at once.
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) clients: u32,

    /// Accounts to open, with 1,000.00 EUR each.
    #[arg(long, value_name = "N", default_value_t = 2_000,
          value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) accounts: u32,

    /// Raft groups of the coordinators; their leaders are on different nodes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) groups: u32,

    /// Mutual TLS between all roles, with certificates that are made for this run.
    #[arg(long)]
    pub(crate) tls: bool,

    /// What to kill while transfers run; may be given several times, spread evenly over the run. [default: leader]
    #[arg(long, value_name = "WHAT", value_enum)]
    pub(crate) kill: Vec<KillTarget>,

    /// Play the transfers of an AMLSim folder (nodes.csv, transactions.csv) instead of random ones.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["transfers", "duration", "accounts"])]
    pub(crate) replay: Option<PathBuf>,

    /// With --replay: one transfer at a time, in file order, each to its end before the next.
    #[arg(long, requires = "replay")]
    pub(crate) serial: bool,

    /// Write the closing balance of every account to FILE, as `nodeid,balance_minor`.
    #[arg(long, value_name = "FILE")]
    pub(crate) balances_out: Option<PathBuf>,

    /// Write the report to FILE, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,

    /// Leave the folder with data, logs and configuration, and the servers' data, for a look afterwards.
    #[arg(long)]
    pub(crate) keep: bool,

    /// The report on standard output as JSON, progress on standard error.
    #[arg(long)]
    pub(crate) json: bool,

    /// Makes accounts and amounts the same as in another run with this seed. [default: drawn]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

/// Transfers in one run: the audit keeps one small record of each in memory.
pub(crate) const TRANSFERS_MAX: u64 = 5_000_000;

/// What a run may lose in the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KillTarget {
    /// The coordinator that leads.
    Leader,
    /// A coordinator that follows.
    Follower,
    /// One bank process.
    Agent,
    /// One PostgreSQL server, stopped at once without a checkpoint.
    Postgres,
    /// All three coordinators together.
    AllCoordinators,
    /// Nothing.
    None,
}

impl KillTarget {
    /// The word for it on the command line and in the report.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Agent => "agent",
            Self::Postgres => "postgres",
            Self::AllCoordinators => "all-coordinators",
            Self::None => "none",
        }
    }
}

impl DemoArgs {
    /// The kills to make, in order: one leader where nothing was said, none where `none` was.
    pub(crate) fn kills(&self) -> Vec<KillTarget> {
        if self.kill.is_empty() {
            return vec![KillTarget::Leader];
        }
        self.kill.iter().copied().filter(|target| *target != KillTarget::None).collect()
    }
}

/// Reads `20s`, `2m`, `1500ms` or `1h`; a bare number is seconds. From one second to one hour.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} is no time; write 20s, 2m or 1500ms"))?;
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        other => return Err(format!("{other:?} is no unit of time; use ms, s, m or h")),
    };
    let total_ms = number.checked_mul(unit_ms).ok_or("too long; at most 1h")?;
    if !(1_000..=3_600_000).contains(&total_ms) {
        return Err(format!("{text} is outside 1s to 1h"));
    }
    Ok(Duration::from_millis(total_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn parse(words: &[&str]) -> Result<DemoArgs, clap::Error> {
        Line::try_parse_from(std::iter::once(&"demo").chain(words)).map(|line| line.demo)
    }

    #[test]
    fn durations_are_humane_and_bounded() {
        assert_eq!(parse_duration("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(parse_duration("20"), Ok(Duration::from_secs(20)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "s", "0s", "2h", "5 fortnights", "-1s", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn one_leader_dies_unless_something_else_is_said() {
        assert_eq!(parse(&[]).unwrap().kills(), [KillTarget::Leader]);
        assert_eq!(parse(&["--kill", "none"]).unwrap().kills(), []);
        assert_eq!(
            parse(&["--kill", "all-coordinators", "--kill", "agent"]).unwrap().kills(),
            [KillTarget::AllCoordinators, KillTarget::Agent]
        );
        assert!(parse(&["--kill", "everything"]).is_err());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        assert!(parse(&["--transfers", "5", "--duration", "5s"]).is_err());
        assert!(parse(&["--serial"]).is_err());
        assert!(parse(&["--replay", "x", "--accounts", "500"]).is_err());
        assert!(parse(&["--replay", "x", "--serial"]).is_ok());
        assert!(parse(&["--clients", "0"]).is_err());
    }
}

//! A coordinator whose disk is taken away for a drill: it starts on an empty one, and takes the old one back if nobody has it
//! replaced in time.
//!
//! The old directory is moved aside and never deleted. As long as the cluster has not recorded the new one, the old one is still the
//! member, so that going back to it leaves nothing of the drill behind. Once the new one has its vote, the old one is kept under
//! another name, for people to remove: a member is its directory, and that one is a member no more.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use holdfast_coordinator::Coordinator;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::{Instant, sleep};

use super::door;

/// Where the old directory is; the process that starts on an empty disk reads it.
const LOST: &str = "HOLDFAST_DRILL_LOST";
/// How long it waits to be replaced, ms.
const LOST_MS: &str = "HOLDFAST_DRILL_LOST_MS";
/// Between two looks at the members.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Starts a process again on an empty disk: `$1` is the number of the one that ends, `$2` how long it stays dead, seconds, `$3` the
/// directory, `$4` how long the new one waits, ms; then the words it was started with. A directory that cannot be moved aside is
/// left where it is.
const LOSE: &str = r#"pid=$1; dead=$2; data=$3; wait_ms=$4; shift 4
await_end "$pid"
sleep "$dead"
lost="$data.lost-$pid"
if mv "$data" "$lost"; then
  export HOLDFAST_CLUSTER_JOIN=true HOLDFAST_DRILL_LOST="$lost" HOLDFAST_DRILL_LOST_MS="$wait_ms"
fi
exec "$@""#;
/// Starts a process again on its old disk: `$1` is the number of the one that ends, `$2` is not used, `$3` the directory, `$4` the
/// old one.
const TAKE_BACK: &str = r#"pid=$1; data=$3; lost=$4; shift 4
await_end "$pid"
mv "$data" "$data.empty-$pid" && mv "$lost" "$data"
unset HOLDFAST_CLUSTER_JOIN HOLDFAST_DRILL_LOST HOLDFAST_DRILL_LOST_MS
exec "$@""#;

/// Leaves a shell behind that starts this process again on an empty disk, `dead` after its end; it waits for `limit` to be replaced.
/// # Errors
/// The shell cannot be started.
pub(super) fn lose_later(data: &Path, dead: Duration, limit: Duration) -> anyhow::Result<()> {
    let mut shell = door::guard(LOSE, dead);
    shell.arg(data).arg(limit.as_millis().to_string());
    leave_behind(shell)
}

fn take_back_later(data: &Path, lost: &Path) -> anyhow::Result<()> {
    let mut shell = door::guard(TAKE_BACK, Duration::ZERO);
    shell.arg(data).arg(lost);
    leave_behind(shell)
}

/// With the same standard input: where that is a pipe from a program that is gone by then, the new process ends at once.
fn leave_behind(mut shell: Command) -> anyhow::Result<()> {
    shell.arg(std::env::current_exe().context("finding our own program")?);
    shell.args(std::env::args_os().skip(1)).stdout(Stdio::inherit());
    shell.spawn().context("starting /bin/sh, which would start this process again")?;
    Ok(())
}

/// On a process that was started on an empty disk: watches until it has its vote, or takes the old disk back.
pub(crate) fn watch(coordinator: &Coordinator) {
    let Some(lost) = std::env::var_os(LOST).map(PathBuf::from).filter(|lost| lost.is_dir()) else {
        return;
    };
    let limit_ms = std::env::var(LOST_MS).ok().and_then(|ms| ms.parse().ok()).unwrap_or(0);
    let coordinator = coordinator.clone();
    tokio::spawn(async move {
        if let Err(error) = wait_or_go_back(&coordinator, &lost, limit_ms).await {
            tracing::error!(%error, lost = %lost.display(), "a drill took this node's disk and it cannot be taken back");
        }
    });
}

async fn wait_or_go_back(
    coordinator: &Coordinator,
    lost: &Path,
    limit_ms: u64,
) -> anyhow::Result<()> {
    let data = &coordinator.config().node.data_dir;
    tracing::warn!(lost = %lost.display(), limit_ms, "a drill took this node's disk; it waits to be replaced");
    let until = Instant::now() + Duration::from_millis(limit_ms);
    while seat(coordinator) != Seat::Voter {
        // A learner was taken in under its new directory: the old one is a member no more, and only people go on from here.
        if Instant::now() >= until && seat(coordinator) == Seat::None {
            take_back_later(data, lost)?;
            tracing::warn!("nobody had this node replaced in time; it takes its disk back");
            kill(Pid::this(), Signal::SIGKILL).context("ending this process")?;
        }
        sleep(LOOK_AGAIN).await;
    }
    let kept = lost.with_extension(format!("replaced-{}", std::process::id()));
    std::fs::rename(lost, &kept)?;
    tracing::warn!(kept = %kept.display(), "this node was replaced; its former directory is of no use any more");
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    None,
    Learner,
    Voter,
}

/// This node's place in the cluster, as its own logs say; an empty one knows of none until the leaders have taken it in. Its directory
/// holds every group: as soon as one has recorded the new one, the old one is a member of that no more; and before all have their
/// vote here, the node is not replaced.
fn seat(coordinator: &Coordinator) -> Seat {
    let seats = (0..coordinator.groups()).filter_map(|group| coordinator.status_in(group));
    together(seats.map(|status| {
        match status.members.iter().find(|seen| seen.member.node == status.node) {
            None => Seat::None,
            Some(member) if member.voter => Seat::Voter,
            Some(_) => Seat::Learner,
        }
    }))
}

/// The place in all groups, of the places in each.
fn together(seats: impl Iterator<Item = Seat>) -> Seat {
    let alike = |one: Seat, other: Seat| if one == other { one } else { Seat::Learner };
    seats.reduce(alike).unwrap_or(Seat::None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_out_until_one_group_has_it_and_in_when_all_have() {
        let of = |seats: &[Seat]| together(seats.iter().copied());
        assert_eq!(of(&[Seat::None, Seat::None, Seat::None]), Seat::None);
        assert_eq!(of(&[Seat::Voter, Seat::None, Seat::None]), Seat::Learner);
        assert_eq!(of(&[Seat::None, Seat::Voter, Seat::None]), Seat::Learner);
        assert_eq!(of(&[Seat::None, Seat::Learner]), Seat::Learner);
        assert_eq!(of(&[Seat::Voter, Seat::Learner, Seat::Voter]), Seat::Learner);
        assert_eq!(of(&[Seat::Voter, Seat::Voter]), Seat::Voter);
    }
}

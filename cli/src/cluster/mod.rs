//! `holdfast cluster`: look at the cluster, change its members, hand the leadership over, back up, take restore points, restore.

mod backup;
mod change;
mod restore_point;
mod status;

use std::{path::PathBuf, process::ExitCode};

use crate::{config::ConfigArgs, output::Output, tx::ClusterAddresses};

/// Looks at the cluster and changes it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast cluster status --output json
  holdfast cluster add 4 --raft 127.0.0.1:7702
  holdfast cluster replace 3
  holdfast cluster transfer --to 2
  holdfast cluster backup --to holdfast-2026-11-28.backup
  holdfast cluster restore-point nightly --to nightly.backup --sources config/router.toml")]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Ask every node for its role, term, log, load and state hash
    #[command(after_help = "\
Examples:
  holdfast cluster status
  holdfast cluster status --coordinator 127.0.0.1:7411 --output json

Exit codes: 0 well; 1 no leader, a node without answer, a learner, or states that differ.")]
    Status,
    /// Make a running, empty node a member: learner, caught up, voter
    #[command(after_help = "\
Examples:
  holdfast cluster add 4 --raft 127.0.0.1:7702
  holdfast cluster add 4 --raft 127.0.0.1:7702 --learner

Start the node before, with an empty directory and cluster.join = true. The command may be repeated; it goes on where it was.")]
    Add {
        /// The node's number
        node: u64,
        /// Where it listens for peers
        #[arg(long, value_name = "HOST:PORT")]
        raft: Option<String>,
        /// Leave it a learner: it receives the log and has no vote
        #[arg(long)]
        learner: bool,
    },
    /// Take a node out of the cluster
    #[command(after_help = "\
Examples:
  holdfast cluster remove 3

If the node leads, the leadership is handed over first. Stop the node afterwards. What would cost the quorum is refused.")]
    Remove {
        /// The node's number
        node: u64,
    },
    /// Replace a member: by an empty directory under the same number, or by another node
    #[command(after_help = "\
Examples:
  holdfast cluster replace 3
  holdfast cluster replace 3 --with 4 --raft 127.0.0.1:7702

The first: node 3 lost its disk and runs again, empty, with cluster.join = true. It is removed, added, caught up, and given its vote.
The second: node 4 catches up as a learner and then takes the vote of node 3 in one change.")]
    Replace {
        /// The number of the member that goes
        node: u64,
        /// The number of the node that comes; the same if it is not given
        #[arg(long, value_name = "NODE")]
        with: Option<u64>,
        /// Where that node listens for peers; where the former did, if it is not given
        #[arg(long, value_name = "HOST:PORT")]
        raft: Option<String>,
    },
    /// Have another node lead
    #[command(
        after_help = "Examples:\n  holdfast cluster transfer\n  holdfast cluster transfer --to 2\n  holdfast cluster transfer --group 3 --to 2\n\nWhere there are several groups, their leaders are spread over the nodes; behind this command they stay where they are for ten minutes."
    )]
    Transfer {
        /// The node's number; whoever holds most of the log, if it is not given
        #[arg(long, value_name = "NODE")]
        to: Option<u64>,
        /// The Raft group
        #[arg(long, default_value_t = 0)]
        group: u32,
    },
    /// Write the state of a node into a file, and verify it
    #[command(after_help = "\
Examples:
  holdfast cluster backup --to holdfast.backup
  holdfast cluster backup --to holdfast.backup --coordinator 127.0.0.1:7501

The node whose address is given first is asked; followers serve as well as the leader.")]
    Backup {
        /// The file; it must not exist
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Take a restore point: of every source in its log, and of the coordinators as a backup, all of one state
    #[command(after_help = "\
Examples:
  holdfast cluster restore-point nightly --to nightly.backup --sources config/router.toml

Commits are held for a moment, and go on. Each source writes a point named NAME-TIME into its write-ahead log, by the accounts in the router's
configuration; its archiving must be on. Beside FILE lies FILE.points.json: what to recover each source to. Restore all of them, or none.")]
    RestorePoint {
        /// Its name, to which the time is added: 1 to 49 of A-Z a-z 0-9 . _ -
        #[arg(value_parser = restore_point::name)]
        name: String,
        /// The file of the backup; it must not exist
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// A router's configuration, which names every source
        #[arg(long, value_name = "ROUTER.toml")]
        sources: PathBuf,
        /// How long commits may be held at most, ms
        #[arg(long, value_name = "MS", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        hold_ms: u32,
    },
    /// Check a backup: its checksums, every record in it, the hash of the state. Needs no running node
    #[command(after_help = "Examples:\n  holdfast cluster verify holdfast.backup")]
    Verify {
        /// The file
        file: PathBuf,
    },
    /// Make the directory of a first node out of a backup: the beginning of a new founding
    #[command(after_help = "\
Examples:
  holdfast cluster restore holdfast.backup --config config/coordinator.toml --data-dir /var/lib/holdfast/restored

Then start that node, start the others empty with cluster.join = true, and add them: holdfast cluster add. Nodes of the former cluster
are turned away.")]
    Restore {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
        /// The directory, empty or missing (node.data_dir)
        #[arg(long, value_name = "DIRECTORY")]
        data_dir: Option<String>,
    },
}

/// Runs the chosen subcommand.
/// # Errors
/// What went wrong, for people; it becomes a non-zero exit code.
pub(crate) async fn run(args: ClusterArgs, output: Output) -> anyhow::Result<ExitCode> {
    let ClusterArgs { cluster, command } = args;
    match command {
        ClusterCommand::Status => status::run(&cluster.client()?, &cluster.addresses, output).await,
        ClusterCommand::Add { node, raft, learner } => {
            let change =
                change::Changing::new(cluster.client()?, cluster.patience_ms, output).await?;
            change.add(node, raft, learner).await
        }
        ClusterCommand::Remove { node } => {
            let change =
                change::Changing::new(cluster.client()?, cluster.patience_ms, output).await?;
            change.remove(node).await
        }
        ClusterCommand::Replace { node, with, raft } => {
            let change =
                change::Changing::new(cluster.client()?, cluster.patience_ms, output).await?;
            change.replace(node, with, raft).await
        }
        ClusterCommand::Transfer { to, group } => {
            let change =
                change::Changing::new(cluster.client()?, cluster.patience_ms, output).await?;
            change.transfer(to, group).await
        }
        ClusterCommand::Backup { to } => {
            backup::take(&cluster.client()?, &cluster.addresses, &to, output).await
        }
        ClusterCommand::RestorePoint { name, to, sources, hold_ms } => {
            let client = cluster.client()?;
            restore_point::take(&client, name, &to, &sources, hold_ms, output).await
        }
        ClusterCommand::Verify { file } => backup::verify(file, output).await,
        ClusterCommand::Restore { file, config, data_dir } => {
            backup::restore(&file, &config, data_dir, output).await
        }
    }
}

//! A participant that does nothing: it answers every call at once, so that what is measured is the coordinator.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use holdfast_tcc_agent::{Answer, Asked, Handler, ServeConfig, Status, serve as serve_calls};
use tokio_util::sync::CancellationToken;

use super::{secure, submission::SERVICES, worker::obey};
use crate::otlp::{Traces, Who};

/// Calls under way on one session: as many transactions as the bench ever has, and room.
const CREDIT: u32 = 4_096;

/// Participants that answer at once, in one process.
#[derive(Debug, clap::Args)]
pub(crate) struct ParticipantArgs {
    /// gRPC address of a coordinator node
    #[arg(long = "coordinator", required = true)]
    coordinators: Vec<String>,
    /// The folder of an authority with a certificate of these participants
    #[arg(long)]
    certs: Option<PathBuf>,
    /// Where spans go
    #[arg(long, default_value = "")]
    collector: String,
}

struct Idle;

impl Handler for Idle {
    fn handle(&self, asked: Vec<Asked>) {
        for one in asked {
            one.reply.answer(Answer::Done);
        }
    }
}

/// Serves until standard input ends. Each line is answered with whether all sessions are open.
/// # Errors
/// An address is none.
pub(crate) async fn serve(args: ParticipantArgs) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let who = Who { role: "agent", instance: "idle".to_owned() };
    let traces = Traces::start(&args.collector, &who)?;
    let credentials = args.certs.as_deref().map(secure::participant_credentials).transpose()?;
    let nodes = args.coordinators.len();
    let mut statuses = Vec::new();
    let mut sessions = tokio::task::JoinSet::new();
    for service in SERVICES {
        let status = Status::default();
        statuses.push(status.clone());
        let config = ServeConfig {
            credit: CREDIT,
            status,
            credentials: credentials.clone(),
            ..ServeConfig::new(service, args.coordinators.clone())
        };
        sessions.spawn(serve_calls(config, Idle, stop.clone()));
    }
    obey(async |_| Ok(statuses.iter().all(|status| status.connected_coordinators() == nodes)))
        .await?;
    stop.cancel();
    // Whoever asked is gone: so are the coordinators, or they will be.
    let _ = tokio::time::timeout(Duration::from_secs(1), sessions.join_all()).await;
    traces.end().await;
    Ok(ExitCode::SUCCESS)
}

//! A sidecar: `holdfast agent` beside one service.

use std::path::Path;

use crate::{
    Process, binary, http, ports,
    process::Program,
    until::{SOON, until},
};

/// A sidecar process.
#[derive(Debug)]
pub struct Agent {
    /// Health and metrics.
    pub http: String,
    /// The program.
    pub process: Process,
}

impl Agent {
    /// Starts `holdfast agent` for `service`, which listens at `app`, and waits until it is ready.
    /// # Errors
    /// It does not get ready.
    pub async fn start(
        folder: &Path,
        service: &str,
        app: &str,
        coordinators: &[String],
        environment: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let http = format!("127.0.0.1:{}", ports::free(1)?[0]);
        let app = format!("http://{app}");
        let mut arguments = vec!["agent", "--service", service, "--app", &app, "--http", &http];
        for address in coordinators {
            arguments.extend(["--coordinator", address]);
        }
        arguments.push("--dev-plaintext");
        let program = Program {
            name: format!("agent-{service}"),
            path: binary::holdfast()?.to_owned(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment,
            run_as: None,
            kill_when_dropped: true,
        };
        let mut agent = Self { http, process: Process::new(program, folder) };
        agent.process.start()?;
        agent.ready().await?;
        Ok(agent)
    }

    /// Waits until it has a session.
    /// # Errors
    /// It ended, or does not get ready.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let ready = until("the agent is ready", SOON, async || {
            let ended = self.process.check().err();
            let ready =
                http::get(&self.http, "/readyz").await.is_ok_and(|reply| reply.status == 200);
            ended.map(Err).or(ready.then_some(Ok(())))
        });
        ready.await?
    }
}

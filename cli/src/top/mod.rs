//! `holdfast top`: the cluster live in a terminal, read-only. It asks every node once a second and shows rates between two looks.

mod reading;
mod screen;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use tokio::time::{MissedTickBehavior, interval};

use self::reading::{Look, View};
use crate::{
    exit::Usage,
    output::{self, Output},
    tx::ClusterAddresses,
};

/// Watches the cluster: nodes, rates, latencies, what is open and what is stuck. Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast top
  holdfast top --coordinator 127.0.0.1:7411 --every-ms 500
  holdfast top --once --output json

Keys: q or Ctrl-C to leave.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Between two looks, ms
    #[arg(long, value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    every_ms: u64,
    /// Look twice, print the second look as text or JSON, and end
    #[arg(long)]
    once: bool,
}

/// How long a key press may go unseen.
const KEYS: Duration = Duration::from_millis(50);

/// Shows the cluster until a key ends it.
/// # Errors
/// Standard output is no terminal, or cannot be drawn on; with `--once`, no node answers.
pub(crate) async fn run(args: TopArgs, output: Output) -> anyhow::Result<ExitCode> {
    let (client, who) = (args.cluster.client()?, args.cluster.identity.options()?);
    let every = Duration::from_millis(args.every_ms);
    if args.once {
        let first = Look::take(&client, &who).await?;
        tokio::time::sleep(every).await;
        let second = Look::take(&client, &who).await?;
        let view = View::between(&first, &second);
        match output {
            Output::Table => output::print(&screen::text(&view))?,
            Output::Json => output::print_json(&screen::json(&view))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !std::io::stdout().is_terminal() {
        let text = "standard output is no terminal. Use `holdfast top --once`, for programs with --output json, or /metrics";
        return Err(Usage(text.to_owned()).into());
    }
    let mut terminal = ratatui::try_init()?;
    let watched = watch((&client, &who), every, &mut terminal).await;
    ratatui::restore();
    watched.map(|()| ExitCode::SUCCESS)
}

async fn watch(
    (client, who): (&holdfast_client::Client, &holdfast_client::ClientOptions),
    every: Duration,
    terminal: &mut ratatui::DefaultTerminal,
) -> anyhow::Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut keys = interval(KEYS);
    keys.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<Look> = None;
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                match Look::take(client, who).await {
                    Ok(look) => {
                        let view = View::between(last.as_ref().unwrap_or(&look), &look);
                        terminal.draw(|frame| screen::draw(frame, &view))?;
                        last = Some(look);
                    }
                    // It may come back; what was shown is old, and says so.
                    Err(error) => {
                        terminal.draw(|frame| screen::silence(frame, &error.to_string()))?;
                        last = None;
                    }
                }
            }
            _ = keys.tick() => {
                if wants_to_leave()? {
                    return Ok(());
                }
            }
        }
    }
}

fn wants_to_leave() -> anyhow::Result<bool> {
    while event::poll(Duration::ZERO)? {
        if let Event::Key(key) = event::read()? {
            let interrupted =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupted || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

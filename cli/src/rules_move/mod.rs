//! `holdfast rules move`: slots go to other sources while everybody reads and writes, step by step, each step decided in the coordinators' log.
//!
//! Rows of slots that move are copied to a stage at the source where they will lie, and keys that change meanwhile are noted by triggers; both are
//! compared by hashes. Then, for some slots at a time: rules that freeze them (routers let statements for them wait), the last changes, rows that
//! leave and arrive in two prepared transactions, and rules that place them anew, which are the decision. Why so: docs/adr, "slots move by two
//! prepared transactions and one entry".
//!
//! Deliberately absent: a journal of its own. What was decided stands in the rules; what was not is begun again.

mod copy;
mod relation;
mod side;
mod steps;
mod switch;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use holdfast_client::{Client, ClientError};
use holdfast_fault::{Site, reached};
use holdfast_route::{MoveId, SourceId, Topology};
use holdfast_shard_router::config::SourceConfig;
use serde_json::json;
use tokio::time::sleep;

use self::{
    copy::Pair,
    relation::Relation,
    side::Side,
    steps::{Leg, NoWay, Way},
    switch::{Moved, NotNow, Scribe, Take},
};
use crate::{
    config::{self, ConfigArgs, RouterRole},
    exit::{self, Usage},
    output::{self, Output},
    rules_sources::{SourcesArgs, Survey},
};

/// Of what is said with a move. The rest of what the log takes is for what each step did.
const REASON_BYTES_MAX: usize = 200;
/// Behind a step that was not taken, doubled each time.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a step that another process left is waited for.
const OTHERS_MAX: Duration = Duration::from_secs(90);
/// Between two looks at it.
const LOOK: Duration = Duration::from_millis(200);
/// Between two words about the progress.
const SAY_EVERY: Duration = Duration::from_secs(1);

/// Where slots go, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct MoveArgs {
    /// The rules to come, TOML: those in force with other shards for some slots
    file: PathBuf,
    /// A configuration of a router, whose accounts at the sources are used
    #[arg(long, value_name = "FILE")]
    sources: PathBuf,
    #[command(flatten)]
    say: Said,
    /// Look whether it can be done, and what would move; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Rows that are read of each table at each source when it is looked whether it can be done; 0: none
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(..=1_000_000_000))]
    rows_max: u64,
    /// Rows that go at once, with their slots frozen; a slot with more goes by itself
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    step_rows: u64,
    /// How long slots may be frozen; the coordinators thaw them after it
    #[arg(long, value_name = "MS", default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    pause_max_ms: u64,
    /// How often a step is tried
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    tries: u32,
}

/// Why, and by whom.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Said {
    /// Why, for the people who read it later; 1 to 200 bytes
    #[arg(long, value_parser = reason)]
    reason: String,
    /// Who acts, in mode dev-plaintext alone; it proves nothing and is recorded as dev:NAME
    #[arg(long = "as", value_name = "NAME", default_value = "")]
    dev_name: String,
}

fn reason(text: &str) -> Result<String, String> {
    match text.len() {
        1..=REASON_BYTES_MAX => Ok(text.to_owned()),
        bytes => Err(format!("{bytes} bytes, allowed are 1 to {REASON_BYTES_MAX}")),
    }
}

/// Why slots do not move, or not on.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    NoWay(#[from] NoWay),
    #[error("HF1029 nothing was moved: {0}")]
    InTheWay(String),
    #[error(
        "HF1030 source {name}: {words}. Slots that moved stay moved, the others lie where they lay; see to the source, and run the same command again"
    )]
    Source { name: String, words: String },
    #[error(
        "HF1031 rows are not as they were copied: {0}. They lie where they lay. Who writes past triggers there? Run the same command again"
    )]
    Differ(String),
    #[error("HF1032 given up: {0}")]
    GivenUp(String),
    #[error(
        "HF1033 it is not known whether {what} has moved: {cause}. What is prepared is ended as the coordinators' log says; run the same command again when they are reached"
    )]
    Undecided { what: String, cause: String },
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Words about long work, now and then.
struct Progress {
    output: Output,
    said: Option<Instant>,
}

impl Progress {
    /// Tells people, if nothing was told for a while.
    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.say(what);
        }
    }

    /// Tells people.
    fn say(&mut self, what: std::fmt::Arguments<'_>) {
        if self.output == Output::Table {
            exit::tell(&what);
        }
        self.said = Some(Instant::now());
    }
}

/// Moves slots until the rules in `file` are in force.
/// # Errors
/// What is in the way. Slots that moved stay moved; the same command goes on from there.
pub(crate) async fn run(
    client: Client,
    args: MoveArgs,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let text = config::read_text(&args.file).map_err(|mistake| Usage(mistake.to_string()))?;
    let file = args.file.display().to_string();
    let new = Topology::parse(&text)
        .map_err(|mistakes| Usage(holdfast_route::RuleMistakes { file, mistakes }.to_string()))?;
    if new.moving().is_some() {
        return Err(Usage(
            "[moving] is written by this command, not by hand. Take it out".to_owned(),
        )
        .into());
    }
    let sources = router_sources(&args.sources)?;
    let mut progress = Progress { output, said: None };
    let (epoch, now) = in_force(&client, &mut progress).await?;
    let way = Way::find(&now, &new, &text)?;
    let survey_args = SourcesArgs { sources: None, rows_max: args.rows_max };
    let survey = Survey::make(&[&now, &new], &survey_args, &args.sources).await?;
    if survey.is_in_the_way() {
        survey.tell_findings();
        return Err(Fault::InTheWay("what is told above is in the way".to_owned()).into());
    }
    if args.dry_run {
        return dry_run(&way, &survey, output);
    }
    let scribe = Scribe::new(client, epoch, args.say.clone());
    let mut mover = Mover { args, sources, way, scribe, progress, moved: Vec::new() };
    let ended = match mover.way.legs.is_empty() {
        true => mover.finish(&now, &text).await,
        false => mover.move_all(&text).await,
    };
    mover.tell(output, &ended)?;
    ended?;
    Ok(ExitCode::SUCCESS)
}

fn router_sources(file: &Path) -> anyhow::Result<Vec<SourceConfig>> {
    let inputs = ConfigArgs { config: Some(file.to_owned()), ..ConfigArgs::default() };
    Ok(config::load::<RouterRole>(&inputs.inputs(Vec::new()))?.config.router.sources)
}

/// The rules in force, as soon as no slot is frozen by a step that another process has left.
async fn in_force(client: &Client, progress: &mut Progress) -> Result<(u64, Topology), Fault> {
    // Where nobody is at all, waiting helps nobody.
    if let Err(nobody @ ClientError::Unreachable { .. }) = client.rules(0).await {
        return Err(nobody.into());
    }
    let begun = Instant::now();
    loop {
        let (epoch, now) = switch::read(&switch::heard(async || client.rules(0).await).await?)?;
        let Some(moving) = now.moving().filter(|moving| moving.is_frozen()) else {
            return Ok((epoch, now));
        };
        if begun.elapsed() > OTHERS_MAX {
            return Err(Fault::GivenUp(format!(
                "move {} holds its slots, and nobody thaws them",
                moving.id
            )));
        }
        progress.tell(format_args!("slots are frozen by move {}: waiting for its end", moving.id));
        sleep(LOOK).await;
    }
}

fn dry_run(way: &Way, survey: &Survey, output: Output) -> anyhow::Result<ExitCode> {
    let legs = way.legs.iter().map(|leg| {
        let slots: usize = leg.slots.values().map(BTreeSet::len).sum();
        json!({ "from": leg.from.as_str(), "to": leg.to.as_str(), "slots": slots })
    });
    match output {
        Output::Json => output::print_json(&json!({
            "dry_run": true,
            "legs": legs.collect::<Vec<_>>(),
            "survey": survey,
        }))?,
        Output::Table => output::print(&format!("{}\n\nNothing was done.", survey.text()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What moves.
struct Mover {
    args: MoveArgs,
    sources: Vec<SourceConfig>,
    way: Way,
    scribe: Scribe,
    progress: Progress,
    moved: Vec<Moved>,
}

impl Mover {
    async fn move_all(&mut self, text: &str) -> Result<(), Fault> {
        let mut progress = Progress { output: self.progress.output, said: None };
        self.scribe
            .all_known(|ms| {
                progress.tell(format_args!(
                    "the coordinator that leads does not know every router yet: up to {ms} ms"
                ));
            })
            .await?;
        // With the shards and sources of the rules to come, and every slot where it is.
        let begin = self.way.text(None).map_err(Fault::GivenUp)?;
        let rules = Topology::parse(&begin)
            .map_err(|_| Fault::GivenUp("the rules on the way are not readable".to_owned()))?;
        self.scribe.apply(&begin, "begins to move slots").await?;
        let legs = self.way.legs.clone();
        for leg in &legs {
            self.leg(leg, &rules).await?;
        }
        self.scribe.apply(text, "every slot has moved").await?;
        self.progress.say(format_args!("the rules are in force as epoch {}", self.scribe.epoch));
        Ok(())
    }

    /// Every slot is where it will be. Ends what an earlier move has left undone.
    async fn finish(&mut self, now: &Topology, text: &str) -> Result<(), Fault> {
        let Some(_left) = now.moving() else { return Err(NoWay::Nothing.into()) };
        for source in now.sources().keys() {
            let side = self.side(source).await?;
            self.nothing_prepared(&[&side]).await?;
            side.clean().await?;
        }
        self.scribe.apply(text, "every slot has moved").await
    }

    async fn side(&self, source: &SourceId) -> Result<Side, Fault> {
        let config = self.sources.iter().find(|config| *config.name == *source.as_str());
        let config = config.ok_or_else(|| {
            Fault::InTheWay(format!(
                "the router's configuration has no source {source}. Add it to [[sources.source]]"
            ))
        })?;
        Side::open(config).await
    }

    async fn leg(&mut self, leg: &Leg, rules: &Topology) -> Result<(), Fault> {
        let (from, to) = (self.side(&leg.from).await?, self.side(&leg.to).await?);
        self.nothing_prepared(&[&from, &to]).await?;
        let groups: BTreeSet<&str> = leg.slots.keys().map(|group| group.as_str()).collect();
        let tables = relation::tables(rules, &groups);
        let relations = from.relations(rules, &tables).await?;
        for (here, there) in relations.iter().zip(&to.relations(rules, &tables).await?) {
            if let Some(words) = here.unlike(there) {
                return Err(Fault::InTheWay(format!("source {}: {words}", leg.from)));
            }
        }
        let every = |make: fn(&Relation) -> String| relations.iter().map(make).collect::<String>();
        to.set_up(&every(Relation::stage_sql)).await?;
        from.set_up(&every(Relation::note_sql)).await?;
        let mut pair = Pair::new(from, to, relations, leg, rules.clone());
        let moved = self.leg_between(leg, &mut pair).await;
        // Where a source is lost there is nothing to be said to it; the next move takes away what is left.
        let (left, arrived) = (pair.from.clean().await, pair.to.clean().await);
        moved.and(left).and(arrived)
    }

    async fn leg_between(&mut self, leg: &Leg, pair: &mut Pair) -> Result<(), Fault> {
        let counts = pair.stage(&mut self.progress).await?;
        reached(Site::MoverCopied);
        pair.catch_up(&mut self.progress).await?;
        let all = pair.compare(&mut self.progress).await?;
        self.progress.say(format_args!(
            "{} rows are copied from {} to {}, and found the same (hash {:x})",
            all.rows, leg.from, leg.to, all.hash
        ));
        let steps = steps::steps(leg, &counts, self.args.step_rows);
        let stamp = format!("{:08x}", rand::random::<u32>());
        for (number, step) in steps.iter().enumerate() {
            for tries in 1.. {
                pair.catch_up(&mut self.progress).await?;
                let take = Take {
                    id: MoveId::parse(&format!("m-{stamp}-{number}-{tries}"))
                        .map_err(|wrong| Fault::GivenUp(wrong.to_string()))?,
                    leg,
                    step,
                    pause_max: Duration::from_millis(self.args.pause_max_ms),
                    tries,
                };
                match take.run(&mut self.way, pair, &mut self.scribe).await {
                    Ok(moved) => {
                        self.progress.say(format_args!(
                            "step {} of {}: {} slots of group {}, {} rows, from {} to {} in {} ms, epoch {}",
                            number + 1,
                            steps.len(),
                            step.slots.len(),
                            moved.group,
                            moved.rows,
                            moved.from,
                            moved.to,
                            moved.pause_ms,
                            moved.epoch
                        ));
                        self.moved.push(moved);
                        reached(Site::MoverStepped);
                        break;
                    }
                    Err(NotNow::Again(why)) if tries < self.args.tries => {
                        self.progress.say(format_args!("not yet: {why}"));
                        let pause = PAUSE.saturating_mul(1 << (tries - 1).min(16));
                        self.scribe.all_known(|_| {}).await?;
                        sleep(pause.min(PAUSE_MAX)).await;
                    }
                    Err(NotNow::Again(why)) => {
                        return Err(Fault::GivenUp(format!(
                            "after {tries} tries: {why}. Slots that moved stay moved, the others lie where they lay. Run the same command again, or with a longer --pause-max-ms"
                        )));
                    }
                    Err(NotNow::Fault(fault)) => return Err(fault),
                }
            }
        }
        Ok(())
    }

    /// Waits until what an earlier move has prepared is ended, as the log says, by this process or a router.
    async fn nothing_prepared(&mut self, sides: &[&Side]) -> Result<(), Fault> {
        let begun = Instant::now();
        loop {
            let mut left = None;
            for side in sides {
                for name in side.prepared().await? {
                    match self.scribe.fate(&name).await? {
                        Some(commit) => side.end(&name, commit).await?,
                        None => left = Some(format!("{name} is prepared at source {}", side.name)),
                    }
                }
            }
            let Some(left) = left else { return Ok(()) };
            if begun.elapsed() > OTHERS_MAX {
                return Err(Fault::GivenUp(format!(
                    "{left}, and no rules that are kept say what became of it. Compare its slots at both sources, then COMMIT or ROLLBACK PREPARED"
                )));
            }
            self.progress.tell(format_args!("{left}: waiting for its end"));
            sleep(LOOK).await;
        }
    }

    fn tell(&self, output: Output, ended: &Result<(), Fault>) -> anyhow::Result<()> {
        let rows: u64 = self.moved.iter().map(|moved| moved.rows).sum();
        let pause = self.moved.iter().map(|moved| moved.pause_ms).max().unwrap_or_default();
        match output {
            Output::Json => output::print_json(&json!({
                "epoch": self.scribe.epoch,
                "done": ended.is_ok(),
                "rows": rows,
                "pause_ms_max": pause,
                "steps": self.moved,
            })),
            Output::Table => {
                let table = self.moved.iter().map(|moved| {
                    vec![
                        moved.group.clone(),
                        crate::rules_plan::ranges(&moved.slots),
                        moved.from.clone(),
                        moved.to.clone(),
                        moved.rows.to_string(),
                        moved.hash.clone(),
                        moved.pause_ms.to_string(),
                        moved.epoch.to_string(),
                    ]
                });
                let head = [
                    "group",
                    "slots",
                    "from",
                    "to",
                    "rows",
                    "hash",
                    "pause ms",
                    "decided at epoch",
                ];
                if self.moved.is_empty() {
                    return Ok(());
                }
                output::print(&output::table(&head, table))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_move_is_taken_at_its_limit_and_refused_one_past_it() {
        for bytes in [1, REASON_BYTES_MAX] {
            assert!(reason(&"r".repeat(bytes)).is_ok(), "{bytes}");
        }
        for bytes in [0, REASON_BYTES_MAX + 1] {
            assert!(reason(&"r".repeat(bytes)).is_err(), "{bytes}");
        }
    }
}

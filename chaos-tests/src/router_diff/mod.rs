//! The differential: random statements through the real router over four databases, and on one PostgreSQL. The same rows, the same
//! effect, or a refusal.
//!
//! A *world* is a schema, rules and data, all drawn from the seed and the world's number. Each of its *sessions* is a connection to the
//! router beside one to the single database; what is said to one is said to the other, and the answers are compared: columns, rows, rows
//! affected, the SQLSTATE of an error. Statements go as simple queries and as extended ones, prepared once and executed several times, with
//! parameters as text and in binary, alone and in transactions with savepoints; rows are copied in and out. In some worlds a table's rows own
//! values of a lookup: what is unique over all shards is unique in the single database by a constraint. At the end of a world all rows are
//! compared, and each, with its entry, must lie on the shard of its key. What is drawn does not depend on what is answered, so that a seed and a
//! world's number repeat a difference.

mod ask;
mod copy;
mod owner;
mod session;
mod stage;
mod statement;
mod turn;
mod value;
mod wide;
mod world;
mod write;

use std::collections::BTreeMap;

use anyhow::Context as _;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use session::{Session, Turned};
use stage::Stage;
use turn::Turn;
use world::World;

/// How many databases the rows are spread over.
pub(crate) const SHARDS: usize = 4;
/// Statements before a new world is drawn.
const WORLD_STATEMENTS: u64 = 400;
/// Sessions of a world: servers pass from one to the other, and nothing of one may be seen by another.
const SESSIONS: usize = 3;
/// Differences that are told in full.
const TOLD_MAX: usize = 20;

/// What came of a run.
#[derive(Debug, Default)]
pub struct Difference {
    /// Statements carried out or refused.
    pub statements: u64,
    /// Statements whose answer or effect was another one.
    pub differences: u64,
    /// Statements refused.
    pub refused: u64,
    /// Of these, by the class of refusal.
    pub refused_by_class: BTreeMap<String, u64>,
    /// Statements by the class that was drawn, with how many of them were refused.
    pub by_kind: BTreeMap<&'static str, (u64, u64)>,
    /// For each class and kind, the first statement that was refused, and the router's words.
    pub refused_examples: BTreeMap<(String, &'static str), String>,
    /// Statements that both answered with the same error.
    pub errors: u64,
    /// Statements that went to more than one database.
    pub scattered: u64,
    /// Statements within transactions.
    pub in_transactions: u64,
    /// Statements that were executed again as they had been prepared.
    pub repeated: u64,
    /// The first differences, in words, with the world in which they were found.
    pub told: Vec<String>,
    /// For the first difference: rules, schema, and every statement since, in order.
    pub reproduce: Vec<String>,
}

/// Runs `statements` random statements drawn from `seed`, beginning with world number `first_world`.
/// # Errors
/// PostgreSQL's server programs are not installed, or a server does not do what it must for the run itself.
pub async fn run(statements: u64, seed: u64, first_world: u64) -> anyhow::Result<Difference> {
    let stage = Stage::set().await?;
    let mut found = Difference::default();
    let mut number = first_world;
    while found.statements < statements {
        // A world of its own draws, so that it can be repeated without those before it.
        let mut rng =
            StdRng::seed_from_u64(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let world = World::draw(&mut rng);
        let count = WORLD_STATEMENTS.min(statements - found.statements);
        one_world(&stage, &world, number, count, &mut rng, &mut found)
            .await
            .with_context(|| format!("world {number} of seed {seed}"))?;
        number += 1;
    }
    Ok(found)
}

async fn one_world(
    stage: &Stage,
    world: &World,
    number: u64,
    count: u64,
    rng: &mut StdRng,
    found: &mut Difference,
) -> anyhow::Result<()> {
    stage.make(world).await.context("making a world")?;
    // Without coordinators nothing is written to several shards at once: what is refused then has no effect.
    let router = stage.router(world, number % 4 != 3).await?;
    let mut sessions = Vec::new();
    for name in 0..SESSIONS {
        sessions.push(Session::open(stage, &router, name).await?);
    }
    let mut said = Vec::new();
    let mut differs = say(&mut sessions, world, count, rng, &mut said, found).await?;
    if differs.is_none()
        && let Some(how) = stage.compare(world).await?
    {
        found.differences += 1;
        differs = Some(format!("at the end of the world: {how}"));
    }
    if let Some(how) = differs {
        tell(found, world, number, &said, &how);
    }
    drop(sessions);
    router.stop().await
}

/// Says `count` statements, or as many as there are up to the first difference: what differs behind it may only be its consequence.
async fn say(
    sessions: &mut [Session<'_>],
    world: &World,
    count: u64,
    rng: &mut StdRng,
    said: &mut Vec<String>,
    found: &mut Difference,
) -> anyhow::Result<Option<String>> {
    let end = found.statements + count;
    let mut turn = Turn::fill(world, rng);
    loop {
        let left = usize::try_from(end - found.statements)?;
        let session = &mut sessions[rng.random_range(0..SESSIONS)];
        let turned = session.take(world, turn.at_most(left), said, found).await?;
        if let Turned::Differs(how) = turned {
            return Ok(Some(how));
        }
        if found.statements >= end {
            return Ok(None);
        }
        turn = Turn::draw(world, rng);
    }
}

fn tell(found: &mut Difference, world: &World, number: u64, said: &[String], how: &str) {
    if found.reproduce.is_empty() {
        found.reproduce.push(format!("-- the rules\n{}", world.rules_text()));
        found.reproduce.push(format!("-- on every database\n{}", world.schema()));
        found.reproduce.extend_from_slice(said);
    }
    if found.told.len() < TOLD_MAX {
        let last = said.last().map_or("", String::as_str);
        found.told.push(format!("world {number}: {last}\n  {how}"));
    }
}

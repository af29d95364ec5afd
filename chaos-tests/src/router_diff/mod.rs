//! The differential: random statements by way of the routing mind over four databases, and on one. The same rows, the same effect, or a refusal.
//!
//! A *world* is a schema, rules and data, all drawn from the seed. Each statement is planned by the mind, carried out on the databases that the plan
//! names, merged by the mind's merger, and compared with what one database answers. Statements go as simple queries (text) and as extended
//! ones (parameters and rows in binary). At the end of a world all tables are compared.

mod carry;
mod statement;
mod world;
mod write;

use std::collections::BTreeMap;

use anyhow::Context as _;
use rand::{SeedableRng as _, rngs::StdRng};

use crate::{Folder, Postgres};
use carry::Carried;
use world::World;

/// How many databases the rows are spread over.
pub(crate) const SHARDS: usize = 4;
/// Statements before a new world is drawn.
const WORLD_STATEMENTS: u64 = 400;
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
    pub refused_by_class: BTreeMap<&'static str, u64>,
    /// Statements by the class that was drawn, with how many of them were refused.
    pub by_kind: BTreeMap<&'static str, (u64, u64)>,
    /// Statements that both answered with an error.
    pub errors: u64,
    /// Statements that went to more than one database.
    pub scattered: u64,
    /// The first differences, in words.
    pub told: Vec<String>,
}

/// Runs `statements` random statements drawn from `seed`.
/// # Errors
/// PostgreSQL's server programs are not installed, or a server does not do what it must for the run itself.
pub async fn run(statements: u64, seed: u64) -> anyhow::Result<Difference> {
    let folder = Folder::make()?;
    let server = Postgres::start(folder.path()).await?;
    let mut names = vec!["one".to_owned()];
    names.extend((0..SHARDS).map(|shard| format!("s{shard}")));
    for name in &names {
        server.create(name).await?;
    }
    let mut clients = Vec::new();
    for name in &names {
        let client = server.connect(name).await?;
        client
            .batch_execute("SET synchronous_commit = off; SET client_min_messages = error")
            .await?;
        clients.push(client);
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let mut found = Difference::default();
    while found.statements < statements {
        let world = World::draw(&mut rng);
        world.make(&clients).await.context("making a world")?;
        let count = WORLD_STATEMENTS.min(statements - found.statements);
        one_world(&world, &clients, count, &mut rng, &mut found).await?;
    }
    Ok(found)
}

async fn one_world(
    world: &World,
    clients: &[tokio_postgres::Client],
    count: u64,
    rng: &mut StdRng,
    found: &mut Difference,
) -> anyhow::Result<()> {
    for _ in 0..count {
        let drawn = statement::draw(world, rng);
        let carried =
            carry::carry(world, clients, &drawn).await.with_context(|| drawn.sql.clone())?;
        found.statements += 1;
        let kind = found.by_kind.entry(drawn.kind).or_default();
        kind.0 += 1;
        match carried {
            Carried::Same { scattered } => found.scattered += u64::from(scattered),
            Carried::BothFailed => found.errors += 1,
            Carried::Refused(refused) => {
                kind.1 += 1;
                found.refused += 1;
                *found.refused_by_class.entry(refused.class.name()).or_default() += 1;
            }
            Carried::Differs(how) => tell(found, &drawn, &how),
        }
    }
    if let Some(how) = world.compare(clients).await? {
        found.differences += 1;
        if found.told.len() < TOLD_MAX {
            found.told.push(format!("at the end of a world: {how}"));
        }
    }
    Ok(())
}

fn tell(found: &mut Difference, drawn: &statement::Drawn, how: &str) {
    found.differences += 1;
    if found.told.len() < TOLD_MAX {
        let parameters: Vec<&str> =
            drawn.parameters.iter().map(|value| value.shown.as_str()).collect();
        found.told.push(format!("{} {parameters:?}\n  {how}", drawn.sql));
    }
}

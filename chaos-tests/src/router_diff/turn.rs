//! What is said to a session in one go: a statement, a setting, or a transaction with savepoints.

use rand::{Rng as _, rngs::StdRng};

use super::{
    statement::{self, Drawn, Use},
    value::KEYS,
    world::World,
};

/// Rows with which a world begins.
const FIRST_ROWS: usize = 60;

/// One go.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) steps: Vec<Step>,
}

/// One thing that is said.
#[derive(Debug)]
pub(super) enum Step {
    /// Counted and compared.
    Statement(Drawn),
    /// `BEGIN` and its like.
    Control(String),
}

impl Turn {
    /// The first rows.
    pub(super) fn fill(world: &World, rng: &mut StdRng) -> Self {
        let insert = |_| Step::Statement(statement::draw(world, rng, None, Use::First));
        Self { steps: (0..FIRST_ROWS).map(insert).collect() }
    }

    pub(super) fn draw(world: &World, rng: &mut StdRng) -> Self {
        let steps = match rng.random_range(0..40) {
            0 => vec![setting(rng)],
            1..=5 => transaction(world, rng),
            6 => sequence(world, rng),
            _ => vec![Step::Statement(statement::draw(world, rng, None, Use::Alone))],
        };
        Self { steps }
    }

    /// No more than so many statements; what opens and ends a transaction stays.
    pub(super) fn at_most(mut self, mut statements: usize) -> Self {
        self.steps.retain_mut(|step| match step {
            Step::Control(_) => true,
            Step::Statement(drawn) => {
                drawn.runs.truncate(statements);
                statements -= drawn.runs.len();
                !drawn.runs.is_empty()
            }
        });
        self
    }

    /// Whether it is one.
    pub(super) fn is_transaction(&self) -> bool {
        matches!(self.steps.first(), Some(Step::Control(sql)) if sql.starts_with("BEGIN"))
    }
}

/// A setting of the session, which no other may see, and which changes how values are written.
fn setting(rng: &mut StdRng) -> Step {
    let settings = [
        "SET DateStyle = 'SQL, DMY'",
        "SET DateStyle = 'German'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET TimeZone = 'America/New_York'",
        "SET extra_float_digits = 0",
        "SET bytea_output = 'escape'",
        "RESET DateStyle",
        "RESET ALL",
    ];
    Step::Control(settings[rng.random_range(0..settings.len())].to_owned())
}

/// One query of several statements. Where it has begun a transaction, that is ended behind it, whatever became of it.
fn sequence(world: &World, rng: &mut StdRng) -> Vec<Step> {
    let around = [["", ""], ["BEGIN", "COMMIT"], ["BEGIN", "ROLLBACK"], ["BEGIN", ""]];
    let around = around[rng.random_range(0..around.len())];
    let mut steps = vec![Step::Statement(statement::sequence(world, rng, around))];
    if !around[0].is_empty() {
        steps.push(Step::Control("COMMIT".to_owned()));
    }
    steps
}

/// A transaction about one key, mostly; one that fails is carried to its end all the same.
fn transaction(world: &World, rng: &mut StdRng) -> Vec<Step> {
    let focus = Some(rng.random_range(0..KEYS));
    let control = |sql: &str| Step::Control(sql.to_owned());
    let begin = ["BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"][rng.random_range(0..2)];
    let mut steps = vec![control(begin)];
    let mut saved = false;
    for _ in 0..rng.random_range(1..6) {
        match rng.random_range(0..10) {
            0 => {
                steps.push(control("SAVEPOINT s"));
                saved = true;
            }
            1 if saved => steps.push(control("ROLLBACK TO s")),
            2 if saved => {
                steps.push(control("RELEASE s"));
                saved = false;
            }
            3 => steps.push(control("SET LOCAL TimeZone = 'Europe/Paris'")),
            4 if rng.random_bool(0.3) => steps.push(setting(rng)),
            5 => {
                let end = ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN"][rng.random_range(0..2)];
                steps.push(control(end));
                saved = false;
            }
            _ => {}
        }
        steps.push(Step::Statement(statement::draw(world, rng, focus, Use::InTransaction)));
    }
    if saved && rng.random_bool(0.4) {
        steps.push(control("ROLLBACK TO SAVEPOINT s"));
    }
    steps.push(control(if rng.random_bool(0.75) { "COMMIT" } else { "ROLLBACK" }));
    steps
}

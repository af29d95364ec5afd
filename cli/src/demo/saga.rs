//! Sagas beside the load: in each round one over three shards that commits, and one whose last step is refused, so that the
//! steps before it are compensated in reverse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_client::{Client, ClientError, Outcome, Status, Submission, Wait};
use holdfast_ledger::Amount;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::payment;
use super::workload::Bank;

/// Rounds of one run.
const ROUNDS_MAX: u64 = 500;
/// Between rounds.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one Saga is pursued.
const PURSUE_MAX: Duration = Duration::from_secs(90);
/// More than any account of the demo has.
const TOO_MUCH_MINOR: i64 = 100_000_000;

/// What a Saga is meant to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Every step takes effect.
    Committed,
    /// The last step is refused; the others are undone, last first.
    Compensated,
}

/// A Saga that ended as it was meant to, as the books must show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Played {
    /// Its id.
    pub(crate) gid: String,
    /// How it ended.
    pub(crate) ending: Ending,
    /// Its steps in order: which account, and by how much it changes. The last of a compensated one never happened.
    pub(crate) steps: [(usize, i64); 3],
}

/// What all rounds came to.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Those that ended as they were meant to.
    pub(crate) played: Vec<Played>,
    /// The others, a sentence each.
    pub(crate) problems: Vec<String>,
}

impl Rounds {
    /// How many ended so.
    pub(crate) fn count(&self, ending: Ending) -> u64 {
        self.played.iter().filter(|saga| saga.ending == ending).count() as u64
    }

    /// Whether a Saga of this id ended as it was meant to.
    pub(crate) fn knows(&self, gid: &str) -> bool {
        self.played.iter().any(|saga| saga.gid == gid)
    }

    /// By how much each account changed, by place.
    pub(crate) fn effects(&self) -> BTreeMap<usize, i64> {
        let mut effects = BTreeMap::new();
        for saga in self.played.iter().filter(|saga| saga.ending == Ending::Committed) {
            for (place, delta) in saga.steps {
                *effects.entry(place).or_insert(0) += delta;
            }
        }
        effects
    }
}

/// Plays at least one round, then round after round until `stop`.
pub(crate) async fn play(
    bank: Arc<Bank>,
    client: Client,
    seed: u64,
    stop: CancellationToken,
) -> Rounds {
    let reserved = bank.reserved();
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS_MAX {
        for ending in [Ending::Committed, Ending::Compensated] {
            let saga = plan(&reserved, seed, round, ending);
            match pursue(&bank, &client, &saga).await {
                Ok(()) => rounds.played.push(saga),
                Err(problem) => rounds.problems.push(format!("Saga {}: {problem}", saga.gid)),
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = sleep(PAUSE) => {}
        }
    }
    rounds
}

/// Debits one account and credits two others; or debits, credits, and asks the third for more than it has. Rounds take
/// turns among the shards.
fn plan(reserved: &[Vec<usize>], seed: u64, round: u64, ending: Ending) -> Played {
    let turn = usize::try_from(round).expect("a few hundred");
    let account = |step: usize| {
        let shard = &reserved[(turn + step) % reserved.len()];
        shard[turn % shard.len()]
    };
    let (letter, amounts) = match ending {
        Ending::Committed => ('c', [-3, 1, 2]),
        Ending::Compensated => ('r', [-500, 500, -TOO_MUCH_MINOR]),
    };
    let steps = [0, 1, 2].map(|step| (account(step), amounts[step]));
    Played { gid: format!("demo-{seed:016x}-s{round}{letter}"), ending, steps }
}

fn submission(bank: &Bank, saga: &Played) -> Submission {
    let mut submission =
        Submission::saga().gid(saga.gid.clone()).wait(Wait::End).patience_ms(2_000);
    for (place, delta) in saga.steps {
        let amount =
            i64::try_from(delta.unsigned_abs()).ok().and_then(|minor| Amount::new(minor).ok());
        let amount = amount.expect("steps move small amounts and never nothing");
        let step = if delta < 0 { payment::debit } else { payment::credit };
        let participant = payment::participant(bank, place);
        submission = submission.branch(participant, step(bank, place, amount).to_payload());
    }
    submission
}

/// Submits until the end is known; an error is a sentence on what else came.
async fn pursue(bank: &Bank, client: &Client, saga: &Played) -> Result<(), String> {
    let since = Instant::now();
    loop {
        let answered = client.submit(submission(bank, saga)).await;
        match answered {
            Ok(answer) if answer.status().is_some_and(Status::is_final) => {
                let states: Vec<String> = answer
                    .transaction
                    .iter()
                    .flat_map(|known| known.branches.iter().map(|branch| branch.state.clone()))
                    .collect();
                return match (saga.ending, &answer.outcome) {
                    (Ending::Committed, Outcome::Committed) => Ok(()),
                    (Ending::Compensated, Outcome::RolledBack { .. })
                        if states == ["undone", "undone", "refused"] =>
                    {
                        Ok(())
                    }
                    (_, outcome) => {
                        Err(format!("ended {outcome:?}, its steps {}", states.join(", ")))
                    }
                };
            }
            Ok(answer) if answer.status() == Some(Status::NeedsAttention) => {
                return Err("needs attention".to_owned());
            }
            Err(error @ ClientError::Refused { .. }) => return Err(error.to_string()),
            Ok(_) | Err(_) => {}
        }
        if since.elapsed() > PURSUE_MAX {
            return Err(format!("its end was not known after {} s", PURSUE_MAX.as_secs()));
        }
        sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved() -> Vec<Vec<usize>> {
        vec![vec![90, 94], vec![91, 95], vec![92, 96, 98], vec![93, 97]]
    }

    #[test]
    fn a_round_spans_three_shards_and_moves_no_money_out_of_the_bank() {
        for round in 0..50 {
            for ending in [Ending::Committed, Ending::Compensated] {
                let saga = plan(&reserved(), u64::MAX, round, ending);
                assert!(saga.gid.len() <= 35, "{}", saga.gid);
                let shards: std::collections::BTreeSet<usize> = saga
                    .steps
                    .iter()
                    .map(|(place, _)| {
                        reserved().iter().position(|shard| shard.contains(place)).unwrap()
                    })
                    .collect();
                assert_eq!(shards.len(), 3);
                if ending == Ending::Committed {
                    assert_eq!(saga.steps.iter().map(|(_, delta)| delta).sum::<i64>(), 0);
                }
            }
        }
    }

    #[test]
    fn only_committed_sagas_have_an_effect() {
        let played = vec![
            plan(&reserved(), 1, 0, Ending::Committed),
            plan(&reserved(), 1, 0, Ending::Compensated),
            plan(&reserved(), 1, 1, Ending::Committed),
        ];
        let rounds = Rounds { played, problems: Vec::new() };
        assert_eq!(
            rounds.effects(),
            BTreeMap::from([(90, -3), (91, 1), (92, 2), (95, -3), (96, 1), (97, 2)])
        );
        assert_eq!((rounds.count(Ending::Committed), rounds.count(Ending::Compensated)), (2, 1));
    }
}

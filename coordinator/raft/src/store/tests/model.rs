//! Random lives of a log, beside a model of a few vectors.

use proptest::prelude::*;

use super::*;
use crate::consensus::LogId;

#[derive(Clone, Debug)]
enum Step {
    Append {
        entries: usize,
        bytes: usize,
    },
    Truncate {
        back: usize,
    },
    Purge {
        keep: usize,
    },
    PurgeBeyond {
        by: u64,
    },
    Vote,
    Committed,
    /// Closed and opened.
    Restart,
    /// Goes on with what a crash would have left.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1usize..20, 1usize..3000).prop_map(|(entries, bytes)| Step::Append { entries, bytes }),
        2 => (0usize..15).prop_map(|back| Step::Truncate { back }),
        2 => (0usize..10).prop_map(|keep| Step::Purge { keep }),
        1 => (1u64..10).prop_map(|by| Step::PurgeBeyond { by }),
        1 => Just(Step::Vote),
        1 => Just(Step::Committed),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

#[derive(Default)]
struct Model {
    entries: Vec<Entry>,
    purged: Option<LogId>,
    vote: Option<Ballot>,
    term: u64,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }

    async fn check(&self, log: &mut LogStore) -> anyhow::Result<()> {
        assert_eq!(entries(log).await?, self.entries);
        assert_eq!(log.read_vote().await?, self.vote);
        let state = log.get_log_state().await?;
        assert_eq!(state.last_purged_log_id, self.purged);
        assert_eq!(state.last_log_id, self.last());
        Ok(())
    }
}

async fn run(steps: Vec<Step>) -> anyhow::Result<()> {
    let mut dir = tempfile::tempdir()?;
    let mut log = open(dir.path())?;
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Append { entries, bytes } => {
                let first = model.last().map_or(0, |last| last.index + 1);
                let term = model.term;
                let new: Vec<Entry> =
                    (first..).take(entries).map(|index| entry(term, index, bytes)).collect();
                append(&mut log, new.clone()).await?;
                model.entries.extend(new);
            }
            Step::Truncate { back } => {
                model.entries.truncate(model.entries.len().saturating_sub(back));
                model.term += 1;
                log.truncate_after(model.last()).await?;
            }
            Step::Purge { keep } => {
                let drop = model.entries.len().saturating_sub(keep);
                if let Some(last) = model.entries.drain(..drop).next_back() {
                    model.purged = Some(last.log_id);
                    log.purge(last.log_id).await?;
                }
            }
            Step::PurgeBeyond { by } => {
                model.term += 1;
                let upto = log_id(model.term, model.last().map_or(0, |last| last.index) + by);
                model.entries.clear();
                model.purged = Some(upto);
                log.purge(upto).await?;
            }
            Step::Vote => {
                model.term += 1;
                model.vote = Some(Ballot::new(model.term, 3));
                log.save_vote(&Ballot::new(model.term, 3)).await?;
            }
            Step::Committed => {
                log.save_committed(model.last()).await?;
                assert_eq!(log.read_committed().await?, model.last());
            }
            Step::Restart => {
                log.close().await;
                log = open(dir.path())?;
            }
            Step::Crash => {
                // Truncations and purges are not waited for; an append behind them is.
                let next = model.last().map_or(0, |last| last.index + 1);
                append(&mut log, vec![entry(model.term, next, 10)]).await?;
                model.entries.push(entry(model.term, next, 10));
                let crashed = copy_of(dir.path())?;
                log.close().await;
                dir = crashed;
                log = open(dir.path())?;
            }
        }
        model.check(&mut log).await?;
    }
    log.close().await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_log_is_what_was_done_to_it(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(run(steps)).expect("it goes through");
    }
}

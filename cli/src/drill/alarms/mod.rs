//! Which alerts of `deploy/prometheus/alerts.yml` a drill would have raised: the metrics of every struck role are read once a second at its
//! drill door, and the very expressions of that file are evaluated over them.
//!
//! An alert is *pending* as soon as its expression holds, and *firing* once it has held for as long as the rule says, as in Prometheus. A
//! drill is short: most rules wait longer than a fault lasts, and stay pending.

mod evaluate;
mod expression;
mod history;
mod rules;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use self::{history::History, rules::Rule};
use super::{
    load::ms,
    report::{Alarm, AlarmState},
    target::Target,
};

/// Between two looks at all metrics.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
/// Alarms that are kept.
const ALARMS_MAX: usize = 500;

/// A watch over the metrics of all targets.
#[derive(Debug)]
pub(super) struct Watch {
    stopped: Arc<AtomicBool>,
    alarms: Arc<Mutex<Vec<Alarm>>>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Begins. `began` is the zero of the alarms' times.
    pub(super) fn start(targets: Vec<Target>, began: Instant) -> Self {
        let (stopped, alarms) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<Alarm>>>::default());
        let task = tokio::spawn(keep(targets, began, Arc::clone(&stopped), Arc::clone(&alarms)));
        Self { stopped, alarms, task }
    }

    /// Ends, behind a last look; what was raised, in order.
    pub(super) async fn stop(self) -> Vec<Alarm> {
        self.stopped.store(true, Ordering::Relaxed);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the alarms were not watched to the end");
        }
        std::mem::take(&mut self.alarms.lock().expect("no holder panics"))
    }
}

async fn keep(
    targets: Vec<Target>,
    began: Instant,
    stopped: Arc<AtomicBool>,
    alarms: Arc<Mutex<Vec<Alarm>>>,
) {
    let mut board = Board::new(rules::shipped());
    let began_s = UNIX_EPOCH.elapsed().unwrap_or_default() - began.elapsed();
    let mut history = History::of(board.families(), began_s.as_secs_f64());
    loop {
        let last = stopped.load(Ordering::Relaxed);
        let read = futures::future::join_all(targets.iter().map(Target::metrics)).await;
        let now_ms = ms(began.elapsed());
        for (target, text) in targets.iter().zip(read) {
            // Who does not answer has no metrics: its last values are not those of now.
            history.take(&target.name, now_ms, text.as_deref().unwrap_or_default());
        }
        board.look(&history, now_ms, &mut alarms.lock().expect("no holder panics"));
        if last {
            return;
        }
        let next = Instant::now() + SCRAPE_EVERY;
        while Instant::now() < next && !stopped.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// The rules, and since when each holds.
#[derive(Debug)]
struct Board {
    rules: Vec<(Rule, Option<Standing>)>,
}

/// An alert whose expression holds.
#[derive(Clone, Copy, Debug)]
struct Standing {
    since_ms: u64,
    /// Its place among the alarms.
    place: Option<usize>,
}

impl Board {
    fn new(rules: Vec<Rule>) -> Self {
        Self { rules: rules.into_iter().map(|rule| (rule, None)).collect() }
    }

    /// Every metric that a rule reads.
    fn families(&self) -> Vec<String> {
        self.rules.iter().flat_map(|(rule, _)| rule.expression.families()).collect()
    }

    fn look(&mut self, history: &History, now_ms: u64, alarms: &mut Vec<Alarm>) {
        for (rule, standing) in &mut self.rules {
            if !evaluate::holds(&rule.expression, history, now_ms) {
                *standing = None;
                continue;
            }
            let standing = standing.get_or_insert_with(|| {
                let place = (alarms.len() < ALARMS_MAX).then_some(alarms.len());
                if place.is_some() {
                    alarms.push(rule.raised(now_ms));
                }
                Standing { since_ms: now_ms, place }
            });
            if now_ms - standing.since_ms >= rule.for_ms
                && let Some(alarm) = standing.place.and_then(|place| alarms.get_mut(place))
            {
                alarm.state = AlarmState::Firing;
            }
        }
    }
}

impl Rule {
    fn raised(&self, at_ms: u64) -> Alarm {
        Alarm {
            at_ms,
            what: self.alert.clone(),
            severity: self.severity.clone(),
            state: AlarmState::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(rule: &str) -> (Board, History) {
        let board = Board::new(rules::read(rule).unwrap());
        let history = History::of(board.families(), 0.0);
        (board, history)
    }

    const NO_LEADER: &str = r#"
      - alert: NoLeader
        expr: sum(rate(asked{result="retry"}[1m])) > 0 and sum(rate(asked{result="ok"}[1m])) == 0
        for: 3s
        labels: { severity: page }
"#;

    #[test]
    fn an_alert_is_pending_first_and_fires_when_it_has_held_for_as_long_as_its_rule_says() {
        let (mut board, mut history) = board(NO_LEADER);
        let mut alarms = Vec::new();
        for second in 0..6_u64 {
            let text = format!("asked{{result=\"retry\"}} {second}\nasked{{result=\"ok\"}} 7\n");
            history.take("one", second * 1_000, &text);
            board.look(&history, second * 1_000, &mut alarms);
            let state = alarms.first().map(|alarm| alarm.state);
            let wanted = match second {
                // One sample says nothing of a rate.
                0 => None,
                1..=3 => Some(AlarmState::Pending),
                _ => Some(AlarmState::Firing),
            };
            assert_eq!(state, wanted, "at {second} s");
        }
        assert_eq!((alarms.len(), alarms[0].at_ms), (1, 1_000));
        assert_eq!((alarms[0].what.as_str(), alarms[0].severity.as_str()), ("NoLeader", "page"));
    }

    #[test]
    fn an_alert_that_has_passed_is_raised_anew_and_stays_pending_where_it_did_not_last() {
        let (mut board, mut history) = board("- alert: Alone\n  expr: peers == 0\n  for: 2s\n");
        let mut alarms = Vec::new();
        for (second, peers) in [(0, 0), (1, 3), (2, 0), (3, 0), (4, 0)] {
            history.take("one", second * 1_000, &format!("peers {peers}\n"));
            board.look(&history, second * 1_000, &mut alarms);
        }
        let seen: Vec<_> = alarms.iter().map(|alarm| (alarm.at_ms, alarm.state)).collect();
        assert_eq!(seen, [(0, AlarmState::Pending), (2_000, AlarmState::Firing)]);
    }

    #[test]
    fn no_more_alarms_are_kept_than_there_may_be() {
        let (mut board, mut history) = board("- alert: Alone\n  expr: peers == 0\n");
        let mut alarms = Vec::new();
        for turn in 0..2 * ALARMS_MAX as u64 + 2 {
            history.take("one", turn * 1_000, &format!("peers {}\n", turn % 2));
            board.look(&history, turn * 1_000, &mut alarms);
        }
        assert_eq!(alarms.len(), ALARMS_MAX);
    }
}

//! The rules that a router has in force: where they come from, whether they are still to be trusted, and how workers hear of others.
//!
//! With coordinators named, the rules are those of their log. A file beside them counts only as long as the log has none. Without
//! coordinators the file is all there is.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_route::{MoveFate, MoveId, Moving, RuleMistakes, SourceId, SourceIndex, Topology};
use metrics::{Gauge, gauge};
use tokio::{sync::watch, time::Instant};

use crate::{config::RouterConfig, door::NoStart, refusal::Refusal, source::Source};

use moves::Moves;

mod moves;

/// Rules, and where each of their sources stands in the router's configuration.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) rules: Arc<Topology>,
    /// By the index of the source in the rules.
    places: Arc<[u16]>,
}

impl Placed {
    /// # Errors
    /// HF3216, in words: the rules name a source that the configuration does not have.
    pub(crate) fn new(config: &RouterConfig, rules: Topology) -> Result<Self, String> {
        let mut names: Vec<&str> = config.sources.iter().map(|source| &*source.name).collect();
        names.sort_unstable();
        let place = |name: &holdfast_route::SourceId| {
            let place = names.binary_search(&name.as_str()).ok();
            place.and_then(|place| u16::try_from(place).ok()).ok_or_else(|| {
                format!(
                    "the rules name source {name}, which the router's configuration does not have. Add it to [[sources.source]]"
                )
            })
        };
        let places = rules.sources().keys().map(place).collect::<Result<_, _>>()?;
        Ok(Self { rules: Arc::new(rules), places })
    }

    /// The place in the router's configuration of a source that the rules number so.
    pub(crate) fn place(&self, source: SourceIndex) -> SourceIndex {
        SourceIndex(self.places[usize::from(source.0)])
    }

    /// The same rules, where nothing is planned for the slots of these moves.
    fn awaiting(self, moves: Vec<Arc<Moving>>) -> Self {
        let rules = Arc::unwrap_or_clone(self.rules).awaiting(moves);
        Self { rules: Arc::new(rules), places: self.places }
    }
}

/// What workers go by.
#[derive(Clone, Debug)]
pub(crate) struct InForce {
    pub(crate) placed: Placed,
    /// What was planned by rules of this epoch or later ones may go on by these: every row that it may have touched is where it was.
    pub(crate) keeps_since: u64,
    /// The epoch of the last rules under which no slot was frozen: what was planned by them or before may have touched what is frozen now.
    pub(crate) unfrozen: u64,
    /// How many of the moves that the rules have awaited are waited for by all; the others are settled, but not for a snapshot that is older.
    pub(crate) unsettled: usize,
    /// The version as of which those others are settled; 0 without any.
    pub(crate) settled_since: u64,
    /// Set while nothing may be planned; what a statement is told then.
    pub(crate) held: Option<Refusal>,
}

/// The rules of one router. Workers look at its version, which costs a load, and take what is new.
#[derive(Debug)]
pub(crate) struct Rules {
    now: Mutex<State>,
    version: AtomicU64,
    /// The same, for whoever waits for something new.
    news: watch::Sender<u64>,
    epoch: Gauge,
    /// By their names; those of which rows are on their way are not read from replicas.
    sources: Vec<Arc<Source>>,
}

#[derive(Debug)]
struct State {
    in_force: InForce,
    from_log: bool,
    /// When the coordinators' leader was last asked and then said that there is nothing newer.
    confirmed: Instant,
    /// For so long behind that question the rules are good.
    lease: Duration,
    moves: Moves,
    /// Rules of the log that this router could not take: their epoch, and why.
    untaken: Option<(u64, String)>,
}

/// What `SHOW HOLDFAST RULES` shows.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) epoch: u64,
    pub(crate) from_log: bool,
    /// Since the leader's last word, ms; means nothing without coordinators.
    pub(crate) age_ms: u128,
    pub(crate) untaken: Option<(u64, String)>,
    pub(crate) held: Option<Refusal>,
    /// Moves whose slots are waited for.
    pub(crate) awaited: Vec<Arc<Moving>>,
}

impl Rules {
    pub(crate) fn new(first: Placed, from_log: bool) -> Self {
        let epoch = gauge!("holdfast_router_rules_epoch");
        epoch.set(first.rules.epoch() as f64);
        let rules = Arc::clone(&first.rules);
        let (keeps_since, unfrozen) = (rules.epoch(), rules.epoch());
        let in_force = InForce {
            placed: first,
            keeps_since,
            unfrozen,
            unsettled: 0,
            settled_since: 0,
            held: None,
        };
        let mut state = State {
            in_force,
            from_log,
            confirmed: Instant::now(),
            lease: Duration::MAX,
            moves: Moves::new(&rules),
            untaken: None,
        };
        state.renew();
        let (version, news) = (AtomicU64::new(0), watch::Sender::new(0));
        Self { now: Mutex::new(state), version, news, epoch, sources: Vec::new() }
    }

    /// The same rules over these sources.
    pub(crate) fn over(mut self, sources: &[Arc<Source>]) -> Self {
        self.sources = sources.to_vec();
        self.distrust(self.state().moves.awaited());
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Differs whenever there is something new for workers.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Tells of something new, now and later.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    fn tell(&self) {
        let version = self.version.fetch_add(1, Ordering::Release) + 1;
        self.news.send_replace(version);
    }

    /// What counts now.
    pub(crate) fn in_force(&self) -> InForce {
        self.state().in_force.clone()
    }

    /// The epoch of the rules in force, and of newer ones that could not be taken, whichever is higher.
    pub(crate) fn known_epoch(&self) -> u64 {
        let state = self.state();
        let untaken = state.untaken.as_ref().map_or(0, |(epoch, _)| *epoch);
        untaken.max(state.in_force.placed.rules.epoch())
    }

    /// Whether the log has given rules yet.
    pub(crate) fn are_of_log(&self) -> bool {
        self.state().from_log
    }

    /// From here on these count, for every statement that is not planned yet. Rules of the log give way to newer ones alone.
    pub(crate) fn take(&self, placed: Placed, from_log: bool) -> bool {
        let mut state = self.state();
        let (known, epoch) = (state.in_force.placed.rules.epoch(), placed.rules.epoch());
        let older = match (state.from_log, from_log) {
            (true, true) => epoch <= known,
            // What comes from the file while the log has spoken, or just before.
            (true, false) => true,
            (false, true) => epoch == 0,
            (false, false) => false,
        };
        if older {
            return false;
        }
        let before = Arc::clone(&state.in_force.placed.rules);
        let moved = !placed.rules.places_like(&before);
        if moved {
            // One by one: rows may come back to where they were.
            let kept = placed.rules.keeps_plans_of(&before);
            state.in_force.keeps_since = if kept { before.epoch() } else { epoch };
        }
        if !placed.rules.moving().is_some_and(Moving::is_frozen) {
            state.in_force.unfrozen = epoch;
        }
        let change = state.moves.follow(&placed.rules);
        change.dropped.iter().for_each(|step| self.trust(step, &state.moves));
        self.distrust(&change.decided);
        state.in_force.placed = placed;
        state.renew();
        state.in_force.held = None;
        state.from_log = from_log;
        state.untaken = None;
        drop(state);
        self.epoch.set(epoch as f64);
        self.tell();
        tracing::info!(epoch, moved, from_log, "new rules");
        true
    }

    /// Sources of decided moves of which it is not known yet that what the move prepared there has ended.
    pub(crate) fn unsettled(&self) -> BTreeSet<(MoveId, SourceId)> {
        self.state().moves.ends().clone()
    }

    /// A look that began when this was known to be unsettled found nothing of the move there: it was prepared before it was decided, so it has
    /// ended, and by the decision it was committed. When that is so at both sources statements for its slots are let go.
    pub(crate) fn ended_at(&self, id: &MoveId, source: &SourceId) {
        let mut state = self.state();
        // Whoever plans by the next version plans behind it.
        let version = self.version() + 1;
        let Some(step) = state.moves.ended_at(id, source, version) else { return };
        // From now on a replica must have what was committed by now.
        self.trust(&step, &state.moves);
        state.renew();
        drop(state);
        self.tell();
        tracing::info!(%id, "a move of slots is settled");
    }

    /// Everything that is open in this router was planned as of `version` or later: what was settled by then is over.
    pub(crate) fn forget(&self, version: u64) {
        let mut state = self.state();
        if state.moves.forget(version) {
            state.renew();
            drop(state);
            self.tell();
        }
    }

    /// Whether anything that a move has prepared may be left of what was in force here.
    pub(crate) fn remembers_a_move(&self) -> bool {
        self.state().moves.are_remembered()
    }

    /// What becomes of what a move has prepared, by the versions that were in force here.
    pub(crate) fn fate(&self, id: &MoveId) -> MoveFate {
        self.state().moves.fate(id)
    }

    /// Whether no word of these rules is to be acted by.
    pub(crate) fn is_held(&self) -> bool {
        self.state().in_force.held.is_some()
    }

    /// Of steps that are decided, replicas are left alone at both ends.
    fn distrust(&self, steps: &[Arc<Moving>]) {
        let decided = steps.iter().filter(|step| !step.is_frozen());
        decided.flat_map(|step| self.of(step)).for_each(|source| source.distrust_replicas());
    }

    /// This one is over, but not what else is decided.
    fn trust(&self, step: &Moving, moves: &Moves) {
        self.of(step).for_each(|source| source.trust_replicas());
        self.distrust(moves.awaited());
    }

    fn of(&self, step: &Moving) -> impl Iterator<Item = &Arc<Source>> {
        let ends = [step.from.as_str().to_owned(), step.to.as_str().to_owned()];
        self.sources.iter().filter(move |source| ends.iter().any(|name| name == source.name()))
    }

    /// Rules of the log that this router cannot take. What it has serves on only if nothing has moved by what is `read` of the new ones.
    pub(crate) fn leave(&self, epoch: u64, read: Option<&Topology>, why: String) {
        let mut state = self.state();
        let known = state.in_force.placed.rules.epoch();
        if epoch <= known || state.untaken.as_ref().is_some_and(|(untaken, _)| *untaken >= epoch) {
            return;
        }
        tracing::error!(epoch, known, why, "the rules in force are not taken");
        let alike = read.is_some_and(|read| read.places_like(&state.in_force.placed.rules));
        if !alike {
            let cause = format!(
                "the shard rules in force are of epoch {epoch}, and this router, which has epoch {known}, cannot take them: {why}"
            );
            let remedy = "Mend its configuration and restart it, or apply other rules; use another router meanwhile";
            state.in_force.held = Some(Refusal::new("HF3224", "57P03", cause, remedy));
        }
        state.untaken = Some((epoch, why));
        drop(state);
        self.tell();
    }

    /// The leader says that the newest rules are older than those that this router has from it: the log was put back, from a backup.
    pub(crate) fn went_back(&self, epoch: u64) {
        let mut state = self.state();
        let known = state.in_force.placed.rules.epoch();
        if !state.from_log || epoch >= known || state.in_force.held.is_some() {
            return;
        }
        let cause = format!(
            "the coordinators have the shard rules of epoch {epoch}, and this router has had epoch {known} of them: their log was put back"
        );
        let remedy = "See which rules are right (holdfast rules show), then restart the router";
        let held = Refusal::new("HF3224", "57P03", cause, remedy);
        tracing::error!(%held, "statements are refused");
        state.in_force.held = Some(held);
        drop(state);
        self.tell();
    }

    /// The leader was asked at `asked`, and nothing newer than what this router knows is in force. That is good for `lease`.
    pub(crate) fn confirm(&self, asked: Instant, lease: Duration) {
        let mut state = self.state();
        if asked >= state.confirmed {
            (state.confirmed, state.lease) = (asked, lease);
        }
        let good = state.confirmed.elapsed() <= state.lease;
        let old = state.in_force.held.as_ref().is_some_and(|held| held.code == OLD);
        if old && good {
            state.in_force.held = None;
            drop(state);
            self.tell();
            tracing::info!("the shard rules are confirmed again");
        }
    }

    /// How long the leader has not confirmed the rules.
    pub(crate) fn age(&self) -> Duration {
        self.state().confirmed.elapsed()
    }

    /// How long the last confirmation is still good for, if for no more than `age_max`.
    pub(crate) fn good_for(&self, age_max: Duration) -> Duration {
        let state = self.state();
        state.lease.min(age_max).saturating_sub(state.confirmed.elapsed())
    }

    /// Nobody has confirmed the rules for longer than is allowed.
    pub(crate) fn hold_as_old(&self, age_max: Duration) {
        let mut state = self.state();
        if state.in_force.held.is_some() {
            return;
        }
        let age_max = age_max.min(state.lease);
        let cause = format!(
            "no coordinator has confirmed the shard rules of epoch {} for {} ms (limits.rules_age_max_ms), so rows may have moved",
            state.in_force.placed.rules.epoch(),
            age_max.as_millis()
        );
        let remedy = "Try again when the coordinators are reached (holdfast cluster status)";
        let held = Refusal::new(OLD, "57P03", cause, remedy);
        tracing::error!(%held, "statements are refused");
        state.in_force.held = Some(held);
        drop(state);
        self.tell();
    }

    pub(crate) fn view(&self) -> View {
        let state = self.state();
        View {
            epoch: state.in_force.placed.rules.epoch(),
            from_log: state.from_log,
            age_ms: state.confirmed.elapsed().as_millis(),
            untaken: state.untaken.clone(),
            held: state.in_force.held.clone(),
            awaited: state.moves.awaited().to_vec(),
        }
    }
}

impl State {
    /// What workers go by follows from what is known of moves.
    fn renew(&mut self) {
        let all = self.moves.all();
        self.in_force.unsettled = self.moves.awaited().len();
        self.in_force.settled_since = self.moves.settled_since();
        self.in_force.placed = self.in_force.placed.clone().awaiting(all);
    }
}

/// The rules are too old to go by.
const OLD: &str = "HF3222";

/// What a transaction is told whose rows may have got other places since it began.
pub(crate) fn moved() -> Refusal {
    let cause = "the shard rules changed while the transaction was open: rows have other places. It is rolled back";
    Refusal::new("HF3223", "40001", cause, "Begin it again")
}

/// What a transaction is told whose snapshot is, or may be, older than rows that have come to another place.
pub(crate) fn seen_before() -> Refusal {
    let cause = "rows that it would read have moved, or are about to, since the transaction took its snapshot (its isolation is not READ COMMITTED), and so it would not see them where they are. It is rolled back";
    Refusal::new("HF3223", "40001", cause, "Begin it again")
}

/// Reads a rules file.
/// # Errors
/// It cannot be read, or has mistakes.
pub(crate) fn read_file(path: &Path) -> Result<Topology, NoStart> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| NoStart::Unreadable { file: file.clone(), error })?;
    Ok(Topology::parse(&text).map_err(|mistakes| RuleMistakes { file, mistakes })?)
}

#[cfg(test)]
mod tests;

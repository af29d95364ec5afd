//! The rules that a router has in force: where they come from, whether they are still to be trusted, and how workers hear of others.
//!
//! With coordinators named, the rules are those of their log. A file beside them counts only as long as the log has none. Without
//! coordinators the file is all there is.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_route::{RuleMistakes, SourceIndex, Topology};
use metrics::{Gauge, gauge};
use tokio::time::Instant;

use crate::{config::RouterConfig, door::NoStart, refusal::Refusal};

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
}

/// What workers go by.
#[derive(Clone, Debug)]
pub(crate) struct InForce {
    pub(crate) placed: Placed,
    /// Grows whenever a row may have got another place.
    pub(crate) layout: u64,
    /// Set while nothing may be planned; what a statement is told then.
    pub(crate) held: Option<Refusal>,
}

/// The rules of one router. Workers look at its version, which costs a load, and take what is new.
#[derive(Debug)]
pub(crate) struct Rules {
    now: Mutex<State>,
    version: AtomicU64,
    epoch: Gauge,
}

#[derive(Debug)]
struct State {
    in_force: InForce,
    from_log: bool,
    /// When the coordinators' leader last said, or was last asked and then said, that there is nothing newer.
    confirmed: Instant,
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
}

impl Rules {
    pub(crate) fn new(first: Placed, from_log: bool) -> Self {
        let epoch = gauge!("holdfast_router_rules_epoch");
        epoch.set(first.rules.epoch() as f64);
        let in_force = InForce { placed: first, layout: 0, held: None };
        let state = State { in_force, from_log, confirmed: Instant::now(), untaken: None };
        Self { now: Mutex::new(state), version: AtomicU64::new(0), epoch }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Differs whenever there is something new for workers.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
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
        let moved = !placed.rules.places_like(&state.in_force.placed.rules);
        state.in_force.layout += u64::from(moved);
        state.in_force.placed = placed;
        state.in_force.held = None;
        state.from_log = from_log;
        state.untaken = None;
        drop(state);
        self.epoch.set(epoch as f64);
        self.version.fetch_add(1, Ordering::Release);
        tracing::info!(epoch, moved, from_log, "new rules");
        true
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
        self.version.fetch_add(1, Ordering::Release);
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
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The leader was asked at `asked`, and nothing newer than what this router knows is in force.
    pub(crate) fn confirm(&self, asked: Instant) {
        let mut state = self.state();
        state.confirmed = state.confirmed.max(asked);
        let old = state.in_force.held.as_ref().is_some_and(|held| held.code == OLD);
        if old {
            state.in_force.held = None;
            drop(state);
            self.version.fetch_add(1, Ordering::Release);
            tracing::info!("the shard rules are confirmed again");
        }
    }

    /// How long the leader has not confirmed the rules.
    pub(crate) fn age(&self) -> std::time::Duration {
        self.state().confirmed.elapsed()
    }

    /// Nobody has confirmed the rules for longer than is allowed.
    pub(crate) fn hold_as_old(&self, age_max: std::time::Duration) {
        let mut state = self.state();
        if state.in_force.held.is_some() {
            return;
        }
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
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn view(&self) -> View {
        let state = self.state();
        View {
            epoch: state.in_force.placed.rules.epoch(),
            from_log: state.from_log,
            age_ms: state.confirmed.elapsed().as_millis(),
            untaken: state.untaken.clone(),
            held: state.in_force.held.clone(),
        }
    }
}

/// The rules are too old to go by.
const OLD: &str = "HF3222";

/// What a transaction is told whose rows may have got other places since it began.
pub(crate) fn moved() -> Refusal {
    let cause = "the shard rules changed while the transaction was open: rows have other places. It is rolled back";
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Authentication, Endpoint, Limits, SourceConfig};

    fn config(sources: &[&str]) -> RouterConfig {
        let source = |name: &&str| SourceConfig {
            name: (*name).into(),
            addresses: vec![Endpoint::parse("127.0.0.1:1")],
            database: None,
            user: None,
            password: None,
            weak_authentication: false,
            tls: None,
        };
        RouterConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            workers: 1,
            rules: None,
            sources: sources.iter().map(source).collect(),
            database: None,
            authentication: Authentication::TrustLoopback,
            tls: None,
            require_tls: false,
            coordinator: None,
            secret: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// Slots up to `last` on the first source, the others on the second.
    fn topology(sources: [&str; 2], last: u16, epoch: u64) -> Topology {
        let [one, two] = sources;
        let text = format!(
            "[group.g]\nkey = \"id\"\nfunction = \"mod\"\nslots = [\n\
             {{ first = 0, last = {last}, shard = \"a\" }},\n\
             {{ first = {}, last = 1023, shard = \"b\" }},\n]\n[table.t]\ngroup = \"g\"\n\
             [shard.a]\nsource = \"{one}\"\n[shard.b]\nsource = \"{two}\"\n\
             [source.{one}]\naddress = \"127.0.0.1:1\"\n[source.{two}]\naddress = \"127.0.0.1:2\"\n",
            last + 1
        );
        Topology::parse(&text).expect("good rules").at_epoch(epoch)
    }

    fn placed(last: u16, epoch: u64) -> Placed {
        let config = config(&["pg-1", "pg-2", "pg-0"]);
        Placed::new(&config, topology(["pg-1", "pg-2"], last, epoch)).expect("they fit")
    }

    #[test]
    fn a_source_of_the_rules_is_found_by_its_name_among_those_of_the_configuration() {
        let placed = placed(511, 1);
        assert_eq!(placed.place(SourceIndex(0)), SourceIndex(1));
        assert_eq!(placed.place(SourceIndex(1)), SourceIndex(2));
        let wrong = Placed::new(&config(&["pg-1"]), topology(["pg-1", "pg-2"], 511, 1));
        assert!(wrong.expect_err("pg-2 is missing").contains("pg-2"));
    }

    #[test]
    fn rules_never_go_back_an_epoch() {
        let rules = Rules::new(placed(511, 0), false);
        assert!(rules.take(placed(511, 0), false), "the file counts until the log speaks");
        assert!(rules.take(placed(511, 1), true), "the log's first rules");
        assert!(!rules.take(placed(100, 1), false), "a file behind the log");
        assert!(!rules.take(placed(100, 1), true), "the same epoch again");
        assert!(rules.take(placed(100, 3), true));
        assert!(!rules.take(placed(511, 2), true), "an older one, from a node that lags behind");
        assert_eq!(rules.in_force().placed.rules.epoch(), 3);
    }

    #[test]
    fn only_a_row_that_moves_changes_the_layout() {
        let rules = Rules::new(placed(511, 1), true);
        rules.take(placed(511, 2), true);
        assert_eq!(rules.in_force().layout, 0);
        rules.take(placed(510, 3), true);
        assert_eq!(rules.in_force().layout, 1);
    }

    #[test]
    fn rules_that_cannot_be_taken_hold_the_router_only_where_rows_have_moved() {
        let rules = Rules::new(placed(511, 1), true);
        let alike = topology(["pg-1", "pg-2"], 511, 2);
        rules.leave(2, Some(&alike), "a reason".to_owned());
        assert!(rules.in_force().held.is_none());
        assert_eq!(rules.known_epoch(), 2);
        rules.leave(3, Some(&topology(["pg-1", "pg-9"], 511, 3)), "another".to_owned());
        assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3224"));
        // Confirmed or not, it stays so until it has rules that it can take.
        rules.confirm(Instant::now());
        assert!(rules.in_force().held.is_some());
        assert!(rules.take(placed(511, 4), true));
        assert!(rules.in_force().held.is_none());
        rules.leave(5, None, "not readable".to_owned());
        assert!(rules.in_force().held.is_some());
    }

    #[test]
    fn a_log_that_went_back_holds_the_router() {
        let rules = Rules::new(placed(511, 0), false);
        rules.went_back(0);
        assert!(rules.in_force().held.is_none(), "the file is no word of the log");
        rules.take(placed(511, 4), true);
        rules.went_back(4);
        assert!(rules.in_force().held.is_none());
        rules.went_back(3);
        assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3224"));
    }

    #[test]
    fn rules_that_nobody_confirms_are_held_until_somebody_does() {
        let rules = Rules::new(placed(511, 1), true);
        rules.hold_as_old(Duration::from_secs(1));
        let before = rules.version();
        assert_eq!(rules.in_force().held.map(|held| held.code), Some("HF3222"));
        rules.confirm(Instant::now());
        assert!(rules.in_force().held.is_none());
        assert!(rules.version() > before, "workers hear of it");
    }
}

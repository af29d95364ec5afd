//! Configuration that is read again while a role runs: on SIGHUP, for people on its machine, and at a coordinator by way of its doors, with the
//! difference told key by key.
//!
//! What can count at once does; what cannot is named, and goes on as it was until a restart; what no restart would change either is refused with
//! its cause. A file with a mistake changes nothing. Certificates and the access file are not here: whoever uses them looks at them every two
//! seconds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, OnceLock},
};

use holdfast_coordinator::live::{Difference, Reread, Verdict};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Inputs, Role, Secret, Shown},
    reload_door,
    telemetry::LogLevel,
};

/// The key that counts at once in every role.
const LEVEL: &str = "telemetry.level";

/// What is told of a value that changed behind its mask.
const CHANGED_SECRET: &str = "changed, not shown";

/// By key: as `config show` prints it, and what stands behind the mask.
type Values = BTreeMap<String, (String, Option<Secret>)>;

/// What a role can do with a key while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It counts at once.
    Live,
    /// It counts after a restart, and why not at once, where that is not plain.
    Restart(&'static str),
    /// A restart would not change it, and why.
    Never(&'static str),
}

/// Carries out what counts at once, beside the level.
type Adjust<T> = Box<dyn Fn(&T) -> Result<(), String> + Send + Sync>;

/// The configuration of one running process.
pub(crate) struct Configured<T> {
    inputs: Inputs,
    level: LogLevel,
    runs_with: Mutex<Values>,
    fate: fn(&str) -> Fate,
    adjust: OnceLock<Adjust<T>>,
}

impl<T> fmt::Debug for Configured<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").finish_non_exhaustive()
    }
}

impl<T: Role + 'static> Configured<T> {
    /// `shown` is what the process runs with.
    pub(crate) fn new(
        inputs: Inputs,
        shown: Vec<Shown>,
        level: LogLevel,
        fate: fn(&str) -> Fate,
    ) -> Arc<Self> {
        let runs_with = Mutex::new(values(shown));
        Arc::new(Self { inputs, level, runs_with, fate, adjust: OnceLock::new() })
    }

    /// From now on, this carries out what counts at once. Until it is told, such keys count after a restart.
    pub(crate) fn adjusted_by(
        &self,
        adjust: impl Fn(&T) -> Result<(), String> + Send + Sync + 'static,
    ) {
        // Its first word counts.
        let _first = self.adjust.set(Box::new(adjust));
    }

    fn again(&self, dry_run: bool) -> Result<Vec<Difference>, String> {
        // One at a time: what one took over, the next compares with.
        let mut runs_with = self.runs_with.lock().expect("nobody panics while holding it");
        let loaded = config::load::<T>(&self.inputs).map_err(|report| report.to_string())?;
        let said = values(loaded.shown);
        let mut differences = differences(&runs_with, &said, self.fate);
        if dry_run {
            return Ok(differences);
        }
        let adjusts = |one: &Difference| one.verdict == Verdict::TakenOver && one.key != LEVEL;
        let adjusted = match self.adjust.get() {
            _ if !differences.iter().any(adjusts) => Ok(()),
            Some(adjust) => adjust(&loaded.config),
            None => Err("the process is only starting; read it again in a moment".to_owned()),
        };
        for one in &mut differences {
            let done = match one.verdict {
                Verdict::TakenOver if one.key == LEVEL => {
                    self.level.set(one.to.trim_matches('"')).map_err(str::to_owned)
                }
                Verdict::TakenOver => adjusted.clone(),
                Verdict::AfterRestart | Verdict::Refused => continue,
            };
            match done {
                Ok(()) => match said.get(&one.key) {
                    Some(value) => drop(runs_with.insert(one.key.clone(), value.clone())),
                    None => drop(runs_with.remove(&one.key)),
                },
                Err(cause) => (one.verdict, one.cause) = (Verdict::Refused, cause),
            }
        }
        Ok(differences)
    }

    /// Reads again at each SIGHUP, and when people on this machine ask `role` for it, until `stop`.
    pub(crate) fn listen(self: &Arc<Self>, role: &str, stop: &CancellationToken) {
        tokio::spawn(Arc::clone(self).on_hangup(stop.clone()));
        reload_door::open(role, Arc::<Self>::clone(self), stop.clone());
    }

    /// Reads again at each SIGHUP, until `stop`.
    pub(crate) async fn on_hangup(self: Arc<Self>, stop: CancellationToken) {
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => {
                return tracing::error!(%error, "SIGHUP cannot be heard; the configuration is not read again");
            }
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                heard = hangups.recv() => if heard.is_none() { return },
            }
            let configured = Arc::clone(&self);
            let again = tokio::task::spawn_blocking(move || configured.again(false)).await;
            tell(&again.unwrap_or_else(|fault| Err(fault.to_string())));
        }
    }
}

impl<T: Role + 'static> Reread for Configured<T> {
    fn reread(&self, dry_run: bool) -> Result<Vec<Difference>, String> {
        let again = self.again(dry_run);
        if !dry_run {
            tell(&again);
        }
        again
    }
}

/// Why the credit of an agent or a bank does not count at once.
const CREDIT: Fate = Fate::Restart("it is agreed upon when a session is opened");

/// What a bank can do with a key while it runs.
pub(crate) fn of_bank(key: &str) -> Fate {
    match key {
        LEVEL | "limits.batch_max" | "limits.connections" => Fate::Live,
        "limits.credit" => CREDIT,
        _ => after_restart(key),
    }
}

/// What an agent can do with a key while it runs.
pub(crate) fn of_agent(key: &str) -> Fate {
    match key {
        LEVEL | "limits.call_timeout_ms" => Fate::Live,
        "limits.credit" => CREDIT,
        _ => after_restart(key),
    }
}

/// What a router can do with a key while it runs.
pub(crate) fn of_router(key: &str) -> Fate {
    match key {
        LEVEL | "auth.mode" => Fate::Live,
        "limits.decision_timeout_ms" | "limits.orphan_age_ms" | "limits.rules_age_max_ms" => {
            Fate::Restart("")
        }
        _ if key.starts_with("limits.") || key.starts_with("auth.user") => Fate::Live,
        // Not `tls.clients` either: an address beyond this machine, which a restart would give up, must not be left without encryption.
        _ => after_restart(key),
    }
}

/// A key that counts after a restart.
fn after_restart(key: &str) -> Fate {
    let names_a_file = matches!(
        key,
        "tls.ca" | "tls.cert" | "tls.key" | "client_tls.cert" | "client_tls.key" | "access.file"
    );
    match names_a_file {
        true => Fate::Restart(
            "what changes in the file that it names counts within seconds; another file does not",
        ),
        false => Fate::Restart(""),
    }
}

/// What a coordinator can do with a key while it runs.
pub(crate) fn of_coordinator(key: &str) -> Fate {
    match key {
        LEVEL
        | "timeouts.global_timeout_ms"
        | "timeouts.call_timeout_ms"
        | "limits.batch_max"
        | "history.records_max"
        | "history.bytes_max"
        | "history.age_days_max" => Fate::Live,
        "node.id" => Fate::Never(
            "the number is in the log and in the others' members; another number is another node: holdfast cluster add",
        ),
        "cluster.name" => Fate::Never(
            "the log and every member know the name; nodes of another name are turned away",
        ),
        "cluster.groups" => Fate::Never("it was fixed when the cluster was founded"),
        "cluster.join" => Fate::Never("this node is a member already"),
        _ if key.starts_with("cluster.member") => Fate::Restart(
            "members are changed in the log: holdfast cluster add, remove, replace; the file only says where to begin",
        ),
        _ => after_restart(key),
    }
}

fn tell(again: &Result<Vec<Difference>, String>) {
    let differences = match again {
        Ok(differences) => differences,
        Err(report) => {
            return tracing::error!(%report, "the configuration has mistakes; nothing changes");
        }
    };
    if differences.is_empty() {
        tracing::info!("the configuration says what this process runs with");
    }
    for Difference { key, from, to, verdict, cause } in differences {
        match verdict {
            Verdict::TakenOver => tracing::warn!(key, from, to, "configuration: taken over"),
            Verdict::AfterRestart => {
                tracing::warn!(key, from, to, cause, "configuration: counts after a restart");
            }
            Verdict::Refused => {
                tracing::warn!(key, from, to, cause, "configuration: not taken over");
            }
        }
    }
}

/// An element of a list goes by its name or number, `auth.user[anna].verifier`, and not by its place, which changes when another is taken out.
fn values(shown: Vec<Shown>) -> Values {
    let own = |one: &Shown| {
        let element = one.key.strip_suffix(".name").or_else(|| one.key.strip_suffix(".id"))?;
        let list = element.strip_suffix(']')?.rsplit_once('[')?.0;
        Some((element.to_owned(), format!("{list}[{}]", one.value.trim_matches('"'))))
    };
    let names: BTreeMap<String, String> = shown.iter().filter_map(own).collect();
    let key = |key: String| match key.rsplit_once('.') {
        Some((element, field)) => match names.get(element) {
            Some(named) => format!("{named}.{field}"),
            None => key,
        },
        None => key,
    };
    shown.into_iter().map(|one| (key(one.key), (one.value, one.secret))).collect()
}

/// What differs, by key, and what would become of it; a key that is not said, or was not, is empty there.
fn differences(runs_with: &Values, said: &Values, fate: fn(&str) -> Fate) -> Vec<Difference> {
    let keys: BTreeSet<&String> = runs_with.keys().chain(said.keys()).collect();
    let shown = |of: &Values, key: &String| of.get(key).map(|one| one.0.clone());
    keys.into_iter()
        .filter(|key| runs_with.get(*key) != said.get(*key))
        .map(|key| {
            let (verdict, cause) = match fate(key) {
                Fate::Live => (Verdict::TakenOver, ""),
                Fate::Restart(cause) => (Verdict::AfterRestart, cause),
                Fate::Never(cause) => (Verdict::Refused, cause),
            };
            let from = shown(runs_with, key).unwrap_or_default();
            let mut to = shown(said, key).unwrap_or_default();
            if from == to {
                to = format!("{to} ({CHANGED_SECRET})");
            }
            Difference { key: key.clone(), from, to, verdict, cause: cause.to_owned() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), ((*value).to_owned(), None))).collect()
    }

    #[test]
    fn a_changed_secret_is_told_and_not_shown() {
        let with = |secret: &str| {
            let value = ("\"***\"".to_owned(), Secret::behind("***", secret));
            Values::from([("auth.user[0].verifier".to_owned(), value)])
        };
        assert_eq!(differences(&with("sesame"), &with("sesame"), of_router), []);
        let told = differences(&with("sesame"), &with("mellon"), of_router);
        let [one] = &told[..] else { panic!("{told:?}") };
        assert_eq!((&*one.from, &*one.to), ("\"***\"", "\"***\" (changed, not shown)"));
        assert_eq!(one.verdict, Verdict::TakenOver);
        let all = format!("{told:?} {:?}", with("sesame"));
        assert!(!all.contains("sesame") && !all.contains("mellon"), "{all}");
    }

    #[test]
    fn what_is_changed_added_and_taken_out_differs_and_nothing_else() {
        let runs_with = map(&[("a.same", "1"), ("b.changed", "1"), ("c.gone", "1")]);
        let said = map(&[("a.same", "1"), ("b.changed", "2"), ("d.new", "1")]);
        let told: Vec<_> = differences(&runs_with, &said, of_agent)
            .into_iter()
            .map(|one| (one.key, one.from, one.to))
            .collect();
        let row =
            |key: &str, from: &str, to: &str| (key.to_owned(), from.to_owned(), to.to_owned());
        assert_eq!(
            told,
            [row("b.changed", "1", "2"), row("c.gone", "1", ""), row("d.new", "", "1")]
        );
    }

    #[test]
    fn another_certificate_is_told_to_count_after_a_restart_and_what_counts_without_one() {
        for key in ["client_tls.cert", "tls.key"] {
            let told = differences(&map(&[(key, "a.pem")]), &map(&[(key, "b.pem")]), of_router);
            let [one] = &told[..] else { panic!("{told:?}") };
            assert_eq!((&*one.key, one.verdict), (key, Verdict::AfterRestart));
            assert!(one.cause.contains("within seconds"), "{told:?}");
        }
    }

    #[test]
    fn what_no_restart_changes_is_refused_with_its_cause() {
        let (runs_with, said) = (
            map(&[("cluster.groups", "1"), ("limits.batch_max", "1"), ("limits.queue_max", "1")]),
            map(&[("cluster.groups", "2"), ("limits.batch_max", "2"), ("limits.queue_max", "2")]),
        );
        let told = differences(&runs_with, &said, of_coordinator);
        let verdicts: Vec<_> = told.iter().map(|one| one.verdict).collect();
        assert_eq!(verdicts, [Verdict::Refused, Verdict::TakenOver, Verdict::AfterRestart]);
        assert!(told[0].cause.contains("founded"), "{told:?}");
    }
}

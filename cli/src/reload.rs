//! Configuration that is read again while a role runs: on SIGHUP, with the difference told key by key.
//!
//! What can count at once does; what cannot is named, and goes on as it was until a restart. A file with a mistake changes nothing. Certificates
//! and the access file are not here: whoever uses them looks at them every two seconds.

use std::collections::BTreeMap;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Inputs, Role, Shown},
    telemetry::LogLevel,
};

/// The keys that count at once.
const LIVE: [&str; 1] = ["telemetry.level"];

/// One key that says something else than what the process runs with; secrets are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Difference {
    key: String,
    from: String,
    to: String,
}

/// Reads `inputs` again at each SIGHUP, until `stop`. `shown` is what the process runs with.
pub(crate) async fn on_hangup<T: Role>(
    inputs: Inputs,
    shown: Vec<Shown>,
    level: LogLevel,
    stop: CancellationToken,
) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            return tracing::error!(%error, "SIGHUP cannot be heard; the configuration is not read again");
        }
    };
    let mut runs_with = values(shown);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            heard = hangups.recv() => if heard.is_none() { return },
        }
        match config::load::<T>(&inputs) {
            Ok(loaded) => take_over(&mut runs_with, &values(loaded.shown), &level),
            Err(report) => {
                tracing::error!(%report, "SIGHUP: the configuration has mistakes; nothing changes");
            }
        }
    }
}

fn take_over(
    runs_with: &mut BTreeMap<String, String>,
    said: &BTreeMap<String, String>,
    level: &LogLevel,
) {
    let differences = differences(runs_with, said);
    if differences.is_empty() {
        tracing::info!("SIGHUP: the configuration says what this process runs with");
    }
    for Difference { key, from, to } in differences {
        if !LIVE.contains(&key.as_str()) {
            tracing::warn!(key, from, to, "SIGHUP: counts after a restart");
            continue;
        }
        match level.set(to.trim_matches('"')) {
            Ok(()) => {
                tracing::warn!(key, from, to, "SIGHUP: taken over");
                runs_with.insert(key, to);
            }
            Err(why) => tracing::warn!(key, from, to, why, "SIGHUP: not taken over"),
        }
    }
}

fn values(shown: Vec<Shown>) -> BTreeMap<String, String> {
    shown.into_iter().map(|one| (one.key, one.value)).collect()
}

/// What differs, by key; a key that is not said, or was not, is empty there.
fn differences(
    runs_with: &BTreeMap<String, String>,
    said: &BTreeMap<String, String>,
) -> Vec<Difference> {
    let keys: std::collections::BTreeSet<&String> = runs_with.keys().chain(said.keys()).collect();
    let value =
        |of: &BTreeMap<String, String>, key: &String| of.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| Difference {
            key: key.clone(),
            from: value(runs_with, key),
            to: value(said, key),
        })
        .filter(|one| one.from != one.to)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_is_changed_added_and_taken_out_differs_and_nothing_else() {
        let runs_with = map(&[("a.same", "1"), ("b.changed", "1"), ("c.gone", "1")]);
        let said = map(&[("a.same", "1"), ("b.changed", "2"), ("d.new", "1")]);
        let told: Vec<_> = differences(&runs_with, &said)
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
}

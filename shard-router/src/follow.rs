//! Follows the shard rules in the coordinators' log: takes each newer epoch as soon as a node has applied it, and has the leader confirm every
//! two seconds that there is no other.
//!
//! The confirmation is a lease. A router that has heard none for `limits.rules_age_max_ms` refuses what it would have to plan; so, that
//! long after rules were applied, no router anywhere goes by older ones.

use std::{sync::Arc, time::Duration};

use holdfast_client::{Client, ClientError, ClientOptions, wire::ShardRules};
use holdfast_route::{RuleMistakes, Topology};
use metrics::gauge;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    config::{CoordinatorConfig, RouterConfig},
    door::NoStart,
    rules::{Placed, Rules, read_file},
};

/// Between two questions to the leader.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// For one node's answer.
const PATIENCE_MS: u64 = 2_000;
/// Before a watch that has ended is begun again.
const PAUSE: Duration = Duration::from_millis(250);
/// Between two looks at the age of the last confirmation, and at a rules file.
const LOOK: Duration = Duration::from_millis(250);
/// Between two lines in the log about rules that cannot be had.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Speaks to the coordinators about rules.
#[derive(Debug)]
pub(crate) struct Follower {
    client: Client,
    config: Arc<RouterConfig>,
    age_max: Duration,
}

impl Follower {
    /// # Errors
    /// There is no address.
    pub(crate) fn new(
        config: &Arc<RouterConfig>,
        coordinator: &CoordinatorConfig,
    ) -> Result<Self, ClientError> {
        let options = ClientOptions {
            patience_ms: PATIENCE_MS,
            credentials: coordinator.credentials.clone(),
            ..ClientOptions::default()
        };
        let client = Client::lazy(coordinator.addresses.iter().cloned(), options)?;
        Ok(Self { client, config: Arc::clone(config), age_max: coordinator.rules_age_max })
    }

    /// The rules to begin with: those in force, or those of the file if the log has none. Waits until the leader has said which.
    /// # Errors
    /// What is in force or in the file cannot be used.
    pub(crate) async fn first(&self) -> Result<(Placed, bool), NoStart> {
        let mut told: Option<Instant> = None;
        loop {
            let why = match self.client.rules(0).await {
                Ok(rules) => {
                    let placed = self.read(&rules)?;
                    return Ok((placed, true));
                }
                Err(ClientError::Refused { code, .. }) if code == "HF2409" => {
                    match &self.config.rules {
                        // The file is older than anything the log will ever have.
                        Some(path) => {
                            let seed = read_file(path)?.at_epoch(0);
                            let placed = Placed::new(&self.config, seed);
                            return Ok((placed.map_err(NoStart::Sources)?, false));
                        }
                        None => "no shard rules were applied yet (holdfast rules apply)".to_owned(),
                    }
                }
                Err(error) => error.to_string(),
            };
            if told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
                tracing::warn!(why, "waiting for the shard rules");
                told = Some(Instant::now());
            }
            sleep(PAUSE).await;
        }
    }

    /// Keeps `rules` as new as the log, for as long as the router runs.
    pub(crate) async fn follow(&self, rules: &Rules) {
        tokio::join!(
            self.watch(rules),
            self.ask(rules),
            self.look_at_file(rules),
            self.grow_old(rules)
        );
    }

    /// One node's stream of what it applies.
    async fn watch(&self, rules: &Rules) {
        loop {
            match self.client.watch_rules(rules.known_epoch()).await {
                Ok(mut stream) => {
                    while let Ok(Some(version)) = stream.message().await {
                        self.take(rules, &version);
                    }
                }
                Err(error) => tracing::debug!(%error, "the shard rules are not watched"),
            }
            sleep(PAUSE).await;
        }
    }

    /// The leader's word, asked for again and again.
    async fn ask(&self, rules: &Rules) {
        // Several questions may stay without an answer before what is known counts as old.
        let mut tick = interval(ASK_EVERY.min(self.age_max / 4));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let asked = Instant::now();
            match self.newest(rules).await {
                Ok(()) => rules.confirm(asked),
                Err(error) => tracing::debug!(%error, "the shard rules are not confirmed"),
            }
        }
    }

    async fn newest(&self, rules: &Rules) -> Result<(), ClientError> {
        let versions = self.client.rules_versions().await?;
        let epoch = versions.last().map_or(0, |version| version.epoch);
        if epoch > rules.known_epoch() {
            let version = self.client.rules(0).await?;
            self.take(rules, &version);
        }
        rules.went_back(epoch);
        Ok(())
    }

    fn take(&self, rules: &Rules, version: &ShardRules) {
        let read = Topology::parse(&version.text).map(|read| read.at_epoch(version.epoch));
        match read {
            Ok(read) => match Placed::new(&self.config, read.clone()) {
                Ok(placed) => {
                    rules.take(placed, true);
                }
                Err(why) => rules.leave(version.epoch, Some(&read), why),
            },
            Err(mistakes) => {
                let mistakes = RuleMistakes { file: format!("epoch {}", version.epoch), mistakes };
                rules.leave(version.epoch, None, mistakes.to_string());
            }
        }
    }

    fn read(&self, version: &ShardRules) -> Result<Placed, NoStart> {
        let file = format!("epoch {}", version.epoch);
        let read = Topology::parse(&version.text)
            .map_err(|mistakes| RuleMistakes { file, mistakes })?
            .at_epoch(version.epoch);
        Placed::new(&self.config, read).map_err(NoStart::Sources)
    }

    /// A file counts until the log has rules.
    async fn look_at_file(&self, rules: &Rules) {
        let Some(path) = &self.config.rules else { return };
        let config = Arc::clone(&self.config);
        let file = watch_file(path, rules, &config, |_| 0);
        let log = async {
            while !rules.are_of_log() {
                sleep(LOOK).await;
            }
        };
        tokio::select! { () = file => {}, () = log => {} }
    }

    /// Holds the router when the last confirmation is too old.
    async fn grow_old(&self, rules: &Rules) {
        let age = gauge!("holdfast_router_rules_age_seconds");
        loop {
            sleep(LOOK).await;
            let now = rules.age();
            age.set(now.as_secs_f64());
            if now > self.age_max {
                rules.hold_as_old(self.age_max);
            }
        }
    }
}

/// Reads the rules file again whenever it has changed. Mistaken rules are told and not taken; no session notices either. `epoch` gives the
/// epoch of what is read behind another.
pub(crate) async fn watch_file(
    path: &std::path::Path,
    rules: &Rules,
    config: &RouterConfig,
    epoch: impl Fn(u64) -> u64,
) {
    let mut known = std::fs::read_to_string(path).unwrap_or_default();
    loop {
        sleep(LOOK * 4).await;
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        if text == known {
            continue;
        }
        let read = read_file(path).and_then(|read| {
            let read = read.at_epoch(epoch(rules.in_force().placed.rules.epoch()));
            Placed::new(config, read).map_err(NoStart::Sources)
        });
        match read {
            Ok(placed) => {
                rules.take(placed, false);
            }
            Err(error) => tracing::error!(%error, "the new rules are not taken"),
        }
        known = text;
    }
}

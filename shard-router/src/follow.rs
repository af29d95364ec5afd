//! Follows the shard rules in the coordinators' log: takes each newer epoch as soon as a node has applied it, and attends at the leader, every two
//! seconds and whenever there is something new to say: by which rules it plans, and by how old ones anything is still open that it has planned.
//!
//! The leader's answer confirms that there are no other rules, and is a lease. A router whose last lease has ended, `limits.rules_age_max_ms`
//! behind its question at most, refuses what it would have to plan; so, that long after rules were applied, no router anywhere goes by older ones.

use std::{sync::Arc, time::Duration};

use holdfast_client::{
    Client, ClientError, ClientOptions,
    wire::{AttendRequest, ShardRules},
};
use holdfast_route::{MoveFate, MoveId, RuleMistakes, Topology};
use metrics::gauge;
use tokio::time::{Instant, sleep, timeout};

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
/// Between two looks whether what was planned by older rules is finished.
const WORK_LOOK: Duration = Duration::from_millis(10);
/// For a goodbye.
const LEAVE: Duration = Duration::from_secs(2);
/// Between two lines in the log about rules that cannot be had.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Speaks to the coordinators about rules.
#[derive(Debug)]
pub(crate) struct Follower {
    client: Client,
    config: Arc<RouterConfig>,
    age_max: Duration,
    /// By which the leader knows this process.
    name: String,
}

/// What a router has to say of itself: the epoch by which it plans, and the oldest one by which anything is open.
type Standing = (u64, u64);

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
        let name = format!("{}/{}", config.listen, ulid::Ulid::new());
        let age_max = coordinator.rules_age_max;
        Ok(Self { client, config: Arc::clone(config), age_max, name })
    }

    /// The rules to begin with: those in force, or those of the file if the log has none. Waits until the leader has said which, and knows of this
    /// router: whoever moves slots counts on knowing everybody who plans.
    /// # Errors
    /// What is in force or in the file cannot be used.
    pub(crate) async fn first(&self) -> Result<Rules, NoStart> {
        let mut told = None;
        let rules = loop {
            match self.read_first().await? {
                Ok((placed, from_log)) => break Rules::new(placed, from_log),
                Err(why) => wait("the shard rules", &why, &mut told).await,
            }
        };
        loop {
            let (asked, epoch) = (Instant::now(), rules.in_force().placed.rules.epoch());
            match self.confirmed(&rules, (epoch, epoch), false).await {
                Ok(lease) => {
                    rules.confirm(asked, lease.min(self.age_max));
                    return Ok(rules);
                }
                Err(why) => wait("a lease of the shard rules", &why.to_string(), &mut told).await,
            }
        }
    }

    /// What the log has, or the file; inner error: why neither is to be had yet.
    async fn read_first(&self) -> Result<Result<(Placed, bool), String>, NoStart> {
        match self.client.rules(0).await {
            Ok(rules) => Ok(Ok((self.read(&rules)?, true))),
            Err(ClientError::Refused { code, .. }) if code == "HF2409" => {
                let Some(path) = &self.config.rules else {
                    let why = "no shard rules were applied yet (holdfast rules apply)";
                    return Ok(Err(why.to_owned()));
                };
                // The file is older than anything the log will ever have.
                let placed = Placed::new(&self.config, read_file(path)?.at_epoch(0));
                Ok(Ok((placed.map_err(NoStart::Sources)?, false)))
            }
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    /// Keeps `rules` as new as the log, for as long as the router runs.
    pub(crate) async fn follow(&self, rules: &Rules, oldest: impl Fn() -> u64) {
        tokio::join!(
            self.watch(rules),
            self.attend(rules, oldest),
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

    /// The leader's word, asked for again and again, and whenever there is news for it.
    async fn attend(&self, rules: &Rules, oldest: impl Fn() -> u64) {
        // Several questions may stay without an answer before what is known counts as old.
        let every = ASK_EVERY.min(self.age_max / 4);
        let standing = || {
            // Nothing older than what is open by now is ever planned, so the epoch is looked at behind it.
            let oldest = oldest();
            let epoch = rules.in_force().placed.rules.epoch();
            (epoch, oldest.min(epoch))
        };
        loop {
            let (asked, told) = (Instant::now(), standing());
            match self.confirmed(rules, told, false).await {
                Ok(lease) => rules.confirm(asked, lease.min(self.age_max)),
                Err(error) => tracing::debug!(%error, "the shard rules are not confirmed"),
            }
            let _news_or_time = timeout(every, news(rules, told, &standing)).await;
        }
    }

    /// Says how this router stands. For how long the rules that it knows are good.
    async fn confirmed(
        &self,
        rules: &Rules,
        (epoch, oldest_epoch): Standing,
        leaves: bool,
    ) -> Result<Duration, ClientError> {
        let request = AttendRequest {
            router: self.name.clone(),
            address: self.config.listen.to_string(),
            epoch,
            oldest_epoch,
            lease_ms: u64::try_from(self.age_max.as_millis()).unwrap_or(u64::MAX),
            leaves,
            on_behalf_of: None,
        };
        let Some(reply) = self.client.attend_if_known(request).await? else {
            // The coordinators are of an earlier version, which knows no leases but such as routers keep to by themselves.
            self.newest(rules).await?;
            return Ok(self.age_max);
        };
        self.catch_up(rules, epoch, reply.epoch).await?;
        Ok(Duration::from_millis(reply.lease_ms))
    }

    /// Nothing is open, and nothing will be planned any more. Who does not hear it waits for the end of the lease.
    pub(crate) async fn leave(&self, rules: &Rules) {
        let epoch = rules.in_force().placed.rules.epoch();
        match timeout(LEAVE, self.confirmed(rules, (epoch, epoch), true)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(%error, "the coordinators did not hear of the end"),
            Err(_) => tracing::info!("the coordinators did not hear of the end in time"),
        }
    }

    /// What becomes of what a move has prepared, by the versions that the coordinators keep.
    /// # Errors
    /// They cannot be asked.
    pub(crate) async fn fate(&self, id: &MoveId) -> Result<MoveFate, ClientError> {
        // One that this router cannot read says nothing, and leaves a gap.
        let read =
            |rules: ShardRules| Some(Topology::parse(&rules.text).ok()?.at_epoch(rules.epoch));
        let versions: Vec<_> =
            self.client.rules_kept().await?.into_iter().filter_map(read).collect();
        Ok(id.fate(&versions))
    }

    async fn newest(&self, rules: &Rules) -> Result<(), ClientError> {
        let known = rules.in_force().placed.rules.epoch();
        let versions = self.client.rules_versions().await?;
        self.catch_up(rules, known, versions.last().map_or(0, |version| version.epoch)).await
    }

    /// The leader has said that rules of `epoch` are the newest, when it was asked by a router that went by those of `known`.
    async fn catch_up(&self, rules: &Rules, known: u64, epoch: u64) -> Result<(), ClientError> {
        if epoch > rules.known_epoch() {
            // These and no older ones: who does not have them yet refuses, and nothing is confirmed.
            let version = self.client.rules(epoch).await?;
            self.take(rules, &version);
        }
        // What was taken while the answer was on its way is newer than the answer, and the log has not gone back.
        if epoch < known {
            rules.went_back(epoch);
        }
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
            // At once when it ends: others count on it.
            let left = rules.good_for(self.age_max);
            sleep(if left.is_zero() { LOOK } else { left.min(LOOK) }).await;
            age.set(rules.age().as_secs_f64());
            if rules.good_for(self.age_max).is_zero() {
                rules.hold_as_old(self.age_max);
            }
        }
    }
}

/// Waits until there is something that the leader was not told: other rules, or the end of what was planned by older ones.
async fn news(rules: &Rules, told: Standing, standing: impl Fn() -> Standing) {
    let mut changes = rules.news();
    loop {
        changes.borrow_and_update();
        let (epoch, oldest) = standing();
        if epoch != told.0 || (oldest == epoch && oldest != told.1) {
            return;
        }
        if oldest < epoch {
            sleep(WORK_LOOK).await;
        } else if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Waits a little for what is not to be had, and tells now and then.
async fn wait(what: &str, why: &str, told: &mut Option<Instant>) {
    if told.is_none_or(|told| told.elapsed() > TELL_EVERY) {
        tracing::warn!(why, "waiting for {what}");
        *told = Some(Instant::now());
    }
    sleep(PAUSE).await;
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

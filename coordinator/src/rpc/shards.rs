//! The gRPC service of shard rules: read by routers and their callers, changed by DBAs, kept in the log.
//!
//! The machine keeps a text; here it is read by the route mind, so that rules with a mistake never come into the log.

use std::sync::Arc;

use holdfast_client::{FORWARD_HEADER, FORWARD_NEVER, Line};
use holdfast_proto::v1::{
    ApplyRulesReply, ApplyRulesRequest, AttendReply, AttendRequest, KeyPlace, ListRoutersReply,
    ListRoutersRequest, ListVersionsReply, ListVersionsRequest, LocateReply, LocateRequest,
    RevertRulesRequest, ShardRules, ShowRulesRequest, SubmitRequest, WatchRulesRequest,
    exchange_request,
    shards_client::ShardsClient,
    shards_server::{Shards as Service, ShardsServer},
};
use holdfast_route::Topology;
use holdfast_security::Right;
use holdfast_txn::{Command, Gid, Rejection, RulesVersion, limit};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, metadata::AsciiMetadataValue};

use super::{
    check,
    desk::{Desk, Hop},
    fault::{Class, Fault, Findings},
    forward::on_behalf,
    read_rules::read,
    transactions::{behalf, hop},
};
use crate::rights::{self, Shown};

/// Bytes of a request: the rules, and words beside them.
const REQUEST_BYTES_MAX: usize = limit::RULES_BYTES_MAX + 16 * 1024;
/// Tables and groups that a refusal names.
const STRAYS_SHOWN_MAX: usize = 5;
/// Rules do not follow those in force, as far as a move of slots is concerned.
const OUT_OF_TURN: &str = "HF2415";
/// Keys that one request locates.
pub(crate) const KEYS_MAX: usize = 1_000;

/// `holdfast.v1.Shards` at one node's desk.
#[derive(Clone, Debug)]
pub struct Shards {
    desk: Desk,
}

/// The service as tonic serves it.
#[must_use]
pub fn service(desk: Desk) -> ShardsServer<Shards> {
    ShardsServer::new(Shards { desk }).max_decoding_message_size(REQUEST_BYTES_MAX)
}

impl Shards {
    fn desk<T>(&self, request: &Request<T>) -> Result<Desk, Status> {
        let shown = request.extensions().get::<Shown>();
        self.desk.serving(shown).map_err(|fault| fault.to_status())
    }
}

fn answered<T>(answer: Result<T, Fault>) -> Result<Response<T>, Status> {
    answer.map(Response::new).map_err(|fault| fault.to_status())
}

#[tonic::async_trait]
impl Service for Shards {
    async fn show(
        &self,
        request: Request<ShowRulesRequest>,
    ) -> Result<Response<ShardRules>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.rules(request.into_inner(), hop).await)
    }

    async fn apply(
        &self,
        request: Request<ApplyRulesRequest>,
    ) -> Result<Response<ApplyRulesReply>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.apply_rules(request.into_inner(), hop).await)
    }

    async fn revert(
        &self,
        request: Request<RevertRulesRequest>,
    ) -> Result<Response<ApplyRulesReply>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.revert_rules(request.into_inner(), hop).await)
    }

    async fn list_versions(
        &self,
        request: Request<ListVersionsRequest>,
    ) -> Result<Response<ListVersionsReply>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.rules_versions(request.into_inner(), hop).await)
    }

    type WatchStream = ReceiverStream<Result<ShardRules, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRulesRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let desk = self.desk(&request)?;
        let coordinator = desk.coordinator().clone();
        let Some((mut epochs, place)) = coordinator.watchers().watch_rules() else {
            let words = "nothing was done: as many watch here as there is place for. Ask another node, or later";
            return Err(Fault::new(Class::Full, "HF2310", words.to_owned()).to_status());
        };
        let mut sent = request.into_inner().after_epoch;
        let (sender, rules) = mpsc::channel(1);
        let stopping = coordinator.stopping();
        tokio::spawn(async move {
            let _place = place;
            loop {
                // Marked as seen before it is read, so that no change falls between the two.
                let _seen = *epochs.borrow_and_update();
                let now = coordinator.books().rules_now().cloned();
                if let Some(version) = now.filter(|version| version.epoch > sent) {
                    sent = version.epoch;
                    if sender.send(Ok(to_wire(&version, true))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    () = sender.closed() => return,
                    changed = epochs.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(rules)))
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateReply>, Status> {
        let desk = self.desk(&request)?;
        answered(desk.locate(&request.into_inner()))
    }

    async fn attend(
        &self,
        request: Request<AttendRequest>,
    ) -> Result<Response<AttendReply>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.attend(request.into_inner(), hop).await)
    }

    async fn list_routers(
        &self,
        request: Request<ListRoutersRequest>,
    ) -> Result<Response<ListRoutersReply>, Status> {
        let (desk, hop) = (self.desk(&request)?, hop(request.metadata()));
        answered(desk.routers(request.into_inner(), hop).await)
    }
}

fn to_wire(version: &RulesVersion, whole: bool) -> ShardRules {
    ShardRules {
        epoch: version.epoch,
        text: if whole { version.text.clone() } else { String::new() },
        at_ms: version.at.0,
        by: version.by.clone(),
        reason: version.reason.clone(),
    }
}

impl Desk {
    /// The rules in force, or those of a former epoch.
    pub(crate) async fn rules(
        &self,
        request: ShowRulesRequest,
        hop: Hop,
    ) -> Result<ShardRules, Fault> {
        let (leads, leader) = self.leading();
        if !leads && !request.stale {
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.show(never_on(request)).await);
        }
        self.kept(request.epoch).map(|version| to_wire(&version, true))
    }

    /// The versions that are kept.
    pub(crate) async fn rules_versions(
        &self,
        request: ListVersionsRequest,
        hop: Hop,
    ) -> Result<ListVersionsReply, Fault> {
        let (leads, leader) = self.leading();
        if !leads && !request.stale {
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.list_versions(never_on(request)).await);
        }
        if !request.stale {
            // Routers take it as the word that there is nothing newer.
            let fresh = self.coordinator().barrier().await;
            fresh.map_err(|error| Fault::not_proposed(&error))?;
        }
        let books = self.coordinator().books();
        let versions = books.rules.iter().map(|version| to_wire(version, false)).collect();
        Ok(ListVersionsReply { versions })
    }

    /// Checks rules and puts them into force.
    pub(crate) async fn apply_rules(
        &self,
        request: ApplyRulesRequest,
        hop: Hop,
    ) -> Result<ApplyRulesReply, Fault> {
        let desk = self.of_dba(request.on_behalf_of.as_ref())?;
        let (leads, leader) = self.leading();
        if !leads {
            let request = ApplyRulesRequest { on_behalf_of: desk.asker(), ..request };
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.apply(never_on(request)).await);
        }
        let ApplyRulesRequest { text, expected_epoch, reason, dry_run, dev_name, .. } = request;
        let by = desk.signature(&dev_name)?;
        let moved = request.rows_are_moved;
        desk.set_rules(text, expected_epoch, by, (reason, moved), dry_run).await
    }

    /// Puts the rules of a former epoch into force again.
    pub(crate) async fn revert_rules(
        &self,
        request: RevertRulesRequest,
        hop: Hop,
    ) -> Result<ApplyRulesReply, Fault> {
        let desk = self.of_dba(request.on_behalf_of.as_ref())?;
        let (leads, leader) = self.leading();
        if !leads {
            let request = RevertRulesRequest { on_behalf_of: desk.asker(), ..request };
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.revert(never_on(request)).await);
        }
        let RevertRulesRequest { to_epoch, expected_epoch, reason, dry_run, dev_name, .. } =
            request;
        if to_epoch == 0 {
            let mut findings = Findings::default();
            findings.add("to_epoch", "missing; name the epoch whose rules shall be in force again");
            findings.verdict()?;
        }
        let to = desk.kept(to_epoch)?;
        if desk.read_rules().of(&to)?.moving().is_some() {
            let words = format!(
                "nothing was done: the rules of epoch {to_epoch} have [moving], which counts once. Name an epoch without it; slots that have moved are moved back by holdfast rules move"
            );
            return Err(Fault::new(Class::WrongStatus, OUT_OF_TURN, words));
        }
        let text = to.text.clone();
        let by = desk.signature(&dev_name)?;
        let moved = request.rows_are_moved;
        desk.set_rules(text, expected_epoch, by, (reason, moved), dry_run).await
    }

    /// Where keys live.
    pub(crate) fn locate(&self, request: &LocateRequest) -> Result<LocateReply, Fault> {
        let count = request.keys.len();
        if count == 0 || count > KEYS_MAX {
            let mut findings = Findings::default();
            findings.add("keys", format_args!("{count} of them, allowed are 1 to {KEYS_MAX}"));
            findings.verdict()?;
        }
        let rules = self.topology()?;
        let places = request.keys.iter().map(|key| {
            let place = rules.locate(&request.group, key).map_err(|refused| {
                Fault::new(Class::BadInput, refused.code(), format!("nothing was found: {refused}"))
            })?;
            Ok(KeyPlace {
                key: key.clone(),
                slot: place.slot.number().into(),
                shard: place.shard.to_string(),
                source: place.source.to_string(),
                address: place.address.to_string(),
            })
        });
        let places = places.collect::<Result<_, Fault>>()?;
        Ok(LocateReply { places, epoch: rules.epoch() })
    }

    async fn set_rules(
        &self,
        text: String,
        expected: u64,
        by: String,
        (reason, rows_are_moved): (String, bool),
        dry_run: bool,
    ) -> Result<ApplyRulesReply, Fault> {
        let mut findings = Findings::default();
        check::reason(&mut findings, &reason);
        let (bytes, most) = (text.len(), limit::RULES_BYTES_MAX);
        if bytes == 0 || bytes > most {
            findings.add("text", format_args!("{bytes} bytes, allowed are 1 to {most}"));
        }
        findings.verdict()?;
        let after = read(&text)?;
        self.in_turn(&after, expected).await?;
        let reason = self.reason_of(reason, &after, expected, rows_are_moved)?;
        let epoch = expected.saturating_add(1);
        if dry_run {
            let now = self.coordinator().books().epoch();
            return if now == expected {
                Ok(ApplyRulesReply { epoch, repeated: false })
            } else {
                let changed = Rejection::RulesChanged { epoch: now, expected };
                Err(Fault::rejected(&changed))
            };
        }
        let command = Command::SetRules { text, expected, by, reason };
        let applied = self.coordinator().propose(command).await;
        let applied = applied.map_err(|error| Fault::not_proposed(&error))?;
        let outcome = applied.result.map_err(|rejection| Fault::rejected(&rejection))?;
        Ok(ApplyRulesReply { epoch, repeated: outcome.repeated })
    }

    /// HF2415: a move of slots is under way, or would be, and the rules `after` do not follow those of epoch `expected` as it must go.
    async fn in_turn(&self, after: &Topology, expected: u64) -> Result<(), Fault> {
        let coordinator = self.coordinator();
        if expected > coordinator.books().epoch() {
            // Another node may have shown them already. This one must have them too, to judge what follows them.
            coordinator.barrier().await.map_err(|error| Fault::not_proposed(&error))?;
        }
        let books = coordinator.books();
        let epoch = books.epoch();
        if expected > epoch {
            return Err(Fault::rejected(&Rejection::RulesChanged { epoch, expected }));
        }
        let until: Vec<_> =
            books.rules.iter().take_while(|version| version.epoch <= expected).collect();
        let Some(before) = until.last().filter(|version| version.epoch == expected) else {
            // Nothing to follow, or an epoch that is not kept, which the log refuses.
            return turn(after, &[]);
        };
        let known = self.read_rules();
        let kept: Vec<_> = match known.of(before) {
            Ok(_) => until.into_iter().filter_map(|version| known.of(version).ok()).collect(),
            Err(_) => Vec::new(),
        };
        turn(after, &kept)
    }

    /// The reason that is recorded with the rules `after`, which follow those of epoch `expected`: it says so where rows had to be moved
    /// by hand.
    /// # Errors
    /// HF2413: rows would be looked for where they are not, and nobody says that they were moved. HF2301: with that, it is too long.
    fn reason_of(
        &self,
        reason: String,
        after: &Topology,
        expected: u64,
        rows_are_moved: bool,
    ) -> Result<String, Fault> {
        let books = self.coordinator().books();
        let before = books.rules.iter().find(|version| version.epoch == expected);
        // An epoch that is not in force is judged by the log.
        let Some(before) = before.and_then(|version| Topology::parse(&version.text).ok()) else {
            return Ok(reason);
        };
        let strays = before.strays(after);
        match (strays.as_slice(), rows_are_moved) {
            ([], _) => Ok(reason),
            (_, true) => {
                let reason = format!("{reason} (rows are moved)");
                let mut findings = Findings::default();
                check::reason(&mut findings, &reason);
                findings.verdict()?;
                Ok(reason)
            }
            (strays, false) => {
                let shown: Vec<&str> =
                    strays.iter().take(STRAYS_SHOWN_MAX).map(String::as_str).collect();
                let more = match strays.len() - shown.len() {
                    0 => String::new(),
                    more => format!(", and {more} more"),
                };
                let words = format!(
                    "nothing was done: rows would be looked for where they are not: {}{more}. Move the rows first and say so \
                     (--rows-are-moved, rows_are_moved), or give the new key another group with tables of its own",
                    shown.join("; ")
                );
                Err(Fault::new(Class::WrongStatus, "HF2413", words))
            }
        }
    }

    /// HF2410: what a transaction has written was placed by rules that are not in force any more, and rows lie elsewhere now. A transaction that is
    /// known already is not judged again.
    ///
    /// This is judged by the rules that this node has applied, before the proposal, so other rules may come between. The order in the log does not
    /// guard it, and cannot where the transaction's group is not the one that keeps the rules. It need not: what the transaction has prepared
    /// has locked its rows, and a mover locks the tables before it decides; and a router tells the transaction's epoch as its oldest until the
    /// second phase is over, for which the mover waits. So a move is decided behind such a transaction, or behind what was rolled back.
    /// Whoever moves rows by hand waits out the routers' leases for the same reason.
    pub(crate) fn outdated(&self, gid: &Gid, request: &exchange_request::Request) -> Option<Fault> {
        use exchange_request::Request::Submit;
        let Submit(SubmitRequest { rules_epoch: Some(by), .. }) = request else {
            return None;
        };
        let coordinator = self.coordinator();
        let books = coordinator.books();
        let now = books.rules_now().filter(|now| *by < now.epoch)?;
        if !coordinator.group_of(gid).leads() || coordinator.known(gid).is_some() {
            return None;
        }
        let older = books.rules.iter().find(|version| version.epoch == *by);
        if older.is_some_and(|older| self.read_rules().keep_plans(now, older)) {
            return None;
        }
        let now = now.epoch;
        let words = format!(
            "nothing was done: what was written was placed by shard rules of epoch {by}, and by those of epoch {now}, which are in force, rows lie elsewhere. Begin again by these"
        );
        Some(Fault::new(Class::WrongStatus, "HF2410", words))
    }

    /// HF2409: there are no such rules.
    fn kept(&self, epoch: u64) -> Result<Arc<RulesVersion>, Fault> {
        let books = self.coordinator().books();
        let found = match epoch {
            0 => books.rules_now(),
            epoch => books.rules.iter().find(|version| version.epoch == epoch),
        };
        found.cloned().ok_or_else(|| {
            let words = match (epoch, books.rules.front()) {
                (_, None) => {
                    "no shard rules were ever applied. Apply some: holdfast rules apply".to_owned()
                }
                (epoch, Some(oldest)) => format!(
                    "the rules of epoch {epoch} are not kept; those of {} to {} are",
                    oldest.epoch,
                    books.epoch()
                ),
            };
            Fault::new(Class::NotFound, "HF2409", words)
        })
    }

    /// The rules in force, read.
    fn topology(&self) -> Result<Arc<Topology>, Fault> {
        self.read_rules().of(&self.kept(0)?)
    }

    /// The desk as it serves whoever changes rules, also by way of another node.
    fn of_dba(&self, told: Option<&holdfast_proto::v1::OnBehalf>) -> Result<Self, Fault> {
        let desk = behalf(self.clone(), told)?;
        rights::require(desk.caller(), Right::Rule)?;
        Ok(desk)
    }

    pub(super) fn asker(&self) -> Option<holdfast_proto::v1::OnBehalf> {
        (!self.caller().is_dev()).then(|| on_behalf(self.caller()))
    }

    pub(super) async fn leader_of_shards(
        &self,
        leader: Option<String>,
        hop: Hop,
    ) -> Result<ShardsClient<Line>, Fault> {
        let Some(address) = leader.filter(|_| hop == Hop::May) else {
            return Err(self.not_the_leader());
        };
        let options = self.coordinator().config().security.client();
        let channel = holdfast_client::channel(&address, &options).await;
        let channel = channel.map_err(|error| Fault::out_of_reach(&error))?;
        Ok(ShardsClient::new(channel).max_encoding_message_size(REQUEST_BYTES_MAX))
    }
}

fn turn(after: &Topology, kept: &[Arc<Topology>]) -> Result<(), Fault> {
    let kept: Vec<&Topology> = kept.iter().map(AsRef::as_ref).collect();
    after.in_turn(&kept).map_err(|why| {
        let words = format!("nothing was done: {}. {}", why.cause, why.remedy);
        Fault::new(Class::WrongStatus, OUT_OF_TURN, words)
    })
}

pub(super) fn handed_on<T>(reply: Result<Response<T>, Status>) -> Result<T, Fault> {
    reply.map(Response::into_inner).map_err(|status| Fault::from_status(&status))
}

pub(super) fn never_on<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    let never = AsciiMetadataValue::from_static(FORWARD_NEVER);
    request.metadata_mut().insert(FORWARD_HEADER, never);
    request
}

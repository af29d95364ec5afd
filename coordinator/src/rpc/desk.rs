//! The desk behind every door: checks a request, has it carried out here or by the leader, and says what came of it.
//!
//! HTTP, unary gRPC and the exchange stream all come here, so that they never differ. A request is handed to the leader
//! at most once: one that was handed on already, or that asked not to be, is told where the leader is instead.

use std::{sync::Arc, time::Duration};

use holdfast_proto::v1::{
    self, ListReply, NodeStatusReply, NodeStatusRequest, TransactionReply, exchange_reply::Reply,
    exchange_request::Request,
};
use holdfast_security::{Caller, Right, Scope};
use holdfast_txn::{Act as OperatorAct, Command, Gid, GlobalTransaction};
use metrics::Counter;
use tokio::time::Instant;

use super::{
    check::{self, Act, Checked, Patience},
    check_list, defaults,
    fault::{Class, Fault, Findings},
    forward::Forward,
    read_rules::ReadRules,
    show, traced,
};
use crate::{
    Coordinator, Freshness, ProposeError, WaitEnd,
    config::Security,
    group::Group,
    rights::{self, Shown},
};

/// The gid has other content.
const TAKEN: &str = "HF2002";

/// One node's desk. A handle: clones are the same desk.
#[derive(Clone, Debug)]
pub struct Desk {
    inner: Arc<Inner>,
    caller: Arc<Caller>,
}

#[derive(Debug)]
struct Inner {
    coordinator: Coordinator,
    forward: Forward,
    counts: Counts,
    rules: ReadRules,
}

/// Whether a request may be handed to the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    /// It comes from a caller.
    May,
    /// It was handed on already, or its sender looks for the leader itself.
    Never,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Told {
    /// The transaction it is about: the caller's gid, or the one made here.
    pub(crate) gid: String,
    pub(crate) reply: TransactionReply,
}

/// What came of a request at this node.
enum Here {
    Told(TransactionReply),
    Fault(Fault),
    /// This node does not lead; the leader's gRPC address, if known.
    Elsewhere(Option<String>, Fault),
}

impl Desk {
    /// The desk of `coordinator`. Install the metrics recorder before: its counters are fetched here.
    #[must_use]
    pub fn new(coordinator: Coordinator) -> Self {
        let security = &coordinator.config().security;
        // Until somebody has shown something, the desk serves nobody.
        let caller = match security {
            Security::DevPlaintext => Caller::dev(),
            Security::MutualTls { .. } => Caller::anonymous(),
        };
        let forward = Forward::new(security.client());
        let counts = Counts::default();
        let rules = ReadRules::default();
        let inner = Arc::new(Inner { coordinator, forward, counts, rules });
        Self { inner, caller: Arc::new(caller) }
    }

    /// The same desk, as it serves whoever has shown this.
    /// # Errors
    /// HF2601: what was shown does not count, or not any more.
    pub(crate) fn serving(&self, shown: Option<&Shown>) -> Result<Self, Fault> {
        match shown {
            // In mode dev-plaintext the desk is everybody's from the beginning.
            Some(shown) if shown.is_dev() => Ok(self.clone()),
            Some(shown) => Ok(self.serving_caller(shown.caller()?)),
            None => Ok(self.clone()),
        }
    }

    /// The same desk, as it serves `caller`.
    pub(crate) fn serving_caller(&self, caller: Arc<Caller>) -> Self {
        Self { inner: Arc::clone(&self.inner), caller }
    }

    /// Whom this desk serves: who acts, in audit records.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.inner.coordinator
    }

    pub(super) fn read_rules(&self) -> &ReadRules {
        &self.inner.rules
    }

    /// Answers `request`. An open outcome is told as unknown, never as a fault.
    pub(crate) async fn answer(&self, mut request: Request, hop: Hop) -> Result<Told, Fault> {
        let counts = self.inner.counts.of(&request);
        let answer = self.handle(&mut request, hop).await;
        counts.of(&answer).increment(1);
        answer
    }

    /// Every request holds the room of this as long as it is under way, and is moved about before: so what few requests come to is boxed.
    async fn handle(&self, request: &mut Request, hop: Hop) -> Result<Told, Fault> {
        let began = Instant::now();
        let scope = rights::allow(&self.caller, request)?;
        rights::stamp(&self.caller, request);
        let begins = matches!(request, Request::Submit(_) | Request::Begin(_));
        let timeouts = &self.inner.coordinator.timeouts();
        let Checked { gid, act } = check::check(request, timeouts)?;
        let (wait, here) = match act {
            Act::Propose(command, _) if dry_run(request) => {
                let command = self.signed(command, request)?;
                (Duration::ZERO, self.foresee(&gid, command))
            }
            Act::Propose(command, patience) => {
                let command = self.signed(command, request)?;
                let wait = patience.map_or(Duration::ZERO, |patience| patience.at_most);
                let outdated = self.outdated(&gid, request).map(Here::Fault);
                let here = match outdated.or_else(|| self.not_own(&gid, scope, begins)) {
                    Some(here) => here,
                    None => self.propose(&gid, command, patience, began).await,
                };
                let here = match here {
                    Here::Fault(fault)
                        if fault.code == TAKEN && self.says_nothing_else(&gid, request) =>
                    {
                        match check::check(request, timeouts)?.act {
                            Act::Propose(command, _) => {
                                Box::pin(self.propose(&gid, command, patience, began)).await
                            }
                            Act::Get(_) | Act::Wait(_) => Here::Fault(fault),
                        }
                    }
                    here => here,
                };
                (wait, here)
            }
            Act::Get(freshness) => {
                (Duration::ZERO, Box::pin(self.get(&gid, freshness, scope)).await)
            }
            Act::Wait(patience) => {
                (patience.at_most, Box::pin(self.wait(&gid, patience, scope)).await)
            }
        };
        let told = |reply| Ok(Told { gid: gid.as_str().to_owned(), reply });
        match here {
            Here::Told(reply) => told(self.with_proposal(&gid, reply)),
            Here::Fault(fault) => Err(fault.about(&gid)),
            Here::Elsewhere(Some(leader), _) if hop == Hop::May => {
                let request = request.clone();
                let handed =
                    Box::pin(self.inner.forward.hand_over(&leader, request, wait, &self.caller));
                match handed.await {
                    Ok(Reply::Transaction(reply)) => told(reply),
                    Ok(Reply::Error(error)) => Err(Fault::from_wire(error).about(&gid)),
                    Err(fault) => Err(fault.about(&gid)),
                }
            }
            Here::Elsewhere(_, fault) => Err(fault.about(&gid)),
        }
    }

    /// The command of an operator, with its name; other commands as they are.
    fn signed(&self, command: Command, request: &Request) -> Result<Command, Fault> {
        let by = || match request {
            Request::Operate(operate) => self.signature(&operate.dev_name),
            _ => self.signature(""),
        };
        let acts_are_read = self.inner.coordinator.cluster_format() >= 3;
        Ok(match command {
            Command::Operate { gid, act, reason, .. } => {
                let by = by()?;
                // While a member cannot read it as an operator's act, it is done without a record.
                if act == OperatorAct::RollBack && !acts_are_read {
                    Command::RollBack { gid, reason }
                } else {
                    Command::Operate { gid, act, by, reason }
                }
            }
            // An operator's retry is an operator's act, as soon as every member can read one.
            Command::Retry { gid, reason } if acts_are_read => {
                Command::Operate { gid, act: OperatorAct::Retry, by: by()?, reason }
            }
            other => other,
        })
    }

    /// Who acts, in audit records. Without identities, in mode dev-plaintext, a name may be given; it proves nothing, and the
    /// record shows that.
    /// # Errors
    /// HF2301: a name is given beside an identity, or is none.
    pub(super) fn signature(&self, dev_name: &str) -> Result<String, Fault> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        let words = if dev_name.is_empty() {
            return Ok(self.caller.name.clone());
        } else if !self.caller.is_dev() {
            format!(
                "you are {}; a name counts only in mode dev-plaintext. Leave it away",
                self.caller.name
            )
        } else if dev_name.len() > 32 || !dev_name.bytes().all(fits) {
            "the name is 1 to 32 letters, digits, points, hyphens and underscores".to_owned()
        } else {
            return Ok(format!("dev:{dev_name}"));
        };
        Err(Fault::new(Class::BadInput, "HF2301", format!("nothing was done: {words}")))
    }

    /// What would come of `command`, without it.
    fn foresee(&self, gid: &Gid, command: Command) -> Here {
        let coordinator = &self.inner.coordinator;
        let group = coordinator.group_of(gid);
        if !group.leads() {
            return Here::of(&ProposeError::NotLeader { leader: group.leader() });
        }
        match coordinator.foresee(gid, command) {
            Ok((outcome, then)) => Here::Told(show::reply(Some(&then), outcome.repeated)),
            Err(rejection) => Here::Fault(Fault::rejected(&rejection)),
        }
    }

    /// The same reply, with what is proposed for the transaction.
    fn with_proposal(&self, gid: &Gid, mut reply: TransactionReply) -> TransactionReply {
        let status = reply.transaction.as_ref().map(v1::Transaction::status);
        if status == Some(v1::Status::NeedsAttention) {
            let books = self.inner.coordinator.group_of(gid).books();
            reply.proposal = books.proposals.get(gid).map(show::proposal);
        }
        reply
    }

    /// Why a command of somebody who may act on its own alone goes no further here. Asked of the leader's state, in which
    /// everything acknowledged is; a tenant never changes.
    fn not_own(&self, gid: &Gid, scope: Scope, begins: bool) -> Option<Here> {
        if scope == Scope::All || begins {
            return None;
        }
        let coordinator = &self.inner.coordinator;
        let group = coordinator.group_of(gid);
        if !group.leads() {
            return Some(Here::of(&ProposeError::NotLeader { leader: group.leader() }));
        }
        match coordinator.known(gid) {
            Some(known) if rights::owned(&self.caller, &known) => None,
            Some(_) => Some(Here::Fault(rights::not_yours(&self.caller))),
            None => Some(Here::found(gid, None)),
        }
    }

    /// Whether the trace that a request belongs to, or a timeout that it leaves out, told it from the first one with this gid. They do so
    /// no more.
    fn says_nothing_else(&self, gid: &Gid, request: &mut Request) -> bool {
        let first = self.inner.coordinator.known(gid);
        first.is_some_and(|first| {
            let span = traced::as_first(request, &first);
            defaults::as_first(request, &first) || span
        })
    }

    /// What was found, if the caller may see it.
    fn seen(&self, known: Option<&GlobalTransaction>, scope: Scope) -> Result<(), Fault> {
        match known {
            Some(known) if scope != Scope::All && !rights::owned(&self.caller, known) => {
                Err(rights::not_yours(&self.caller))
            }
            _ => Ok(()),
        }
    }

    async fn propose(
        &self,
        gid: &Gid,
        command: holdfast_txn::Command,
        patience: Option<Patience>,
        began: Instant,
    ) -> Here {
        let coordinator = &self.inner.coordinator;
        let outcome = match coordinator.propose(command).await {
            Ok(applied) => match applied.result {
                Ok(outcome) => outcome,
                Err(rejection) => return Here::Fault(Fault::rejected(&rejection)),
            },
            Err(error) => return Here::of(&error),
        };
        // From here on it is durable: whatever goes wrong, the caller has a transaction to ask for.
        let known = match patience {
            Some(Patience { until, at_most }) => {
                let left = at_most.saturating_sub(began.elapsed());
                coordinator.wait(gid, until, left).await.transaction
            }
            None => coordinator.get(gid, Freshness::Stale).await.ok().flatten(),
        };
        Here::Told(show::reply(known.as_deref(), outcome.repeated))
    }

    async fn get(&self, gid: &Gid, freshness: Freshness, scope: Scope) -> Here {
        match self.inner.coordinator.get(gid, freshness).await {
            // It may have left the machine: then the history knows how it ended, and not whose it was.
            Ok(None) if scope == Scope::All => match self.remembered(gid).await {
                Some(known) => Here::Told(show::remembered(known)),
                None => Here::found(gid, None),
            },
            Ok(known) => match self.seen(known.as_deref(), scope) {
                Ok(()) => Here::found(gid, known.as_deref()),
                Err(fault) => Here::Fault(fault),
            },
            Err(error) => Here::of(&error),
        }
    }

    async fn wait(&self, gid: &Gid, patience: Patience, scope: Scope) -> Here {
        if let Err(fault) = self.seen(self.inner.coordinator.known(gid).as_deref(), scope) {
            return Here::Fault(fault);
        }
        let Patience { until, at_most } = patience;
        let waited = self.inner.coordinator.wait(gid, until, at_most).await;
        match (waited.end, waited.transaction) {
            (
                WaitEnd::Reached
                | WaitEnd::TimedOut
                | WaitEnd::NeedsAttention
                | WaitEnd::Overloaded,
                Some(known),
            ) => match self.seen(Some(&known), scope) {
                Ok(()) => Here::Told(show::reply(Some(&known), false)),
                Err(fault) => Here::Fault(fault),
            },
            // A node that was the leader until just now may know too little: a linearizable read tells.
            _ => self.get(gid, Freshness::Linearizable, scope).await,
        }
    }

    /// A page of transactions as this node knows them.
    pub(crate) async fn list(&self, request: &v1::ListRequest) -> Result<ListReply, Fault> {
        let scope = rights::require(&self.caller, Right::Read)?;
        let listing = check_list::check_list(request)?;
        let coordinator = &self.inner.coordinator;
        let (mut page, next) = coordinator
            .list(&listing.wanted, listing.after.as_ref(), listing.limit)
            .await
            .map_err(|error| Fault::not_proposed(&error))?;
        page.retain(|known| scope == Scope::All || rights::owned(&self.caller, known));
        Ok(ListReply {
            transactions: page.iter().map(show::transaction).collect(),
            next_after_gid: next.map(|gid| gid.to_string()).unwrap_or_default(),
        })
    }

    /// Whether this node leads group 0, and the gRPC address of its leader where it is known.
    pub(crate) fn leading(&self) -> (bool, Option<String>) {
        let group = self.inner.coordinator.group(0);
        (group.leads(), group.leader().map(|leader| leader.grpc))
    }

    /// HF2101, with the leader of group 0 where it is known.
    pub(crate) fn not_the_leader(&self) -> Fault {
        let leader = self.inner.coordinator.group(0).leader();
        Fault::not_proposed(&ProposeError::NotLeader { leader })
    }

    /// What this node knows of itself in a group.
    /// # Errors
    /// HF2301: there is no such group.
    pub(crate) async fn node_status(
        &self,
        NodeStatusRequest { group, state_hash }: NodeStatusRequest,
    ) -> Result<NodeStatusReply, Fault> {
        let asked = self.group(group)?;
        let coordinator = &self.inner.coordinator;
        let hashed = if state_hash { Some(asked.state_hash().await) } else { None };
        let status = coordinator.status_in(group).expect("it is there");
        Ok(show::node(status, hashed, coordinator.groups()))
    }

    /// A group that a caller names.
    /// # Errors
    /// HF2301: there is no such group.
    pub(crate) fn group(&self, number: u32) -> Result<&Group, Fault> {
        let coordinator = &self.inner.coordinator;
        let groups = coordinator.groups();
        if number >= groups {
            let mut findings = Findings::default();
            findings.add("group", format_args!("{number}, there are 0 to {}", groups - 1));
            findings.verdict()?;
        }
        Ok(coordinator.group(number))
    }
}

impl Here {
    fn of(error: &ProposeError) -> Self {
        let fault = Fault::not_proposed(error);
        match error {
            ProposeError::NotLeader { leader } => {
                Self::Elsewhere(leader.as_ref().map(|leader| leader.grpc.clone()), fault)
            }
            ProposeError::Unknown { .. }
            | ProposeError::Overloaded { .. }
            | ProposeError::TooNew { .. }
            | ProposeError::Stopped => Self::Fault(fault),
        }
    }

    fn found(gid: &Gid, known: Option<&GlobalTransaction>) -> Self {
        match known {
            Some(known) => Self::Told(show::reply(Some(known), false)),
            None => {
                let rejection = holdfast_txn::Rejection::UnknownGid { gid: gid.clone() };
                Self::Fault(Fault::rejected(&rejection))
            }
        }
    }
}

/// Whether an operator only wants to see.
fn dry_run(request: &Request) -> bool {
    matches!(request, Request::Operate(operate) if operate.dry_run)
}

/// Requests by kind and by result.
#[derive(Debug)]
struct Counts([Results; 10]);

/// The results of one kind of request.
struct Results {
    ok: Counter,
    refused: Counter,
    retry: Counter,
    unknown: Counter,
}

impl std::fmt::Debug for Results {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Results")
    }
}

impl Default for Counts {
    fn default() -> Self {
        let names = [
            "submit",
            "begin",
            "add_branch",
            "submit_begun",
            "roll_back",
            "get",
            "wait",
            "retry",
            "finish",
            "operate",
        ];
        Self(names.map(|request| {
            let counter = |result: &'static str| {
                metrics::counter!("holdfast_requests_total", "request" => request, "result" => result)
            };
            Results {
                ok: counter("ok"),
                refused: counter("refused"),
                retry: counter("retry"),
                unknown: counter("unknown"),
            }
        }))
    }
}

impl Counts {
    fn of(&self, request: &Request) -> &Results {
        let index = match request {
            Request::Submit(_) => 0,
            Request::Begin(_) => 1,
            Request::AddBranch(_) => 2,
            Request::SubmitBegun(_) => 3,
            Request::RollBack(_) => 4,
            Request::Get(_) => 5,
            Request::Wait(_) => 6,
            Request::Retry(_) => 7,
            Request::Finish(_) => 8,
            Request::Operate(_) => 9,
        };
        &self.0[index]
    }
}

impl Results {
    fn of(&self, answer: &Result<Told, Fault>) -> &Counter {
        match answer.as_ref().map_err(|fault| fault.class) {
            Ok(_) => &self.ok,
            Err(
                Class::BadInput
                | Class::NotFound
                | Class::Taken
                | Class::WrongStatus
                | Class::Unauthenticated
                | Class::Denied,
            ) => &self.refused,
            Err(Class::Unavailable | Class::Full | Class::Throttled) => &self.retry,
            Err(Class::Unknown) => &self.unknown,
        }
    }
}

//! The client: each request pursued until it is answered or its time is up.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Answer, BranchSpec, ClientError, ClientOptions, Filter, Page, Submission, Terms, Transaction,
    Wait,
    leader::Leader,
    link::OpenError,
    spans::Pursued,
    wire::{
        self, AddBranchRequest, BeginRequest, ErrorKind, GetRequest, RetryRequest, RollBackRequest,
        SubmitBegunRequest, SubmitRequest, TransactionReply, WaitRequest,
        admin_client::AdminClient, exchange_reply::Reply, exchange_request::Request,
        transactions_client::TransactionsClient,
    },
};

/// The longest wait that a coordinator grants in one request, ms.
const WAIT_MS_MAX: u64 = 60_000;
/// How much longer than the coordinator's wait an answer may be on its way.
const GRACE: Duration = Duration::from_millis(500);
/// Refused since the gid has other content.
const GID_TAKEN: &str = "HF2002";
/// Refused since the transaction is in another status.
const WRONG_STATUS: &str = "HF2004";
/// The node leads and is well, but full: asking another would not help.
const FULL: [&str; 3] = ["HF2007", "HF2103", "HF2607"];

/// Begins global transactions and asks for their fate. A handle: clones share one stream.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ClientOptions,
    leader: Leader,
    turns: Semaphore,
}

/// A request that came to nothing.
struct Futile {
    /// It may have arrived somewhere.
    sent: bool,
    /// The coordinator's last word of kind *retry*.
    retry: Option<wire::Error>,
    /// The last fault, for people.
    last: String,
}

impl Client {
    /// A client of the cluster that the nodes at `addresses` (gRPC, `host:port`) belong to; one is enough, the others are
    /// learnt. Returns when the leader is found.
    /// # Errors
    /// [`ClientError::Unreachable`] if none is found within the options' patience.
    pub async fn connect<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let client = Self::lazy(addresses, options)?;
        let (leader, options) = (&client.inner.leader, &client.inner.options);
        let deadline = Instant::now() + options.patience();
        let mut attempt = 0;
        let mut last = "no attempt was made".to_owned();
        loop {
            // Any group's leader shows that the cluster is there.
            match timeout_at(deadline, leader.link("")).await {
                Ok(Ok(_)) => return Ok(client),
                Ok(Err(OpenError { code: Some(code), cause, .. })) => {
                    return Err(ClientError::Refused { code, message: cause });
                }
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => {}
            }
            attempt += 1;
            if !client.pause("", attempt, deadline).await {
                return Err(ClientError::Unreachable { patience_ms: options.patience_ms, last });
            }
        }
    }

    /// As [`Self::connect`], but looks for the leader at the first request.
    /// # Errors
    /// [`ClientError::Unreachable`] if `addresses` is empty.
    pub fn lazy<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        if addresses.is_empty() {
            let last = "no address was given".to_owned();
            return Err(ClientError::Unreachable { patience_ms: 0, last });
        }
        let turns = Semaphore::new(options.in_flight_max.clamp(1, Semaphore::MAX_PERMITS));
        let leader = Leader::new(addresses, options.clone());
        Ok(Self { inner: Arc::new(Inner { options, leader, turns }) })
    }

    /// Submits a whole transaction and waits for its fate as it says. Sent again with the same gid whenever the answer is
    /// lost, so it is never begun twice. When the time is up the outcome is [`crate::Outcome::Unknown`], with the gid to ask by.
    /// # Errors
    /// [`ClientError`]: refused, or nothing was done. Never for an open outcome.
    pub async fn submit(&self, submission: Submission) -> Result<Answer, ClientError> {
        let Submission { terms, branches, wait, patience_ms, rules_epoch } = submission;
        let (gid, own) = gid_of(terms.gid);
        let request = Request::Submit(SubmitRequest {
            gid: gid.clone(),
            mode: terms.mode.into(),
            options: Some(terms.options),
            branches,
            wait: wire::Wait::from(wait).into(),
            wait_timeout_ms: 0,
            rules_epoch,
        });
        let patience = patience_ms.map_or(self.inner.options.patience(), Duration::from_millis);
        self.fate(gid, own, request, wait, patience).await
    }

    /// Opens a transaction in the enlisted style.
    /// # Errors
    /// [`ClientError`]. After [`ClientError::Unknown`] the same terms with the gid it names may be begun again.
    pub async fn begin(&self, terms: Terms) -> Result<Answer, ClientError> {
        let (gid, own) = gid_of(terms.gid);
        let request = Request::Begin(BeginRequest {
            gid: gid.clone(),
            mode: terms.mode.into(),
            options: Some(terms.options),
        });
        self.done(gid, own, request).await
    }

    /// Adds the branch with this number, from 1, to an open transaction. A repeat with the same content changes nothing.
    /// # Errors
    /// [`ClientError`].
    pub async fn add_branch(
        &self,
        gid: &str,
        branch: u32,
        spec: BranchSpec,
    ) -> Result<Answer, ClientError> {
        let spec = Some(spec.spec);
        let request =
            Request::AddBranch(AddBranchRequest { gid: gid.to_owned(), branch, spec, parent: 0 });
        self.done(gid.to_owned(), false, request).await
    }

    /// Closes an open transaction: it shall commit if every branch can.
    /// # Errors
    /// [`ClientError`]: refused, or nothing was done. Never for an open outcome.
    pub async fn submit_begun(&self, gid: &str, wait: Wait) -> Result<Answer, ClientError> {
        self.submit_capturing(gid, [], wait).await
    }

    /// As [`Client::submit_begun`], and says for some branches of a TCC transaction, by their numbers, what their confirms carry
    /// in place of what their tries carried: that less is captured than is held. Never say more than is held: a participant
    /// refuses that after the decision, and people must look.
    /// # Errors
    /// [`ClientError`]: refused, or nothing was done. Never for an open outcome.
    pub async fn submit_capturing(
        &self,
        gid: &str,
        captures: impl IntoIterator<Item = (u32, Bytes)>,
        wait: Wait,
    ) -> Result<Answer, ClientError> {
        let captures =
            captures.into_iter().map(|(branch, payload)| wire::Capture { branch, payload });
        let request = Request::SubmitBegun(SubmitBegunRequest {
            gid: gid.to_owned(),
            wait: wire::Wait::from(wait).into(),
            wait_timeout_ms: 0,
            captures: captures.collect(),
        });
        self.fate(gid.to_owned(), false, request, wait, self.inner.options.patience()).await
    }

    /// Asks for rollback. Refused once the decision to commit is made.
    /// # Errors
    /// [`ClientError`]: refused, or nothing was done. Never for an open outcome.
    pub async fn roll_back(
        &self,
        gid: &str,
        reason: &str,
        wait: Wait,
    ) -> Result<Answer, ClientError> {
        let request = Request::RollBack(RollBackRequest {
            gid: gid.to_owned(),
            reason: reason.to_owned(),
            wait: wire::Wait::from(wait).into(),
            wait_timeout_ms: 0,
            abort_if_unknown: false,
        });
        self.fate(gid.to_owned(), false, request, wait, self.inner.options.patience()).await
    }

    /// Lets a transaction that needs attention go on from where it was, once the cause is repaired. `reason` (1 to 1,024
    /// bytes, no control characters) is kept with it. If a branch refuses again, the answer says that it needs attention
    /// again. Never changes a decision.
    /// # Errors
    /// [`ClientError`]: refused, with HF2004 if it does not need attention, or nothing was done. Never for an open outcome.
    pub async fn retry(&self, gid: &str, reason: &str, wait: Wait) -> Result<Answer, ClientError> {
        let request = Request::Retry(RetryRequest {
            gid: gid.to_owned(),
            reason: reason.to_owned(),
            wait: wire::Wait::from(wait).into(),
            wait_timeout_ms: 0,
        });
        self.fate(gid.to_owned(), false, request, wait, self.inner.options.patience()).await
    }

    /// An operator's act on one transaction. Without `dry_run` it is waited for as a retry is; what is only proposed is not waited
    /// for. Asked again after a lost answer, so that a repeat may be refused because the first took effect: then its fate is told.
    /// # Errors
    /// [`ClientError`]: refused, or nothing was done.
    pub async fn operate(
        &self,
        request: wire::OperateRequest,
        wait: Wait,
    ) -> Result<Answer, ClientError> {
        let gid = request.gid.clone();
        let patience = self.inner.options.patience();
        self.fate(gid, false, Request::Operate(request), wait, patience).await
    }

    /// Has many transactions that need attention go on, or only says what would become of them; each has its own result in the reply.
    /// # Errors
    /// [`ClientError`]: the request itself was refused, or nothing was done. Unknown where the answer was lost: ask with `dry_run` what still waits.
    pub async fn retry_many(
        &self,
        request: wire::RetryManyRequest,
    ) -> Result<wire::RetryManyReply, ClientError> {
        self.change_on_any("a retry of many transactions", |channel| {
            let request = request.clone();
            async move {
                let mut client =
                    TransactionsClient::new(channel).max_decoding_message_size(16 * 1024 * 1024);
                client.retry_many(request).await
            }
        })
        .await
    }

    /// The transaction as of now: everything acknowledged before is seen.
    /// # Errors
    /// [`ClientError`]; an unknown gid is refused with HF2001.
    pub async fn get(&self, gid: &str) -> Result<Answer, ClientError> {
        let request = Request::Get(GetRequest { gid: gid.to_owned(), stale: false });
        self.read(gid, request).await
    }

    /// Waits until the transaction is as far as `wait` says, at most `patience`; then says what is known.
    /// # Errors
    /// [`ClientError`]. Never for an open outcome.
    pub async fn wait(
        &self,
        gid: &str,
        wait: Wait,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        let request = wait_for(gid, wait);
        self.fate(gid.to_owned(), false, request, wait, patience).await
    }

    /// The transaction as the first node that answers knows it, leader or not; it may lag behind.
    /// # Errors
    /// [`ClientError`].
    pub async fn get_stale(&self, gid: &str) -> Result<Answer, ClientError> {
        let request = GetRequest { gid: gid.to_owned(), stale: true };
        let reply = self
            .on_any(|channel| {
                let request = request.clone();
                async move { TransactionsClient::new(channel).get(request).await }
            })
            .await?;
        Ok(Answer::of(gid.to_owned(), reply))
    }

    /// Transactions in gid order, as the first node that answers knows them.
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, filter: Filter) -> Result<Page, ClientError> {
        let request = filter.into_wire();
        let reply = self
            .on_any(|channel| {
                let request = request.clone();
                async move {
                    let mut client = TransactionsClient::new(channel)
                        .max_decoding_message_size(64 * 1024 * 1024);
                    client.list(request).await
                }
            })
            .await?;
        Ok(Page {
            transactions: reply.transactions.into_iter().map(Transaction::from).collect(),
            next_after: Some(reply.next_after_gid).filter(|gid| !gid.is_empty()),
        })
    }

    /// What the first node that answers knows of itself and the cluster.
    /// # Errors
    /// [`ClientError`].
    pub async fn node_status(&self) -> Result<wire::NodeStatusReply, ClientError> {
        self.on_any(|channel| async move {
            AdminClient::new(channel).node_status(wire::NodeStatusRequest::default()).await
        })
        .await
    }

    /// What the node at `address` knows of itself and the cluster in a Raft group (from 0).
    /// # Errors
    /// [`ClientError`]; refused with HF2301 if there is no such group.
    pub async fn node_status_of(
        &self,
        address: &str,
        group: u32,
    ) -> Result<wire::NodeStatusReply, ClientError> {
        self.status_of(address, wire::NodeStatusRequest { group, state_hash: false }).await
    }

    /// The same, with the hash of the node's whole state after the last entry that it tells: equal on every node that is as far. The
    /// node reads every transaction for it, beside its work.
    /// # Errors
    /// As [`Self::node_status_of`].
    pub async fn hashed_status_of(
        &self,
        address: &str,
        group: u32,
    ) -> Result<wire::NodeStatusReply, ClientError> {
        self.status_of(address, wire::NodeStatusRequest { group, state_hash: true }).await
    }

    async fn status_of(
        &self,
        address: &str,
        request: wire::NodeStatusRequest,
    ) -> Result<wire::NodeStatusReply, ClientError> {
        self.on_one(address, &|channel| async move {
            AdminClient::new(channel).node_status(request).await
        })
        .await
    }

    pub(crate) fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    pub(crate) fn patience(&self) -> Duration {
        self.inner.options.patience()
    }

    /// gRPC addresses of the nodes known so far.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.inner.leader.addresses()
    }

    /// A request whose answer is a fate. Unknown is an outcome.
    pub(crate) async fn fate(
        &self,
        gid: String,
        own: bool,
        request: Request,
        wait: Wait,
        patience: Duration,
    ) -> Result<Answer, ClientError> {
        match self.pursue(&gid, own, request, Some(wait), patience).await {
            Ok(reply) => Ok(Answer::of(gid, reply)),
            Err(ClientError::Unknown { last, .. }) => {
                tracing::info!(%gid, last, "the outcome is unknown; ask again with this gid");
                Ok(Answer::unknown(gid))
            }
            Err(error) => Err(error),
        }
    }

    /// A request whose answer is that it was done.
    pub(crate) async fn done(
        &self,
        gid: String,
        own: bool,
        request: Request,
    ) -> Result<Answer, ClientError> {
        let reply = self.pursue(&gid, own, request, None, self.inner.options.patience()).await?;
        Ok(Answer::of(gid, reply))
    }

    /// A request that changes nothing: without an answer it may be made again.
    async fn read(&self, gid: &str, request: Request) -> Result<Answer, ClientError> {
        let patience = self.inner.options.patience();
        match self.pursue(gid, false, request, None, patience).await {
            Ok(reply) => Ok(Answer::of(gid.to_owned(), reply)),
            Err(ClientError::Unknown { last, .. }) => {
                let patience_ms = self.inner.options.patience_ms;
                Err(ClientError::Unreachable { patience_ms, last })
            }
            Err(error) => Err(error),
        }
    }

    /// Pauses before the next attempt; false once the time is up. While no leader is known, the pause ends when another request
    /// has found it.
    async fn pause(&self, gid: &str, attempt: u32, deadline: Instant) -> bool {
        let Inner { options, leader, .. } = &*self.inner;
        let left = deadline.saturating_duration_since(Instant::now());
        if leader.is_known(gid) {
            sleep(options.pause(attempt).min(left)).await;
        } else {
            let pause = options.search_pause(attempt).min(left);
            let _found = timeout(pause, leader.found(gid)).await;
        }
        Instant::now() < deadline
    }

    /// Sends `request` until it is answered or `patience` is over, to whoever leads then.
    async fn pursue(
        &self,
        gid: &str,
        own: bool,
        mut request: Request,
        wait: Option<Wait>,
        patience: Duration,
    ) -> Result<TransactionReply, ClientError> {
        let Inner { options, leader, turns } = &*self.inner;
        let deadline = Instant::now() + patience;
        let mut futile = Futile { sent: false, retry: None, last: String::new() };
        let Ok(turn) = timeout_at(deadline, turns.acquire()).await else {
            futile.last =
                format!("{} requests are under way, which is the limit", options.in_flight_max);
            return Err(futile.told(gid, patience));
        };
        let _turn = turn.expect("the semaphore is never closed");
        let mut span = Pursued::of(gid, &mut request);
        let (mut known, mut begun) = (None, false);
        let mut attempt = 0;
        loop {
            let link = match timeout_at(deadline, leader.link(gid)).await {
                Ok(Ok(link)) => Some(link),
                Ok(Err(OpenError { code: Some(code), cause, .. })) if !futile.sent => {
                    return Err(ClientError::Refused { code, message: cause });
                }
                Ok(Err(error)) => {
                    futile.last = error.to_string();
                    None
                }
                Err(_) => None,
            };
            if let Some(link) = link {
                set_wait(&mut request, deadline);
                span.iter_mut().for_each(Pursued::asked);
                match timeout_at(deadline + GRACE, link.call(request.clone())).await {
                    Ok(Ok(Reply::Transaction(reply))) => {
                        span.iter_mut().for_each(Pursued::answered);
                        let Some(wait) = wait.filter(|wait| !is_reached(&reply, *wait)) else {
                            return Ok(reply);
                        };
                        (known, begun) = (Some(reply), true);
                        request = wait_for(gid, wait);
                        futile.last = "the time to wait was over".to_owned();
                    }
                    Ok(Ok(Reply::Error(error))) => match error.kind() {
                        // It was begun; a question about it that is refused now, since it is over and forgotten, changes nothing.
                        ErrorKind::Refused if begun => {
                            futile.last = format!("{} {}", error.code, error.message);
                            return known.ok_or_else(|| futile.told(gid, patience));
                        }
                        // Ours was taken in before its answer was lost, by a node with other defaults: it is the same
                        // transaction.
                        ErrorKind::Refused if futile.sent && own && error.code == GID_TAKEN => {
                            begun = true;
                            request = wait_for(gid, wait.unwrap_or(Wait::None));
                        }
                        // It went on before the answer was lost, at our word or another operator's: only its fate is left to ask.
                        ErrorKind::Refused
                            if futile.sent
                                && error.code == WRONG_STATUS
                                && matches!(request, Request::Retry(_) | Request::Operate(_)) =>
                        {
                            begun = true;
                            request = wait_for(gid, wait.unwrap_or(Wait::None));
                        }
                        ErrorKind::Refused if futile.sent && error.code == GID_TAKEN => {
                            futile.last = error.message;
                            return Err(futile.told(gid, patience));
                        }
                        ErrorKind::Refused => return Err(ClientError::refused(error)),
                        ErrorKind::Retry => {
                            if !FULL.contains(&error.code.as_str()) {
                                let hint = Some(error.leader.clone()).filter(|at| !at.is_empty());
                                leader.abandon(&link, gid, hint);
                            }
                            futile.last = format!("{} {}", error.code, error.message);
                            futile.retry = Some(error);
                        }
                        ErrorKind::Unknown | ErrorKind::Unspecified => {
                            let hint = Some(error.leader.clone()).filter(|at| !at.is_empty());
                            leader.abandon(&link, gid, hint);
                            futile.sent = true;
                            futile.last = format!("{} {}", error.code, error.message);
                        }
                    },
                    Ok(Err(lost)) => {
                        leader.abandon(&link, gid, None);
                        futile.sent |= lost.sent;
                        futile.last = lost.to_string();
                    }
                    Err(_) => {
                        // It did not even say that its own wait was over: as good as gone.
                        leader.abandon(&link, gid, None);
                        futile.sent = true;
                        futile.last = format!("{} did not answer in time", link.address());
                    }
                }
            }
            attempt += 1;
            if !self.pause(gid, attempt, deadline).await {
                return known.ok_or_else(|| futile.told(gid, patience));
            }
        }
    }
}

impl Futile {
    /// What the caller is told.
    fn told(self, gid: &str, patience: Duration) -> ClientError {
        let Self { sent, retry, last } = self;
        match retry {
            _ if sent => ClientError::Unknown { gid: gid.to_owned(), last },
            Some(error) => ClientError::Retry { code: error.code, message: error.message },
            None => {
                let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
                ClientError::Unreachable { patience_ms, last }
            }
        }
    }
}

/// The caller's gid, or a new one and that it is ours.
fn gid_of(gid: Option<String>) -> (String, bool) {
    match gid.filter(|gid| !gid.is_empty()) {
        Some(gid) => (gid, false),
        None => (ulid::Ulid::new().to_string(), true),
    }
}

fn wait_for(gid: &str, wait: Wait) -> Request {
    let wait = wire::Wait::from(wait).into();
    Request::Wait(WaitRequest { gid: gid.to_owned(), wait, wait_timeout_ms: 0 })
}

/// The coordinator shall wait as long as the caller does.
fn set_wait(request: &mut Request, deadline: Instant) {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    let ms = u64::try_from(left).unwrap_or(u64::MAX).clamp(1, WAIT_MS_MAX);
    match request {
        Request::Submit(request) => request.wait_timeout_ms = ms,
        Request::SubmitBegun(request) => request.wait_timeout_ms = ms,
        Request::RollBack(request) => request.wait_timeout_ms = ms,
        Request::Retry(request) => request.wait_timeout_ms = ms,
        Request::Operate(request) => request.wait_timeout_ms = ms,
        Request::Wait(request) => request.wait_timeout_ms = ms,
        Request::Begin(_) | Request::AddBranch(_) | Request::Get(_) | Request::Finish(_) => {}
    }
}

/// Whether it is as far as was asked, or cannot get further by waiting.
fn is_reached(reply: &TransactionReply, wait: Wait) -> bool {
    let status =
        reply.transaction.as_ref().map_or(wire::Status::Unspecified, |known| known.status());
    let ended = matches!(
        status,
        wire::Status::Committed | wire::Status::RolledBack | wire::Status::NeedsAttention
    );
    let decided = matches!(reply.outcome(), wire::Outcome::Committed | wire::Outcome::RolledBack);
    match wait {
        Wait::None => true,
        Wait::Decision => decided || ended,
        Wait::End => ended,
    }
}

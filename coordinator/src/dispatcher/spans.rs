//! Spans of traced transactions: one for each transaction, and below it one for each call that was made.
//!
//! The span of a transaction is named by its gid alone, so that the calls of every leader lie below the same one, and whichever leader sees the
//! end tells it. The span of a call is named by its term too: a new leader counts attempts anew.

use holdfast_trace::{Context, Kind, Span, spans};
use holdfast_txn::{BranchId, Gid, GlobalTransaction, Op, Participant, Timestamp, Traceparent};

use super::attempts::Attempt;
use crate::branch_call::Call;

/// A transaction whose spans are wanted.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    gid: Gid,
    /// Its own span.
    whole: Context,
    /// The term in which this node makes its calls.
    term: u64,
    /// Whom its branches call.
    participants: Vec<Participant>,
}

impl Traced {
    /// `None`: nobody takes spans in this process, or the transaction came without a sampled `traceparent`.
    pub(super) fn of(transaction: &GlobalTransaction, term: u64) -> Option<Box<Self>> {
        spans()?;
        let caller = caller_of(transaction)?;
        let participants = transaction.branches.iter().map(|one| one.spec.participant.clone());
        let (gid, whole) = (transaction.gid.clone(), whole(caller, &transaction.gid));
        Some(Box::new(Self { gid, whole, term, participants: participants.collect() }))
    }

    /// Has the call say which span it is part of. What the caller said counts for the transaction alone.
    pub(super) fn carry(&self, call: &mut Call<'_>) {
        let context = self.call(call.branch, call.op.into(), call.asking.attempt);
        let Context { trace, span } = context;
        call.traceparent = Some(Traceparent { trace, span: span.0, flags: Context::SAMPLED });
    }

    /// Tells what came of a call.
    pub(super) fn called(&self, attempt: &Attempt) {
        let Attempt { branch, op, number, at, took_ms, outcome, ref instance } = *attempt;
        let failed = ["unknown", "no answer", NOT_LEADING].contains(&outcome);
        let attributes = vec![
            ("holdfast.gid", self.gid.to_string()),
            ("holdfast.branch", branch.0.to_string()),
            ("holdfast.attempt", number.to_string()),
            ("holdfast.term", self.term.to_string()),
            ("holdfast.outcome", outcome.to_owned()),
            ("holdfast.instance", instance.to_string()),
        ];
        record(Span {
            context: self.call(branch, wire(op), number),
            parent: self.whole.span,
            name: self.name_of(branch, op),
            kind: Kind::Client,
            begun_ms: at.0,
            ended_ms: at.0 + u64::from(took_ms),
            attributes,
            events: Vec::new(),
            failed: failed.then(|| outcome.to_owned()),
        });
    }

    /// Tells that this node stopped leading while a call was under way, which began at `at`.
    pub(super) fn left(
        &self,
        (branch, op, number): (BranchId, Op, u32),
        at: Timestamp,
        now: Timestamp,
    ) {
        let took_ms = u32::try_from(now.0.saturating_sub(at.0)).unwrap_or(u32::MAX);
        let (outcome, instance) = (NOT_LEADING, "".into());
        self.called(&Attempt { branch, op, number, at, took_ms, outcome, instance });
    }

    fn call(&self, branch: BranchId, op: i32, attempt: u32) -> Context {
        self.whole.within(&[
            b"call",
            &branch.0.to_be_bytes(),
            &op.to_be_bytes(),
            &attempt.to_be_bytes(),
            &self.term.to_be_bytes(),
        ])
    }

    fn name_of(&self, branch: BranchId, op: Op) -> String {
        let place = (branch.0 as usize).wrapping_sub(1);
        let whom = self.participants.get(place).map_or("", Participant::as_str);
        format!("{} {whom}", op.as_str())
    }
}

/// What becomes of a call whose leader leads no more.
const NOT_LEADING: &str = "leads no more";

/// Tells the whole of a transaction that is over.
pub(super) fn ended(transaction: &GlobalTransaction) {
    if spans().is_none() {
        return;
    }
    let Some(caller) = caller_of(transaction) else { return };
    let ended_ms = transaction.finished_at.unwrap_or(transaction.begun_at).0;
    let decided = transaction.decided_at.map(|at| ("decided", at.0));
    record(Span {
        context: whole(caller, &transaction.gid),
        parent: caller.span,
        name: format!("holdfast {}", transaction.mode.as_str()),
        kind: Kind::Server,
        begun_ms: transaction.begun_at.0,
        ended_ms: ended_ms.max(transaction.begun_at.0),
        attributes: vec![
            ("holdfast.gid", transaction.gid.to_string()),
            ("holdfast.status", transaction.status.as_str().to_owned()),
            ("holdfast.branches", transaction.branches.len().to_string()),
        ],
        events: decided.into_iter().collect(),
        failed: None,
    });
}

/// The span that the caller was in, if its trace is sampled.
fn caller_of(transaction: &GlobalTransaction) -> Option<Context> {
    let headers = &transaction.options.headers;
    match headers.traceparent() {
        Some(Traceparent { trace, span, flags }) => Context::of(*trace, *span, *flags),
        // In a form of its own, or under a name in capitals.
        None => Context::among(headers.others().iter()),
    }
}

fn whole(caller: Context, gid: &Gid) -> Context {
    caller.within(&[b"transaction", gid.as_str().as_bytes()])
}

fn wire(op: Op) -> i32 {
    crate::branch_call::op_on_the_wire(op).into()
}

fn record(span: Span) {
    if let Some(spans) = spans() {
        spans.record(span);
    }
}

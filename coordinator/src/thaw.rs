//! Thaws slots that were held for longer than their move may hold them: whoever moves them has died, or waits for a router that does not answer.
//!
//! Statements that would touch frozen slots wait at the routers, so a move must not hold them for long. The leader counts from when it saw, while
//! leading, that they are frozen, by its own clock; a new leader begins its own count. Then it proposes the rules of the epoch before, in place
//! of those that freeze. The move's own decision expects the same epoch, so exactly one of the two enters the log, and it matters not who is late.

use std::{sync::Arc, time::Duration};

use holdfast_route::{MoveState, Topology};
use holdfast_txn::{Books, Command, Rejection};
use metrics::{Counter, counter};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::group::Group;

/// Before a thaw that could not be proposed is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// Who acts, in audit records. No certificate gives this name: theirs have a slash.
const BY: &str = "holdfast";

/// Rules that freeze slots, as this node sees them while it leads.
struct Frozen {
    term: u64,
    epoch: u64,
    id: String,
    hold_ms: u64,
    /// When they are thawed, or that is tried again.
    at: Instant,
}

/// Looks after the rules of `group`, whose epoch `epochs` tells, until `stop`. Wakes for changes, and for slots that are frozen.
pub(crate) async fn keep(
    group: Arc<Group>,
    mut epochs: watch::Receiver<u64>,
    stop: CancellationToken,
) {
    let thawed = counter!("holdfast_slot_moves_thawed_total");
    let mut leadership = group.leadership();
    let mut frozen: Option<Frozen> = None;
    loop {
        // Marked as seen before they are read, so that no change falls between the two.
        let _seen = *epochs.borrow_and_update();
        let leads = {
            let now = leadership.borrow_and_update();
            now.leads_here.then_some(now.term)
        };
        frozen = match leads {
            Some(term) => seen(frozen, term, &group.books()),
            None => None,
        };
        let over = async {
            match &frozen {
                Some(frozen) => sleep_until(frozen.at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = leadership.changed() => if changed.is_err() { return },
            changed = epochs.changed() => if changed.is_err() { return },
            () = over => if let Some(frozen) = &mut frozen {
                frozen.at = Instant::now() + PAUSE;
                thaw(&group, frozen, &thawed).await;
            }
        }
    }
}

/// What is frozen now, counted from when it was seen first in this term.
fn seen(before: Option<Frozen>, term: u64, books: &Books) -> Option<Frozen> {
    let version = books.rules_now()?;
    if let Some(before) = before.filter(|one| (one.term, one.epoch) == (term, version.epoch)) {
        return Some(before);
    }
    // Most texts say nothing of it, and need not be read here.
    let read = version.text.contains("moving").then(|| Topology::parse(&version.text).ok())??;
    let moving = read.moving()?;
    let MoveState::Frozen { hold_ms } = moving.state else { return None };
    let (epoch, id) = (version.epoch, moving.id.to_string());
    Some(Frozen { term, epoch, id, hold_ms, at: Instant::now() + Duration::from_millis(hold_ms) })
}

/// Proposes the rules of the epoch before. Whoever was faster is right.
async fn thaw(group: &Group, frozen: &Frozen, thawed: &Counter) {
    let Frozen { epoch, id, hold_ms, .. } = frozen;
    let books = group.books();
    let before = books.rules.iter().find(|version| version.epoch + 1 == *epoch);
    let Some(before) = before else {
        tracing::error!(
            epoch,
            id,
            "slots are frozen for too long, and the rules of the epoch before are not kept. Apply rules without [moving] that place them as now"
        );
        return;
    };
    let reason = format!("move {id} held its slots for longer than hold_ms = {hold_ms}");
    let text = before.text.clone();
    let command = Command::SetRules { text, expected: *epoch, by: BY.to_owned(), reason };
    match group.propose(command).await {
        Ok(applied) => match applied.result {
            Ok(_) => {
                tracing::warn!(epoch, id, hold_ms, "slots were held for too long, and thawed");
                thawed.increment(1);
            }
            Err(Rejection::RulesChanged { epoch: now, .. }) => {
                tracing::info!(epoch, now, id, "slots were not thawed: the rules had changed");
            }
            Err(rejection) => tracing::error!(epoch, id, %rejection, "slots could not be thawed"),
        },
        Err(error) => tracing::info!(epoch, id, %error, "slots are not thawed yet; tried again"),
    }
}

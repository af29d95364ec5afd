//! The stream by which an operator holds the commits of a node's groups.

use std::time::Duration;

use holdfast_proto::v1::{HeldGroup, HoldReply, HoldRequest, hold_request::Ask};
use holdfast_raft::Position;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tonic::{Status, Streaming};

use super::{
    desk::Desk,
    fault::{Class, Fault, Findings},
    services::reasoned,
};
use crate::{
    config::limit::{HOLD_MS_DEFAULT, HOLD_MS_MAX},
    hold::{Hold, HoldFault},
};

/// What the audit trail calls it.
const RESTORE_POINT: &str = "cluster.restore-point";
/// Until the stream says what it wants.
const BEGIN_MAX: Duration = Duration::from_secs(10);

pub(super) type Replies = mpsc::Receiver<Result<HoldReply, Status>>;

impl From<&HoldFault> for Fault {
    fn from(fault: &HoldFault) -> Self {
        Self::new(Class::Unavailable, fault.code(), fault.to_string())
    }
}

impl Desk {
    /// Holds whatever this node leads, and answers on the stream until the hold ends.
    /// # Errors
    /// HF2301: the request is mistaken; HF2101: this node leads nothing; HF1305 and HF1306; why it cannot be written down.
    pub(super) async fn hold(&self, mut asked: Streaming<HoldRequest>) -> Result<Replies, Fault> {
        let silent = || nothing("the stream did not begin with what is to be held");
        let first = timeout(BEGIN_MAX, asked.message()).await.map_err(|_| silent())?;
        let Ok(Some(HoldRequest { ask: Some(Ask::Begin(begin)) })) = first else {
            return Err(silent());
        };
        reasoned(&begin.reason)?;
        let at_most = at_most(begin.hold_ms)?;
        let coordinator = self.coordinator();
        let by = self.caller().name.clone();
        let turn = coordinator.holder().turn(&by).map_err(|taken| Fault::from(&taken))?;
        let led = coordinator.each_group().filter(|group| group.leads());
        let groups: Vec<u32> = led.map(|group| group.number()).collect();
        if groups.is_empty() {
            return Err(self.not_the_leader());
        }
        let noted = groups.iter().map(|group| {
            let about = format!("group {group}, {} ms at most", at_most.as_millis());
            self.note_in(*group, RESTORE_POINT, about, begin.reason.clone())
        });
        futures::future::try_join_all(noted).await?;
        let begun = Hold::begin(turn, coordinator.clone(), &groups, at_most).await;
        let (hold, places) = begun.map_err(|fault| Fault::from(&fault))?;
        tracing::warn!(by, ?groups, "commits are held for a restore point");
        let began = Instant::now();
        let (replies, heard) = mpsc::channel(2);
        replies.try_send(Ok(reply(places))).expect("there is room");
        tokio::spawn(async move {
            let over = tokio::select! {
                () = serve(&hold, asked, &replies) => None,
                over = hold.over() => Some(over),
            };
            // First of all what waits goes on.
            drop(hold);
            let held_ms = began.elapsed().as_millis();
            tracing::warn!(
                by,
                ?groups,
                held_ms,
                over = over.as_ref().map(tracing::field::display),
                "commits go on"
            );
            if let Some(over) = over {
                // Whoever has gone needs no reason.
                let _gone = replies.send(Err(Fault::from(&over).to_status())).await;
            }
        });
        Ok(heard)
    }
}

/// Answers until whoever asked lets go, or has heard that there is nothing to hold on to.
async fn serve(
    hold: &Hold,
    mut asked: Streaming<HoldRequest>,
    replies: &mpsc::Sender<Result<HoldReply, Status>>,
) {
    while let Ok(Some(request)) = asked.message().await {
        let told = match request.ask {
            Some(Ask::Still(_)) => hold.confirm().await.map(reply).map_err(|over| (&over).into()),
            Some(Ask::Begin(_)) | None => Err(nothing("the hold has begun already")),
        };
        let ends = told.is_err();
        let sent = replies.send(told.map_err(|fault: Fault| fault.to_status())).await;
        if ends || sent.is_err() {
            return;
        }
    }
}

fn nothing(words: &str) -> Fault {
    let words = format!("nothing was done: {words}");
    Fault::new(Class::BadInput, "HF2301", words)
}

fn at_most(hold_ms: u32) -> Result<Duration, Fault> {
    let hold_ms = if hold_ms == 0 { HOLD_MS_DEFAULT } else { hold_ms };
    let mut findings = Findings::default();
    if hold_ms > HOLD_MS_MAX {
        findings.add("hold_ms", format_args!("{hold_ms}, allowed is 1 to {HOLD_MS_MAX}"));
    }
    findings.verdict().map(|()| Duration::from_millis(hold_ms.into()))
}

fn reply(places: Vec<(u32, Position)>) -> HoldReply {
    let group = |(group, at): (u32, Position)| HeldGroup { group, term: at.term, index: at.index };
    HoldReply { groups: places.into_iter().map(group).collect() }
}

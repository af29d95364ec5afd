//! A hold of the commits on one node, for a restore point.

use holdfast_proto::v1::{
    HeldGroup, HoldBegin, HoldReply, HoldRequest, HoldStill, admin_client::AdminClient,
    hold_request::Ask,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{Client, ClientError, unary::from_status};

/// What it is about.
const COMMITS: &str = "the hold of commits";

/// Commits are held on a node until this is dropped, or [`still`](Self::still) says that they are not any more.
#[derive(Debug)]
pub struct Hold {
    asks: mpsc::Sender<HoldRequest>,
    replies: Streaming<HoldReply>,
    groups: Vec<HeldGroup>,
    client: Client,
}

impl Client {
    /// Has the node at `address` hold the commits of every group that it leads, for at most `hold_ms` (0: as the node has it).
    /// # Errors
    /// [`ClientError`]: HF1305 if somebody holds them already, HF1306 if the log does not get quiet in time, HF2101 if the node leads nothing.
    pub async fn hold(
        &self,
        address: &str,
        hold_ms: u32,
        reason: &str,
    ) -> Result<Hold, ClientError> {
        let ask = |channel| {
            let (asks, asked) = mpsc::channel(1);
            let begin = Ask::Begin(HoldBegin { hold_ms, reason: reason.to_owned() });
            asks.try_send(HoldRequest { ask: Some(begin) }).expect("there is room");
            async move {
                let replies = AdminClient::new(channel).hold(ReceiverStream::new(asked)).await?;
                Ok(replies.map(|replies| (asks, replies)))
            }
        };
        let (asks, replies) = self.on_one(address, &ask).await?;
        let mut hold = Hold { asks, replies, groups: Vec::new(), client: self.clone() };
        hold.groups = hold.reply().await?;
        Ok(hold)
    }
}

impl Hold {
    /// The groups that are held, each with the term of its leader and its last entry.
    #[must_use]
    pub fn groups(&self) -> &[HeldGroup] {
        &self.groups
    }

    /// Whether nothing came into the log of any of these groups since the hold began, as a quorum of each confirms.
    /// # Errors
    /// [`ClientError`]: HF1306 says why not; without an answer nothing is known of it.
    pub async fn still(&mut self) -> Result<(), ClientError> {
        // Where the stream has ended, its reply says why.
        let _ended = self.asks.send(HoldRequest { ask: Some(Ask::Still(HoldStill {})) }).await;
        self.reply().await.map(drop)
    }

    async fn reply(&mut self) -> Result<Vec<HeldGroup>, ClientError> {
        let options = self.client.options();
        let lost = |last: String| ClientError::Unknown { gid: COMMITS.to_owned(), last };
        let reply = timeout(options.patience(), self.replies.message()).await;
        let reply = reply
            .map_err(|_| lost("no answer in time".to_owned()))?
            .map_err(|status| from_status(&status, COMMITS, options.patience_ms))?;
        reply.map(|reply| reply.groups).ok_or_else(|| lost("the stream ended".to_owned()))
    }
}

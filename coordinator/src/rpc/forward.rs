//! Hands requests to the leader over one open stream, at most once each.

use std::{sync::Arc, time::Duration};

use holdfast_client::{ClientOptions, Link};
use holdfast_proto::v1::{self, exchange_reply::Reply, exchange_request::Request};
use holdfast_security::{Caller, Participants, Role};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::fault::Fault;

/// How much longer than the leader's own wait an answer may take: long enough for an election to fail the request.
const GRACE: Duration = Duration::from_secs(10);

/// The stream to the leader.
#[derive(Debug)]
pub(crate) struct Forward {
    options: ClientOptions,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    /// When opening failed last, and how: told to all who waited for that attempt.
    failed: Option<(Instant, Fault)>,
}

impl Forward {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Self { options, state: Mutex::default() }
    }

    /// Has the node at `leader` (gRPC) answer `request`, which itself waits at most `wait`. Whether it reads only decides what a
    /// broken stream means: a read may be made again, anything else is unknown.
    pub(crate) async fn hand_over(
        &self,
        leader: &str,
        request: Request,
        wait: Duration,
        caller: &Caller,
    ) -> Result<Reply, Fault> {
        let reads = matches!(request, Request::Get(_) | Request::Wait(_));
        let link = self.link(leader).await?;
        let asked_by = (!caller.is_dev()).then(|| on_behalf(caller));
        let answer = timeout(wait + GRACE, link.call_for(request, asked_by)).await;
        let lost: &dyn std::fmt::Display = match answer {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(lost)) if !lost.sent => return Err(Fault::out_of_reach(&lost)),
            Ok(Err(ref lost)) => &lost.clone(),
            Err(ref elapsed) => &elapsed.to_string(),
        };
        Err(if reads { Fault::out_of_reach(lost) } else { Fault::lost_on_the_way(lost) })
    }

    async fn link(&self, leader: &str) -> Result<Arc<Link>, Fault> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        if let Some(link) = state.link.as_ref().filter(|l| l.address() == leader && l.is_open()) {
            return Ok(Arc::clone(link));
        }
        if let Some((at, fault)) = state.failed.as_ref().filter(|(at, _)| *at > asked) {
            tracing::debug!(%leader, since = ?at.elapsed(), "another request failed to open the stream");
            return Err(fault.clone());
        }
        match Link::open(leader, false, &self.options).await {
            Ok(link) => {
                tracing::info!(%leader, "requests go to the leader over a new stream");
                let link = Arc::new(link);
                state.link = Some(Arc::clone(&link));
                Ok(link)
            }
            Err(error) => {
                let fault = Fault::out_of_reach(&error);
                state.link = None;
                state.failed = Some((Instant::now(), fault.clone()));
                Err(fault)
            }
        }
    }
}

/// The caller, as one node tells another.
pub(super) fn on_behalf(caller: &Caller) -> v1::OnBehalf {
    v1::OnBehalf {
        name: caller.name.clone(),
        roles: caller.roles.iter().map(|role| role.as_str().to_owned()).collect(),
        tenant: caller.tenant.clone().unwrap_or_default(),
        participants: caller.participants.words(),
    }
}

/// The caller that a node asks for. Never a member: no node asks as another.
pub(crate) fn asked_by(told: &v1::OnBehalf) -> Caller {
    let roles = told.roles.iter().filter_map(|role| Role::parse(role));
    Caller {
        name: told.name.clone(),
        roles: roles.filter(|role| role.can_be_given()).collect(),
        // An empty tenant is one that nobody has: only this node itself can say that it serves dev.
        tenant: Some(told.tenant.clone()),
        participants: Participants::of(&told.participants),
        serves: None,
        expires_at_ms: None,
    }
}

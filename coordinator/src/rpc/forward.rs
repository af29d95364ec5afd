//! Hands requests to the leaders of the groups, over one open stream to each node that leads any, at most once each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use holdfast_client::{ClientOptions, Link};
use holdfast_proto::v1::{self, exchange_reply::Reply, exchange_request::Request};
use holdfast_raft::MEMBERS_MAX;
use holdfast_security::{Caller, Participants, Role};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::fault::Fault;

/// How much longer than the leader's own wait an answer may take: long enough for an election to fail the request.
const GRACE: Duration = Duration::from_secs(10);

/// The streams to the nodes that lead.
#[derive(Debug)]
pub(crate) struct Forward {
    options: ClientOptions,
    /// By address; at most as many as a cluster has members.
    lines: std::sync::Mutex<BTreeMap<String, Arc<Mutex<State>>>>,
}

/// One of them.
#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    /// When opening failed last, and how: told to all who waited for that attempt.
    failed: Option<(Instant, Fault)>,
}

impl Forward {
    pub(crate) fn new(options: ClientOptions) -> Self {
        Self { options, lines: std::sync::Mutex::default() }
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
        let line = self.line(leader);
        let mut state = line.lock().await;
        if let Some(link) = state.link.as_ref().filter(|link| link.is_open()) {
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

impl Forward {
    /// The place of the stream to `leader`. When there are as many as members, the first by address makes room: what is under way on it is
    /// answered still, and it is opened again if it leads.
    fn line(&self, leader: &str) -> Arc<Mutex<State>> {
        let mut lines = self.lines.lock().expect("nobody panics while holding it");
        if let Some(line) = lines.get(leader) {
            return Arc::clone(line);
        }
        while lines.len() >= MEMBERS_MAX {
            lines.pop_first();
        }
        Arc::clone(lines.entry(leader.to_owned()).or_default())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_streams_as_members_have_a_place_and_one_more_takes_the_first() {
        let forward = Forward::new(ClientOptions::default());
        let lines: Vec<_> =
            (0..MEMBERS_MAX).map(|n| forward.line(&format!("node-{n}:7401"))).collect();
        assert!(Arc::ptr_eq(&forward.line("node-0:7401"), &lines[0]), "it has its place");
        assert_eq!(forward.lines.lock().unwrap().len(), MEMBERS_MAX);
        let one_more = forward.line("node-x:7401");
        assert_eq!(forward.lines.lock().unwrap().len(), MEMBERS_MAX);
        assert!(Arc::ptr_eq(&forward.line("node-x:7401"), &one_more));
        assert!(!Arc::ptr_eq(&forward.line("node-0:7401"), &lines[0]), "it made room");
    }
}

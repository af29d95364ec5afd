//! What routers say of the rules that they go by, and what those who move slots hear of them.

use holdfast_proto::v1::{AttendReply, AttendRequest, ListRoutersReply, ListRoutersRequest};
use holdfast_security::Right;
use tokio::time::Instant;

use super::{
    desk::{Desk, Hop},
    fault::{Class, Fault, Findings},
    shards::{handed_on, never_on},
    transactions::behalf,
};
use crate::{
    attendance::{Attending, Unattended},
    config::limit::{ADDRESS_BYTES_MAX, ROUTER_BYTES_MAX, ROUTERS_MAX},
    rights,
};

impl Desk {
    /// Notes what a router goes by, and tells it what is in force.
    pub(crate) async fn attend(
        &self,
        request: AttendRequest,
        hop: Hop,
    ) -> Result<AttendReply, Fault> {
        let desk = behalf(self.clone(), request.on_behalf_of.as_ref())?;
        rights::require(desk.caller(), Right::Locate)?;
        check(&request)?;
        let coordinator = desk.coordinator();
        let leadership = coordinator.leadership().borrow().clone();
        if !leadership.leads_here {
            let request = AttendRequest { on_behalf_of: desk.asker(), ..request };
            let leader = leadership.leader.map(|leader| leader.grpc);
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.attend(never_on(request)).await);
        }
        let name = request.router.clone();
        // Noted before the barrier and the answer: no router has a lease that its leader does not know.
        let by = &desk.caller().name;
        let noted = coordinator.attendance().attend(leadership.term, Instant::now(), request, by);
        let noted = noted.map_err(|why| unattended(why, &name))?;
        let term = coordinator.barrier().await.map_err(|error| Fault::not_proposed(&error))?;
        if term != noted.term {
            // It led, lost it, and leads again: what was noted is forgotten.
            return Err(self.not_the_leader());
        }
        Ok(AttendReply { epoch: coordinator.books().epoch(), lease_ms: noted.lease_ms })
    }

    /// The routers whose leases have not ended.
    pub(crate) async fn routers(
        &self,
        request: ListRoutersRequest,
        hop: Hop,
    ) -> Result<ListRoutersReply, Fault> {
        rights::require(self.caller(), Right::Locate)?;
        let (leads, leader) = self.leading();
        if !leads {
            let mut client = self.leader_of_shards(leader, hop).await?;
            return handed_on(client.list_routers(never_on(request)).await);
        }
        let coordinator = self.coordinator();
        // Behind it, whoever led before grants nothing more, and the term is that in which this node leads now.
        let term = coordinator.barrier().await.map_err(|error| Fault::not_proposed(&error))?;
        let epoch = coordinator.books().epoch();
        let Attending { routers, unknown_ms } = coordinator.attendance().list(term, Instant::now());
        Ok(ListRoutersReply { routers, unknown_ms, epoch })
    }
}

fn check(request: &AttendRequest) -> Result<(), Fault> {
    let mut findings = Findings::default();
    let AttendRequest { router, address, epoch, oldest_epoch, lease_ms, leaves, .. } = request;
    let printable = |text: &str| !text.chars().any(char::is_control);
    if router.is_empty() || router.len() > ROUTER_BYTES_MAX || !printable(router) {
        let words = format!("1 to {ROUTER_BYTES_MAX} bytes without control characters");
        findings.add("router", format_args!("{} bytes, allowed are {words}", router.len()));
    }
    if address.len() > ADDRESS_BYTES_MAX || !printable(address) {
        let words = format!("at most {ADDRESS_BYTES_MAX} bytes without control characters");
        findings.add("address", format_args!("{} bytes, allowed are {words}", address.len()));
    }
    if oldest_epoch > epoch {
        let words = format_args!("{oldest_epoch} is newer than epoch = {epoch}");
        findings.add("oldest_epoch", words);
    }
    if *lease_ms == 0 && !leaves {
        findings.add("lease_ms", "0, allowed is 1 or more; one that stops says that it leaves");
    }
    findings.verdict()
}

fn unattended(why: Unattended, router: &str) -> Fault {
    match why {
        Unattended::Full => {
            let words = format!(
                "router {router} has no lease: {ROUTERS_MAX} routers attend, which is all there is place for. Stop some, or wait until the lease of one that is gone ends: holdfast rules routers"
            );
            Fault::new(Class::Full, "HF2414", words)
        }
        Unattended::NotYours => {
            let words = format!(
                "nothing was done: another caller attends as router {router}. Give each process a name of its own"
            );
            Fault::new(Class::Denied, "HF2602", words)
        }
    }
}

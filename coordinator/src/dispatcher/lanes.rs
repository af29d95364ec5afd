//! How the groups of a node share its sessions: every group's dispatcher knows all of them, and none takes what is another's.
//!
//! The number of a call says which group made it, so that an answer finds its way without a table. A session's credit is shared
//! evenly among the groups that this node leads, and counted once for all of them: an agent never has more calls under way
//! than it announced. What an operator allows for a service is divided among all groups, so that the cluster as a whole keeps to it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use holdfast_proto::v1;
use tokio::sync::mpsc;

use super::{Event, NewSession, SessionId};

/// One group's part of what the node has.
#[derive(Clone, Debug)]
pub(crate) struct Lane {
    group: u32,
    groups: u32,
    /// How many groups this node leads.
    led: Arc<AtomicUsize>,
}

impl Lane {
    /// One for each of `groups`.
    pub(crate) fn all(groups: u32) -> Vec<Self> {
        let led = Arc::new(AtomicUsize::new(0));
        (0..groups).map(|group| Self { group, groups, led: Arc::clone(&led) }).collect()
    }

    /// The number of this group's `nth` call on a session, from 1.
    pub(super) fn call_id(&self, nth: u64) -> u64 {
        nth.wrapping_mul(self.groups.into()).wrapping_add(self.group.into())
    }

    /// This node begins to lead the group, or ends to.
    pub(super) fn lead(&self, leads: bool) {
        if leads {
            self.led.fetch_add(1, Ordering::Relaxed);
        } else {
            self.led.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// How many groups this node leads.
    pub(super) fn led(&self) -> usize {
        self.led.load(Ordering::Relaxed)
    }

    /// What this group may use of a session's credit: at least one call, since the session counts for all groups.
    pub(super) fn share(&self, credit: usize) -> usize {
        (credit / self.led().max(1)).max(1)
    }

    /// This group's part of a limit for the whole cluster: all parts together are the limit, but none is 0. 0 is no limit and stays so.
    pub(super) fn part(&self, limit: u32) -> u32 {
        if limit == 0 {
            return 0;
        }
        let rest = u32::from(self.group < limit % self.groups);
        (limit / self.groups + rest).max(1)
    }
}

/// The credit of one session, for all groups.
#[derive(Clone, Debug)]
pub(crate) struct Credit {
    most: usize,
    under_way: Arc<AtomicUsize>,
}

/// One call's place in the credit. Dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Taken(Arc<AtomicUsize>);

impl Credit {
    pub(crate) fn of(most: usize) -> Self {
        Self { most, under_way: Arc::default() }
    }

    /// As it was announced.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// What no group uses.
    pub(super) fn left(&self) -> usize {
        self.most.saturating_sub(self.under_way.load(Ordering::Relaxed))
    }

    pub(super) fn take(&self) -> Taken {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        Taken(Arc::clone(&self.under_way))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The term in which a group's calls were made: they go out only while it is the one in which this node makes calls.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    /// 0 while this node makes none.
    calling: Arc<AtomicU64>,
    term: u64,
}

impl Term {
    pub(crate) fn of(calling: &Arc<AtomicU64>, term: u64) -> Self {
        Self { calling: Arc::clone(calling), term }
    }

    /// Whether this node still makes calls in it.
    pub(crate) fn holds(&self) -> bool {
        self.calling.load(Ordering::Acquire) == self.term
    }
}

/// What sessions tell the dispatchers. A handle: clones lead to the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Events(Arc<[mpsc::Sender<Event>]>);

/// The node stops: nobody hears any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unheard;

impl Events {
    /// To the dispatcher of each group, in their order.
    pub(crate) fn to(dispatchers: Vec<mpsc::Sender<Event>>) -> Self {
        Self(dispatchers.into())
    }

    /// To the dispatcher of one group.
    pub(crate) async fn send(&self, group: u32, event: Event) -> Result<(), Unheard> {
        let dispatcher = self.0.get(group as usize).ok_or(Unheard)?;
        dispatcher.send(event).await.map_err(|_| Unheard)
    }

    /// A session is there, for every group.
    pub(crate) async fn up(&self, new: NewSession) -> Result<(), Unheard> {
        self.each(|| Event::SessionUp(new.clone())).await
    }

    /// It wants no further calls.
    pub(crate) async fn drains(&self, id: SessionId) -> Result<(), Unheard> {
        self.each(|| Event::SessionDrains(id)).await
    }

    /// It is gone.
    pub(crate) async fn down(&self, id: SessionId) -> Result<(), Unheard> {
        self.each(|| Event::SessionDown(id)).await
    }

    /// It answered: each answer goes to the group that asked.
    pub(crate) async fn answers(
        &self,
        id: SessionId,
        answers: Vec<v1::Answer>,
    ) -> Result<(), Unheard> {
        let groups = self.0.len() as u64;
        if groups == 1 {
            return self.send(0, Event::Answers(id, answers)).await;
        }
        let mut of_group = vec![Vec::new(); self.0.len()];
        for answer in answers {
            let group = usize::try_from(answer.call_id % groups).expect("below the groups");
            of_group[group].push(answer);
        }
        for (group, answers) in (0..).zip(of_group) {
            if !answers.is_empty() {
                self.send(group, Event::Answers(id, answers)).await?;
            }
        }
        Ok(())
    }

    async fn each(&self, event: impl Fn() -> Event) -> Result<(), Unheard> {
        for dispatcher in &*self.0 {
            dispatcher.send(event()).await.map_err(|_| Unheard)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_limit_are_the_limit_together_and_none_is_nothing() {
        for groups in 1..=16 {
            let lanes = Lane::all(groups);
            for limit in groups..3 * groups {
                let parts: u32 = lanes.iter().map(|lane| lane.part(limit)).sum();
                assert_eq!(parts, limit, "{groups} groups");
            }
            assert!(lanes.iter().all(|lane| lane.part(1) == 1 && lane.part(0) == 0));
        }
    }

    #[test]
    fn a_group_uses_what_the_others_that_are_led_here_leave() {
        let lanes = Lane::all(4);
        assert_eq!(lanes[2].share(100), 100, "nobody else is led here");
        lanes[2].lead(true);
        assert_eq!(lanes[2].share(100), 100);
        lanes[0].lead(true);
        lanes[1].lead(true);
        assert_eq!((lanes[2].share(100), lanes[2].share(2)), (33, 1));
        lanes[0].lead(false);
        assert_eq!(lanes[2].share(100), 50);
    }

    #[test]
    fn credit_is_counted_once_for_all_groups() {
        let credit = Credit::of(2);
        let (one, other) = (credit.clone(), credit.clone());
        let first = one.take();
        let second = other.take();
        assert_eq!((one.left(), other.left()), (0, 0));
        drop(first);
        assert_eq!((one.left(), credit.left()), (1, 1));
        drop(second);
        assert_eq!(credit.left(), 2);
    }

    #[tokio::test]
    async fn an_answer_goes_to_the_group_that_asked() {
        let lanes = Lane::all(3);
        let (senders, mut heard): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(8)).unzip();
        let events = Events::to(senders);
        let answer =
            |lane: &Lane, nth| v1::Answer { call_id: lane.call_id(nth), ..Default::default() };
        let answers = lanes.iter().flat_map(|lane| [answer(lane, 1), answer(lane, 7)]).collect();
        events.answers(SessionId(5), answers).await.unwrap();
        for (lane, heard) in lanes.iter().zip(&mut heard) {
            let Ok(Event::Answers(SessionId(5), answers)) = heard.try_recv() else {
                panic!("answers of the session")
            };
            let ids: Vec<_> = answers.iter().map(|one| one.call_id).collect();
            assert_eq!(ids, [lane.call_id(1), lane.call_id(7)]);
            assert!(heard.try_recv().is_err());
        }
    }
}

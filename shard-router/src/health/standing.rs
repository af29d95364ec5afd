//! Who is the primary of a source, by what its servers say of themselves. Takes no clock and asks nobody.
//!
//! A promotion begins a new timeline, so of two servers that take writes the one of the older timeline was left behind. Replicas tell
//! the newest timeline as well, even where its primary cannot be reached.

/// What a server said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) recovering: bool,
    /// Names the database cluster; alike on a primary and its replicas, and on no other server.
    pub(crate) system: u64,
    /// Of what a primary writes, or of what a replica receives; `None` for a replica that receives nothing, or does not tell.
    pub(crate) timeline: Option<u32>,
    /// Up to where a primary has written, or a replica has replayed.
    pub(crate) position: u64,
    /// When it was started, by its own clock; another number is another start.
    pub(crate) started: u64,
}

/// What is known of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    system: Option<u64>,
    /// The newest that any server has told of.
    timeline: u32,
    primary: Option<usize>,
}

/// What a server is, by the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Primary,
    Replica,
    /// Takes writes and was left behind by a promotion, or there are two such and this one was not known before: not used.
    Former,
    /// Belongs to another database cluster: not used.
    Stranger,
    Silent,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Former => "former primary",
            Self::Stranger => "of another cluster",
            Self::Silent => "silent",
        }
    }
}

impl Standing {
    /// Takes in what all servers said in one look, in their order, and says what each is. At most one is the primary.
    pub(crate) fn judge(&mut self, heard: &[Option<Heard>]) -> Vec<Role> {
        let answered = || heard.iter().flatten();
        self.system = self.system.or_else(|| answered().next().map(|heard| heard.system));
        let ours = |heard: &Heard| Some(heard.system) == self.system;
        let told = answered().filter(|heard| ours(heard)).filter_map(|heard| heard.timeline).max();
        self.timeline = self.timeline.max(told.unwrap_or(0));
        let newest = |heard: &Heard| !heard.recovering && heard.timeline == Some(self.timeline);
        let taking: Vec<usize> = heard
            .iter()
            .enumerate()
            .filter(|(_, said)| said.as_ref().is_some_and(|said| ours(said) && newest(said)))
            .map(|(index, _)| index)
            .collect();
        // Two of one timeline: nobody can say which is right, so writes stay where they were, and begin nowhere.
        let found = match (taking.as_slice(), self.primary) {
            ([one], _) => Some(*one),
            (several, Some(known)) if several.contains(&known) => Some(known),
            _ => None,
        };
        self.primary = found.or(self.primary);
        let roles = heard.iter().enumerate().map(|(index, said)| match said {
            None => Role::Silent,
            Some(said) if !ours(said) => Role::Stranger,
            Some(said) if said.recovering => Role::Replica,
            Some(_) if found == Some(index) => Role::Primary,
            Some(_) => Role::Former,
        });
        roles.collect()
    }

    /// The newest timeline that any server has told of.
    pub(crate) fn timeline(&self) -> u32 {
        self.timeline
    }
}

#[cfg(test)]
mod tests {
    use super::{Role::*, *};

    fn said(recovering: bool, timeline: u32) -> Option<Heard> {
        let timeline = Some(timeline).filter(|timeline| *timeline > 0);
        Some(Heard { recovering, system: 7, timeline, position: 100, started: 1 })
    }

    #[test]
    fn the_one_that_takes_writes_is_the_primary_and_a_promoted_one_is_followed() {
        let mut standing = Standing::default();
        assert_eq!(standing.judge(&[said(true, 1), said(false, 1)]), [Replica, Primary]);
        assert_eq!(standing.judge(&[said(true, 1), None]), [Replica, Silent]);
        assert_eq!(standing.judge(&[said(false, 2), None]), [Primary, Silent]);
    }

    #[test]
    fn a_former_primary_that_comes_back_is_none() {
        let mut standing = Standing::default();
        assert_eq!(standing.judge(&[said(false, 1), said(true, 1)]), [Primary, Replica]);
        assert_eq!(standing.judge(&[None, said(false, 2)]), [Silent, Primary]);
        assert_eq!(standing.judge(&[said(false, 1), said(false, 2)]), [Former, Primary]);
        // Nor when the promoted one is out of reach.
        assert_eq!(standing.judge(&[said(false, 1), None]), [Former, Silent]);
        // A router that starts sees both at once.
        let mut new = Standing::default();
        assert_eq!(new.judge(&[said(false, 1), said(false, 2)]), [Former, Primary]);
        // A replica tells of a promotion whose primary cannot be reached.
        let mut new = Standing::default();
        assert_eq!(new.judge(&[said(false, 1), None, said(true, 2)]), [Former, Silent, Replica]);
        assert_eq!(new.judge(&[said(false, 1), said(false, 2), None]), [Former, Primary, Silent]);
    }

    #[test]
    fn of_two_on_one_timeline_the_known_one_stays_and_none_is_chosen() {
        let mut standing = Standing::default();
        assert_eq!(standing.judge(&[said(false, 2), said(false, 2)]), [Former, Former]);
        assert_eq!(standing.judge(&[None, said(false, 2)]), [Silent, Primary]);
        assert_eq!(standing.judge(&[said(false, 2), said(false, 2)]), [Former, Primary]);
    }

    #[test]
    fn a_server_of_another_cluster_counts_for_nothing() {
        let mut standing = Standing::default();
        assert_eq!(standing.judge(&[said(false, 1)]), [Primary]);
        let other = Some(Heard { system: 8, ..said(false, 9).expect("it said so") });
        assert_eq!(standing.judge(&[said(false, 1), other.clone()]), [Primary, Stranger]);
        assert_eq!(standing.judge(&[None, other]), [Silent, Stranger]);
        assert_eq!(standing.timeline(), 1);
    }

    #[test]
    fn one_that_does_not_tell_its_timeline_is_no_primary() {
        assert_eq!(Standing::default().judge(&[said(false, 0), None]), [Former, Silent]);
    }
}

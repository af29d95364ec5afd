//! A page of open and recently finished transactions, out of all groups, in gid order.

use holdfast_txn::{Gid, GlobalTransaction, Status};

use crate::group::Group;

/// Transactions looked at for one page of one group, while its machine is held.
const LOOKED_AT_MAX: usize = 20_000;

/// What one group has behind the gid that was asked for.
#[derive(Debug, Default)]
pub(crate) struct GroupPage {
    /// In gid order.
    found: Vec<GlobalTransaction>,
    /// The last one that was looked at, if there may be more behind it.
    until: Option<Gid>,
}

impl Group {
    /// At most `limit` of `statuses` (none: all) behind `after`.
    pub(crate) fn page(&self, statuses: &[Status], after: Option<&Gid>, limit: usize) -> GroupPage {
        let state = self.state.held();
        let mut found = Vec::with_capacity(limit.min(128));
        for (looked_at, transaction) in state.machine.list(after).enumerate() {
            if statuses.is_empty() || statuses.contains(&transaction.status) {
                found.push(transaction.clone());
            }
            if found.len() == limit || looked_at + 1 == LOOKED_AT_MAX {
                return GroupPage { found, until: Some(transaction.gid.clone()) };
            }
        }
        GroupPage { found, until: None }
    }
}

/// The pages of all groups as one of at most `limit`, and the gid to go on behind if there may be more.
pub(crate) fn merged(pages: Vec<GroupPage>, limit: usize) -> (Vec<GlobalTransaction>, Option<Gid>) {
    // Behind the gid at which the first group stopped, that group may have some that are not here.
    let mut until = pages.iter().filter_map(|page| page.until.clone()).min();
    let mut found: Vec<GlobalTransaction> = pages
        .into_iter()
        .flat_map(|page| page.found)
        .filter(|one| until.as_ref().is_none_or(|until| one.gid <= *until))
        .collect();
    found.sort_by(|one, other| one.gid.cmp(&other.gid));
    if found.len() > limit {
        found.truncate(limit);
        until = found.last().map(|last| last.gid.clone());
    }
    (found, until)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use holdfast_txn::{BranchSpec, Command, Machine, Mode, Options, Participant, Timestamp};

    use super::*;

    fn page(gids: &[&str], until: Option<&str>) -> GroupPage {
        let mut machine = Machine::new();
        for gid in gids {
            let branch = BranchSpec {
                participant: Participant::parse("deposit").unwrap(),
                payload: Bytes::new(),
                after: None,
                pivot: false,
            };
            let begin = Command::Begin {
                gid: Gid::parse(gid).unwrap(),
                mode: Mode::Tcc,
                options: Options::of(Mode::Tcc),
                branches: vec![branch],
                enlisted: false,
            };
            machine.apply(Timestamp(1), begin).unwrap();
        }
        let until = until.map(|gid| Gid::parse(gid).unwrap());
        GroupPage { found: machine.list(None).cloned().collect(), until }
    }

    fn gids((found, next): (Vec<GlobalTransaction>, Option<Gid>)) -> (String, Option<String>) {
        let gids: Vec<_> = found.iter().map(|one| one.gid.to_string()).collect();
        (gids.join(" "), next.map(|next| next.to_string()))
    }

    #[test]
    fn groups_are_listed_together_in_gid_order() {
        let pages = vec![page(&["a", "d"], None), page(&["b"], None), page(&["c", "e"], None)];
        assert_eq!(gids(merged(pages, 10)), ("a b c d e".to_owned(), None));
    }

    #[test]
    fn a_page_ends_where_the_first_group_stopped_looking() {
        let pages = vec![page(&["a", "b"], Some("b")), page(&["c", "d"], None)];
        assert_eq!(gids(merged(pages, 10)), ("a b".to_owned(), Some("b".to_owned())));
        // One that found nothing so far says only how far it has looked.
        let pages = vec![page(&[], Some("c")), page(&["b", "d"], None)];
        assert_eq!(gids(merged(pages, 10)), ("b".to_owned(), Some("c".to_owned())));
    }

    #[test]
    fn a_page_at_its_limit_is_the_last_and_one_more_goes_on() {
        let pages = || vec![page(&["a", "d"], None), page(&["b", "c"], None)];
        assert_eq!(gids(merged(pages(), 4)).1, None);
        assert_eq!(gids(merged(pages(), 3)), ("a b c".to_owned(), Some("c".to_owned())));
    }
}

//! A page of open and recently finished transactions, out of all groups, in gid order.

use holdfast_history::{Amount, AmountRange};
use holdfast_txn::{Gid, GlobalTransaction, Participant, Status, Timestamp};

use crate::{group::Group, rpc::show};

/// Transactions looked at for one page of one group, while its machine is held.
const LOOKED_AT_MAX: usize = 20_000;

/// Which transactions; everything that is said must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// One of these; none: any.
    pub(crate) statuses: Vec<Status>,
    /// One of these, as numbers on the wire.
    pub(crate) modes: Vec<i32>,
    /// A branch of it is served by this one.
    pub(crate) participant: Option<Participant>,
    /// Each of these tags.
    pub(crate) tags: Vec<(String, String)>,
    /// The tag `amount` is one of these.
    pub(crate) amount: Option<AmountRange>,
    /// Begun at this time or later.
    pub(crate) from: Timestamp,
    /// Begun before this time.
    pub(crate) until: Option<Timestamp>,
}

impl Wanted {
    fn fits(&self, known: &GlobalTransaction) -> bool {
        let tag = |name: &str| known.options.tags.get(name);
        (self.statuses.is_empty() || self.statuses.contains(&known.status))
            && known.begun_at >= self.from
            && self.until.is_none_or(|until| known.begun_at < until)
            && (self.modes.is_empty()
                || self.modes.contains(&show::mode_to_wire(known.mode).into()))
            && self.tags.iter().all(|(name, value)| tag(name) == Some(value))
            && self.participant.as_ref().is_none_or(|wanted| {
                known.numbered().any(|(_, branch)| branch.spec.participant == *wanted)
            })
            && self.amount.is_none_or(|range| {
                let amount = tag(Amount::TAG).and_then(Amount::parse);
                amount.is_some_and(|amount| range.contains(amount))
            })
    }
}

/// What one group has behind the gid that was asked for.
#[derive(Debug, Default)]
pub(crate) struct GroupPage {
    /// In gid order.
    found: Vec<GlobalTransaction>,
    /// The last one that was looked at, if there may be more behind it.
    until: Option<Gid>,
}

impl Group {
    /// At most `limit` of those that are wanted behind `after`.
    pub(crate) fn page(&self, wanted: &Wanted, after: Option<&Gid>, limit: usize) -> GroupPage {
        let state = self.state.held();
        GroupPage::of(state.machine.list(after), wanted, limit)
    }
}

impl GroupPage {
    /// At most `limit` of those of `all` that are wanted; the rest is not looked at once enough were.
    fn of<'a>(
        all: impl Iterator<Item = &'a GlobalTransaction>,
        wanted: &Wanted,
        limit: usize,
    ) -> Self {
        let mut found = Vec::with_capacity(limit.min(128));
        for (looked_at, transaction) in all.enumerate() {
            if wanted.fits(transaction) {
                found.push(transaction.clone());
            }
            if found.len() == limit || looked_at + 1 == LOOKED_AT_MAX {
                return Self { found, until: Some(transaction.gid.clone()) };
            }
        }
        Self { found, until: None }
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
    use holdfast_proto::v1;
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
                content: None,
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

    /// One that began at 1, of one branch by `deposit`, with these tags.
    fn tagged(gid: &str, mode: Mode, tags: &[(&str, &str)]) -> GlobalTransaction {
        let branch = BranchSpec {
            participant: Participant::parse("deposit").unwrap(),
            payload: Bytes::new(),
            after: None,
            pivot: false,
        };
        let mut options = Options::of(mode);
        options.tags = tags.iter().copied().collect();
        let gid = Gid::parse(gid).unwrap();
        let begin = Command::Begin {
            gid: gid.clone(),
            mode,
            options,
            branches: vec![branch],
            enlisted: false,
            content: None,
        };
        let mut machine = Machine::new();
        machine.apply(Timestamp(7), begin).unwrap();
        machine.get(&gid).unwrap().clone()
    }

    fn amounts(least: &str, most: &str) -> Option<AmountRange> {
        AmountRange::new(Amount::parse(least).unwrap(), Amount::parse(most).unwrap())
    }

    /// Says one thing more.
    type Narrowing = fn(&mut Wanted);

    #[test]
    fn each_filter_and_each_pair_of_them_finds_what_has_it_and_nothing_else() {
        let one = tagged("a", Mode::Saga, &[("run", "payroll"), ("amount", "50.00 EUR")]);
        let set: [(Narrowing, Narrowing); 7] = [
            (|w| w.statuses = vec![Status::Running], |w| w.statuses = vec![Status::Committed]),
            (|w| w.modes = vec![v1::Mode::Saga.into()], |w| w.modes = vec![v1::Mode::Tcc.into()]),
            (
                |w| w.participant = Participant::parse("deposit").ok(),
                |w| w.participant = Participant::parse("loyalty").ok(),
            ),
            (
                |w| w.tags = vec![("run".into(), "payroll".into())],
                |w| w.tags = vec![("run".into(), "rent".into())],
            ),
            (|w| w.from = Timestamp(7), |w| w.from = Timestamp(8)),
            (|w| w.until = Some(Timestamp(8)), |w| w.until = Some(Timestamp(7))),
            (
                |w| w.amount = amounts("50 EUR", "50 EUR"),
                |w| w.amount = amounts("50.01 EUR", "51 EUR"),
            ),
        ];
        for (fitting, _) in &set {
            for (other, failing) in &set {
                let mut wanted = Wanted::default();
                fitting(&mut wanted);
                other(&mut wanted);
                assert!(wanted.fits(&one), "{wanted:?}");
                failing(&mut wanted);
                assert!(!wanted.fits(&one), "{wanted:?}");
            }
        }
    }

    #[test]
    fn as_many_are_looked_at_for_a_page_as_allowed_and_no_more() {
        let (other, wanted) = (tagged("a", Mode::Saga, &[]), tagged("z", Mode::Tcc, &[]));
        let page = |others: usize| {
            let all = std::iter::repeat_n(&other, others).chain([&wanted]);
            GroupPage::of(
                all,
                &Wanted { modes: vec![v1::Mode::Tcc.into()], ..Wanted::default() },
                10,
            )
        };
        let at_the_limit = page(LOOKED_AT_MAX - 1);
        assert_eq!((at_the_limit.found.len(), at_the_limit.until.as_ref()), (1, Some(&wanted.gid)));
        // One further away it is not reached: the page is empty, and says where to go on.
        let past_it = page(LOOKED_AT_MAX);
        assert_eq!((past_it.found.len(), past_it.until.as_ref()), (0, Some(&other.gid)));
        assert_eq!(page(LOOKED_AT_MAX - 2).until, None);
    }

    #[test]
    fn a_page_at_its_limit_is_the_last_and_one_more_goes_on() {
        let pages = || vec![page(&["a", "d"], None), page(&["b", "c"], None)];
        assert_eq!(gids(merged(pages(), 4)).1, None);
        assert_eq!(gids(merged(pages(), 3)), ("a b c".to_owned(), Some("c".to_owned())));
    }
}

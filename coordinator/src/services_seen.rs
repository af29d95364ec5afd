//! What the groups of a node see of the services, as one answer: the sessions are the same, and each group has its own calls on them.

use holdfast_proto::v1::{ListServicesReply, ServiceState, SessionState};

/// The answers of all groups together. Counts are added; a breaker is as open as any group found it.
pub(crate) fn together(seen: Vec<ListServicesReply>) -> ListServicesReply {
    let mut groups = seen.into_iter();
    let mut all = groups.next().unwrap_or_default();
    for group in groups {
        for service in group.services {
            match all.services.iter_mut().find(|known| known.service == service.service) {
                Some(known) => add(known, service),
                None => all.services.push(service),
            }
        }
    }
    all.services.sort_by(|one, other| one.service.cmp(&other.service));
    all
}

fn add(known: &mut ServiceState, other: ServiceState) {
    known.in_flight += other.in_flight;
    known.parked += other.parked;
    known.asked += other.asked;
    known.answered += other.answered;
    known.silent += other.silent;
    known.recovering += other.recovering;
    worse(&mut known.breaker, other.breaker);
    if known.waits_for.is_empty() {
        known.waits_for = other.waits_for;
    }
    for session in other.sessions {
        let same =
            |one: &&mut SessionState| (one.session, &one.kind) == (session.session, &session.kind);
        match known.sessions.iter_mut().find(same) {
            Some(one) => {
                one.in_flight += session.in_flight;
                one.asked += session.asked;
                one.answered += session.answered;
                one.silent += session.silent;
                worse(&mut one.breaker, session.breaker);
            }
            None => known.sessions.push(session),
        }
    }
}

fn worse(known: &mut String, other: String) {
    let rank = |word: &str| match word {
        "closed" | "" => 0,
        "open" => 2,
        _ => 1,
    };
    if rank(&other) > rank(known) {
        *known = other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(asked: u64, breaker: &str, sessions: &[u64]) -> ListServicesReply {
        let sessions = sessions.iter().map(|session| SessionState {
            session: *session,
            asked,
            breaker: breaker.to_owned(),
            ..Default::default()
        });
        let service = ServiceState {
            service: "deposit".to_owned(),
            sessions: sessions.collect(),
            asked,
            breaker: breaker.to_owned(),
            ..Default::default()
        };
        ListServicesReply { services: vec![service], ..Default::default() }
    }

    #[test]
    fn calls_of_all_groups_are_added_and_the_worst_breaker_is_told() {
        let all = together(vec![seen(3, "closed", &[1]), seen(4, "open", &[1, 2])]);
        let service = &all.services[0];
        assert_eq!((all.services.len(), service.asked), (1, 7));
        assert_eq!(service.breaker, "open");
        let asked: Vec<_> = service.sessions.iter().map(|one| one.asked).collect();
        assert_eq!(asked, [7, 4]);
        assert_eq!(together(Vec::new()), ListServicesReply::default());
    }
}

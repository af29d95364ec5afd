//! Health: asks every server of every source what it is and how far it has come.
//!
//! [`standing`] judges who is the primary, [`freshness`] how old a replica's rows may be.

pub(crate) mod freshness;
pub(crate) mod standing;

use std::{io, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::{MissedTickBehavior, interval, timeout};

use self::{
    freshness::Asked,
    standing::{Heard, Role, Standing},
};
use crate::{
    backend::{Account, Reply, Server, connect},
    shared::Shared,
    source::Source,
};

/// Between two looks at the server of a source that has one only.
const EVERY: Duration = Duration::from_secs(2);
/// Between two looks at the servers of a source that has several: a promotion is followed, and the age of a replica's rows known, as finely.
const EVERY_OF_SEVERAL: Duration = Duration::from_millis(100);
/// What a server is asked: in recovery, cluster, timeline, position, start. In recovery, the timeline is that of what it receives; it is told to
/// members of `pg_read_all_stats` only.
const ASK: &str = "SELECT pg_catalog.pg_is_in_recovery(), \
    (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver) \
    ELSE ('x' || left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8))::bit(32)::int END, \
    CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
    ELSE pg_catalog.pg_current_wal_insert_lsn() END - '0/0'::pg_lsn, \
    (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint";

/// Watches a source for as long as the router runs. Sources without an account of their own are not watched: nobody could log in.
pub(crate) async fn watch(source: Arc<Source>, shared: Arc<Shared>) {
    let Some(account) = account(&source) else { return };
    let mut connections: Vec<Option<Server>> =
        source.config.addresses.iter().map(|_| None).collect();
    let several = connections.len() > 1;
    let mut look = interval(if several { EVERY_OF_SEVERAL } else { EVERY });
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut standing, mut asked) = (Standing::default(), Asked::default());
    loop {
        look.tick().await;
        let limit = shared.limits().connect_timeout;
        let doubts = source.doubts();
        let began = source.now();
        let questions = connections.iter_mut().enumerate().map(async |(index, connection)| {
            let asked = ask(&source, index, connection, &account);
            let answer = timeout(limit, asked).await;
            let heard = answer.ok().and_then(Result::ok);
            if heard.is_none() {
                *connection = None;
            }
            heard
        });
        let heard = join_all(questions).await;
        let roles = standing.judge(&heard);
        if let Some(index) = roles.iter().position(|role| *role == Role::Primary)
            && let Some(primary) = &heard[index]
        {
            asked.primary(began, standing.timeline(), primary.position);
        }
        for (index, (role, heard)) in roles.iter().zip(&heard).enumerate() {
            let fresh = match (role, heard) {
                (Role::Replica, Some(heard)) => asked.as_of(heard.timeline, heard.position),
                _ => None,
            };
            source.judged(index, *role, fresh);
        }
        match roles.iter().position(|role| *role == Role::Primary) {
            Some(index) => {
                let started = heard[index].as_ref().map_or(0, |heard| heard.started);
                source.primary_found(index, standing.timeline(), started, doubts);
            }
            None => source.no_primary(),
        }
    }
}

pub(crate) fn account(source: &Source) -> Option<Account> {
    Some(Account {
        user: source.config.user.clone()?,
        database: source.config.database.clone()?,
        password: source.config.password.clone(),
        weak_authentication: source.config.weak_authentication,
        tls: source.config.tls.clone(),
        by_keys: false,
    })
}

async fn ask(
    source: &Source,
    index: usize,
    connection: &mut Option<Server>,
    account: &Account,
) -> io::Result<Heard> {
    let endpoint = source.endpoint(index).expect("one for each address");
    let server = match connection {
        Some(server) => server,
        None => {
            let made = connect(endpoint, account).await;
            connection.insert(made.map_err(|error| io::Error::other(error.to_string()))?)
        }
    };
    hear(server).await
}

/// What a quiet server says of itself.
/// # Errors
/// The connection is gone, or the server does not say.
pub(crate) async fn hear(server: &mut Server) -> io::Result<Heard> {
    let reply = server.run(&[ASK]).await?;
    read(&reply).ok_or_else(|| io::Error::other(format!("it does not say: {}", reply.words())))
}

fn read(reply: &Reply) -> Option<Heard> {
    let [recovering, system, timeline, position, started] = reply.rows.first()?.as_slice() else {
        return None;
    };
    Some(Heard {
        recovering: recovering.as_deref()? == "t",
        // The catalog has it as a signed number.
        system: system.as_deref()?.parse::<i64>().ok()?.cast_unsigned(),
        timeline: timeline.as_deref().and_then(|timeline| timeline.parse().ok()),
        position: position.as_deref()?.parse().ok()?,
        started: started.as_deref()?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_what_it_is() {
        let row = |texts: [Option<&str>; 5]| {
            let rows = vec![texts.map(|text| text.map(str::to_owned)).to_vec()];
            read(&Reply { rows, ..Reply::default() })
        };
        let heard = row([Some("t"), Some("-5"), Some("2"), Some("50331648"), Some("17")]);
        let heard = heard.expect("it is whole");
        assert!(heard.recovering && heard.timeline == Some(2));
        assert_eq!((heard.position, heard.started), (50_331_648, 17));
        let silent = row([Some("t"), Some("5"), None, Some("1"), Some("1")]);
        assert_eq!(silent.map(|heard| heard.timeline), Some(None), "it receives nothing");
        assert_eq!(row([Some("t"), None, Some("1"), Some("1"), Some("1")]), None);
        assert_eq!(read(&Reply::default()), None);
    }
}

//! Health: asks every server of every source whether it is the primary, and how far a replica is behind.

use std::{io, sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    backend::{Account, Server, connect},
    config::RouterConfig,
    frame::{self, Body},
    source::{LAG_UNKNOWN, Source},
};

/// Between two looks at a server.
const EVERY: Duration = Duration::from_secs(2);
/// Whether it is in recovery, and the age of what it has replayed last, ms. A replica that has replayed all it received is not behind.
const ASK: &[u8] = b"SELECT pg_is_in_recovery(), CASE WHEN NOT pg_is_in_recovery() \
    OR pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 ELSE \
    coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) * 1000, 1e15)::bigint END";

/// What a server said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    /// Behind by so many ms.
    Replica(u64),
}

/// Watches a source for as long as the router runs. Sources without an account of their own are not watched: nobody could log in.
pub(crate) async fn watch(source: Arc<Source>, config: Arc<RouterConfig>) {
    let Some(account) = account(&source) else { return };
    let mut connections: Vec<Option<Server>> =
        source.config.addresses.iter().map(|_| None).collect();
    let mut look = interval(EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let mut primaries = Vec::new();
        for (index, connection) in connections.iter_mut().enumerate() {
            let asked = ask(&source, index, connection, &account);
            let role = timeout(config.limits.connect_timeout, asked).await;
            match role {
                Ok(Ok(Role::Primary)) => {
                    source.set_lag_ms(index, LAG_UNKNOWN);
                    primaries.push(index);
                }
                Ok(Ok(Role::Replica(lag_ms))) => source.set_lag_ms(index, lag_ms),
                Ok(Err(_)) | Err(_) => {
                    *connection = None;
                    source.set_lag_ms(index, LAG_UNKNOWN);
                }
            }
        }
        // Two that think so: one of them was left behind. The known one stays until it says otherwise, so that writes do not wander.
        match primaries.as_slice() {
            [] => source.not_reached(),
            found if found.contains(&source.primary_index()) => {
                source.primary_found(source.primary_index());
            }
            [first, ..] => source.primary_found(*first),
        }
    }
}

pub(crate) fn account(source: &Source) -> Option<Account> {
    Some(Account {
        user: source.config.user.clone()?,
        database: source.config.database.clone()?,
        password: source.config.password.clone(),
        weak_authentication: source.config.weak_authentication,
    })
}

async fn ask(
    source: &Source,
    index: usize,
    connection: &mut Option<Server>,
    account: &Account,
) -> io::Result<Role> {
    let endpoint = source.endpoint(index).expect("one for each address");
    let server = match connection {
        Some(server) => server,
        None => {
            let made = connect(endpoint, account).await;
            connection.insert(made.map_err(|error| io::Error::other(error.to_string()))?)
        }
    };
    let mut out = Vec::new();
    frame::put_query(&mut out, ASK);
    server.wire.write_all(&out).await?;
    let mut role = None;
    loop {
        let (tag, body) = server.wire.read_frame(64 * 1024).await?;
        match tag {
            b'D' => role = read_role(&body),
            b'Z' => return role.ok_or_else(|| io::Error::other("it does not say what it is")),
            b'E' => return Err(io::Error::other("it does not answer")),
            _ => {}
        }
    }
}

fn read_role(body: &[u8]) -> Option<Role> {
    let mut body = Body(body);
    body.int16()?;
    let length = usize::try_from(body.int32()?).ok()?;
    let in_recovery = body.bytes(length)? == b"t";
    let length = usize::try_from(body.int32()?).ok()?;
    let lag = std::str::from_utf8(body.bytes(length)?).ok()?.parse().ok()?;
    Some(if in_recovery { Role::Replica(lag) } else { Role::Primary })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_what_it_is() {
        let row = |recovery: &str, lag: &str| {
            let mut out = Vec::new();
            frame::put_row(&mut out, &[Some(recovery), Some(lag)]);
            read_role(&out[frame::HEADER..])
        };
        assert_eq!(row("f", "0"), Some(Role::Primary));
        assert_eq!(row("t", "250"), Some(Role::Replica(250)));
        assert_eq!(row("t", "soon"), None);
        assert_eq!(read_role(b""), None);
    }
}

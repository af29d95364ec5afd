//! Free TCP ports on the loopback address, below those that the kernel gives to outgoing connections.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, TcpListener},
    ops::Range,
    os::{linux::net::SocketAddrExt as _, unix::net},
    sync::Mutex,
};

use anyhow::ensure;
use rand::Rng as _;

/// A killed program's port must still be free when it is started again, so it lies where no outgoing connection begins.
fn range() -> Range<u16> {
    let kernel = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let outgoing = kernel.split_whitespace().next().and_then(|word| word.parse().ok());
    let above: u16 = outgoing.unwrap_or(32_768);
    // Where outgoing connections begin very low there is no better place than any.
    if above > 14_000 { 10_000..above } else { 10_000..65_000 }
}

const ATTEMPTS_MAX: usize = 2_000;

/// Locks of the ports that this program has drawn, for as long as it runs. A demo or a drill that runs beside its stories locks its own by
/// the same names (unix(7), abstract).
static GIVEN: Mutex<Vec<net::UnixListener>> = Mutex::new(Vec::new());

fn lock(port: u16) -> Option<net::UnixListener> {
    let name = net::SocketAddr::from_abstract_name(format!("holdfast-port-{port}")).ok()?;
    net::UnixListener::bind_addr(&name).ok()
}

/// So many ports that were free a moment ago, all different.
/// # Errors
/// There are not so many.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut rng = rand::rng();
    let mut given = GIVEN.lock().expect("no holder panics");
    let mut chosen = BTreeSet::new();
    for _ in 0..ATTEMPTS_MAX {
        if chosen.len() == count {
            break;
        }
        let port = rng.random_range(range());
        if let Some(lock) = lock(port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            given.push(lock);
            chosen.insert(port);
        }
    }
    ensure!(chosen.len() == count, "only {} of {count} ports are free", chosen.len());
    Ok(chosen.into_iter().collect())
}

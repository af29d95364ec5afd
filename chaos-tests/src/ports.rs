//! Free TCP ports on the loopback address, chosen where the kernel does not hand out ports of its own.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;

use anyhow::{Context, bail};
use rand::Rng;

/// Tried before giving up; a machine whose ports are all taken has other worries.
const ATTEMPTS_MAX: usize = 2_000;

/// Ports that were free a moment ago, all different.
///
/// They lie below the range from which outgoing connections are numbered: a killed server's port must still be free
/// when it is started again a second later, and a client that dials a dead port must never meet itself.
/// # Errors
/// There are not so many.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let above = outgoing_first().min(32_768);
    let below = 10_000;
    if above < below + 4_096 {
        bail!(
            "no room for server ports: outgoing connections start at port {above}. Raise the first number of \
             net.ipv4.ip_local_port_range to 32768"
        );
    }
    choose(count, below..above)
}

fn choose(count: usize, range: Range<u16>) -> anyhow::Result<Vec<u16>> {
    let mut rng = rand::rng();
    let mut chosen = BTreeSet::new();
    for _ in 0..ATTEMPTS_MAX {
        if chosen.len() == count {
            break;
        }
        let port = rng.random_range(range.clone());
        if !chosen.contains(&port)
            && reserve(port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            chosen.insert(port);
        }
    }
    if chosen.len() < count {
        bail!(
            "only {} of {count} ports free on 127.0.0.1 from {} to {}",
            chosen.len(),
            range.start,
            range.end
        );
    }
    Ok(chosen.into_iter().collect())
}

/// Locks of the ports that this process has drawn, for as long as it runs.
static RESERVED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());

/// Keeps `port` from other demos, drills and stories of this machine: between the draw and the start of a server nobody listens there, and one
/// that starts in the same moment could draw it as well. The lock is a name without a file (unix(7), abstract), so it goes with its
/// process, however that ends, and leaves nothing.
fn reserve(port: u16) -> bool {
    let name = format!("holdfast-port-{port}");
    let Ok(address) = SocketAddr::from_abstract_name(name) else { return true };
    let Ok(lock) = UnixListener::bind_addr(&address) else { return false };
    RESERVED.lock().expect("no holder panics").push(lock);
    true
}

/// The first port that the kernel gives to outgoing connections.
fn outgoing_first() -> u16 {
    read_outgoing_first().unwrap_or(32_768)
}

fn read_outgoing_first() -> anyhow::Result<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let first = text.split_whitespace().next().context("empty")?;
    Ok(first.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_differ_and_can_be_bound() {
        let ports = free(20).unwrap();
        let distinct: BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 20);
        for port in ports {
            assert!(port < outgoing_first(), "{port} may be taken by an outgoing connection");
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }

    #[test]
    fn a_port_that_another_demo_has_drawn_is_not_chosen() {
        let port = free(1).unwrap()[0];
        assert!(!reserve(port), "the lock of a port is held by one");
        assert!(choose(1, port..port + 1).is_err());
    }

    #[test]
    fn a_port_in_use_is_not_chosen() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = choose(1, port..port + 1).unwrap_err();
        assert!(error.to_string().contains("only 0 of 1"), "{error}");
    }
}

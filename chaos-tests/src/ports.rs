//! Free TCP ports on the loopback address, below those that the kernel gives to outgoing connections.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
};

use anyhow::ensure;
use rand::Rng as _;

/// A killed program's port must still be free when it is started again, so it lies where no outgoing connection begins.
const RANGE: std::ops::Range<u16> = 10_000..32_000;
const ATTEMPTS_MAX: usize = 2_000;

/// So many ports that were free a moment ago, all different.
/// # Errors
/// There are not so many.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let mut rng = rand::rng();
    let mut chosen = BTreeSet::new();
    for _ in 0..ATTEMPTS_MAX {
        if chosen.len() == count {
            break;
        }
        let port = rng.random_range(RANGE);
        if !chosen.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            chosen.insert(port);
        }
    }
    ensure!(chosen.len() == count, "only {} of {count} ports are free", chosen.len());
    Ok(chosen.into_iter().collect())
}

//! Whether connections to a PostgreSQL server are encrypted, as `sslmode` and `sslrootcert` say beside a connection string.

use std::net::IpAddr;

use holdfast_security::ServerTls;
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};

/// One of `disable`, `require` and `verify-full`.
/// # Errors
/// In words.
pub(crate) fn check_mode(text: &str) -> Result<(), String> {
    match text {
        "disable" | "require" | "verify-full" => Ok(()),
        _ => Err(format!("= {text:?} is none of disable, require and verify-full.")),
    }
}

/// A connection string whose own `sslmode` is the default, left alone: what is asked for there would be asked in vain.
/// # Errors
/// A code and words.
pub(crate) fn says_no_mode(database: &Config) -> Result<(), (&'static str, String)> {
    if database.get_ssl_mode() == SslMode::Prefer {
        return Ok(());
    }
    let remedy = "Set the key sslmode beside it: require or verify-full";
    Err(("HF1020", format!("says sslmode, which does not count there. {remedy}.")))
}

/// How connections to the servers of `database` are encrypted; an empty `mode` or `roots` was not given. Within this machine encryption may
/// be left out; elsewhere the password's proof and the rows would travel in the clear.
/// # Errors
/// A code, and words that begin with the key's name.
pub(crate) fn encryption(
    mode: &str,
    roots: &str,
    database: &Config,
) -> Result<Option<ServerTls>, (&'static str, String)> {
    match (mode, roots) {
        ("verify-full", "") => Err((
            "HF1004",
            "sslmode = \"verify-full\" without sslrootcert. Name the PEM file of the authority that signed the servers' certificates.".to_owned(),
        )),
        ("verify-full", file) => ServerTls::verify_full(file.as_ref())
            .map(Some)
            .map_err(|why| ("HF1017", format!("sslrootcert: {why}."))),
        // Whoever names an authority means it to be looked at.
        (_, file) if !file.is_empty() => {
            let why =
                format!("sslrootcert = {file:?} is looked at with sslmode = \"verify-full\" only.");
            Err(("HF1004", format!("{why} Set that, or leave sslrootcert away.")))
        }
        ("require", _) => Ok(Some(ServerTls::require())),
        (_, _) => match distant(database) {
            None => Ok(None),
            Some(named) => {
                let why = format!("database names {named}, which is no loopback address,");
                let rest = "and sslmode is not given. Set sslmode = \"verify-full\" and sslrootcert; \"require\" does not look who the server is.";
                Err(("HF1010", format!("{why} {rest}")))
            }
        },
    }
}

/// The first host that is not of this machine.
fn distant(database: &Config) -> Option<String> {
    let host = database.get_hosts().iter().find_map(|host| match host {
        Host::Tcp(name)
            if name != "localhost" && !name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()) =>
        {
            Some(format!("host {name:?}"))
        }
        _ => None,
    });
    let address = database.get_hostaddrs().iter().find(|address| !address.is_loopback());
    host.or_else(|| address.map(|address| format!("hostaddr {address}")))
}

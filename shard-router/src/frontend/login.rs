//! Login: who a client is, proved before it can do anything.

use std::{io, net::IpAddr};

use ring::rand::{SecureRandom as _, SystemRandom};

use super::{
    Startup,
    scram::{self, Exchange, Verifier},
};
use crate::{
    config::{Authentication, RouterConfig},
    frame::{self, Body},
    refusal::Refusal,
    shared::Shared,
    wire::Wire,
};

/// Bytes of a user's or a database's name, as PostgreSQL bounds names.
const NAME_BYTES_MAX: usize = 63;
/// Parameters of a start-up message that become settings of the session.
const SETTINGS_MAX: usize = 64;

/// A client whose login succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) user: String,
    pub(crate) database: String,
    /// Settings that the session begins with, sorted by name.
    pub(crate) settings: Vec<(String, String)>,
}

/// Why a client did not get in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLogin {
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Refused(Refusal),
}

/// Lets a client prove itself. Nothing is answered with success before this returns; `AuthenticationOk` is written by it.
pub(crate) async fn login(
    startup: &mut Startup,
    peer: Option<IpAddr>,
    shared: &Shared,
) -> Result<Identity, NoLogin> {
    let config = &shared.config;
    let identity = match identify(startup, config) {
        Ok(identity) => identity,
        Err(refusal) => return Err(turn_away(&mut startup.wire, refusal).await),
    };
    let encrypted = matches!(startup.wire, Wire::Tls(_));
    let loopback = peer.is_none_or(|peer| peer.is_loopback());
    if config.require_tls && !encrypted {
        let cause = "this router takes encrypted connections only";
        let refusal =
            Refusal::new("HF3213", "28000", cause, "Connect with sslmode=require or verify-full");
        return Err(turn_away(&mut startup.wire, refusal).await);
    }
    let mut ok = Vec::new();
    if startup.minor > 0 || !startup.unknown_options.is_empty() {
        negotiate(&mut ok, &startup.unknown_options);
    }
    let authentication = shared.live.borrow().authentication.clone();
    match authentication {
        Authentication::TrustLoopback if loopback => {}
        Authentication::TrustLoopback => {
            let refusal = Refusal::new(
                "HF3201",
                "28000",
                "clients beyond this machine must log in, and no user is configured",
                "Configure [[auth.user]] with a verifier",
            );
            return Err(turn_away(&mut startup.wire, refusal).await);
        }
        Authentication::Scram(users) => {
            let known = users.iter().find(|user| user.name == identity.user);
            let decoy = || Verifier::decoy(&config.secret, &identity.user);
            let verifier = known.map_or_else(decoy, |user| user.verifier.clone());
            if !ok.is_empty() {
                startup.wire.write_all(&std::mem::take(&mut ok)).await?;
            }
            if let Err(why) = prove(startup, verifier).await? {
                tracing::info!(user = identity.user, %why, "login failed");
                let refusal = Refusal::new(
                    "HF3201",
                    "28P01",
                    format!("login of user {:?} failed", identity.user),
                    "Check name and password",
                );
                return Err(turn_away(&mut startup.wire, refusal).await);
            }
        }
    }
    frame::put(&mut ok, b'R', |out| out.extend_from_slice(&0_i32.to_be_bytes()));
    startup.wire.write_all(&ok).await?;
    Ok(identity)
}

async fn turn_away(wire: &mut Wire, refusal: Refusal) -> NoLogin {
    let mut out = Vec::new();
    refusal.put_fatal(&mut out);
    match wire.write_all(&out).await {
        Ok(()) => NoLogin::Refused(refusal),
        Err(error) => error.into(),
    }
}

/// User, database and settings of a start-up message.
fn identify(startup: &Startup, config: &RouterConfig) -> Result<Identity, Refusal> {
    let refuse = |cause: String, remedy: &str| Refusal::new("HF3209", "08P01", cause, remedy);
    let user = startup.parameter("user").unwrap_or_default();
    let database = startup.parameter("database").filter(|name| !name.is_empty()).unwrap_or(user);
    if user.is_empty() || user.len() > NAME_BYTES_MAX || database.len() > NAME_BYTES_MAX {
        return Err(refuse("user and database have 1 to 63 bytes".to_owned(), "Name both"));
    }
    if let Some(only) = config.database.as_ref().filter(|only| *only != database) {
        let cause = format!("there is no database {database:?} here");
        return Err(Refusal::new("HF3202", "3D000", cause, format!("Connect to {only:?}")));
    }
    let mut settings = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" => {}
            "replication" if ["false", "off", "no", "0"].contains(&value.as_str()) => {}
            "replication" => {
                let cause = "replication connections are not routed".to_owned();
                return Err(refuse(cause, "Connect to the PostgreSQL server itself"));
            }
            "options" => options(value, &mut settings).ok_or_else(|| {
                refuse("options are not understood".to_owned(), "Write -c name=value")
            })?,
            _ => settings.push((name.clone(), value.clone())),
        }
    }
    if settings.len() > SETTINGS_MAX {
        return Err(refuse(
            format!("{} settings, at most {SETTINGS_MAX}", settings.len()),
            "Set fewer",
        ));
    }
    settings.reverse();
    settings.sort_by(|a, b| a.0.cmp(&b.0));
    // The last one of a name counts: reversed and sorted in place, it is the first of its equals.
    settings.dedup_by(|later, first| later.0 == first.0);
    Ok(Identity { user: user.to_owned(), database: database.to_owned(), settings })
}

/// `-c name=value --name=value`, with `\ ` for a blank.
fn options(text: &str, settings: &mut Vec<(String, String)>) -> Option<()> {
    let mut words = vec![String::new()];
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        let word = words.last_mut().expect("there is always one");
        match letter {
            '\\' => word.push(letters.next()?),
            blank if blank.is_ascii_whitespace() => words.push(String::new()),
            letter => word.push(letter),
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") if word == "-c" => words.next()?,
            Some(setting) => setting.to_owned(),
            None => return None,
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(())
}

/// `NegotiateProtocolVersion`: 3.0, and none of these options.
fn negotiate(out: &mut Vec<u8>, unknown: &[String]) {
    frame::put(out, b'v', |out| {
        out.extend_from_slice(&super::startup::PROTOCOL.to_be_bytes());
        let count = i32::try_from(unknown.len()).expect("a start-up message is short");
        out.extend_from_slice(&count.to_be_bytes());
        for name in unknown {
            frame::put_text(out, name.as_bytes());
        }
    });
}

/// The SASL exchange. The inner error is for the log.
async fn prove(startup: &mut Startup, verifier: Verifier) -> io::Result<Result<(), scram::Failed>> {
    let mut out = Vec::new();
    frame::put(&mut out, b'R', |out| {
        out.extend_from_slice(&10_i32.to_be_bytes());
        if startup.binding.is_some() {
            frame::put_text(out, scram::PLUS.as_bytes());
        }
        frame::put_text(out, scram::PLAIN.as_bytes());
        out.push(0);
    });
    startup.wire.write_all(&out).await?;
    let (tag, body) = startup.wire.read_frame(scram::MESSAGE_BYTES_MAX).await?;
    let Some((mechanism, first)) = (tag == b'p').then(|| initial(&body)).flatten() else {
        return Ok(Err(scram::Failed::Malformed));
    };
    let mut nonce = [0; 18];
    SystemRandom::new().fill(&mut nonce).map_err(|_| io::Error::other("no randomness"))?;
    let binding = startup.binding.as_deref();
    let (exchange, answer) = match Exchange::begin(verifier, mechanism, binding, first, &nonce) {
        Ok(begun) => begun,
        Err(failed) => return Ok(Err(failed)),
    };
    out.clear();
    frame::put(&mut out, b'R', |out| {
        out.extend_from_slice(&11_i32.to_be_bytes());
        out.extend_from_slice(answer.as_bytes());
    });
    startup.wire.write_all(&out).await?;
    let (tag, body) = startup.wire.read_frame(scram::MESSAGE_BYTES_MAX).await?;
    if tag != b'p' {
        return Ok(Err(scram::Failed::Malformed));
    }
    let last = match exchange.finish(&body) {
        Ok(last) => last,
        Err(failed) => return Ok(Err(failed)),
    };
    out.clear();
    frame::put(&mut out, b'R', |out| {
        out.extend_from_slice(&12_i32.to_be_bytes());
        out.extend_from_slice(last.as_bytes());
    });
    startup.wire.write_all(&out).await?;
    Ok(Ok(()))
}

/// Mechanism and message of a `SASLInitialResponse`.
fn initial(body: &[u8]) -> Option<(&str, &[u8])> {
    let mut body = Body(body);
    let mechanism = std::str::from_utf8(body.text()?).ok()?;
    let length = usize::try_from(body.int32()?).ok()?;
    let message = body.bytes(length)?;
    body.0.is_empty().then_some((mechanism, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_words_with_escaped_blanks() {
        let mut settings = Vec::new();
        options(r"-c statement_timeout=5s --search-path=a,\ b -cx=1", &mut settings)
            .expect("right");
        let settings: Vec<_> = settings.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(settings, [("statement_timeout", "5s"), ("search_path", "a, b"), ("x", "1")]);
        for wrong in ["-c", "statement_timeout=1", "-c x", "-c a=b \\"] {
            assert!(options(wrong, &mut Vec::new()).is_none(), "{wrong}");
        }
    }
}

//! A new connection to a server: start-up and login as a client says them.

use std::io;

use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
};
use tokio::net::{TcpStream, UnixStream};

use holdfast_security::ServerTls;

use super::server::Server;
use crate::{
    config::Endpoint,
    frame::{self, Body},
    refusal,
    wire::Wire,
};

/// Bytes of one message before a server is ready.
const LOGIN_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Messages of one login; PostgreSQL sends some twenty.
const LOGIN_MESSAGES_MAX: usize = 256;
/// Of a server whose source is told from others by keys: signs in UTF-8, or bytes that are not looked at.
const ENCODINGS: [&[u8]; 2] = [b"UTF8", b"SQL_ASCII"];
const PROTOCOL: i32 = 196_608;
const CANCEL_REQUEST: i32 = 80_877_102;
const SSL_REQUEST: i32 = 80_877_103;

/// Who logs in where.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<String>,
    pub(crate) weak_authentication: bool,
    pub(crate) tls: Option<ServerTls>,
    /// Keys tell its source from others: what is no UTF-8 to the server would be another key to the router.
    pub(crate) by_keys: bool,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoServer {
    #[error("{0}")]
    Unreachable(String),
    /// The server's own words.
    #[error("the server says: {message}")]
    Told { sqlstate: String, message: String },
    #[error("{0}")]
    Refused(&'static str),
    #[error(
        "its server_encoding is {0}, and keys that tell several sources apart are known by their bytes in UTF8"
    )]
    Encoding(String),
}

impl From<io::Error> for NoServer {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error.to_string())
    }
}

/// A connection, and what SCRAM may bind to, where it is encrypted.
async fn dial(endpoint: &Endpoint, tls: Option<&ServerTls>) -> io::Result<(Wire, Option<Vec<u8>>)> {
    let address = match endpoint {
        Endpoint::Tcp(address) => address,
        Endpoint::Unix(path) => return Ok((Wire::Unix(UnixStream::connect(path).await?), None)),
    };
    let stream = TcpStream::connect(&**address).await?;
    stream.set_nodelay(true)?;
    let mut wire = Wire::Tcp(stream);
    let Some(tls) = tls else { return Ok((wire, None)) };
    let mut out = Vec::new();
    frame::put_sized(&mut out, |out| out.extend_from_slice(&SSL_REQUEST.to_be_bytes()));
    wire.write_all(&out).await?;
    // One byte and not more: what came behind it in the clear is no part of the encrypted talk.
    let mut agreed = [0];
    wire.read_exact(&mut agreed).await?;
    if agreed != *b"S" {
        return Err(io::Error::other("the server does not encrypt, and sslmode wants that"));
    }
    let Wire::Tcp(stream) = wire else { unreachable!("it was just dialed") };
    let host = address.rsplit_once(':').map_or(&**address, |(host, _)| host);
    let stream = tls.encrypt(host.trim_matches(['[', ']']), stream).await?;
    let binding = ServerTls::binding(&stream);
    Ok((Wire::Tls(Box::new(stream.into())), binding))
}

/// Connects and logs in. A server that says anything unexpected is left.
pub(crate) async fn connect(endpoint: &Endpoint, account: &Account) -> Result<Server, NoServer> {
    let (mut wire, binding) = dial(endpoint, account.tls.as_ref()).await?;
    let mut out = Vec::new();
    frame::put_sized(&mut out, |out| {
        out.extend_from_slice(&PROTOCOL.to_be_bytes());
        for (name, value) in [("user", &account.user), ("database", &account.database)] {
            frame::put_text(out, name.as_bytes());
            frame::put_text(out, value.as_bytes());
        }
        if account.by_keys {
            // A client that says nothing else writes so, whatever the server or the role would begin with.
            frame::put_text(out, b"client_encoding");
            frame::put_text(out, b"UTF8");
        }
        out.push(0);
    });
    wire.write_all(&out).await?;
    let mut server = Server::new(wire, endpoint.clone());
    server.tls.clone_from(&account.tls);
    let mut scram: Option<ScramSha256> = None;
    let mut proved = false;
    for _ in 0..LOGIN_MESSAGES_MAX {
        let (tag, body) = server.wire.read_frame(LOGIN_MESSAGE_BYTES_MAX).await?;
        match tag {
            b'R' => {
                let answer = answer(&body, account, binding.as_deref(), &mut scram, &mut proved)?;
                if let Some(answer) = answer {
                    out.clear();
                    frame::put(&mut out, b'p', |out| out.extend_from_slice(&answer));
                    server.wire.write_all(&out).await?;
                }
            }
            b'S' => {
                let mut body = Body(&body);
                if let (Some(name), Some(value)) = (body.text(), body.text()) {
                    server.statuses.push((name.to_vec(), value.to_vec()));
                }
            }
            b'K' => {
                let mut body = Body(&body);
                if let (Some(pid), Some(secret)) = (body.int32(), body.int32()) {
                    (server.pid, server.secret) = (pid, secret);
                }
            }
            b'E' => return Err(told(&body)),
            b'N' => {}
            b'Z' if proved => return fits(server, account),
            _ => return Err(NoServer::Refused("the server does not log in as PostgreSQL does")),
        }
    }
    Err(NoServer::Refused("the server does not come to an end with its login"))
}

/// In another encoding than UTF-8, signs that differ to the router may be the same to the server.
fn fits(server: Server, account: &Account) -> Result<Server, NoServer> {
    let encoding = server.statuses.iter().find(|(name, _)| name == b"server_encoding");
    match encoding {
        Some((_, encoding)) if account.by_keys && !ENCODINGS.contains(&encoding.as_slice()) => {
            Err(NoServer::Encoding(String::from_utf8_lossy(encoding).into_owned()))
        }
        _ => Ok(server),
    }
}

fn told(body: &[u8]) -> NoServer {
    let field = |name| {
        let text = refusal::field(body, name).unwrap_or_default();
        String::from_utf8_lossy(text).chars().take(400).collect::<String>()
    };
    NoServer::Told { sqlstate: field(b'C'), message: field(b'M') }
}

/// What to answer to one step of the login; `None` where the server expects nothing.
fn answer(
    body: &[u8],
    account: &Account,
    binding: Option<&[u8]>,
    scram: &mut Option<ScramSha256>,
    proved: &mut bool,
) -> Result<Option<Vec<u8>>, NoServer> {
    let mut body = Body(body);
    let malformed = NoServer::Refused("the server's login message is malformed");
    let step = body.int32().ok_or(malformed.clone())?;
    let password = || {
        account.password.as_deref().ok_or(NoServer::Refused(
            "the server wants a password and the configuration has none for this source",
        ))
    };
    match step {
        0 => {
            // A server that skips the end of the exchange has not proved that it knows the password.
            if scram.is_some() {
                return Err(NoServer::Refused("the server did not finish its proof"));
            }
            *proved = true;
            Ok(None)
        }
        3 | 5 if !account.weak_authentication => Err(NoServer::Refused(
            "the server wants the password in clear or as MD5, which the configuration does not permit",
        )),
        3 => {
            let mut text = password()?.as_bytes().to_vec();
            text.push(0);
            Ok(Some(text))
        }
        5 => {
            let salt = body.bytes(4).and_then(|salt| salt.try_into().ok()).ok_or(malformed)?;
            let mut hash =
                md5_hash(account.user.as_bytes(), password()?.as_bytes(), salt).into_bytes();
            hash.push(0);
            Ok(Some(hash))
        }
        10 => {
            let offered = std::iter::from_fn(|| body.text().filter(|text| !text.is_empty()));
            let offered: Vec<&[u8]> = offered.collect();
            let offers = |name: &str| offered.contains(&name.as_bytes());
            let (name, channel) = match binding {
                Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                    (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec()))
                }
                // Says that we would have bound: a server that offers it knows then that somebody took the offer away.
                Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
                None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            };
            if !offers(name) {
                return Err(NoServer::Refused("the server offers no SCRAM-SHA-256"));
            }
            let exchange = scram.insert(ScramSha256::new(password()?.as_bytes(), channel));
            let mut out = Vec::new();
            frame::put_text(&mut out, name.as_bytes());
            let message = exchange.message();
            let length = i32::try_from(message.len()).expect("a first message is short");
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(message);
            Ok(Some(out))
        }
        11 => {
            let exchange = scram.as_mut().ok_or(malformed)?;
            exchange.update(body.0).map_err(NoServer::from)?;
            Ok(Some(exchange.message().to_vec()))
        }
        12 => {
            let mut exchange = scram.take().ok_or(malformed)?;
            exchange.finish(body.0).map_err(|_| {
                NoServer::Refused("the server could not prove that it knows the password")
            })?;
            Ok(None)
        }
        _ => Err(NoServer::Refused("the server wants a kind of login that is not supported")),
    }
}

/// Asks a server to cancel what connection `pid` does. There is no answer.
/// # Errors
/// The server cannot be reached.
pub(crate) async fn cancel(
    endpoint: &Endpoint,
    tls: Option<&ServerTls>,
    pid: i32,
    secret: i32,
) -> io::Result<()> {
    let (mut wire, _) = dial(endpoint, tls).await?;
    let mut out = Vec::new();
    frame::put_sized(&mut out, |out| {
        for number in [CANCEL_REQUEST, pid, secret] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    });
    wire.write_all(&out).await?;
    // The server closes when it has passed the signal on; waiting for that keeps one cancel behind the other.
    let mut nothing = [0; 1];
    let _closed = wire.read_exact(&mut nothing).await;
    Ok(())
}

//! A connection's first bytes: a wish for encryption, a cancel request, or a start-up message with its parameters.

use std::{io, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::Tls;
use crate::{frame::Body, refusal::Refusal, wire::Wire};

/// Bytes of a start-up message, as PostgreSQL bounds it.
const STARTUP_BYTES_MAX: usize = 10_000;
/// Wishes for encryption before the start-up message: one of each kind.
const WISHES_MAX: usize = 2;
const SSL_REQUEST: i32 = 80_877_103;
const GSS_REQUEST: i32 = 80_877_104;
const CANCEL_REQUEST: i32 = 80_877_102;
/// Version 3.0 as the protocol writes it; the only one spoken.
pub(crate) const PROTOCOL: i32 = 196_608;

/// What a client's first message was.
#[derive(Debug)]
pub(crate) enum Greeted {
    /// Whoever sends it expects no answer.
    Cancel {
        pid: i32,
        secret: i32,
    },
    Startup(Startup),
}

/// A client that wants a session and has not proved who it is.
#[derive(Debug)]
pub(crate) struct Startup {
    pub(crate) wire: Wire,
    /// The certificate's hash, where the connection is encrypted.
    pub(crate) binding: Option<Vec<u8>>,
    /// In the order given; names are unique.
    pub(crate) parameters: Vec<(String, String)>,
    /// Names of protocol options that we do not have, and whether a later minor version was asked for.
    pub(crate) unknown_options: Vec<String>,
    pub(crate) minor: i32,
}

impl Startup {
    /// The value of one parameter.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Why a greeting came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoGreeting {
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Refused(Refusal),
}

/// Reads up to the start-up message. Bytes behind a wish for encryption are never taken for what came through it.
pub(crate) async fn greet(stream: TcpStream, tls: Option<&Tls>) -> Result<Greeted, NoGreeting> {
    let mut wire = Wire::Tcp(stream);
    let mut binding = None;
    for _ in 0..=WISHES_MAX {
        let mut head = [0; 8];
        wire.read_exact(&mut head).await?;
        let length = i32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let code = i32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        let length = usize::try_from(length).unwrap_or(0);
        if !(8..=STARTUP_BYTES_MAX).contains(&length) {
            return Err(violation(&mut wire, "a start-up message has 8 to 10000 bytes").await);
        }
        let mut body = vec![0; length - 8];
        wire.read_exact(&mut body).await?;
        match code {
            SSL_REQUEST if body.is_empty() => match (wire, tls) {
                (Wire::Tcp(mut stream), Some(tls)) => {
                    write_byte(&mut stream, b'S').await?;
                    let shown = tls.shown();
                    binding = Some(shown.certificate_hash.clone());
                    let acceptor = TlsAcceptor::from(Arc::clone(&shown.config));
                    let stream = acceptor.accept(stream).await?;
                    wire = Wire::Tls(Box::new(TlsStream::Server(stream)));
                }
                (mut plain, _) => {
                    plain.write_all(b"N").await?;
                    wire = plain;
                }
            },
            GSS_REQUEST if body.is_empty() => wire.write_all(b"N").await?,
            CANCEL_REQUEST => {
                let mut body = Body(&body);
                return match (body.int32(), body.int32()) {
                    (Some(pid), Some(secret)) => Ok(Greeted::Cancel { pid, secret }),
                    _ => Err(violation(&mut wire, "a cancel request has 16 bytes").await),
                };
            }
            version if version >> 16 == 3 => {
                return match parameters(&body) {
                    Some((parameters, unknown_options)) => Ok(Greeted::Startup(Startup {
                        wire,
                        binding,
                        parameters,
                        unknown_options,
                        minor: version & 0xffff,
                    })),
                    None => Err(violation(&mut wire, "the start-up message is malformed").await),
                };
            }
            _ => {
                let cause = format!("protocol {}.{} is not spoken", code >> 16, code & 0xffff);
                return Err(violation(&mut wire, &cause).await);
            }
        }
    }
    Err(violation(&mut wire, "encryption was asked for too often").await)
}

async fn write_byte(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    tokio::io::AsyncWriteExt::write_all(stream, &[byte]).await
}

/// Names and values.
type Pairs = Vec<(String, String)>;

/// Parameters, and the protocol options among them that we do not have.
fn parameters(body: &[u8]) -> Option<(Pairs, Vec<String>)> {
    let mut body = Body(body);
    let (mut parameters, mut unknown): (Pairs, Vec<String>) = Default::default();
    loop {
        let name = std::str::from_utf8(body.text()?).ok()?;
        if name.is_empty() {
            return body.0.is_empty().then_some((parameters, unknown));
        }
        let value = std::str::from_utf8(body.text()?).ok()?;
        if name.starts_with("_pq_.") {
            unknown.push(name.to_owned());
        } else {
            parameters.retain(|(known, _)| known != name);
            parameters.push((name.to_owned(), value.to_owned()));
        }
    }
}

async fn violation(wire: &mut Wire, cause: &str) -> NoGreeting {
    let refusal =
        Refusal::new("HF3209", "08P01", cause, "Use a driver for PostgreSQL's protocol 3");
    let mut out = Vec::new();
    refusal.put_fatal(&mut out);
    // Whoever speaks no protocol may be gone already.
    let _told = wire.write_all(&out).await;
    NoGreeting::Refused(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_end_with_an_empty_name_and_nothing_behind_it() {
        let (read, unknown) =
            parameters(b"user\0a\0_pq_.x\0y\0user\0b\0\0").expect("they are right");
        assert_eq!(read, [("user".to_owned(), "b".to_owned())]);
        assert_eq!(unknown, ["_pq_.x"]);
        for wrong in [&b""[..], b"user\0a\0", b"user\0\0\0x", b"user", b"\xff\0a\0\0"] {
            assert!(parameters(wrong).is_none(), "{wrong:?}");
        }
    }
}

//! Spans of traces: whose they are, what they say, and where they go.
//!
//! A caller that is traced sends a W3C `traceparent` among the headers of a global transaction. What Holdfast does for it becomes spans of the
//! caller's trace. Ids of spans are no chance: they are hashed from what the span is about, so that a new leader continues the spans of the
//! old one without a word between them, and the log holds nothing for it.
//!
//! - A process that installed no [`Spans`] pays one look at an empty cell, and passes headers on as they are.
//! - What is not sampled (the flag of `traceparent`) is recorded nowhere.
//! - A `traceparent` that is none is passed on and ignored: no request fails for it.

use std::{fmt, sync::OnceLock};

use sha2::{Digest as _, Sha256};

/// The header that carries a trace's context (W3C Trace Context, level 1, section 3.2).
pub const HEADER: &str = "traceparent";

/// Bytes of what a `traceparent` of version 00 says: the trace, the span of the sender, the flags.
pub const CONTEXT_BYTES: usize = 25;

/// The id of a span; never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub [u8; 8]);

/// A trace that is sampled, and the span that whoever sent it was in.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The trace.
    pub trace: [u8; 16],
    /// The span of the sender.
    pub span: SpanId,
}

/// Who called whom in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Work of one's own.
    Internal,
    /// A call made.
    Client,
    /// A call answered.
    Server,
}

/// Something that was done for a traced transaction. Times are milliseconds since 1970, UTC.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace, and the span's own id.
    pub context: Context,
    /// The span it is part of.
    pub parent: SpanId,
    /// Few different ones: never a gid, an account or an amount.
    pub name: String,
    /// Who called whom.
    pub kind: Kind,
    /// When it began.
    pub begun_ms: u64,
    /// When it ended, at `begun_ms` or later.
    pub ended_ms: u64,
    /// What it was about.
    pub attributes: Vec<(&'static str, String)>,
    /// What happened within, and when.
    pub events: Vec<(&'static str, u64)>,
    /// Why it counts as failed, if it does.
    pub failed: Option<String>,
}

/// Where spans go. Never waits: what does not fit is dropped and counted there.
pub trait Spans: fmt::Debug + Send + Sync {
    /// Takes a span that has ended.
    fn record(&self, span: Span);
}

static SPANS: OnceLock<Box<dyn Spans>> = OnceLock::new();

/// Installs where this process's spans go.
/// # Errors
/// Somebody did before; theirs stays.
pub fn install(spans: Box<dyn Spans>) -> Result<(), Box<dyn Spans>> {
    SPANS.set(spans)
}

/// Where spans go, if anywhere.
#[must_use]
pub fn spans() -> Option<&'static dyn Spans> {
    SPANS.get().map(AsRef::as_ref)
}

/// Whether `name` is a header that only says to which trace a request belongs: `traceparent`, `tracestate` or `baggage`, in any case.
#[must_use]
pub fn is_context_header(name: &str) -> bool {
    [HEADER, "tracestate", "baggage"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

impl Context {
    /// The flags of a trace that is sampled.
    pub const SAMPLED: u8 = 1;

    /// Reads a `traceparent`. `None`: it is none, or the trace is not sampled.
    ///
    /// Version `ff` and ids of zeros are invalid; a version that is not known here is read like version `00`, whatever follows its flags.
    #[must_use]
    pub fn parse(header: &str) -> Option<Self> {
        let bytes = header.as_bytes();
        let known_length =
            bytes.len() == 55 || (bytes.len() > 55 && bytes[55] == b'-' && &bytes[..2] != b"00");
        if !known_length || bytes[2] != b'-' || bytes[35] != b'-' || bytes[52] != b'-' {
            return None;
        }
        // Most are not sampled, and need no more than a look at their flags.
        let [flags] = hex::<1>(&bytes[53..55])?;
        if flags & Self::SAMPLED == 0 {
            return None;
        }
        let [version] = hex::<1>(&bytes[..2])?;
        let trace = hex::<16>(&bytes[3..35])?;
        let span = hex::<8>(&bytes[36..52])?;
        if version == 0xff { None } else { Self::of(trace, span, flags) }
    }

    /// Of what a `traceparent` says. `None`: an id is all zeros, or the trace is not sampled.
    #[must_use]
    pub fn of(trace: [u8; 16], span: [u8; 8], flags: u8) -> Option<Self> {
        let counts = flags & Self::SAMPLED != 0 && trace != [0; 16] && span != [0; 8];
        counts.then_some(Self { trace, span: SpanId(span) })
    }

    /// Of [`CONTEXT_BYTES`]. `None`: as with [`Self::of`].
    #[must_use]
    pub fn of_bytes(bytes: &[u8; CONTEXT_BYTES]) -> Option<Self> {
        let (trace, rest) = bytes.split_first_chunk().expect("25 are at least 16");
        let (span, rest) = rest.split_first_chunk().expect("9 are at least 8");
        Self::of(*trace, *span, rest[0])
    }

    /// What [`Self::of_bytes`] reads, sampled.
    #[must_use]
    pub fn bytes(&self) -> [u8; CONTEXT_BYTES] {
        let mut bytes = [Self::SAMPLED; CONTEXT_BYTES];
        bytes[..16].copy_from_slice(&self.trace);
        bytes[16..24].copy_from_slice(&self.span.0);
        bytes
    }

    /// The context among headers.
    pub fn among<N, V>(headers: impl IntoIterator<Item = (N, V)>) -> Option<Self>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let mut headers = headers.into_iter();
        let (_, value) = headers.find(|(name, _)| name.as_ref().eq_ignore_ascii_case(HEADER))?;
        Self::parse(value.as_ref())
    }

    /// The context of a span in this trace that is about `parts`: the same for the same parts, another for any others.
    #[must_use]
    pub fn within(&self, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"holdfast span 1");
        for part in [&self.trace[..], &self.span.0[..]].iter().chain(parts) {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let digest = hash.finalize();
        let mut id: [u8; 8] = digest[..8].try_into().expect("eight of them");
        // An id of zeros is invalid; as rare as it is, it has a last bit.
        id[7] |= u8::from(id == [0; 8]);
        Self { trace: self.trace, span: SpanId(id) }
    }

    /// As a `traceparent`, sampled.
    #[must_use]
    pub fn header(&self) -> String {
        header_of(&self.bytes())
    }
}

/// As a `traceparent`, sampled or not.
#[must_use]
pub fn header_of(context: &[u8; CONTEXT_BYTES]) -> String {
    let mut text = String::with_capacity(55);
    text.push_str("00");
    for part in [&context[..16], &context[16..24], &context[24..]] {
        text.push('-');
        append_hex(part, &mut text);
    }
    text
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        append_hex(&self.0, &mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.header())
    }
}

fn append_hex(bytes: &[u8], to: &mut String) {
    let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
    to.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]));
}

/// Lower-case digits alone, as the recommendation has it.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_sampled_context_is_read_and_written_back() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!(context.header(), GOOD);
        assert_eq!(Context::of_bytes(&context.bytes()), Some(context));
        let headers = [("Traceparent".to_owned(), GOOD.to_owned())];
        assert_eq!(Context::among(headers.iter().map(|(k, v)| (k, v))), Some(context));
    }

    #[test]
    fn what_is_no_context_or_not_sampled_is_ignored() {
        let zeros = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for bad in [
            "",
            "00-1",
            zeros,
            &GOOD.replace("-01", "-00"),
            &GOOD.to_uppercase(),
            &GOOD.replace("00-4", "ff-4"),
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &GOOD.replace("-00f067aa0ba902b7", "-0000000000000000"),
            &format!("{}\u{e9}", &GOOD[..53]),
            &GOOD.replace('-', "_"),
        ] {
            assert_eq!(Context::parse(bad), None, "{bad}");
        }
        let later = format!("{}-more", GOOD.replace("00-4", "01-4"));
        assert!(Context::parse(&later).is_some());
    }

    #[test]
    fn a_span_about_the_same_is_the_same_span() {
        let context = Context::parse(GOOD).unwrap();
        let one = context.within(&[b"g-1", b"try"]);
        assert_eq!(one, context.within(&[b"g-1", b"try"]));
        assert_ne!(one, context.within(&[b"g-1t", b"ry"]));
        assert_ne!(one.span, context.span);
        assert_eq!(one.trace, context.trace);
    }

    #[test]
    fn headers_of_traces_are_known_by_name() {
        assert!(["traceparent", "TraceState", "baggage"].into_iter().all(is_context_header));
        assert!(!is_context_header("x-tenant"));
    }
}

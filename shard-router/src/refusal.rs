//! What a client is told when the router refuses: a code with a page, an SQLSTATE that drivers know, the cause and the remedy.

use crate::frame;

/// An error of the router itself, on its way to a client. Errors of PostgreSQL are passed on as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The page that explains it: `docs/reference/errors/<code>.md`.
    pub code: &'static str,
    /// What drivers decide by.
    pub sqlstate: &'static str,
    /// What happened, with its numbers.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    pub(crate) fn new(
        code: &'static str,
        sqlstate: &'static str,
        cause: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { code, sqlstate, cause: cause.into(), remedy: remedy.into() }
    }

    /// Appends it as an `ErrorResponse` that the session survives.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        self.put_as(out, b'E', "ERROR");
    }

    /// Appends it as an `ErrorResponse` behind which the connection is closed.
    pub(crate) fn put_fatal(&self, out: &mut Vec<u8>) {
        self.put_as(out, b'E', "FATAL");
    }

    fn put_as(&self, out: &mut Vec<u8>, tag: u8, severity: &str) {
        frame::put(out, tag, |out| {
            let message = format!("{} {}", self.code, self.cause);
            let fields = [
                (b'S', severity),
                (b'V', severity),
                (b'C', self.sqlstate),
                (b'M', &message),
                (b'H', &self.remedy),
            ];
            for (field, text) in fields {
                out.push(field);
                frame::put_text(out, text.as_bytes());
            }
            out.push(0);
        });
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}. {}", self.code, self.cause, self.remedy)
    }
}

impl std::error::Error for Refusal {}

/// Appends a warning as PostgreSQL words it, where the router answers in its place.
pub(crate) fn put_warning(out: &mut Vec<u8>, sqlstate: &str, message: &str) {
    frame::put(out, b'N', |out| {
        for (field, text) in
            [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', sqlstate), (b'M', message)]
        {
            out.push(field);
            frame::put_text(out, text.as_bytes());
        }
        out.push(0);
    });
}

/// One field of an `ErrorResponse`'s body.
pub(crate) fn field(body: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut body = frame::Body(body);
    loop {
        match body.byte()? {
            0 => return None,
            field => {
                let text = body.text()?;
                if field == wanted {
                    return Some(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_code_sqlstate_cause_and_remedy() {
        let mut out = Vec::new();
        Refusal::new("HF3204", "53300", "no server", "wait").put(&mut out);
        let body = &out[frame::HEADER..];
        assert_eq!(field(body, b'C'), Some(&b"53300"[..]));
        assert_eq!(field(body, b'M'), Some(&b"HF3204 no server"[..]));
        assert_eq!(field(body, b'H'), Some(&b"wait"[..]));
        assert_eq!(field(body, b'D'), None);
        assert_eq!(field(b"Cno end", b'C'), None);
    }
}

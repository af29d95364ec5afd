//! How the command ends: one exit code for each thing that a script must tell apart.

use std::{io::Write, process::ExitCode};

use holdfast_client::{ClientError, ErrorKind};

use crate::config::Report;

/// Failed: try again, or read the message.
pub(crate) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(crate) const USAGE: u8 = 2;
/// Refused: the same again would be refused again; or rolled back.
pub(crate) const REFUSED: u8 = 3;
/// Unknown: it may have happened. Ask again with the same gid.
pub(crate) const UNKNOWN: u8 = 4;

/// Tells people what went wrong, on standard error, and picks the code.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    tell(&format!("holdfast: {}", words_of(error)));
    of(error)
}

/// The error and what caused it, outermost first, each once: an error that names its cause in its own words has said it.
fn words_of(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |mut said, next| {
        let next = next.to_string();
        if said.is_empty() {
            return next;
        }
        if !says(&said, &next) {
            said.push_str(": ");
            said.push_str(&next);
        }
        said
    })
}

/// Whether `cause` stands in `said` with whole words: "node 1" is not said by "node 12".
fn says(said: &str, cause: &str) -> bool {
    said.match_indices(cause).any(|(at, _)| {
        let before = said[..at].chars().next_back();
        let behind = said[at + cause.len()..].chars().next();
        let goes_on = |inner: Option<char>, outer: Option<char>| {
            inner
                .zip(outer)
                .is_some_and(|(inner, outer)| inner.is_alphanumeric() && outer.is_alphanumeric())
        };
        !goes_on(cause.chars().next(), before) && !goes_on(cause.chars().next_back(), behind)
    })
}

/// The code of an error that was told already.
pub(crate) fn of(error: &anyhow::Error) -> ExitCode {
    ExitCode::from(code_of(error))
}

/// A line on standard error. Without one there is nobody to tell; the exit code still says it.
pub(crate) fn tell(words: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{words}");
}

fn code_of(error: &anyhow::Error) -> u8 {
    if let Some(report) = error.downcast_ref::<Report>() {
        return if report.is_of_this_machine() { FAILED } else { USAGE };
    }
    if error.downcast_ref::<Usage>().is_some() {
        return USAGE;
    }
    match error.downcast_ref::<ClientError>().map(ClientError::kind) {
        Some(ErrorKind::Refused) => REFUSED,
        Some(ErrorKind::Unknown) => UNKNOWN,
        Some(ErrorKind::Retry) | None => FAILED,
    }
}

/// What was asked for cannot be understood; the text says what to write instead.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let cause = std::io::Error::other("no space");
        assert_eq!(words_of(&anyhow::Error::from(cause).context("write f")), "write f: no space");
        let cause = std::io::Error::other("no space");
        let error = anyhow::Error::from(cause).context("f: no space. Make room");
        assert_eq!(words_of(&error), "f: no space. Make room");
    }

    #[test]
    fn a_cause_that_is_a_part_of_other_words_is_no_cause_that_was_said() {
        let told = |context: &'static str, cause: &'static str| {
            words_of(&anyhow::Error::from(std::io::Error::other(cause)).context(context))
        };
        assert_eq!(told("asking node 12", "node 1"), "asking node 12: node 1");
        assert_eq!(told("reopened", "open"), "reopened: open");
        assert_eq!(told("asking node 12: node 1", "node 1"), "asking node 12: node 1");
        assert_eq!(told("no way (node 1)", "node 1"), "no way (node 1)");
        assert_eq!(told("no way", ""), "no way");
    }

    #[test]
    fn each_kind_of_error_has_its_code() {
        let refused = ClientError::Refused { code: "HF2001".into(), message: String::new() };
        let unknown = ClientError::Unknown { gid: "g1".into(), last: String::new() };
        let unreachable = ClientError::Unreachable { patience_ms: 1, last: String::new() };
        assert_eq!(code_of(&refused.into()), REFUSED);
        assert_eq!(code_of(&unknown.into()), UNKNOWN);
        assert_eq!(code_of(&unreachable.into()), FAILED);
        assert_eq!(code_of(&Usage(String::new()).into()), USAGE);
        assert_eq!(code_of(&anyhow::anyhow!("anything else")), FAILED);
    }
}

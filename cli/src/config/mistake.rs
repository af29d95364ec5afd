//! What is wrong with a configuration: a code, a place, a cause with its numbers, and a remedy; all of them in one report.

use std::fmt;

use super::origin::Origin;

/// Mistakes shown in one report; a file with more has other problems than its thirty-third mistake.
pub(crate) const MISTAKES_MAX: usize = 32;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// With a page in docs/reference/errors.
    pub(crate) code: &'static str,
    /// Where it was said.
    pub(crate) origin: Origin,
    /// Cause with its numbers, then the remedy.
    pub(crate) text: String,
}

impl Mistake {
    /// A mistake said at `origin`.
    pub(crate) fn new(code: &'static str, origin: Origin, text: impl Into<String>) -> Self {
        Self { code, origin, text: text.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code, self.origin, self.text)
    }
}

/// Every mistake of one configuration, in the order of the file, then the environment, then the flags. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    subject: String,
    mistakes: Vec<Mistake>,
}

impl Report {
    /// The report on `subject` (a file, or what stands in for it).
    pub(crate) fn new(subject: impl Into<String>, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by(|a, b| a.origin.cmp(&b.origin));
        Self { subject: subject.into(), mistakes }
    }

    /// Every mistake is about this machine as it is now: the configuration itself is right.
    pub(crate) fn is_of_this_machine(&self) -> bool {
        self.mistakes.iter().all(|mistake| mistake.origin == Origin::Machine)
    }

    /// For scripts: one object a mistake.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mistakes = self.mistakes.iter().map(|m| {
            serde_json::json!({ "code": m.code, "where": m.origin.to_string(), "text": m.text })
        });
        serde_json::json!({ "subject": self.subject, "mistakes": mistakes.collect::<Vec<_>>() })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        writeln!(f, "{}: {count} {noun}.", self.subject)?;
        for mistake in self.mistakes.iter().take(MISTAKES_MAX) {
            writeln!(f, "  {mistake}")?;
        }
        if count > MISTAKES_MAX {
            writeln!(f, "  ... and {} more.", count - MISTAKES_MAX)?;
        }
        let example = self.mistakes.first().map_or("HF1001", |m| m.code);
        write!(f, "More on a code: holdfast explain {example}")
    }
}

impl std::error::Error for Report {}

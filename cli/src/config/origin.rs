//! Where a value came from, so that `config show --origin` and every mistake can say so.

use std::fmt;

/// A place in a text, both counted from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Who said a value. In rising order of precedence, but for the default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// The configuration file as a whole: it cannot be read, or something is missing in it.
    WholeFile(String),
    /// A place in the configuration file.
    File { file: String, place: Place },
    /// A variable of the environment, by name; its value is never part of an origin.
    Environment(String),
    /// A flag, without its value.
    Flag(String),
    /// Nobody: this machine, or a key that nobody set.
    Machine,
    /// The built-in value.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WholeFile(file) => f.write_str(file),
            Self::File { file, place } => write!(f, "{file}:{}:{}", place.line, place.column),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Machine => f.write_str("this machine"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One value as it counts, for `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// `section.key`.
    pub(crate) key: String,
    /// As TOML would write it; secrets are masked.
    pub(crate) value: String,
    /// What stands behind the mask.
    pub(crate) secret: Option<Secret>,
    /// Who said it.
    pub(crate) origin: Origin,
}

/// A value that can be compared and is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    /// `real`, if it is not what is shown of it.
    pub(crate) fn behind(shown: &str, real: &str) -> Option<Self> {
        (shown != real).then(|| Self(real.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

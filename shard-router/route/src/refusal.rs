//! A statement that is not routed: why, and what to do about it.

use std::fmt;

/// The router's answer instead of rows that might be wrong. Deterministic: the same statement under the same rules has the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What kind of refusal it is.
    pub class: RefusalClass,
    /// What was found, with its subject and numbers. Never a literal or a parameter's value beyond a key of 40 characters.
    pub cause: String,
    /// What to write, or which rule to change.
    pub remedy: String,
}

/// The closed list of reasons for which a statement is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalClass {
    /// The text is no SQL that the router can read.
    NotUnderstood,
    /// The text, its depth or its lists are beyond a limit.
    TooLarge,
    /// A table that the rules do not place.
    UnknownTable,
    /// A statement on a sharded table says nothing of the group's key.
    NoKey,
    /// There is a key, but its value is not known, or has no slot.
    UnknownValue,
    /// More than one source is needed, and the rules do not permit that.
    ScatterNotAllowed,
    /// More than one source is needed, and the parts cannot be put together as one PostgreSQL would answer.
    NotMergeable,
    /// The key of a row would change, and the row's shard with it.
    KeyChange,
    /// Tables that lie on different sources in one statement.
    NotColocated,
    /// Something that one PostgreSQL keeps for all, such as a sequence, would be kept by each source for itself.
    Unshared,
    /// A kind of statement that the router never carries over several sources.
    Unsupported,
    /// Rows of one scatter beyond the memory that it may take.
    MemoryCap,
    /// The sources do not agree about the columns of one result.
    Disagreement,
    /// A row of a COPY is not written as PostgreSQL would take it.
    BadRow,
}

impl RefusalClass {
    /// Every class there is.
    pub const ALL: [Self; 14] = [
        Self::NotUnderstood,
        Self::TooLarge,
        Self::UnknownTable,
        Self::NoKey,
        Self::UnknownValue,
        Self::ScatterNotAllowed,
        Self::NotMergeable,
        Self::KeyChange,
        Self::NotColocated,
        Self::Unshared,
        Self::Unsupported,
        Self::MemoryCap,
        Self::Disagreement,
        Self::BadRow,
    ];

    /// The page that explains it: `docs/reference/errors/<code>.md`.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::NotUnderstood => "HF3101",
            Self::TooLarge => "HF3102",
            Self::UnknownTable => "HF3103",
            Self::NoKey => "HF3104",
            Self::UnknownValue => "HF3105",
            Self::ScatterNotAllowed => "HF3106",
            Self::NotMergeable => "HF3107",
            Self::KeyChange => "HF3108",
            Self::NotColocated => "HF3109",
            Self::Unshared => "HF3110",
            Self::Unsupported => "HF3111",
            Self::MemoryCap => "HF3112",
            Self::Disagreement => "HF3113",
            Self::BadRow => "HF3114",
        }
    }

    /// The five characters by which a driver knows it.
    #[must_use]
    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::NotUnderstood => "42601",
            Self::TooLarge => "54000",
            Self::UnknownTable => "42P01",
            Self::MemoryCap => "53200",
            Self::UnknownValue => "22023",
            Self::BadRow => "22P04",
            Self::NoKey
            | Self::ScatterNotAllowed
            | Self::NotMergeable
            | Self::KeyChange
            | Self::NotColocated
            | Self::Unshared
            | Self::Unsupported
            | Self::Disagreement => "0A000",
        }
    }

    /// Its name in metrics and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not_understood",
            Self::TooLarge => "too_large",
            Self::UnknownTable => "unknown_table",
            Self::NoKey => "no_key",
            Self::UnknownValue => "unknown_value",
            Self::ScatterNotAllowed => "scatter_not_allowed",
            Self::NotMergeable => "not_mergeable",
            Self::KeyChange => "key_change",
            Self::NotColocated => "not_colocated",
            Self::Unshared => "unshared",
            Self::Unsupported => "unsupported",
            Self::MemoryCap => "memory_cap",
            Self::Disagreement => "disagreement",
            Self::BadRow => "bad_row",
        }
    }
}

impl Refused {
    /// A refusal of `class`.
    #[must_use]
    pub fn new(class: RefusalClass, cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { class, cause: cause.into(), remedy: remedy.into() }
    }

    /// The page that explains it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.class.code()
    }

    /// The five characters by which a driver knows it.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        self.class.sqlstate()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}. {}", self.code(), self.cause, self.remedy)
    }
}

impl std::error::Error for Refused {}

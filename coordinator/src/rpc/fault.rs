//! Why a request has no answer, and how each door says so.

use std::{fmt::Write as _, num::NonZeroU32};

use holdfast_proto::v1::{Error as WireError, ErrorKind};
use holdfast_txn::{Gid, Rejection};
use tonic::{
    Code, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};

use crate::ProposeError;

/// A request without an answer: a code, words, and what the caller must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    /// A page in docs/reference/errors.
    pub(crate) code: String,
    /// Cause with numbers, and remedy.
    pub(crate) message: String,
    /// gRPC address of the leader, where it is known and is another node.
    pub(crate) leader: Option<String>,
    /// The transaction it is about, where one was named or made.
    pub(crate) gid: Option<String>,
    /// When another attempt is worth it, where that is known, ms.
    pub(crate) retry_after_ms: Option<NonZeroU32>,
}

/// What a fault is, from which follow its kind and its status at each door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Refused: the request itself is wrong.
    BadInput,
    /// Refused: no such transaction.
    NotFound,
    /// Refused: the id has other content.
    Taken,
    /// Refused: too late, or too early, for what is asked.
    WrongStatus,
    /// Refused: whoever asks has shown nothing that counts.
    Unauthenticated,
    /// Refused: whoever asks may not.
    Denied,
    /// Retry: no leader, or this node is stopping.
    Unavailable,
    /// Retry: a queue or the house is full.
    Full,
    /// Retry: whoever asks has asked as much as it may.
    Throttled,
    /// Unknown: it may have happened.
    Unknown,
}

/// Every class, with its HTTP status and its gRPC code.
const DOORS: [(Class, u16, Code); 10] = [
    (Class::BadInput, 400, Code::InvalidArgument),
    (Class::NotFound, 404, Code::NotFound),
    (Class::Taken, 409, Code::AlreadyExists),
    (Class::WrongStatus, 409, Code::FailedPrecondition),
    (Class::Unauthenticated, 401, Code::Unauthenticated),
    (Class::Denied, 403, Code::PermissionDenied),
    (Class::Unavailable, 503, Code::Unavailable),
    (Class::Full, 503, Code::ResourceExhausted),
    (Class::Throttled, 429, Code::ResourceExhausted),
    (Class::Unknown, 504, Code::Unknown),
];

impl Class {
    /// The HTTP status.
    pub(crate) fn http(self) -> u16 {
        self.doors().1
    }

    /// The gRPC code.
    pub(crate) fn grpc(self) -> Code {
        self.doors().2
    }

    fn doors(self) -> (Self, u16, Code) {
        let here = |row: &&(Self, u16, Code)| row.0 == self;
        *DOORS.iter().find(here).expect("every class is in the table")
    }

    /// What the caller must do.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::BadInput
            | Self::NotFound
            | Self::Taken
            | Self::WrongStatus
            | Self::Unauthenticated
            | Self::Denied => ErrorKind::Refused,
            Self::Unavailable | Self::Full | Self::Throttled => ErrorKind::Retry,
            Self::Unknown => ErrorKind::Unknown,
        }
    }

    /// The kind as a word in metadata and in JSON.
    pub(crate) fn kind_str(self) -> &'static str {
        kind_word(self.kind())
    }
}

/// A kind as a word in metadata and in JSON.
pub(crate) fn kind_word(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Refused => "refused",
        ErrorKind::Retry => "retry",
        ErrorKind::Unknown | ErrorKind::Unspecified => "unknown",
    }
}

impl Fault {
    pub(crate) fn new(class: Class, code: &str, message: String) -> Self {
        Self {
            class,
            code: code.to_owned(),
            message,
            leader: None,
            gid: None,
            retry_after_ms: None,
        }
    }

    pub(crate) fn about(mut self, gid: &Gid) -> Self {
        self.gid = Some(gid.to_string());
        self
    }

    /// A command that the machine refused.
    pub(crate) fn rejected(rejection: &Rejection) -> Self {
        let class = match rejection {
            Rejection::UnknownGid { .. } => Class::NotFound,
            Rejection::GidTaken { .. } | Rejection::BranchTaken { .. } => Class::Taken,
            Rejection::WrongStatus { .. }
            | Rejection::Fenced { .. }
            | Rejection::RulesChanged { .. }
            | Rejection::Proposal { .. } => Class::WrongStatus,
            Rejection::SecondPerson { .. } => Class::Denied,
            Rejection::OutOfRange { .. } | Rejection::Malformed { .. } => Class::BadInput,
            Rejection::TooManyOpen { .. } => Class::Full,
        };
        Self::new(class, rejection.code(), rejection.to_string())
    }

    /// A command, or a read, that came to nothing here.
    pub(crate) fn not_proposed(error: &ProposeError) -> Self {
        let class = match error {
            ProposeError::NotLeader { .. }
            | ProposeError::TooNew { .. }
            | ProposeError::Stopped => Class::Unavailable,
            ProposeError::Overloaded { .. } => Class::Full,
            ProposeError::Unknown { .. } => Class::Unknown,
        };
        let mut fault = Self::new(class, error.code(), error.to_string());
        if let ProposeError::NotLeader { leader: Some(leader) } = error {
            fault.leader = Some(leader.grpc.clone());
        }
        fault
    }

    /// What another node answered to a unary request that was handed to it.
    pub(crate) fn from_status(status: &Status) -> Self {
        let word = |name: &str| {
            status.metadata().get(name).and_then(|word| word.to_str().ok()).map(str::to_owned)
        };
        let Some(code) = word("holdfast-code") else { return Self::out_of_reach(status) };
        let kind = match word("holdfast-kind").as_deref() {
            Some("refused") => ErrorKind::Refused,
            Some("retry") => ErrorKind::Retry,
            _ => ErrorKind::Unknown,
        };
        Self::from_wire(WireError {
            kind: kind.into(),
            code,
            message: status.message().to_owned(),
            leader: word("holdfast-leader").unwrap_or_default(),
        })
    }

    /// HF2309: the leader could not be reached, so nothing was sent to it.
    pub(crate) fn out_of_reach(cause: &dyn std::fmt::Display) -> Self {
        let message = format!(
            "this node does not lead, and the leader cannot be reached from here ({cause}). Nothing happened; send it again, best to the leader"
        );
        Self::new(Class::Unavailable, "HF2309", message)
    }

    /// HF2310: the request was handed to the leader, and the stream broke before it answered.
    pub(crate) fn lost_on_the_way(cause: &dyn std::fmt::Display) -> Self {
        let message = format!(
            "the request was handed to the leader, and no answer came ({cause}). It may have been carried out: ask with the same gid, or send the same again"
        );
        Self::new(Class::Unknown, "HF2310", message)
    }

    /// What the leader answered to a request that was handed to it.
    pub(crate) fn from_wire(error: WireError) -> Self {
        let class = match error.kind() {
            ErrorKind::Refused => match error.code.as_str() {
                "HF2001" | "HF2409" => Class::NotFound,
                "HF2002" | "HF2003" => Class::Taken,
                "HF2004" | "HF2008" | "HF2009" | "HF2404" | "HF2410" | "HF2413" | "HF2415" => {
                    Class::WrongStatus
                }
                "HF2601" => Class::Unauthenticated,
                "HF2602" | "HF2603" | "HF2604" => Class::Denied,
                _ => Class::BadInput,
            },
            ErrorKind::Retry
                if matches!(
                    error.code.as_str(),
                    "HF2007" | "HF2103" | "HF2406" | "HF2407" | "HF2414"
                ) =>
            {
                Class::Full
            }
            ErrorKind::Retry if error.code == "HF2607" => Class::Throttled,
            ErrorKind::Retry => Class::Unavailable,
            ErrorKind::Unknown | ErrorKind::Unspecified => Class::Unknown,
        };
        let leader = Some(error.leader).filter(|leader| !leader.is_empty());
        Self {
            class,
            code: error.code,
            message: error.message,
            leader,
            gid: None,
            retry_after_ms: None,
        }
    }

    pub(crate) fn to_wire(&self) -> WireError {
        WireError {
            kind: self.class.kind().into(),
            code: self.code.clone(),
            message: self.message.clone(),
            leader: self.leader.clone().unwrap_or_default(),
        }
    }

    /// The gRPC status: code and words, and in its metadata `holdfast-code`, `holdfast-kind`, `holdfast-gid`, `holdfast-leader`,
    /// `holdfast-retry-after-ms`.
    pub(crate) fn to_status(&self) -> Status {
        let mut metadata = MetadataMap::new();
        let retry_after_ms = self.retry_after_ms.map(|ms| ms.to_string());
        let pairs = [
            ("holdfast-code", Some(self.code.as_str())),
            ("holdfast-kind", Some(self.class.kind_str())),
            ("holdfast-gid", self.gid.as_deref()),
            ("holdfast-leader", self.leader.as_deref()),
            ("holdfast-retry-after-ms", retry_after_ms.as_deref()),
        ];
        for (name, value) in pairs {
            if let Some(value) = value.and_then(|value| AsciiMetadataValue::try_from(value).ok()) {
                metadata.insert(name, value);
            }
        }
        Status::with_metadata(self.class.grpc(), self.message.clone(), metadata)
    }
}

/// What is wrong with a request, collected so that all of it is told at once.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    text: String,
    count: usize,
}

/// Findings that are spelled out; of more, only the number is told.
const FINDINGS_MAX: usize = 16;

impl Findings {
    /// Adds `what` about `field`.
    pub(crate) fn add(&mut self, field: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.count += 1;
        if self.count <= FINDINGS_MAX {
            let comma = if self.count > 1 { "; " } else { "" };
            write!(self.text, "{comma}{field}: {what}").expect("a string takes all");
        }
    }

    /// The value of a check, or its error as a finding about `field`.
    pub(crate) fn take<T, E: std::fmt::Display>(
        &mut self,
        field: impl std::fmt::Display,
        checked: Result<T, E>,
    ) -> Option<T> {
        checked.map_err(|error| self.add(field, error)).ok()
    }

    /// HF2301 if anything was found.
    pub(crate) fn verdict(self) -> Result<(), Fault> {
        let Self { text, count } = self;
        if count == 0 {
            return Ok(());
        }
        let more = count.saturating_sub(FINDINGS_MAX);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        Err(Fault::new(Class::BadInput, "HF2301", format!("nothing was done: {text}{more}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_doors_and_its_kind() {
        for (class, http, grpc) in DOORS {
            assert_eq!((class.http(), class.grpc()), (http, grpc));
        }
        assert_eq!(Class::Unknown.kind_str(), "unknown");
        assert_eq!(Class::Full.kind_str(), "retry");
        assert_eq!(Class::Taken.kind_str(), "refused");
    }

    #[test]
    fn a_fault_survives_the_way_through_another_node() {
        for (class, code) in [
            (Class::NotFound, "HF2001"),
            (Class::Taken, "HF2002"),
            (Class::WrongStatus, "HF2004"),
            (Class::BadInput, "HF2301"),
            (Class::Unauthenticated, "HF2601"),
            (Class::Denied, "HF2603"),
            (Class::Full, "HF2103"),
            (Class::Throttled, "HF2607"),
            (Class::Unavailable, "HF2104"),
            (Class::Unknown, "HF2102"),
        ] {
            let fault = Fault::new(class, code, "why".into());
            assert_eq!(Fault::from_wire(fault.to_wire()), fault);
        }
    }

    #[test]
    fn findings_are_told_at_once_and_bounded() {
        let mut findings = Findings::default();
        for n in 0..20 {
            findings.add(format_args!("branches[{n}]"), "wrong");
        }
        let fault = findings.verdict().unwrap_err();
        assert_eq!(fault.code, "HF2301");
        assert!(fault.message.contains("branches[15]: wrong; and 4 more"), "{}", fault.message);
        assert!(Findings::default().verdict().is_ok());
    }
}

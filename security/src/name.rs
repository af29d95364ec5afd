//! The name in a certificate: `holdfast://CLUSTER/node/1`, `.../service/deposit`, `.../user/alice?role=sre`.
//!
//! One thing has one spelling: a name that is read writes itself back byte for byte, so that nobody is let in under a second
//! spelling of a name that was shut out under its first.

use std::{collections::BTreeSet, fmt};

use crate::Role;

/// The scheme, which marks a certificate's URI as ours.
pub(crate) const SCHEME: &str = "holdfast://";
/// Bytes of a whole name.
pub const NAME_BYTES_MAX: usize = 512;
/// Characters of a cluster, a service or a user.
pub const WORD_MAX: usize = 64;

/// Who a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The cluster it belongs to; a certificate of another one opens no door.
    pub cluster: String,
    /// Who, within the cluster.
    pub subject: Subject,
}

/// Who, within a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A member, by its number, 1 or more.
    Node(u64),
    /// A participant, by the name that branches call it by.
    Service(String),
    /// Somebody, or a program, with the roles that the certificate gives.
    User {
        /// The user.
        user: String,
        /// At least one; never [`Role::Node`] or [`Role::Participant`].
        roles: BTreeSet<Role>,
    },
}

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}. A name is holdfast://CLUSTER/node/1, .../service/deposit or .../user/alice?role=sre")]
pub struct BadName(String);

impl Name {
    /// Reads the one spelling of a name.
    /// # Errors
    /// [`BadName`], with the cause. Nothing is guessed, trimmed or unescaped.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        if text.len() > NAME_BYTES_MAX {
            let bytes = text.len();
            return Err(BadName(format!("it has {bytes} bytes, allowed are {NAME_BYTES_MAX}")));
        }
        let rest = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| BadName(format!("it does not begin with {SCHEME}")))?;
        let (cluster, rest) =
            rest.split_once('/').ok_or_else(|| BadName("it names a cluster only".to_owned()))?;
        word("cluster", cluster, false)?;
        let (kind, rest) =
            rest.split_once('/').ok_or_else(|| BadName("it names nobody".to_owned()))?;
        let subject = match kind {
            "node" => Subject::Node(node(rest)?),
            "service" => {
                word("service", rest, true)?;
                Subject::Service(rest.to_owned())
            }
            "user" => user(rest)?,
            _ => return Err(BadName("its kind is none of node, service, user".to_owned())),
        };
        let name = Self { cluster: cluster.to_owned(), subject };
        if name.to_string() != text {
            return Err(BadName(format!("it has another spelling, which is {name}")));
        }
        Ok(name)
    }
}

impl Subject {
    /// The name within the cluster, without roles: `node/1`, `service/deposit`, `user/alice`. Who acts, in audit records.
    #[must_use]
    pub fn short(&self) -> String {
        match self {
            Self::Node(node) => format!("node/{node}"),
            Self::Service(service) => format!("service/{service}"),
            Self::User { user, .. } => format!("user/{user}"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.cluster, self.subject.short())?;
        if let Subject::User { roles, .. } = &self.subject {
            for (n, role) in roles.iter().enumerate() {
                write!(f, "{}role={role}", if n == 0 { '?' } else { '&' })?;
            }
        }
        Ok(())
    }
}

fn word(what: &str, text: &str, at_sign: bool) -> Result<(), BadName> {
    let allowed = |c: char| {
        c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c) || (at_sign && c == '@')
    };
    if text.is_empty() || text.len() > WORD_MAX || !text.chars().all(allowed) {
        let at = if at_sign { ", '@'" } else { "" };
        return Err(BadName(format!(
            "its {what} is not 1 to {WORD_MAX} characters of a-z, 0-9, '.', '-'{at}"
        )));
    }
    Ok(())
}

fn node(text: &str) -> Result<u64, BadName> {
    match text.parse::<u64>() {
        Ok(node) if node >= 1 => Ok(node),
        _ => Err(BadName("its node is no number from 1".to_owned())),
    }
}

fn user(text: &str) -> Result<Subject, BadName> {
    let (user, query) =
        text.split_once('?').ok_or_else(|| BadName("its user has no role".to_owned()))?;
    word("user", user, false)?;
    let mut roles = BTreeSet::new();
    for part in query.split('&') {
        let role = part
            .strip_prefix("role=")
            .and_then(Role::parse)
            .filter(|role| !matches!(role, Role::Node | Role::Participant))
            .ok_or_else(|| {
                BadName("its query is not role=app, role=dba, role=sre or role=auditor".to_owned())
            })?;
        if !roles.insert(role) {
            return Err(BadName(format!("it says role={role} twice")));
        }
    }
    Ok(Subject::User { user: user.to_owned(), roles })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_read_and_written_back() {
        for text in [
            "holdfast://bank/node/1",
            "holdfast://bank.eu-1/node/18446744073709551615",
            "holdfast://bank/service/deposit@shard-1",
            "holdfast://bank/user/alice?role=sre",
            "holdfast://bank/user/alice?role=app&role=auditor",
        ] {
            assert_eq!(Name::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn a_second_spelling_is_no_name() {
        for text in [
            "",
            "holdfast://",
            "holdfast://bank",
            "holdfast://bank/",
            "holdfast://bank/node",
            "holdfast://bank/node/",
            "holdfast://bank/node/0",
            "holdfast://bank/node/01",
            "holdfast://bank/node/+1",
            "holdfast://bank/node/1/",
            "holdfast://bank/node/1?role=sre",
            "holdfast://bank/node/18446744073709551616",
            "HOLDFAST://bank/node/1",
            "holdfast://Bank/node/1",
            "holdfast://bank@x/node/1",
            "holdfast://bank//node/1",
            "https://bank/node/1",
            "holdfast://bank/service/",
            "holdfast://bank/service/a/b",
            "holdfast://bank/service/%64eposit",
            "holdfast://bank/service/deposit#x",
            "holdfast://bank/admin/alice",
            "holdfast://bank/user/alice",
            "holdfast://bank/user/alice?",
            "holdfast://bank/user/alice?role=root",
            "holdfast://bank/user/alice?role=node",
            "holdfast://bank/user/alice?role=participant",
            "holdfast://bank/user/alice?role=sre&role=sre",
            "holdfast://bank/user/alice?role=sre&role=app",
            "holdfast://bank/user/alice?role=sre&",
            " holdfast://bank/node/1",
            "holdfast://bank/node/1\n",
        ] {
            assert!(Name::parse(text).is_err(), "{text:?} was taken for a name");
        }
    }

    #[test]
    fn a_word_is_taken_at_its_limit_and_refused_one_past_it() {
        let service = |n: usize| format!("holdfast://bank/service/{}", "x".repeat(n));
        assert!(Name::parse(&service(WORD_MAX)).is_ok());
        assert!(Name::parse(&service(WORD_MAX + 1)).is_err());
        assert!(Name::parse(&service(NAME_BYTES_MAX)).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_taken_has_one_spelling(text in "(holdfast://)?[a-z0-9@./?&=-]{0,60}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _any = Name::parse(&String::from_utf8_lossy(&bytes));
        }
    }
}

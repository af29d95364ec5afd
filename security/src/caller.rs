//! Who makes a request, and what that identity covers: tenant, participants, service.

use std::{collections::BTreeSet, fmt};

use crate::{
    Role,
    right::{Right, Scope, scope},
};

/// The identity behind a request, resolved from a certificate or a token, and what it covers.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller {
    /// `user/alice`, `service/deposit`, `token/payroll`, `node/2`, or `dev`. Who acts, in audit records.
    pub name: String,
    /// What it is to the house.
    pub roles: BTreeSet<Role>,
    /// Whose transactions are its own. `None`: everybody's, in mode dev-plaintext alone.
    pub tenant: Option<String>,
    /// Which participants it may put into a transaction.
    pub participants: Participants,
    /// Which service it may serve as an agent.
    pub serves: Option<String>,
    /// When the identity ends, ms since epoch; `None`: with its connection.
    pub expires_at_ms: Option<u64>,
}

/// A list of participants, each name with everything behind its `@`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Participants {
    /// None.
    #[default]
    Nobody,
    /// These.
    Listed(BTreeSet<String>),
    /// Every one.
    Everybody,
}

/// The word that stands for every participant.
pub const EVERYBODY: &str = "*";

impl Participants {
    /// From the words of a file or a message.
    #[must_use]
    pub fn of(words: &[String]) -> Self {
        if words.iter().any(|word| word == EVERYBODY) {
            Self::Everybody
        } else if words.is_empty() {
            Self::Nobody
        } else {
            Self::Listed(words.iter().cloned().collect())
        }
    }

    /// As the words of a message.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        match self {
            Self::Nobody => Vec::new(),
            Self::Listed(words) => words.iter().cloned().collect(),
            Self::Everybody => vec![EVERYBODY.to_owned()],
        }
    }

    /// Whether `participant` is on the list.
    #[must_use]
    pub fn cover(&self, participant: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::Listed(words) => words.iter().any(|word| covers(word, participant)),
            Self::Everybody => true,
        }
    }
}

/// Whether the granted name covers the asked one: the same, or the granted one without `@` and the asked one a shard of it.
/// `deposit` covers `deposit@shard-1`, not `deposits`; `deposit@shard-1` covers itself alone.
#[must_use]
pub fn covers(granted: &str, asked: &str) -> bool {
    let service = asked.split_once('@').map_or(asked, |(service, _)| service);
    granted == asked || (!granted.contains('@') && granted == service)
}

impl Caller {
    /// Everybody, in mode dev-plaintext: all rights, no tenant.
    #[must_use]
    pub fn dev() -> Self {
        Self {
            name: "dev".to_owned(),
            roles: Role::ALL.into_iter().collect(),
            tenant: None,
            participants: Participants::Everybody,
            serves: None,
            expires_at_ms: None,
        }
    }

    /// Whoever has shown nothing.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: "anonymous".to_owned(),
            roles: BTreeSet::new(),
            tenant: Some("anonymous".to_owned()),
            participants: Participants::Nobody,
            serves: None,
            expires_at_ms: None,
        }
    }

    /// Whether it is everybody in mode dev-plaintext.
    #[must_use]
    pub fn is_dev(&self) -> bool {
        self.tenant.is_none()
    }

    /// How far `right` reaches for it: the widest of its roles.
    #[must_use]
    pub fn scope(&self, right: Right) -> Scope {
        if self.is_dev() {
            return Scope::All;
        }
        let widest = self.roles.iter().map(|role| scope(*role, right)).max();
        widest.unwrap_or(Scope::None).max(crate::right::for_anybody(right))
    }

    /// Whether a transaction of `tenant` (`None`: begun in mode dev-plaintext) is its own.
    #[must_use]
    pub fn owns(&self, tenant: Option<&str>) -> bool {
        self.is_dev() || (tenant.is_some() && tenant == self.tenant.as_deref())
    }

    /// Whether it may serve `service` as an agent.
    #[must_use]
    pub fn may_serve(&self, service: &str) -> bool {
        self.is_dev() || self.serves.as_deref().is_some_and(|own| covers(own, service))
    }

    /// Whether it may put `participant` into a transaction.
    #[must_use]
    pub fn may_call(&self, participant: &str) -> bool {
        self.is_dev() || self.participants.cover(participant)
    }

    /// Its roles, for messages.
    #[must_use]
    pub fn roles_words(&self) -> String {
        if self.roles.is_empty() {
            return "no role".to_owned();
        }
        self.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_covers_its_shards_and_nothing_that_only_looks_alike() {
        assert!(covers("deposit", "deposit"));
        assert!(covers("deposit", "deposit@shard-1"));
        assert!(covers("deposit@shard-1", "deposit@shard-1"));
        for (granted, asked) in [
            ("deposit", "deposits"),
            ("deposit", "depos"),
            ("deposit@shard-1", "deposit"),
            ("deposit@shard-1", "deposit@shard-10"),
            ("deposit@shard-1", "deposit@shard-1@x"),
            ("", "deposit"),
            ("deposit", "@deposit"),
            ("deposit@", "deposit@shard-1"),
        ] {
            assert!(!covers(granted, asked), "{granted:?} covers {asked:?}");
        }
    }

    #[test]
    fn nobody_owns_what_was_begun_without_a_tenant_but_dev() {
        let mut caller = Caller::anonymous();
        caller.tenant = Some("retail".to_owned());
        assert!(caller.owns(Some("retail")));
        assert!(!caller.owns(Some("treasury")));
        assert!(!caller.owns(None));
        assert!(Caller::dev().owns(None) && Caller::dev().owns(Some("retail")));
    }

    #[test]
    fn words_of_participants_come_back() {
        for words in [vec![], vec!["*".to_owned()], vec!["a".to_owned(), "b".to_owned()]] {
            assert_eq!(Participants::of(&words).words(), words);
        }
        assert!(!Participants::of(&[]).cover("a"));
        assert!(Participants::of(&["a".to_owned()]).cover("a@1"));
        assert!(!Participants::of(&["a".to_owned()]).cover("b"));
    }
}

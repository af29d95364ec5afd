//! The roles that an identity can have: a closed set.

use std::fmt;

/// What somebody is to the house. What each may do stands in [`crate::right`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Begins transactions, and sees and ends its own.
    App,
    /// Serves the branches of the service that its certificate names.
    Participant,
    /// Keeps the shard rules.
    Dba,
    /// Keeps the cluster running: looks at everything, decides what needs people.
    Sre,
    /// Reads everything, changes nothing.
    Auditor,
    /// A member of the cluster. Given by its certificate alone, never by a token or an entry.
    Node,
}

impl Role {
    /// Every role, in the order in which names and tables show them.
    pub const ALL: [Self; 6] =
        [Self::App, Self::Participant, Self::Dba, Self::Sre, Self::Auditor, Self::Node];

    /// The word for it, in names and files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::Participant => "participant",
            Self::Dba => "dba",
            Self::Sre => "sre",
            Self::Auditor => "auditor",
            Self::Node => "node",
        }
    }

    /// The role of this word, if there is one.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == word)
    }

    /// Whether people and services can be given it. A node is made by its certificate.
    #[must_use]
    pub const fn can_be_given(self) -> bool {
        !matches!(self, Self::Node)
    }

    /// The words that can be given, for messages.
    #[must_use]
    pub fn given_words() -> String {
        let given = Self::ALL.into_iter().filter(|role| role.can_be_given());
        given.map(Self::as_str).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

//! Names in the rules: each its own type, each checked where it enters.

use std::{fmt, sync::Arc};

/// A text that is no name of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a {kind}'s name has 1 to {length_max} characters of {allowed}; this one is {shown:?}")]
pub struct BadName {
    kind: &'static str,
    length_max: usize,
    allowed: &'static str,
    shown: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $length_max:literal, $allowed:literal, $test:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes `text`.
            /// # Errors
            /// [`BadName`] says what is allowed and shows the beginning of what was given.
            pub fn parse(text: &str) -> Result<Self, BadName> {
                let allowed: fn(char) -> bool = $test;
                if text.is_empty() || text.len() > $length_max || !text.chars().all(allowed) {
                    let shown = text.chars().take($length_max).collect();
                    return Err(BadName { kind: $kind, length_max: $length_max, allowed: $allowed, shown });
                }
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_.-".contains(c)
}

name!(
    /// A data group: customer, account, institution. 1 to 63 characters of `[A-Za-z0-9_.-]`.
    GroupName, "group", 63, "A-Z, a-z, 0-9, '_', '.' and '-'", word
);
name!(
    /// A table that joined a group. 1 to 63 characters of `[A-Za-z0-9_.-]`.
    TableName, "table", 63, "A-Z, a-z, 0-9, '_', '.' and '-'", word
);
name!(
    /// A shard. 1 to 40 characters of `[a-z0-9.-]`, since it becomes part of participants' names such as `deposit@shard-1`.
    ShardId, "shard", 40, "a-z, 0-9, '.' and '-'",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c)
);
name!(
    /// A data source, which is one PostgreSQL. 1 to 63 characters of `[A-Za-z0-9_.-]`.
    SourceId, "source", 63, "A-Z, a-z, 0-9, '_', '.' and '-'", word
);
name!(
    /// A step of a move of slots. 1 to 40 characters of `[a-z0-9-]`, since it becomes part of prepared transactions' names.
    MoveId, "move", 40, "a-z, 0-9 and '-'",
    |c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'
);

//! What the words of SQL mean to a template.

/// What one word means; several things at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(u8);

/// Bytes of the longest word that means something.
const BYTES_MAX: usize = 11;

impl Word {
    /// No keyword that counts.
    pub(super) const NOTHING: Self = Self(0);
    /// Begins a statement whose literals are lifted.
    pub(super) const LIFTS: Self = Self(1);
    /// A string or number that follows is a value.
    pub(super) const BEFORE_VALUE: Self = Self(1 << 1);
    /// Ends a list of positions.
    pub(super) const ENDS_POSITIONS: Self = Self(1 << 2);
    /// A type that is written with a length.
    pub(super) const TYPE: Self = Self(1 << 3);
    /// Makes a chain of operators longer.
    pub(super) const CHAINS: Self = Self(1 << 4);
    /// `BY`.
    pub(super) const BY: Self = Self(1 << 5);
    /// `ON`.
    pub(super) const ON: Self = Self(1 << 6);
    /// `DISTINCT`.
    pub(super) const DISTINCT: Self = Self(1 << 7);

    /// Of an unquoted word, in any case.
    pub(super) fn of(piece: &str) -> Self {
        let mut lower = [0; BYTES_MAX];
        let Some(lower) = lower.get_mut(..piece.len()) else { return Self::NOTHING };
        lower.copy_from_slice(piece.as_bytes());
        lower.make_ascii_lowercase();
        // One look for all that a word may mean: a query that nobody has prepared comes by here word by word.
        match &*lower {
            b"select" => Self::LIFTS.and(Self::BEFORE_VALUE).and(Self::ENDS_POSITIONS),
            b"insert" | b"update" | b"delete" | b"with" => Self::LIFTS,
            b"values" => Self::LIFTS.and(Self::BEFORE_VALUE),
            b"and" | b"or" | b"not" | b"between" | b"like" | b"ilike" | b"case" => {
                Self::BEFORE_VALUE.and(Self::CHAINS)
            }
            b"then" | b"else" | b"when" | b"in" | b"escape" | b"all" | b"any" | b"some" | b"if" => {
                Self::BEFORE_VALUE
            }
            b"where" | b"returning" | b"having" | b"limit" | b"offset" | b"from" => {
                Self::BEFORE_VALUE.and(Self::ENDS_POSITIONS)
            }
            b"fetch" | b"window" | b"for" | b"rows" | b"range" => Self::ENDS_POSITIONS,
            b"union" | b"intersect" | b"except" => Self::ENDS_POSITIONS.and(Self::CHAINS),
            b"is" | b"collate" => Self::CHAINS,
            b"numeric" | b"decimal" | b"dec" | b"varchar" | b"char" | b"character" | b"varying"
            | b"bpchar" | b"bit" | b"timestamp" | b"timestamptz" | b"time" | b"timetz"
            | b"interval" | b"float" | b"nchar" => Self::TYPE,
            b"by" => Self::BY,
            b"on" => Self::ON,
            b"distinct" => Self::DISTINCT,
            _ => Self::NOTHING,
        }
    }

    const fn and(self, also: Self) -> Self {
        Self(self.0 | also.0)
    }

    /// Whether it means that.
    pub(super) fn is(self, meaning: Self) -> bool {
        self.0 & meaning.0 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_means_what_it_means_in_any_case_and_all_of_it() {
        let select = Word::of("SeLect");
        assert!(select.is(Word::LIFTS) && select.is(Word::BEFORE_VALUE));
        assert!(select.is(Word::ENDS_POSITIONS) && !select.is(Word::CHAINS));
        assert!(Word::of("timestamptz").is(Word::TYPE), "as long as any");
        for other in ["", "selec", "selects", "timestamptzz", "s\u{eb}lect", "\u{130}n"] {
            assert_eq!(Word::of(other), Word::NOTHING, "{other}");
        }
    }
}

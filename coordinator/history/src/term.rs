//! Terms: what a record can be found by, as hashes that are the same on every node and in every version.

use crate::{amount::Amount, limit, recorded::Recorded};

/// How terms are told. What lies on disk is found by these numbers, so none of them ever changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// 64 bits, a byte at a time: FNV-1a, finished by a mixer. In the first two formats of a sheet.
    Bytes,
    /// 32 bits, eight bytes at a time. Of the terms of a sheet two are alike in one sheet of a hundred, which costs a look at a record.
    Words,
}

impl Scheme {
    fn hash(self, kind: u8, parts: &[&[u8]]) -> u64 {
        match self {
            Self::Bytes => by_bytes(kind, parts),
            Self::Words => by_words(kind, parts).into(),
        }
    }

    pub(crate) fn gid(self, gid: &[u8]) -> u64 {
        self.hash(1, &[gid])
    }

    pub(crate) fn tag(self, name: &str, value: &str) -> u64 {
        self.hash(2, &[name.as_bytes(), value.as_bytes()])
    }

    pub(crate) fn participant(self, name: &str) -> u64 {
        self.hash(3, &[name.as_bytes()])
    }

    pub(crate) fn status(self, status: i32) -> u64 {
        self.hash(4, &[&status.to_le_bytes()])
    }

    pub(crate) fn mode(self, mode: i32) -> u64 {
        self.hash(5, &[&mode.to_le_bytes()])
    }

    pub(crate) fn amount(self, currency: [u8; 3], size_class: u8) -> u64 {
        self.hash(6, &[&currency, &[size_class]])
    }

    /// An amount of this class on this level.
    pub(crate) fn amount_class(self, currency: [u8; 3], (level, class): (u32, u32)) -> u64 {
        self.hash(7, &[&currency, &level.to_le_bytes(), &class.to_le_bytes()])
    }
}

/// Small, stable, and good enough to find by; every find is checked.
fn by_bytes(kind: u8, parts: &[&[u8]]) -> u64 {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    let mut eat = |byte: u8| {
        state ^= u64::from(byte);
        state = state.wrapping_mul(0x0000_0100_0000_01b3);
    };
    eat(kind);
    for part in parts {
        part.iter().copied().for_each(&mut eat);
        // No part can hold it, so that two parts never read like two others.
        eat(0xff);
    }
    state ^= state >> 32;
    state = state.wrapping_mul(0xd6e8_feb8_6659_fd93);
    state ^ (state >> 32)
}

fn by_words(kind: u8, parts: &[&[u8]]) -> u32 {
    let mut state = u64::from(kind);
    for part in parts {
        let (words, rest) = part.as_chunks::<8>();
        for word in words {
            state = mixed(state ^ u64::from_le_bytes(*word));
        }
        // What is left of the part, and how much, so that two parts seldom read like two others.
        let last = tail(part, rest) | (rest.len() as u64 + 1) << 56;
        state = mixed(state ^ last);
    }
    (state >> 32) as u32
}

/// `rest`, of less than eight bytes at the end of `part`, as a number. Without a copy of a length that is not known, which is a call.
#[inline]
fn tail(part: &[u8], rest: &[u8]) -> u64 {
    let bits = 8 * rest.len() as u32;
    if let Some(eight) = part.last_chunk() {
        // The last eight bytes, without those that are not of the rest.
        return u64::from_le_bytes(*eight).checked_shr(64 - bits).unwrap_or(0);
    }
    if let (Some(first), Some(last)) = (rest.first_chunk(), rest.last_chunk()) {
        let [first, last] = [first, last].map(|half| u64::from(u32::from_le_bytes(*half)));
        return first | last << (bits - 32);
    }
    rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// Each bit of `word` moves about half of the answer's.
pub(crate) fn mixed(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * u128::from(0xd6e8_feb8_6659_fd93_u64);
    (product as u64) ^ ((product >> 64) as u64)
}

/// What one record can be found by, told one by one: its gid, its status and its mode before its tags and its participants, since there is
/// a limit.
#[derive(Debug)]
pub struct Terms<'t> {
    told: &'t mut Vec<u32>,
    left: usize,
}

impl<'t> Terms<'t> {
    /// Into `told`, behind what it holds.
    pub(crate) fn into(told: &'t mut Vec<u32>) -> Self {
        Self { told, left: limit::TERMS_MAX }
    }

    fn gid(&mut self, gid: &[u8]) {
        self.push(Scheme::Words.gid(gid));
    }

    /// Its status, as a number on the wire.
    pub fn status(&mut self, status: i32) {
        self.push(Scheme::Words.status(status));
    }

    /// Its mode, as a number on the wire.
    pub fn mode(&mut self, mode: i32) {
        self.push(Scheme::Words.mode(mode));
    }

    /// One of its tags; the one that carries an amount is found by that, too.
    pub fn tag(&mut self, name: &str, value: &str) {
        if name == Amount::TAG
            && let Some(amount) = Amount::parse(value)
        {
            let currency = amount.currency;
            self.push(Scheme::Words.amount(currency, amount.size_class()));
            for class in amount.classes() {
                self.push(Scheme::Words.amount_class(currency, class));
            }
        }
        self.push(Scheme::Words.tag(name, value));
    }

    /// Who serves one of its branches.
    pub fn participant(&mut self, name: &str) {
        self.push(Scheme::Words.participant(name));
    }

    fn push(&mut self, term: u64) {
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            self.told.push(term as u32);
        }
    }
}

/// Appends everything that `record`, whose gid this is, is found by.
pub(crate) fn tell(record: &impl Recorded, gid: &[u8], to: &mut Vec<u32>) {
    let mut terms = Terms::into(to);
    terms.gid(gid);
    record.tell(&mut terms);
}

/// Everything that `record` is found by: what two ways to tell the same must have alike.
#[must_use]
pub fn terms_of(record: &impl Recorded) -> Vec<u32> {
    let mut told = Vec::new();
    tell(record, record.gid(), &mut told);
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_never_changes_from_one_version_to_the_next() {
        for scheme in [Scheme::Bytes, Scheme::Words] {
            assert_eq!(scheme.gid(b"g1"), scheme.hash(1, &[b"g1"]));
            assert_ne!(scheme.tag("a", "bc"), scheme.tag("ab", "c"));
            assert_ne!(scheme.tag("", "abcdefg"), scheme.tag("abcdefg", ""));
            assert_ne!(scheme.gid(b"x"), scheme.participant("x"));
        }
        assert_eq!(format!("{:016x}", Scheme::Bytes.tag("run", "payroll")), "a55ec6adc712faac");
        assert_eq!(format!("{:08x}", Scheme::Words.tag("run", "payroll")), "c12cd371");
    }

    #[test]
    fn a_term_of_a_text_of_any_length_is_hashed_word_by_word() {
        let text: Vec<u8> = (1..=40).collect();
        for length in 0..text.len() {
            let mut padded = [text[..length].to_vec(), vec![0; 8 - length % 8]].concat();
            *padded.last_mut().unwrap() = length as u8 % 8 + 1;
            let words = padded.as_chunks::<8>().0.iter();
            let state = words.fold(3, |state, word| mixed(state ^ u64::from_le_bytes(*word)));
            assert_eq!(by_words(3, &[&text[..length]]), (state >> 32) as u32, "{length}");
        }
    }

    #[test]
    fn few_terms_are_alike() {
        let terms: std::collections::BTreeSet<u64> =
            (0..100_000).map(|n| Scheme::Words.gid(format!("01K{n:023}").as_bytes())).collect();
        // Of so many numbers of 32 bits, drawn evenly, one is drawn twice on average.
        assert!(terms.len() > 99_985, "{}", terms.len());
    }

    #[test]
    fn a_record_has_as_many_terms_as_allowed_and_one_more_is_left_out() {
        let mut told = vec![7];
        let mut terms = Terms::into(&mut told);
        (0..limit::TERMS_MAX - 1).for_each(|n| terms.participant(&n.to_string()));
        terms.gid(b"g");
        terms.gid(b"h");
        assert_eq!(told.len(), limit::TERMS_MAX + 1);
        assert_eq!(told.last().copied().map(u64::from), Some(Scheme::Words.gid(b"g")));
    }
}

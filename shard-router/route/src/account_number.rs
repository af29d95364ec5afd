//! Account numbers that carry their slot as a gene, and a check digit: digits all through, so that they can be typed and said.
//!
//! A number has a fixed length. The digits at the gene's place are the slot's number; the last digit checks all others by Damm's
//! algorithm, which finds every wrong digit and every two neighbors that changed places; the rest is a prefix and a serial number. A
//! column of such numbers is declared as a gene in the rules, `digits(a..b)`, and reaches the slot of the customer for whom they were made.

use crate::{KeyPart, Slot};

/// Digits of one number. What is longer is not typed without mistakes.
pub const LENGTH_MAX: u8 = 32;
/// Digits that hold every slot's number.
const GENE_DIGITS_MIN: u8 = 4;

/// The quasigroup of order 10 that Damm gives in his thesis.
const DAMM: [[u8; 10]; 10] = [
    [0, 3, 1, 7, 5, 9, 8, 6, 4, 2],
    [7, 0, 9, 2, 1, 5, 4, 8, 6, 3],
    [4, 2, 0, 6, 8, 7, 1, 3, 5, 9],
    [1, 7, 5, 0, 9, 8, 3, 4, 2, 6],
    [6, 1, 2, 3, 0, 4, 5, 9, 7, 8],
    [3, 6, 7, 4, 2, 0, 9, 5, 8, 1],
    [5, 8, 6, 9, 7, 2, 0, 1, 3, 4],
    [8, 9, 4, 5, 3, 6, 2, 0, 1, 7],
    [9, 4, 3, 8, 6, 1, 7, 2, 0, 5],
    [2, 5, 8, 1, 4, 3, 6, 7, 9, 0],
];

/// What all numbers of one column look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountNumbers {
    length: u8,
    gene: KeyPart,
    prefix: String,
}

/// Why there are no such numbers, or why a text is none of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNumber {
    /// The shape has no room, or is no shape.
    #[error("HF3023 {0}")]
    Shape(String),
    /// The text is no number of this shape. Never tells more of it than its length and places.
    #[error("HF3024 {0}")]
    Number(String),
}

impl BadNumber {
    /// The page that explains it: `docs/reference/errors/<code>.md`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Shape(_) => "HF3023",
            Self::Number(_) => "HF3024",
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    byte.is_ascii_digit().then(|| byte - b'0')
}

/// The digit that checks `digits`, or 0 if the last of them does so. `None`: not digits alone.
fn damm(digits: &str) -> Option<u8> {
    digits
        .bytes()
        .try_fold(0_u8, |interim, byte| Some(DAMM[usize::from(interim)][usize::from(digit(byte)?)]))
}

impl AccountNumbers {
    /// Numbers of `length` digits with the slot at `gene`, that begin with `prefix`.
    /// # Errors
    /// [`BadNumber::Shape`]: the gene is too narrow for 1,024 slots or reaches the check digit, the prefix is no digits, the length is
    /// beyond 32, or no digit is left for a serial number.
    pub fn new(length: u8, gene: KeyPart, prefix: &str) -> Result<Self, BadNumber> {
        let shape = |cause: String| Err(BadNumber::Shape(cause));
        let width = gene.last - gene.first + 1;
        if length > LENGTH_MAX {
            return shape(format!("{length} digits are more than {LENGTH_MAX}. Ask for fewer"));
        }
        if width < GENE_DIGITS_MIN {
            return shape(format!(
                "the gene has {width} digits, and 1,024 slots need {GENE_DIGITS_MIN}. Widen digits(a..b) in the rules"
            ));
        }
        if gene.last >= length {
            return shape(format!(
                "the gene ends at digit {} of {length}, and the last digit checks the others. Ask for a longer number",
                gene.last
            ));
        }
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return shape("the prefix has other characters than digits. Give digits".to_owned());
        }
        let numbers = Self { length, gene, prefix: prefix.to_owned() };
        if numbers.serial_digits() == 0 {
            return shape(format!(
                "{length} digits leave none for a serial number beside {width} of the gene, {} of the prefix and 1 that checks. Ask for a longer number",
                prefix.len()
            ));
        }
        Ok(numbers)
    }

    /// How many digits a serial number has.
    #[must_use]
    pub fn serial_digits(&self) -> u8 {
        let gene = usize::from(self.gene.last - self.gene.first + 1);
        let left = usize::from(self.length).saturating_sub(1 + gene + self.prefix.len());
        u8::try_from(left).unwrap_or(0)
    }

    /// The largest serial number.
    #[must_use]
    pub fn serial_max(&self) -> u64 {
        10_u64.checked_pow(u32::from(self.serial_digits())).map_or(u64::MAX, |bound| bound - 1)
    }

    /// The number of `slot` with this serial number; another serial number gives another number.
    /// # Errors
    /// [`BadNumber::Shape`]: the serial number has too many digits.
    pub fn number(&self, slot: Slot, serial: u64) -> Result<String, BadNumber> {
        if serial > self.serial_max() {
            let cause = format!(
                "serial number {serial} is beyond {}. Ask for longer numbers",
                self.serial_max()
            );
            return Err(BadNumber::Shape(cause));
        }
        let width = usize::from(self.serial_digits());
        let body = format!("{}{serial:0width$}", self.prefix);
        let (before, behind) = body.split_at(usize::from(self.gene.first - 1).min(body.len()));
        let width = usize::from(self.gene.last - self.gene.first + 1);
        let mut number = format!("{before}{:0width$}{behind}", slot.number());
        let check = damm(&number).expect("it is made of digits");
        number.push(char::from(b'0' + check));
        Ok(number)
    }

    /// The slot that `number` carries.
    /// # Errors
    /// [`BadNumber::Number`]: another length, other characters than digits, another prefix, a wrong check digit, or a gene that is no slot.
    pub fn check(&self, number: &str) -> Result<Slot, BadNumber> {
        let wrong = |cause: String| Err(BadNumber::Number(cause));
        if let Some(at) = number.chars().position(|character| !character.is_ascii_digit()) {
            return wrong(format!("character {} is no digit. Type digits only", at + 1));
        }
        if number.len() != usize::from(self.length) {
            let (is, wanted) = (number.len(), self.length);
            return wrong(format!("the number has {is} digits, not {wanted}. Type it again"));
        }
        if damm(number) != Some(0) {
            return wrong("the check digit does not fit the others. Type it again".to_owned());
        }
        let gene = &number[usize::from(self.gene.first - 1)..usize::from(self.gene.last)];
        let Some(slot) = gene.parse().ok().and_then(Slot::new) else {
            return wrong(format!("the gene is {gene}, which is no slot. It was not made here"));
        };
        let rest =
            [&number[..usize::from(self.gene.first - 1)], &number[usize::from(self.gene.last)..]];
        if !rest.concat().starts_with(&self.prefix) {
            return wrong(format!("the number does not begin with {}", self.prefix));
        }
        Ok(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> AccountNumbers {
        AccountNumbers::new(16, KeyPart { first: 3, last: 6 }, "49").expect("there is room")
    }

    /// For those who write it in another language. They never change.
    #[test]
    fn numbers_are_these() {
        assert_eq!(damm("572"), Some(4));
        let number = |slot: u16, serial| usual().number(Slot::new(slot).expect("a slot"), serial);
        assert_eq!(number(0, 0).expect("it fits"), "4900000000000002");
        assert_eq!(number(643, 17).expect("it fits"), "4906430000000176");
        assert_eq!(number(1023, 999_999_999).expect("it fits"), "4910239999999992");
        assert!(number(0, 1_000_000_000).is_err(), "one past the last");
    }

    #[test]
    fn every_slot_comes_back_and_by_the_slot_function_as_well() {
        let function = crate::Algorithm::named("digits(3..6)").expect("it is one");
        for slot in Slot::all() {
            let number = usual().number(slot, 7 * u64::from(slot.number())).expect("it fits");
            assert_eq!(usual().check(&number), Ok(slot));
            let key = crate::Key::parse(&number).expect("it is a key");
            assert_eq!(function.slot(key), Ok(slot));
        }
    }

    #[test]
    fn every_wrong_digit_and_every_swap_of_neighbors_is_found() {
        let number = usual().number(Slot::new(643).expect("a slot"), 190_823_745).expect("it fits");
        for at in 0..number.len() {
            for other in b'0'..=b'9' {
                let mut wrong = number.clone().into_bytes();
                let same = std::mem::replace(&mut wrong[at], other) == other;
                let wrong = String::from_utf8(wrong).expect("digits");
                assert_eq!(usual().check(&wrong).is_ok(), same, "{wrong}");
            }
        }
        for at in 1..number.len() {
            let mut wrong = number.clone().into_bytes();
            wrong.swap(at - 1, at);
            let wrong = String::from_utf8(wrong).expect("digits");
            assert_eq!(usual().check(&wrong).is_ok(), wrong == number, "{wrong}");
        }
        // The algorithm itself: no row and no column of the table has a digit twice, and no two neighbors commute.
        for one in 0..10 {
            for other in 0..10 {
                if one == other {
                    continue;
                }
                for before in 0..10_usize {
                    let step = |from: usize, digit: usize| usize::from(DAMM[from][digit]);
                    assert_ne!(step(before, one), step(before, other));
                    assert_ne!(step(one, before), step(other, before));
                    assert_ne!(step(step(before, one), other), step(step(before, other), one));
                }
            }
        }
    }

    #[test]
    fn a_shape_without_room_and_a_number_of_another_shape_are_refused() {
        let gene = KeyPart { first: 3, last: 6 };
        let shape = |length, gene, prefix| AccountNumbers::new(length, gene, prefix).is_ok();
        assert!(shape(32, gene, "") && !shape(33, gene, ""), "at the limit and one past it");
        assert!(shape(8, gene, "49") && !shape(7, gene, "49"), "one digit for a serial number");
        assert!(!shape(16, KeyPart { first: 3, last: 5 }, ""), "too narrow");
        assert!(!shape(16, KeyPart { first: 13, last: 16 }, ""), "on the check digit");
        assert!(!shape(16, gene, "4x"));
        for wrong in
            ["", "490643000000017", "49064300000001777", "490643000000017x", "4911000000000007"]
        {
            assert!(matches!(usual().check(wrong), Err(BadNumber::Number(_))), "{wrong}");
        }
        let other = AccountNumbers::new(16, gene, "50").expect("there is room");
        let number = other.number(Slot::new(1).expect("a slot"), 1).expect("it fits");
        assert!(usual().check(&number).is_err() && other.check(&number).is_ok());
    }
}

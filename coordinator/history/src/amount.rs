//! Amounts as the tag `amount` writes them: a decimal number and an ISO 4217 code, `50.00 EUR`.

use std::{cmp::Ordering, ops::RangeInclusive};

/// Digits behind the point that count: as many as ISO 20022 allows.
const DECIMALS: usize = 5;
/// Digits in front of it.
const DIGITS_MAX: usize = 18;

/// How finely amounts are told apart beside their number of binary digits: by so many digits behind the first, finest first. One level
/// alone would read too much for narrow ranges, or ask for too many terms for wide ones.
const LEVELS: [u32; 2] = [14, 9];
/// Terms that a search asks for on one level; for more it takes the next coarser one.
const CLASSES_MAX: u32 = 32;

/// A non-negative amount in one currency. Two of different currencies have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// In hundred-thousandths of the currency's unit, so that every currency's minor unit is exact.
    pub scaled: u128,
    /// ISO 4217.
    pub currency: [u8; 3],
}

/// Amounts to search for, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmountRange {
    /// At least.
    pub least: Amount,
    /// At most, in the same currency.
    pub most: Amount,
}

impl Amount {
    /// The tag that carries one.
    pub const TAG: &'static str = "amount";

    /// Reads `50`, `50.00 EUR` and the like; a currency is needed. `None`: it is no amount.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, currency) = text.trim().split_once(' ')?;
        let currency: [u8; 3] = currency.trim().as_bytes().try_into().ok()?;
        if !currency.iter().all(u8::is_ascii_uppercase) {
            return None;
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let sound = (1..=DIGITS_MAX).contains(&whole.len()) && fraction.len() <= DECIMALS;
        if !sound || !digits(whole) || !digits(fraction) || number.ends_with('.') {
            return None;
        }
        let zeros = std::iter::repeat_n(b'0', DECIMALS - fraction.len());
        let all = whole.bytes().chain(fraction.bytes()).chain(zeros);
        let scaled = all.fold(0, |scaled, digit| scaled * 10 + u128::from(digit - b'0'));
        Some(Self { scaled, currency })
    }

    /// Its class on each level, behind the level.
    pub(crate) fn classes(self) -> [(u32, u32); LEVELS.len()] {
        LEVELS.map(|bits| (bits, self.class(bits)))
    }

    /// The number of its binary digits, followed by so many of the digits behind the first. Rises with the amount.
    fn class(self, bits: u32) -> u32 {
        let Some(behind) = u32::from(self.size_class()).checked_sub(1) else { return 0 };
        let digits = match behind.checked_sub(bits) {
            Some(surplus) => self.scaled >> surplus,
            None => self.scaled << (bits - behind),
        };
        // Without the first digit, which is always 1.
        let digits = u32::try_from(digits ^ (1 << bits)).expect("so many digits at most");
        ((behind + 1) << bits) | digits
    }

    /// The number of its binary digits: what amounts are indexed by, most coarsely.
    pub(crate) fn size_class(self) -> u8 {
        u8::try_from(u128::BITS - self.scaled.leading_zeros()).expect("at most 128")
    }
}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self.currency == other.currency).then(|| self.scaled.cmp(&other.scaled))
    }
}

impl AmountRange {
    /// From `least` to `most`. `None`: their currencies differ, or the first is above the second.
    #[must_use]
    pub fn new(least: Amount, most: Amount) -> Option<Self> {
        (least <= most).then_some(Self { least, most })
    }

    /// The finest level on which few classes cover the range, and those. `None`: it is too wide for each.
    pub(crate) fn classes(&self) -> Option<(u32, RangeInclusive<u32>)> {
        let all =
            LEVELS.iter().map(|bits| (*bits, self.least.class(*bits)..=self.most.class(*bits)));
        all.into_iter().find(|(_, classes)| classes.end() - classes.start() < CLASSES_MAX)
    }

    /// Whether it is one of these.
    #[must_use]
    pub fn contains(&self, amount: Amount) -> bool {
        self.least <= amount && amount <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scaled(text: &str) -> Option<u128> {
        Amount::parse(text).map(|amount| amount.scaled)
    }

    #[test]
    fn amounts_are_read_exactly_and_nothing_else_is() {
        assert_eq!(scaled("50.00 EUR"), Some(5_000_000));
        assert_eq!(scaled("50 EUR"), Some(5_000_000));
        assert_eq!(scaled("0.001 KWD"), Some(100));
        assert_eq!(scaled("10000 KRW"), Some(1_000_000_000));
        assert_eq!(
            scaled(&format!("{} EUR", "9".repeat(DIGITS_MAX))).map(|n| n % 100_000),
            Some(0)
        );
        for bad in [
            "",
            "EUR",
            "50",
            "50.00",
            "50.00 eur",
            "50,00 EUR",
            "-1 EUR",
            "1e3 EUR",
            "1.000000 EUR",
            ".5 EUR",
            "5. EUR",
            "50.00 EURO",
            "50.00 €",
            &format!("{} EUR", "9".repeat(DIGITS_MAX + 1)),
        ] {
            assert_eq!(scaled(bad), None, "{bad}");
        }
    }

    #[test]
    fn classes_rise_with_amounts_and_a_range_is_covered_by_few() {
        let amount = |scaled| Amount { scaled, currency: *b"EUR" };
        let mut scaled = 0_u128;
        while scaled < u128::from(u64::MAX) << 20 {
            let next = scaled + 1 + scaled / 1_000;
            for (one, other) in amount(scaled).classes().into_iter().zip(amount(next).classes()) {
                assert!(one.0 == other.0 && one.1 <= other.1, "{scaled}");
            }
            scaled = next;
        }
        let range = |least, most| AmountRange::new(amount(least), amount(most)).unwrap();
        // 31 classes above the first make 32, and one more is too many for that level.
        let first: u128 = 1 << 30;
        let (step, last) = (1 << (30 - LEVELS[0]), u128::from(CLASSES_MAX - 1));
        let (level, classes) = range(first, first + last * step).classes().unwrap();
        assert_eq!((level, classes.count()), (LEVELS[0], 32));
        let (level, classes) = range(first, first + (last + 1) * step).classes().unwrap();
        assert_eq!((level, classes.count()), (LEVELS[1], 2));
        assert_eq!(range(0, first).classes(), None);
        assert_eq!(range(0, 0).classes().map(|(_, classes)| classes), Some(0..=0));
    }

    #[test]
    fn amounts_of_two_currencies_have_no_order() {
        let [euro, yen] = ["5 EUR", "5 JPY"].map(|text| Amount::parse(text).unwrap());
        assert_eq!(euro.partial_cmp(&yen), None);
        assert_eq!(AmountRange::new(euro, yen), None);
        assert!(AmountRange::new(euro, euro).unwrap().contains(euro));
        assert!(!AmountRange::new(euro, euro).unwrap().contains(yen));
    }
}

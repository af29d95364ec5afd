//! Amounts as the tag `amount` writes them: a decimal number and an ISO 4217 code, `50.00 EUR`.

use std::cmp::Ordering;

/// Digits behind the point that count: as many as ISO 20022 allows.
const DECIMALS: usize = 5;
/// Digits in front of it.
const DIGITS_MAX: usize = 18;

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
        let scaled = format!("{whole}{fraction:0<DECIMALS$}").parse().ok()?;
        Some(Self { scaled, currency })
    }

    /// The number of its binary digits: what amounts are indexed by.
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
    fn amounts_of_two_currencies_have_no_order() {
        let [euro, yen] = ["5 EUR", "5 JPY"].map(|text| Amount::parse(text).unwrap());
        assert_eq!(euro.partial_cmp(&yen), None);
        assert_eq!(AmountRange::new(euro, yen), None);
        assert!(AmountRange::new(euro, euro).unwrap().contains(euro));
        assert!(!AmountRange::new(euro, euro).unwrap().contains(yen));
    }
}

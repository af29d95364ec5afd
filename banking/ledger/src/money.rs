//! Money: an integer of minor units and an ISO 4217 code; exact in, exact out, never a float.

use std::fmt;

/// The largest amount of one instruction, in minor units: 18 digits, as in ISO 20022 messages.
pub const AMOUNT_MINOR_MAX: i64 = 999_999_999_999_999_999;

/// ISO 4217 codes by the number of their decimals, in order. Metals, funds and test codes are no money to hold.
const WITHOUT_DECIMALS: &[&str] = &[
    "BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "UYI", "VND",
    "VUV", "XAF", "XOF", "XPF",
];
const TWO_DECIMALS: &[&str] = &[
    "AED", "AFN", "ALL", "AMD", "AOA", "ARS", "AUD", "AWG", "AZN", "BAM", "BBD", "BDT", "BGN",
    "BMD", "BND", "BOB", "BRL", "BSD", "BTN", "BWP", "BYN", "BZD", "CAD", "CDF", "CHF", "CNY",
    "COP", "CRC", "CUP", "CVE", "CZK", "DKK", "DOP", "DZD", "EGP", "ERN", "ETB", "EUR", "FJD",
    "FKP", "GBP", "GEL", "GHS", "GIP", "GMD", "GTQ", "GYD", "HKD", "HNL", "HTG", "HUF", "IDR",
    "ILS", "INR", "IRR", "JMD", "KES", "KGS", "KHR", "KPW", "KYD", "KZT", "LAK", "LBP", "LKR",
    "LRD", "LSL", "MAD", "MDL", "MGA", "MKD", "MMK", "MNT", "MOP", "MRU", "MUR", "MVR", "MWK",
    "MXN", "MYR", "MZN", "NAD", "NGN", "NIO", "NOK", "NPR", "NZD", "PAB", "PEN", "PGK", "PHP",
    "PKR", "PLN", "QAR", "RON", "RSD", "RUB", "SAR", "SBD", "SCR", "SDG", "SEK", "SGD", "SHP",
    "SLE", "SOS", "SRD", "SSP", "STN", "SVC", "SYP", "SZL", "THB", "TJS", "TMT", "TOP", "TRY",
    "TTD", "TWD", "TZS", "UAH", "USD", "UYU", "UZS", "VES", "WST", "XCD", "XCG", "YER", "ZAR",
    "ZMW", "ZWG",
];
const THREE_DECIMALS: &[&str] = &["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"];
const FOUR_DECIMALS: &[&str] = &["CLF", "UYW"];

/// An ISO 4217 currency that is money today.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Currency {
    code: &'static str,
    decimals: u8,
}

/// A text that is no currency.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no ISO 4217 currency; write three capital letters, such as EUR")]
pub struct BadCurrency(String);

impl Currency {
    /// The currency with this code.
    /// # Errors
    /// [`BadCurrency`] for anything that is not the code of a current currency, in capitals.
    pub fn parse(text: &str) -> Result<Self, BadCurrency> {
        let lists =
            [(WITHOUT_DECIMALS, 0), (TWO_DECIMALS, 2), (THREE_DECIMALS, 3), (FOUR_DECIMALS, 4)];
        lists
            .into_iter()
            .find_map(|(codes, decimals)| {
                let at = codes.binary_search(&text).ok()?;
                Some(Self { code: codes.get(at)?, decimals })
            })
            .ok_or_else(|| BadCurrency(text.chars().take(8).collect()))
    }

    /// The three letters.
    #[must_use]
    pub const fn code(self) -> &'static str {
        self.code
    }

    /// How many decimals it has: 2 for EUR, 0 for JPY, 3 for KWD.
    #[must_use]
    pub const fn decimals(self) -> u8 {
        self.decimals
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code)
    }
}

/// An amount to move or to hold: 1 to [`AMOUNT_MINOR_MAX`] minor units. Never zero, never negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(i64);

/// A text or number that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAmount {
    /// A whole number, but not one that may be moved.
    #[error("amount {0} is not within 1 to {AMOUNT_MINOR_MAX} minor units")]
    OutOfRange(String),
    /// Not written as an amount is.
    #[error("{0:?} is no amount; write {1}")]
    Malformed(String, &'static str),
    /// More decimals than the currency has: rounding would make or lose money.
    #[error("{text:?} has more decimals than the {} of {currency}", currency.decimals())]
    TooManyDecimals {
        /// What was given.
        text: String,
        /// The currency.
        currency: Currency,
    },
}

const AS_MINOR: &str = "minor units in decimal digits without sign or leading zeros, such as 1050";
const AS_DECIMAL: &str = "digits with a point before the decimals, such as 10.50";

impl Amount {
    /// Checks and takes a number of minor units.
    /// # Errors
    /// [`BadAmount::OutOfRange`] below 1 and above [`AMOUNT_MINOR_MAX`].
    pub fn new(minor: i64) -> Result<Self, BadAmount> {
        if (1..=AMOUNT_MINOR_MAX).contains(&minor) {
            Ok(Self(minor))
        } else {
            Err(BadAmount::OutOfRange(minor.to_string()))
        }
    }

    /// Reads minor units as they stand in JSON: `"1050"`. One number has one spelling.
    /// # Errors
    /// [`BadAmount`] for a sign other than a minus (which is out of range), leading zeros, anything but digits, and numbers out of
    /// range, however large.
    pub fn parse_minor(text: &str) -> Result<Self, BadAmount> {
        let shown = || text.chars().take(40).collect::<String>();
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_number = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits == "0" || !digits.starts_with('0'));
        if !is_number {
            return Err(BadAmount::Malformed(shown(), AS_MINOR));
        }
        let minor = text.parse().map_err(|_| BadAmount::OutOfRange(shown()))?;
        Self::new(minor)
    }

    /// Reads a decimal number of `currency`: `"10.50"`, `"10.5"` and `"10"` in EUR. Exact, or refused.
    /// # Errors
    /// [`BadAmount`] for anything else, for more decimals than the currency has, and out of range.
    pub fn parse_decimal(text: &str, currency: Currency) -> Result<Self, BadAmount> {
        let shown = || text.chars().take(40).collect::<String>();
        let malformed = || BadAmount::Malformed(shown(), AS_DECIMAL);
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(malformed()),
            Some(parts) => parts,
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(malformed());
        }
        let decimals = usize::from(currency.decimals());
        if fraction.len() > decimals {
            return Err(BadAmount::TooManyDecimals { text: shown(), currency });
        }
        let minor = format!("{whole}{fraction:0<decimals$}");
        Self::new(minor.parse().map_err(|_| BadAmount::OutOfRange(shown()))?)
    }

    /// The number of minor units.
    #[must_use]
    pub const fn minor(self) -> i64 {
        self.0
    }
}

/// An amount of a currency. Shown as a banker writes it: `10.50 EUR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Money {
    /// How much.
    pub amount: Amount,
    /// Of what.
    pub currency: Currency,
}

/// Texts that are no money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMoney {
    /// The currency is none.
    #[error(transparent)]
    Currency(#[from] BadCurrency),
    /// The amount is none.
    #[error(transparent)]
    Amount(#[from] BadAmount),
}

impl Money {
    /// Reads a decimal number and a currency's code.
    /// # Errors
    /// [`BadMoney`] says which of the two is wrong.
    pub fn parse(decimal: &str, currency: &str) -> Result<Self, BadMoney> {
        let currency = Currency::parse(currency)?;
        Ok(Self { amount: Amount::parse_decimal(decimal, currency)?, currency })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", decimal(self.amount.minor(), self.currency), self.currency)
    }
}

/// Minor units as a decimal number of `currency`, exactly: -5 in EUR is `-0.05`.
#[must_use]
pub fn decimal(minor: i64, currency: Currency) -> String {
    let sign = if minor < 0 { "-" } else { "" };
    let decimals = usize::from(currency.decimals());
    let width = decimals.saturating_add(1);
    let digits = format!("{:0>width$}", minor.unsigned_abs());
    let (whole, fraction) = digits.split_at(digits.len().saturating_sub(decimals));
    if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eur() -> Currency {
        Currency::parse("EUR").unwrap()
    }

    #[test]
    fn currencies_are_those_of_iso_4217_in_capitals() {
        for (code, decimals) in [("EUR", 2), ("JPY", 0), ("KWD", 3), ("CLF", 4)] {
            assert_eq!(Currency::parse(code).unwrap().decimals(), decimals);
        }
        for code in ["", "eur", "EU", "EURO", "XXX", "XAU", "E R", "EUR USD"] {
            assert!(Currency::parse(code).is_err(), "{code:?}");
        }
    }

    #[test]
    fn every_code_has_three_capitals_and_stands_once() {
        let lists = [WITHOUT_DECIMALS, TWO_DECIMALS, THREE_DECIMALS, FOUR_DECIMALS];
        assert!(lists.iter().all(|codes| codes.is_sorted()), "they are searched by halves");
        let mut codes = lists.concat();
        assert!(
            codes.iter().all(|code| Currency::parse(code).is_ok_and(|found| found.code() == *code))
        );
        assert!(codes.iter().all(|c| c.len() == 3 && c.bytes().all(|b| b.is_ascii_uppercase())));
        let count = codes.len();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), count);
    }

    #[test]
    fn minor_units_have_one_spelling() {
        assert_eq!(Amount::parse_minor("1050").unwrap().minor(), 1050);
        assert_eq!(Amount::parse_minor("999999999999999999").unwrap().minor(), AMOUNT_MINOR_MAX);
        for text in ["", "-", "+1", "01", "1.0", "1e3", " 1", "1 ", "１", "0x10", "--1", "-01"] {
            let error = Amount::parse_minor(text).unwrap_err();
            assert!(matches!(error, BadAmount::Malformed(..)), "{text:?}: {error}");
        }
        let beyond = "9".repeat(400);
        for text in ["0", "-1", "1000000000000000000", "9223372036854775808", &beyond] {
            let error = Amount::parse_minor(text).unwrap_err();
            assert!(matches!(error, BadAmount::OutOfRange(_)), "{text:?}: {error}");
        }
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        for (text, minor) in [("10.50", 1050), ("10.5", 1050), ("10", 1000), ("0.01", 1)] {
            assert_eq!(Amount::parse_decimal(text, eur()).unwrap().minor(), minor);
        }
        for text in
            ["", ".", "1.", ".5", "1.005", "1,00", "-1", "0.00", "0", "1e2", "99999999999999999"]
        {
            assert!(Amount::parse_decimal(text, eur()).is_err(), "{text:?}");
        }
        let yen = Currency::parse("JPY").unwrap();
        assert_eq!(Amount::parse_decimal("5", yen).unwrap().minor(), 5);
        assert!(Amount::parse_decimal("5.0", yen).is_err());
    }

    #[test]
    fn numbers_are_shown_with_the_decimals_of_their_currency() {
        for (minor, text) in [(0, "0.00"), (5, "0.05"), (-5, "-0.05"), (123_456, "1234.56")] {
            assert_eq!(decimal(minor, eur()), text);
        }
        assert_eq!(decimal(7, Currency::parse("JPY").unwrap()), "7");
        assert_eq!(decimal(7, Currency::parse("KWD").unwrap()), "0.007");
        assert_eq!(decimal(i64::MIN, eur()), "-92233720368547758.08");
    }
}

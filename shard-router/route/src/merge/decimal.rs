//! Exact decimal numbers as PostgreSQL's `numeric` has them: compared, added, and divided with its own rule for the scale of an average.

use std::cmp::Ordering;

/// A number with a fixed count of digits behind its point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decimal {
    negative: bool,
    /// Decimal digits, most significant first, without leading zeros beyond the scale; `scale` of them are behind the point.
    digits: Vec<u8>,
    scale: usize,
}

/// Digits of one number beyond which nothing is computed here.
const DIGITS_MAX: usize = 20_000;

impl Decimal {
    /// Reads what `numeric` and the integers print; not NaN or infinity.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let all_digits = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit());
        if whole.is_empty()
            || text.len() > DIGITS_MAX
            || !all_digits(whole)
            || !all_digits(fraction)
        {
            return None;
        }
        let digits = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0').collect();
        Some(Self { negative, digits, scale: fraction.len() }.trimmed())
    }

    pub(super) fn of_integer(value: i64) -> Self {
        Self::parse(&value.to_string()).expect("an integer prints as digits")
    }

    /// Reads the binary form of `numeric`; not NaN or infinity.
    pub(super) fn of_binary(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let count = usize::from(word(0)?);
        let weight = i64::from(i16::from_be_bytes(word(2)?.to_be_bytes()));
        let sign = word(4)?;
        let scale = usize::from(word(6)?);
        if !matches!(sign, 0 | 0x4000) || bytes.len() != 8 + 2 * count || scale > DIGITS_MAX {
            return None;
        }
        let mut digits = Vec::new();
        // Groups from the first one, or from the point if the number begins behind it, to the end of the scale.
        let last = -i64::try_from(scale.div_ceil(4)).ok()?;
        let mut place = weight.max(0);
        while place >= last {
            let index = weight - place;
            let group = match usize::try_from(index) {
                Ok(index) if index < count => word(8 + 2 * index)?,
                _ => 0,
            };
            if group > 9999 {
                return None;
            }
            digits.extend(
                [group / 1000, group / 100 % 10, group / 10 % 10, group % 10]
                    .map(|digit| digit as u8),
            );
            place -= 1;
        }
        let behind = usize::try_from(-last).ok()? * 4;
        digits.truncate(digits.len() - (behind - scale));
        Some(Self { negative: sign == 0x4000, digits, scale }.trimmed())
    }

    /// The binary form of `numeric`.
    pub(super) fn to_binary(&self) -> Vec<u8> {
        let whole = self.digits.len() - self.scale;
        let lead = (4 - whole % 4) % 4;
        let mut padded = vec![0; lead];
        padded.extend(&self.digits);
        padded.resize(padded.len().next_multiple_of(4), 0);
        let groups: Vec<u16> = padded
            .chunks(4)
            .map(|four| four.iter().fold(0, |group, digit| group * 10 + u16::from(*digit)))
            .collect();
        let first = groups.iter().position(|group| *group != 0).unwrap_or(groups.len());
        let last = groups.iter().rposition(|group| *group != 0).map_or(first, |last| last + 1);
        let whole_groups = whole.div_ceil(4);
        let weight = if first == last { 0 } else { whole_groups as i64 - 1 - first as i64 };
        let mut bytes = Vec::new();
        bytes.extend(((last - first) as u16).to_be_bytes());
        bytes.extend((weight as i16).to_be_bytes());
        bytes.extend((if self.is_negative() { 0x4000_u16 } else { 0 }).to_be_bytes());
        bytes.extend((self.scale as u16).to_be_bytes());
        for group in &groups[first..last] {
            bytes.extend(group.to_be_bytes());
        }
        bytes
    }

    /// Keeps one digit before the point at most as a leading zero.
    fn trimmed(mut self) -> Self {
        let whole = self.digits.len() - self.scale;
        let zeros = self.digits.iter().take(whole).take_while(|digit| **digit == 0).count();
        self.digits.drain(..zeros);
        self
    }

    fn is_zero(&self) -> bool {
        self.digits.iter().all(|digit| *digit == 0)
    }

    fn is_negative(&self) -> bool {
        self.negative && !self.is_zero()
    }

    /// As `numeric` prints it.
    pub(super) fn print(&self) -> String {
        let (whole, fraction) = self.digits.split_at(self.digits.len() - self.scale);
        let mut text = String::with_capacity(self.digits.len() + 3);
        if self.is_negative() {
            text.push('-');
        }
        if whole.is_empty() {
            text.push('0');
        }
        text.extend(whole.iter().map(|digit| char::from(b'0' + digit)));
        if !fraction.is_empty() {
            text.push('.');
            text.extend(fraction.iter().map(|digit| char::from(b'0' + digit)));
        }
        text
    }

    /// The same for equal numbers, whatever their scales.
    pub(super) fn canonical(&self) -> String {
        let text = self.print();
        if !text.contains('.') {
            return text;
        }
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text == "-0" { "0".to_owned() } else { text.to_owned() }
    }

    fn scaled(&self, scale: usize) -> Vec<u8> {
        let mut digits = self.digits.clone();
        digits.resize(digits.len() + (scale - self.scale), 0);
        digits
    }

    fn aligned(&self, other: &Self) -> (Vec<u8>, Vec<u8>, usize) {
        let scale = self.scale.max(other.scale);
        let (mut one, mut two) = (self.scaled(scale), other.scaled(scale));
        let width = one.len().max(two.len());
        for digits in [&mut one, &mut two] {
            let missing = width - digits.len();
            digits.splice(0..0, std::iter::repeat_n(0, missing));
        }
        (one, two, scale)
    }

    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let (one, two, _) = self.aligned(other);
        match (self.is_negative(), other.is_negative()) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => one.cmp(&two),
            (true, true) => two.cmp(&one),
        }
    }

    pub(super) fn add(&self, other: &Self) -> Self {
        let (one, two, scale) = self.aligned(other);
        if self.negative == other.negative {
            let mut digits = sum(&one, &two);
            digits.shrink_to_fit();
            return Self { negative: self.negative, digits, scale }.trimmed();
        }
        let (negative, digits) = match one.cmp(&two) {
            Ordering::Less => (other.negative, difference(&two, &one)),
            Ordering::Equal | Ordering::Greater => (self.negative, difference(&one, &two)),
        };
        Self { negative, digits, scale }.trimmed()
    }

    /// The place of the first group of four digits that is not 0000, counted from the point, and that group.
    fn leading(&self) -> (i64, u16) {
        let whole = self.digits.len() - self.scale;
        let lead = (4 - whole % 4) % 4;
        let mut padded = vec![0; lead];
        padded.extend(&self.digits);
        padded.resize(padded.len().next_multiple_of(4), 0);
        let first = whole.div_ceil(4) as i64 - 1;
        for (index, four) in padded.chunks(4).enumerate() {
            let group = four.iter().fold(0, |group, digit| group * 10 + u16::from(*digit));
            if group != 0 {
                return (first - index as i64, group);
            }
        }
        (0, 0)
    }

    /// This sum divided by `count`, with the scale that `numeric` takes for a quotient: 16 significant digits at least.
    pub(super) fn average(&self, count: u64) -> Self {
        let divisor = Self::parse(&count.to_string()).expect("a count prints as digits");
        let (weight, first) = self.leading();
        let (other_weight, other_first) = divisor.leading();
        let quotient = weight - other_weight - i64::from(first <= other_first);
        let scale = (16 - quotient * 4).clamp(0, 1000) as usize;
        let scale = scale.max(self.scale).min(1000);
        let mut digits = Vec::new();
        let mut rest: u128 = 0;
        for digit in self.scaled(scale) {
            rest = rest * 10 + u128::from(digit);
            digits.push((rest / u128::from(count)) as u8);
            rest %= u128::from(count);
        }
        if digits.len() < scale {
            let missing = scale - digits.len();
            digits.splice(0..0, std::iter::repeat_n(0, missing));
        }
        // Halves go away from zero.
        if rest * 2 >= u128::from(count) {
            let mut one = vec![0; digits.len().max(1)];
            *one.last_mut().expect("there is one digit") = 1;
            digits.splice(0..0, std::iter::repeat_n(0, one.len() - digits.len()));
            digits = sum(&digits, &one);
        }
        Self { negative: self.negative, digits, scale }.trimmed()
    }
}

/// The sum of two numbers of as many digits.
fn sum(one: &[u8], two: &[u8]) -> Vec<u8> {
    let mut digits = vec![0; one.len() + 1];
    let mut carry = 0;
    for at in (0..one.len()).rev() {
        let total = one[at] + two[at] + carry;
        digits[at + 1] = total % 10;
        carry = total / 10;
    }
    digits[0] = carry;
    digits
}

/// `one - two`, which is not below zero.
fn difference(one: &[u8], two: &[u8]) -> Vec<u8> {
    let mut digits = vec![0; one.len()];
    let mut borrow = 0;
    for at in (0..one.len()).rev() {
        let taken = two[at] + borrow;
        borrow = u8::from(one[at] < taken);
        digits[at] = one[at] + 10 * borrow - taken;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse(text).unwrap()
    }

    /// As PostgreSQL 15 answers `SELECT sum(x) / count(x)` over numerics.
    #[test]
    fn averages_have_the_scale_of_numeric() {
        for (sum, count, average) in [
            ("10", 4, "2.5000000000000000"),
            ("10", 3, "3.3333333333333333"),
            ("0", 5, "0.00000000000000000000"),
            ("1", 3, "0.33333333333333333333"),
            ("-7.5", 2, "-3.7500000000000000"),
            ("100000", 3, "33333.333333333333"),
            ("0.01", 7, "0.00142857142857142857"),
        ] {
            assert_eq!(decimal(sum).average(count).print(), average, "{sum} / {count}");
        }
    }

    #[test]
    fn sums_keep_the_greater_scale() {
        assert_eq!(decimal("1.5").add(&decimal("-2.25")).print(), "-0.75");
        assert_eq!(decimal("999").add(&decimal("1.00")).print(), "1000.00");
        assert_eq!(decimal("5").add(&decimal("-5.0")).print(), "0.0");
    }

    #[test]
    fn binary_and_text_agree() {
        for text in
            ["0", "1", "-1", "10000", "0.0001", "12345678.9", "-0.5000", "9999.9999", "100.00"]
        {
            let number = decimal(text);
            let again = Decimal::of_binary(&number.to_binary()).unwrap();
            assert_eq!(again.print(), text);
            assert_eq!(number.compare(&again), Ordering::Equal);
        }
    }
}

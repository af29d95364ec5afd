//! The part of Prometheus's expressions that alert rules use: selectors, `rate` and `increase`, `time`, aggregations,
//! `histogram_quantile`, comparisons, arithmetic, `and`, `or`, `unless`.

use anyhow::{Context as _, bail, ensure};

/// Nested parts of one expression.
const DEPTH_MAX: usize = 32;

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expression {
    Number(f64),
    /// Seconds since the epoch: `time()`.
    Now,
    /// The latest value of each series.
    Select(Selector),
    /// How much each series has grown within so many ms; divided by the time where `a_second`.
    Growth {
        of: Selector,
        within_ms: u64,
        a_second: bool,
    },
    Aggregate {
        how: Aggregate,
        by: Vec<String>,
        of: Box<Self>,
    },
    Quantile {
        quantile: f64,
        of: Box<Self>,
    },
    Two {
        left: Box<Self>,
        operator: Operator,
        right: Box<Self>,
    },
}

/// Series of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    pub(super) name: String,
    /// Label, whether it must be (or must not be), values.
    pub(super) labels: Vec<(String, bool, Vec<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    Max,
    Min,
    Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Unless,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    Add,
    Subtract,
    Multiply,
    Divide,
}

impl Expression {
    /// Reads one.
    /// # Errors
    /// Where it is not understood.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut parser = Parser { words: words(text)?, at: 0, depth: 0 };
        let expression = parser.joined()?;
        ensure!(parser.at == parser.words.len(), "{:?} is too much", parser.words[parser.at]);
        Ok(expression)
    }

    /// The metrics that it reads.
    pub(super) fn families(&self) -> Vec<String> {
        match self {
            Self::Number(_) | Self::Now => Vec::new(),
            Self::Select(of) | Self::Growth { of, .. } => vec![of.name.clone()],
            Self::Aggregate { of, .. } | Self::Quantile { of, .. } => of.families(),
            Self::Two { left, right, .. } => [left.families(), right.families()].concat(),
        }
    }
}

/// `30s`, `5m`, `1h`, `250ms`.
/// # Errors
/// It is something else.
pub(super) fn duration_ms(text: &str) -> anyhow::Result<u64> {
    let digits = text.chars().take_while(char::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().with_context(|| format!("{text:?} is no duration"))?;
    let each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => bail!("{text:?} is no duration"),
    };
    number.checked_mul(each).with_context(|| format!("{text} is too long"))
}

/// Names, numbers, quoted texts (with their first quote) and signs.
fn words(text: &str) -> anyhow::Result<Vec<String>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' {
            1 + rest[1..].find('"').context("a quote does not end")?
        } else if first.is_ascii_alphanumeric() || first == '_' {
            let inside = |letter: char| letter.is_ascii_alphanumeric() || "_:.".contains(letter);
            rest.find(|letter| !inside(letter)).unwrap_or(rest.len())
        } else if [">=", "<=", "==", "!=", "=~", "!~"].iter().any(|sign| rest.starts_with(sign)) {
            2
        } else {
            ensure!("(){}[],<>=+-*/".contains(first), "{first:?} is no sign of an expression");
            1
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start_matches(|letter: char| letter == '"' && first == '"');
        rest = rest.trim_start();
    }
    Ok(words)
}

struct Parser {
    words: Vec<String>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &str {
        self.words.get(self.at).map_or("", String::as_str)
    }

    fn next(&mut self) -> anyhow::Result<String> {
        let word = self.words.get(self.at).cloned().context("it ends too early")?;
        self.at += 1;
        Ok(word)
    }

    fn take(&mut self, word: &str) -> bool {
        let is = self.peek() == word;
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let found = self.next()?;
        ensure!(found == word, "{found:?} stands where {word:?} should");
        Ok(())
    }

    /// Left to right: `or` binds loosest, then `and` and `unless`, comparisons, sums, products.
    fn joined(&mut self) -> anyhow::Result<Expression> {
        self.depth += 1;
        ensure!(self.depth <= DEPTH_MAX, "nested deeper than {DEPTH_MAX}");
        let expression = self.level(0);
        self.depth -= 1;
        expression
    }

    fn level(&mut self, level: usize) -> anyhow::Result<Expression> {
        const LEVELS: [&[(&str, Operator)]; 5] = [
            &[("or", Operator::Or)],
            &[("and", Operator::And), ("unless", Operator::Unless)],
            &[
                (">", Operator::Greater),
                (">=", Operator::GreaterOrEqual),
                ("<", Operator::Less),
                ("<=", Operator::LessOrEqual),
                ("==", Operator::Equal),
                ("!=", Operator::NotEqual),
            ],
            &[("+", Operator::Add), ("-", Operator::Subtract)],
            &[("*", Operator::Multiply), ("/", Operator::Divide)],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unit() };
        let mut left = self.level(level + 1)?;
        while let Some(&(_, operator)) = operators.iter().find(|(sign, _)| *sign == self.peek()) {
            self.at += 1;
            let right = Box::new(self.level(level + 1)?);
            left = Expression::Two { left: Box::new(left), operator, right };
        }
        Ok(left)
    }

    fn unit(&mut self) -> anyhow::Result<Expression> {
        if self.take("(") {
            let inner = self.joined()?;
            self.expect(")")?;
            return Ok(inner);
        }
        let word = self.next()?;
        if word.starts_with(|letter: char| letter.is_ascii_digit()) {
            return Ok(Expression::Number(word.parse().with_context(|| word.clone())?));
        }
        match word.as_str() {
            "sum" => self.aggregate(Aggregate::Sum),
            "max" => self.aggregate(Aggregate::Max),
            "min" => self.aggregate(Aggregate::Min),
            "count" => self.aggregate(Aggregate::Count),
            "rate" => self.growth(true),
            "increase" => self.growth(false),
            "time" => {
                self.expect("(")?;
                self.expect(")")?;
                Ok(Expression::Now)
            }
            "histogram_quantile" => {
                self.expect("(")?;
                let quantile = self.next()?.parse().context("a quantile is a number")?;
                self.expect(",")?;
                let of = Box::new(self.joined()?);
                self.expect(")")?;
                Ok(Expression::Quantile { quantile, of })
            }
            _ => Ok(Expression::Select(self.selector(word)?)),
        }
    }

    fn aggregate(&mut self, how: Aggregate) -> anyhow::Result<Expression> {
        let mut by = self.by()?;
        self.expect("(")?;
        let of = Box::new(self.joined()?);
        self.expect(")")?;
        if by.is_empty() {
            by = self.by()?;
        }
        Ok(Expression::Aggregate { how, by, of })
    }

    fn by(&mut self) -> anyhow::Result<Vec<String>> {
        let mut labels = Vec::new();
        if self.take("by") {
            self.expect("(")?;
            while !self.take(")") {
                labels.push(self.next()?);
                self.take(",");
            }
        }
        Ok(labels)
    }

    fn growth(&mut self, a_second: bool) -> anyhow::Result<Expression> {
        self.expect("(")?;
        let name = self.next()?;
        let of = self.selector(name)?;
        self.expect("[")?;
        let within_ms = duration_ms(&self.next()?)?;
        self.expect("]")?;
        self.expect(")")?;
        Ok(Expression::Growth { of, within_ms, a_second })
    }

    fn selector(&mut self, name: String) -> anyhow::Result<Selector> {
        let starts = |letter: char| letter.is_ascii_alphabetic() || letter == '_';
        ensure!(name.starts_with(starts), "{name:?} is no name");
        ensure!(self.peek() != "(", "the function {name} is not known");
        let mut labels = Vec::new();
        if self.take("{") {
            while !self.take("}") {
                let label = self.next()?;
                let sign = self.next()?;
                let text = self.next()?;
                let text = text.strip_prefix('"').context("a label's value is quoted")?;
                let (must_be, values) = match sign.as_str() {
                    "=" => (true, vec![text.to_owned()]),
                    "!=" => (false, vec![text.to_owned()]),
                    "=~" => (true, alternatives(text)?),
                    "!~" => (false, alternatives(text)?),
                    _ => bail!("{sign:?} compares no labels"),
                };
                labels.push((label, must_be, values));
                self.take(",");
            }
        }
        Ok(Selector { name, labels })
    }
}

/// Of regular expressions, words between bars alone.
fn alternatives(text: &str) -> anyhow::Result<Vec<String>> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "_-|".contains(letter);
    ensure!(text.chars().all(plain), "{text:?} is more than words between bars");
    Ok(text.split('|').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_bind_closer_than_comparisons_and_those_closer_than_and() {
        let read = Expression::parse("a + b * 2 > 3 and c == 0").unwrap();
        let Expression::Two { left, operator: Operator::And, right } = read else {
            panic!("{read:?}")
        };
        assert!(matches!(*right, Expression::Two { operator: Operator::Equal, .. }));
        let Expression::Two { left, operator: Operator::Greater, .. } = *left else {
            panic!("no comparison")
        };
        let Expression::Two { operator: Operator::Add, right, .. } = *left else {
            panic!("no sum")
        };
        assert!(matches!(*right, Expression::Two { operator: Operator::Multiply, .. }));
    }

    #[test]
    fn labels_stand_before_or_behind_what_is_added_up() {
        let before = Expression::parse("sum by (le, instance) (rate(x_bucket[5m]))").unwrap();
        assert_eq!(
            before,
            Expression::parse("sum(rate(x_bucket[300s])) by (le,instance)").unwrap()
        );
        assert_eq!(before.families(), ["x_bucket"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "",
            "a >",
            "(a",
            "a)",
            "a b",
            "rate(a)",
            "rate(a[5])",
            "deriv(a[5m])",
            "a{b=c}",
            "a{b=\"c}",
            "a{b=~\".*\"}",
            "a @ 5",
            "histogram_quantile(a, b)",
            "rate(a[5d])",
            "1m",
            "time",
            "time(a)",
        ] {
            assert!(Expression::parse(text).is_err(), "{text}");
        }
        let nested = |depth: usize| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
        assert!(Expression::parse(&nested(DEPTH_MAX - 1)).is_ok());
        assert!(Expression::parse(&nested(DEPTH_MAX)).is_err());
    }

    #[test]
    fn durations_have_a_unit_and_a_limit() {
        assert_eq!(duration_ms("90s").unwrap(), 90_000);
        assert_eq!(duration_ms("250ms").unwrap(), 250);
        assert_eq!(duration_ms("2h").unwrap(), 7_200_000);
        assert!(duration_ms("5").is_err() && duration_ms("m").is_err());
        assert!(duration_ms("18446744073709551615h").is_err());
    }
}

//! What an expression comes to, over what the metrics were.

use std::collections::BTreeMap;

use super::{
    expression::{Aggregate, Expression, Operator, Selector},
    history::{History, Labels, Series},
};

/// What an expression comes to.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(f64),
    Vector(Vec<(Labels, f64)>),
}

/// Whether an alert with this expression holds: it comes to a vector that is not empty.
pub(super) fn holds(expression: &Expression, history: &History, now_ms: u64) -> bool {
    matches!(value(expression, history, now_ms), Value::Vector(vector) if !vector.is_empty())
}

fn value(expression: &Expression, history: &History, now_ms: u64) -> Value {
    let vector = |of: &Expression| match value(of, history, now_ms) {
        Value::Number(number) => vec![(Labels::new(), number)],
        Value::Vector(vector) => vector,
    };
    match expression {
        Expression::Number(number) => Value::Number(*number),
        Expression::Now => Value::Number(history.epoch_s(now_ms)),
        Expression::Select(of) => Value::Vector(select(of, history, Series::latest)),
        Expression::Growth { of, within_ms, a_second } => {
            Value::Vector(select(of, history, |series| {
                let (grown, seconds) = series.growth(now_ms, *within_ms)?;
                Some(if *a_second { grown / seconds } else { grown })
            }))
        }
        Expression::Aggregate { how, by, of } => Value::Vector(aggregate(*how, by, vector(of))),
        Expression::Quantile { quantile, of } => Value::Vector(quantiles(*quantile, vector(of))),
        Expression::Two { left, operator, right } => {
            let (left, right) = (value(left, history, now_ms), value(right, history, now_ms));
            two(left, *operator, right)
        }
    }
}

fn select(
    of: &Selector,
    history: &History,
    value: impl Fn(&Series) -> Option<f64>,
) -> Vec<(Labels, f64)> {
    let fits = |labels: &Labels| {
        of.labels.iter().all(|(label, must_be, values)| {
            let is = labels.get(label).map_or("", String::as_str);
            values.iter().any(|value| value == is) == *must_be
        })
    };
    let series = history.named(&of.name).filter(|(labels, _)| fits(labels));
    series.filter_map(|(labels, series)| Some((labels.clone(), value(series)?))).collect()
}

fn aggregate(how: Aggregate, by: &[String], vector: Vec<(Labels, f64)>) -> Vec<(Labels, f64)> {
    let mut together: BTreeMap<Labels, Vec<f64>> = BTreeMap::new();
    for (mut labels, value) in vector {
        labels.retain(|label, _| by.contains(label));
        together.entry(labels).or_default().push(value);
    }
    let one = |values: Vec<f64>| match how {
        Aggregate::Sum => values.iter().sum(),
        Aggregate::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
        Aggregate::Min => values.into_iter().fold(f64::INFINITY, f64::min),
        Aggregate::Count => values.len() as f64,
    };
    together.into_iter().map(|(labels, values)| (labels, one(values))).collect()
}

/// Of each histogram, from its buckets; between two bounds the values are taken to lie evenly.
fn quantiles(quantile: f64, buckets: Vec<(Labels, f64)>) -> Vec<(Labels, f64)> {
    let mut histograms: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    for (mut labels, count) in buckets {
        let bound =
            labels.remove("le").and_then(|bound| bound.trim_start_matches('+').parse().ok());
        if let Some(bound) = bound {
            histograms.entry(labels).or_default().push((bound, count));
        }
    }
    let of = |mut buckets: Vec<(f64, f64)>| -> Option<f64> {
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let all = buckets.last()?.1;
        let wanted = quantile * all;
        let at = buckets.iter().position(|(_, count)| all > 0.0 && *count >= wanted)?;
        let (bound, count) = buckets[at];
        let (lower, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        // Beyond the last bound nothing is known but that.
        let share = if count > below { (wanted - below) / (count - below) } else { 1.0 };
        Some(if bound.is_infinite() { lower } else { lower + (bound - lower) * share })
    };
    histograms.into_iter().filter_map(|(labels, buckets)| Some((labels, of(buckets)?))).collect()
}

fn two(left: Value, operator: Operator, right: Value) -> Value {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => {
            Value::Number(computed(left, operator, right).unwrap_or(0.0))
        }
        (Value::Vector(left), Value::Number(right)) => Value::Vector(
            left.into_iter()
                .filter_map(|(labels, left)| Some((labels, computed(left, operator, right)?)))
                .collect(),
        ),
        (Value::Number(left), Value::Vector(right)) => Value::Vector(
            right
                .into_iter()
                .filter_map(|(labels, right)| {
                    let computed = computed(left, operator, right)?;
                    // A comparison keeps the value of the series.
                    Some((labels, if is_comparison(operator) { right } else { computed }))
                })
                .collect(),
        ),
        (Value::Vector(left), Value::Vector(right)) => {
            Value::Vector(vectors(left, operator, right))
        }
    }
}

fn vectors(
    left: Vec<(Labels, f64)>,
    operator: Operator,
    right: Vec<(Labels, f64)>,
) -> Vec<(Labels, f64)> {
    let of = |vector: &[(Labels, f64)], labels: &Labels| {
        vector.iter().find(|(known, _)| known == labels).map(|(_, value)| *value)
    };
    match operator {
        Operator::And => {
            left.into_iter().filter(|(known, _)| of(&right, known).is_some()).collect()
        }
        Operator::Unless => {
            left.into_iter().filter(|(known, _)| of(&right, known).is_none()).collect()
        }
        Operator::Or => {
            let more: Vec<_> =
                right.into_iter().filter(|(known, _)| of(&left, known).is_none()).collect();
            [left, more].concat()
        }
        _ => left
            .into_iter()
            .filter_map(|(labels, left)| {
                let computed = computed(left, operator, of(&right, &labels)?)?;
                Some((labels, computed))
            })
            .collect(),
    }
}

fn is_comparison(operator: Operator) -> bool {
    use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
    matches!(operator, Greater | GreaterOrEqual | Less | LessOrEqual | Equal | NotEqual)
}

/// A comparison that holds keeps the left value; one that does not has none.
fn computed(left: f64, operator: Operator, right: f64) -> Option<f64> {
    let kept = |holds: bool| holds.then_some(left);
    match operator {
        Operator::Greater => kept(left > right),
        Operator::GreaterOrEqual => kept(left >= right),
        Operator::Less => kept(left < right),
        Operator::LessOrEqual => kept(left <= right),
        // As Prometheus compares: exactly.
        Operator::Equal => kept(left.partial_cmp(&right).is_some_and(std::cmp::Ordering::is_eq)),
        Operator::NotEqual => {
            kept(!left.partial_cmp(&right).is_some_and(std::cmp::Ordering::is_eq))
        }
        Operator::Add => Some(left + right),
        Operator::Subtract => Some(left - right),
        Operator::Multiply => Some(left * right),
        Operator::Divide => Some(left / right),
        Operator::And | Operator::Or | Operator::Unless => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` and so on of two instances, a minute of them.
    fn history(families: &[&str], text: impl Fn(u64, u64) -> String) -> History {
        let mut history =
            History::of(families.iter().map(|name| (*name).to_owned()).collect(), 1_000_000.0);
        for second in 0..=60 {
            for instance in 1..=2 {
                history.take(&instance.to_string(), second * 1_000, &text(instance, second));
            }
        }
        history
    }

    fn is(history: &History, text: &str) -> bool {
        holds(&Expression::parse(text).unwrap(), history, 60_000)
    }

    #[test]
    fn values_are_selected_added_up_and_compared() {
        let history = history(&["a", "b"], |instance, second| {
            format!("a{{x=\"1\"}} {instance}\na{{x=\"2\"}} 10\nb {}\n", second * instance)
        });
        for (text, wanted) in [
            ("a > 10", false),
            ("a >= 10", true),
            ("a{x=\"1\"} > 2", false),
            ("a{x=\"1\"} == 2", true),
            ("a{x!=\"1\"} < 10", false),
            ("a{x=~\"1|3\"} >= 10", false),
            ("sum(a) == 23", true),
            ("max(a{x=\"1\"}) == 2 and min(a) == 1", true),
            ("sum by (instance) (a) == 12", true),
            ("sum by (instance) (a) == 23", false),
            ("count(a) == 4", true),
            ("rate(b[1m]) == 2", true),
            ("rate(b[1m]) > 2", false),
            ("sum(rate(b[30s])) == 3", true),
            ("increase(b[10s]) == 20", true),
            ("max(a) / 2 + 1 == 6", true),
            ("sum(a) == 23 unless sum(b) > 0", false),
            ("sum(a) == 1 or sum(b) > 0", true),
            ("min(a) - time() < 0", true),
            ("time() - min(a) > 1000060", false),
            ("time() - min(a) >= 1000059", true),
            ("nothing == 0", false),
            ("sum(nothing) == 0", false),
        ] {
            assert_eq!(is(&history, text), wanted, "{text}");
        }
    }

    #[test]
    fn a_quantile_lies_between_the_bounds_of_its_bucket() {
        let history = history(&["t_bucket"], |instance, second| {
            // Of ten a second at the first, one takes longer than 0.1 s; at the second all do.
            let fast = if instance == 1 { second * 9 } else { 0 };
            format!(
                "t_bucket{{le=\"0.1\"}} {fast}\nt_bucket{{le=\"0.5\"}} {0}\nt_bucket{{le=\"+Inf\"}} {0}\n",
                second * 10
            )
        });
        let quantile = |q: &str, bound: &str| {
            format!("histogram_quantile({q}, sum by (instance, le) (rate(t_bucket[1m]))) {bound}")
        };
        assert!(is(&history, &quantile("0.5", "< 0.1")) && is(&history, &quantile("0.5", "> 0.1")));
        assert!(
            !is(&history, &quantile("0.99", "< 0.4")) && is(&history, &quantile("0.99", "> 0.4"))
        );
        assert!(!is(&history, &quantile("0.99", "> 0.5")));
        // Nothing was measured: there is no quantile.
        let none = super::super::history::History::of(vec!["t_bucket".to_owned()], 0.0);
        assert!(!is(&none, &quantile("0.99", "> 0")));
    }
}

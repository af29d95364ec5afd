//! The alert rules as they are shipped: name, expression, how long it must hold, severity.

use anyhow::{Context as _, ensure};

use super::expression::Expression;

/// The very file that Prometheus reads.
const SHIPPED: &str = include_str!("../../../../deploy/prometheus/alerts.yml");

/// One alert.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) alert: String,
    pub(super) expression: Expression,
    /// It fires once the expression has held for so long.
    pub(super) for_ms: u64,
    /// `page` or `ticket`; empty where the rule has none.
    pub(super) severity: String,
}

/// Those of this version.
pub(super) fn shipped() -> Vec<Rule> {
    read(SHIPPED).expect("a test holds that every shipped rule can be read")
}

/// Reads the rules of a file: one key a line, as ours has them, and no more of YAML than that.
/// # Errors
/// A rule has no expression, or one that is not understood.
pub(super) fn read(text: &str) -> anyhow::Result<Vec<Rule>> {
    let mut rules = Vec::new();
    let mut lines = text.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some(alert) = line.strip_prefix("- alert:") else { continue };
        let alert = alert.trim().to_owned();
        let (mut expression, mut for_ms, mut severity) = (None, 0, String::new());
        while let Some(line) = lines.next_if(|line| !line.starts_with("- ")) {
            if let Some(text) = line.strip_prefix("expr:") {
                let read = Expression::parse(text.trim());
                expression = Some(read.with_context(|| format!("the expression of {alert}"))?);
            } else if let Some(text) = line.strip_prefix("for:") {
                for_ms = super::expression::duration_ms(text.trim())?;
            } else if let Some((_, text)) = line.split_once("severity:") {
                let word = |letter: char| !letter.is_ascii_alphanumeric();
                severity = text.trim().split(word).next().unwrap_or_default().to_owned();
            }
        }
        let expression = expression.with_context(|| format!("{alert} has no expression"))?;
        ensure!(!alert.is_empty(), "an alert has no name");
        rules.push(Rule { alert, expression, for_ms, severity });
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_rule_is_understood() {
        let rules = shipped();
        assert_eq!(rules.len(), SHIPPED.matches("- alert:").count());
        assert!(rules.len() >= 10, "{} rules", rules.len());
        for rule in rules {
            assert!(["page", "ticket"].contains(&rule.severity.as_str()), "{rule:?}");
            let families = rule.expression.families();
            assert!(!families.is_empty(), "{rule:?}");
            assert!(families.iter().all(|name| name.starts_with("holdfast_")), "{rule:?}");
        }
    }

    /// `promtool test rules` runs them; here it is seen that there are any.
    #[test]
    fn every_shipped_rule_has_a_test_in_which_it_fires_and_one_in_which_it_is_silent() {
        let tests = include_str!("../../../../deploy/prometheus/alerts_test.yml");
        for rule in shipped() {
            let named = format!("alertname: {}\n", rule.alert);
            let expected: Vec<&str> = tests
                .split(&named)
                .skip(1)
                .filter_map(|rest| rest.trim_start().lines().next())
                .collect();
            for wanted in ["exp_alerts:", "exp_alerts: []"] {
                assert!(expected.contains(&wanted), "{}: {wanted} is in no test", rule.alert);
            }
        }
    }

    #[test]
    fn a_rule_without_an_expression_or_with_one_that_is_not_understood_is_refused() {
        assert!(read("- alert: A\n  for: 1m\n").is_err());
        assert!(read("- alert: A\n  expr: up >\n").is_err());
        assert!(read("- alert: A\n  expr: up > 1\n  for: soon\n").is_err());
        assert_eq!(read("groups:\n- name: nothing\n").unwrap(), []);
    }
}

//! Shard rules as the log keeps them: a text with an epoch. What the text says is not the machine's business.

use crate::{Rejection, Timestamp, limit};

use super::Books;

/// Rules as they were put into force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RulesVersion {
    /// From 1, one more with each change.
    pub epoch: u64,
    /// The rules, as their file has them.
    pub text: String,
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why, for people.
    pub reason: String,
}

impl Books {
    /// Whether `text` may follow the rules of epoch `expected`; `Ok(false)`: exactly that happened already.
    pub(crate) fn may_set_rules(
        &self,
        text: &str,
        expected: u64,
        by: &str,
    ) -> Result<bool, Rejection> {
        let bytes = text.len();
        if bytes == 0 || bytes > limit::RULES_BYTES_MAX {
            return Err(Rejection::OutOfRange {
                what: "the text of the shard rules, in bytes,",
                measured: bytes as u64,
                allowed: format!("1 to {}", limit::RULES_BYTES_MAX),
                remedy: "Name ranges of slots instead of single ones",
            });
        }
        let epoch = self.epoch();
        if let Some(now) = self.rules_now()
            && now.epoch == expected.saturating_add(1)
            && now.text == text
            && now.by == by
        {
            return Ok(false);
        }
        if epoch != expected {
            return Err(Rejection::RulesChanged { epoch, expected });
        }
        Ok(true)
    }

    /// Puts `version` into force; the oldest beyond the bound is forgotten.
    pub(crate) fn set_rules(&mut self, version: RulesVersion) {
        self.rules.push_back(version.into());
        while self.rules.len() > limit::RULES_KEPT_MAX {
            self.rules.pop_front();
        }
    }
}

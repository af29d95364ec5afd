//! What a check found: one value a check, the same for people and for scripts.

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Not looked at: what it needs was not named or does not answer.
    Skipped,
    /// It works, and will hurt one day.
    Warning,
    /// It does not work, or money is at risk.
    Failed,
}

impl State {
    /// For people and for JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// One check and its result.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// `area.subject`, stable for scripts.
    pub(crate) check: &'static str,
    /// What was looked at: a path, a node, a data source; empty where there is just one.
    pub(crate) subject: String,
    pub(crate) state: State,
    /// What was found, with its numbers; the cause where it is not well.
    pub(crate) found: String,
    /// What to do about it; empty where all is well.
    pub(crate) remedy: &'static str,
}

impl Finding {
    /// A check whose result is `state` with a remedy that is told only when it is needed.
    pub(crate) fn new(
        check: &'static str,
        subject: impl Into<String>,
        state: State,
        found: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        let well = state == State::Ok;
        Self {
            check,
            subject: subject.into(),
            state,
            found: found.into(),
            remedy: if well { "" } else { remedy },
        }
    }

    /// Of one Raft group, where there are several.
    pub(crate) fn about_group(mut self, group: u32, groups: u32) -> Self {
        if groups > 1 {
            let subject = format!("group {group} {}", self.subject);
            subject.trim_end().clone_into(&mut self.subject);
        }
        self
    }

    /// For a document.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "check": self.check,
            "subject": self.subject,
            "status": self.state.as_str(),
            "found": self.found,
            "remedy": self.remedy,
        })
    }
}

/// `Ok` where `sound`, otherwise `otherwise`.
pub(crate) fn state(sound: bool, otherwise: State) -> State {
    if sound { State::Ok } else { otherwise }
}

/// That it is not well, and says why and what to do.
#[cfg(test)]
pub(super) fn assert_told(finding: &Finding) {
    assert!(finding.state > State::Skipped, "{finding:?}");
    assert!(!finding.found.is_empty() && !finding.remedy.is_empty(), "{finding:?}");
}

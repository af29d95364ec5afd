//! What is wrong with a rules file: where, what, and what to do.

use std::fmt;

/// One mistake in a rules file. Shown as `HF3002 line 7, column 3: unknown key "shrad" in [[group.account.slots]]. Did you mean "shard"?`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMistake {
    /// The page that explains it: `docs/reference/errors/<code>.md`.
    pub code: &'static str,
    /// The line that it stands in, counted from 1.
    pub line: usize,
    /// The character of the line at which it begins, counted from 1.
    pub column: usize,
    /// What is wrong, with its subject and numbers.
    pub cause: String,
    /// What to write instead.
    pub remedy: String,
}

impl RuleMistake {
    /// The mistake with the name of its file: `HF3002 shards.toml:7:3: unknown key ...`.
    #[must_use]
    pub fn in_file(&self, file: &str) -> String {
        let Self { code, line, column, cause, remedy } = self;
        format!("{code} {file}:{line}:{column}: {cause}. {remedy}")
    }
}

impl fmt::Display for RuleMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, line, column, cause, remedy } = self;
        write!(f, "{code} line {line}, column {column}: {cause}. {remedy}")
    }
}

impl std::error::Error for RuleMistake {}

/// All mistakes of one file as one error, a line each, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMistakes {
    /// The file, as its reader knows it.
    pub file: String,
    /// At least one.
    pub mistakes: Vec<RuleMistake>,
}

impl fmt::Display for RuleMistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", mistake.in_file(&self.file))?;
        }
        Ok(())
    }
}

impl std::error::Error for RuleMistakes {}

//! Kinds of statement by their leading words, also of those that the grammar at hand does not know.

use crate::template::{Lexer, Token, TokenKind};

/// What a statement is, as far as a session must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but white space or comments.
    Empty,
    /// SELECT, VALUES, and WITH that only reads.
    Read,
    /// INSERT, UPDATE, DELETE, and WITH that writes.
    Write,
    /// BEGIN or START TRANSACTION.
    Begin,
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT, of the whole.
    Rollback,
    /// SAVEPOINT, with its name as written.
    Savepoint(String),
    /// RELEASE, with its name.
    Release(String),
    /// ROLLBACK TO, with its name.
    RollbackTo(String),
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
    /// SET, with the name of the setting in lower case, and whether it is LOCAL.
    Set {
        /// In lower case; `transaction`, `session characteristics`, `role`, `time zone`, ... for the forms with words of their own.
        name: String,
        /// SET LOCAL: until the end of the transaction.
        local: bool,
    },
    /// RESET, with the name in lower case; `all` is one.
    Reset(String),
    /// SHOW, with the rest in lower case.
    Show(String),
    /// DISCARD.
    Discard(Discarded),
    /// PREPARE by SQL, with the name.
    Prepare(String),
    /// EXECUTE by SQL, with the name.
    Execute(String),
    /// DEALLOCATE, with the name; `None` is ALL.
    Deallocate(Option<String>),
    /// DECLARE ... CURSOR; FETCH, MOVE and CLOSE follow it.
    Declare {
        /// WITH HOLD: outlives its transaction.
        hold: bool,
    },
    /// FETCH, MOVE or CLOSE of a cursor.
    Cursor,
    /// COPY, with its direction.
    Copy(CopyDirection),
    /// LISTEN.
    Listen,
    /// UNLISTEN.
    Unlisten,
    /// NOTIFY.
    Notify,
    /// LOCK TABLE.
    Lock,
    /// EXPLAIN of PostgreSQL.
    Explain,
    /// `EXPLAIN (ROUTE) ...`: how a statement would be routed; [`explained`] gives it.
    ExplainRoute,
    /// CREATE, ALTER, DROP, GRANT, TRUNCATE, VACUUM, ...: with its first word in lower case.
    Utility(String),
}

/// What DISCARD discards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// Everything of the session.
    All,
    /// Cached plans.
    Plans,
    /// Cached values of sequences.
    Sequences,
    /// Temporary tables.
    Temporary,
}

/// Which way COPY goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyDirection {
    /// From the client into a table.
    In,
    /// From a table or a query to the client.
    Out,
}

/// The kind of `text` by its words. `None` for SELECT, INSERT, UPDATE, DELETE, WITH, VALUES and what begins with a parenthesis.
pub(super) fn kind(text: &str) -> Option<Kind> {
    const QUERIES: [&str; 9] =
        ["select", "insert", "update", "delete", "with", "values", "(", "table", "merge"];
    let first = Lexer::of_template(text).next().ok().flatten();
    let first = first.map_or("", |token| &text[token.place]);
    if QUERIES.iter().any(|query| first.eq_ignore_ascii_case(query)) {
        return None;
    }
    let words = Words::of(text);
    let name = |at: usize| words.raw(at).unwrap_or_default().to_owned();
    let kind = match words.get(0) {
        "" => Kind::Empty,
        "begin" => Kind::Begin,
        "start" if words.get(1) == "transaction" => Kind::Begin,
        "commit" | "rollback" if words.get(1) == "prepared" => Kind::TwoPhase,
        "prepare" if words.get(1) == "transaction" => Kind::TwoPhase,
        "commit" | "end" => Kind::Commit,
        "rollback" | "abort" => words.rollback(),
        "savepoint" => Kind::Savepoint(name(1)),
        "release" => Kind::Release(name(if words.get(1) == "savepoint" { 2 } else { 1 })),
        "set" => words.set(),
        "reset" => Kind::Reset(words.get(1).to_owned()),
        "show" => Kind::Show(words.rest(1)),
        "discard" => Kind::Discard(match words.get(1) {
            "plans" => Discarded::Plans,
            "sequences" => Discarded::Sequences,
            "temp" | "temporary" => Discarded::Temporary,
            _ => Discarded::All,
        }),
        "prepare" => Kind::Prepare(name(1)),
        "execute" => Kind::Execute(name(1)),
        "deallocate" => {
            let at = if words.get(1) == "prepare" { 2 } else { 1 };
            Kind::Deallocate((words.get(at) != "all").then(|| name(at)))
        }
        "declare" => Kind::Declare { hold: words.holds("with", "hold") },
        "fetch" | "move" | "close" => Kind::Cursor,
        "copy" => Kind::Copy(Words::all_of(text).copy()),
        "listen" => Kind::Listen,
        "unlisten" => Kind::Unlisten,
        "notify" => Kind::Notify,
        "lock" => Kind::Lock,
        "explain" => words.explain(),
        first => Kind::Utility(first.to_owned()),
    };
    Some(kind)
}

/// The statement behind `EXPLAIN (ROUTE)`, if `sql` is one.
#[must_use]
pub fn explained(sql: &str) -> Option<&str> {
    let words = Words::of(sql);
    let start = words.tokens.get(4)?.place.start;
    (words.get(0) == "explain" && words.explain() == Kind::ExplainRoute).then(|| &sql[start..])
}

/// Words of a text, in lower case.
pub(super) struct Words<'t> {
    text: &'t str,
    tokens: Vec<Token>,
    lower: Vec<String>,
}

impl<'t> Words<'t> {
    const MAX: usize = 64;

    /// As many as tell what most statements are.
    pub(super) fn of(text: &'t str) -> Self {
        Self::first(text, Self::MAX)
    }

    /// All: a COPY may name many columns before it says which way it goes.
    pub(super) fn all_of(text: &'t str) -> Self {
        Self::first(text, usize::MAX)
    }

    fn first(text: &'t str, count: usize) -> Self {
        let mut lexer = Lexer::of_template(text);
        let mut tokens = Vec::new();
        while tokens.len() < count {
            match lexer.next() {
                Ok(Some(token)) => tokens.push(token),
                Ok(None) | Err(_) => break,
            }
        }
        let lower = tokens.iter().map(|token| text[token.place.clone()].to_ascii_lowercase());
        let lower = lower.collect();
        Self { text, tokens, lower }
    }

    pub(super) fn get(&self, at: usize) -> &str {
        self.lower.get(at).map_or("", String::as_str)
    }

    /// As written; a quoted name without its quotes.
    fn raw(&self, at: usize) -> Option<&str> {
        let token = self.tokens.get(at)?;
        let piece = &self.text[token.place.clone()];
        if token.kind == TokenKind::QuotedName {
            return Some(piece.trim_matches('"'));
        }
        Some(self.get(at))
    }

    /// The text of the words from `from` on, before `until`. `None` where there are none.
    pub(super) fn between(&self, from: usize, until: usize) -> Option<&'t str> {
        let last = self.tokens.get(from..until)?.last()?;
        Some(&self.text[self.tokens[from].place.start..last.place.end])
    }

    /// The text from a word on, to its end.
    pub(super) fn from(&self, from: usize) -> Option<&'t str> {
        Some(&self.text[self.tokens.get(from)?.place.start..])
    }

    /// The text between the parenthesis at `open` and its other half.
    pub(super) fn within(&self, open: usize) -> Option<&'t str> {
        let mut depth = 0_usize;
        for (at, word) in self.lower.iter().enumerate().skip(open) {
            match word.as_str() {
                "(" => depth += 1,
                ")" if depth == 1 => return self.between(open + 1, at),
                ")" => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        None
    }

    fn rest(&self, from: usize) -> String {
        self.lower.get(from..).unwrap_or_default().join(" ")
    }

    fn holds(&self, first: &str, second: &str) -> bool {
        self.lower.windows(2).any(|pair| pair[0] == first && pair[1] == second)
    }

    fn rollback(&self) -> Kind {
        let at = if matches!(self.get(1), "work" | "transaction") { 2 } else { 1 };
        if self.get(at) != "to" {
            return Kind::Rollback;
        }
        let at = if self.get(at + 1) == "savepoint" { at + 2 } else { at + 1 };
        Kind::RollbackTo(self.raw(at).unwrap_or_default().to_owned())
    }

    fn set(&self) -> Kind {
        let local = self.get(1) == "local";
        let at = if local || (self.get(1) == "session" && self.get(2) != "characteristics") {
            2
        } else {
            1
        };
        let name = match (self.get(at), self.get(at + 1)) {
            ("time", "zone") => "timezone".to_owned(),
            ("session", "characteristics") => "session characteristics".to_owned(),
            // A setting of an extension has a dot in its name.
            (first, ".") => format!("{first}.{}", self.get(at + 2)),
            (first, _) => first.trim_matches('"').to_owned(),
        };
        Kind::Set { name, local }
    }

    fn copy(&self) -> CopyDirection {
        let mut depth = 0_usize;
        for word in &self.lower {
            match word.as_str() {
                "(" => depth += 1,
                ")" => depth = depth.saturating_sub(1),
                "from" if depth == 0 => return CopyDirection::In,
                "to" if depth == 0 => return CopyDirection::Out,
                _ => {}
            }
        }
        CopyDirection::Out
    }

    fn explain(&self) -> Kind {
        if self.get(1) == "(" && self.get(2) == "route" && self.get(3) == ")" {
            return Kind::ExplainRoute;
        }
        Kind::Explain
    }
}

/// The same statement with the row locks that the parser knows: `FOR NO KEY UPDATE` and `FOR KEY SHARE` lock the same rows as `FOR UPDATE` and
/// `FOR SHARE`, only less, which is nothing to where they go. For reading alone: a server is sent the client's own words. `None`: it has none.
pub(super) fn plain_locks(template: &str) -> Option<String> {
    let mut lexer = Lexer::of_template(template);
    let mut before: Vec<Token> = Vec::new();
    let mut plain = String::with_capacity(template.len());
    let mut copied = 0;
    while let Ok(Some(token)) = lexer.next() {
        before.push(token);
        let ends_with = |words: &[&str]| {
            let from = before.len().checked_sub(words.len());
            from.is_some_and(|from| {
                before[from..].iter().zip(words).all(|(token, word)| {
                    token.kind == TokenKind::Word
                        && template[token.place.clone()].eq_ignore_ascii_case(word)
                })
            })
        };
        let dropped = if ends_with(&["for", "no", "key", "update"]) {
            2
        } else if ends_with(&["for", "key", "share"]) {
            1
        } else {
            0
        };
        if dropped > 0 {
            let strength = before.len() - 1;
            plain.push_str(&template[copied..before[strength - dropped].place.start]);
            copied = before[strength].place.start;
        }
    }
    plain.push_str(&template[copied..]);
    (copied > 0).then_some(plain)
}

//! What kind of statement a text is, by its leading words: what the router answers itself, what ties a session to its server, what
//! sets a setting. Everything else is for the mind, or for the only source.

use crate::tokens::{Token, Tokens};

/// What the router itself must know of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing but blanks and comments.
    Empty,
    /// Opens a transaction: waits until the first statement says where.
    Begin,
    Commit,
    Rollback,
    /// The next transaction begins at once, alike.
    CommitAndChain,
    RollbackAndChain,
    /// Savepoints and what the transaction is like: waits with `BEGIN` where there is no server yet.
    InTransaction,
    /// Sets a setting for the transaction; waits like the others.
    SetLocal,
    /// Sets these settings for the session.
    Set(Vec<String>),
    ResetAll,
    DiscardAll,
    DeallocateAll,
    Deallocate(String),
    /// `SHOW HOLDFAST <word>`.
    Show(String),
    /// `EXPLAIN (ROUTE) <statement>`; the statement's place in the text.
    ExplainRoute(usize),
    /// `SELECT holdfast.locate('<group>', '<key>')`.
    Locate(String, String),
    /// Ties the session to its server until it ends.
    Pin(&'static str),
    /// Not possible behind a router that shares its server connections; says why.
    Impossible(&'static str),
    /// More than one statement in one query; the settings that they touch, what ties the session, if one does, and whether they leave a
    /// transaction open that one of them has begun.
    Several {
        touches: Vec<String>,
        pins: Option<&'static str>,
        opens: bool,
    },
    /// Everything else.
    Statement,
}

/// What `sql` is. Costs a look at its first words, and a walk through it only where it holds a semicolon in its midst.
pub(crate) fn classify(sql: &str) -> Act {
    let trimmed = sql.trim_end_matches(|c: char| c == ';' || c.is_ascii_whitespace());
    if memchr::memchr(b';', trimmed.as_bytes()).is_none() {
        return one(trimmed);
    }
    let mut parts = split(trimmed).into_iter().filter(|part| one(part) != Act::Empty);
    match (parts.next(), parts.next()) {
        (None, _) => Act::Empty,
        (Some(part), None) => match one(part) {
            // Its place is told from the start of the whole text.
            Act::ExplainRoute(at) => {
                let offset = part.as_ptr() as usize - sql.as_ptr() as usize;
                Act::ExplainRoute(offset + at)
            }
            act => act,
        },
        (Some(first), Some(second)) => several([first, second].into_iter().chain(parts)),
    }
}

fn several<'s>(parts: impl Iterator<Item = &'s str>) -> Act {
    let (mut touches, mut pins, mut opens) = (Vec::new(), None, false);
    for part in parts {
        match one(part) {
            Act::Begin => opens = true,
            Act::Commit | Act::Rollback => opens = false,
            Act::Set(names) => touches.extend(names),
            Act::Pin(why) => pins = Some(why),
            Act::Impossible(why) => return Act::Impossible(why),
            Act::Show(_) | Act::ExplainRoute(_) | Act::Locate(..) => {
                return Act::Impossible(
                    "a statement of the router's own stands alone in its query",
                );
            }
            // They reach beyond one server's view, so the session keeps that server.
            Act::ResetAll | Act::DiscardAll | Act::DeallocateAll | Act::Deallocate(_) => {
                pins = Some("statements about the session, together with others in one query");
            }
            Act::Empty
            | Act::CommitAndChain
            | Act::RollbackAndChain
            | Act::InTransaction
            | Act::SetLocal
            | Act::Several { .. }
            | Act::Statement => {}
        }
    }
    Act::Several { touches, pins, opens }
}

/// The statements of a text, without the semicolons between them.
pub(crate) fn split(sql: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut tokens = Tokens::new(sql);
    let mut from = 0;
    while let Some(token) = tokens.next() {
        if token == Token::Sign(b';') {
            parts.push(&sql[from..tokens.at - 1]);
            from = tokens.at;
        }
    }
    parts.push(&sql[from..]);
    parts
}

/// What one statement is.
fn one(sql: &str) -> Act {
    let mut tokens = Tokens::new(sql);
    let Some(first) = tokens.next() else { return Act::Empty };
    let Token::Word(word) = first else { return by_functions(sql) };
    // The words that data statements begin with are looked at first: they are nearly all there are.
    match word.len() {
        3 if first.is("set") => set(tokens),
        3 if first.is("end") => commit(&tokens),
        4 if first.is("show") => show(tokens),
        4 if first.is("load") => Act::Pin("LOAD"),
        5 if first.is("begin") => Act::Begin,
        5 if first.is("start") => Act::Begin,
        5 if first.is("abort") => rollback(tokens),
        5 if first.is("reset") => reset(tokens),
        6 if first.is("select") => locate(tokens).unwrap_or_else(|| by_functions(sql)),
        6 if first.is("commit") => commit(&tokens),
        6 if first.is("listen") => Act::Pin("LISTEN"),
        6 if first.is("create") => create(sql, tokens),
        7 if first.is("prepare") => match tokens.next() {
            Some(next) if next.is("transaction") => {
                Act::Impossible("PREPARE TRANSACTION is the router's own means of committing")
            }
            _ => Act::Pin("PREPARE"),
        },
        7 if first.is("discard") => match tokens.next() {
            Some(next) if next.is("all") => Act::DiscardAll,
            _ => Act::Statement,
        },
        7 if first.is("explain") => explain(sql, tokens),
        7 if first.is("declare") => match with_hold(tokens) {
            true => Act::Pin("DECLARE ... WITH HOLD"),
            false => Act::Statement,
        },
        7 if first.is("release") => Act::InTransaction,
        8 if first.is("rollback") => rollback(tokens),
        9 if first.is("savepoint") => Act::InTransaction,
        10 if first.is("deallocate") => deallocate(tokens),
        _ => by_functions(sql),
    }
}

/// Functions that leave something behind in the session. Their names hold an underscore, so texts without one cost one look.
fn by_functions(sql: &str) -> Act {
    let bytes = sql.as_bytes();
    let follows = |at: usize, word: &str| {
        let rest = bytes.get(at..at + word.len());
        rest.is_some_and(|rest| rest.eq_ignore_ascii_case(word.as_bytes()))
    };
    for at in memchr::memchr_iter(b'_', bytes) {
        if follows(at, "_config") && at >= 3 && follows(at - 3, "set_") {
            return Act::Pin("set_config()");
        }
        if follows(at, "_advisory_lock") || follows(at, "_try_advisory_lock") {
            return Act::Pin("a session's advisory lock");
        }
    }
    // SELECT ... INTO TEMP makes a table that only its server knows. A text without the word costs one look.
    let mut temps = memchr::memchr2_iter(b'm', b'M', bytes);
    if temps.any(|at| at >= 2 && follows(at - 2, "temp")) && is_into_temporary(sql) {
        return Act::Pin("a temporary table");
    }
    Act::Statement
}

/// Whether an INTO in it names a temporary table (PostgreSQL, SELECT INTO; its grammar takes LOCAL and GLOBAL before the word).
fn is_into_temporary(sql: &str) -> bool {
    let mut tokens = Tokens::new(sql);
    while tokens.any(|token| token.is("into")) {
        let mut behind = tokens.clone().skip_while(|next| next.is("local") || next.is("global"));
        if behind.next().is_some_and(|next| next.is("temp") || next.is("temporary")) {
            return true;
        }
    }
    false
}

fn set(mut tokens: Tokens<'_>) -> Act {
    let Some(mut word) = tokens.next() else { return Act::Statement };
    if word.is("local") {
        return Act::SetLocal;
    }
    if word.is("transaction") || word.is("constraints") {
        return Act::InTransaction;
    }
    if word.is("session") {
        let Some(next) = tokens.next() else { return Act::Statement };
        if next.is("authorization") {
            return Act::Impossible(
                "SET SESSION AUTHORIZATION would change who the shared connection is",
            );
        }
        if next.is("characteristics") {
            let names = ["isolation", "read_only", "deferrable"];
            return Act::Set(names.map(|name| format!("default_transaction_{name}")).to_vec());
        }
        word = next;
    }
    if word.is("time") {
        return Act::Set(vec!["timezone".to_owned()]);
    }
    if word.is("names") {
        return Act::Set(vec!["client_encoding".to_owned()]);
    }
    if word.is("schema") {
        return Act::Set(vec!["search_path".to_owned()]);
    }
    setting(word, tokens).map_or(Act::Statement, |name| Act::Set(vec![name]))
}

/// A name that may have parts: `myapp.user`.
fn setting(first: Token<'_>, mut tokens: Tokens<'_>) -> Option<String> {
    let mut name = first.name()?;
    while let Some(Token::Sign(b'.')) = tokens.next() {
        name.push('.');
        name.push_str(&tokens.next()?.name()?);
    }
    if name == "session_authorization" { None } else { Some(name) }
}

fn reset(mut tokens: Tokens<'_>) -> Act {
    let Some(word) = tokens.next() else { return Act::Statement };
    if word.is("all") {
        return Act::ResetAll;
    }
    if word.is("session") {
        return Act::Impossible(
            "RESET SESSION AUTHORIZATION would change who the shared connection is",
        );
    }
    if word.is("time") {
        return Act::Set(vec!["timezone".to_owned()]);
    }
    setting(word, tokens).map_or(Act::Statement, |name| Act::Set(vec![name]))
}

fn prepared(tokens: &Tokens<'_>) -> bool {
    tokens.clone().next().is_some_and(|next| next.is("prepared"))
}

fn commit(tokens: &Tokens<'_>) -> Act {
    match prepared(tokens) {
        true => Act::Impossible("COMMIT PREPARED is the router's own means of committing"),
        false if chains(tokens.clone()) => Act::CommitAndChain,
        false => Act::Commit,
    }
}

fn rollback(tokens: Tokens<'_>) -> Act {
    if prepared(&tokens) {
        return Act::Impossible("ROLLBACK PREPARED is the router's own means of committing");
    }
    let to = tokens.clone().take(2).any(|token| token.is("to"));
    match to {
        true => Act::InTransaction,
        false if chains(tokens) => Act::RollbackAndChain,
        false => Act::Rollback,
    }
}

/// `AND CHAIN`, and not `AND NO CHAIN`.
fn chains(mut tokens: Tokens<'_>) -> bool {
    tokens.any(|token| token.is("and")) && tokens.next().is_some_and(|next| next.is("chain"))
}

fn show(mut tokens: Tokens<'_>) -> Act {
    match (tokens.next(), tokens.next()) {
        (Some(holdfast), Some(what)) if holdfast.is("holdfast") => {
            what.name().map_or(Act::Statement, Act::Show)
        }
        (Some(holdfast), None) if holdfast.is("holdfast") => Act::Show(String::new()),
        _ => Act::Statement,
    }
}

fn create(sql: &str, mut tokens: Tokens<'_>) -> Act {
    let mut next = tokens.next();
    if next.is_some_and(|word| word.is("local") || word.is("global")) {
        next = tokens.next();
    }
    match next {
        Some(word) if word.is("temp") || word.is("temporary") => Act::Pin("a temporary table"),
        // CREATE OR REPLACE TEMP VIEW.
        Some(word)
            if word.is("or")
                && tokens.nth(1).is_some_and(|w| w.is("temp") || w.is("temporary")) =>
        {
            Act::Pin("a temporary view")
        }
        _ => by_functions(sql),
    }
}

fn with_hold(tokens: Tokens<'_>) -> bool {
    let mut before_with = false;
    for token in tokens.take_while(|token| !token.is("for")) {
        if before_with && token.is("hold") {
            return true;
        }
        before_with = token.is("with");
    }
    false
}

/// `holdfast.locate('<group>', '<key>')` and nothing else.
fn locate(mut tokens: Tokens<'_>) -> Option<Act> {
    let text = |token: Token<'_>| match token {
        Token::Value(text) if !text.starts_with('$') => Some(text.replace("''", "'")),
        _ => None,
    };
    let sign = |token: Token<'_>, wanted: u8| (token == Token::Sign(wanted)).then_some(());
    tokens.next().filter(|token| token.is("holdfast"))?;
    sign(tokens.next()?, b'.')?;
    tokens.next().filter(|token| token.is("locate"))?;
    sign(tokens.next()?, b'(')?;
    let group = text(tokens.next()?)?;
    sign(tokens.next()?, b',')?;
    let key = text(tokens.next()?)?;
    sign(tokens.next()?, b')')?;
    tokens.next().is_none().then_some(Act::Locate(group, key))
}

fn explain(sql: &str, mut tokens: Tokens<'_>) -> Act {
    let route = [Token::Sign(b'('), Token::Word("route"), Token::Sign(b')')];
    for wanted in route {
        match (tokens.next(), wanted) {
            (Some(token), Token::Word(word)) if token.is(word) => {}
            (Some(token), wanted) if token == wanted => {}
            _ => return by_functions(sql),
        }
    }
    Act::ExplainRoute(tokens.at)
}

fn deallocate(mut tokens: Tokens<'_>) -> Act {
    let mut name = tokens.next();
    if name.is_some_and(|word| word.is("prepare")) {
        name = tokens.next();
    }
    match name {
        Some(word) if word.is("all") => Act::DeallocateAll,
        Some(word) => word.name().map_or(Act::Statement, Act::Deallocate),
        None => Act::Statement,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Act {
        Act::Set(vec![name.to_owned()])
    }

    #[test]
    fn leading_words_say_what_a_statement_is() {
        let cases: &[(&str, Act)] = &[
            ("", Act::Empty),
            (" ; -- nothing\n ; /* at /* all */ */", Act::Empty),
            ("SELECT 1", Act::Statement),
            ("/* hint */ begin isolation level serializable;", Act::Begin),
            ("START TRANSACTION", Act::Begin),
            ("END", Act::Commit),
            ("rollback", Act::Rollback),
            ("COMMIT AND CHAIN", Act::CommitAndChain),
            ("end work and /* x */ chain;", Act::CommitAndChain),
            ("ABORT AND CHAIN", Act::RollbackAndChain),
            ("rollback transaction and chain", Act::RollbackAndChain),
            ("COMMIT AND NO CHAIN", Act::Commit),
            ("ROLLBACK AND NO CHAIN", Act::Rollback),
            ("ROLLBACK WORK TO SAVEPOINT a", Act::InTransaction),
            ("rollback to a", Act::InTransaction),
            ("savepoint a", Act::InTransaction),
            ("set local x = 1", Act::SetLocal),
            ("SET x TO 1", named("x")),
            ("set session \"X\".y = 'a;b'", named("X.y")),
            ("SET TIME ZONE 'UTC'", named("timezone")),
            ("reset all", Act::ResetAll),
            ("RESET search_path", named("search_path")),
            ("discard all", Act::DiscardAll),
            ("deallocate prepare s1", Act::Deallocate("s1".to_owned())),
            ("DEALLOCATE ALL", Act::DeallocateAll),
            ("show holdfast pools", Act::Show("pools".to_owned())),
            ("show search_path", Act::Statement),
            ("explain (route) select 1", Act::ExplainRoute(15)),
            ("explain select 1", Act::Statement),
            (
                "select holdfast.locate('account', 'A''1');",
                Act::Locate("account".to_owned(), "A'1".to_owned()),
            ),
            ("select holdfast.locate('account', $1)", Act::Statement),
            ("listen a", Act::Pin("LISTEN")),
            ("prepare s as select 1", Act::Pin("PREPARE")),
            ("declare c cursor with hold for select 1", Act::Pin("DECLARE ... WITH HOLD")),
            ("declare c cursor for select 'with hold'", Act::Statement),
            ("create temp table t()", Act::Pin("a temporary table")),
            ("select 1 into temp t", Act::Pin("a temporary table")),
            ("select 1 INTO Temporary t", Act::Pin("a temporary table")),
            ("select 1 into local temp t", Act::Pin("a temporary table")),
            (
                "with a as (insert into b values (1) returning c) select c into temp t from a",
                Act::Pin("a temporary table"),
            ),
            ("insert into temperatures select 'into temp'", Act::Statement),
            ("select set_config('a','b',false)", Act::Pin("set_config()")),
            ("select pg_advisory_lock(1)", Act::Pin("a session's advisory lock")),
            ("SELECT PG_TRY_ADVISORY_LOCK(1)", Act::Pin("a session's advisory lock")),
            ("select pg_advisory_xact_lock(1)", Act::Statement),
            ("select pg_advisory_unlock_all()", Act::Statement),
        ];
        for (sql, act) in cases {
            assert_eq!(classify(sql), *act, "{sql}");
        }
        assert!(matches!(classify("commit prepared 'x'"), Act::Impossible(_)));
        assert!(matches!(classify("set session authorization x"), Act::Impossible(_)));
    }

    #[test]
    fn several_statements_are_told_from_semicolons_inside_of_one() {
        for one in [
            "select ';'",
            "select $$;$$",
            "select $a$ $b$ ; $a$",
            "select \";\" -- ;",
            "select e'\\';'",
        ] {
            assert_eq!(classify(one), Act::Statement, "{one}");
        }
        let touches = vec!["x".to_owned()];
        let several = Act::Several { touches, pins: None, opens: false };
        assert_eq!(classify("select 1; set x = 1"), several);
        for (sql, left_open) in [
            ("begin; select 1", true),
            ("begin; select 1; commit", false),
            ("select 1; rollback; start transaction", true),
            ("begin; savepoint a; rollback to a", true),
        ] {
            assert!(matches!(classify(sql), Act::Several { opens, .. } if opens == left_open));
        }
        assert_eq!(split("a;b ;'c;'"), ["a", "b ", "'c;'"]);
    }

    #[test]
    fn broken_text_is_walked_through_to_its_end() {
        for text in ["'", "\"", "/*", "$a$", "$", "e'\\", "-", "\u{7f}\u{80}é", "/*/", "$é$x"] {
            let _tokens: Vec<_> = Tokens::new(text).collect();
            let _act = classify(text);
            let _act = classify(&format!("{text};{text}"));
        }
    }
}

//! Divides the text of an INSERT into its rows, so that each source is sent its own.

use crate::template::Lexer;

/// An INSERT in pieces of the client's own text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InsertText<'t> {
    /// Up to the first row.
    pub(crate) before: &'t str,
    /// `(...)` each.
    pub(crate) rows: Vec<&'t str>,
    /// Behind the last row.
    pub(crate) behind: &'t str,
}

/// The pieces of `sql`, if it has exactly `count` rows behind its only outermost VALUES.
pub(crate) fn rows(sql: &str, count: usize) -> Option<InsertText<'_>> {
    let mut lexer = Lexer::new(sql);
    let mut depth = 0_usize;
    let mut listing = false;
    let mut start = 0;
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut end = sql.len();
    while let Some(token) = lexer.next().ok()? {
        let piece = &sql[token.place.clone()];
        match piece {
            "(" => {
                if depth == 0 && listing {
                    start = token.place.start;
                }
                depth += 1;
            }
            ")" => {
                depth = depth.checked_sub(1)?;
                if depth == 0 && listing {
                    found.push((start, token.place.end));
                }
            }
            "," if depth == 0 && listing => {}
            ";" if depth == 0 => {
                end = token.place.start;
                break;
            }
            _ if depth == 0 && piece.eq_ignore_ascii_case("values") => {
                if listing || !found.is_empty() {
                    return None;
                }
                listing = true;
            }
            // The first word behind the rows: ON CONFLICT, RETURNING.
            _ if depth == 0 => listing = listing && found.is_empty(),
            _ => {}
        }
    }
    let (first, last) = (found.first()?.0, found.last()?.1);
    (found.len() == count).then(|| InsertText {
        before: &sql[..first],
        rows: found.iter().map(|(start, end)| &sql[*start..*end]).collect(),
        behind: &sql[last..end],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_apart() {
        let sql = "insert into t (k, v) values (1, f(')')), ($1, (2)) on conflict (k) do nothing;";
        let text = rows(sql, 2).unwrap();
        assert_eq!(text.before, "insert into t (k, v) values ");
        assert_eq!(text.rows, ["(1, f(')'))", "($1, (2))"]);
        assert_eq!(text.behind, " on conflict (k) do nothing");
        assert_eq!(rows(sql, 3), None);
    }
}

//! Asks one PostgreSQL, or the router in its place, and keeps the answer byte by byte.

use std::{error::Error, time::Duration};

use bytes::BytesMut;
use futures::{SinkExt as _, TryStreamExt as _};
use tokio::time::timeout;
use tokio_postgres::{
    Client, SimpleQueryMessage, Statement,
    types::{Format, FromSql, IsNull, ToSql, Type, to_sql_checked},
};

use super::{copy::Copied, value::Bound};

/// For one answer, on a machine that is busy with other things. Nothing that is drawn waits for anybody.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// In place of an SQLSTATE.
const SILENT: &str = "silent";

pub(super) type Row = Vec<Option<Vec<u8>>>;

/// Columns, rows, and the number in the command tag.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Names, and types where the protocol tells them.
    pub(super) columns: Vec<(String, u32)>,
    pub(super) rows: Vec<Row>,
    pub(super) affected: u64,
}

/// An error as a driver sees it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) sqlstate: String,
    pub(super) message: String,
}

impl Failed {
    /// The router's own code, if the router refused.
    pub(super) fn refused(&self) -> Option<&str> {
        let code = self.message.split(' ').next()?;
        // The others are errors that PostgreSQL has as well, whoever says them.
        let refused = code.starts_with("HF31") || matches!(code, "HF3210" | "HF3211");
        (code.len() == 6 && refused).then_some(code)
    }

    /// Whether the other side failed in the same way. Silence is like nothing: whoever hangs does not do what PostgreSQL does.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.sqlstate == other.sqlstate && self.sqlstate != SILENT
    }
}

/// An answer, unless it takes so long that there will be none.
async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        let message = format!("no answer within {limit:?}");
        Err(Failed { sqlstate: SILENT.to_owned(), message })
    })
}

impl From<tokio_postgres::Error> for Failed {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(told) => {
                Self { sqlstate: told.code().code().to_owned(), message: told.message().to_owned() }
            }
            None => Self { sqlstate: "no answer".to_owned(), message: format!("{error:?}") },
        }
    }
}

/// A simple query.
pub(super) async fn simple(client: &Client, sql: &str) -> Result<Answer, Failed> {
    let mut answer = Answer::default();
    for message in in_time(ANSWER_MAX, async { Ok(client.simple_query(sql).await?) }).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                answer.columns =
                    columns.iter().map(|column| (column.name().to_owned(), 0)).collect();
            }
            SimpleQueryMessage::Row(row) => {
                let cell = |at| row.get(at).map(|text| text.as_bytes().to_vec());
                answer.rows.push((0..row.len()).map(cell).collect());
            }
            SimpleQueryMessage::CommandComplete(affected) => answer.affected = affected,
            _ => {}
        }
    }
    Ok(answer)
}

/// Prepares a statement under a name.
pub(super) async fn prepare(
    client: &Client,
    sql: &str,
    parameters: &[Bound],
) -> Result<Statement, Failed> {
    let types: Vec<Type> = parameters
        .iter()
        .map(|value| {
            let oid = if value.declared { value.oid } else { 0 };
            Type::from_oid(oid).unwrap_or(Type::UNKNOWN)
        })
        .collect();
    in_time(ANSWER_MAX, async { Ok(client.prepare_typed(sql, &types).await?) }).await
}

/// Executes it once.
pub(super) async fn execute(
    client: &Client,
    statement: &Statement,
    parameters: &[Bound],
) -> Result<Answer, Failed> {
    in_time(ANSWER_MAX, rows_of(client, statement, parameters)).await
}

async fn rows_of(
    client: &Client,
    statement: &Statement,
    parameters: &[Bound],
) -> Result<Answer, Failed> {
    let stream =
        client.query_raw(statement, parameters.iter().map(|value| value as &(dyn ToSql + Sync)));
    let mut stream = Box::pin(stream.await?);
    let column = |column: &tokio_postgres::Column| (column.name().to_owned(), column.type_().oid());
    let mut answer =
        Answer { columns: statement.columns().iter().map(column).collect(), ..Answer::default() };
    while let Some(row) = stream.try_next().await? {
        let cells = (0..row.len()).map(|at| row.get::<_, Option<Bytes>>(at).map(|bytes| bytes.0));
        answer.rows.push(cells.collect());
    }
    answer.affected = stream.rows_affected().unwrap_or(0);
    Ok(answer)
}

/// A COPY, with the rows that the client says or hears. Lines that are said to the client stand for rows of one column.
pub(super) async fn copy(client: &Client, sql: &str, copied: &Copied) -> Result<Answer, Failed> {
    in_time(ANSWER_MAX, copied_of(client, sql, copied)).await
}

async fn copied_of(client: &Client, sql: &str, copied: &Copied) -> Result<Answer, Failed> {
    let mut answer = Answer::default();
    match copied {
        Copied::In { rows, gives_up } => {
            let sink = client.copy_in::<_, bytes::Bytes>(sql).await?;
            let mut sink = std::pin::pin!(sink);
            // It may have failed already; the end says how. A sink that is dropped says that the client failed.
            let _told_at_the_end = sink.send(bytes::Bytes::copy_from_slice(rows.as_bytes())).await;
            if !gives_up {
                answer.affected = sink.finish().await?;
            }
        }
        Copied::Out { header } => {
            let stream = client.copy_out(sql).await?;
            let lines: Vec<bytes::Bytes> = stream.try_collect().await?;
            let mut lines = lines.into_iter().map(|line| line.to_vec());
            if *header && let Some(first) = lines.next() {
                answer.columns.push((String::from_utf8_lossy(&first).into_owned(), 0));
            }
            answer.rows = lines.map(|line| vec![Some(line)]).collect();
        }
    }
    Ok(answer)
}

/// How two answers differ. Without an order of its own, rows may come in any.
pub(super) fn differs(one: &Answer, other: &Answer, ordered: bool) -> Option<String> {
    if one.columns != other.columns {
        return Some(format!("one has columns {:?}, the router {:?}", one.columns, other.columns));
    }
    let (mut left, mut right) = (one.rows.clone(), other.rows.clone());
    if !ordered {
        left.sort();
        right.sort();
    }
    if left != right {
        let from = left.iter().zip(&right).take_while(|(left, right)| left == right).count();
        let (left, right) = (shown(&left, from), shown(&right, from));
        return Some(format!("one has {left}, the router {right}"));
    }
    let (one, other) = (one.affected, other.affected);
    (one != other).then(|| format!("one says {one} rows, the router {other}"))
}

/// How many rows, and some from the first one that differs.
fn shown(rows: &[Row], from: usize) -> String {
    let text = |cell: &Option<Vec<u8>>| {
        cell.as_ref().map_or("NULL".to_owned(), |cell| String::from_utf8_lossy(cell).into_owned())
    };
    let shown: Vec<_> = rows
        .iter()
        .skip(from)
        .take(4)
        .map(|row| row.iter().map(text).collect::<Vec<_>>().join("|"))
        .collect();
    format!("{} rows, from number {from} on {shown:?}", rows.len())
}

impl ToSql for Bound {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match &self.bytes {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                out.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        if self.as_text { Format::Text } else { Format::Binary }
    }

    to_sql_checked!();
}

/// A cell's bytes as they are.
struct Bytes(Vec<u8>);

impl<'a> FromSql<'a> for Bytes {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.to_vec()))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_does_not_answer_has_failed_like_nobody_else() {
        let at_once = in_time(Duration::ZERO, async { Ok(7) }).await;
        assert_eq!(at_once, Ok(7));
        let never = std::future::pending::<Result<(), Failed>>();
        let silent = in_time(Duration::from_millis(5), never).await.expect_err("it never answers");
        assert_eq!(silent.message, "no answer within 5ms");
        assert!(!silent.is_like(&silent) && silent.refused().is_none());
        let told = Failed { sqlstate: "23505".to_owned(), message: "there already".to_owned() };
        assert!(told.is_like(&told) && !told.is_like(&silent));
    }
}

//! Carries a statement out twice: by plan over the shards, and on the one database.

use std::error::Error;

use bytes::BytesMut;
use futures::TryStreamExt as _;
use holdfast_route::{
    Format, Parameter, Refused, Shape, SourceIndex, Tag, Target, Template, Values,
    merge::{Field, Fields, Merger, Outcome},
};
use tokio_postgres::{
    Client, SimpleQueryMessage,
    types::{FromSql, IsNull, ToSql, Type},
};

use super::{statement::Drawn, world::World};

/// What came of one statement.
#[derive(Debug)]
pub(super) enum Carried {
    Same { scattered: bool },
    BothFailed,
    Refused(Refused),
    Differs(String),
}

type Row = Vec<Option<Vec<u8>>>;

/// Rows and the number in the command tag.
#[derive(Debug, Default)]
struct Answer {
    fields: Vec<(u32, Format)>,
    rows: Vec<Row>,
    affected: u64,
}

const MEMORY: usize = 16 << 20;

pub(super) async fn carry(
    world: &World,
    clients: &[Client],
    drawn: &Drawn,
) -> anyhow::Result<Carried> {
    let planned = plan(world, drawn);
    let plan = match planned {
        Err(refused) => return Ok(Carried::Refused(refused)),
        Ok(plan) => plan,
    };
    let all: Vec<u16> = (0..u16::try_from(drawn.parameters.len())?).collect();
    let parts: Vec<(usize, String, Vec<u16>)> = match &plan.target {
        Target::Any => vec![(1, drawn.sql.clone(), all)],
        Target::One(SourceIndex(at)) => vec![(1 + usize::from(*at), drawn.sql.clone(), all)],
        Target::Several(parts) => parts
            .iter()
            .map(|part| {
                let (sql, parameters) = match &part.rewritten {
                    None => (drawn.sql.clone(), all.clone()),
                    Some(rewritten) => (rewritten.sql.clone(), rewritten.parameters.clone()),
                };
                (1 + usize::from(part.source.0), sql, parameters)
            })
            .collect(),
    };
    let scattered = plan.is_scattered();
    let one = ask(&clients[0], &drawn.sql, drawn, None).await;
    for (at, _, _) in &parts {
        clients[*at].batch_execute("BEGIN").await?;
    }
    let mut answers = Vec::new();
    let mut failed: Option<String> = None;
    for (at, sql, parameters) in &parts {
        match ask(&clients[*at], sql, drawn, Some(parameters)).await {
            Ok(answer) => answers.push(answer),
            Err(error) => failed = Some(format!("{error:?}")),
        }
    }
    let merged = match (&failed, scattered) {
        (Some(_), _) => None,
        (None, false) => Some(Ok(answers.pop().unwrap_or_default())),
        (None, true) => Some(merge(&plan, &answers)),
    };
    let commit = matches!(merged, Some(Ok(_)));
    for (at, _, _) in &parts {
        clients[*at].batch_execute(if commit { "COMMIT" } else { "ROLLBACK" }).await?;
    }
    match (one, merged) {
        (Err(_), None) => Ok(Carried::BothFailed),
        (Ok(_), Some(Err(refused))) if plan.access != holdfast_route::Access::Write => {
            Ok(Carried::Refused(refused))
        }
        (Err(error), Some(Ok(_))) => {
            Ok(Carried::Differs(format!("one database failed: {error:?}")))
        }
        (Ok(_), None) => Ok(Carried::Differs(format!("the shards failed: {failed:?}"))),
        (Ok(one), Some(Ok(answer))) => Ok(match differs(&one, &answer, drawn.ordered) {
            None => Carried::Same { scattered },
            Some(how) => Carried::Differs(format!("{how}\n  plan {plan:?}")),
        }),
        (_, Some(Err(refused))) => {
            Ok(Carried::Differs(format!("refused after a write: {refused}")))
        }
    }
}

fn plan(world: &World, drawn: &Drawn) -> Result<holdfast_route::Plan, Refused> {
    let template = Template::of(&drawn.sql)?;
    let shape = Shape::read(template.text(), &world.rules)?;
    let parameters: Vec<Parameter<'_>> = drawn
        .parameters
        .iter()
        .map(|value| Parameter {
            oid: if value.declared { value.oid } else { 0 },
            format: Format::Binary,
            value: value.bytes.as_deref(),
        })
        .collect();
    let values = Values { sql: &drawn.sql, literals: template.literals(), parameters: &parameters };
    shape.plan(&world.rules, &values)
}

/// Asks one database: by a simple query if there are no parameters and the statement says so, by an extended one otherwise.
async fn ask(
    client: &Client,
    sql: &str,
    drawn: &Drawn,
    kept: Option<&[u16]>,
) -> Result<Answer, tokio_postgres::Error> {
    if drawn.simple {
        return simple(client, sql).await;
    }
    let all: Vec<u16> =
        (0..drawn.parameters.len()).filter_map(|at| u16::try_from(at).ok()).collect();
    let kept: Vec<_> =
        kept.unwrap_or(&all).iter().map(|at| &drawn.parameters[usize::from(*at)]).collect();
    let types: Vec<Type> = kept
        .iter()
        .map(|value| {
            let oid = if value.declared { value.oid } else { 0 };
            Type::from_oid(oid).unwrap_or(Type::UNKNOWN)
        })
        .collect();
    let statement = client.prepare_typed(sql, &types).await?;
    let raw: Vec<Raw> = kept.iter().map(|value| Raw(value.bytes.clone())).collect();
    let bound: Vec<&(dyn ToSql + Sync)> = raw.iter().map(|value| value as _).collect();
    let stream = client.query_raw(&statement, bound).await?;
    let mut stream = Box::pin(stream);
    let mut answer = Answer {
        fields: statement
            .columns()
            .iter()
            .map(|column| (column.type_().oid(), Format::Binary))
            .collect(),
        ..Answer::default()
    };
    while let Some(row) = stream.try_next().await? {
        let cells = (0..row.len()).map(|at| row.get::<_, Option<Bytes>>(at).map(|bytes| bytes.0));
        answer.rows.push(cells.collect());
    }
    answer.affected = stream.rows_affected().unwrap_or(0);
    Ok(answer)
}

async fn simple(client: &Client, sql: &str) -> Result<Answer, tokio_postgres::Error> {
    let described = client.prepare(sql).await?;
    let mut answer = Answer {
        fields: described
            .columns()
            .iter()
            .map(|column| (column.type_().oid(), Format::Text))
            .collect(),
        ..Answer::default()
    };
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::Row(row) => {
                let cells =
                    (0..row.len()).map(|at| row.get(at).map(|text| text.as_bytes().to_vec()));
                answer.rows.push(cells.collect());
            }
            SimpleQueryMessage::CommandComplete(affected) => answer.affected = affected,
            _ => {}
        }
    }
    Ok(answer)
}

fn merge(plan: &holdfast_route::Plan, answers: &[Answer]) -> Result<Answer, Refused> {
    let fields = |answer: &Answer| {
        Fields(
            answer
                .fields
                .iter()
                .map(|(oid, format)| Field {
                    name: b"x".to_vec(),
                    origin: [0; 6],
                    type_oid: *oid,
                    type_details: [0xff; 6],
                    format: *format,
                })
                .collect(),
        )
    };
    let Some(first) = answers.first() else { return Ok(Answer::default()) };
    let mut merger = Merger::new(plan.merge.clone(), fields(first), answers.len(), MEMORY)?;
    for answer in answers {
        merger.agrees(&fields(answer))?;
    }
    let mut next = vec![0; answers.len()];
    let mut merged = Answer::default();
    loop {
        match merger.next()? {
            Outcome::Done => break,
            Outcome::Row(body) => merged.rows.push(decode(&body)),
            Outcome::Wants(part) => match answers[part].rows.get(next[part]) {
                None => merger.end(part),
                Some(row) => {
                    next[part] += 1;
                    merger.push(part, &encode(row))?;
                }
            },
        }
    }
    merged.affected = match plan.tag {
        Tag::Same => first.affected,
        Tag::Sum if merged.rows.is_empty() || plan.access == holdfast_route::Access::Write => {
            answers.iter().map(|answer| answer.affected).sum()
        }
        Tag::Sum => merged.rows.len() as u64,
    };
    if plan.access != holdfast_route::Access::Write {
        merged.affected = merged.rows.len() as u64;
    }
    if plan.tag == Tag::Same {
        merged.rows = first.rows.clone();
    }
    Ok(merged)
}

fn differs(one: &Answer, other: &Answer, ordered: bool) -> Option<String> {
    let (mut left, mut right) = (one.rows.clone(), other.rows.clone());
    if !ordered {
        left.sort();
        right.sort();
    }
    if left != right {
        let shown = |rows: &[Row]| {
            let text = |cell: &Option<Vec<u8>>| {
                cell.as_ref()
                    .map_or("NULL".to_owned(), |cell| String::from_utf8_lossy(cell).into_owned())
            };
            rows.iter()
                .take(6)
                .map(|row| row.iter().map(text).collect::<Vec<_>>().join("|"))
                .collect::<Vec<_>>()
        };
        return Some(format!(
            "{} rows {:?}, and {} rows {:?}",
            left.len(),
            shown(&left),
            right.len(),
            shown(&right)
        ));
    }
    (one.affected != other.affected)
        .then(|| format!("{} rows affected, and {}", one.affected, other.affected))
}

fn encode(row: &Row) -> Vec<u8> {
    let mut body = u16::try_from(row.len()).unwrap_or(0).to_be_bytes().to_vec();
    for cell in row {
        match cell {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(cell) => {
                body.extend(u32::try_from(cell.len()).unwrap_or(0).to_be_bytes());
                body.extend(cell);
            }
        }
    }
    body
}

fn decode(body: &[u8]) -> Row {
    let mut row = Vec::new();
    let mut at = 2;
    while let Some(length) = body.get(at..at + 4) {
        let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
        at += 4;
        let cell = usize::try_from(length).ok().map(|length| body[at..at + length].to_vec());
        at += cell.as_ref().map_or(0, Vec::len);
        row.push(cell);
    }
    row
}

/// A parameter's bytes as they are.
#[derive(Debug, Clone)]
struct Raw(Option<Vec<u8>>);

impl ToSql for Raw {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match &self.0 {
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

    tokio_postgres::types::to_sql_checked!();
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

//! A world: tables, rules and data.

use std::{fmt::Write as _, sync::Arc};

use anyhow::{Context as _, anyhow};
use holdfast_route::Topology;
use rand::{Rng as _, rngs::StdRng};
use tokio_postgres::Client;

use super::SHARDS;

/// Tables that join the group, with their key's column.
pub(super) const SHARDED: [(&str, &str); 3] = [("t1", "k"), ("t2", "k"), ("t3", "owner")];

/// What keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    Integer,
    Text,
    Varchar,
    Char,
    Uuid,
}

/// A schema, its rules, and how keys look in it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) kind: KeyKind,
    pub(super) rules: Arc<Topology>,
    schema: String,
}

impl KeyKind {
    fn column(self) -> &'static str {
        match self {
            Self::Integer => "bigint",
            Self::Text => "text",
            Self::Varchar => "varchar(12)",
            Self::Char => "char(12)",
            Self::Uuid => "uuid",
        }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Integer => "integer",
            Self::Text => "text",
            Self::Varchar => "varchar",
            Self::Char => "char",
            Self::Uuid => "uuid",
        }
    }
}

impl World {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        use KeyKind::{Char, Integer, Text, Uuid, Varchar};
        let kind = [Integer, Integer, Text, Varchar, Char, Uuid][rng.random_range(0..6)];
        let function = match kind {
            Integer => ["mod", "pg_hash_int8", "crc32c"][rng.random_range(0..3)],
            Text | Varchar | Char | Uuid => ["crc32c", "pg_hash_text"][rng.random_range(0..2)],
        };
        let mut rules = format!(
            "[router]\ncollation = \"C\"\n[group.g]\nkey = \"k\"\ntype = \"{}\"\nfunction = \"{function}\"\nscatter = \"write\"\n",
            kind.rule()
        );
        let mut first = 0;
        while first < 1024 {
            let last = (first + rng.random_range(20..200)).min(1023);
            let shard = rng.random_range(0..SHARDS);
            writeln!(
                rules,
                "[[group.g.slots]]\nfirst = {first}\nlast = {last}\nshard = \"s{shard}\""
            )
            .expect("a String takes all");
            first = last + 1;
        }
        for (table, key) in SHARDED {
            writeln!(rules, "[table.{table}]\ngroup = \"g\"\nkey = \"{key}\"\ncolumns = [\"{key}\", \"n\", \"a\", \"b\", \"c\", \"d\"]")
                .expect("a String takes all");
        }
        rules.push_str("[table.r]\nreference = true\n[table.lone]\nsingle = \"p2\"\n");
        for shard in 0..SHARDS {
            writeln!(rules, "[shard.s{shard}]\nsource = \"p{shard}\"\n[source.p{shard}]\naddress = \"127.0.0.1:{}\"", 1000 + shard)
                .expect("a String takes all");
        }
        let mut schema = String::from("DROP SCHEMA public CASCADE; CREATE SCHEMA public;\n");
        for (table, key) in SHARDED {
            writeln!(
                schema,
                "CREATE TABLE {table} ({key} {} NOT NULL, n int NOT NULL, a int, b text, c numeric(10,2), d timestamp, PRIMARY KEY ({key}, n));",
                kind.column()
            )
            .expect("a String takes all");
        }
        schema.push_str("CREATE TABLE r (n int PRIMARY KEY, a int, b text);\nCREATE TABLE lone (n int PRIMARY KEY, a int, b text);\n");
        let rules = Topology::parse(&rules).expect("a world's rules are right");
        Self { kind, rules: Arc::new(rules), schema }
    }

    pub(super) async fn make(&self, clients: &[Client]) -> anyhow::Result<()> {
        for client in clients {
            client.batch_execute(&self.schema).await.context("making the schema")?;
        }
        Ok(())
    }

    /// The key's value number `number` as text.
    pub(super) fn key(&self, number: u32) -> String {
        match self.kind {
            KeyKind::Integer => (u64::from(number) * 37).to_string(),
            KeyKind::Text | KeyKind::Varchar | KeyKind::Char => match number % 3 {
                0 => format!("{number:05}"),
                1 => format!("k{number}"),
                _ => format!("z\u{fc}r {number}"),
            },
            KeyKind::Uuid => format!("{:08x}-0000-4000-8000-{:012x}", number * 7919, number),
        }
    }

    /// Compares all tables with those of the one database.
    pub(super) async fn compare(&self, clients: &[Client]) -> anyhow::Result<Option<String>> {
        let (one, shards) = clients.split_first().ok_or_else(|| anyhow!("no clients"))?;
        for (table, _) in SHARDED {
            let mut parts = Vec::new();
            for shard in shards {
                parts.extend(rows(shard, table).await?);
            }
            parts.sort();
            let whole = rows(one, table).await?;
            if parts != whole {
                return Ok(Some(format!(
                    "{table}: {} rows on the shards, {} on one",
                    parts.len(),
                    whole.len()
                )));
            }
        }
        let whole = rows(one, "r").await?;
        for shard in shards {
            if rows(shard, "r").await? != whole {
                return Ok(Some("r: a copy differs".to_owned()));
            }
        }
        let lone = shards.get(2).ok_or_else(|| anyhow!("no third shard"))?;
        Ok((rows(lone, "lone").await? != rows(one, "lone").await?)
            .then(|| "lone differs".to_owned()))
    }
}

/// All rows of a table as text, sorted.
async fn rows(client: &Client, table: &str) -> anyhow::Result<Vec<String>> {
    let rows = client.query(&format!("SELECT x::text FROM {table} x"), &[]).await?;
    let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    rows.sort();
    Ok(rows)
}

//! A world: tables, rules, and how keys look.

use std::{fmt::Write as _, sync::Arc};

use holdfast_route::Topology;
use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};

use super::SHARDS;

/// Tables that join the group, with their key's column.
pub(super) const SHARDED: [(&str, &str); 3] = [("t1", "k"), ("t2", "k"), ("t3", "owner")];
/// Of these, the one whose rows own values, in the column `p`, and the lookup's name.
pub(super) const OWNER: (&str, &str) = ("t2", "phone");

/// What keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyKind {
    Integer(Width),
    Text,
    Varchar,
    Char,
    Uuid,
    Date,
}

/// PostgreSQL's integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Small,
    Usual,
    Big,
}

/// A schema, its rules, and how keys look in it.
#[derive(Debug)]
pub(super) struct World {
    pub(super) kind: KeyKind,
    pub(super) rules: Arc<Topology>,
    /// Whether there is a lookup.
    pub(super) owns: bool,
    rules_text: String,
    schema: String,
    /// For each sharded table, its columns in their order.
    columns: Vec<Vec<&'static str>>,
    /// Whether there is a last one, `e`, that nobody names.
    unnamed: Vec<bool>,
}

impl KeyKind {
    fn draw(rng: &mut StdRng) -> Self {
        let widths = [Width::Small, Width::Usual, Width::Big];
        match rng.random_range(0..7) {
            0 | 1 => Self::Integer(widths[rng.random_range(0..3)]),
            2 => Self::Text,
            3 => Self::Varchar,
            4 => Self::Char,
            5 => Self::Date,
            _ => Self::Uuid,
        }
    }

    fn column(self) -> &'static str {
        match self {
            Self::Integer(Width::Small) => "smallint",
            Self::Integer(Width::Usual) => "int",
            Self::Integer(Width::Big) => "bigint",
            Self::Text => "text",
            Self::Varchar => "varchar(12)",
            Self::Char => "char(12)",
            Self::Uuid => "uuid",
            Self::Date => "date",
        }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Integer(_) => "integer",
            Self::Text => "text",
            Self::Varchar => "varchar",
            Self::Char => "char",
            Self::Uuid => "uuid",
            Self::Date => "date",
        }
    }

    /// The column's type.
    pub(super) fn oid(self) -> u32 {
        match self {
            Self::Integer(Width::Small) => 21,
            Self::Integer(Width::Usual) => 23,
            Self::Integer(Width::Big) => 20,
            Self::Text => 25,
            Self::Varchar => 1043,
            Self::Char => 1042,
            Self::Uuid => 2950,
            Self::Date => 1082,
        }
    }
}

impl World {
    pub(super) fn draw(rng: &mut StdRng) -> Self {
        let kind = KeyKind::draw(rng);
        let owns = rng.random_range(0..3) == 0;
        let mut schema = String::new();
        let mut columns = Vec::new();
        let mut unnamed = Vec::new();
        for (table, key) in SHARDED {
            let owns = owns && table == OWNER.0;
            let (text, order) = table_of(table, key, kind, owns, rng);
            schema.push_str(&text);
            columns.push(order);
            unnamed.push(text.contains(", e "));
        }
        schema.push_str("CREATE TABLE r (n int PRIMARY KEY, a int, b text);\nCREATE TABLE lone (n int PRIMARY KEY, a int, b text);\n");
        let mut rules_text = rules_of(kind, &columns, rng);
        if owns {
            let (table, lookup) = OWNER;
            rules_text += &format!("[lookup.{lookup}]\ntable = \"{table}\"\ncolumn = \"p\"\n");
        }
        let rules = Topology::parse(&rules_text).expect("a world's rules are right");
        Self { kind, rules: Arc::new(rules), owns, rules_text, schema, columns, unnamed }
    }

    /// What the single database has beside its tables: values of the lookup are unique at the end of each statement, as their entries are.
    pub(super) fn constraint(&self) -> String {
        let table = OWNER.0;
        match self.owns {
            true => format!("ALTER TABLE {table} ADD CONSTRAINT unique_p UNIQUE (p) DEFERRABLE"),
            false => String::new(),
        }
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    pub(super) fn rules_text(&self) -> &str {
        &self.rules_text
    }

    /// The columns of a sharded table in their order, but for those that an INSERT may leave out.
    pub(super) fn columns(&self, table: &str) -> &[&'static str] {
        let at = SHARDED.iter().position(|(name, _)| *name == table).expect("a sharded table");
        &self.columns[at]
    }

    /// All columns of a sharded table in their order.
    pub(super) fn all_columns(&self, table: &str) -> Vec<&'static str> {
        let at = SHARDED.iter().position(|(name, _)| *name == table).expect("a sharded table");
        let mut all = self.columns[at].clone();
        all.extend(self.unnamed[at].then_some("e"));
        all.extend((self.owns && table == OWNER.0).then_some("p"));
        all
    }

    /// The key's value number `number` as text.
    pub(super) fn key(&self, number: u32) -> String {
        key(self.kind, number)
    }
}

fn key(kind: KeyKind, number: u32) -> String {
    match kind {
        KeyKind::Integer(_) => (u64::from(number) * 37).to_string(),
        KeyKind::Text | KeyKind::Varchar | KeyKind::Char => match number % 4 {
            0 => format!("{number:05}"),
            1 => format!("k{number}"),
            2 => format!("o'{number} \\x"),
            _ => format!("z\u{fc}r {number}"),
        },
        KeyKind::Uuid => format!("{:08x}-0000-4000-8000-{:012x}", number * 7919, number),
        // Over some 80 years, so that days, months and years all tell keys apart.
        KeyKind::Date => {
            format!("{}-{:02}-{:02}", 1990 + number * 2, 1 + number * 7 % 12, 1 + number * 5 % 28)
        }
    }
}

/// A table with its columns in any order and of any of several types, and perhaps one that nobody names, and one of values that its rows own.
fn table_of(
    table: &str,
    key: &'static str,
    kind: KeyKind,
    owns: bool,
    rng: &mut StdRng,
) -> (String, Vec<&'static str>) {
    let mut pick = |of: &[&'static str]| of[rng.random_range(0..of.len())];
    let mut columns = vec![
        (key, format!("{} NOT NULL", kind.column())),
        ("n", "int NOT NULL".to_owned()),
        ("a", pick(&["int", "int", "bigint", "smallint"]).to_owned()),
        ("b", pick(&["text", "text", "varchar(20)", "text COLLATE \"C\""]).to_owned()),
        ("c", pick(&["numeric(10,2)", "numeric", "numeric(14,4)"]).to_owned()),
        ("d", pick(&["timestamp", "timestamp", "timestamptz", "date"]).to_owned()),
    ];
    let more = pick(&[
        "",
        "",
        "boolean DEFAULT true",
        "jsonb DEFAULT '{\"b\": 1}'",
        "double precision DEFAULT 0.1",
        "bytea DEFAULT '\\x00ff'",
        "int[] DEFAULT '{1,NULL}'",
        "interval DEFAULT '1 day 2 hours'",
        "time DEFAULT '10:11:12'",
        "text DEFAULT NULL",
    ]);
    columns.shuffle(rng);
    let order = columns.iter().map(|(name, _)| *name).collect();
    if !more.is_empty() {
        columns.push(("e", more.to_owned()));
    }
    if owns {
        columns.push(("p", "text".to_owned()));
    }
    let columns: Vec<String> =
        columns.into_iter().map(|(name, sort)| format!("{name} {sort}")).collect();
    let primary = if rng.random_bool(0.5) { format!("{key}, n") } else { format!("n, {key}") };
    let text = format!("CREATE TABLE {table} ({}, PRIMARY KEY ({primary}));\n", columns.join(", "));
    (text, order)
}

/// All keys there are, a few to each item.
fn list(kind: KeyKind) -> String {
    let quoted = |number| format!("'{}'", key(kind, number).replace('\'', "''"));
    let keys: Vec<String> = (0..super::value::KEYS).map(quoted).collect();
    let items: Vec<String> = keys.chunks(6).map(|item| item.join(" ")).collect();
    format!("list({})", items.join(", "))
}

fn rules_of(kind: KeyKind, columns: &[Vec<&'static str>], rng: &mut StdRng) -> String {
    let list = list(kind);
    let functions: &[&str] = match kind {
        KeyKind::Integer(_) => {
            &["mod", "pg_hash_int8", "crc32c", "range(37, 200, 500, 501, 900, 1300)", &list]
        }
        KeyKind::Text | KeyKind::Varchar | KeyKind::Char => {
            &["crc32c", "pg_hash_text", "range('00004', '0001', 'k', 'k3', 'o', 'z')", &list]
        }
        KeyKind::Uuid => &["crc32c", "pg_hash_text", &list],
        KeyKind::Date => &[
            "date(day)",
            "date(week)",
            "date(month)",
            "date(year)",
            "range(1990-01-02, 2000-01-01, 2024-02-29, 2050-12-31)",
            "crc32c",
            &list,
        ],
    };
    let function = functions[rng.random_range(0..functions.len())];
    let mut rules = format!(
        "[router]\ncollation = \"C\"\n\n[group.g]\nkey = \"k\"\ntype = \"{}\"\nfunction = {function:?}\nscatter = \"write\"\n",
        kind.rule()
    );
    let mut put = |text: String| rules.push_str(&text);
    let mut first = 0;
    while first < 1024 {
        // The first slots one by one: a range or a list has no others.
        let width = if first < 10 { 1 } else { rng.random_range(20..200) };
        let last = (first + width - 1).min(1023);
        let shard = rng.random_range(0..SHARDS);
        put(format!("[[group.g.slots]]\nfirst = {first}\nlast = {last}\nshard = \"s{shard}\"\n"));
        first = last + 1;
    }
    for ((table, key), columns) in SHARDED.iter().zip(columns) {
        let columns = format!("{columns:?}");
        put(format!("[table.{table}]\ngroup = \"g\"\nkey = \"{key}\"\ncolumns = {columns}\n"));
    }
    put("[table.r]\nreference = true\n[table.lone]\nsingle = \"p2\"\n".to_owned());
    for shard in 0..SHARDS {
        let mut text = format!("[shard.s{shard}]\nsource = \"p{shard}\"\n");
        writeln!(text, "[source.p{shard}]\naddress = \"127.0.0.1:{}\"", 1000 + shard)
            .expect("a String takes all");
        put(text);
    }
    rules
}

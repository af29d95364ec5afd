//! Draws statements: what applications write, and what catches a router out.

use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    copy::Copied,
    value::{Bound, text_array},
    world::{SHARDED, World},
};

/// A statement with its parameters.
#[derive(Debug)]
pub(super) struct Drawn {
    pub(super) kind: &'static str,
    pub(super) sql: String,
    /// The parameters of each execution; at least one, however few parameters there are.
    pub(super) runs: Vec<Vec<Bound>>,
    /// As a simple query.
    pub(super) simple: bool,
    /// The answer's order is certain.
    pub(super) ordered: bool,
    /// The rows of a COPY, if it is one.
    pub(super) copied: Option<Copied>,
    /// What the single database is asked in place of what the router alone can answer.
    pub(super) at_one: Option<String>,
}

/// What a statement is drawn for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// The rows that a world begins with.
    First,
    /// Outside of a transaction.
    Alone,
    /// Within one, about its key.
    InTransaction,
}

impl Drawn {
    /// Whether a client copies and says that it failed.
    pub(super) fn gives_up(&self) -> bool {
        matches!(self.copied, Some(Copied::In { gives_up: true, .. }))
    }

    /// For a reader who repeats it.
    pub(super) fn shown(&self) -> String {
        let how = match (&self.copied, self.simple) {
            (Some(_), _) => "as COPY",
            (None, true) => "simple",
            (None, false) => "extended",
        };
        let mut text = format!(", {how}\n{}", self.sql);
        if let Some(Copied::In { rows, gives_up }) = &self.copied {
            let end = if *gives_up { "gives up" } else { "ends" };
            text.push_str(&format!("\n-- the client says {rows:?} and {end}"));
        }
        for run in self.runs.iter().filter(|run| !run.is_empty()) {
            let shown = |value: &Bound| {
                let format = if value.as_text { "text" } else { "binary" };
                let oid = if value.declared { value.oid } else { 0 };
                format!("{:?} ({format}, type {oid})", value.shown)
            };
            let shown: Vec<String> = run.iter().map(shown).collect();
            text.push_str(&format!("\n-- with {}", shown.join(", ")));
        }
        text
    }
}

/// Writes one statement.
pub(super) struct Pen<'w, 'r> {
    pub(super) world: &'w World,
    pub(super) rng: &'r mut StdRng,
    pub(super) simple: bool,
    pub(super) parameters: Vec<Bound>,
    /// The key that everything is about.
    pub(super) focus: Option<u32>,
    pub(super) ordered: bool,
    pub(super) copied: Option<Copied>,
    pub(super) at_one: Option<String>,
}

type Write<'w, 'r> = fn(&mut Pen<'w, 'r>) -> String;
/// A kind: its name, its weight alone and within a transaction, and who writes it.
type Sort<'w, 'r> = (&'static str, u32, u32, Write<'w, 'r>);

/// Draws one. A parameter that the text does not use has no type to PostgreSQL, so such a draw is not taken.
pub(super) fn draw(world: &World, rng: &mut StdRng, focus: Option<u32>, of: Use) -> Drawn {
    loop {
        let drawn = attempt(world, rng, focus, of);
        let used = |at: usize| {
            let name = format!("${at}");
            drawn.sql.match_indices(&name).any(|(start, _)| {
                !drawn.sql[start + name.len()..].starts_with(|next: char| next.is_ascii_digit())
            })
        };
        if (1..=drawn.runs[0].len()).all(used) {
            return drawn;
        }
    }
}

/// Several statements of one query, and perhaps a transaction around them.
pub(super) fn sequence(world: &World, rng: &mut StdRng, around: [&str; 2]) -> Drawn {
    let mut parts: Vec<String> = Vec::new();
    let count = rng.random_range(1..4);
    while parts.len() < count {
        let drawn = draw(world, rng, None, Use::Alone);
        if drawn.simple && drawn.copied.is_none() && drawn.at_one.is_none() {
            parts.push(drawn.sql);
        }
    }
    let [begin, end] = around.map(|sql| (!sql.is_empty()).then(|| sql.to_owned()));
    let all: Vec<String> = begin.into_iter().chain(parts).chain(end).collect();
    Drawn {
        kind: "sequence",
        sql: all.join("; "),
        runs: vec![Vec::new()],
        simple: true,
        ordered: false,
        copied: None,
        at_one: None,
    }
}

fn attempt(world: &World, rng: &mut StdRng, focus: Option<u32>, of: Use) -> Drawn {
    let simple = rng.random_bool(0.5);
    let mut pen = Pen {
        world,
        rng,
        simple,
        parameters: Vec::new(),
        focus,
        ordered: false,
        copied: None,
        at_one: None,
    };
    let (kind, write) = if of == Use::First {
        ("insert", Pen::insert as Write<'_, '_>)
    } else {
        let weight = |sort: &Sort<'_, '_>| match (sort.0.strip_prefix("owner_"), of) {
            (Some(_), _) if !world.owns => 0,
            (_, Use::Alone) => sort.1,
            _ => sort.2,
        };
        let sorts = sorts();
        let total: u32 = sorts.iter().map(weight).sum();
        let mut at = pen.rng.random_range(0..total);
        let sort = sorts.iter().find(|sort| {
            let here = at < weight(sort);
            at = at.wrapping_sub(weight(sort));
            here
        });
        let sort = sort.expect("the weights add up");
        (sort.0, sort.3)
    };
    let sql = write(&mut pen);
    let mut runs = vec![std::mem::take(&mut pen.parameters)];
    if !runs[0].is_empty() && pen.rng.random_bool(0.3) {
        for _ in 0..pen.rng.random_range(1..4) {
            runs.push(runs[0].clone().iter().map(|value| value.again(world, &mut pen)).collect());
        }
    }
    let Pen { simple, ordered, copied, at_one, .. } = pen;
    Drawn { kind, sql, runs, simple, ordered, copied, at_one }
}

fn sorts<'w, 'r>() -> [Sort<'w, 'r>; 37] {
    [
        ("point_select", 10, 10, Pen::point_select),
        ("key_list", 6, 1, Pen::key_list),
        ("key_array", 4, 1, Pen::key_array),
        ("condition", 8, 4, Pen::condition_select),
        ("scan", 4, 0, Pen::scan),
        ("sorted", 6, 1, Pen::sorted),
        ("aggregate", 6, 1, Pen::aggregate),
        ("grouped", 6, 1, Pen::grouped),
        ("grouped_by_key", 3, 0, Pen::grouped_by_key),
        ("distinct", 3, 0, Pen::distinct),
        ("join_by_key", 6, 3, Pen::join_by_key),
        ("outer_join", 5, 1, Pen::outer_join),
        ("join_otherwise", 2, 1, Pen::join_otherwise),
        ("reference", 3, 2, Pen::reference),
        ("subquery", 6, 1, Pen::subquery),
        ("derived", 5, 3, Pen::derived),
        ("window", 2, 0, Pen::window),
        ("set_operation", 3, 2, Pen::set_operation),
        ("having", 3, 1, Pen::having),
        ("different", 3, 1, Pen::different),
        ("defaulted", 3, 1, Pen::defaulted),
        ("united", 3, 1, Pen::united),
        ("locking", 2, 4, Pen::locking),
        ("insert", 10, 10, Pen::insert),
        ("insert_many", 6, 2, Pen::insert_many),
        ("insert_select", 3, 2, Pen::insert_select),
        ("update", 8, 10, Pen::update),
        ("delete", 5, 5, Pen::delete),
        ("write_reference", 2, 0, Pen::write_reference),
        ("lone", 2, 1, Pen::lone),
        ("copy_in", 4, 3, Pen::copy_in),
        ("copy_out", 4, 3, Pen::copy_out),
        ("owner_insert", 8, 6, Pen::owner_insert),
        ("owner_update", 8, 6, Pen::owner_update),
        ("owner_delete", 4, 3, Pen::owner_delete),
        ("owner_select", 6, 4, Pen::owner_select),
        ("owner_locate", 6, 0, Pen::owner_locate),
    ]
}

impl Pen<'_, '_> {
    pub(super) fn table(&mut self) -> (&'static str, &'static str) {
        *SHARDED.choose(self.rng).expect("there are tables")
    }

    fn predicate(&mut self, alias: &str) -> String {
        let number = self.rng.random_range(0..30);
        match self.rng.random_range(0..7) {
            0 => format!("{alias}.a < {number}"),
            1 => format!("{alias}.b LIKE 'b{}%'", number % 4),
            2 => format!("{alias}.c BETWEEN {number} AND {}.50", number + 10),
            3 => format!("{alias}.a IS NULL"),
            4 => format!("{alias}.n % 3 = {}", number % 3),
            5 => format!("{alias}.b IN ('b1', 'b2x')"),
            _ => format!("{alias}.d > '2026-01-{:02}'", 1 + number % 28),
        }
    }

    /// Something about the key, and perhaps about the rest.
    pub(super) fn about(&mut self, alias: &str, column: &str, deep: u32) -> String {
        let key = format!("{alias}.{column}");
        match self.rng.random_range(0..15) {
            0..=3 => format!("{key} = {}", self.key()),
            4 => format!("{} = {key}", self.key()),
            5 => format!("{key} IN ({}, {})", self.key(), self.key()),
            6 => self.predicate(alias),
            7 if deep > 0 => {
                format!(
                    "({} OR {})",
                    self.about(alias, column, deep - 1),
                    self.about(alias, column, deep - 1)
                )
            }
            8 if deep > 0 => {
                format!(
                    "({} AND {})",
                    self.about(alias, column, deep - 1),
                    self.about(alias, column, deep - 1)
                )
            }
            9 if deep > 0 => format!("NOT ({})", self.about(alias, column, deep - 1)),
            10 => format!("{key} IS NOT NULL"),
            11 => format!("{key} = NULL"),
            12 => format!("{key} BETWEEN {} AND {}", self.key(), self.key()),
            13 => {
                let (above, below) = (self.any(&[">", ">="]), self.any(&["<", "<="]));
                format!("({key} {above} {} AND {} {below} {key})", self.key(), self.key())
                    .replace("AND", if self.rng.random_bool(0.7) { "AND" } else { "OR" })
            }
            14 => {
                let how = self.any(&["<", "<=", ">", ">=", "NOT BETWEEN 1 AND"]);
                if how.len() > 2 {
                    format!("{key} NOT BETWEEN {} AND {}", self.key(), self.key())
                } else {
                    format!("{key} {how} {}", self.key())
                }
            }
            _ => format!("{key} = {} AND {}", self.key(), self.predicate(alias)),
        }
    }

    fn columns(&mut self, alias: &str, key: &str) -> String {
        match self.rng.random_range(0..4) {
            0 => "*".to_owned(),
            1 => format!("{alias}.{key}, {alias}.n, {alias}.b"),
            2 => format!("{alias}.*"),
            _ => format!("{alias}.n, {alias}.c * 2 AS twice, {alias}.d, upper({alias}.b)"),
        }
    }

    pub(super) fn point_select(&mut self) -> String {
        let (table, key) = self.table();
        let columns = self.columns("x", key);
        let value = self.key();
        let more = if self.rng.random_bool(0.4) {
            format!(" AND {}", self.predicate("x"))
        } else {
            String::new()
        };
        format!("SELECT {columns} FROM {table} x WHERE x.{key} = {value}{more}")
    }

    fn key_list(&mut self) -> String {
        let (table, key) = self.table();
        let list: Vec<String> = (0..self.rng.random_range(1..5)).map(|_| self.key()).collect();
        let list = list.join(", ");
        match self.rng.random_range(0..3) {
            0 if self.simple => format!("SELECT * FROM {table} WHERE {key} = ANY (ARRAY[{list}])"),
            1 => {
                let chain: Vec<String> =
                    list.split(", ").map(|value| format!("{key} = {value}")).collect();
                format!("SELECT n, a FROM {table} WHERE {}", chain.join(" OR "))
            }
            _ => format!("SELECT * FROM {table} WHERE {key} IN ({list})"),
        }
    }

    fn key_array(&mut self) -> String {
        let (table, key) = self.table();
        let list = if self.simple {
            let list: Vec<String> = (0..3).map(|_| self.world.key(self.key_number())).collect();
            format!("'{}'", text_array(&list).replace('\'', "''"))
        } else {
            self.array_parameter()
        };
        match self.rng.random_range(0..3) {
            0 => format!("SELECT n, b FROM {table} x WHERE x.{key} = ANY ({list}) AND x.n < 5"),
            1 => format!("SELECT count(*), max(a) FROM {table} WHERE {key} = ANY({list})"),
            _ => format!("SELECT * FROM {table} WHERE {key} = ANY({list})"),
        }
    }

    fn locking(&mut self) -> String {
        let (table, key) = self.table();
        let value = self.key();
        let how = self.any(&["FOR UPDATE", "FOR SHARE", "FOR NO KEY UPDATE", "FOR UPDATE NOWAIT"]);
        format!("SELECT n, a FROM {table} WHERE {key} = {value} ORDER BY n {how}")
    }

    pub(super) fn condition_select(&mut self) -> String {
        let (table, key) = self.table();
        let columns = self.columns("x", key);
        let condition = self.about("x", key, 2);
        format!("SELECT {columns} FROM {table} AS x WHERE {condition}")
    }

    fn scan(&mut self) -> String {
        let (table, key) = self.table();
        let columns = self.columns("x", key);
        let condition = self.predicate("x");
        format!("SELECT {columns} FROM {table} x WHERE {condition}")
    }

    pub(super) fn sorted(&mut self) -> String {
        let (table, key) = self.table();
        self.ordered = true;
        let first = match self.rng.random_range(0..6) {
            0 => "a".to_owned(),
            1 => "b COLLATE \"C\" DESC".to_owned(),
            2 => "c DESC NULLS LAST".to_owned(),
            3 => "d NULLS FIRST".to_owned(),
            4 => "a % 3, c".to_owned(),
            _ => "b DESC".to_owned(),
        };
        let columns = self.any(&["*", "n, a, b, c, d", "a AS z, n, b", "c, d"]);
        let limit = match self.rng.random_range(0..4) {
            0 => String::new(),
            1 => format!(" LIMIT {}", self.rng.random_range(0..9)),
            2 => format!(" OFFSET {}", self.rng.random_range(0..9)),
            _ => format!(
                " LIMIT {} OFFSET {}",
                self.rng.random_range(0..9),
                self.rng.random_range(0..9)
            ),
        };
        let condition = if self.rng.random_bool(0.5) {
            format!(" WHERE {}", self.about("x", key, 1))
        } else {
            String::new()
        };
        format!("SELECT {columns} FROM {table} x{condition} ORDER BY {first}, {key}, n{limit}")
    }

    fn aggregates(&mut self) -> String {
        let all = [
            "count(*)",
            "count(a)",
            "sum(a)",
            "sum(c)",
            "avg(a)",
            "avg(c)",
            "min(a)",
            "max(c)",
            "min(b)",
            "max(d)",
            "avg(c) AS mean",
            "count(*) FILTER (WHERE a > 5)",
            "sum(a) FILTER (WHERE n < 4)",
        ];
        let rare = [
            "count(DISTINCT a)",
            "count(*) + 1",
            "string_agg(b, ',' ORDER BY b)",
            "coalesce(sum(a), 0)",
            "stddev(a)",
        ];
        let mut list: Vec<&str> =
            (0..self.rng.random_range(1..4)).map(|_| self.any(&all)).collect();
        if self.rng.random_bool(0.08) {
            list.push(self.any(&rare));
        }
        list.join(", ")
    }

    pub(super) fn aggregate(&mut self) -> String {
        let (table, key) = self.table();
        let list = self.aggregates();
        let condition = if self.rng.random_bool(0.6) {
            format!(" WHERE {}", self.about("x", key, 1))
        } else {
            String::new()
        };
        format!("SELECT {list} FROM {table} x{condition}")
    }

    pub(super) fn grouped(&mut self) -> String {
        let (table, _) = self.table();
        let list = self.aggregates();
        let condition = if self.rng.random_bool(0.4) {
            format!(" WHERE {}", self.predicate("x"))
        } else {
            String::new()
        };
        match self.rng.random_range(0..5) {
            0 => format!("SELECT b, {list} FROM {table} x{condition} GROUP BY b"),
            1 => format!("SELECT a % 4, {list} FROM {table} x{condition} GROUP BY a % 4"),
            2 => {
                self.ordered = true;
                format!(
                    "SELECT b, a, count(*) FROM {table} x{condition} GROUP BY b, a ORDER BY 3 DESC, b, a LIMIT 6"
                )
            }
            3 => format!("SELECT {list} FROM {table} x{condition} GROUP BY 1 + 0 * n, a")
                .replace("1 + 0 * n", "n"),
            _ => format!(
                "SELECT b, count(*) FROM {table} x{condition} GROUP BY b HAVING count(*) > 2"
            ),
        }
    }

    fn grouped_by_key(&mut self) -> String {
        let (table, key) = self.table();
        self.ordered = true;
        format!(
            "SELECT {key}, count(*), count(DISTINCT a), sum(a) FROM {table} GROUP BY {key} HAVING count(*) > 1 ORDER BY {key}"
        )
    }

    pub(super) fn distinct(&mut self) -> String {
        let (table, key) = self.table();
        match self.rng.random_range(0..4) {
            0 => {
                self.ordered = true;
                format!("SELECT DISTINCT b, a FROM {table} ORDER BY b, a LIMIT 7")
            }
            1 => format!("SELECT DISTINCT {key} FROM {table}"),
            2 => format!("SELECT DISTINCT c, b FROM {table} WHERE n < 4"),
            _ => {
                self.ordered = true;
                format!(
                    "SELECT DISTINCT ON ({key}) {key}, n, a FROM {table} ORDER BY {key}, n DESC"
                )
            }
        }
    }

    pub(super) fn join_by_key(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let condition = self.about("x", key, 1);
        let more = self.predicate("y");
        match self.rng.random_range(0..4) {
            0 => format!(
                "SELECT x.n, y.n, y.b FROM {one} x JOIN {two} y ON x.{key} = y.{other} WHERE {condition}"
            ),
            1 => format!(
                "SELECT x.*, y.c FROM {one} x, {two} y WHERE {condition} AND y.{other} = x.{key} AND {more}"
            ),
            2 => format!(
                "SELECT count(*), sum(y.c) FROM {one} x JOIN {two} y ON x.{key} = y.{other} AND {more}"
            ),
            _ if key == other => {
                format!("SELECT x.n, y.a FROM {one} x JOIN {two} y USING ({key}) WHERE {condition}")
            }
            _ => format!(
                "SELECT x.a, y.a FROM {one} x INNER JOIN {two} y ON y.{other} = x.{key} AND y.n = x.n"
            ),
        }
    }

    fn outer_join(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let how = self.any(&["LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
        let condition = self.about("x", key, 1);
        let of_right = self.about("y", other, 0);
        match self.rng.random_range(0..5) {
            0 => format!(
                "SELECT x.n, y.n FROM {one} x {how} {two} y ON x.{key} = y.{other} WHERE {condition}"
            ),
            1 => format!(
                "SELECT x.n, y.n FROM {one} x LEFT JOIN {two} y ON x.{key} = y.{other} AND {of_right}"
            ),
            2 => format!("SELECT x.a, r.b FROM {one} x {how} r ON r.n = x.a WHERE {condition}"),
            3 => format!(
                "SELECT x.n, y.n, z.n FROM {one} x LEFT JOIN {two} y ON x.{key} = y.{other} LEFT JOIN r z ON z.n = y.a WHERE {condition}"
            ),
            _ => format!(
                "SELECT x.n, y.n FROM {one} x {how} {two} y ON x.{key} = y.{other} AND x.n = y.n"
            ),
        }
    }

    fn join_otherwise(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let (left, right) = (self.about("x", key, 0), self.about("y", other, 0));
        format!("SELECT x.n, y.n FROM {one} x, {two} y WHERE x.a = y.a AND {left} AND {right}")
    }

    pub(super) fn reference(&mut self) -> String {
        let (table, key) = self.table();
        let condition = self.about("x", key, 1);
        match self.rng.random_range(0..3) {
            0 => "SELECT * FROM r WHERE a > 3".to_owned(),
            1 => format!("SELECT x.n, r.b FROM {table} x JOIN r ON r.n = x.a WHERE {condition}"),
            _ => format!("SELECT r.b, count(*) FROM r JOIN {table} x ON r.n = x.a GROUP BY r.b"),
        }
    }

    fn subquery(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let (condition, inner) = (self.about("x", key, 0), self.about("y", other, 0));
        match self.rng.random_range(0..8) {
            0 => format!(
                "SELECT x.n FROM {one} x WHERE {condition} AND EXISTS (SELECT 1 FROM {two} y WHERE y.{other} = x.{key} AND y.a > x.a)"
            ),
            1 => format!(
                "SELECT x.n FROM {one} x WHERE NOT EXISTS (SELECT 1 FROM {two} y WHERE y.{other} = x.{key})"
            ),
            2 => format!(
                "SELECT x.n, (SELECT count(*) FROM {two} y WHERE y.{other} = x.{key}) FROM {one} x WHERE {condition}"
            ),
            3 => format!(
                "SELECT x.n FROM {one} x WHERE x.a IN (SELECT y.a FROM {two} y WHERE {inner}) AND {condition}"
            ),
            4 => format!("SELECT x.n FROM {one} x WHERE x.a IN (SELECT n FROM r WHERE a > 2)"),
            5 => format!(
                "SELECT x.n FROM {one} x WHERE x.{key} IN (SELECT y.{other} FROM {two} y WHERE y.a < 9)"
            ),
            6 => format!("SELECT (SELECT max(y.a) FROM {two} y WHERE {inner})"),
            _ => format!("SELECT n FROM r WHERE n IN (SELECT y.a FROM {two} y WHERE {inner})"),
        }
    }

    fn derived(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let value = self.key();
        match self.rng.random_range(0..9) {
            0 => {
                format!("SELECT * FROM (SELECT {key} AS w, n, a FROM {one}) s WHERE s.w = {value}")
            }
            1 => format!(
                "WITH s AS (SELECT * FROM {one} WHERE a < 12) SELECT s.n, s.b FROM s WHERE s.{key} = {value}"
            ),
            2 => format!(
                "WITH s AS (SELECT {key} AS w, count(*) AS c FROM {one} GROUP BY {key}) SELECT * FROM s WHERE w = {value}"
            ),
            3 => format!(
                "SELECT s.n, y.n FROM (SELECT {key} AS w, n FROM {one} WHERE {key} = {value}) s JOIN {two} y ON y.{other} = s.w"
            ),
            4 => format!("SELECT count(*) FROM (SELECT n, b FROM {one} WHERE a > 3) s"),
            5 => format!("SELECT count(*) FROM (SELECT DISTINCT b FROM {one}) s"),
            6 => format!("SELECT count(*) AS z FROM (SELECT n FROM {one} ORDER BY n OFFSET 4) s"),
            7 => format!("SELECT count(*) FROM (SELECT b, avg(a) FROM {one} GROUP BY b) s"),
            _ => format!("SELECT * FROM (SELECT {key}, n FROM {one} ORDER BY n, {key} LIMIT 3) s"),
        }
    }

    fn window(&mut self) -> String {
        let (table, key) = self.table();
        if self.rng.random_bool(0.6) {
            format!(
                "SELECT n, row_number() OVER (PARTITION BY {key} ORDER BY n), sum(a) OVER (PARTITION BY {key}) FROM {table}"
            )
        } else {
            format!(
                "SELECT n, rank() OVER (ORDER BY n) FROM {table} WHERE {}",
                self.about("t", key, 0).replace("t.", "")
            )
        }
    }

    fn set_operation(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let (left, right) = (self.key(), self.key());
        let how = self.any(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]);
        format!(
            "SELECT n FROM {one} WHERE {key} = {left} {how} SELECT n FROM {two} WHERE {other} = {right}"
        )
    }
}

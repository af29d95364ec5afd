//! Draws statements that write.

use rand::Rng as _;

use super::statement::Pen;

impl Pen<'_, '_> {
    /// A row's values in the order of `columns`.
    fn row(&mut self, columns: &[&str]) -> String {
        let values: Vec<String> = columns.iter().map(|column| self.value(column)).collect();
        format!("({})", values.join(", "))
    }

    fn value(&mut self, column: &str) -> String {
        match column {
            "n" => self.rng.random_range(0..8).to_string(),
            "a" => self.number(20),
            "b" => {
                let tail = self.any(&["", "x", "''q", " "]);
                format!("'b{}{tail}'", self.rng.random_range(0..4))
            }
            "c" => match self.number(90) {
                null if null == "NULL" => null,
                number => format!("{number}.25"),
            },
            "d" => format!("'2026-01-{:02} 10:00:00.5'", self.rng.random_range(1..29)),
            _ => self.key(),
        }
    }

    pub(super) fn insert(&mut self) -> String {
        let (table, key) = self.table();
        let world = self.world;
        let columns = world.columns(table);
        let named = ["k", "n", "a", "b", "c", "d"].map(|name| if name == "k" { key } else { name });
        let (list, row) = if self.rng.random_bool(0.3) {
            (String::new(), self.row(columns))
        } else {
            (format!(" ({})", named.join(", ")), self.row(&named))
        };
        let conflict = match self.rng.random_range(0..4) {
            0 => format!(" ON CONFLICT ({key}, n) DO UPDATE SET a = {table}.a + 1, b = excluded.b"),
            1 => " ON CONFLICT DO NOTHING".to_owned(),
            _ => String::new(),
        };
        let returning = if self.rng.random_bool(0.3) { " RETURNING n, b" } else { "" };
        format!("INSERT INTO {table}{list} VALUES {row}{conflict}{returning}")
    }

    pub(super) fn insert_many(&mut self) -> String {
        let (table, key) = self.table();
        let columns = [key, "n", "a", "b", "c", "d"];
        let rows: Vec<String> =
            (0..self.rng.random_range(2..6)).map(|_| self.row(&columns)).collect();
        let conflict = if self.rng.random_bool(0.7) { " ON CONFLICT DO NOTHING" } else { "" };
        let returning = if self.rng.random_bool(0.3) { " RETURNING n, a" } else { "" };
        format!(
            "INSERT INTO {table} ({key}, n, a, b, c, d) VALUES {}{conflict}{returning}",
            rows.join(", ")
        )
    }

    pub(super) fn insert_select(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let condition = self.about("y", other, 0);
        if self.rng.random_bool(0.5) {
            format!(
                "INSERT INTO {one} ({key}, n, a) SELECT y.{other}, y.n + 100, y.a FROM {two} y WHERE {condition} ON CONFLICT DO NOTHING"
            )
        } else {
            let value = self.key();
            format!(
                "INSERT INTO {one} ({key}, n, a) SELECT {value}, r.n + 200, r.a FROM r ON CONFLICT DO NOTHING"
            )
        }
    }

    pub(super) fn update(&mut self) -> String {
        let (table, key) = self.table();
        let set = self.any(&[
            "a = x.a + 1",
            "b = 'b2x', c = 7.50",
            "a = NULL",
            "c = c * 2 - 1",
            "a = n, d = '2026-01-05'",
        ]);
        let condition = self.about("x", key, 1);
        let returning = if self.rng.random_bool(0.3) { " RETURNING x.n, x.a" } else { "" };
        match self.rng.random_range(0..8) {
            0 => format!(
                "UPDATE {table} x SET {} WHERE {condition}{returning}",
                set.replace("x.a", "r.a").replace(" = NULL", " = r.n") + " FROM r"
            )
            .replace(" WHERE", " WHERE r.n = 1 AND"),
            1 => format!("UPDATE {table} x SET {key} = {} WHERE {condition}", self.key()),
            // A whole row that is written back.
            2 => {
                let number = self.key_number();
                let [new, old] = [self.key_of(number), self.key_of(number)];
                format!("UPDATE {table} SET {key} = {new}, {set} WHERE {key} = {old}{returning}")
                    .replace("x.", "")
            }
            _ => format!("UPDATE {table} x SET {set} WHERE {condition}{returning}"),
        }
    }

    pub(super) fn delete(&mut self) -> String {
        let (table, key) = self.table();
        let value = self.key();
        match self.rng.random_range(0..5) {
            0 => format!("DELETE FROM {table} x WHERE {} AND x.n > 5", self.about("x", key, 0)),
            1 => format!(
                "DELETE FROM {table} x USING r WHERE r.n = x.a AND x.{key} = {value} RETURNING x.n"
            ),
            _ => format!("DELETE FROM {table} WHERE {key} = {value} AND n % 2 = 0"),
        }
    }

    pub(super) fn write_reference(&mut self) -> String {
        let n = self.rng.random_range(0..20);
        match self.rng.random_range(0..4) {
            0 => format!("UPDATE r SET a = a + 1 WHERE n < {n}"),
            1 => format!("DELETE FROM r WHERE n = {n} RETURNING b"),
            2 => format!(
                "INSERT INTO r VALUES ({n}, {n}, 'b1') ON CONFLICT (n) DO UPDATE SET a = r.a + 2 RETURNING n"
            ),
            _ => format!("INSERT INTO r (n, a, b) VALUES ({n}, 1, 'b9')"),
        }
    }

    pub(super) fn lone(&mut self) -> String {
        let n = self.rng.random_range(0..20);
        match self.rng.random_range(0..4) {
            0 => format!("INSERT INTO lone VALUES ({n}, {n}, 'x') ON CONFLICT DO NOTHING"),
            1 => format!("UPDATE lone SET a = a + 1 WHERE n = {n} RETURNING a"),
            2 => "SELECT lone.n, r.b FROM lone JOIN r ON r.n = lone.n".to_owned(),
            _ => "SELECT count(*) FROM lone".to_owned(),
        }
    }
}

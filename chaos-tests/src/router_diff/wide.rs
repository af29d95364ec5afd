//! Draws statements that gather from all shards: HAVING, aggregates of different values, defaults, set operations.

use rand::Rng as _;

use super::statement::Pen;

impl Pen<'_, '_> {
    fn maybe_where(&mut self, alias: &str, column: &str) -> String {
        if self.rng.random_bool(0.4) {
            format!(" WHERE {}", self.about(alias, column, 1))
        } else {
            String::new()
        }
    }

    pub(super) fn having(&mut self) -> String {
        let (table, key) = self.table();
        let condition = self.maybe_where("x", key);
        let number = self.rng.random_range(0..40);
        let having = match self.rng.random_range(0..11) {
            0 => format!("count(*) > {}", number % 4),
            1 => format!("sum(a) >= {number} AND b <> 'b2'"),
            2 => format!("sum(c) BETWEEN {number} AND {}.75", number + 60),
            3 => format!("avg(a) < {number}.5 OR count(a) = 0"),
            4 => format!("NOT (max(c) > {number}.25)"),
            5 => "min(a) IS NULL".to_owned(),
            6 => "sum(a) IS NOT NULL AND count(*) <> count(a)".to_owned(),
            7 => format!("count(*) IN (1, 2, {number})"),
            8 => format!("sum(a) > {number} AND sum(c) > sum(a)"),
            9 => format!("count(DISTINCT a) > {}", number % 4),
            _ => "b LIKE 'b1%'".to_owned(),
        };
        self.ordered = true;
        let list = self.any(&["b, count(*)", "b", "sum(a), b, avg(c)", "b, coalesce(sum(a), -1)"]);
        let order = self.any(&["b", "b DESC", "count(*), b", "sum(c) DESC NULLS LAST, b"]);
        format!(
            "SELECT {list} FROM {table} x{condition} GROUP BY b HAVING {having} ORDER BY {order}"
        )
    }

    pub(super) fn different(&mut self) -> String {
        let (table, key) = self.table();
        let condition = self.maybe_where("x", key);
        let all = [
            "count(DISTINCT a)",
            "count(DISTINCT b)",
            "sum(DISTINCT a)",
            "avg(DISTINCT a) AS mean",
            "count(DISTINCT d)",
            "count(DISTINCT c)",
            "min(DISTINCT a)",
            "count(*)",
            "sum(c)",
            "max(b)",
        ];
        let list: Vec<&str> = (0..self.rng.random_range(1..4)).map(|_| self.any(&all)).collect();
        let list = list.join(", ");
        match self.rng.random_range(0..5) {
            0 => format!("SELECT n, {list} FROM {table} x{condition} GROUP BY n"),
            1 => format!("SELECT {list}, a % 3 FROM {table} x{condition} GROUP BY a % 3"),
            2 => {
                self.ordered = true;
                let limit = self.rng.random_range(1..6);
                format!(
                    "SELECT b, {list} FROM {table} x{condition} GROUP BY 1 ORDER BY count(DISTINCT a) DESC, b LIMIT {limit}"
                )
            }
            _ => format!("SELECT {list} FROM {table} x{condition}"),
        }
    }

    pub(super) fn defaulted(&mut self) -> String {
        let (table, key) = self.table();
        let condition = self.maybe_where("x", key);
        let all = [
            "coalesce(sum(a), 0)",
            "coalesce(sum(c), 0) AS total",
            "COALESCE(max(a), -1)",
            "coalesce(avg(a), 0)",
            "coalesce(min(b), 'none')",
            "coalesce(max(d), '2001-02-03')",
            "coalesce(sum(a), 0.5)",
            "count(*)",
        ];
        let list: Vec<&str> = (0..self.rng.random_range(1..4)).map(|_| self.any(&all)).collect();
        let list = list.join(", ");
        match self.rng.random_range(0..3) {
            0 => format!("SELECT b, {list} FROM {table} x{condition} GROUP BY b"),
            1 => format!("SELECT DISTINCT {list} FROM {table} x{condition} GROUP BY n, b"),
            _ => format!("SELECT {list} FROM {table} x{condition}"),
        }
    }

    pub(super) fn united(&mut self) -> String {
        let ((one, key), (two, other)) = (self.table(), self.table());
        let (left, right) = (self.maybe_where("x", key), self.maybe_where("y", other));
        let how = self.any(&["UNION", "UNION", "UNION ALL", "UNION ALL", "EXCEPT", "INTERSECT"]);
        let limit = match self.rng.random_range(0..4) {
            0 => format!(" LIMIT {}", self.rng.random_range(0..9)),
            1 => format!(" OFFSET {}", self.rng.random_range(0..5)),
            2 => format!(
                " OFFSET {} ROWS FETCH FIRST {} ROWS ONLY",
                self.rng.random_range(0..5),
                self.rng.random_range(0..9)
            ),
            _ => String::new(),
        };
        match self.rng.random_range(0..6) {
            0 => {
                self.ordered = true;
                format!(
                    "SELECT n, a AS w FROM {one} x{left} {how} SELECT n, a FROM {two} y{right} ORDER BY n, w{limit}"
                )
            }
            1 => format!(
                "SELECT x.{key}, n FROM {one} x{left} {how} SELECT y.{other}, n FROM {two} y{right}"
            ),
            2 => format!(
                "SELECT b FROM {one} x{left} {how} SELECT b FROM {two} y{right} UNION SELECT b FROM r"
            ),
            3 => format!("SELECT n, b FROM {one} x{left} {how} SELECT n, b FROM r"),
            4 => format!("SELECT count(*) FROM {one} x{left} {how} SELECT n FROM {two} y{right}"),
            _ => {
                self.ordered = true;
                format!(
                    "SELECT {key} AS w, n, c FROM {one} x{left} {how} SELECT {other}, n, c FROM {two} y{right} ORDER BY 1, 2, c{limit}"
                )
            }
        }
    }
}

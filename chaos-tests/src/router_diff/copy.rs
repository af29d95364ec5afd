//! Draws COPY: rows as clients write them, in every form, and what is asked for in such a form.

use rand::{Rng as _, seq::SliceRandom as _};

use super::{
    statement::Pen,
    world::{KeyKind, World},
};

/// What a COPY is besides its text.
#[derive(Debug)]
pub(super) enum Copied {
    /// From the client.
    In {
        rows: String,
        /// It does not end, but says that it failed.
        gives_up: bool,
    },
    /// To the client.
    Out {
        /// A line of names is before the rows.
        header: bool,
    },
}

/// How rows are written.
struct Style {
    options: &'static str,
    csv: bool,
    delimiter: char,
    null: &'static str,
    quote: char,
    escape: char,
    header: bool,
}

const fn style(
    options: &'static str,
    csv: bool,
    [delimiter, quote, escape]: [char; 3],
    null: &'static str,
    header: bool,
) -> Style {
    Style { options, csv, delimiter, null, quote, escape, header }
}

const STYLES: [Style; 12] = [
    style("", false, ['\t', '"', '"'], "\\N", false),
    style(" (FORMAT text)", false, ['\t', '"', '"'], "\\N", false),
    style(" (DELIMITER '|', NULL 'nil')", false, ['|', '"', '"'], "nil", false),
    style(" DELIMITER ';' NULL ''", false, [';', '"', '"'], "", false),
    style(" WITH (FORMAT text, HEADER)", false, ['\t', '"', '"'], "\\N", true),
    style(" (FORMAT csv)", true, [',', '"', '"'], "", false),
    style(" (FORMAT csv)", true, [',', '"', '"'], "", false),
    style(" CSV HEADER", true, [',', '"', '"'], "", true),
    style(" WITH CSV DELIMITER ';' NULL 'nil'", true, [';', '"', '"'], "nil", false),
    style(" (FORMAT csv, QUOTE '''', HEADER true)", true, [',', '\'', '\''], "", true),
    style(" (FORMAT csv, ESCAPE E'\\\\', NULL '\\N')", true, [',', '"', '\\'], "\\N", false),
    style(" CSV QUOTE AS '$' ESCAPE '%' DELIMITER AS E'\\t'", true, ['\t', '$', '%'], "", false),
];

/// What is wrong with a row, if anything is: one thing a COPY, since PostgreSQL and several shards may meet the first of two in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// It may be there already.
    Known,
    NoKey,
    BadKey,
    BadNumber,
    TooFew,
    TooMany,
}

const FLAWS: [Flaw; 6] =
    [Flaw::Known, Flaw::NoKey, Flaw::BadKey, Flaw::BadNumber, Flaw::TooFew, Flaw::TooMany];

impl Pen<'_, '_> {
    fn style(&mut self) -> &'static Style {
        &STYLES[self.rng.random_range(0..STYLES.len())]
    }

    pub(super) fn copy_in(&mut self) -> String {
        self.simple = true;
        let style = self.style();
        let (table, columns, list) = self.copied_columns();
        let mut rows = String::new();
        let end = self.any(&["\n", "\n", "\n", "\n", "\r\n"]);
        if style.header {
            let names: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
            rows.push_str(&names.join(&style.delimiter.to_string()));
            rows.push_str(end);
        }
        let count = self.rng.random_range(0..9);
        let flaw = self.rng.random_bool(0.25).then(|| FLAWS[self.rng.random_range(0..FLAWS.len())]);
        let flawed = self.rng.random_range(0..count.max(1));
        for at in 0..count {
            let flaw = flaw.filter(|_| at == flawed);
            let mut fields: Vec<String> = columns
                .iter()
                .map(|column| {
                    let value = self.copied_value(column, flaw);
                    self.field(style, value)
                })
                .collect();
            match flaw {
                Some(Flaw::TooFew) => drop(fields.pop()),
                Some(Flaw::TooMany) => fields.push("7".to_owned()),
                _ => {}
            }
            rows.push_str(&fields.join(&style.delimiter.to_string()));
            rows.push_str(end);
        }
        match self.rng.random_range(0..12) {
            0 if count > 0 => rows.truncate(rows.len() - end.len()),
            1 => rows.push_str(&format!("\\.{end}")),
            _ => {}
        }
        let gives_up = self.rng.random_bool(0.04);
        self.copied = Some(Copied::In { rows, gives_up });
        let condition = match self.rng.random_bool(0.1) {
            true => " WHERE n % 2 = 0",
            false => "",
        };
        format!("COPY {table}{list} FROM STDIN{}{condition}", style.options)
    }

    /// A table, the columns of its rows, and how the COPY names them.
    fn copied_columns(&mut self) -> (&'static str, Vec<&'static str>, String) {
        let (table, mut columns) = match self.rng.random_range(0..10) {
            0 => ("r", vec!["n", "a", "b"]),
            1 => ("lone", vec!["n", "a", "b"]),
            _ => {
                let (table, _) = self.table();
                (table, self.world.all_columns(table))
            }
        };
        if self.rng.random_bool(0.4) {
            return (table, columns, String::new());
        }
        columns.shuffle(self.rng);
        let keeps = ["k", "owner", "n"];
        columns.retain(|column| keeps.contains(column) || self.rng.random_bool(0.8));
        let list = format!(" ({})", columns.join(", "));
        (table, columns, list)
    }

    /// A column's value; `None` for NULL.
    fn copied_value(&mut self, column: &str, flaw: Option<Flaw>) -> Option<String> {
        let some = !self.rng.random_bool(0.1);
        match column {
            "n" if flaw == Some(Flaw::Known) => Some(self.rng.random_range(0..12).to_string()),
            "n" => Some(self.rng.random_range(1_000..1_000_000_000).to_string()),
            "a" if flaw == Some(Flaw::BadNumber) => Some("1x".to_owned()),
            "a" => some.then(|| self.rng.random_range(0..20).to_string()),
            "b" => some.then(|| {
                let tail = self.any(&["", "x", "'q", "\t", "a,b;c|", "\"\"", "\\", "\n.", "nil"]);
                format!("b{}{tail}", self.rng.random_range(0..4))
            }),
            "c" => some.then(|| format!("{}.25", self.rng.random_range(0..90))),
            "d" => some.then(|| format!("2026-01-{:02} 10:00:00.5", self.rng.random_range(1..29))),
            "e" => None,
            // Hardly ever one that is taken already: that would be a second flaw.
            "p" => some.then(|| format!("+7-{}", self.rng.random::<u32>())),
            _ if flaw == Some(Flaw::NoKey) => None,
            _ if flaw == Some(Flaw::BadKey) => Some(self.bad_key()),
            _ => Some(self.copied_key()),
        }
    }

    fn bad_key(&self) -> String {
        match self.world.kind {
            // Any text is one, but this one is too long for PostgreSQL or for the rules.
            KeyKind::Text | KeyKind::Varchar | KeyKind::Char => "k".repeat(300),
            KeyKind::Integer(_) | KeyKind::Uuid | KeyKind::Date => "no key".to_owned(),
        }
    }

    /// A key in one of the forms that PostgreSQL reads.
    fn copied_key(&mut self) -> String {
        let world: &World = self.world;
        let text = world.key(self.key_number());
        match (world.kind, self.rng.random_range(0..8)) {
            (KeyKind::Integer(_), 0) => format!(" {text}"),
            (KeyKind::Integer(_), 1) => format!("0{text}"),
            (KeyKind::Integer(_), 2) => format!("+{text} "),
            (KeyKind::Char, 0 | 1) => format!("{text}  "),
            (KeyKind::Uuid, 0) => text.to_uppercase(),
            (KeyKind::Uuid, 1) => text.replace('-', ""),
            (KeyKind::Uuid, 2) => format!("{{{text}}}"),
            (KeyKind::Date, 0) => text.replace('-', ""),
            _ => text,
        }
    }

    fn field(&mut self, style: &Style, value: Option<String>) -> String {
        let Some(value) = value else { return style.null.to_owned() };
        let mut field = String::new();
        if !style.csv {
            for next in value.chars() {
                match next {
                    '\t' => field.push_str("\\t"),
                    '\n' => field.push_str("\\n"),
                    '\\' => field.push_str("\\\\"),
                    next if next == style.delimiter => field.extend(['\\', next]),
                    next if next.is_ascii_alphanumeric() && self.rng.random_bool(0.02) => {
                        let code = u32::from(next);
                        field.push_str(&match self.rng.random_bool(0.5) {
                            true => format!("\\x{code:02x}"),
                            false => format!("\\{code:03o}"),
                        });
                    }
                    next => field.push(next),
                }
            }
            return field;
        }
        let needs = value == style.null
            || value.contains([style.delimiter, style.quote, '\n', '\r'])
            || value == "\\.";
        if !needs && self.rng.random_bool(0.7) {
            return value;
        }
        field.push(style.quote);
        for next in value.chars() {
            if next == style.quote || next == style.escape {
                field.push(style.escape);
            }
            field.push(next);
        }
        field.push(style.quote);
        field
    }

    pub(super) fn copy_out(&mut self) -> String {
        self.simple = true;
        let style = self.style();
        self.copied = Some(Copied::Out { header: style.header });
        let (table, key) = self.table();
        let what = match self.rng.random_range(0..14) {
            0..=2 => table.to_owned(),
            3 => format!("{table} (n, {key}, b)"),
            4 => self.any(&["r", "lone", "r (b, n)"]).to_owned(),
            5 | 6 => format!("({})", self.point_select()),
            7 | 8 => format!("({})", self.condition_select()),
            9 => format!("({})", self.join_by_key()),
            10 => format!("({})", self.sorted()),
            11 => format!("({})", self.aggregate()),
            12 => format!("({})", self.grouped()),
            _ => format!("({})", self.distinct()),
        };
        format!("COPY {what} TO STDOUT{}", style.options)
    }
}

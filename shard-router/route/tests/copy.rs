//! What holds for every stream of rows that a client copies: none is lost, none goes where its key does not belong, and nothing that arrives is too
//! strange to be judged.

use std::sync::{Arc, OnceLock};

use holdfast_route::{
    Copy, CopyIn, Divider, Plan, Refused, Shape, Target, Template, Topology, Values,
};
use proptest::prelude::*;

const RULES: &str = r#"
[group.account]
key = "account"
type = "text"
function = "crc32c"
scatter = "write"
slots = [
  { first = 0, last = 511, shard = "one" },
  { first = 512, last = 1023, shard = "two" },
]
[group.read]
key = "id"
type = "integer"
function = "mod"
scatter = "read"
slots = [
  { first = 0, last = 511, shard = "one" },
  { first = 512, last = 1023, shard = "two" },
]
[table.account]
group = "account"
[table.office]
group = "read"
[table.country]
reference = true
[table.audit]
single = "pg-1"
[shard.one]
source = "pg-1"
[shard.two]
source = "pg-2"
[source.pg-1]
address = "127.0.0.1:1"
[source.pg-2]
address = "127.0.0.1:2"
"#;

fn rules() -> Arc<Topology> {
    static READ: OnceLock<Arc<Topology>> = OnceLock::new();
    let read = || Arc::new(Topology::parse(RULES).expect("good rules"));
    Arc::clone(READ.get_or_init(read))
}

fn plan(sql: &str) -> Result<Plan, Refused> {
    let rules = rules();
    let template = Template::of(sql)?;
    let shape = Shape::read(template.text(), &rules)?;
    shape.plan(&rules, &Values { sql, literals: template.literals(), parameters: &[] })
}

fn copy(sql: &str) -> Arc<CopyIn> {
    match plan(sql).expect("it is routed").copy {
        Some(Copy::In(copy)) => copy,
        other => panic!("{sql}: {other:?}"),
    }
}

fn divider(sql: &str, columns: &[&str], row_bytes_max: usize) -> Divider {
    let columns: Vec<String> = columns.iter().map(|&name| name.to_owned()).collect();
    copy(sql).divider(&columns, row_bytes_max, true).expect("the key is among the columns")
}

/// A row's part and its bytes.
type Told = (Option<usize>, Vec<u8>);

/// Each row with its part, of a stream that comes in pieces of these lengths, in turn.
fn divide(divider: &mut Divider, stream: &[u8], pieces: &[usize]) -> Result<Vec<Told>, Refused> {
    let mut told = Vec::new();
    let mut rest = stream;
    let mut lengths = pieces.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(rest.len(), |length| (*length).clamp(1, rest.len()));
        let (piece, behind) = rest.split_at(length);
        divider.push(piece, &mut |row| told.push((row.part, row.bytes.to_vec())))?;
        rest = behind;
    }
    divider.finish(&mut |row| told.push((row.part, row.bytes.to_vec())))?;
    Ok(told)
}

/// As PostgreSQL's COPY TO writes a value as text.
fn as_text(value: Option<&str>) -> String {
    let Some(value) = value else { return "\\N".to_owned() };
    let mut out = String::new();
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out
}

/// As it writes one in a CSV.
fn as_csv(value: Option<&str>) -> String {
    let Some(value) = value else { return String::new() };
    let plain = !value.is_empty() && value != "\\." && !value.contains(['"', ',', '\n', '\r']);
    if plain { value.to_owned() } else { format!("\"{}\"", value.replace('"', "\"\"")) }
}

/// The body of a DataRow.
fn data_row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).expect("few").to_be_bytes().to_vec();
    for value in values {
        let length = value.map_or(-1, |value| i32::try_from(value.len()).expect("short"));
        body.extend(length.to_be_bytes());
        body.extend(value.unwrap_or_default().as_bytes());
    }
    body
}

fn home(key: &str) -> usize {
    let located = rules().locate("account", key).expect("any text has a slot");
    usize::from(located.shard.as_str() == "two")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_row_goes_to_the_home_of_its_key_byte_for_byte(
        rows in prop::collection::vec(("[ -~\n\r\t\"\\\\,é]{1,12}", prop::option::of("[ -~\n\r\t\"\\\\,]{0,9}")), 0..20),
        csv: bool,
        end in 0_usize..3,
        last: bool,
        pieces in prop::collection::vec(1_usize..40, 1..6),
    ) {
        let end = ["\n", "\r\n", "\r"][end];
        // In a CSV whose lines end in one way, values within quotes may hold the others.
        let write = if csv { as_csv } else { as_text };
        let delimiter = if csv { "," } else { "\t" };
        let lines: Vec<String> = rows
            .iter()
            .map(|(key, note)| format!("{}{delimiter}{}{end}", write(note.as_deref()), write(Some(key))))
            .collect();
        let mut stream = lines.concat();
        if !last && rows.len() > 1 {
            stream.truncate(stream.len() - end.len());
        }
        let sql = if csv { "COPY account FROM STDIN CSV" } else { "COPY account FROM STDIN" };
        let mut divider = divider(sql, &["note", "account"], 1 << 20);
        let told = divide(&mut divider, stream.as_bytes(), &pieces).expect("PostgreSQL writes so");
        prop_assert_eq!(told.len(), rows.len());
        prop_assert_eq!(divider.rows(), rows.len() as u64);
        for ((part, _), (key, _)) in told.iter().zip(&rows) {
            prop_assert_eq!(*part, Some(home(key)), "{}", key);
        }
        let whole: Vec<u8> = told.into_iter().flat_map(|(_, bytes)| bytes).collect();
        prop_assert_eq!(whole, stream.into_bytes());
    }

    /// How a stream comes in pieces makes no difference, whatever it holds.
    #[test]
    fn any_bytes_are_judged_alike_in_any_pieces(
        stream in prop::collection::vec(prop::sample::select(b"a1\\.\"',\t\r\n\n x0N\xff\0".to_vec()), 0..60),
        options in 0_usize..4,
        pieces in prop::collection::vec(1_usize..7, 1..5),
    ) {
        let options = ["", "CSV", "(FORMAT csv, ESCAPE '\\', HEADER)", "(DELIMITER 'x', NULL 'a')"][options];
        let sql = format!("COPY account FROM STDIN {options}");
        let whole = divide(&mut divider(&sql, &["account", "b"], 40), &stream, &[1 << 20]);
        let parts = divide(&mut divider(&sql, &["account", "b"], 40), &stream, &pieces);
        prop_assert_eq!(&whole, &parts);
        if let Ok(rows) = whole {
            let kept: Vec<u8> = rows.into_iter().flat_map(|(_, bytes)| bytes).collect();
            prop_assert!(stream.starts_with(&kept), "nothing is made up");
        }
    }

    /// What is written of a row is one row to whoever reads it, and its key is the same.
    #[test]
    fn what_is_written_of_merged_rows_is_read_again(
        rows in prop::collection::vec(("[ -~\n\r\t\"\\\\,é]{1,12}", prop::option::of("[ -~\n\r\t\"\\\\,]{0,9}")), 0..12),
        options in 0_usize..5,
    ) {
        let options = [
            "",
            "(DELIMITER '|', NULL 'nil')",
            "CSV",
            "(FORMAT csv, DELIMITER ';', QUOTE '''', NULL 'nil', HEADER)",
            "CSV ESCAPE '%' FORCE QUOTE *",
        ][options];
        let sql = format!("COPY (SELECT note, account FROM account ORDER BY 2) TO STDOUT {options}");
        let Some(Copy::Written(written)) = plan(&sql).expect("it is merged").copy else {
            panic!("{sql} is not written here")
        };
        let mut stream = if options.contains("HEADER") { b"note;account\n".to_vec() } else { Vec::new() };
        for (key, note) in &rows {
            let row = data_row(&[note.as_deref(), Some(key)]);
            stream.extend(written.row(&row).expect("it is whole"));
        }
        let sql = format!("COPY account FROM STDIN {options}");
        let told = divide(&mut divider(&sql, &["note", "account"], 1 << 20), &stream, &[64]);
        let told = told.expect("PostgreSQL reads it");
        let told: Vec<_> = told.into_iter().filter_map(|(part, _)| part).collect();
        let homes: Vec<_> = rows.iter().map(|(key, _)| home(key)).collect();
        prop_assert_eq!(told, homes, "{}", String::from_utf8_lossy(&stream));
    }

    #[test]
    fn any_text_of_a_copy_is_judged(text in "(\\(|\\)|,|'| |;|[a-z]{1,9}|CSV|NULL|WITH|E'|\\$\\$|\"){0,20}") {
        let sql = format!("COPY account FROM STDIN {text}");
        if let Ok(plan) = plan(&sql) {
            prop_assert!(plan.copy.is_some());
        }
    }
}

fn refused(sql: &str, stream: &str) -> String {
    let mut divider = divider(sql, &["account", "b"], 1_000);
    let refused = divide(&mut divider, stream.as_bytes(), &[7]).expect_err(stream);
    format!("{} {}", refused.code(), refused.cause)
}

#[test]
fn a_row_without_a_key_or_with_one_that_is_none_is_refused_by_its_number() {
    let text = "COPY account FROM STDIN";
    let long = format!("ok\t1\n{}\t2\n", "k".repeat(257));
    for (sql, stream, wanted) in [
        (
            text,
            "A-1\t1\n\\N\t2\n",
            "HF3105 COPY into account, row 2: key account is not known: NULL",
        ),
        (
            text,
            "A-1\t1\n\t2\n",
            "HF3105 COPY into account, row 2: key account is not known: a key has 1 to 256 bytes",
        ),
        (
            text,
            &long,
            "HF3105 COPY into account, row 2: key account is not known: a key has 1 to 256 bytes",
        ),
        (
            text,
            "A\\000\t1\n",
            "HF3105 COPY into account, row 1: key account is not known: it holds a zero byte",
        ),
        (
            text,
            "\\xff\t1\n",
            "HF3105 COPY into account, row 1: key account is not known: it is not UTF-8",
        ),
        (
            "COPY account FROM STDIN CSV",
            ",1\n",
            "HF3105 COPY into account, row 1: key account is not known: NULL",
        ),
        (
            "COPY account FROM STDIN (DEFAULT 'd')",
            "d\t1\n",
            "HF3105 COPY into account, row 1: key account is not known: left to the column's default",
        ),
        (
            "COPY account FROM STDIN CSV",
            "\"open\n",
            "HF3114 COPY into account, row 1: a quote that is not closed",
        ),
        (
            text,
            "a\\.b\t1\n",
            "HF3114 COPY into account, row 1: a mark \\. that is not alone on its line",
        ),
    ] {
        assert_eq!(refused(sql, stream), wanted);
    }
    assert!(refused(text, "a\t1\nb\t2\r\n").starts_with("HF3114"), "two ways to end a line");
    let office = copy("COPY account (b) FROM STDIN").divider(&["b".to_owned()], 100, true);
    assert_eq!(office.expect_err("no key").code(), "HF3104");
    let short = "COPY account (b, account) FROM STDIN";
    let mut divider = divider(short, &["b", "account"], 100);
    let refused = divide(&mut divider, b"only\n", &[2]).expect_err("one field");
    assert_eq!(
        (refused.code(), refused.sqlstate(), refused.cause.as_str()),
        ("HF3114", "22P04", "COPY into account, row 1: no field for column account")
    );
}

#[test]
fn a_row_is_as_long_as_the_limit_and_not_one_byte_longer() {
    for pieces in [1, 7, 1_000] {
        let row = |length: usize| format!("A-1\t{}\n", "x".repeat(length - 5));
        let mut at = divider("COPY account FROM STDIN", &["account", "b"], 100);
        let stream = row(100).repeat(3);
        assert_eq!(divide(&mut at, stream.as_bytes(), &[pieces]).map(|rows| rows.len()), Ok(3));
        let mut past = divider("COPY account FROM STDIN", &["account", "b"], 100);
        let refused = divide(&mut past, row(101).as_bytes(), &[pieces]).expect_err("one past");
        assert_eq!((refused.code(), refused.sqlstate()), ("HF3102", "54000"));
    }
}

#[test]
fn a_mark_ends_the_stream_and_names_of_columns_go_to_all() {
    let sql = "COPY account FROM STDIN (HEADER)";
    let mut text = divider(sql, &["account", "b"], 100);
    let told = divide(&mut text, b"account\tb\nA-1\t1\n\\.\nnothing\n", &[3]).expect("right");
    assert_eq!(told[0], (None, b"account\tb\n".to_vec()));
    assert_eq!((told.len(), told[1].0), (2, Some(home("A-1"))));
    let mut cut = divider("COPY account FROM STDIN", &["account", "b"], 100);
    let refused =
        divide(&mut cut, b"A-1\t1\n\\.", &[4]).expect_err("no mark for PostgreSQL either");
    assert_eq!(refused.code(), "HF3114");
    // Since version 18 a CSV has no mark.
    let columns = ["account".to_owned()];
    let csv = copy("COPY account FROM STDIN CSV");
    let rows = |ends: bool| {
        let mut divider = csv.divider(&columns, 100, ends).expect("its key is there");
        divide(&mut divider, b"A-1\n\\.\nA-2\n", &[100]).map(|rows| rows.len())
    };
    assert_eq!((rows(true), rows(false)), (Ok(1), Ok(3)));
}

#[test]
fn tables_say_who_gets_rows() {
    let country = plan("COPY country FROM STDIN").expect("every copy");
    assert_eq!((country.sources(), country.is_scattered()), (2, true));
    assert!(plan("COPY audit FROM STDIN").expect("one source").copy.is_none());
    let code = |sql| plan(sql).map(|_| ()).map_err(|refused| refused.code());
    assert_eq!(code("COPY office FROM STDIN"), Err("HF3106"));
    assert_eq!(code("COPY office TO STDOUT"), Ok(()));
    assert_eq!(code("COPY country FROM STDIN WHERE true"), Err("HF3107"));
    for (sql, sent) in [
        ("SELECT id FROM office ORDER BY id", "SELECT id FROM office ORDER BY id"),
        ("SELECT count(*) FROM office", "SELECT count(*) FROM office"),
    ] {
        let planned = plan(&format!("COPY ({sql}) TO STDOUT CSV")).expect("it is merged");
        assert!(matches!(planned.copy, Some(Copy::Written(_))), "{sql}");
        let Target::Several(parts) = planned.target else { panic!("two sources") };
        let told = parts.iter().filter_map(|part| part.rewritten.as_ref());
        assert_eq!(told.map(|one| one.sql.as_str()).collect::<Vec<_>>(), [sent, sent]);
    }
    assert_eq!(code("COPY (SELECT id FROM office ORDER BY id) TO STDOUT CSV CSV"), Err("HF3107"));
    assert_eq!(
        code("COPY (SELECT id FROM office ORDER BY id) TO STDOUT CSV FORCE QUOTE id"),
        Err("HF3107")
    );
    assert_eq!(code("COPY account FROM STDIN (FORMAT binary)"), Err("HF3111"));
    assert_eq!(code("COPY pg_class FROM STDIN"), Err("HF3111"));
}

//! What holds for every topology and every key.

use std::fmt::Write as _;

use holdfast_route::{Algorithm, Key, Shape, Slot, SlotRange, Template, Topology, Values, limit};
use proptest::prelude::*;

/// Rules in which `cuts` divide the slots among as many shards, in turn.
fn rules(shards: usize, cuts: &[u16], function: &str) -> String {
    let mut starts: Vec<u16> = cuts.iter().copied().filter(|cut| *cut > 0).collect();
    starts.push(0);
    starts.sort_unstable();
    starts.dedup();
    let mut text = format!("[group.account]\nkey = \"account\"\nfunction = \"{function}\"\n");
    for (index, first) in starts.iter().enumerate() {
        let last = starts.get(index + 1).map_or(1023, |next| next - 1);
        let shard = index % shards;
        writeln!(
            text,
            "[[group.account.slots]]\nfirst = {first}\nlast = {last}\nshard = \"s{shard}\""
        )
        .expect("a String takes all");
    }
    for shard in 0..shards {
        writeln!(text, "[shard.s{shard}]\nsource = \"pg-{}\"", shard / 2)
            .expect("a String takes all");
    }
    for source in 0..shards.div_ceil(2) {
        writeln!(text, "[source.pg-{source}]\naddress = \"10.0.0.1:{}\"", 5432 + source)
            .expect("a String takes all");
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_key_lands_on_exactly_one_shard(
        shards in 1_usize..=64,
        cuts in prop::collection::vec(0_u16..1024, 0..80),
        keys in prop::collection::vec("[^\\x00\\n]{1,40}", 1..20),
    ) {
        let topology = Topology::parse(&rules(shards, &cuts, "crc32c")).unwrap();
        let group = &topology.groups()["account"];
        let holdings: Vec<(_, Vec<SlotRange>)> =
            topology.shards().keys().map(|shard| (shard, group.slots_of(shard))).collect();
        for key in keys {
            let located = topology.locate("account", &key).unwrap();
            let owners: Vec<_> = holdings
                .iter()
                .filter(|(_, ranges)| {
                    ranges.iter().any(|r| (r.first..=r.last).contains(&located.slot))
                })
                .map(|(shard, _)| (*shard).clone())
                .collect();
            prop_assert_eq!(owners, vec![located.shard.clone()]);
            prop_assert_eq!(topology.shards()[&located.shard].source(), &located.source);
        }
        let slots: usize = holdings
            .iter()
            .flat_map(|(_, ranges)| ranges)
            .map(|range| usize::from(range.last.number() - range.first.number()) + 1)
            .sum();
        prop_assert_eq!(slots, 1024);
    }

    /// Where a slot lives is for the rules to say; which slot a key has is not.
    #[test]
    fn a_slot_does_not_depend_on_the_rules(key in "[^\\x00\\n]{1,40}", a in 1_usize..9, b in 1_usize..9) {
        let one = Topology::parse(&rules(a, &[100, 200], "crc32c")).unwrap();
        let other = Topology::parse(&rules(b, &[5], "crc32c")).unwrap();
        prop_assert_eq!(
            one.locate("account", &key).unwrap().slot,
            other.locate("account", &key).unwrap().slot
        );
    }

    #[test]
    fn mod_is_the_remainder(number: u128) {
        let slot = Algorithm::Modulo.slot(Key::parse(&number.to_string()).unwrap()).unwrap();
        prop_assert_eq!(u128::from(slot.number()), number % 1024);
    }

    /// Whatever the file holds, it is judged and not choked on.
    #[test]
    fn any_text_is_judged(text in ".{0,400}") {
        if let Err(mistakes) = Topology::parse(&text) {
            prop_assert!(!mistakes.is_empty());
        }
    }

    /// One line lost or doubled is either noticed or changes nothing about the cover.
    #[test]
    fn a_damaged_file_never_loses_a_slot(line in 0_usize..40, double: bool) {
        let text = rules(3, &[300, 600], "crc32c");
        let mut lines: Vec<&str> = text.lines().collect();
        let line = line % lines.len();
        if double { lines.insert(line, lines[line]); } else { lines.remove(line); }
        match Topology::parse(&lines.join("\n")) {
            Err(mistakes) => prop_assert!(!mistakes.is_empty()),
            Ok(topology) => {
                let group = &topology.groups()["account"];
                let held: usize = topology.shards().keys().map(|shard| {
                    Slot::all().filter(|slot| group.shard_of(*slot) == shard).count()
                }).sum();
                prop_assert_eq!(held, 1024);
            }
        }
    }
}

#[test]
fn keys_are_bounded() {
    let topology = Topology::parse(&rules(2, &[512], "crc32c")).unwrap();
    assert!(topology.locate("account", &"k".repeat(limit::KEY_BYTES_MAX)).is_ok());
    let refusal = topology.locate("account", &"k".repeat(limit::KEY_BYTES_MAX + 1)).unwrap_err();
    assert_eq!(refusal.code(), "HF3022");
}

#[test]
fn rules_are_bounded() {
    let text = rules(2, &[512], "crc32c");
    let padding = limit::RULES_BYTES_MAX - text.len();
    let longest = format!("{}\n{text}", "#".repeat(padding - 1));
    assert_eq!(longest.len(), limit::RULES_BYTES_MAX);
    assert!(Topology::parse(&longest).is_ok());
    let mistakes = Topology::parse(&format!("#{longest}")).unwrap_err();
    assert_eq!((mistakes.len(), mistakes[0].code), (1, "HF3005"));
}

#[test]
fn groups_are_bounded() {
    let shards = "[shard.s]\nsource = \"p\"\n[source.p]\naddress = \"h:1\"\n";
    let groups = |count: usize| {
        (0..count).fold(shards.to_owned(), |text, index| {
            format!(
                "{text}[group.g{index}]\nkey = \"k\"\nfunction = \"mod\"\nslots = [{{ first = 0, last = 1023, shard = \"s\" }}]\n"
            )
        })
    };
    assert!(Topology::parse(&groups(limit::GROUPS_MAX)).is_ok());
    let mistakes = Topology::parse(&groups(limit::GROUPS_MAX + 1)).unwrap_err();
    assert_eq!((mistakes.len(), mistakes[0].code), (1, "HF3005"));
}

#[test]
fn mistakes_are_bounded() {
    let text = rules(2, &[512], "crc32c");
    let strangers = |count: usize| {
        (0..count).fold(text.clone(), |text, index| format!("zz{index} = 1\n{text}"))
    };
    assert_eq!(Topology::parse(&strangers(100)).unwrap_err().len(), limit::MISTAKES_MAX);
    let mistakes = Topology::parse(&strangers(150)).unwrap_err();
    assert_eq!(mistakes.len(), limit::MISTAKES_MAX);
    let last = mistakes.last().unwrap();
    assert_eq!((last.code, last.cause.as_str()), ("HF3011", "51 more mistakes follow"));
}

#[test]
fn the_shipped_rules_are_right() {
    let topology = Topology::parse(include_str!("../../../config/shards.toml")).unwrap();
    assert_eq!((topology.shards().len(), topology.sources().len()), (4, 4));
    assert_eq!(topology.groups()["account"].key(), "account");
}

#[test]
fn statements_are_bounded() {
    use holdfast_route::{RefusalClass, Template};
    let refused = |sql: &str| Template::of(sql).map(|_| ()).map_err(|refused| refused.class);
    let nested = |depth: usize| format!("SELECT {}1{}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(refused(&nested(limit::NESTING_MAX - 1)), Ok(()));
    assert_eq!(refused(&nested(limit::NESTING_MAX)), Err(RefusalClass::TooLarge));
    let chained = |count: usize| format!("SELECT 1{}", " + 1".repeat(count));
    assert_eq!(refused(&chained(limit::CHAIN_MAX)), Ok(()));
    assert_eq!(refused(&chained(limit::CHAIN_MAX + 1)), Err(RefusalClass::TooLarge));
    let long = |bytes: usize| format!("SELECT 1{}", " ".repeat(bytes - 8));
    assert_eq!(refused(&long(limit::STATEMENT_BYTES_MAX)), Ok(()));
    assert_eq!(refused(&long(limit::STATEMENT_BYTES_MAX + 1)), Err(RefusalClass::TooLarge));
}

/// Pieces of SQL, so that random texts come near to statements.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "SELECT",
        "FROM",
        "WHERE",
        "account",
        "card",
        "office",
        "id",
        "customer",
        "=",
        "IN",
        "(",
        ")",
        ",",
        "1",
        "'x'",
        "$1",
        "AND",
        "OR",
        "NOT",
        "JOIN",
        "LEFT JOIN",
        "ON",
        "USING",
        "GROUP BY",
        "ORDER BY",
        "LIMIT",
        "INSERT INTO",
        "VALUES",
        "UPDATE",
        "SET",
        "DELETE FROM",
        "WITH s AS",
        "count(*)",
        "DISTINCT",
        "UNION ALL",
        "NULL",
        "::bigint",
        "*",
        "ANY",
        "a",
        ".",
        "-",
        "''",
        "$$x$$",
        "/*c*/",
        "RETURNING",
        "EXISTS",
        "1.0",
    ]);
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is sent, it is routed or refused.
    #[test]
    fn any_statement_is_judged(sql in prop_oneof![".{0,200}", pieces()], value in prop::option::of(".{0,12}")) {
        let rules = include_str!("../testscripts/rules/bank.toml");
        let rules = std::sync::Arc::new(Topology::parse(rules).unwrap());
        let _ = holdfast_route::statements(&sql);
        if let Ok(template) = holdfast_route::Template::of(&sql)
            && let Ok(shape) = holdfast_route::Shape::read(template.text(), &rules)
        {
            let bytes = value.as_ref().map(String::as_bytes);
            let parameters = [holdfast_route::Parameter { oid: 0, format: holdfast_route::Format::Text, value: bytes }];
            let values = holdfast_route::Values { sql: &sql, literals: template.literals(), parameters: &parameters };
            let _ = shape.plan(&rules, &values);
        }
    }

    /// A template with its literals put back is the statement, but for white space and comments.
    #[test]
    fn a_template_keeps_every_word(sql in pieces()) {
        if let Ok(template) = holdfast_route::Template::of(&sql) {
            let mut text = template.text().to_owned();
            for (index, literal) in template.literals().iter().enumerate().rev() {
                text = text.replace(&format!("$h{}", index + 1), literal.raw(&sql));
            }
            let plain = |text: &str| text.replace("/*c*/", "").split_whitespace().collect::<String>();
            prop_assert_eq!(plain(&text), plain(&sql));
        }
    }

    /// Statements that differ only in their literals share a template.
    #[test]
    fn literals_do_not_matter(one: u32, other: u32, text in "[a-z]{0,8}") {
        let sql = |number: u32, text: &str| format!("SELECT name FROM office WHERE id = {number} AND name <> '{text}' LIMIT {number}");
        let template = |sql: &str| holdfast_route::Template::of(sql).unwrap().text().to_owned();
        prop_assert_eq!(template(&sql(one, &text)), template(&sql(other, "")));
    }
}

/// More than these are not looked at, which means all slots: a refusal, where several sources are not permitted.
#[test]
fn as_many_keys_in_a_list_or_an_array_narrow_as_the_limit_and_not_one_more() {
    let text = rules(2, &[512], "mod").replace("function = ", "type = \"integer\"\nfunction = ")
        + "[table.item]\ngroup = \"account\"\n[shard.s9]\nsource = \"pg-9\"\n[source.pg-9]\naddress = \"10.0.0.1:1\"\n";
    let text = text.replace("[shard.s1]\nsource = \"pg-0\"", "[shard.s1]\nsource = \"pg-9\"");
    let rules = std::sync::Arc::new(Topology::parse(&text).expect("good rules"));
    let code = |sql: &str| {
        let template = Template::of(sql).expect("it is one statement");
        let values = Values { sql, literals: template.literals(), parameters: &[] };
        let planned =
            Shape::read(template.text(), &rules).and_then(|shape| shape.plan(&rules, &values));
        planned.map(|plan| plan.sources()).map_err(|refused| refused.code())
    };
    for (count, wanted) in [(limit::KEYS_MAX, Ok(1)), (limit::KEYS_MAX + 1, Err("HF3104"))] {
        let keys = vec!["7"; count].join(",");
        assert_eq!(code(&format!("SELECT 1 FROM item WHERE account IN ({keys})")), wanted);
    }
    for (count, wanted) in [(limit::KEYS_MAX, Ok(1)), (limit::KEYS_MAX + 1, Err("HF3105"))] {
        let keys = vec!["7"; count].join(",");
        assert_eq!(code(&format!("SELECT 1 FROM item WHERE account = ANY ('{{{keys}}}')")), wanted);
    }
}

#[test]
fn rows_stray_by_another_function_or_place_and_by_a_slot_that_moves() {
    let table = |text: &str| Topology::parse(text).expect("good rules");
    let base = rules(2, &[512], "crc32c") + "[table.item]\ngroup = \"account\"\n";
    let strays = |after: &str| table(&base).strays(&table(after));
    assert_eq!(strays(&base), [""; 0]);
    let new = base.clone() + "[table.new]\nreference = true\n";
    assert_eq!(strays(&new), [""; 0], "nothing lies in what is new");
    assert_eq!(strays(&rules(2, &[100], "crc32c")), [""; 0], "both shards are on one source");
    let sources = |cuts: &[u16]| table(&rules(3, cuts, "crc32c"));
    assert_eq!(
        sources(&[512, 800]).strays(&sources(&[100, 900])),
        ["group account: slots 800 to 899 were on source pg-1, would be on pg-0"]
    );
    let gone = rules(2, &[512], "crc32c");
    assert_eq!(strays(&gone), [""; 0]);
    let other = rules(2, &[512], "pg_hash_text") + "[table.item]\ngroup = \"account\"\n";
    let found = strays(&other);
    assert!(
        matches!(found.as_slice(), [one] if one.starts_with("group account was by")),
        "{found:?}"
    );
    let key = rules(2, &[512], "crc32c") + "[table.item]\ngroup = \"account\"\nkey = \"owner\"\n";
    assert_eq!(
        strays(&key),
        ["table item was in group account by account, would be in group account by owner"]
    );
    let copied = rules(2, &[512], "crc32c") + "[table.item]\nreference = true\n";
    assert_eq!(
        strays(&copied),
        ["table item was in group account by account, would be on every source"]
    );
}

#[test]
fn a_key_lives_in_one_place_however_its_type_lets_it_be_written() {
    let slot = |kind: &str, key: &str| {
        let typed = format!("type = \"{kind}\"\nfunction");
        let text = rules(2, &[512], "pg_hash_text").replacen("function", &typed, 1);
        let topology = Topology::parse(&text).expect("valid rules");
        topology.locate("account", key).map(|located| located.slot)
    };
    const UUID: &str = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    let unbroken = UUID.replace('-', "");
    let (upper, braces) = (UUID.to_uppercase(), format!("{{{UUID}}}"));
    for (kind, key, same) in [
        ("char", "k17", "k17         "),
        ("integer", "7", "007"),
        ("integer", "7", " +7 "),
        ("integer", "0", "-0"),
        ("uuid", UUID, &upper),
        ("uuid", UUID, &braces),
        ("uuid", UUID, &unbroken),
    ] {
        assert_eq!(slot(kind, key).unwrap(), slot(kind, same).unwrap(), "{kind} {same:?}");
    }
    assert_ne!(slot("text", "k17 ").unwrap(), slot("text", "k17").unwrap());
    assert_ne!(slot("text", "007").unwrap(), slot("text", "7").unwrap());

    for (kind, key, why) in [
        ("char", "  ", "a key has 1 to 256 bytes"),
        ("text", "a\0b", "it holds a zero byte"),
        ("integer", "7x", "it is no integer"),
        ("integer", "9223372036854775808", "it is no 64-bit integer"),
        ("uuid", "a0eebc99", "it is no uuid in its usual form"),
        ("date", "1.2.2026", "it is no date written YYYY-MM-DD"),
    ] {
        let refused = slot(kind, key).unwrap_err();
        assert_eq!(refused.code(), "HF3021", "{refused}");
        assert!(refused.to_string().contains(why), "{refused}");
    }
}

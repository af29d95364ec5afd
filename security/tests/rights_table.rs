//! The table of rights in the documentation is the table in the code. `UPDATE_GOLDENFILES=1` writes it anew.

use std::{fmt::Write as _, fs, path::Path};

use holdfast_security::{
    Right, Role, Scope,
    right::{ROUTES, RPCS, for_anybody, scope},
};

const BEGIN: &str = "<!-- from here on written by security/tests/rights_table.rs -->\n";

fn table() -> String {
    let mut text = String::from(BEGIN);
    let words: Vec<&str> = Role::ALL.iter().map(|role| role.as_str()).collect();
    writeln!(text, "\n## Rights of roles\n\n| right | {} | nobody known |", words.join(" | "))
        .expect("a text takes everything");
    writeln!(text, "|---|{}---|", "---|".repeat(words.len())).expect("a text takes everything");
    let shown = |scope| match scope {
        Scope::None => "",
        Scope::Own => "own",
        Scope::All => "all",
    };
    for right in Right::ALL {
        let cells: Vec<&str> = Role::ALL.iter().map(|role| shown(scope(*role, right))).collect();
        let row = format!(
            "| `{}` | {} | {} |",
            right.as_str(),
            cells.join(" | "),
            shown(for_anybody(right))
        );
        writeln!(text, "{}", row.replace("|  |", "| |").replace("|  |", "| |"))
            .expect("a text takes everything");
    }
    text.push_str("\n## The right of each RPC\n\n| RPC | right |\n|---|---|\n");
    for (path, right) in RPCS {
        writeln!(text, "| `{path}` | `{}` |", right.as_str()).expect("a text takes everything");
    }
    text.push_str(
        "\n## The right of each HTTP route\n\n| method | route | right |\n|---|---|---|\n",
    );
    for (method, route, right) in ROUTES {
        writeln!(text, "| {method} | `{route}` | `{}` |", right.as_str())
            .expect("a text takes everything");
    }
    text
}

#[test]
fn the_documented_table_is_the_one_in_the_code() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/rights.md");
    let page = fs::read_to_string(&file).expect("the page is there");
    let (head, written) = page.split_once(BEGIN).expect("the page has its mark");
    let wanted = table();
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        fs::write(&file, format!("{head}{wanted}")).expect("it is written");
        return;
    }
    assert!(
        format!("{BEGIN}{written}") == wanted,
        "docs/reference/rights.md is old: UPDATE_GOLDENFILES=1 cargo test -p holdfast-security --test rights_table"
    );
}

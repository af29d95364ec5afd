//! What one source carries out alone, or nobody: EXPLAIN, cursors, and whatever is no query at all. A server would do it for its own rows and
//! call that the whole.

use sqlparser::ast::Statement;

use super::{
    keyword::{Kind, Words},
    read::{self, Body},
    walk::unsupported,
};
use crate::{Access, Plan, RefusalClass, Refused, Target, Topology};

/// What a statement of `kind` says of tables, where there is more than one source.
/// # Errors
/// It is never routed.
pub(super) fn body(kind: &Kind, template: &str, rules: &Topology) -> Result<Body, Refused> {
    let (statement, text) = match kind {
        Kind::Copy(_) => {
            let query = copied(&Words::all_of(template))?;
            (read::parse(&query)?, Some(query))
        }
        Kind::Declare { .. } => (read::parse(declared(&Words::of(template))?)?, None),
        Kind::Explain => match read::parse(template)? {
            Statement::Explain { statement, .. } => (*statement, None),
            _ => return Err(unsupported("this form of EXPLAIN")),
        },
        Kind::Lock => return Err(everywhere("LOCK")),
        Kind::Utility(word) => return Err(everywhere(&word.to_uppercase())),
        _ => return Ok(Body::None),
    };
    Ok(Body::Tables(Box::new(read::tables(&statement, text.as_deref(), rules)?)))
}

/// One source has all rows of it, or it is refused.
/// # Errors
/// As told.
pub(super) fn judge(kind: &Kind, planned: Result<Plan, Refused>) -> Result<Plan, Refused> {
    let what = match kind {
        Kind::Declare { .. } => "a cursor",
        Kind::Explain => "EXPLAIN",
        _ => return planned,
    };
    let several = || {
        let remedy = match kind {
            Kind::Explain => {
                "EXPLAIN (ROUTE) says where it would go; ask that source itself for its plan"
            }
            _ => "Say one key, or take them from each source itself",
        };
        let cause = format!("{what} is carried out by one source, and these rows are of several");
        Refused::new(RefusalClass::Unsupported, cause, remedy)
    };
    let plan = planned.map_err(|refused| match refused.class {
        RefusalClass::NoKey | RefusalClass::ScatterNotAllowed | RefusalClass::NotMergeable => {
            several()
        }
        _ => refused,
    })?;
    match (kind, &plan.target) {
        (_, Target::Several(_)) => Err(several()),
        // Carried out by ANALYZE, it would leave out what belongs to its rows elsewhere.
        (Kind::Explain, _) if plan.access == Access::Write => {
            Err(unsupported("EXPLAIN of a write"))
        }
        (_, Target::Any | Target::One(_)) => Ok(plan),
    }
}

fn everywhere(what: &str) -> Refused {
    let cause =
        format!("{what} is not routed: one source would carry it out, and the others would not");
    Refused::new(RefusalClass::Unsupported, cause, "Carry it out at each source itself")
}

/// A query for the rows of a COPY.
fn copied(words: &Words<'_>) -> Result<String, Refused> {
    let refused = || unsupported("this form of COPY");
    if words.get(1) == "(" {
        return words.within(1).map(str::to_owned).ok_or_else(refused);
    }
    let end = (2..).find(|at| matches!(words.get(*at), "" | "(" | "from" | "to"));
    let table = end.and_then(|end| words.between(1, end)).ok_or_else(refused)?;
    Ok(format!("SELECT * FROM {table}"))
}

/// The query of a cursor.
fn declared<'t>(words: &Words<'t>) -> Result<&'t str, Refused> {
    let behind = (1..).find(|at| matches!(words.get(*at), "" | "for")).map(|at| at + 1);
    let query = behind.and_then(|from| words.from(from));
    query.ok_or_else(|| unsupported("this form of DECLARE"))
}

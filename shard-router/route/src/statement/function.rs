//! Functions by name: which give every source the same answer, which gather rows, and which one server keeps for all.

use std::ops::ControlFlow;

use sqlparser::ast::{Expr, Function, Query, Visit, Visitor};

use super::scope::folded;

/// What a function means for a statement's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nature {
    /// The same arguments, the same answer, on every source.
    Steady,
    /// Gathers rows into one.
    Aggregate,
    /// Depends on the time, on chance, on the session, or on what somebody wrote.
    Wandering,
    /// Keeps or reads something that one server keeps for all its sessions: sequences, advisory locks.
    Unshared,
}

const AGGREGATES: [&str; 34] = [
    "count",
    "sum",
    "min",
    "max",
    "avg",
    "array_agg",
    "string_agg",
    "bool_and",
    "bool_or",
    "every",
    "bit_and",
    "bit_or",
    "bit_xor",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "jsonb_object_agg",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "variance",
    "var_pop",
    "var_samp",
    "corr",
    "covar_pop",
    "covar_samp",
    "mode",
    "percentile_cont",
    "percentile_disc",
    "any_value",
    "range_agg",
    "xmlagg",
    "regr_count",
    "regr_slope",
];
const STEADY: [&str; 78] = [
    "abs",
    "ceil",
    "ceiling",
    "floor",
    "round",
    "trunc",
    "sign",
    "mod",
    "div",
    "power",
    "sqrt",
    "exp",
    "ln",
    "log",
    "greatest",
    "least",
    "coalesce",
    "nullif",
    "lower",
    "upper",
    "initcap",
    "length",
    "char_length",
    "character_length",
    "octet_length",
    "bit_length",
    "trim",
    "btrim",
    "ltrim",
    "rtrim",
    "lpad",
    "rpad",
    "left",
    "right",
    "substr",
    "substring",
    "position",
    "strpos",
    "replace",
    "translate",
    "reverse",
    "repeat",
    "concat",
    "concat_ws",
    "md5",
    "sha256",
    "ascii",
    "chr",
    "split_part",
    "starts_with",
    "encode",
    "decode",
    "to_hex",
    "quote_literal",
    "quote_ident",
    "array_length",
    "cardinality",
    "array_append",
    "array_cat",
    "array_position",
    "unnest",
    "generate_series",
    "date_part",
    "date_trunc",
    "make_date",
    "extract",
    "isfinite",
    "regexp_replace",
    "regexp_match",
    "jsonb_build_object",
    "json_build_object",
    "jsonb_extract_path",
    "jsonb_array_length",
    "overlay",
    "gcd",
    "lcm",
    "factorial",
    "format",
];
const UNSHARED: [&str; 8] = [
    "nextval",
    "currval",
    "lastval",
    "setval",
    "pg_notify",
    "txid_current",
    "pg_current_xact_id",
    "pg_export_snapshot",
];

/// What `function` is.
pub(crate) fn nature(function: &Function) -> Nature {
    let parts: Option<Vec<String>> =
        function.name.0.iter().map(|part| part.as_ident().map(folded)).collect();
    let parts = parts.unwrap_or_default();
    let name = match parts.as_slice() {
        [name] => name.as_str(),
        [schema, name] if schema == "pg_catalog" => name.as_str(),
        _ => return Nature::Wandering,
    };
    if UNSHARED.contains(&name)
        || name.starts_with("pg_advisory_")
        || name.starts_with("pg_try_adv")
    {
        Nature::Unshared
    } else if AGGREGATES.contains(&name) {
        Nature::Aggregate
    } else if STEADY.contains(&name) {
        Nature::Steady
    } else {
        Nature::Wandering
    }
}

/// What kinds of function a statement calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Called {
    /// The first of the kind, by name.
    pub(crate) wandering: Option<String>,
    pub(crate) unshared: Option<String>,
}

impl Visitor for Called {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Function(function) => {
                let name = || Some(function.name.to_string());
                match nature(function) {
                    Nature::Steady | Nature::Aggregate => {}
                    Nature::Wandering if function.over.is_some() => {}
                    Nature::Wandering => self.wandering = self.wandering.take().or_else(name),
                    Nature::Unshared => self.unshared = self.unshared.take().or_else(name),
                }
            }
            Expr::Interval(_) => {}
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

/// Whether an aggregate or a window function stands in `node`, outside its subqueries.
pub(crate) fn gathers<V: Visit>(node: &V) -> bool {
    struct Gathers {
        depth: usize,
    }
    impl Visitor for Gathers {
        type Break = ();
        fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth += 1;
            ControlFlow::Continue(())
        }
        fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
            self.depth -= 1;
            ControlFlow::Continue(())
        }
        fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
            match expr {
                Expr::Function(function) if self.depth == 0 => {
                    // A function that is not known may be an aggregate of the client's own.
                    let gathers = function.over.is_some()
                        || !function.within_group.is_empty()
                        || matches!(nature(function), Nature::Aggregate | Nature::Wandering);
                    if gathers { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                }
                _ => ControlFlow::Continue(()),
            }
        }
    }
    node.visit(&mut Gathers { depth: 0 }).is_break()
}

//! What the routing mind takes for a statement: one that it has never seen, and one that differs from a known one in its literals.

use std::{hint::black_box, sync::Arc, time::Instant};

use anyhow::Context as _;
use holdfast_route::{Shape, Template, Topology, Values};

/// What applications of a bank send, from the shortest to a join.
const STATEMENTS: [&str; 6] = [
    "SELECT abalance FROM pgbench_accounts WHERE bid = 7 AND aid = 641973",
    "UPDATE pgbench_accounts SET abalance = abalance + 4711 WHERE bid = 7 AND aid = 641973",
    "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (64, 7, 641973, -4711, CURRENT_TIMESTAMP)",
    "SELECT a.aid, a.abalance, t.tbalance FROM pgbench_accounts a JOIN pgbench_tellers t ON t.bid = a.bid WHERE a.bid = 7 AND a.aid IN (1, 2, 3) ORDER BY a.aid LIMIT 20",
    "SELECT count(*), sum(abalance) FROM pgbench_accounts WHERE bid = 7 AND abalance BETWEEN 100 AND 200 AND filler LIKE 'x%'",
    "DELETE FROM pgbench_history WHERE bid = 7 AND mtime < '2026-01-01'",
];
const ROUNDS: usize = 400;

/// Microseconds of the dearest statement's miss, and of the mean hit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) miss_us: f64,
    pub(crate) hit_us: f64,
}

/// Measures both, one behind the other on this thread. Each figure is a median, which whatever else runs here moves little.
/// # Errors
/// The rules do not route one of the statements.
pub(crate) fn measure(rules: &Arc<Topology>) -> anyhow::Result<Taken> {
    let mut taken = Taken { miss_us: 0.0, hit_us: 0.0 };
    for sql in STATEMENTS {
        let template = Template::of(sql)?;
        let shape = Shape::read(template.text(), rules)?;
        let (mut misses, mut hits) = (Vec::with_capacity(ROUNDS), Vec::with_capacity(ROUNDS));
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let template = Template::of(black_box(sql))?;
            let shape = Shape::read(template.text(), rules)?;
            let values = Values { sql, literals: template.literals(), parameters: &[] };
            black_box(shape.plan(rules, &values)?);
            misses.push(begun.elapsed());
        }
        let mut template = template;
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            template.fill(black_box(sql))?;
            let values = Values { sql, literals: template.literals(), parameters: &[] };
            black_box(shape.plan(rules, &values)?);
            hits.push(begun.elapsed());
        }
        let median = |times: &mut Vec<std::time::Duration>| {
            times.sort_unstable();
            times.get(times.len() / 2).map(|time| time.as_secs_f64() * 1e6).context("rounds")
        };
        taken.miss_us = taken.miss_us.max(median(&mut misses)?);
        taken.hit_us += median(&mut hits)? / STATEMENTS.len() as f64;
    }
    Ok(taken)
}

//! The report as one HTML page that needs nothing else: verdict, figures, and the load curve with the fault windows shaded.

use std::fmt::Write as _;

use super::report::{Report, Verdict};

/// The curve's size, in units of its own.
const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 240.0;
/// Points that are drawn; more are put together.
const DRAWN_MAX: usize = 1_200;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.4rem}table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;\
border-bottom:1px solid #d8dee4}.pass{color:#1a7f37}.fail{color:#cf222e}svg{width:100%;height:auto;background:#f6f8fa}\
.fault{fill:#cf222e;opacity:.15}.committed{fill:none;stroke:#0969da;stroke-width:1.2}.refused{fill:none;stroke:#9a6700;stroke-width:1}\
text{font-size:11px;fill:#57606a}";

/// The page.
pub(crate) fn of(report: &Report) -> String {
    let verdict = match report.verdict {
        Verdict::Pass => "<span class=\"pass\">pass</span>",
        Verdict::Fail => "<span class=\"fail\">FAIL</span>",
    };
    let shown = |value: Option<u64>| value.map_or("&ndash;".to_owned(), |value| value.to_string());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Drill {name}</title><style>{STYLE}</style></head><body>\n\
         <h1>Drill {name}: {verdict}</h1>\n<p>{what}. Blast radius: {radius}.</p>\n",
        name = escaped(report.drill),
        what = escaped(report.what),
        radius = escaped(report.blast_radius),
    );
    page.push_str(&curve(report));
    let rows = [
        (
            "time to recover, ms (p50 / max)",
            format!("{} / {}", shown(report.recover_ms.p50), shown(report.recover_ms.max)),
        ),
        (
            "goals, ms (p50 / max)",
            format!("{} / {}", report.goals.recover_p50_ms, report.goals.recover_max_ms),
        ),
        (
            "in flight resolved after, ms (p50 / max)",
            format!("{} / {}", shown(report.resolved_ms.p50), shown(report.resolved_ms.max)),
        ),
        (
            "commits a second (before / during / after)",
            format!(
                "{:.0} / {:.0} / {:.0}",
                report.steady.before, report.steady.during, report.steady.after
            ),
        ),
        (
            "another leads, or the node has its vote, after, ms (p50 / max)",
            format!("{} / {}", shown(report.mended_ms.p50), shown(report.mended_ms.max)),
        ),
        ("lost", shown(report.lost)),
        ("doubled", shown(report.doubled)),
        ("in doubt", shown(report.in_doubt)),
        (
            "money conserved",
            report.conserved.map_or("&ndash;", |yes| if yes { "yes" } else { "NO" }).to_owned(),
        ),
    ];
    page.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(page, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    page.push_str("</table>\n");
    if !report.problems.is_empty() {
        page.push_str("<h2>Problems</h2><ul>");
        for problem in &report.problems {
            let _ = write!(page, "<li>{}</li>", escaped(problem));
        }
        page.push_str("</ul>\n");
    }
    page.push_str("<h2>Blows</h2><table><tr><th>victim</th><th>at, ms</th><th>recover, ms</th><th>in flight</th><th>resolved, ms</th><th>longest gap, ms</th></tr>");
    for repeat in report.repeats.iter().chain(&report.surge) {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(&repeat.victim),
            repeat.from_ms,
            shown(repeat.recover_ms),
            repeat.in_flight,
            shown(repeat.resolved_ms),
            repeat.gap_ms
        );
    }
    page.push_str("</table>\n<h2>Alarms</h2><table>");
    for alarm in &report.alarms {
        let _ = write!(
            page,
            "<tr><td>{} ms</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            alarm.at_ms,
            escaped(&alarm.what),
            escaped(&alarm.severity),
            alarm.state.word()
        );
    }
    let setup = &report.setup;
    let _ = write!(
        page,
        "</table>\n<p>Holdfast {}; cluster: {}; {} coordinators, {} banks, {} clients, seed {}; {:.0} s in all.</p></body></html>\n",
        escaped(setup.version),
        escaped(&setup.cluster),
        setup.coordinators,
        setup.banks,
        setup.clients,
        setup.seed,
        setup.whole_s
    );
    page
}

fn curve(report: &Report) -> String {
    let points = &report.curve;
    let end_ms = points.last().map_or(1, |point| point.at_ms).max(1) as f64;
    let together = points.len().div_ceil(DRAWN_MAX).max(1);
    let chunks: Vec<(f64, f64, f64)> = points
        .chunks(together)
        .map(|chunk| {
            let mean = |of: fn(&super::report::Point) -> u64| {
                chunk.iter().map(of).sum::<u64>() as f64 / chunk.len() as f64 * 10.0
            };
            (chunk[0].at_ms as f64, mean(|point| point.committed), mean(|point| point.refused))
        })
        .collect();
    let top = chunks.iter().map(|chunk| chunk.1.max(chunk.2)).fold(1.0, f64::max);
    let x = |at_ms: f64| at_ms / end_ms * WIDTH;
    let y = |rate: f64| HEIGHT - rate / top * (HEIGHT - 16.0);
    let line = |of: fn(&(f64, f64, f64)) -> f64| {
        let points = chunks.iter().map(|chunk| format!("{:.1},{:.1}", x(chunk.0), y(of(chunk))));
        points.collect::<Vec<_>>().join(" ")
    };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {:.0}\" role=\"img\" aria-label=\"commits a second\">",
        HEIGHT + 18.0
    );
    for repeat in report.repeats.iter().chain(&report.surge) {
        let (from, to) = (x(repeat.from_ms as f64), x(repeat.to_ms as f64));
        let _ = write!(
            svg,
            "<rect class=\"fault\" x=\"{from:.1}\" y=\"0\" width=\"{:.1}\" height=\"{HEIGHT}\"><title>{}</title></rect>",
            (to - from).max(1.0),
            escaped(&repeat.victim)
        );
    }
    let _ = write!(
        svg,
        "<polyline class=\"refused\" points=\"{}\"/><polyline class=\"committed\" points=\"{}\"/>\
         <text x=\"4\" y=\"12\">{top:.0} a second</text><text x=\"4\" y=\"{:.0}\">0 s</text><text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{:.0} s</text></svg>\n\
         <p><span style=\"color:#0969da\">committed</span>, <span style=\"color:#9a6700\">refused</span>, a second; faults shaded.</p>\n",
        line(|chunk| chunk.2),
        line(|chunk| chunk.1),
        HEIGHT + 14.0,
        WIDTH - 4.0,
        HEIGHT + 14.0,
        end_ms / 1_000.0
    );
    svg
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_cannot_become_part_of_the_page() {
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}

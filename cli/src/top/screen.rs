//! How a view looks: as widgets on a terminal, as text, and as JSON.

use ratatui::{
    Frame,
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize},
    text::Line,
    widgets::{Block, Paragraph, Row, Table},
};

use serde_json::{Value, json};

use super::reading::{NodeRow, View};
use crate::output;

const HEAD: [&str; 9] =
    ["group", "node", "role", "term", "applied", "behind", "sessions", "fsyncs/s", "grpc"];

/// Where the columns begin: where there is one group, nobody needs to know that there could be more.
fn from(view: &View) -> usize {
    usize::from(view.groups <= 1)
}

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let nodes = u16::try_from(view.nodes.len()).unwrap_or(9) + 3;
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(nodes), Constraint::Length(9), Constraint::Min(3)])
            .areas(frame.area());
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(middle);
    let rows = view.nodes.iter().map(|node| {
        let color = match node.role.as_str() {
            "leader" => Color::Green,
            "follower" => Color::Reset,
            _ => Color::Red,
        };
        Row::new(cells(node).split_off(from(view))).style(Style::new().fg(color))
    });
    let widths = [6, 6, 10, 8, 12, 8, 9, 9, 22].map(Constraint::Length);
    let heads = HEAD[from(view)..].iter().map(|head| head.to_uppercase());
    let table = Table::new(rows, &widths[from(view)..])
        .header(Row::new(heads).style(Style::new().bold()))
        .block(Block::bordered().title(" holdfast top: nodes (q leaves) "));
    frame.render_widget(table, top);
    frame.render_widget(paragraph(" a second ", rate_lines(view)), left);
    frame.render_widget(paragraph(" now ", gauge_lines(view)), right);
    frame.render_widget(paragraph(" open ", status_lines(view)), bottom);
}

/// Says that nobody answers.
pub(super) fn silence(frame: &mut Frame<'_>, why: &str) {
    let words = Paragraph::new(vec![
        Line::from("No node answers; asking again.").red(),
        Line::from(why.to_owned()),
    ]);
    frame.render_widget(words.block(Block::bordered().title(" holdfast top ")), frame.area());
}

/// The same as text, for `--once`.
pub(super) fn text(view: &View) -> String {
    let mut parts = vec![output::table(
        &HEAD[from(view)..],
        view.nodes.iter().map(|node| cells(node).split_off(from(view))),
    )];
    for (title, lines) in
        [("A SECOND", rate_lines(view)), ("NOW", gauge_lines(view)), ("OPEN", status_lines(view))]
    {
        parts.push(format!("{title}\n{}", lines.join("\n")));
    }
    parts.join("\n\n")
}

/// The same for programs.
pub(super) fn json(view: &View) -> Value {
    let named = |list: &[(&str, f64)]| -> Value {
        list.iter().map(|(name, value)| (name.replace(' ', "_"), json!(value))).collect()
    };
    json!({
        "nodes": view.nodes,
        "per_second": named(&view.rates),
        "decision_ms": view.decision_ms.map(|(p50, p99)| json!({ "p50": p50, "p99": p99 })),
        "now": named(&view.gauges),
        "open": view.by_status,
    })
}

fn paragraph(title: &'static str, lines: Vec<String>) -> Paragraph<'static> {
    let lines: Vec<Line<'static>> = lines.into_iter().map(Line::from).collect();
    Paragraph::new(lines).block(Block::bordered().title(title))
}

fn cells(node: &NodeRow) -> Vec<String> {
    vec![
        node.group.to_string(),
        node.node.to_string(),
        node.role.clone(),
        node.term.to_string(),
        node.applied.to_string(),
        node.behind.to_string(),
        or_dash(node.sessions),
        or_dash(node.fsyncs_per_second),
        node.grpc.clone(),
    ]
}

fn or_dash(number: Option<f64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| format!("{number:.0}"))
}

const DECIDED: &str = "decided within";

fn rate_lines(view: &View) -> Vec<String> {
    let mut lines: Vec<String> =
        view.rates.iter().map(|(name, rate)| format!("{name:<18}{rate:>10.0}")).collect();
    lines.push(match view.decision_ms {
        Some((p50, p99)) => format!("{DECIDED:<18}p50 {p50} ms, p99 {p99} ms"),
        None => format!("{DECIDED:<18}{:>10}", "-"),
    });
    lines
}

fn gauge_lines(view: &View) -> Vec<String> {
    view.gauges.iter().map(|(name, value)| format!("{name:<18}{value:>10.0}")).collect()
}

fn status_lines(view: &View) -> Vec<String> {
    if view.by_status.is_empty() {
        return vec!["nothing is open".to_owned()];
    }
    view.by_status
        .iter()
        .map(|(name, count)| format!("{:<18}{count:>10}", name.replace('_', " ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_drawn_on_a_small_terminal_and_told_as_text() {
        let node = NodeRow {
            node: 1,
            role: "leader".into(),
            grpc: "127.0.0.1:7401".into(),
            ..NodeRow::default()
        };
        let view = View {
            nodes: vec![node],
            rates: vec![("begun", 1_234.4)],
            decision_ms: Some((5.0, 10.0)),
            ..View::default()
        };
        let mut terminal =
            ratatui::Terminal::new(ratatui::backend::TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &view)).unwrap();
        let drawn = terminal.backend().to_string();
        assert!(drawn.contains("leader") && drawn.contains("1234"), "{drawn}");
        let told = text(&view);
        assert!(told.contains("p50 5 ms, p99 10 ms") && told.contains("nothing is open"), "{told}");
        assert!(!told.contains("GROUP"), "{told}");
        let said = json(&view);
        assert_eq!(said["nodes"][0]["role"], "leader");
        assert_eq!(said["per_second"]["begun"], 1_234.4);
        assert_eq!(said["decision_ms"], json!({ "p50": 5.0, "p99": 10.0 }));
        let told = text(&View { groups: 2, ..view });
        assert!(told.starts_with("GROUP  NODE  ROLE"), "{told}");
    }
}

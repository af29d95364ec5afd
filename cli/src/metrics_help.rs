//! The help lines of `/metrics`: the words of the reference page, so that what a metric tells is said once.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Rows `| name | type | labels | unit | what it tells |`; a test holds them to the sources.
const PAGE: &str = include_str!("../../docs/reference/metrics.md");

/// Describes every metric to the recorder that is installed, also those of other roles, which it shows once they are counted.
pub(crate) fn describe() {
    for (name, kind, tells) in rows(PAGE) {
        match kind {
            "counter" => describe_counter!(name, tells),
            "gauge" => describe_gauge!(name, tells),
            _ => describe_histogram!(name, tells),
        }
    }
}

/// Name, type and plain words of each metric on `page`.
fn rows(page: &'static str) -> impl Iterator<Item = (&'static str, &'static str, String)> {
    page.lines().filter_map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
        let kind = cells.next()?;
        name.starts_with("holdfast_").then(|| (name, kind, plain(cells.nth(2).unwrap_or_default())))
    })
}

/// `text` without marks of Markdown; of a link its words are left.
fn plain(text: &str) -> String {
    let mut words = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("](") {
        words.push_str(before);
        rest = behind.split_once(')').map_or("", |(_, rest)| rest);
    }
    words.push_str(rest);
    words.retain(|one| !matches!(one, '*' | '`' | '['));
    words
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn every_metric_of_the_page_has_a_type_and_plain_words() {
        let rows: Vec<_> = rows(PAGE).collect();
        assert!(rows.len() > 60, "only {} were found", rows.len());
        for (name, kind, tells) in rows {
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{name}: {kind}");
            assert!(tells.len() > 3, "{name}: {tells:?}");
            assert!(!tells.contains(['*', '`', '[', ']', '\n']), "{name}: {tells:?}");
        }
    }

    #[test]
    fn marks_are_left_out_and_of_a_link_its_words_stay() {
        let text = "**rising**: see [the page](../a.md#b) of `this`, or [that](x)";
        assert_eq!(plain(text), "rising: see the page of this, or that");
        assert_eq!(plain("as it is"), "as it is");
    }

    #[test]
    fn what_is_counted_is_shown_with_its_help() {
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!("holdfast_log_fsyncs_total").increment(1);
        });
        let page = recorder.handle().render();
        assert!(page.contains("# HELP holdfast_log_fsyncs_total of the log\n"), "{page}");
    }
}

//! Pages of the histories of several groups as one page, newest first.

use holdfast_history::{Cursor, Figures, Page};

/// At most `limit` records of all `pages`, and what their histories hold together: figures, and gaps.
pub(crate) fn merged(
    mut pages: Vec<Page>,
    held: Vec<(Figures, u64)>,
    limit: usize,
) -> (Page, Figures, u64) {
    let gaps = held.iter().map(|(_, gaps)| gaps).sum();
    let figures = held.into_iter().map(|(figures, _)| figures).reduce(together).unwrap_or_default();
    let page = if pages.len() == 1 { pages.remove(0) } else { as_one(pages, limit) };
    (page, figures, gaps)
}

fn as_one(pages: Vec<Page>, limit: usize) -> Page {
    // Of what is older than where the first group stopped, that group may have some that are not here.
    let mut next = pages.iter().filter_map(|page| page.next.clone()).max();
    let mut found: Vec<_> = pages
        .into_iter()
        .flat_map(|page| page.records)
        .map(|record| (Cursor::of(&record), record))
        .filter(|(at, _)| next.as_ref().is_none_or(|next| at >= next))
        .collect();
    found.sort_by(|(one, _), (other, _)| other.cmp(one));
    if found.len() > limit {
        found.truncate(limit);
        next = found.last().map(|(at, _)| at.clone());
    }
    Page { records: found.into_iter().map(|(_, record)| record).collect(), next }
}

fn together(one: Figures, other: Figures) -> Figures {
    let oldest_ms = match (one.oldest_ms, other.oldest_ms) {
        (0, ms) | (ms, 0) => ms,
        (one, other) => one.min(other),
    };
    Figures {
        records: one.records + other.records,
        sheets: one.sheets + other.sheets,
        bytes: one.bytes + other.bytes,
        disk_bytes: one.disk_bytes + other.disk_bytes,
        memory_bytes: one.memory_bytes + other.memory_bytes,
        oldest_ms,
        newest_ms: one.newest_ms.max(other.newest_ms),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_proto::v1::{HistoryRecord, Transaction};

    use super::*;

    fn page(ms: &[u64], next: Option<u64>) -> Page {
        let record = |ms: &u64| {
            let transaction = Transaction {
                gid: format!("g{ms}"),
                finished_at_ms: *ms,
                ..Transaction::default()
            };
            Arc::new(HistoryRecord { transaction: Some(transaction), ..Default::default() })
        };
        let next = next.map(|ms| Cursor::parse(&format!("{ms}-g{ms}")).unwrap());
        Page { records: ms.iter().map(record).collect(), next }
    }

    fn told(page: &Page) -> (Vec<u64>, Option<String>) {
        let ms = page
            .records
            .iter()
            .map(|record| record.transaction.as_ref().expect("it has one").finished_at_ms);
        (ms.collect(), page.next.as_ref().map(ToString::to_string))
    }

    #[test]
    fn what_finished_in_several_groups_is_shown_newest_first() {
        let (page, ..) = merged(vec![page(&[9, 4], None), page(&[7, 5], None)], Vec::new(), 10);
        assert_eq!(told(&page), (vec![9, 7, 5, 4], None));
    }

    #[test]
    fn a_page_ends_where_the_first_group_stopped() {
        let pages = vec![page(&[9, 6], Some(6)), page(&[7, 5, 4], None)];
        let (page, ..) = merged(pages, Vec::new(), 10);
        assert_eq!(told(&page), (vec![9, 7, 6], Some("6-g6".to_owned())));
    }

    #[test]
    fn a_page_at_its_limit_is_the_last_and_one_more_goes_on() {
        let pages = || vec![page(&[9, 4], None), page(&[7], None)];
        assert_eq!(told(&merged(pages(), Vec::new(), 3).0), (vec![9, 7, 4], None));
        let (page, ..) = merged(pages(), Vec::new(), 2);
        assert_eq!(told(&page), (vec![9, 7], Some("7-g7".to_owned())));
    }

    #[test]
    fn what_is_held_is_added_up() {
        let held = |records, oldest_ms, newest_ms| {
            (Figures { records, oldest_ms, newest_ms, ..Figures::default() }, 1)
        };
        let (_, figures, gaps) =
            merged(vec![Page::default()], vec![held(3, 0, 9), held(4, 5, 7)], 1);
        assert_eq!((figures.records, figures.oldest_ms, figures.newest_ms, gaps), (7, 5, 9, 2));
    }
}

//! A history on the shelf that ships: what goes in is found by everything it can be found by, once, in order, also after a crash.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use holdfast_history::{
    Amount, AmountRange, Archive, Change, Cursor, MemoryShelf, Pair, Query, Recorded, Retention,
    Shelf, ShelfError, SledShelf, limit,
};
use holdfast_proto::{
    Pairs,
    v1::{Attempt, Branch, HistoryRecord, Transaction},
};

/// The `n`-th transaction: four in a millisecond, every tenth rolled back.
fn record(n: u64) -> HistoryRecord {
    let tags = [
        ("run", format!("payroll-{}", n % 100)),
        ("order", format!("o{n}")),
        ("amount", format!("{}.50 EUR", n % 1_000)),
    ];
    let branch =
        Branch { branch: 1, participant: format!("deposit@shard-{}", n % 8), ..Default::default() };
    let transaction = Transaction {
        gid: format!("g-{n:08}"),
        mode: if n.is_multiple_of(3) { 2 } else { 1 },
        status: if n.is_multiple_of(10) { 8 } else { 7 },
        branches: vec![branch],
        finished_at_ms: 1_000_000 + n / 4,
        tags: Pairs::from_iter(tags).into(),
        ..Default::default()
    };
    HistoryRecord { transaction: Some(transaction), ..Default::default() }
}

fn set_amount(known: &mut Transaction, amount: &str) {
    let mut tags = Pairs::from(std::mem::take(&mut known.tags));
    tags.set("amount", amount);
    known.tags = tags.into();
}

fn memory() -> Archive {
    Archive::open(Arc::new(MemoryShelf::default()), Retention::default()).expect("the shelf works")
}

fn on_disk(folder: &Path) -> Archive {
    let (shelf, anew) = SledShelf::open(folder).expect("the shelf works");
    assert!(!anew);
    Archive::open(Arc::new(shelf), Retention::default()).expect("the shelf works")
}

/// One that has so many records, all of them written.
fn of_5_000(folder: &Path) -> Archive {
    let archive = on_disk(folder);
    fill(&archive, 0..5_000);
    archive.flush(0).expect("the shelf works");
    archive
}

fn fill(archive: &Archive, range: std::ops::Range<u64>) -> usize {
    archive.add(range.map(record)).expect("the shelf works")
}

/// Every gid that is found, page by page.
fn all(archive: &Archive, query: &Query) -> Vec<String> {
    let mut query = query.clone();
    let mut found = Vec::new();
    for _ in 0..10_000 {
        let page = archive.search(&query).expect("the shelf works");
        let gids = page.records.iter().filter_map(|record| record.transaction.as_ref());
        found.extend(gids.map(|known| known.gid.clone()));
        let Some(next) = page.next else { return found };
        query.after = Some(Cursor::parse(&next.to_string()).expect("a cursor reads back"));
    }
    panic!("a search never ends");
}

/// What a search must find: by looking at everything.
fn expected(count: u64, fits: impl Fn(u64, &Transaction) -> bool) -> Vec<String> {
    let mut found: Vec<(u64, String)> = (0..count)
        .filter_map(|n| record(n).transaction.filter(|known| fits(n, known)))
        .map(|known| (known.finished_at_ms, known.gid))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, gid)| gid).collect()
}

const COUNT: u64 = 20_000;

#[test]
fn everything_that_can_be_searched_by_finds_what_has_it_newest_first_and_once() {
    let archive = memory();
    assert_eq!(fill(&archive, 0..COUNT), COUNT as usize);
    let page = Query { limit: 100, ..Query::default() };
    assert_eq!(all(&archive, &page), expected(COUNT, |_, _| true));
    let tag = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    let payroll = Query { tags: tag("run", "payroll-7"), ..page.clone() };
    assert_eq!(all(&archive, &payroll), expected(COUNT, |n, _| n % 100 == 7));
    let one = Query { tags: tag("order", "o12345"), ..page.clone() };
    assert_eq!(all(&archive, &one), expected(COUNT, |n, _| n == 12_345));
    let back = Query { statuses: vec![8], modes: vec![2], ..page.clone() };
    assert_eq!(all(&archive, &back), expected(COUNT, |n, _| n % 30 == 0));
    let shard = Query { participant: Some("deposit@shard-3".into()), ..page.clone() };
    assert_eq!(all(&archive, &shard), expected(COUNT, |n, _| n % 8 == 3));
    let time = Query { from_ms: 1_000_100, until_ms: 1_000_200, ..page.clone() };
    assert_eq!(all(&archive, &time), expected(COUNT, |n, _| (400..800).contains(&n)));
    let amounts =
        |least, most| AmountRange::new(Amount::parse(least).unwrap(), Amount::parse(most).unwrap());
    let amount = Query { amount: amounts("10.50 EUR", "12.49 EUR"), ..page.clone() };
    assert_eq!(all(&archive, &amount), expected(COUNT, |n, _| matches!(n % 1_000, 10 | 11)));
    let yen = Query { amount: amounts("0 JPY", "999999 JPY"), ..page.clone() };
    assert!(all(&archive, &yen).is_empty());
    let nobody = Query { tags: tag("run", "nobody"), ..page };
    assert!(all(&archive, &nobody).is_empty());
}

#[test]
fn a_record_that_comes_again_changes_nothing() {
    let archive = memory();
    fill(&archive, 0..10_000);
    assert_eq!(fill(&archive, 0..10_000), 0);
    assert_eq!(fill(&archive, 9_990..10_010), 10);
    assert_eq!(archive.figures().records, 10_010);
}

/// Counts how often it is read.
#[derive(Debug, Default)]
struct CountingShelf {
    shelf: MemoryShelf,
    reads: AtomicUsize,
}

impl Shelf for CountingShelf {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ShelfError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.shelf.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Pair>, ShelfError> {
        self.shelf.scan(prefix)
    }

    fn write(&self, changes: Vec<Change>) -> Result<(), ShelfError> {
        self.shelf.write(changes)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.shelf.bytes_on_disk()
    }
}

#[test]
fn records_that_come_again_in_a_run_are_not_read_one_by_one() {
    let shelf = Arc::new(CountingShelf::default());
    let archive = Archive::open(shelf.clone(), Retention::default()).unwrap();
    let sheets = 8_192;
    fill(&archive, 0..sheets + 100);
    shelf.reads.store(0, Ordering::Relaxed);
    assert_eq!(fill(&archive, 0..sheets), 0);
    let (reads, blocks) =
        (shelf.reads.load(Ordering::Relaxed), sheets as usize / limit::BLOCK_RECORDS);
    assert!((blocks..=3 * blocks).contains(&reads), "{reads} reads for {blocks} blocks");
}

#[test]
fn a_narrow_range_of_amounts_reads_little() {
    let shelf = Arc::new(CountingShelf::default());
    let archive = Archive::open(shelf.clone(), Retention::default()).unwrap();
    // Even cents from 0 to 100,000: each range of 5 has a handful of each sheet's records at most.
    let spread = |n: u64| {
        let mut record = record(n);
        let known = record.transaction.as_mut().unwrap();
        known.finished_at_ms = 1_000_000 + n;
        let units = n.wrapping_mul(7_919) % 100_000;
        set_amount(known, &format!("{units}.25 EUR"));
        record
    };
    let count = 20_000_u64;
    archive.add((0..count).map(spread)).unwrap();
    let range =
        AmountRange::new(Amount::parse("70000 EUR").unwrap(), Amount::parse("70005 EUR").unwrap());
    let query = Query { amount: range, limit: 100, ..Query::default() };
    let wanted = |n: &u64| (70_000..70_005).contains(&(n.wrapping_mul(7_919) % 100_000));
    let wanted: Vec<String> =
        (0..count).rev().filter(wanted).map(|n| format!("g-{n:08}")).collect();
    shelf.reads.store(0, Ordering::Relaxed);
    assert_eq!(all(&archive, &query), wanted);
    let reads = shelf.reads.load(Ordering::Relaxed);
    assert!(reads <= 40, "{reads} reads; all blocks are {}", count as usize / limit::BLOCK_RECORDS);
}

/// Two sheets as the version before wrote them, the first with 300 records and the last with one more.
const FORMAT_2: &[u8] = include_bytes!("format-2.sheets");

fn older() -> MemoryShelf {
    let shelf = MemoryShelf::default();
    let mut left = FORMAT_2;
    let mut part = || {
        let (length, rest) = left.split_first_chunk()?;
        let (part, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        left = rest;
        Some(part.to_vec())
    };
    while let Some(key) = part() {
        let value = part();
        shelf.write(vec![(key, value)]).expect("the shelf works");
    }
    shelf
}

#[test]
fn what_older_versions_wrote_is_found_by_everything_and_goes_on_being_filled() {
    for format in [2, 1] {
        let shelf = Arc::new(older());
        for (key, value) in shelf.scan(b"h").unwrap() {
            assert_eq!(value[..2], [0x08, 0x02], "a head begins with its format");
            // In the first format amounts had no classes; their sizes are there still.
            let head = [&[0x08, format], &value[2..]].concat();
            shelf.write(vec![(key, Some(head))]).unwrap();
        }
        let archive = Archive::open(shelf, Retention::default()).unwrap();
        assert_eq!(fill(&archive, 0..400), 99, "of these many are there already");
        let page = Query { limit: 7, ..Query::default() };
        assert_eq!(all(&archive, &page), expected(400, |_, _| true));
        let tags = vec![("run".to_owned(), "payroll-7".to_owned())];
        let run = Query { tags, ..page.clone() };
        assert_eq!(all(&archive, &run), expected(400, |n, _| n % 100 == 7));
        let participant = Some("deposit@shard-3".to_owned());
        let rolled_back = Query { participant, statuses: vec![8], modes: vec![1], ..page.clone() };
        let wanted = |n: u64| n % 8 == 3 && n.is_multiple_of(10) && !n.is_multiple_of(3);
        assert_eq!(all(&archive, &rolled_back), expected(400, |n, _| wanted(n)));
        let [least, most] = ["250.50 EUR", "251.50 EUR"].map(|text| Amount::parse(text).unwrap());
        let amount = Query { amount: AmountRange::new(least, most), ..page };
        assert_eq!(all(&archive, &amount), expected(400, |n, _| matches!(n, 250 | 251)));
        for n in [0, 31, 32, 64, 299, 300, 301, 399] {
            let found = archive.get(&format!("g-{n:08}")).unwrap();
            assert_eq!(found.as_deref(), Some(&record(n)), "format {format}");
        }
    }
}

#[test]
fn as_many_blocks_are_read_for_a_page_as_allowed_and_then_it_is_short_and_goes_on() {
    let shelf = Arc::new(CountingShelf::default());
    let archive = Archive::open(shelf.clone(), Retention::default()).unwrap();
    // In a class of its own nothing is; in the class of all, nothing fits: every block must be looked into.
    let alike = |n: u64| {
        let mut record = record(n);
        let known = record.transaction.as_mut().unwrap();
        known.finished_at_ms = 1_000_000 + n;
        let amount = if n == 0 { "70000.00001 EUR" } else { "70000 EUR" };
        set_amount(known, amount);
        record
    };
    let blocks = limit::BLOCKS_READ_MAX as u64 + 128;
    archive.add((0..blocks * limit::BLOCK_RECORDS as u64).map(alike)).unwrap();
    let only = Amount::parse("70000.00001 EUR").unwrap();
    let query = Query { amount: AmountRange::new(only, only), limit: 100, ..Query::default() };
    shelf.reads.store(0, Ordering::Relaxed);
    let page = archive.search(&query).unwrap();
    assert!(page.records.is_empty() && page.next.is_some(), "{page:?}");
    let reads = shelf.reads.load(Ordering::Relaxed);
    // A page of terms for each sheet beside the blocks.
    let most = limit::BLOCKS_READ_MAX + archive.figures().sheets as usize;
    assert!(
        (limit::BLOCKS_READ_MAX - limit::BLOCK_RECORDS..=most).contains(&reads),
        "{reads} reads"
    );
    // Behind the limit it goes on, and finds the oldest of all.
    assert_eq!(all(&archive, &query), ["g-00000000"]);
}

#[test]
fn what_was_written_is_there_after_a_crash_and_the_rest_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("history");
    {
        let archive = on_disk(&folder);
        fill(&archive, 0..9_000);
        archive.flush(0).unwrap();
        fill(&archive, 9_000..9_100);
        // Not flushed: as if the process had died here.
    }
    let archive = on_disk(&folder);
    assert_eq!(archive.figures().records, 9_000);
    assert_eq!(fill(&archive, 8_000..9_200), 200, "the machine tells the recent ones again");
    let page = Query { limit: 1_000, ..Query::default() };
    assert_eq!(all(&archive, &page), expected(9_200, |_, _| true));
    assert_eq!(archive.get("g-00000017").unwrap().as_deref(), Some(&record(17)));
    assert_eq!(archive.get("g-00009999").unwrap(), None);
}

#[test]
fn a_history_that_somebody_still_holds_is_waited_for_and_not_moved_aside() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("history");
    let archive = of_5_000(&folder);
    let held = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(archive);
    });
    assert_eq!(on_disk(&folder).figures().records, 5_000);
    held.join().unwrap();
    assert!(!dir.path().join("history.unreadable").exists());
}

#[test]
fn a_history_whose_process_died_while_it_was_opened_is_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("history");
    drop(of_5_000(&folder));
    // Opening it made a snapshot; one more is as far as its writer came.
    drop(on_disk(&folder));
    let mut paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let snapshot = paths.find(|path| path.to_string_lossy().contains("/snap."));
    let whole = std::fs::read(snapshot.expect("sled makes one")).unwrap();
    let half_made = folder.join("snap.7FFFFFFFFFFFFFFF.generating");
    for written in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&half_made, &whole[..written]).unwrap();
        let archive = on_disk(&folder);
        assert_eq!(archive.figures().records, 5_000, "{written} bytes");
        assert_eq!(fill(&archive, 4_000..5_000), 0);
        drop(archive);
        assert!(!half_made.exists() && !dir.path().join("history.unreadable").exists());
    }
}

#[test]
fn files_that_cannot_be_opened_are_moved_aside_and_a_new_history_begins() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("history");
    drop(of_5_000(&folder));
    std::fs::write(folder.join("conf"), b"no configuration of sled's").unwrap();
    let (shelf, anew) = SledShelf::open(&folder).unwrap();
    assert!(anew && dir.path().join("history.unreadable").is_dir());
    let archive = Archive::open(Arc::new(shelf), Retention::default()).unwrap();
    assert_eq!(archive.figures().records, 0);
    assert_eq!(fill(&archive, 4_000..5_000), 1_000);
}

#[test]
fn a_sheet_of_another_format_is_not_guessed_at() {
    let shelf = Arc::new(MemoryShelf::default());
    let key = [b"h".as_slice(), &0_u64.to_be_bytes()].concat();
    shelf.write(vec![(key, Some(vec![0x08, 0x04]))]).unwrap();
    let fault = Archive::open(shelf, Retention::default()).unwrap_err();
    assert!(fault.to_string().contains("format"), "{fault}");
}

#[test]
fn retention_holds_at_its_bounds_and_takes_the_oldest() {
    let keep = |retention| {
        let archive = Archive::open(Arc::new(MemoryShelf::default()), retention).unwrap();
        fill(&archive, 0..20_000);
        archive
    };
    let by_count = keep(Retention { records_max: 10_000, ..Retention::default() });
    by_count.flush(0).unwrap();
    let records = by_count.figures().records;
    assert!((10_000..10_000 + limit::SHEET_RECORDS as u64 + 8).contains(&records), "{records}");
    assert_eq!(by_count.get("g-00000000").unwrap(), None);
    assert!(by_count.get("g-00019999").unwrap().is_some());
    let by_bytes = keep(Retention { bytes_max: 1, ..Retention::default() });
    by_bytes.flush(0).unwrap();
    assert_eq!((by_bytes.figures().sheets, by_bytes.figures().bytes), (1, 0));
    let by_age = keep(Retention { age_ms_max: 1_000, ..Retention::default() });
    let newest_ms = by_age.figures().newest_ms;
    by_age.flush(newest_ms).unwrap();
    let oldest_ms = by_age.figures().oldest_ms;
    assert!(oldest_ms > 1_000_000 && oldest_ms + 1_000 <= newest_ms + 1_100, "{oldest_ms}");
}

#[test]
fn a_page_at_its_limit_is_full_and_one_more_is_not_on_it() {
    let archive = memory();
    fill(&archive, 0..3_000);
    let page = |limit| archive.search(&Query { limit, ..Query::default() }).unwrap();
    assert_eq!(page(limit::PAGE_MAX).records.len(), limit::PAGE_MAX);
    assert_eq!(page(limit::PAGE_MAX + 1).records.len(), limit::PAGE_MAX);
    assert_eq!(page(0).records.len(), 1);
}

#[test]
fn a_clock_that_stands_still_fills_a_sheet_at_its_greatest_bound() {
    let archive = memory();
    let still = |n: u64| {
        let mut record = record(n);
        record.transaction.as_mut().unwrap().finished_at_ms = 7;
        record
    };
    let most = limit::SHEET_RECORDS_MAX as u64;
    archive.add((0..most).map(still)).unwrap();
    assert_eq!(archive.figures().sheets, 1);
    archive.add([still(most)]).unwrap();
    assert_eq!(archive.figures().sheets, 2);
}

#[test]
fn attempts_are_added_while_the_sheet_is_filled_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("history");
    let archive = on_disk(&folder);
    fill(&archive, 0..10);
    let attempt = Attempt { branch: 1, attempt: 2, outcome: "done".into(), ..Default::default() };
    let seen = HistoryRecord {
        attempts: vec![attempt.clone()],
        attempts_node: 2,
        ..HistoryRecord::default()
    };
    assert!(archive.attach(b"g-00000003", |to| seen.write_seen(to)));
    assert!(!archive.attach(b"nobody", |to| seen.write_seen(to)));
    archive.flush(0).unwrap();
    drop(archive);
    let record = on_disk(&folder).get("g-00000003").unwrap().unwrap();
    assert_eq!((record.attempts_node, &record.attempts), (2, &vec![attempt]));
}

#[test]
fn a_cursor_is_read_as_it_is_written_and_nothing_else_is_one() {
    for good in ["0-g", "1795399516007-g-1", "7-"] {
        assert_eq!(Cursor::parse(good).unwrap().to_string(), good);
    }
    for bad in [
        "",
        "g",
        "-1-g",
        "1 -g",
        "1-g/..",
        &format!("1-{}", "g".repeat(65)),
        "99999999999999999999-g",
    ] {
        assert_eq!(Cursor::parse(bad), None, "{bad}");
    }
}

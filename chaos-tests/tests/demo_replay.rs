//! `holdfast demo --replay`: an AMLSim folder, replayed to the cent.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::Demo;

const NODES: usize = 300;

/// Who pays whom how much, minor units, in order.
type Transfers = Vec<(usize, usize, i64)>;

/// A folder as AMLSim writes it.
struct Written {
    folder: PathBuf,
    balances: Vec<i64>,
    transfers: Transfers,
}

/// What a serial replay comes to.
struct Replayed {
    balances: Vec<i64>,
    committed: u64,
    refused: u64,
}

fn write(demo: &Demo, balances: Vec<i64>, transfers: Transfers) -> anyhow::Result<Written> {
    let folder = demo.file("amlsim");
    fs::create_dir(&folder)?;
    let mut nodes = "nodeid,isFraud,init_balance,fraudStep\n".to_owned();
    for (number, minor) in balances.iter().enumerate() {
        nodes.push_str(&format!("{number},0,{},-1\n", decimal(*minor)));
    }
    let mut lines = "sourceNodeId,targetNodeId,value,time\n".to_owned();
    for (time, (from, to, minor)) in transfers.iter().enumerate() {
        lines.push_str(&format!("{from},{to},{},{}\n", decimal(*minor), time / 100));
    }
    fs::write(folder.join("nodes.csv"), nodes)?;
    fs::write(folder.join("transactions.csv"), lines)?;
    Ok(Written { folder, balances, transfers })
}

/// As AMLSim writes amounts: no more decimals than needed.
fn decimal(minor: i64) -> String {
    let text = format!("{}.{:02}", minor / 100, minor % 100);
    text.strip_suffix(".00").or(text.strip_suffix('0')).unwrap_or(&text).to_owned()
}

fn minor(decimal: &str) -> anyhow::Result<i64> {
    let (whole, fraction) = decimal.split_once('.').unwrap_or((decimal, "0"));
    Ok(whole.parse::<i64>()? * 100 + format!("{fraction:0<2}").parse::<i64>()?)
}

/// Chains that pass on what just came in, refusals, transfers of an account to itself, and a hot account.
fn small(transfers: usize) -> (Vec<i64>, Transfers) {
    let balances = (0..NODES).map(|number| (number as i64 * 7_919) % 20_000).collect();
    let line = |at: usize| match at % 8 {
        0..=3 => {
            let start = at / 8 % (NODES - 5);
            (start + at % 8, start + at % 8 + 1, 9_000 - (at % 8) as i64)
        }
        4 => (at % NODES, at % NODES, 100),
        5 => (at * 31 % NODES, at * 17 % NODES, 90_000),
        6 => (at * 13 % NODES, 5, 1 + at as i64),
        _ => (5, at * 29 % NODES, 2_505),
    };
    (balances, (0..transfers).map(line).collect())
}

fn replay(written: &Written) -> Replayed {
    let mut replayed = Replayed { balances: written.balances.clone(), committed: 0, refused: 0 };
    for (from, to, minor) in &written.transfers {
        if from == to || replayed.balances[*from] < *minor {
            replayed.refused += 1;
            continue;
        }
        replayed.balances[*from] -= minor;
        replayed.balances[*to] += minor;
        replayed.committed += 1;
    }
    replayed
}

fn read_balances(path: &Path) -> anyhow::Result<BTreeMap<usize, i64>> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some("nodeid,balance_minor"), "{text}");
    let line = |line: &str| {
        let (node, balance) = line.split_once(',').context("two columns")?;
        anyhow::Ok((node.parse()?, balance.parse()?))
    };
    lines.map(line).collect()
}

async fn run(demo: &Demo, written: &Written, more: &[&str]) -> anyhow::Result<Outcome> {
    let balances = demo.file("balances.csv");
    let path = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
    let (folder, out) = (path(&written.folder)?, path(&balances)?);
    let mut arguments = vec!["--replay", &folder, "--balances-out", &out];
    arguments.extend(more);
    let report = demo.report(&arguments).await?;
    let count = |name: &str| report["transfers"][name].as_u64().unwrap_or_default();
    ensure!(count("submitted") == written.transfers.len() as u64, "{report:#}");
    let balances = read_balances(&balances)?;
    ensure!(balances.len() == written.balances.len(), "{} balances", balances.len());
    Ok(Outcome { balances, committed: count("committed"), refused: count("refused") })
}

struct Outcome {
    balances: BTreeMap<usize, i64>,
    committed: u64,
    refused: u64,
}

impl Outcome {
    fn sum(&self) -> i64 {
        self.balances.values().sum()
    }
}

#[tokio::test]
async fn a_serial_replay_ends_with_the_balances_of_the_file_to_the_cent() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    let (balances, transfers) = small(500);
    let written = write(&demo, balances, transfers)?;
    let expected = replay(&written);
    ensure!(expected.committed > 150 && expected.refused > 150, "the file is a poor test");
    let outcome = run(&demo, &written, &["--serial", "--kill", "none"]).await?;
    for (number, balance) in expected.balances.iter().enumerate() {
        let found = outcome.balances.get(&number);
        ensure!(found == Some(balance), "account {number} has {found:?}, not {balance}");
    }
    ensure!((outcome.committed, outcome.refused) == (expected.committed, expected.refused));
    Ok(())
}

#[tokio::test]
async fn a_replay_with_many_clients_and_a_dead_leader_keeps_the_sum() -> anyhow::Result<()> {
    let demo = Demo::new()?;
    let (balances, transfers) = small(800);
    let written = write(&demo, balances, transfers)?;
    let outcome = run(&demo, &written, &["--clients", "32", "--kill", "leader"]).await?;
    ensure!(outcome.sum() == written.balances.iter().sum::<i64>());
    ensure!(outcome.balances.values().all(|balance| *balance >= 0));
    // Transfers of an account to itself are refused in any order.
    ensure!(outcome.refused >= 100, "{} refused", outcome.refused);
    Ok(())
}

/// Runs beside a checkout that has the sample; where there is none, the folder made above has to do.
#[tokio::test]
async fn the_first_transfers_of_the_amlsim_sample_keep_the_sum() -> anyhow::Result<()> {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/amlsim-20k");
    let demo = Demo::new()?;
    let written = if sample.join("nodes.csv").is_file() {
        let lines = |name: &str| anyhow::Ok(fs::read_to_string(sample.join(name))?);
        let mut balances = Vec::new();
        for line in lines("nodes.csv")?.lines().skip(1) {
            balances.push(minor(line.split(',').nth(2).context("init_balance")?)?);
        }
        let mut transfers = Vec::new();
        for line in lines("transactions.csv")?.lines().skip(1).take(1_500) {
            let columns: Vec<&str> = line.split(',').collect();
            transfers.push((columns[0].parse()?, columns[1].parse()?, minor(columns[2])?));
        }
        write(&demo, balances, transfers)?
    } else {
        let (balances, transfers) = small(1_500);
        write(&demo, balances, transfers)?
    };
    let outcome = run(&demo, &written, &["--kill", "none"]).await?;
    ensure!(outcome.sum() == written.balances.iter().sum::<i64>());
    ensure!(outcome.balances.values().all(|balance| *balance >= 0));
    Ok(())
}

#[tokio::test]
async fn a_mistake_in_a_file_is_named_with_its_line_and_nothing_starts() -> anyhow::Result<()> {
    let nodes = "nodeid,isFraud,init_balance,fraudStep\n0,0,10,-1\n1,0,10,-1\n";
    let good = "sourceNodeId,targetNodeId,value,time\n0,1,5,1\n";
    let bad = |line: &str| format!("{good}{line}\n");
    let mistakes = [
        (nodes.to_owned(), bad("0,1,5.001,1"), "transactions.csv, line 3"),
        (nodes.to_owned(), bad("0,2,5,1"), "transactions.csv, line 3"),
        (nodes.to_owned(), bad("0,1,-5,1"), "transactions.csv, line 3"),
        (nodes.to_owned(), bad("0,1,5e3,1"), "transactions.csv, line 3"),
        (nodes.to_owned(), bad("0,1,99999999999999999999,1"), "transactions.csv, line 3"),
        (nodes.to_owned(), bad("0,1"), "transactions.csv"),
        (nodes.to_owned(), good.replace("value", "amount"), "transactions.csv, line 1"),
        (format!("{nodes}1,0,5,-1\n"), good.to_owned(), "nodes.csv, line 4"),
        (format!("{nodes}x,0,5,-1\n"), good.to_owned(), "nodes.csv, line 4"),
        (format!("{nodes}2,0,-5,-1\n"), good.to_owned(), "nodes.csv, line 4"),
        (String::new(), good.to_owned(), "nodes.csv"),
    ];
    for (nodes, transactions, place) in mistakes {
        let demo = Demo::new()?;
        let folder = demo.file("amlsim");
        fs::create_dir(&folder)?;
        fs::write(folder.join("nodes.csv"), &nodes)?;
        fs::write(folder.join("transactions.csv"), &transactions)?;
        let output = demo.run(&["--replay", folder.to_str().context("UTF-8")?]).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code().is_some_and(|code| code != 0), "{place}: {}", output.status);
        ensure!(told.contains(place), "{told:?} does not say {place:?}");
        demo.left_behind()?;
    }
    let demo = Demo::new()?;
    let nowhere = demo.file("nowhere");
    let output = demo.run(&["--replay", nowhere.to_str().context("UTF-8")?]).await?;
    ensure!(!output.status.success());
    ensure!(String::from_utf8_lossy(&output.stderr).contains("nodes.csv cannot be opened"));
    demo.left_behind()
}

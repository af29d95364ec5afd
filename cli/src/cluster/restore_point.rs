//! `holdfast cluster restore-point`: a point in the log of every source and the coordinators' state, all of one moment.
//!
//! While the leaders hold their commits, every source writes a restore point into its write-ahead log and one node gives its state. Which of
//! them is first does not matter: nothing enters the coordinators' log meanwhile, so whatever a source has of a global transaction at
//! its point is called for by that state, or is owed by it and done again. `coordinator/src/hold.rs` says why in full. The leaders are asked
//! again behind it all whether they held throughout; only then is it a restore point.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, UNIX_EPOCH},
};

use futures::future::{join_all, try_join, try_join_all};
use holdfast_client::{Client, Hold, wire::BackupChunk};
use holdfast_coordinator::backup::Verified;
use holdfast_shard_router::config::SourceConfig;
use serde::Serialize;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::backup::Draft;
use crate::{
    config::{self, ConfigArgs, RouterRole},
    output::{self, Output},
    source,
};

/// PostgreSQL takes 63 bytes; a hyphen and the time, which follow so that no name stands twice in a log, are 14 of them.
const NAME_BYTES_MAX: usize = 49;
/// For one source to let in, or to answer, while nothing is held.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Between two looks at how far a node is.
const LOOK: Duration = Duration::from_millis(10);
/// What is asked of a source before: its identity, and whether it can keep a point.
const LOOK_AT: &str = "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), \
    pg_catalog.current_setting('wal_level'), pg_catalog.current_setting('archive_mode'), pg_catalog.pg_is_in_recovery(), \
    pg_catalog.has_function_privilege('pg_catalog.pg_create_restore_point(text)', 'EXECUTE') \
    AND pg_catalog.has_function_privilege('pg_catalog.pg_switch_wal()', 'EXECUTE')";
const POINT: &str = "SELECT at::text, pg_catalog.pg_walfile_name(at) FROM pg_catalog.pg_create_restore_point($1) AS at";
/// Has the file with the point on disk and archived, however little is written behind.
const SWITCH: &str = "SELECT pg_catalog.pg_switch_wal()::text";

/// Why there is no restore point.
#[derive(Debug, thiserror::Error)]
enum PointFault {
    /// HF1306: the commits were not held from the first to the last.
    #[error("HF1306 commits are not held: {0}. There is no restore point; take another")]
    NotHeld(String),
    /// HF1307: sources cannot note it.
    #[error("HF1307 {}. There is no restore point", .0.join("; "))]
    Sources(Vec<String>),
}

/// The point of a source.
#[derive(Debug, Serialize)]
struct Point {
    source: String,
    system_identifier: String,
    timeline: u32,
    lsn: String,
    /// The file that must be in the archive before it can be restored.
    wal_file: String,
}

/// The last entry of a Raft group.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Place {
    group: u32,
    term: u64,
    index: u64,
}

/// What stands beside the backup.
#[derive(Debug, Serialize)]
struct Manifest {
    name: String,
    /// What each source is told to recover to.
    recovery_target_name: String,
    made_at_ms: u64,
    held_ms: u64,
    cluster: String,
    sources: Vec<Point>,
    groups: Vec<Place>,
}

/// A source that is ready to note its point.
struct Source<'c> {
    config: &'c SourceConfig,
    client: tokio_postgres::Client,
    system_identifier: String,
}

/// A name as it may be given.
/// # Errors
/// What a name is.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(fits) {
        return Err(format!("a name is 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -"));
    }
    Ok(text.to_owned())
}

/// Takes a restore point of the sources in a router's configuration and of the cluster.
/// # Errors
/// There is none then, and no file.
pub(super) async fn take(
    client: &Client,
    name: String,
    to: &Path,
    router: &Path,
    hold_ms: u32,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let args = ConfigArgs { config: Some(router.to_owned()), ..ConfigArgs::default() };
    let loaded = config::load::<RouterRole>(&args.inputs(Vec::new()))?;
    let backup = Draft::of(to)?;
    let beside = Draft::of(&manifest_of(to))?;
    let configured = &loaded.config.router.sources;
    let sources = every(configured.iter().map(|source| look(source, ANSWER_MAX))).await?;
    let made_at_ms = UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    let made_at_ms = u64::try_from(made_at_ms).unwrap_or(u64::MAX);
    let target = format!("{name}-{made_at_ms}");

    let began = Instant::now();
    let (mut holds, node) = hold(client, hold_ms, &format!("restore point {target}")).await?;
    let groups = places(&holds);
    let limit = Duration::from_millis(hold_ms.into());
    let notes = every(sources.iter().map(|source| source.note(&target, limit)));
    let (points, chunks) = try_join(notes, begin(client, &node, &groups, limit)).await?;
    for hold in &mut holds {
        hold.still().await.map_err(|error| PointFault::NotHeld(error.to_string()))?;
    }
    drop(holds);
    let held_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);

    let verified = backup.fill(chunks).await?;
    holds_all(&verified, &groups)?;
    every(sources.iter().map(Source::switch)).await?;
    let cluster = verified.head.cluster.clone();
    let manifest = Manifest {
        name,
        recovery_target_name: target,
        made_at_ms,
        held_ms,
        cluster,
        sources: points,
        groups,
    };
    let mut text = serde_json::to_string_pretty(&manifest)?;
    text.push('\n');
    beside.write(text.as_bytes())?;
    beside.keep()?;
    if let Err(error) = backup.keep() {
        drop(std::fs::remove_file(manifest_of(to)));
        return Err(error.into());
    }
    show(to, &verified, &manifest, output)
}

/// `FILE.points.json`.
fn manifest_of(to: &Path) -> PathBuf {
    let mut name = OsString::from(to);
    name.push(".points.json");
    name.into()
}

/// All of them, or what is wrong with each.
async fn every<T>(
    asked: impl Iterator<Item = impl Future<Output = Result<T, String>>>,
) -> Result<Vec<T>, anyhow::Error> {
    let (mut good, mut wrong) = (Vec::new(), Vec::new());
    for answer in join_all(asked).await {
        match answer {
            Ok(answer) => good.push(answer),
            Err(words) => wrong.push(words),
        }
    }
    if wrong.is_empty() { Ok(good) } else { Err(PointFault::Sources(wrong).into()) }
}

/// Has the leader of every group hold its commits; gives the holds, and the address of the leader of group 0.
async fn hold(client: &Client, hold_ms: u32, why: &str) -> anyhow::Result<(Vec<Hold>, String)> {
    let first = client.node_status().await?;
    let mut leaders = BTreeSet::new();
    for group in 1..first.groups.max(1) {
        let mut known = String::new();
        for member in &first.members {
            if let Ok(said) = client.node_status_of(&member.grpc, group).await
                && !said.leader_grpc.is_empty()
            {
                known = said.leader_grpc;
                break;
            }
        }
        leaders.insert((group, known));
    }
    leaders.insert((0, first.leader_grpc.clone()));
    if let Some((group, _)) = leaders.iter().find(|(_, leader)| leader.is_empty()) {
        return Err(PointFault::NotHeld(format!("nobody leads group {group}")).into());
    }
    let nodes: BTreeSet<&String> = leaders.iter().map(|(_, leader)| leader).collect();
    let holds = try_join_all(nodes.into_iter().map(|node| client.hold(node, hold_ms, why))).await?;
    let held: BTreeSet<u32> = places(&holds).iter().map(|place| place.group).collect();
    if let Some((group, _)) = leaders.iter().find(|(group, _)| !held.contains(group)) {
        return Err(PointFault::NotHeld(format!("the leadership of group {group} moved")).into());
    }
    Ok((holds, first.leader_grpc))
}

fn places(holds: &[Hold]) -> Vec<Place> {
    let groups = holds.iter().flat_map(Hold::groups);
    let places = groups
        .map(|held| (held.group, Place { group: held.group, term: held.term, index: held.index }));
    places.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Waits until `node` has applied what is held in every group, then has it give its state: that is what it has when it begins to.
async fn begin(
    client: &Client,
    node: &str,
    groups: &[Place],
    limit: Duration,
) -> anyhow::Result<Streaming<BackupChunk>> {
    let given = async {
        for place in groups {
            while client.node_status_of(node, place.group).await?.applied_index < place.index {
                sleep(LOOK).await;
            }
        }
        anyhow::Ok(client.backup_of(node).await?)
    };
    timeout(limit, given).await.unwrap_or_else(|_| {
        let cause = format!("{node} gave no backup within {} ms", limit.as_millis());
        Err(PointFault::NotHeld(cause).into())
    })
}

/// Whether the backup goes at least as far as what was held. Further, there is nothing of a transaction.
fn holds_all(verified: &Verified, groups: &[Place]) -> Result<(), PointFault> {
    let parts: BTreeMap<u32, u64> =
        verified.head.parts.iter().map(|part| (part.group, part.index)).collect();
    for Place { group, index, .. } in groups {
        let there = parts.get(group).copied().unwrap_or_default();
        if there < *index {
            let cause =
                format!("the backup ends at entry {there} of group {group}, {index} is held");
            return Err(PointFault::NotHeld(cause));
        }
    }
    Ok(())
}

/// Connects to a source, and looks whether it can note a point.
/// # Errors
/// Why not, for people.
async fn look(config: &SourceConfig, limit: Duration) -> Result<Source<'_>, String> {
    let name = &*config.name;
    let wrong = |words: &str| Err(format!("source {name}: {words}"));
    let told = |words: String| format!("source {name}: {words}");
    let (client, _ends_with_it) = source::connect(config, limit).await.map_err(told)?;
    let row = answered(config, limit, client.query_one(LOOK_AT, &[])).await?;
    let text = |column: usize| row.get::<_, String>(column);
    if row.get(3) {
        return wrong("it is a replica. Give the router the address of the primary");
    }
    if text(1) == "minimal" || text(2) == "off" {
        return wrong(&format!(
            "wal_level is {} and archive_mode is {}, so nothing could be restored. Set wal_level to replica, archive_mode to on, and an archive_command",
            text(1),
            text(2)
        ));
    }
    if !row.get::<_, bool>(4) {
        return wrong(
            "this user may not. GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO it",
        );
    }
    Ok(Source { config, client, system_identifier: text(0) })
}

impl Source<'_> {
    async fn note(&self, target: &str, limit: Duration) -> Result<Point, String> {
        let row = answered(self.config, limit, self.client.query_one(POINT, &[&target])).await?;
        let wal_file: String = row.get(1);
        let timeline = wal_file.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
        Ok(Point {
            source: self.config.name.to_string(),
            system_identifier: self.system_identifier.clone(),
            timeline: timeline.ok_or_else(|| {
                format!("source {}: {wal_file} is no file of a log", self.config.name)
            })?,
            lsn: row.get(0),
            wal_file,
        })
    }

    async fn switch(&self) -> Result<(), String> {
        answered(self.config, ANSWER_MAX, self.client.query_one(SWITCH, &[])).await.map(drop)
    }
}

async fn answered<T>(
    config: &SourceConfig,
    limit: Duration,
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, String> {
    let told = source::within(limit, asked).await;
    told.map_err(|failed| format!("source {}: {}", config.name, failed.told(config)))
}

fn show(
    to: &Path,
    verified: &Verified,
    manifest: &Manifest,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let beside = manifest_of(to);
    match output {
        Output::Json => output::print_json(&serde_json::json!({
            "backup": to.display().to_string(),
            "bytes": verified.bytes,
            "open_transactions": verified.open,
            "manifest": beside.display().to_string(),
            "restore_point": manifest,
        }))?,
        Output::Table => {
            let mut lines = vec![
                format!(
                    "{}: commits were held for {} ms",
                    manifest.recovery_target_name, manifest.held_ms
                ),
                format!(
                    "backup    {}, {} bytes, {} open transactions",
                    to.display(),
                    verified.bytes,
                    verified.open
                ),
                format!("manifest  {}", beside.display()),
            ];
            lines.extend(manifest.sources.iter().map(|point| {
                format!(
                    "source    {} at {}, timeline {}, in {}",
                    point.source, point.lsn, point.timeline, point.wal_file
                )
            }));
            lines.extend(manifest.groups.iter().map(|Place { group, term, index }| {
                format!("group {group}   up to {index}@{term}")
            }));
            output::print(&lines.join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use holdfast_shard_router::config::Endpoint;

    use super::*;
    use crate::demo::{
        ports,
        postgres::{self, Installation, new_password},
        scratch::{POSTGRES, Scratch},
    };

    #[tokio::test]
    async fn no_restore_point_waits_for_a_source_that_says_nothing() {
        let (_silent, config) = crate::router::silent_source();
        let told = look(&config, Duration::from_millis(20)).await.err().expect("nobody answers");
        assert!(told.starts_with("source pg-1: no answer within 20 ms"), "{told}");
    }

    /// Why there is no point of the server at `port`, to a user with this password.
    async fn refused(port: u16, user: &str, password: &str) -> String {
        let config = SourceConfig {
            name: "pg-1".into(),
            addresses: vec![Endpoint::parse(&format!("127.0.0.1:{port}"))],
            database: Some(postgres::DATABASE.to_owned()),
            user: Some(user.to_owned()),
            password: Some(password.to_owned()),
            weak_authentication: false,
            tls: None,
        };
        look(&config, ANSWER_MAX).await.err().unwrap_or_default()
    }

    #[tokio::test]
    async fn a_source_that_can_note_no_point_is_told_of_with_its_cause() {
        let played = Scratch::during(false, async |folder| {
            let data = folder.join(POSTGRES);
            std::fs::create_dir(&data)?;
            let (installation, password) = (Installation::find()?, new_password());
            let template = installation.make_template(&data, &password).await?;
            let mut server = template.start("pg-1", ports::free(1)?[0], folder).await?;
            let port = server.port();
            let client = server.connect("postgres").await?;
            client.batch_execute("CREATE USER clerk PASSWORD 'of a clerk'").await?;
            let unkept = refused(port, postgres::USER, &password).await;
            assert!(
                unkept.contains("archive_mode is off, so nothing could be restored"),
                "{unkept}"
            );
            client.batch_execute("ALTER SYSTEM SET wal_level = 'replica'").await?;
            client.batch_execute("ALTER SYSTEM SET archive_mode = 'on'").await?;
            client.batch_execute("ALTER SYSTEM SET archive_command = 'true'").await?;
            server.stop().await?;
            let gone = refused(port, postgres::USER, &password).await;
            assert!(
                gone.starts_with("source pg-1: user holdfast has no answer: error connecting"),
                "{gone}"
            );
            server.start().await?;
            assert_eq!(refused(port, postgres::USER, &password).await, "");
            let wrong = refused(port, postgres::USER, "another").await;
            assert!(wrong.contains("password authentication failed"), "{wrong}");
            assert_eq!(
                refused(port, "clerk", "of a clerk").await,
                "source pg-1: this user may not. GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO it"
            );
            let client = server.connect(postgres::DATABASE).await?;
            let grant =
                "GRANT EXECUTE ON FUNCTION pg_create_restore_point(text), pg_switch_wal() TO clerk";
            client.batch_execute(grant).await?;
            assert_eq!(refused(port, "clerk", "of a clerk").await, "");
            server.stop().await?;
            let signal = data.join("pg-1").join("standby.signal");
            std::fs::write(&signal, "")?;
            installation.hand_over(&signal)?;
            server.start().await?;
            assert_eq!(
                refused(port, postgres::USER, &password).await,
                "source pg-1: it is a replica. Give the router the address of the primary"
            );
            server.stop().await
        });
        played.await.expect("PostgreSQL is installed (make deps)");
    }

    #[test]
    fn the_name_of_a_restore_point_is_taken_at_its_limit_and_refused_one_past_it() {
        let longest = "n".repeat(NAME_BYTES_MAX);
        assert_eq!(name(&longest), Ok(longest.clone()));
        // With the time behind it, as long as it has 13 digits, it is what PostgreSQL takes.
        assert_eq!(format!("{longest}-{}", 9_999_999_999_999_u64).len(), 63);
        assert!(name(&(longest + "n")).is_err());
        for bad in ["", "two words", "a'b", "é", "a/b"] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert!(name("nightly_2026-11.30").is_ok());
    }

    #[test]
    fn a_backup_that_ends_before_what_is_held_is_no_part_of_a_restore_point() {
        let part =
            |group, index| holdfast_client::wire::BackupPart { group, index, ..Default::default() };
        let parts = vec![part(0, 7), part(1, 9)];
        let head = holdfast_client::wire::BackupHead { parts, ..Default::default() };
        let verified = Verified { head, bytes: 1, open: 0, finished: 0 };
        let held = |group, index| [Place { group, term: 1, index }];
        assert!(holds_all(&verified, &held(0, 7)).is_ok());
        assert!(holds_all(&verified, &held(1, 8)).is_ok());
        for missing in [held(0, 8), held(2, 1)] {
            let told = holds_all(&verified, &missing).unwrap_err().to_string();
            assert!(told.starts_with("HF1306 "), "{told}");
        }
    }
}

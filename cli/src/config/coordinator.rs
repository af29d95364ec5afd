//! The coordinator's configuration: `config/coordinator.toml` is its example, docs/reference/config.md its reference.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use holdfast_coordinator::config as settings;
use holdfast_raft::{GROUPS_MAX, Member};
use holdfast_security::{Access, ClientAuth};

use crate::drill::door::DrillConfig;

use super::{
    Mistake, Origin, Role, Telemetry,
    reader::{Field, Item, Need, Reader},
    sections::{self, Tls, check_name, distinct, guarded, reachable_port},
};

/// Members of a cluster. Beyond seven, more nodes make a quorum slower and no safer.
const MEMBERS_MAX: usize = 9;
/// What to do about doors that share an address.
const EACH_ITS_OWN: &str = "Give each door an address of its own.";
/// A segment of the log holds whole blocks of the disk.
const BLOCK_BYTES: u64 = 4_096;
/// Below, the largest entry of 1 MiB of commands would not fit.
const SEGMENT_BYTES_MIN: u64 = 4 * 1024 * 1024;
const DAY_MS: u64 = 86_400_000;
const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// The most bytes of the log between two snapshots.
const SNAPSHOT_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// One coordinator node and its telemetry.
#[derive(Clone, Debug)]
pub(crate) struct CoordinatorConfig {
    pub(crate) node: settings::Config,
    pub(crate) drill: DrillConfig,
    pub(crate) telemetry: Telemetry,
    members_origin: Origin,
}

impl Role for CoordinatorConfig {
    fn read(reader: &mut Reader) -> Option<Self> {
        let id = reader.integer("node.id", 1..=u64::MAX, Need::Required);
        let data_dir = reader.text("node.data_dir", Need::Required, |text| match text {
            "" => Err("is empty. Name a directory that is this node's alone.".to_owned()),
            _ => Ok(()),
        });
        let name = reader.text("cluster.name", Need::Required, |text| check_name(text, false));
        let members = members(reader);
        let join = reader.truth("cluster.join", false);
        let groups = reader.integer("cluster.groups", 1..=GROUPS_MAX.into(), Need::Or(1));
        let bind = bind(reader);
        let security = sections::security(reader);
        let timeouts = timeouts(reader);
        let limits = limits(reader);
        let log = log(reader);
        let drill = sections::drill(reader, 7403);
        let history = history(reader);
        let telemetry = sections::telemetry(reader);
        if let (Some(id), Some(members)) = (&id, &members) {
            among_members(reader, id, &members.value)?;
        }
        let members = members?;
        let (id, name, security) = (id?, name?, security?);
        sections::names_node(reader, security.as_ref(), &name.value, id.value)?;
        let security = doors(reader, security)?;
        Some(Self {
            node: settings::Config {
                node: settings::Node { id: id.value, data_dir: PathBuf::from(data_dir?.value) },
                cluster: settings::Cluster {
                    name: name.value,
                    members: members.value,
                    join: join?.value,
                    groups: u32::try_from(groups?.value).expect("it is in its range"),
                },
                bind: bind?,
                security,
                timeouts: timeouts?,
                limits: limits?,
                log: log?,
                history: history?,
            },
            drill: drill?,
            telemetry: telemetry?,
            members_origin: members.origin,
        })
    }

    fn warnings(&self) -> Vec<Mistake> {
        let mut warnings = sections::expiry(self.node.security.credentials());
        let count = self.node.cluster.members.len();
        if count % 2 == 1 || self.node.cluster.join {
            return warnings;
        }
        let text = format!(
            "{count} members survive the loss of {}, no more than {} would. Prefer an odd number.",
            (count - 1) / 2,
            count - 1
        );
        warnings.push(Mistake::new("HF1013", self.members_origin.clone(), text));
        warnings
    }

    fn data_dir(&self) -> Option<(&'static str, &Path)> {
        Some(("node.data_dir", &self.node.node.data_dir))
    }

    fn doors(&self) -> Vec<(&'static str, SocketAddr)> {
        let bind = &self.node.bind;
        let mut doors =
            vec![("bind.http", bind.http), ("bind.grpc", bind.grpc), ("bind.raft", bind.raft)];
        doors.extend(self.drill.allowed.then_some(("drill.bind", self.drill.bind)));
        doors
    }
}

/// `[access]`, which counts with mutual TLS only.
fn doors(reader: &mut Reader, tls: Option<Tls>) -> Option<settings::Security> {
    let Some(tls) = tls else {
        ["access.file", "access.callers"].into_iter().for_each(|key| reader.know(key));
        return Some(settings::Security::DevPlaintext);
    };
    let file = reader.text("access.file", Need::Or(""), |_| Ok(()));
    let callers =
        reader.choice("access.callers", &["certificate", "certificate-or-token"], "certificate");
    let file = file?;
    let access = match file.value.as_str() {
        "" => Access::empty(),
        path => match Access::open(Path::new(path)) {
            Ok(access) => access,
            Err(bad) => {
                let text = bad.to_string();
                let text = text.trim_start_matches("HF1404 ").to_owned();
                reader.mistake("HF1404", file.origin, text);
                return None;
            }
        },
    };
    let callers = match callers?.value.as_str() {
        "certificate-or-token" => ClientAuth::Optional,
        _ => ClientAuth::Required,
    };
    Some(settings::Security::MutualTls { credentials: tls.credentials, access, callers })
}

/// A member as far as it can be read.
struct Read {
    id: Option<Field<u64>>,
    http: Option<Field<SocketAddr>>,
    grpc: Option<Field<SocketAddr>>,
    raft: Option<Field<SocketAddr>>,
}

fn members(reader: &mut Reader) -> Option<Field<Vec<Member>>> {
    let items = reader.items("cluster.member", MEMBERS_MAX)?;
    let read: Vec<Read> = items.value.iter().map(|item| member(reader, item)).collect();
    let mut all_fine = true;
    let mut seen: BTreeMap<u64, &str> = BTreeMap::new();
    for id in read.iter().filter_map(|member| member.id.as_ref()) {
        if let Some(first) = seen.get(&id.value) {
            let text = format!(
                "{} = {} is taken by {first} already. Number each node once.",
                id.key, id.value
            );
            reader.mistake("HF1012", id.origin.clone(), text);
            all_fine = false;
        } else {
            seen.insert(id.value, &id.key);
        }
    }
    let addresses: Vec<_> = read
        .iter()
        .flat_map(|member| [&member.http, &member.grpc, &member.raft])
        .flatten()
        .collect();
    all_fine &= distinct(reader, &addresses, EACH_ITS_OWN);
    for address in addresses {
        all_fine &= reachable_port(reader, address) & guarded(reader, address);
    }
    let members: Option<Vec<Member>> = read
        .into_iter()
        .map(|member| {
            Some(Member {
                node: member.id?.value,
                http: member.http?.value.to_string(),
                grpc: member.grpc?.value.to_string(),
                raft: member.raft?.value.to_string(),
            })
        })
        .collect();
    let value = members.filter(|_| all_fine)?;
    Some(Field { key: items.key, value, origin: items.origin })
}

fn member(reader: &mut Reader, item: &Item) -> Read {
    reader.item_only(item, &["id", "http", "grpc", "raft"]);
    Read {
        id: reader.item_integer(item, "id", 1..=u64::MAX),
        http: reader.item_address(item, "http"),
        grpc: reader.item_address(item, "grpc"),
        raft: reader.item_address(item, "raft"),
    }
}

fn among_members(reader: &mut Reader, id: &Field<u64>, members: &[Member]) -> Option<()> {
    if members.iter().any(|member| member.node == id.value) {
        return Some(());
    }
    let ids: Vec<String> = members.iter().map(|member| member.node.to_string()).collect();
    let text = format!(
        "node.id = {} is not among the members, which are {}. Add a [[cluster.member]] with id = {}, or correct node.id.",
        id.value,
        ids.join(", "),
        id.value
    );
    reader.mistake("HF1011", id.origin.clone(), text);
    None
}

fn bind(reader: &mut Reader) -> Option<settings::Bind> {
    let http = reader.address("bind.http", Need::Required);
    let grpc = reader.address("bind.grpc", Need::Required);
    let raft = reader.address("bind.raft", Need::Required);
    let doors: Vec<_> = [&http, &grpc, &raft].into_iter().flatten().collect();
    let mut all_fine = distinct(reader, &doors, EACH_ITS_OWN);
    for door in doors {
        all_fine &= reachable_port(reader, door) & guarded(reader, door);
    }
    let bind = settings::Bind { http: http?.value, grpc: grpc?.value, raft: raft?.value };
    all_fine.then_some(bind)
}

fn timeouts(reader: &mut Reader) -> Option<settings::Timeouts> {
    let usual = settings::Timeouts::default();
    let day_ms = holdfast_txn::limit::TIMEOUT_MS_MAX;
    let mut ms = |key, low, high, or| reader.integer(key, low..=high, Need::Or(or));
    let heartbeat = ms("timeouts.heartbeat_ms", 10, 10_000, usual.heartbeat_ms);
    let election_min = ms("timeouts.election_min_ms", 50, 60_000, usual.election_min_ms);
    let election_max = ms("timeouts.election_max_ms", 50, 60_000, usual.election_max_ms);
    let global = ms("timeouts.global_timeout_ms", 1, day_ms, usual.global_timeout_ms);
    let call = ms("timeouts.call_timeout_ms", 1, day_ms, usual.call_timeout_ms);
    if let (Some(heartbeat), Some(min)) = (&heartbeat, &election_min)
        && heartbeat.value * 3 >= min.value
    {
        let text = format!(
            "{} = {}: three heartbeats take {} ms, which is not below {} = {}. Lower the first or raise the second; else followers depose a leader that is well.",
            heartbeat.key,
            heartbeat.value,
            heartbeat.value * 3,
            min.key,
            min.value
        );
        contradiction(reader, heartbeat, min, text);
    }
    if let (Some(min), Some(max)) = (&election_min, &election_max)
        && min.value >= max.value
    {
        let text = format!(
            "{} = {} is not below {} = {}. Lower the first or raise the second; elections are drawn between the two.",
            min.key, min.value, max.key, max.value
        );
        contradiction(reader, min, max, text);
    }
    not_above(reader, call.as_ref(), global.as_ref());
    Some(settings::Timeouts {
        heartbeat_ms: heartbeat?.value,
        election_min_ms: election_min?.value,
        election_max_ms: election_max?.value,
        global_timeout_ms: global?.value,
        call_timeout_ms: call?.value,
    })
}

fn limits(reader: &mut Reader) -> Option<settings::Limits> {
    let usual = settings::Limits::default();
    let mut count =
        |key, low, high, or: usize| reader.integer(key, low..=high, Need::Or(or as u64));
    let queue = count("limits.queue_max", 1, 1_000_000, usual.queue_max);
    let batch = count("limits.batch_max", 1, 16_384, usual.batch_max);
    let in_flight = count("limits.in_flight_max", 1, 64, usual.in_flight_max);
    let request =
        count("limits.request_bytes_max", 4_096, 16 * 1024 * 1024, usual.request_bytes_max);
    let lease = reader.integer(
        "limits.router_lease_max_ms",
        settings::limit::ROUTER_LEASE_MS,
        Need::Or(usual.router_lease_max_ms),
    );
    not_above(reader, batch.as_ref(), queue.as_ref());
    Some(settings::Limits {
        queue_max: size(queue?.value),
        batch_max: size(batch?.value),
        in_flight_max: size(in_flight?.value),
        request_bytes_max: size(request?.value),
        router_lease_max_ms: lease?.value,
    })
}

fn log(reader: &mut Reader) -> Option<settings::LogFiles> {
    let usual = settings::LogFiles::default();
    let segment = reader.integer(
        "log.segment_bytes",
        SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX,
        Need::Or(usual.segment_bytes),
    );
    if let Some(segment) = &segment
        && segment.value % BLOCK_BYTES != 0
    {
        let text = format!(
            "{} = {} is no multiple of {BLOCK_BYTES}. Take {}.",
            segment.key,
            segment.value,
            segment.value.next_multiple_of(BLOCK_BYTES)
        );
        reader.mistake("HF1007", segment.origin.clone(), text);
    }
    let snapshot =
        reader.integer("log.snapshot_every", 10..=10_000_000, Need::Or(usual.snapshot_every));
    let bytes = reader.integer(
        "log.snapshot_bytes",
        SEGMENT_BYTES_MIN..=SNAPSHOT_BYTES_MAX,
        Need::Or(usual.snapshot_bytes),
    );
    Some(settings::LogFiles {
        segment_bytes: segment?.value,
        snapshot_every: snapshot?.value,
        snapshot_bytes: bytes?.value,
    })
}

fn history(reader: &mut Reader) -> Option<settings::Retention> {
    let usual = settings::Retention::default();
    let records =
        reader.integer("history.records_max", 0..=1_000_000_000, Need::Or(usual.records_max));
    let bytes = reader.integer(
        "history.bytes_max",
        1_048_576..=1_099_511_627_776,
        Need::Or(usual.bytes_max),
    );
    let days =
        reader.integer("history.age_days_max", 1..=36_500, Need::Or(usual.age_ms_max / DAY_MS));
    Some(settings::Retention {
        records_max: records?.value,
        bytes_max: bytes?.value,
        age_ms_max: days?.value * DAY_MS,
    })
}

fn not_above(reader: &mut Reader, inner: Option<&Field<u64>>, outer: Option<&Field<u64>>) {
    if let (Some(inner), Some(outer)) = (inner, outer)
        && inner.value > outer.value
    {
        let text = format!(
            "{} = {} exceeds {} = {}. Lower the first or raise the second.",
            inner.key, inner.value, outer.key, outer.value
        );
        contradiction(reader, inner, outer, text);
    }
}

/// Two values that do not go together are one mistake, told where somebody set one of them.
fn contradiction(reader: &mut Reader, one: &Field<u64>, other: &Field<u64>, text: String) {
    let origin = if one.origin == Origin::Default { &other.origin } else { &one.origin };
    reader.mistake("HF1004", origin.clone(), text);
}

/// Every bound above fits 32 bits.
fn size(value: u64) -> usize {
    usize::try_from(value).expect("bounded by the range it was read with")
}

//! Bytes that mean nothing at every door: the process lives, serves, and does not grow.

use std::collections::BTreeMap;

use anyhow::ensure;
use holdfast_chaos_tests::{Agent, Cluster, SOON, Service, http, until};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

/// Connections that say half a sentence, at each door.
const HALF_OPEN: usize = 200;
/// What a process may grow by meanwhile.
const GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A cluster with two banks and an agent.
struct House {
    cluster: Cluster,
    agent: Agent,
    served: u32,
    /// Memory of each process before anything bad came.
    before: BTreeMap<String, u64>,
    _service: Service,
}

impl House {
    async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(2).await?;
        for (shard, account) in [(0, "A-1"), (1, "B-1")] {
            cluster.open_accounts(shard, [account.to_owned()], 10_000).await?;
        }
        let service = Service::start().await?;
        let agent = cluster.agent("beside", &service.address).await?;
        let before = BTreeMap::new();
        let mut house = Self { cluster, agent, served: 0, before, _service: service };
        house.lives_and_serves().await?;
        house.before = house.memory()?;
        Ok(house)
    }

    /// Every door there is, with a name.
    fn doors(&self) -> Vec<(String, String)> {
        let mut doors = Vec::new();
        for (at, node) in self.cluster.nodes.iter().enumerate() {
            for (door, address) in
                [("http", &node.http), ("grpc", &node.grpc), ("raft", &node.raft)]
            {
                doors.push((format!("{door} of node {}", at + 1), address.clone()));
            }
        }
        doors.push(("the bank".to_owned(), self.cluster.banks[0].http.clone()));
        doors.push(("the agent".to_owned(), self.agent.http.clone()));
        doors
    }

    fn memory(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let mut memory = BTreeMap::new();
        for (at, node) in self.cluster.nodes.iter().enumerate() {
            memory.insert(format!("node {}", at + 1), node.process.resident_bytes()?);
        }
        for bank in &self.cluster.banks {
            memory.insert(bank.shard.clone(), bank.process.resident_bytes()?);
        }
        memory.insert("agent".to_owned(), self.agent.process.resident_bytes()?);
        Ok(memory)
    }

    /// Every process is the one that was started, every node answers and takes part, and none has grown.
    async fn lives_and_serves(&mut self) -> anyhow::Result<()> {
        self.cluster.ready().await?;
        self.agent.ready().await?;
        for at in 0..self.cluster.nodes.len() {
            self.served += 1;
            self.cluster.serves(at, &format!("fine-{}", self.served), "A-1", "B-1").await?;
        }
        for (name, now) in self.memory()? {
            let before = self.before.get(&name).copied().unwrap_or(now);
            ensure!(now < before + GROWTH_BYTES_MAX, "{name} grew from {before} to {now} bytes");
        }
        Ok(())
    }
}

/// What nobody should send.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let noise = (0..8_192_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // The head of a TLS 1.2 record, and a hello that says it is longer than what follows.
    let mut hello = vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    hello.extend([0x5a; 40]);
    let mut frame = HTTP2_PREFACE.to_vec();
    // A frame of 16 MiB that never comes, behind good settings.
    frame.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    let mut long = HTTP2_PREFACE.to_vec();
    long.extend([0xff; 4_096]);
    let headers = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Huge: {}\r\n\r\n", "h".repeat(300_000));
    let many: String = (0..2_000).map(|at| format!("X-{at}: y\r\n")).collect();
    vec![
        ("noise", noise),
        ("half a TLS hello", hello),
        ("zeros", vec![0; 4_096]),
        ("ones", vec![0xff; 4_096]),
        ("HTTP", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("HTTP without an end", b"POST /v1/transactions HTTP/1.1\r\nContent-Le".to_vec()),
        ("an endless line", vec![b'A'; 300_000]),
        ("a huge header", headers.into_bytes()),
        ("many headers", format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").into_bytes()),
        ("HTTP/2", frame),
        ("HTTP/2 and noise", long),
        (
            "a body that never comes",
            b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n{"
                .to_vec(),
        ),
        ("PostgreSQL", b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_garbage_at_any_door_stops_a_process_or_makes_it_grow() -> anyhow::Result<()> {
    let mut house = House::start().await?;
    let mut open = Vec::new();
    for (name, address) in house.doors() {
        for (what, bytes) in garbage() {
            let connected = TcpStream::connect(&address).await;
            let mut stream = connected.map_err(|error| {
                anyhow::anyhow!("{name} takes no connection before {what}: {error}")
            })?;
            // Being cut off in the middle is a good answer.
            let _ = stream.write_all(&bytes).await;
            open.push(stream);
        }
    }
    // Also while all of them are still open.
    house.lives_and_serves().await?;
    drop(open);
    house.lives_and_serves().await?;

    // Where there is an answer, it is an error and no silence.
    let leader = house.cluster.leader().await?;
    let door = &house.cluster.nodes[leader].http;
    for what in ["a huge header", "many headers", "HTTP/2 and noise", "noise"] {
        let (_, bytes) = garbage().into_iter().find(|(name, _)| *name == what).expect("listed");
        let answer = http::exchange(door, &bytes).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let fits = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        ensure!(fits, "{what} was answered {answer:?}");
    }
    house.cluster.quiet(SOON).await?;
    house.cluster.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_half_open_connections_at_a_door_keep_nobody_from_being_served()
-> anyhow::Result<()> {
    let mut house = House::start().await?;
    let leader = house.cluster.leader().await?;
    let node = &house.cluster.nodes[leader];
    let (bank, agent) = (house.cluster.banks[0].http.clone(), house.agent.http.clone());
    // In two parts: this test has no more than 1,024 files either.
    for doors in [vec![node.http.clone(), node.grpc.clone(), node.raft.clone()], vec![bank, agent]]
    {
        let mut open = Vec::new();
        for door in &doors {
            for number in 0..HALF_OPEN {
                let mut stream = TcpStream::connect(door).await?;
                let half: &[u8] = match number % 4 {
                    0 => b"",
                    1 => b"POST /v1/transactions HTTP/1.1\r\nHost:",
                    2 => &HTTP2_PREFACE[..20],
                    _ => HTTP2_PREFACE,
                };
                let _ = stream.write_all(half).await;
                open.push(stream);
            }
        }
        ensure!(open.len() == doors.len() * HALF_OPEN);
        house.lives_and_serves().await?;
        drop(open);
    }
    // A leader that is changed meanwhile would be found by others: peers still reach each other.
    until("every node follows a leader", SOON, async || {
        let status = house.cluster.status(leader).await?;
        (status.leader != 0).then_some(())
    })
    .await?;
    house.lives_and_serves().await?;
    house.cluster.audit().await
}

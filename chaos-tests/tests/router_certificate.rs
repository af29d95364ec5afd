//! What a router shows to PostgreSQL clients: psql knows it by its host, whatever the router shows to coordinators.

use std::path::Path;

use anyhow::{Context as _, ensure};
use holdfast_chaos_tests::{
    Folder, Postgres, Process, Program, SOON, holdfast, http, ports, until,
};
use tokio::process::Command;

async fn run(arguments: &[&str]) -> anyhow::Result<String> {
    let ran = Command::new(holdfast()?).args(arguments).output().await?;
    ensure!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

async fn certify(dir: &Path, router: &str, days: &str) -> anyhow::Result<()> {
    let dir = dir.to_str().context("a plain path")?;
    let more = ["--nodes", "0", "--service", "source", "--router", router, "--days", days];
    run(&[&["certs", "dev", "--dir", dir][..], &more].concat()).await.map(drop)
}

/// What psql says that looks who the server is: whether it came in, and its words.
async fn psql(port: u16, host: &str, authority: &Path) -> anyhow::Result<(bool, String)> {
    let to = format!(
        "host={host} hostaddr=127.0.0.1 port={port} user=holdfast dbname=bank sslmode=verify-full sslrootcert={}",
        authority.display()
    );
    let ran = Command::new("psql").args(["-X", "-At", "-c", "SELECT 40 + 2", &to]).output().await?;
    let said = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_verifies_a_router_by_its_host_whatever_it_shows_to_coordinators() -> anyhow::Result<()>
{
    let folder = Folder::make()?;
    let (certs, others) = (folder.path().join("certs"), folder.path().join("others"));
    certify(&certs, "a:db.bank.example", "20").await?;
    certify(&others, "b:db.bank.example", "90").await?;
    let postgres = Postgres::start(folder.path()).await?;
    postgres.create("bank").await?;
    let ports = ports::free(3)?;
    let (port, door) = (ports[0], format!("127.0.0.1:{}", ports[1]));
    let pem = |name: &str| certs.join(name).display().to_string();
    // Nobody listens at the coordinator's address, and a router of one source can do without.
    let config = format!(
        "[coordinators]\naddresses = [\"127.0.0.1:{}\"]\n\
         [[sources.source]]\nname = \"pg-1\"\ndatabase = \"{}\"\n[auth]\nmode = \"trust-loopback\"\n\
         [bind]\npostgres = \"127.0.0.1:{port}\"\nhttp = {door:?}\n[security]\nmode = \"mutual-tls\"\n\
         [tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\nclients = \"must\"\n[client_tls]\ncert = {:?}\nkey = {:?}\n",
        ports[2],
        postgres.connection_string("bank"),
        pem("ca.pem"),
        pem("service-source.pem"),
        pem("service-source.key"),
        pem("router-a.pem"),
        pem("router-a.key"),
    );
    let file = folder.write("router.toml", config)?;
    let program = Program {
        name: "router".to_owned(),
        path: holdfast()?.to_owned(),
        arguments: vec!["router".into(), "--config".into(), file.clone().into()],
        environment: Vec::new(),
        run_as: None,
        kill_when_dropped: true,
    };
    let mut router = Process::new(program, folder.path());
    router.start()?;
    let (own, other) = (certs.join("ca.pem"), others.join("ca.pem"));
    let came_in = until("psql is let in", SOON, async || {
        psql(port, "localhost", &own).await.ok().filter(|(came_in, _)| *came_in)
    });
    let came_in = came_in.await.map_err(|error| error.context(router.complaint("lets nobody in")));
    ensure!(came_in?.1 == "42\n");
    for host in ["127.0.0.1", "db.bank.example"] {
        ensure!(psql(port, host, &own).await? == (true, "42\n".to_owned()), "{host}");
    }
    let (came_in, why) = psql(port, "db.elsewhere.example", &own).await?;
    ensure!(!came_in && why.contains("does not match host name"), "{why}");
    let (came_in, why) = psql(port, "localhost", &other).await?;
    ensure!(!came_in && why.contains("SSL error"), "{why}");
    its_end_is_seen(&file, &door).await?;
    // Another authority may have signed it: no coordinator looks at it.
    for end in ["key", "pem"] {
        std::fs::copy(
            others.join(format!("router-b.{end}")),
            certs.join(format!("router-a.{end}")),
        )?;
    }
    until("the certificate of another authority is shown", SOON, async || {
        psql(port, "db.bank.example", &other).await.ok().filter(|(came_in, _)| *came_in)
    })
    .await?;
    ensure!(!psql(port, "db.bank.example", &own).await?.0, "the old one is shown no more");
    Ok(())
}

/// It ends in 20 days: the gauge says when, and a check warns.
async fn its_end_is_seen(file: &Path, door: &str) -> anyhow::Result<()> {
    let gauge = until("the gauge is set", SOON, async || {
        let told = http::get(door, "/metrics").await.ok()?.body;
        let told = String::from_utf8_lossy(&told).into_owned();
        let told = told.lines().find_map(|line| {
            line.strip_prefix("holdfast_router_client_certificate_ends_at_seconds ")?.parse().ok()
        });
        told.filter(|ends_at_s: &f64| *ends_at_s > 0.0)
    });
    let left = gauge.await? - std::time::UNIX_EPOCH.elapsed()?.as_secs_f64();
    ensure!((19.0..=20.0).contains(&(left / 86_400.0)), "it ends in {left} s");
    let file = file.to_str().context("a plain path")?;
    let found =
        run(&["check", "--no-cluster", "--router-config", file, "--output", "json"]).await?;
    let warned =
        found.contains("config.warnings") && found.contains("router-a.pem ends in 19 days");
    ensure!(warned, "{found}");
    Ok(())
}

//! Mutual TLS for a cluster on this machine: an authority of its own, a certificate for each process and for the person at the keyboard.

use std::path::{Path, PathBuf};

use anyhow::Context;
use holdfast_client::{ClientOptions, Credentials, Files};
use holdfast_security::{Authority, Name, ServerTls};

/// A cluster's certificates are good for so many days.
const DAYS: u32 = 2;
/// The cluster's name in the shipped configuration, as names in certificates begin.
const CLUSTER: &str = "holdfast://bank";

/// An authority's folder, and the access file of every coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    certs: PathBuf,
    access: PathBuf,
    person: &'static str,
}

impl Guard {
    /// Makes certificates for as many `nodes`, for these services and for `person` (`user/NAME?role=...`), as `holdfast certs dev` does, and
    /// writes the access file.
    /// # Errors
    /// Something cannot be written.
    pub(crate) fn make(
        folder: &Path,
        nodes: usize,
        services: &[&str],
        person: &'static str,
        access: &str,
    ) -> anyhow::Result<Self> {
        let certs = folder.join("certs");
        let authority = Authority::in_dir(&certs)?;
        let nodes = (1..=nodes).map(|node| format!("node/{node}"));
        let services = services.iter().map(|service| format!("service/{service}"));
        for name in nodes.chain(services).chain([person.to_owned()]) {
            authority.issue(&self::name(&name)?, DAYS)?;
        }
        let file = folder.join("access.toml");
        std::fs::write(&file, access).with_context(|| format!("writing {}", file.display()))?;
        Ok(Self { certs, access: file, person })
    }

    /// The authority's folder.
    pub(crate) fn certs(&self) -> &Path {
        &self.certs
    }

    /// A client that shows the person's certificate.
    /// # Errors
    /// The certificate cannot be read.
    pub(crate) fn options(&self) -> anyhow::Result<ClientOptions> {
        let credentials = Some(credentials(&self.certs, self.person)?);
        Ok(ClientOptions { credentials, ..ClientOptions::default() })
    }

    /// The person's files, as variables for our own commands.
    /// # Errors
    /// The name is none.
    pub(crate) fn environment(&self) -> anyhow::Result<[(&'static str, PathBuf); 3]> {
        let (ca, cert, key) = files(&self.certs, self.person)?;
        Ok([("HOLDFAST_TLS_CA", ca), ("HOLDFAST_TLS_CERT", cert), ("HOLDFAST_TLS_KEY", key)])
    }

    /// Has the process with this configuration show the certificate of `who` and take nobody without one.
    /// # Errors
    /// The name is none.
    pub(crate) fn apply(&self, config: &mut toml::Table, who: &str) -> anyhow::Result<()> {
        let (ca, cert, key) = files(&self.certs, who)?;
        let mut table = |section: &str, pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).into()));
            config.insert(section.to_owned(), toml::Value::Table(pairs.collect()));
        };
        let text = |path: &PathBuf| path.display().to_string();
        table("security", &[("mode", "mutual-tls")]);
        table("tls", &[("ca", &text(&ca)), ("cert", &text(&cert)), ("key", &text(&key))]);
        if who.starts_with("node/") {
            table("access", &[("file", &text(&self.access))]);
        }
        Ok(())
    }

    /// Has the router with this configuration, which [`Self::apply`] was given, show PostgreSQL clients a certificate that names its host, and
    /// take nobody who does not ask for it.
    /// # Errors
    /// The certificate cannot be made.
    pub(crate) fn towards_clients(&self, config: &mut toml::Table) -> anyhow::Result<()> {
        let authority = Authority::in_dir(&self.certs)?;
        let (cert, key) = authority.issue_for_hosts("router-demo", &[], DAYS)?;
        let text = |path: PathBuf| toml::Value::from(path.display().to_string());
        let shown = [("cert".to_owned(), text(cert)), ("key".to_owned(), text(key))];
        config.insert("client_tls".to_owned(), toml::Value::Table(shown.into_iter().collect()));
        let tls = config.get_mut("tls").and_then(toml::Value::as_table_mut);
        let tls = tls.context("the router shows a certificate to coordinators")?;
        tls.insert("clients".to_owned(), "must".into());
        Ok(())
    }

    /// What a PostgreSQL client of that router looks at.
    /// # Errors
    /// The authority's certificate cannot be read.
    pub(crate) fn towards_router(&self) -> anyhow::Result<ServerTls> {
        ServerTls::verify_full(&self.certs.join("ca.pem")).map_err(anyhow::Error::msg)
    }
}

/// What `who` shows, by the certificate that lies in this folder.
/// # Errors
/// It was not made.
pub(crate) fn credentials(certs: &Path, who: &str) -> anyhow::Result<Credentials> {
    let (ca, cert, key) = files(certs, who)?;
    Ok(Credentials::open(Files { ca, identity: Some((cert, key)) })?)
}

fn files(certs: &Path, who: &str) -> anyhow::Result<(PathBuf, PathBuf, PathBuf)> {
    let files = Authority::in_dir(certs)?.files_of(&name(who)?);
    let (cert, key) = files.identity.context("a name has a certificate")?;
    Ok((files.ca, cert, key))
}

fn name(who: &str) -> anyhow::Result<Name> {
    Ok(Name::parse(&format!("{CLUSTER}/{who}"))?)
}

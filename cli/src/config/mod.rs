//! Configuration of every role: file < environment < flag, every mistake told at once, every value with its origin.

mod agent;
mod at_start;
mod bank;
mod coordinator;
mod encryption;
pub(crate) mod fuzzed;
mod mistake;
mod origin;
mod port_owner;
mod reader;
mod router;
pub(crate) mod schema;
mod sections;
mod source;
mod strangers;
mod words;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use self::reader::Reader;
pub(crate) use self::{
    agent::AgentConfig,
    bank::{BankConfig, masked, parse_database},
    coordinator::CoordinatorConfig,
    encryption::encryption,
    mistake::{Mistake, Report},
    origin::{Origin, Secret, Shown},
    router::RouterRole,
    sections::{Telemetry, TelemetryFormat},
    source::read_text,
};

/// Where values may come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    /// The file, if there is one.
    pub(crate) file: Option<PathBuf>,
    /// Every variable of the environment.
    pub(crate) environment: BTreeMap<String, String>,
    /// Flags, in the order given; the last one counts.
    pub(crate) overrides: Vec<Override>,
}

/// A value set by a flag.
#[derive(Clone, Debug)]
pub(crate) struct Override {
    /// `section.key`.
    pub(crate) key: String,
    pub(crate) value: String,
    /// How to name the flag to people, without the value: it may be a secret.
    pub(crate) flag: String,
}

/// The flags that every role has.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file (TOML); config/ has one for each role
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set one key, over file and environment; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = parse_set)]
    pub(crate) set: Vec<(String, String)>,
    /// Accept that nothing is encrypted, on loopback addresses only (security.mode = "dev-plaintext")
    #[arg(long)]
    pub(crate) dev_plaintext: bool,
}

impl ConfigArgs {
    /// These flags, and `named` ones as `(key, value, flag)`, over the environment of this process.
    pub(crate) fn inputs(&self, named: Vec<(&str, Option<String>, &str)>) -> Inputs {
        let over = |key: &str, value: &str, flag: String| Override {
            key: key.to_owned(),
            value: value.to_owned(),
            flag,
        };
        let mut overrides: Vec<Override> =
            self.set.iter().map(|(key, value)| over(key, value, format!("--set {key}"))).collect();
        if self.dev_plaintext {
            overrides.push(over("security.mode", "dev-plaintext", "--dev-plaintext".to_owned()));
        }
        for (key, value, flag) in named {
            if let Some(value) = value {
                overrides.push(over(key, &value, flag.to_owned()));
            }
        }
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .map(|(name, value)| (name, value.to_string_lossy().into_owned()))
            .collect();
        Inputs { file: self.config.clone(), environment, overrides }
    }
}

/// Splits `section.key=value`.
/// # Errors
/// HF1019, in words for the command line.
pub(crate) fn parse_set(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if key.contains('.') => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("HF1019: write SECTION.KEY=VALUE, for example --set node.id=2".to_owned()),
    }
}

/// A configuration that may be used, and where each value came from.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    pub(crate) config: T,
    /// Every key with value and origin, secrets masked.
    pub(crate) shown: Vec<Shown>,
    /// Not wrong, but probably not meant.
    pub(crate) warnings: Vec<Mistake>,
}

impl<T: Role> Loaded<T> {
    /// Asks this machine whether the role can start on it now.
    /// # Errors
    /// HF1014 and HF1015, all of them at once.
    pub(crate) fn check_here(&self) -> Result<(), Report> {
        let dir = self.config.data_dir().and_then(|(key, dir)| at_start::check_data_dir(key, dir));
        let mut mistakes = Vec::from_iter(dir);
        mistakes.extend(at_start::check_doors(&self.config.doors()));
        if mistakes.is_empty() {
            return Ok(());
        }
        Err(Report::new("this machine cannot run it", mistakes))
    }
}

/// A role's way to read itself.
pub(crate) trait Role: Sized {
    /// Takes every field; `None` if one of them is mistaken.
    fn read(reader: &mut Reader) -> Option<Self>;

    /// What is allowed, yet probably not meant.
    fn warnings(&self) -> Vec<Mistake> {
        Vec::new()
    }

    /// The directory it writes to, with its key.
    fn data_dir(&self) -> Option<(&'static str, &Path)> {
        None
    }

    /// The addresses it binds, with their keys.
    fn doors(&self) -> Vec<(&'static str, SocketAddr)>;
}

/// Reads and checks the configuration of a role. Touches nothing but the file.
/// # Errors
/// Every mistake at once.
pub(crate) fn load<T: Role>(inputs: &Inputs) -> Result<Loaded<T>, Report> {
    let mut reader = Reader::open(inputs)?;
    let built = T::read(&mut reader);
    let (config, shown) = reader.finish(built)?;
    let warnings = config.warnings();
    Ok(Loaded { config, shown, warnings })
}

//! Where it was measured, and with which versions.

use std::{fs, path::Path, process::Command};

use serde::Serialize;

use super::addresses;
use crate::demo::postgres::Installation;

/// What a figure depends on besides the program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    memory_mib: u64,
    kernel: String,
    /// Of the folder with all data.
    file_system: String,
    holdfast: &'static str,
    postgresql: String,
    /// Of the programs that are started: `fixed`, or `random`.
    addresses: &'static str,
    /// Of the processors over the last minute, before anything was started.
    load_average: String,
}

impl Machine {
    /// Looks around; `folder` is where data goes. What cannot be found out is told as unknown.
    pub(crate) fn look(folder: &Path) -> Self {
        let field = |file: &str, name: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map_or_else(unknown, |(_, value)| value.trim().to_owned())
        };
        let memory = field("/proc/meminfo", "MemTotal");
        let memory_kib = memory.split(' ').next().and_then(|word| word.parse().ok());
        let word = |file: &str| fs::read_to_string(file).map(|text| text.trim().to_owned());
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: field("/proc/cpuinfo", "model name"),
            memory_mib: memory_kib.unwrap_or(0_u64) / 1024,
            kernel: word("/proc/sys/kernel/osrelease").unwrap_or_else(|_| unknown()),
            file_system: said_by(Command::new("stat").args(["-f", "-c", "%T"]).arg(folder)),
            holdfast: env!("HOLDFAST_BUILD"),
            postgresql: Installation::find()
                .map_or_else(|_| unknown(), |installation| said_by(&mut installation.version())),
            addresses: addresses::said(),
            load_average: word("/proc/loadavg").unwrap_or_else(|_| unknown()),
        }
    }

    /// For people, a line each.
    pub(crate) fn to_text(&self) -> String {
        format!(
            "{} cores ({}), {} MiB, Linux {}, {} for data, {} addresses, load {}\nholdfast {}; {}",
            self.cores,
            self.cpu,
            self.memory_mib,
            self.kernel,
            self.file_system,
            self.addresses,
            self.load_average,
            self.holdfast,
            self.postgresql
        )
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn said_by(command: &mut Command) -> String {
    let said = command.output().ok().filter(|said| said.status.success());
    said.and_then(|said| String::from_utf8(said.stdout).ok())
        .map_or_else(unknown, |text| text.trim().to_owned())
}

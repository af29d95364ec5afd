//! `holdfast check`: is everything as it should be, and if not, what to do. It asks and measures, and changes nothing.

mod cluster;
mod disk;
mod finding;
mod machine;
mod source;

use std::{path::PathBuf, process::ExitCode};

use holdfast_route::Topology;

use self::finding::{Finding, State};
use crate::{
    config::{self, BankConfig, ConfigArgs, CoordinatorConfig, Role, RouterRole},
    database::SslArgs,
    exit,
    output::{self, Output},
    tx::ClusterAddresses,
};

/// Checks machine, disk, cluster, data sources, configuration and rules.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast check
  holdfast check --data-dir /var/lib/holdfast --config config/coordinator.toml
  holdfast check --coordinator 10.0.0.1:7401 --database 'host=10.0.0.5 user=bank dbname=bank' --sslmode verify-full --sslrootcert db-ca.pem --output json
  holdfast check --no-cluster --rules config/shards.toml

Exit codes: 0 nothing failed (there may be warnings), 1 something failed.")]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterAddresses,
    /// Do not ask a cluster
    #[arg(long)]
    no_cluster: bool,
    /// A data directory to measure; may be repeated
    #[arg(long = "data-dir", value_name = "DIRECTORY")]
    directories: Vec<PathBuf>,
    /// A data source to ask, as a connection string; may be repeated
    #[arg(
        long = "database",
        value_name = "CONNECTION",
        env = "HOLDFAST_CHECK_DATABASE",
        hide_env_values = true
    )]
    databases: Vec<String>,
    #[command(flatten)]
    ssl: SslArgs,
    /// A coordinator's configuration file to read
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A bank's configuration file to read
    #[arg(long, value_name = "FILE")]
    bank_config: Option<PathBuf>,
    /// A router's configuration file to read
    #[arg(long, value_name = "FILE")]
    router_config: Option<PathBuf>,
    /// Shard rules to read
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Show also what is well
    #[arg(long, short)]
    verbose: bool,
}

/// Checks, shows, and says by its exit code whether anything failed.
/// # Errors
/// Standard output cannot be written.
pub(crate) async fn run(args: CheckArgs, output: Output) -> anyhow::Result<ExitCode> {
    let mut found = machine::check();
    for directory in &args.directories {
        let directory = directory.clone();
        found.extend(tokio::task::spawn_blocking(move || disk::check(&directory)).await?);
    }
    if let Some(file) = &args.config {
        found.extend(configuration::<CoordinatorConfig>(file));
    }
    if let Some(file) = &args.bank_config {
        found.extend(configuration::<BankConfig>(file));
    }
    if let Some(file) = &args.router_config {
        found.extend(configuration::<RouterRole>(file));
    }
    if let Some(file) = &args.rules {
        found.extend(rules(file));
    }
    if !args.no_cluster {
        found.extend(cluster::check(&args.cluster.client()?).await);
    }
    for database in &args.databases {
        found.extend(source::check(database, &args.ssl).await);
    }
    show(&found, args.verbose, output)?;
    let failed = found.iter().any(|finding| finding.state == State::Failed);
    Ok(if failed { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS })
}

fn configuration<T: Role>(file: &std::path::Path) -> Vec<Finding> {
    let subject = file.display().to_string();
    let flags = ConfigArgs { config: Some(file.to_path_buf()), ..ConfigArgs::default() };
    let remedy = "holdfast config check tells every mistake with file and line.";
    match config::load::<T>(&flags.inputs(Vec::new())) {
        Ok(loaded) => {
            let count = format!("no mistake in {} values", loaded.shown.len());
            let mut found =
                vec![Finding::new("config.mistakes", &subject, State::Ok, count, remedy)];
            let warnings = loaded.warnings.iter().map(|warning| {
                let remedy = "Change it, or leave it if it is meant.";
                let text = warning.to_string();
                Finding::new("config.warnings", &subject, State::Warning, text, remedy)
            });
            found.extend(warnings);
            found
        }
        Err(report) => {
            let text = report.to_string();
            vec![Finding::new("config.mistakes", subject, State::Failed, text, remedy)]
        }
    }
}

fn rules(file: &std::path::Path) -> Vec<Finding> {
    let subject = file.display().to_string();
    let remedy = "holdfast rules check tells every mistake with line and what to write.";
    let read = config::read_text(file).map_err(|mistake| mistake.to_string());
    let parsed = read.and_then(|text| {
        Topology::parse(&text).map_err(|mistakes| format!("{} mistakes", mistakes.len()))
    });
    let (state, found) = match parsed {
        Ok(topology) => {
            (State::Ok, format!("epoch {}, {} shards", topology.epoch(), topology.shards().len()))
        }
        Err(cause) => (State::Failed, cause),
    };
    vec![Finding::new("rules.mistakes", subject, state, found, remedy)]
}

fn show(found: &[Finding], verbose: bool, output: Output) -> anyhow::Result<()> {
    let count = |state| found.iter().filter(|finding| finding.state == state).count();
    let (failed, warnings) = (count(State::Failed), count(State::Warning));
    if output == Output::Json {
        return output::print_json(&serde_json::json!({
            "checks": found.iter().map(Finding::to_json).collect::<Vec<_>>(),
            "ok": count(State::Ok),
            "skipped": count(State::Skipped),
            "warnings": warnings,
            "failed": failed,
        }));
    }
    let mut shown: Vec<&Finding> =
        found.iter().filter(|finding| verbose || finding.state > State::Skipped).collect();
    shown.sort_by_key(|finding| std::cmp::Reverse(finding.state));
    let rows = shown.iter().map(|finding| {
        let said = format!("{} {}", finding.check, finding.subject);
        vec![finding.state.as_str().to_owned(), said.trim_end().to_owned(), finding.found.clone()]
    });
    if !shown.is_empty() {
        output::print(&output::table(&["status", "check", "found"], rows))?;
        for finding in shown.iter().filter(|finding| !finding.remedy.is_empty()) {
            output::print(&format!("\n{}: {}", finding.check, finding.remedy))?;
        }
        output::print("\n")?;
    }
    output::print(&format!(
        "{} checks: {} ok, {warnings} warnings, {failed} failed, {} skipped",
        found.len(),
        count(State::Ok),
        count(State::Skipped)
    ))
}

#[cfg(test)]
mod tests {
    use super::{finding::assert_told, *};

    #[test]
    fn mistaken_files_and_values_that_are_hardly_meant_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file.toml");
        let shipped = include_str!("../../../config/coordinator.toml");
        let judged = |text: &str| {
            std::fs::write(&file, text).unwrap();
            (configuration::<CoordinatorConfig>(&file), rules(&file))
        };
        let (sound, _) = judged(shipped);
        assert_eq!((sound[0].check, sound[0].state), ("config.mistakes", State::Ok), "{sound:?}");
        let second = "[[cluster.member]]\nid = 2\nhttp = \"127.0.0.1:1\"\ngrpc = \"127.0.0.1:2\"\nraft = \"127.0.0.1:3\"\n[bind]";
        let odd = shipped.replacen("[bind]", second, 1);
        let (odd, _) = judged(&odd);
        let warned = odd.iter().find(|one| one.check == "config.warnings");
        assert_told(warned.unwrap_or_else(|| panic!("{odd:?}")));
        let (mistaken, no_rules) = judged("[nodes]\nid = 1\n");
        for (found, check) in [(mistaken, "config.mistakes"), (no_rules, "rules.mistakes")] {
            assert_eq!((found[0].check, found[0].state), (check, State::Failed), "{found:?}");
            found.iter().for_each(assert_told);
        }
        let (_, sound) = judged(include_str!("../../../config/shards.toml"));
        assert_eq!(sound[0].state, State::Ok, "{sound:?}");
    }
}

//! `holdfast certs`: certificates for development, tokens, and what a certificate says.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use holdfast_security::{
    Authority, Credentials, Files, Name, Role, Subject, Token, WORD_MAX,
    authority::{DAYS_MAX, write_new},
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    exit::{self, Usage},
    output::{self, Output},
};

/// Hosts of one router's certificate.
const HOSTS_MAX: usize = 32;

/// Makes certificates for development, and tokens.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast certs dev --dir certs --nodes 3 --service deposit --user alice:app --user sam:sre
  holdfast certs token --name payroll --role app --tenant hr --participant deposit --days 90
  holdfast certs show certs/node-1.pem --ca certs/ca.pem --key certs/node-1.key")]
pub(crate) struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, clap::Subcommand)]
enum CertsCommand {
    /// Make an authority and certificates for nodes, services and users; overwrites nothing
    #[command(after_help = "\
Examples:
  holdfast certs dev --dir certs
  holdfast certs dev --dir certs --cluster bank --nodes 3 --service deposit --service loyalty --user alice:app --user sam:sre,auditor
  holdfast certs dev --dir certs --nodes 0 --router a:db.bank.example,10.0.0.7

The same --dir again adds certificates of the same authority. Keys are readable by you alone (mode 0600).")]
    Dev {
        /// Where to write: ca.pem, ca.key, node-1.pem, node-1.key, ...
        #[arg(long, value_name = "DIRECTORY")]
        dir: PathBuf,
        /// The cluster, as in cluster.name
        #[arg(long, default_value = "bank")]
        cluster: String,
        /// Certificates for nodes 1 to N; 0: none
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(0..=9))]
        nodes: u64,
        /// A service, as transactions name it; may be repeated
        #[arg(long = "service", value_name = "NAME")]
        services: Vec<String>,
        /// A user and roles; may be repeated
        #[arg(long = "user", value_name = "NAME:ROLE[,ROLE]")]
        users: Vec<String>,
        /// What a router shows to PostgreSQL clients (client_tls), with its hosts beside localhost; may be repeated
        #[arg(long = "router", value_name = "NAME[:HOST[,HOST]]")]
        routers: Vec<String>,
        /// For how many days
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
        days: u32,
    },
    /// Make a bearer token: shown once, with the entry for the access file that knows its hash
    #[command(after_help = "\
Examples:
  holdfast certs token --name payroll --role app --tenant hr --participant deposit > payroll.txt
  holdfast certs token --name oncall --role sre --days 7 --output json")]
    Token {
        /// What the token is called in audit records, as token/NAME
        #[arg(long)]
        name: String,
        /// app, dba, sre or auditor; may be repeated
        #[arg(long = "role", required = true)]
        roles: Vec<String>,
        /// Whose transactions are its own; without it, its own name's
        #[arg(long)]
        tenant: Option<String>,
        /// A participant that it may put into transactions, or "*"; may be repeated
        #[arg(long = "participant", value_name = "NAME")]
        participants: Vec<String>,
        /// For how many days
        #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
        days: u32,
    },
    /// Say whom a certificate names and when it ends
    #[command(
        after_help = "Examples:\n  holdfast certs show certs/node-1.pem --ca certs/ca.pem --key certs/node-1.key"
    )]
    Show {
        /// The certificate
        cert: PathBuf,
        /// The authority's certificate
        #[arg(long)]
        ca: PathBuf,
        /// Its key, which must go with it
        #[arg(long)]
        key: PathBuf,
    },
}

/// Makes or shows.
/// # Errors
/// A name is none (HF1402), or a file cannot be written or is there already (HF1405).
pub(crate) fn run(args: &CertsArgs, output: Output) -> anyhow::Result<ExitCode> {
    match &args.command {
        CertsCommand::Dev { dir, cluster, nodes, services, users, routers, days } => {
            let names = names(cluster, *nodes, services, users)?;
            dev(dir, &names, &hosts(routers)?, *days, output)
        }
        CertsCommand::Token { name, roles, tenant, participants, days } => {
            token(name, roles, tenant.as_deref(), participants, *days, output)
        }
        CertsCommand::Show { cert, ca, key } => show(cert, ca, key, output),
    }
}

/// Every name asked for; all are checked before anything is made.
fn names(
    cluster: &str,
    nodes: u64,
    services: &[String],
    users: &[String],
) -> anyhow::Result<Vec<Name>> {
    let start = format!("holdfast://{cluster}");
    let mut texts: Vec<String> = (1..=nodes).map(|node| format!("{start}/node/{node}")).collect();
    texts.extend(services.iter().map(|service| format!("{start}/service/{service}")));
    for user in users {
        let (user, roles) = user.split_once(':').unwrap_or((user, "app"));
        let mut known: Vec<Role> = Vec::new();
        for role in roles.split(',') {
            let role = Role::parse(role).ok_or_else(|| {
                Usage(format!(
                    "HF1402 --user {user}: {role:?} is no role. Give app, dba, sre or auditor"
                ))
            })?;
            known.push(role);
        }
        known.sort();
        known.dedup();
        let query: Vec<String> = known.iter().map(|role| format!("role={role}")).collect();
        texts.push(format!("{start}/user/{user}?{}", query.join("&")));
    }
    let mut names = Vec::with_capacity(texts.len());
    for text in texts {
        names.push(Name::parse(&text).map_err(|bad| Usage(format!("HF1402 {text}: {bad}")))?);
    }
    Ok(names)
}

/// Of each router its file's name and its hosts; all are checked before anything is made.
fn hosts(routers: &[String]) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let read = |router: &String| {
        let (name, hosts) = router.split_once(':').unwrap_or((router, ""));
        let hosts: Vec<String> =
            hosts.split(',').filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let is_word = |text: &str, max: usize| {
            let sign = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            (1..=max).contains(&text.len()) && text.bytes().all(sign)
        };
        let is_host = |host: &str| host.parse::<IpAddr>().is_ok() || is_word(host, 253);
        let wrong = std::iter::once(name).filter(|name| !is_word(name, WORD_MAX));
        let mut wrong = wrong.chain(hosts.iter().map(String::as_str).filter(|host| !is_host(host)));
        if let Some(wrong) = wrong.next() {
            let why = format!("{wrong:?} is neither a name nor an address");
            return Err(Usage(format!("HF1402 --router {router}: {why}. Give NAME:HOST,HOST")));
        }
        if hosts.len() > HOSTS_MAX {
            let why = format!("{} hosts; a certificate has at most {HOSTS_MAX}", hosts.len());
            return Err(Usage(format!("HF1402 --router {name}: {why}. Make several")));
        }
        Ok((format!("router-{name}"), hosts))
    };
    Ok(routers.iter().map(read).collect::<Result<_, _>>()?)
}

fn dev(
    dir: &Path,
    names: &[Name],
    routers: &[(String, Vec<String>)],
    days: u32,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let made =
        |error: holdfast_security::authority::AuthorityError| anyhow::anyhow!("HF1405 {error}");
    let authority = Authority::in_dir(dir).map_err(made)?;
    let mut rows = Vec::with_capacity(names.len() + routers.len());
    for name in names {
        let files = authority.issue(name, days).map_err(made)?;
        let (cert, key) = files.identity.expect("a name has a certificate");
        rows.push((name.to_string(), cert.display().to_string(), key.display().to_string()));
    }
    for (stem, hosts) in routers {
        let (cert, key) = authority.issue_for_hosts(stem, hosts, days).map_err(made)?;
        let hosts = std::iter::once("localhost").chain(hosts.iter().map(String::as_str));
        let hosts = hosts.collect::<Vec<_>>().join(", ");
        rows.push((hosts, cert.display().to_string(), key.display().to_string()));
    }
    if output == Output::Json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, cert, key)| serde_json::json!({ "name": name, "cert": cert, "key": key }))
            .collect();
        let ca = dir.join("ca.pem").display().to_string();
        output::print_json(&serde_json::json!({ "ca": ca, "certificates": rows }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = rows.into_iter().map(|(name, cert, key)| vec![name, cert, key]);
    output::print(&output::table(&["name", "certificate", "key"], rows))?;
    let ca = dir.join("ca.pem");
    output::print(&format!(
        "Authority: {}, for development only. Good for {days} days.",
        ca.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn token(
    name: &str,
    roles: &[String],
    tenant: Option<&str>,
    participants: &[String],
    days: u32,
    output: Output,
) -> anyhow::Result<ExitCode> {
    let token = Token::new()?;
    let expires = OffsetDateTime::now_utc() + Duration::days(i64::from(days));
    let expires = expires.replace_nanosecond(0)?.format(&Rfc3339)?;
    let list = |words: &[String]| {
        let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
        format!("[{}]", quoted.join(", "))
    };
    let tenant = tenant.map(|tenant| format!("tenant = {tenant:?}\n")).unwrap_or_default();
    let entry = format!(
        "[[token]]\nname = {name:?}\nid = {:?}\nsha256 = \"{}\"\nroles = {}\n{tenant}participants = {}\nexpires_at = {expires:?}\n",
        token.id(),
        token.hash(),
        list(roles),
        list(participants)
    );
    // What the coordinator would refuse is refused here, with the same words.
    let folder = tempfile::tempdir()?;
    let probe = folder.path().join("access.toml");
    write_new(&probe, &entry, 0o600)?;
    if let Err(bad) = holdfast_security::Access::open(&probe) {
        return Err(Usage(bad.to_string()).into());
    }
    if output == Output::Json {
        output::print_json(&serde_json::json!({ "token": token.reveal(), "entry": entry }))?;
    } else {
        output::print(token.reveal())?;
        let words =
            "# It is shown this once. Add this entry to the access file of every coordinator:";
        exit::tell(&format!("{words}\n{entry}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(cert: &Path, ca: &Path, key: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let identity = Some((cert.to_owned(), key.to_owned()));
    let opened = Credentials::open(Files { ca: ca.to_owned(), identity });
    let credentials = opened.map_err(|bad| anyhow::anyhow!("HF1401 {bad}"))?;
    let name = credentials.name().expect("it was opened with a certificate");
    let kind = match &name.subject {
        Subject::Node(_) => "node",
        Subject::Service(_) => "service",
        Subject::User { .. } => "user",
    };
    let ends = OffsetDateTime::from_unix_timestamp(credentials.ends_at_s().unwrap_or_default())?;
    let ends = ends.format(&Rfc3339)?;
    if output == Output::Json {
        let warning = credentials.expiry_warning();
        output::print_json(
            &serde_json::json!({ "name": name.to_string(), "kind": kind, "ends_at": ends, "warning": warning }),
        )?;
    } else {
        output::print(&format!("name     {name}\nkind     {kind}\nends at  {ends}"))?;
        if let Some(warning) = credentials.expiry_warning() {
            output::print(&format!("HF1403   {warning}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_router_has_a_name_and_as_many_hosts_as_the_limit_and_not_one_more() {
        let read = |text: &str| hosts(&[text.to_owned()]).map(|mut all| all.remove(0));
        let (stem, none) = read("a").expect("a name alone");
        assert_eq!((stem.as_str(), none.len()), ("router-a", 0));
        let (_, both) = read("a:db.bank.example,::1").expect("a name and an address");
        assert_eq!(both, ["db.bank.example", "::1"]);
        for wrong in ["", ":x", "../a", "a:b c", "a:b/c"] {
            assert!(read(wrong).expect_err(wrong).to_string().contains("HF1402"), "{wrong}");
        }
        let many = |count: usize| format!("a:{}", vec!["h"; count].join(","));
        assert_eq!(read(&many(HOSTS_MAX)).expect("at the limit").1.len(), HOSTS_MAX);
        assert!(read(&many(HOSTS_MAX + 1)).is_err(), "one past the limit");
    }
}

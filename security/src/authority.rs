//! An authority for development, tests and the demo: signs certificates with names. A bank's own authority does the same.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::{Credentials, Files, Name, Subject};

/// Days for which the authority itself is good.
const AUTHORITY_DAYS: u32 = 3_650;
/// The most days that a certificate is good for.
pub const DAYS_MAX: u32 = 825;

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written. HF1405 if it is there already: nothing is ever overwritten.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate or key cannot be made, or the authority's cannot be read.
    #[error("the certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// A folder with an authority, `ca.pem` and `ca.key`, and what it has signed: `node-1.pem`, `node-1.key`, ...
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The authority in `dir`, made if there is none; keys are readable by this user alone.
    /// # Errors
    /// [`AuthorityError`].
    pub fn in_dir(dir: &Path) -> Result<Self, AuthorityError> {
        let (pem, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !pem.exists() {
            let failed = |source| AuthorityError::File { file: dir.to_owned(), source };
            fs::create_dir_all(dir).map_err(failed)?;
            let pair = KeyPair::generate()?;
            let certificate = authority_params().self_signed(&pair)?;
            write_new(&key, &pair.serialize_pem(), 0o600)?;
            write_new(&pem, &certificate.pem(), 0o644)?;
        }
        let read = |file: &Path| {
            let failed = |source| AuthorityError::File { file: file.to_owned(), source };
            fs::read_to_string(file).map_err(failed)
        };
        let issuer = Issuer::from_ca_cert_pem(&read(&pem)?, KeyPair::from_pem(&read(&key)?)?)?;
        Ok(Self { dir: dir.to_owned(), issuer })
    }

    /// Signs a certificate for `name`, good for `days`, and writes it with its key. Never overwrites.
    /// # Errors
    /// [`AuthorityError`]; of a pair that is half there, nothing is written.
    pub fn issue(&self, name: &Name, days: u32) -> Result<Files, AuthorityError> {
        let files = self.files_of(name);
        let (cert, key) = files.identity.as_ref().expect("a name has a certificate");
        self.sign(&params(name, days)?, cert, key)?;
        Ok(files)
    }

    /// Signs what a server shows to clients that know it by its address: `stem.pem` and `stem.key`, for `hosts` (names and IP addresses) and this
    /// machine. Within the cluster it names nobody. Never overwrites.
    /// # Errors
    /// [`AuthorityError`], also for a host that is none.
    pub fn issue_for_hosts(
        &self,
        stem: &str,
        hosts: &[String],
        days: u32,
    ) -> Result<(PathBuf, PathBuf), AuthorityError> {
        let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter();
        let names: Vec<String> = names.chain(hosts.iter().cloned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, stem);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        valid(&mut params, days.clamp(1, DAYS_MAX));
        let (cert, key) =
            (self.dir.join(format!("{stem}.pem")), self.dir.join(format!("{stem}.key")));
        self.sign(&params, &cert, &key)?;
        Ok((cert, key))
    }

    fn sign(
        &self,
        params: &CertificateParams,
        cert: &Path,
        key: &Path,
    ) -> Result<(), AuthorityError> {
        if let Some(file) = [cert, key].into_iter().find(|file| file.exists()) {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "is there already and is not overwritten",
            );
            return Err(AuthorityError::File { file: file.to_owned(), source });
        }
        let pair = KeyPair::generate()?;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        write_new(key, &pair.serialize_pem(), 0o600)?;
        write_new(cert, &certificate.pem(), 0o644)
    }

    /// Where the certificate of `name` is, or would be.
    #[must_use]
    pub fn files_of(&self, name: &Name) -> Files {
        let stem = name.subject.short().replacen('/', "-", 1);
        let file = |end: &str| self.dir.join(format!("{stem}.{end}"));
        Files { ca: self.dir.join("ca.pem"), identity: Some((file("pem"), file("key"))) }
    }

    /// Signs, writes and reads again: for tests and the demo.
    /// # Errors
    /// [`AuthorityError`], also for what cannot be read again.
    pub fn credentials(&self, name: &Name) -> Result<Credentials, AuthorityError> {
        let files = self.issue(name, 7)?;
        Credentials::open(files).map_err(|bad| AuthorityError::File {
            file: bad.file.clone(),
            source: io::Error::other(bad.to_string()),
        })
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "Holdfast development authority");
    valid(&mut params, AUTHORITY_DAYS);
    params
}

fn params(name: &Name, days: u32) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name.subject.short());
    params.subject_alt_names.push(SanType::URI(name.to_string().try_into()?));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if let Subject::Node(_) = name.subject {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        // For curl and browsers, which know a server by its address. Clients of ours go by the name.
        params.subject_alt_names.push(SanType::DnsName("localhost".try_into()?));
        for ip in [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()] {
            params.subject_alt_names.push(SanType::IpAddress(ip));
        }
    }
    valid(&mut params, days.clamp(1, DAYS_MAX));
    Ok(params)
}

fn valid(params: &mut CertificateParams, days: u32) {
    let now = OffsetDateTime::now_utc();
    // Clocks differ a little.
    params.not_before = now - Duration::minutes(5);
    params.not_after = now + Duration::days(i64::from(days));
}

/// Writes a file that must not be there yet.
/// # Errors
/// [`AuthorityError::File`].
pub fn write_new(file: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let failed = |source| AuthorityError::File { file: file.to_owned(), source };
    let opened = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(file);
    let mut opened = opened.map_err(failed)?;
    opened.write_all(text.as_bytes()).and_then(|()| opened.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{expiry_warning, read_pair};

    fn name(text: &str) -> Name {
        Name::parse(text).expect(text)
    }

    #[test]
    fn a_pair_is_made_once_with_a_key_for_this_user_alone_and_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let node = name("holdfast://bank/node/1");
        let files = Authority::in_dir(dir.path()).unwrap().issue(&node, 29).unwrap();
        let mode = |file: &Path| fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&files.identity.as_ref().unwrap().1), 0o600);
        assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
        let credentials = Credentials::open(files).unwrap();
        assert_eq!(credentials.name(), Some(node.clone()));
        assert!(credentials.expiry_warning().is_some(), "29 days are near");
        // The authority is found again, and nothing is overwritten.
        let again = Authority::in_dir(dir.path()).unwrap();
        let refused = again.issue(&node, 30).unwrap_err().to_string();
        assert!(refused.contains("not overwritten"), "{refused}");
        let user = again.issue(&name("holdfast://bank/user/alice?role=sre"), 60).unwrap();
        assert!(Credentials::open(user).unwrap().expiry_warning().is_none());
    }

    #[test]
    fn a_certificate_for_hosts_is_a_pair_and_names_nobody_of_the_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::in_dir(dir.path()).unwrap();
        let hosts = ["db.bank.example".to_owned(), "10.0.0.7".to_owned()];
        let (cert, key) = authority.issue_for_hosts("router-a", &hosts, 29).unwrap();
        let pair = read_pair(&cert, &key).unwrap();
        assert!(expiry_warning(&cert, pair.ends_at_s).unwrap().contains("ends in 2"));
        let ca = dir.path().join("ca.pem");
        let as_somebody = Files { ca, identity: Some((cert.clone(), key)) };
        let refused = Credentials::open(as_somebody).unwrap_err();
        assert!(refused.cause.contains("exactly one URI"), "{refused}");
        let again = authority.issue_for_hosts("router-a", &hosts, 29).unwrap_err().to_string();
        assert!(again.contains("not overwritten"), "{again}");
        assert!(authority.issue_for_hosts("router-b", &["zür".to_owned()], 29).is_err());
        assert!(expiry_warning(&cert, 0).unwrap().contains("is over"));
    }

    #[test]
    fn files_that_do_not_belong_together_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::in_dir(dir.path()).unwrap();
        let one = authority.issue(&name("holdfast://bank/node/1"), 7).unwrap();
        let two = authority.issue(&name("holdfast://bank/node/2"), 7).unwrap();
        let (cert, _) = one.identity.clone().unwrap();
        let (_, key) = two.identity.clone().unwrap();
        let mixed = Files { ca: one.ca.clone(), identity: Some((cert.clone(), key)) };
        assert!(Credentials::open(mixed).unwrap_err().cause.contains("does not go with"));
        let swapped = Files { ca: one.ca.clone(), identity: Some((one.ca.clone(), cert)) };
        assert!(Credentials::open(swapped).is_err());
        let nothing = Files { ca: dir.path().join("none.pem"), identity: None };
        assert!(Credentials::open(nothing).unwrap_err().cause.contains("cannot be read"));
    }

    #[test]
    fn new_files_are_taken_over_unless_they_name_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::in_dir(dir.path()).unwrap();
        let node = name("holdfast://bank/node/1");
        let files = authority.issue(&node, 7).unwrap();
        let credentials = Credentials::open(files.clone()).unwrap();
        assert_eq!(credentials.reload(), Ok(false));
        let (cert, key) = files.identity.unwrap();
        let ended = credentials.ends_at_s();
        fs::remove_file(&cert).unwrap();
        fs::remove_file(&key).unwrap();
        assert!(credentials.reload().is_err(), "files that are gone change nothing");
        assert_eq!(credentials.ends_at_s(), ended);
        authority.issue(&node, 90).unwrap();
        assert_eq!(credentials.reload(), Ok(true));
        assert!(credentials.ends_at_s() > ended);
        let other = authority.issue(&name("holdfast://bank/node/2"), 7).unwrap().identity.unwrap();
        fs::copy(&other.0, &cert).unwrap();
        fs::copy(&other.1, &key).unwrap();
        assert!(credentials.reload().unwrap_err().cause.contains("somebody else"));
        assert_eq!(credentials.name(), Some(node));
    }
}

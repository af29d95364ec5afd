//! The authority, certificate and key of this process: read from files, checked, and read again while running.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::{
    Access, Name, access, certificate,
    connector::Connector,
    verify::{Expected, NodeVerifier},
};

/// Bytes of one PEM file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Certificates of an authority's file, and of a chain.
const CERTIFICATES_MAX: usize = 32;
/// A certificate that ends within so many seconds is warned of: 30 days.
pub const EXPIRY_WARNING_S: i64 = 30 * 24 * 3600;
/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often an end that comes near is spoken of.
pub const REMIND: Duration = Duration::from_secs(12 * 3600);

/// Where the PEM files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The authority's certificates.
    pub ca: PathBuf,
    /// The certificate with its chain, and its key; `None` for a client that shows a token instead.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Whether a door lets in a client that shows no certificate; what it may do then, its token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate of the authority, always.
    Required,
    /// A certificate, or nothing; a certificate that is shown must be sound.
    Optional,
}

/// Why files cannot be used. Says which file, never what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {cause}", file.display())]
pub struct BadCredentials {
    /// The file at fault.
    pub file: PathBuf,
    /// Cause and remedy.
    pub cause: String,
}

/// The credentials of this process. A handle: clones are the same credentials, and see new files.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    files: Files,
    current: RwLock<Arc<Current>>,
}

struct Current {
    digest: [u8; 32],
    roots: Arc<RootCertStore>,
    identity: Option<Identity>,
}

#[derive(Clone)]
struct Identity {
    name: Name,
    ends_at_s: i64,
    key: Arc<CertifiedKey>,
}

/// The same handle; equal files read twice are two.
impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Eq for Credentials {}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.inner.files).finish_non_exhaustive()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn bad(file: &Path, cause: impl Into<String>) -> BadCredentials {
    BadCredentials { file: file.to_owned(), cause: cause.into() }
}

impl Credentials {
    /// Reads and checks `files`.
    /// # Errors
    /// [`BadCredentials`]: a file cannot be read, holds nothing of its kind, is over, or the parts do not belong together.
    pub fn open(files: Files) -> Result<Self, BadCredentials> {
        let current = RwLock::new(Arc::new(Current::read(&files)?));
        Ok(Self { inner: Arc::new(Inner { files, current }) })
    }

    /// Where they came from.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.inner.files
    }

    fn now(&self) -> Arc<Current> {
        Arc::clone(&self.inner.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who this process is; `None` without a certificate of its own.
    #[must_use]
    pub fn name(&self) -> Option<Name> {
        self.now().identity.as_ref().map(|identity| identity.name.clone())
    }

    /// When its certificate ends, seconds since epoch.
    #[must_use]
    pub fn ends_at_s(&self) -> Option<i64> {
        self.now().identity.as_ref().map(|identity| identity.ends_at_s)
    }

    /// Words about an end that is near, if it is.
    #[must_use]
    pub fn expiry_warning(&self) -> Option<String> {
        let (cert, _) = self.inner.files.identity.as_ref()?;
        expiry_warning(cert, self.ends_at_s()?)
    }

    /// Reads the files again if they changed. What cannot be used changes nothing.
    /// # Errors
    /// [`BadCredentials`]; also if the new certificate names somebody else, which only a restart may do.
    pub fn reload(&self) -> Result<bool, BadCredentials> {
        let old = self.now();
        if digest(&self.inner.files)? == old.digest {
            return Ok(false);
        }
        let new = Current::read(&self.inner.files)?;
        let name = |current: &Current| current.identity.as_ref().map(|one| one.name.clone());
        if name(&old) != name(&new) {
            let file =
                self.inner.files.identity.as_ref().map_or(&self.inner.files.ca, |(cert, _)| cert);
            return Err(bad(
                file,
                "the new certificate names somebody else. Restart to become somebody else",
            ));
        }
        *self.inner.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        Ok(true)
    }

    /// For a door that speaks `protocol` (ALPN).
    /// # Errors
    /// [`BadCredentials`]: there is no certificate to show, or the authority cannot judge clients.
    pub(crate) fn server(
        &self,
        auth: ClientAuth,
        protocol: &[u8],
    ) -> Result<Arc<ServerConfig>, BadCredentials> {
        let current = self.now();
        let ca = &self.inner.files.ca;
        let Some(identity) = &current.identity else {
            return Err(bad(ca, "a door needs a certificate of its own"));
        };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&current.roots), provider());
        let verifier = match auth {
            ClientAuth::Required => verifier,
            ClientAuth::Optional => verifier.allow_unauthenticated(),
        };
        let verifier = verifier.build().map_err(|error| bad(ca, error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| bad(ca, error.to_string()))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key))));
        config.alpn_protocols = vec![protocol.to_vec()];
        // A resumed session would be let in by what was verified long ago.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For a connection to a node.
    pub(crate) fn client(&self, node: Option<u64>, protocol: &[u8]) -> Arc<ClientConfig> {
        let current = self.now();
        let cluster = current.identity.as_ref().map(|identity| identity.name.cluster.clone());
        let verifier = NodeVerifier {
            roots: Arc::clone(&current.roots),
            provider: provider(),
            expected: Expected { cluster, node },
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("ring has the suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &current.identity {
            Some(identity) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
                Arc::clone(&identity.key),
            ))),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Arc::new(config)
    }

    /// Opens gRPC connections to a node: `node` of this cluster, or any.
    #[must_use]
    pub fn connector(&self, node: Option<u64>) -> Connector {
        Connector::new(self.clone(), node)
    }

    /// One look at the files; says once what is wrong with them.
    fn look(&self, told: &mut Option<BadCredentials>) {
        match self.reload() {
            Ok(true) => {
                *told = None;
                tracing::info!(ends_at_s = self.ends_at_s(), "new certificates were taken over");
                self.remind();
            }
            Ok(false) => *told = None,
            Err(error) if told.as_ref() == Some(&error) => {}
            Err(error) => {
                tracing::error!(%error, "HF1401 new certificates are not taken over; the old ones stay");
                *told = Some(error);
            }
        }
    }

    fn remind(&self) {
        if let Some(ends_at_s) = self.ends_at_s() {
            #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds since epoch")]
            metrics::gauge!("holdfast_certificate_ends_at_seconds").set(ends_at_s as f64);
        }
        if let Some(warning) = self.expiry_warning() {
            tracing::warn!("HF1403 {warning}");
        }
    }
}

/// Reads the files of `credentials` and the access file again when they change or the process is sent SIGHUP, until `shutdown`; warns in
/// time of the certificate's end. Returns at once, and does nothing where nothing is encrypted.
pub fn keep_fresh(credentials: Option<&Credentials>, access: Access, shutdown: &CancellationToken) {
    let Some(credentials) = credentials.cloned() else { return };
    let (mut told, mut seen) = (None, access_digest(&access));
    let mut remind_at = Instant::now();
    tokio::spawn(keep_looking(shutdown.clone(), move |forced| {
        if Instant::now() >= remind_at {
            remind_at = Instant::now() + REMIND;
            credentials.remind();
        }
        credentials.look(&mut told);
        let digest = access_digest(&access);
        if forced || digest != seen {
            seen = digest;
            match access.reload() {
                Ok(()) if access.path().is_some() => {
                    tracing::info!("the access file was read again");
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::error!(%error, "the access file is not taken over; the old entries stay");
                }
            }
        }
    }));
}

/// Calls `look` every two seconds, and with `true` when the process is sent SIGHUP, until `shutdown`.
pub async fn keep_looking(shutdown: CancellationToken, mut look: impl FnMut(bool)) {
    let mut hangups = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            return tracing::error!(%error, "SIGHUP cannot be heard; files are not read again");
        }
    };
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = hangups.recv() => look(true),
            _ = tick.tick() => look(false),
        }
    }
}

impl Current {
    fn read(files: &Files) -> Result<Self, BadCredentials> {
        let digest = digest(files)?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots
                .add(certificate)
                .map_err(|error| bad(&files.ca, format!("is no authority: {error}")))?;
        }
        let identity = match &files.identity {
            None => None,
            Some((cert, key)) => Some(Identity::read(cert, key)?),
        };
        Ok(Self { digest, roots: Arc::new(roots), identity })
    }
}

impl Identity {
    fn read(cert: &Path, key: &Path) -> Result<Self, BadCredentials> {
        let pair = read_pair(cert, key)?;
        let first = pair.key.cert.first().expect("a file without certificates was refused");
        let certified = certificate::read(first).map_err(|error| bad(cert, error.to_string()))?;
        Ok(Self { name: certified.name, ends_at_s: pair.ends_at_s, key: Arc::new(pair.key) })
    }
}

/// A certificate with its chain and its key, whoever it names.
#[derive(Debug)]
pub struct Pair {
    /// There is at least one certificate.
    pub key: CertifiedKey,
    /// The last second in which it is valid, since epoch.
    pub ends_at_s: i64,
}

/// Reads a certificate with its chain, and its key, both PEM.
/// # Errors
/// [`BadCredentials`]: a file cannot be read or holds nothing of its kind, they do not belong together, or the certificate is over.
pub fn read_pair(cert: &Path, key: &Path) -> Result<Pair, BadCredentials> {
    let chain = certificates(cert)?;
    let ends_at_s = certificate::ends_at_s(&chain[0]).map_err(|why| bad(cert, why.to_string()))?;
    if ends_at_s < now_s() {
        return Err(bad(cert, "the certificate is over. Put a new one in its place (HF1403)"));
    }
    let private = PrivateKeyDer::from_pem_slice(&bytes(key)?)
        .map_err(|_| bad(key, "holds no private key in PEM (PKCS #8)"))?;
    let key = CertifiedKey::from_der(chain, private, &provider())
        .map_err(|error| bad(key, format!("does not go with the certificate: {error}")))?;
    Ok(Pair { key, ends_at_s })
}

/// Words about the end of the certificate in `cert`, if it is near or was there already.
#[must_use]
pub fn expiry_warning(cert: &Path, ends_at_s: i64) -> Option<String> {
    let left = ends_at_s - now_s();
    let end = match left {
        EXPIRY_WARNING_S.. => return None,
        0.. => format!("ends in {} days", left / 86_400),
        _ => "is over".to_owned(),
    };
    Some(format!(
        "the certificate in {} {end}. Put a new one in its place; it is taken over without a restart",
        cert.display()
    ))
}

fn bytes(file: &Path) -> Result<Vec<u8>, BadCredentials> {
    let mut bytes = Vec::new();
    let opened =
        fs::File::open(file).map_err(|error| bad(file, format!("cannot be read: {error}")))?;
    let read = opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| bad(file, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(bad(file, format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, BadCredentials> {
    let bytes = bytes(file)?;
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&bytes).take(CERTIFICATES_MAX + 1).collect();
    match read {
        Err(_) => Err(bad(file, "is no sound PEM")),
        Ok(found) if found.is_empty() => Err(bad(file, "holds no certificate in PEM")),
        Ok(found) if found.len() > CERTIFICATES_MAX => {
            Err(bad(file, format!("holds more than {CERTIFICATES_MAX} certificates")))
        }
        Ok(found) => Ok(found),
    }
}

fn digest(files: &Files) -> Result<[u8; 32], BadCredentials> {
    let mut hash = Sha256::new();
    let identity = files.identity.as_ref();
    let named = [Some(&files.ca), identity.map(|(cert, _)| cert), identity.map(|(_, key)| key)];
    for file in named.into_iter().flatten() {
        let bytes = bytes(file)?;
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    }
    Ok(hash.finalize().into())
}

fn access_digest(access: &Access) -> Option<[u8; 32]> {
    let path = access.path()?;
    Some(Sha256::digest(fs::read(path).ok()?).into())
}

fn now_s() -> i64 {
    i64::try_from(access::now_ms() / 1_000).unwrap_or(i64::MAX)
}

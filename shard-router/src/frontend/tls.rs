//! What TLS shows to clients: a certificate and its key, read again when their files change.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use holdfast_security::{
    BadCredentials, Pair, REMIND, binding::end_point_hash, expiry_warning, keep_looking, read_pair,
};
use tokio_rustls::rustls::{
    ServerConfig, crypto,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_util::sync::CancellationToken;

/// What TLS shows to clients. A handle: clones show the same, also when it is new.
#[derive(Clone, Debug)]
pub struct Tls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    shown: RwLock<Arc<Shown>>,
}

/// What one handshake shows, and what its login is bound to: always the same certificate.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) certificate_hash: Vec<u8>,
    pair: Arc<CertifiedKey>,
    ends_at_s: i64,
}

impl Tls {
    /// Reads a certificate chain and its key, both PEM. Any authority may have signed it: clients judge it, and nobody else.
    /// # Errors
    /// [`BadCredentials`], also if it is over; a key is never shown.
    pub fn from_pem_files(certificate: &Path, key: &Path) -> Result<Self, BadCredentials> {
        let shown = RwLock::new(Arc::new(Shown::of(read_pair(certificate, key)?)));
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        Ok(Self { inner: Arc::new(Inner { certificate, key, shown }) })
    }

    /// What counts for the next handshake.
    pub(crate) fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.inner.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files again. What cannot be used changes nothing, and sessions that are there go on.
    /// # Errors
    /// [`BadCredentials`].
    pub fn reload(&self) -> Result<bool, BadCredentials> {
        let pair = read_pair(&self.inner.certificate, &self.inner.key)?;
        let is_new = pair.key.cert != self.shown().pair.cert;
        if is_new {
            let shown = Arc::new(Shown::of(pair));
            *self.inner.shown.write().unwrap_or_else(PoisonError::into_inner) = shown;
        }
        Ok(is_new)
    }

    /// Words about an end that is near, or was there already.
    #[must_use]
    pub fn expiry_warning(&self) -> Option<String> {
        expiry_warning(&self.inner.certificate, self.shown().ends_at_s)
    }

    /// Looks at the files until `shutdown`; says once what is wrong with them, and in time that the certificate ends.
    pub async fn keep_fresh(self, shutdown: CancellationToken) {
        let mut told = None;
        let mut remind_at = Instant::now();
        keep_looking(shutdown, move |_| {
            match self.reload() {
                Ok(is_new) => {
                    told = None;
                    if is_new {
                        tracing::info!("clients are shown a new certificate");
                        remind_at = Instant::now();
                    }
                }
                // It may have ended meanwhile, without a change of its files.
                Err(error) if told.as_ref() == Some(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "HF1401 clients are shown the old certificate still");
                    told = Some(error);
                }
            }
            if Instant::now() >= remind_at {
                remind_at = Instant::now() + REMIND;
                self.remind();
            }
        })
        .await;
    }

    fn remind(&self) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge of seconds since epoch")]
        metrics::gauge!("holdfast_router_client_certificate_ends_at_seconds")
            .set(self.shown().ends_at_s as f64);
        if let Some(warning) = self.expiry_warning() {
            tracing::warn!("HF1403 shown to clients: {warning}");
        }
    }
}

impl Shown {
    fn of(Pair { key, ends_at_s }: Pair) -> Self {
        let pair = Arc::new(key);
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has suites for them")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair))));
        let first = pair.cert.first().expect("a pair has a certificate");
        let certificate_hash = end_point_hash(first);
        Self { config: Arc::new(config), certificate_hash, pair, ends_at_s }
    }
}

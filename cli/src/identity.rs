//! Who a command is at a cluster's doors: a certificate or a token, over TLS.

use std::{ffi::OsString, path::PathBuf};

use holdfast_client::{ClientOptions, Credentials, Files, Token};

/// Where help lists what every command has that asks a cluster, apart from what a command is about.
pub(crate) const CLUSTER: &str = "Cluster and identity";

/// Files that say who we are. Without any, nothing is encrypted, and only loopback addresses are spoken to.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Identity {
    /// The authority's certificate (PEM): speak TLS, to nodes that it names
    #[arg(long, global = true, value_name = "FILE", env = "HOLDFAST_TLS_CA", help_heading = CLUSTER)]
    tls_ca: Option<PathBuf>,
    /// Your certificate (PEM)
    #[arg(
        long,
        global = true,
        help_heading = CLUSTER,
        value_name = "FILE",
        env = "HOLDFAST_TLS_CERT",
        requires = "tls_ca"
    )]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(
        long,
        global = true,
        help_heading = CLUSTER,
        value_name = "FILE",
        env = "HOLDFAST_TLS_KEY",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// A file with a bearer token, where there is no certificate; needs --tls-ca
    #[arg(
        long,
        global = true,
        help_heading = CLUSTER,
        value_name = "FILE",
        env = "HOLDFAST_TOKEN_FILE",
        requires = "tls_ca"
    )]
    token_file: Option<PathBuf>,
}

impl Identity {
    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        let Some(ca) = self.tls_ca.clone() else { return Ok(None) };
        let identity = self.tls_cert.clone().zip(self.tls_key.clone());
        let opened = Credentials::open(Files { ca, identity });
        opened.map(Some).map_err(|bad| anyhow::anyhow!("HF1401 {bad}"))
    }

    /// The token of the file; what stands in it is never shown.
    fn token(&self) -> anyhow::Result<Option<Token>> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let shown = file.display();
        let text = std::fs::read_to_string(file)
            .map_err(|error| anyhow::anyhow!("HF1401 {shown}: cannot be read: {error}"))?;
        let token = Token::parse(text.trim());
        token.map(Some).map_err(|error| anyhow::anyhow!("HF1401 {shown}: {error}"))
    }

    /// The options of a client that shows itself so; the others are the defaults.
    /// # Errors
    /// HF1401: a file cannot be read, or does not hold what it should.
    pub(crate) fn options(&self) -> anyhow::Result<ClientOptions> {
        let (credentials, token) = (self.credentials()?, self.token()?);
        Ok(ClientOptions { credentials, token, ..ClientOptions::default() })
    }

    /// The same, as words of another command of this program.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let files = [
            ("--tls-ca", &self.tls_ca),
            ("--tls-cert", &self.tls_cert),
            ("--tls-key", &self.tls_key),
            ("--token-file", &self.token_file),
        ];
        let given = files.into_iter().filter_map(|(flag, file)| Some((flag, file.as_ref()?)));
        given.flat_map(|(flag, file)| [flag.into(), file.into()]).collect()
    }
}

//! The authority that this process trusts, and the certificate with which it calls nodes: `ca` and `operator` in the folder of `--tls-dir`.
//!
//! Without the option, the folder is `tls` in the data folder if `shardctl up --tls` made the cluster. Files are read for each connection,
//! because they may be made or renewed while a command runs.

use std::{
    error::Error as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::Context;
use certificates::{Mutual, MutualFiles, files};
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::{
    authority::{self, AUTHORITY, NODE, Purpose},
    cluster::{Description, Layout},
    http_client::with_causes,
    output,
};

#[derive(clap::Args)]
pub struct TrustArgs {
    /// Folder of ca.pem, the authority of the routers' HTTPS certificates, and of operator.pem and operator.key, which identify shardctl to
    /// nodes [default: the folder of the cluster in --data-dir, if it was made with `up --tls`]
    #[arg(long, global = true, value_name = "DIR", env = "SHARDLEDGER_TLS_DIR")]
    tls_dir: Option<PathBuf>,
}

struct Choice {
    named: Option<PathBuf>,
    data_dir: PathBuf,
}

static CHOICE: OnceLock<Choice> = OnceLock::new();

/// Sets the folder of certificates. Called once, before any connection is made.
pub fn choose(args: TrustArgs, data_dir: PathBuf) {
    CHOICE.get_or_init(|| Choice { named: args.tls_dir, data_dir });
}

/// The folder of certificates; `None`: public authorities are trusted, and nodes are called without TLS.
fn folder() -> Option<PathBuf> {
    let Choice { named, data_dir } = CHOICE.get()?;
    if named.is_some() {
        return named.clone();
    }
    let root = data_dir.canonicalize().ok()?;
    Description::peek(&root).filter(Description::has_tls).map(|_| Layout::at(root).tls())
}

/// Trusts the authority in the folder, if there is one, and public authorities.
pub fn https() -> ClientConfig {
    https_of(folder().as_deref())
}

/// Trusts the authority in this folder, if it has one, and public authorities.
pub fn https_of(folder: Option<&Path>) -> ClientConfig {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(file) = folder.map(|folder| authority::certificate_of(folder, AUTHORITY)).filter(|file| file.exists())
    {
        match files::read_file(&file).and_then(|text| files::certificates(&file, &text)) {
            Ok(authorities) => drop(roots.add_parsable_certificates(authorities)),
            Err(error) => output::note(&format!("only public authorities are trusted: {error}")),
        }
    }
    let provider = std::sync::Arc::new(ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the versions of TLS that are the default")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The error that a node answered, or why the connection broke. A node that refuses this process says so after the handshake.
pub fn error_text(status: &tonic::Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), with_causes)
}

/// Connects to a node, with mutual TLS if there is a folder of certificates.
///
/// # Errors
/// The connection failed. The text says why.
pub async fn connect(endpoint: Endpoint) -> Result<Channel, String> {
    let Some(folder) = folder() else { return endpoint.connect().await.map_err(|error| with_causes(&error)) };
    let name = Purpose::Operator.name();
    let files = MutualFiles {
        certificate: authority::certificate_of(&folder, name),
        key: authority::key_of(&folder, name),
        authority: authority::certificate_of(&folder, AUTHORITY),
    };
    let tls = Mutual::open(&files, Vec::new(), vec![NODE.to_owned()]).map_err(|error| error.to_string())?;
    let connector = service_fn(move |uri: Uri| {
        let tls = tls.clone();
        async move {
            let address = uri.authority().context("the address has no host")?;
            let socket = TcpStream::connect(address.as_str()).await?;
            socket.set_nodelay(true)?;
            let stream = tls.connect(address.host(), socket).await.map_err(anyhow::Error::from)?;
            anyhow::Ok(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| with_causes(&error))
}

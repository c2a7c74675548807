//! The certificate of the public listener.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use telemetry::Tasks;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring},
};

use crate::{
    CertificateError, CertificateStatus,
    files::{Contents, Files},
    reloaded::{Built, Reloaded},
};

/// In the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The files of a listener's certificate, in PEM: absolute, or relative to the configuration file's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate, and after it those between it and the authority that clients trust.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
}

impl TlsConfig {
    /// Relative paths begin at `folder` from now on.
    pub fn begin_at(&mut self, folder: &Path) {
        self.certificate = folder.join(&self.certificate);
        self.key = folder.join(&self.key);
    }
}

/// The certificate of a router's public listener. Clones share it.
#[derive(Debug, Clone)]
pub struct Certificates(Reloaded<ServerConfig>);

impl Certificates {
    /// Reads the two files.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the key of the certificate.
    pub fn open(config: &TlsConfig) -> Result<Self, CertificateError> {
        let TlsConfig { certificate, key } = config.clone();
        Ok(Self(Reloaded::open("https", Files { certificate, key, authority: None }, build)?))
    }

    /// From now on, changes of the files are taken in ([`Reloaded::watch`]).
    ///
    /// # Errors
    /// The process cannot receive SIGHUP.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        self.0.watch(tasks)
    }

    /// Makes handshakes with the certificate in use now.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.in_use().into()
    }

    #[cfg(test)]
    pub(crate) fn reload_if_changed(&self) {
        self.0.reload_if_changed();
    }

    pub fn status(&self) -> CertificateStatus {
        self.0.status()
    }
}

fn build(files: &Files, contents: &Contents) -> Result<Built<ServerConfig>, CertificateError> {
    let pair = files.pair(contents)?;
    // The builder compares the key with the certificate.
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|reason| files.refused(reason))?
        .with_no_client_auth()
        .with_single_cert(pair.chain, pair.key)
        .map_err(|reason| files.refused(reason))?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Built { value: config, certificates: pair.described })
}

//! The certificate of the public listener: read from PEM files at start, and again whenever one of them changes (ADR 17).
//!
//! A certificate and its key are taken or refused together. After a refusal, the certificate in use stays in use.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use metrics::{describe_gauge, gauge};
use telemetry::{Tasks, clock};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

use crate::{config::TlsConfig, file_watch};

/// Above the size of a chain of certificates that a client would accept.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// In the order of preference.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

const NOT_AFTER: &str = "shardledger_tls_certificate_not_after_seconds";
const LAST_RELOAD_SUCCESS: &str = "shardledger_tls_last_reload_success";

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("cannot read {}: {reason}", file.display())]
    Read { file: PathBuf, reason: io::Error },
    #[error("{} has no certificate in PEM (BEGIN CERTIFICATE)", .0.display())]
    NoCertificate(PathBuf),
    #[error("{}: {reason}", file.display())]
    Pem { file: PathBuf, reason: pem::Error },
    #[error("{}: the certificate cannot be read: {reason}", file.display())]
    Certificate { file: PathBuf, reason: String },
    #[error("{} with the key {}: {reason}", certificate.display(), key.display())]
    Refused { certificate: PathBuf, key: PathBuf, reason: rustls::Error },
}

/// The certificate of this router. Clones share it.
#[derive(Debug, Clone)]
pub struct Certificates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: TlsConfig,
    in_use: ArcSwap<ServerConfig>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The bytes of certificate and key that were read last, whether they were taken or refused.
    seen: Option<Pair>,
    loaded_at_us: i64,
    /// Of the certificate in use, in seconds since 1970.
    expires_at_s: i64,
    refusal: Option<String>,
}

/// The bytes of the two files.
#[derive(PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// The key is secret.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// The certificate for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateStatus {
    pub certificate: PathBuf,
    pub loaded_at_us: i64,
    /// The end of the validity of the certificate in use, in seconds since 1970.
    pub expires_at_s: i64,
    /// Why the newest files were refused; `None` while the newest files are in use.
    pub refusal: Option<String>,
}

impl Certificates {
    /// Reads the two files.
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the key of the certificate.
    pub fn open(files: &TlsConfig) -> Result<Self, CertificateError> {
        describe_gauge!(
            LAST_RELOAD_SUCCESS,
            "0 while the newest certificate or key is refused and the former certificate stays in use; else 1."
        );
        describe_gauge!(NOT_AFTER, "When the certificate in use expires, in seconds since 1970; subtract time().");
        let pair = read(files)?;
        let (config, expires_at_s) = pair.config(files)?;
        let state = State { seen: Some(pair), loaded_at_us: clock::now_us(), expires_at_s, refusal: None };
        report(expires_at_s);
        let in_use = ArcSwap::from_pointee(config);
        Ok(Self(Arc::new(Shared { files: files.clone(), in_use, state: Mutex::new(state) })))
    }

    /// From now on, changes of the files are taken in, and SIGHUP makes the router look at them, until `tasks` end. A change of a key in
    /// another folder than the certificate's is seen at the next interval.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        let certificates = self.clone();
        file_watch::follow("certificate", Some(&self.0.files.certificate), tasks, move |_| {
            let certificates = certificates.clone();
            async move {
                if let Err(error) = tokio::task::spawn_blocking(move || certificates.reload_if_changed()).await {
                    tracing::error!(%error, "looking at the certificate failed");
                }
            }
        })
    }

    /// Makes handshakes with the certificate in use now.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.0.in_use.load_full().into()
    }

    pub fn status(&self) -> CertificateStatus {
        let state = self.state();
        CertificateStatus {
            certificate: self.0.files.certificate.clone(),
            loaded_at_us: state.loaded_at_us,
            expires_at_s: state.expires_at_s,
            refusal: state.refusal.clone(),
        }
    }

    fn reload_if_changed(&self) {
        let read = read(&self.0.files);
        let mut state = self.state();
        if read.as_ref().is_ok_and(|pair| state.seen.as_ref() == Some(pair)) {
            return;
        }
        // When a file can be read again, its text counts as new.
        state.seen = None;
        let config = read.and_then(|pair| state.seen.insert(pair).config(&self.0.files));
        match config {
            Ok((config, expires_at_s)) => {
                self.0.in_use.store(Arc::new(config));
                tracing::info!(file = %self.0.files.certificate.display(), "certificate replaced");
                state.loaded_at_us = clock::now_us();
                state.expires_at_s = expires_at_s;
                state.refusal = None;
                report(expires_at_s);
            }
            Err(error) => {
                let reason = error.to_string();
                // A file that cannot be read is looked at every few seconds.
                if state.refusal.as_ref() != Some(&reason) {
                    tracing::error!(%error, "certificate refused; the certificate in use is unchanged");
                }
                state.refusal = Some(reason);
                gauge!(LAST_RELOAD_SUCCESS).set(0.0);
            }
        }
    }

    /// A panic while the lock is held leaves bytes and times, of which each is right by itself.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pair {
    /// What serves with this pair, and when the certificate expires, in seconds since 1970.
    fn config(&self, files: &TlsConfig) -> Result<(ServerConfig, i64), CertificateError> {
        let refused = |reason| CertificateError::Refused {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            reason,
        };
        let pem = |file: &Path| {
            let file = file.to_owned();
            move |reason| CertificateError::Pem { file, reason }
        };
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(pem(&files.certificate))?;
        let Some(leaf) = chain.first() else {
            return Err(CertificateError::NoCertificate(files.certificate.clone()));
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|reason| {
            CertificateError::Certificate { file: files.certificate.clone(), reason: reason.to_string() }
        })?;
        let expires_at_s = parsed.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(pem(&files.key))?;
        // The builder compares the key with the certificate.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(refused)?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        Ok((config, expires_at_s))
    }
}

fn report(expires_at_s: i64) {
    gauge!(NOT_AFTER).set(expires_at_s as f64);
    gauge!(LAST_RELOAD_SUCCESS).set(1.0);
}

fn read(files: &TlsConfig) -> Result<Pair, CertificateError> {
    Ok(Pair { certificate: read_file(&files.certificate)?, key: read_file(&files.key)? })
}

fn read_file(file: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |reason| CertificateError::Read { file: file.to_owned(), reason };
    let mut bytes = Vec::new();
    let read = File::open(file).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes"))));
    }
    Ok(bytes)
}

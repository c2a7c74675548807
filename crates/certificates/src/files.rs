//! PEM files: a certificate, its key, and the authorities that peers must come from.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokio_rustls::rustls::{
    self, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

/// Above the size of a chain of certificates that a client would accept.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

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
    #[error("{} is no authority: {reason}", file.display())]
    Authority { file: PathBuf, reason: String },
}

/// The paths of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The certificate, and after it those between it and the authority that peers trust.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The authorities of peers; `None` where peers need no certificate.
    pub authority: Option<PathBuf>,
}

/// The bytes of the files.
#[derive(PartialEq, Eq)]
pub struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Option<Vec<u8>>,
}

/// The key is secret.
impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Pair {
    /// The certificate itself, and after it those between it and its authority.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    /// The end of the certificate's validity, in seconds since 1970.
    pub expires_at_s: i64,
}

impl Files {
    /// # Errors
    /// A file cannot be read, or is too large.
    pub fn read(&self) -> Result<Contents, CertificateError> {
        Ok(Contents {
            certificate: read_file(&self.certificate)?,
            key: read_file(&self.key)?,
            authority: self.authority.as_deref().map(read_file).transpose()?,
        })
    }

    /// # Errors
    /// The certificate or the key is no PEM.
    pub fn pair(&self, contents: &Contents) -> Result<Pair, CertificateError> {
        let chain = certificates(&self.certificate, &contents.certificate)?;
        let Some(leaf) = chain.first() else {
            return Err(CertificateError::NoCertificate(self.certificate.clone()));
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|reason| {
            CertificateError::Certificate { file: self.certificate.clone(), reason: reason.to_string() }
        })?;
        let expires_at_s = parsed.validity().not_after.timestamp();
        let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(pem_error(&self.key))?;
        Ok(Pair { chain, key, expires_at_s })
    }

    /// The authorities that peers must come from; empty without a file of authorities.
    ///
    /// # Errors
    /// The file has no certificate, or one that is no authority.
    pub fn roots(&self, contents: &Contents) -> Result<RootCertStore, CertificateError> {
        let mut roots = RootCertStore::empty();
        if let (Some(file), Some(text)) = (&self.authority, &contents.authority) {
            for certificate in certificates(file, text)? {
                roots.add(certificate).map_err(|reason| CertificateError::Authority {
                    file: file.clone(),
                    reason: reason.to_string(),
                })?;
            }
            if roots.is_empty() {
                return Err(CertificateError::NoCertificate(file.clone()));
            }
        }
        Ok(roots)
    }

    /// The error of a certificate that rustls does not take with its key.
    pub fn refused(&self, reason: rustls::Error) -> CertificateError {
        CertificateError::Refused { certificate: self.certificate.clone(), key: self.key.clone(), reason }
    }
}

/// Every certificate of a text in PEM.
///
/// # Errors
/// The text is no PEM. `file` names it in the error.
pub fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(pem_error(file))
}

fn pem_error(file: &Path) -> impl Fn(pem::Error) -> CertificateError {
    let file = file.to_owned();
    move |reason| CertificateError::Pem { file: file.clone(), reason }
}

/// Reads a file of certificates or a key.
///
/// # Errors
/// It cannot be read, or is larger than 1 MiB.
pub fn read_file(file: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |reason| CertificateError::Read { file: file.to_owned(), reason };
    let mut bytes = Vec::new();
    let read = File::open(file).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes"))));
    }
    Ok(bytes)
}

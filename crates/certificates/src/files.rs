//! PEM files: a certificate, its key, and the authorities that peers must come from; and the names in a certificate.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use telemetry::clock;
use tokio_rustls::rustls::{
    self, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

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
    #[error(
        "{}: its first certificate, {}, is not valid now: it is valid {}",
        file.display(),
        certificate.subject,
        certificate.validity
    )]
    NotValidNow { file: PathBuf, certificate: Described },
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
    /// Each certificate of the chain.
    pub described: Vec<Described>,
}

/// Whose certificate it is, and when it is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    pub subject: String,
    pub validity: Validity,
}

/// When a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub from_s: i64,
    /// The last second.
    pub until_s: i64,
}

impl Validity {
    pub fn contains(self, at_s: i64) -> bool {
        (self.from_s..=self.until_s).contains(&at_s)
    }
}

impl std::fmt::Display for Validity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "from {} to {}", date(self.from_s), date(self.until_s))
    }
}

/// A time in seconds since 1970, for people.
fn date(at_s: i64) -> String {
    clock::format_rfc3339(at_s.saturating_mul(1_000_000))
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
        let described = chain.iter().map(describe).collect::<Result<_, _>>();
        let described =
            described.map_err(|reason| CertificateError::Certificate { file: self.certificate.clone(), reason })?;
        let mut keys = private_keys(&self.key, &contents.key)?;
        // Within a renewal, the file has the former key and the new one. If none of them is the certificate's, the caller finds out.
        let matching = keys.iter().position(|key| is_key_of(leaf, key)).unwrap_or(0);
        let key = keys.swap_remove(matching);
        Ok(Pair { chain, key, described })
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

/// Every private key of a text in PEM, at least one.
///
/// # Errors
/// The text is no PEM, or has no key. `file` names it in the error.
pub fn private_keys(file: &Path, text: &[u8]) -> Result<Vec<PrivateKeyDer<'static>>, CertificateError> {
    let keys = PrivateKeyDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>().map_err(pem_error(file))?;
    if keys.is_empty() { Err(pem_error(file)(pem::Error::NoItemsFound)) } else { Ok(keys) }
}

/// Whether a private key is that of a certificate.
pub fn is_key_of(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'static>) -> bool {
    CertifiedKey::from_der(vec![certificate.clone()], key.clone_key(), &ring::default_provider()).is_ok()
}

fn describe(certificate: &CertificateDer<'static>) -> Result<Described, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|reason| reason.to_string())?;
    let (subject, validity) = (parsed.subject().to_string(), parsed.validity());
    Ok(Described {
        subject: if subject.is_empty() { "which has no subject".to_owned() } else { subject },
        validity: Validity { from_s: validity.not_before.timestamp(), until_s: validity.not_after.timestamp() },
    })
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

// === names: the subject alternative names of a certificate, as texts: DNS names, addresses and URIs ===

/// The names of a certificate; empty if it has none or cannot be read.
pub fn names_of(certificate: &CertificateDer<'_>) -> Vec<String> {
    x509_parser::parse_x509_certificate(certificate).map(|(_, parsed)| names(&parsed)).unwrap_or_default()
}

/// The names of a certificate that has been parsed.
pub fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return Vec::new() };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(|bytes| IpAddr::from(Ipv4Addr::from(bytes)));
            let address = v4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(|bytes| Ipv6Addr::from(bytes).into()));
            address.ok().map(|address: IpAddr| address.to_string())
        }
        _ => None,
    }
}

/// Whether one of the names is allowed. Case does not matter in DNS names; a wildcard in a certificate stands only for itself.
pub fn is_allowed(names: &[String], allowed: &[String]) -> bool {
    names.iter().any(|name| allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)))
}

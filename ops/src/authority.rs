//! A private authority in a folder: its certificate, its key, and the certificates that it has issued (`docs/operations/tls.md`).
//!
//! Each certificate is `NAME.pem` beside its key `NAME.key`, which only the owner may read. The authority itself is `ca`. Keys are
//! ECDSA P-256.
//!
//! Two files cannot be replaced at once. During a renewal, the key file contains the former key and the new key, and processes use the key
//! that matches the certificate. A crash at any point therefore leaves a usable pair, which the next renewal replaces.

use std::{
    fs,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use certificates::files;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde::Serialize;
use telemetry::clock;
use tokio_rustls::rustls::pki_types::CertificateDer;
use uuid::Uuid;

use crate::cluster::files::{self as durable, Audience};

/// The name of the authority's own certificate.
pub const AUTHORITY: &str = "ca";
/// Names under which processes call each other. The top-level domain `internal` is reserved for private use, so public DNS never resolves
/// these names.
pub const ROUTER: &str = "router.shardledger.internal";
pub const NODE: &str = "node.shardledger.internal";
pub const OPERATOR: &str = "operator.shardledger.internal";
/// Hosts of a cluster on one machine.
pub const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// The validity of an authority and of a certificate, in days.
pub const AUTHORITY_DAYS: u32 = 3650;
pub const CERTIFICATE_DAYS: u32 = 90;
/// A certificate is valid from this long before its creation, because clocks differ.
const VALID_BEFORE: Duration = Duration::from_secs(60 * 60);
const DAY_S: i64 = 24 * 60 * 60;

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// The public listener of routers
    Https,
    /// Routers when they call nodes
    Router,
    /// Nodes: their listener, and their calls to other nodes
    Node,
    /// `shardctl` when it calls nodes
    Operator,
}

impl Purpose {
    pub const ALL: [Self; 4] = [Self::Https, Self::Router, Self::Node, Self::Operator];

    /// The name of the certificate that `init` makes for this purpose.
    pub fn name(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Router => "router",
            Self::Node => "node",
            Self::Operator => "operator",
        }
    }

    /// The subject of a certificate for this purpose on these hosts. The certificate of a caller has no address, so hosts are ignored for
    /// callers.
    pub fn subject(self, hosts: &[String]) -> Subject {
        let own = match self {
            Self::Https => None,
            Self::Router => Some(ROUTER),
            Self::Node => Some(NODE),
            Self::Operator => Some(OPERATOR),
        };
        let (serves, calls) = (matches!(self, Self::Https | Self::Node), !matches!(self, Self::Https));
        let hosts = hosts.iter().filter(|_| serves).cloned();
        Subject { names: own.map(str::to_owned).into_iter().chain(hosts).collect(), serves, calls }
    }
}

/// The names in a certificate, and its permitted uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Subject {
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// The certificate may authenticate a listener.
    pub serves: bool,
    /// The certificate may authenticate a caller.
    pub calls: bool,
}

/// A certificate as `shardctl tls show` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DescribedCertificate {
    pub name: String,
    #[serde(flatten)]
    pub subject: Subject,
    pub expires_at: String,
    /// Negative once it has expired.
    pub expires_in_days: i64,
    /// The authority in the folder has signed it.
    pub trusted: bool,
    pub key: KeyFileState,
}

/// What the key file of a certificate contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyFileState {
    /// The key of the certificate.
    Matches,
    /// The key of the certificate and another key, because a renewal was interrupted.
    Unfinished,
    /// Keys, none of which matches the certificate.
    Differs,
    /// The file cannot be read. The key of an authority may be kept elsewhere.
    Unknown,
}

impl KeyFileState {
    fn of(folder: &Path, name: &str, certificate: &CertificateDer<'static>) -> Self {
        let file = key_of(folder, name);
        let Ok(text) = files::read_file(&file) else { return Self::Unknown };
        let keys = files::private_keys(&file, &text).unwrap_or_default();
        match keys.iter().any(|key| files::is_key_of(certificate, key)) {
            false => Self::Differs,
            true if keys.len() > 1 => Self::Unfinished,
            true => Self::Matches,
        }
    }

    /// Whether a renewal must repair the key file.
    pub fn needs_renewal(self) -> bool {
        matches!(self, Self::Unfinished | Self::Differs)
    }
}

/// The authority of a folder.
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Whether the folder has an authority. A key without a certificate is no authority and has signed nothing. A crash in [`Self::create`]
    /// leaves such a key.
    pub fn exists(folder: &Path) -> bool {
        certificate_of(folder, AUTHORITY).exists()
    }

    /// Makes a new authority in a folder that has none.
    ///
    /// # Errors
    /// The folder has one, or cannot be written to.
    pub fn create(folder: &Path, days: u32) -> anyhow::Result<Self> {
        ensure!(!Self::exists(folder), "{} has an authority already", folder.display());
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let key = KeyPair::generate()?;
        // Two authorities must not have one name: a peer that trusts both would compare a certificate with the wrong one.
        let mut params = params(&format!("Shardledger authority {}", Uuid::now_v7()), days)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        write(folder, AUTHORITY, &key.serialize_pem(), &certificate.pem())?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// # Errors
    /// The folder has no authority, or its files cannot be read.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        let (certificate, key) = (certificate_of(folder, AUTHORITY), key_of(folder, AUTHORITY));
        ensure!(certificate.exists(), "{} has no authority: `shardctl tls init` makes one", folder.display());
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let secret = KeyPair::from_pem(&read(&key)?).with_context(|| key.display().to_string())?;
        let public = read(&certificate)?;
        let issuer = Issuer::from_ca_cert_pem(&public, secret).with_context(|| certificate.display().to_string())?;
        Ok(Self { folder: folder.to_owned(), issuer })
    }

    /// Makes a certificate with a new key. Both replace the former files of this name.
    ///
    /// # Errors
    /// The name is not a valid file name, or the folder cannot be written to.
    pub fn issue(&self, name: &str, subject: &Subject, days: u32) -> anyhow::Result<()> {
        let (key, certificate) = self.make(name, subject, days)?;
        write(&self.folder, name, &key, &certificate)
    }

    /// The texts of a new key and its certificate.
    fn make(&self, name: &str, subject: &Subject, days: u32) -> anyhow::Result<(String, String)> {
        check_name(name)?;
        let key = KeyPair::generate()?;
        let mut params = params(name, days)?;
        params.subject_alt_names = CertificateParams::new(subject.names.clone())?.subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [
            (subject.serves, ExtendedKeyUsagePurpose::ServerAuth),
            (subject.calls, ExtendedKeyUsagePurpose::ClientAuth),
        ];
        params.extended_key_usages =
            usages.into_iter().filter(|(wanted, _)| *wanted).map(|(_, usage)| usage).collect();
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok((key.serialize_pem(), certificate.pem()))
    }
}

/// The names of the certificates in a folder: the authority's first, then the others in order.
///
/// # Errors
/// The folder cannot be read.
pub fn issued(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|it| it == "pem")
            && let Some(name) = path.file_stem().and_then(|it| it.to_str())
            && key_of(folder, name).exists() | (name == AUTHORITY)
        {
            names.push(name.to_owned());
        }
    }
    names.sort_by_key(|name| (name != AUTHORITY, name.clone()));
    Ok(names)
}

/// Reads a certificate of the folder.
///
/// # Errors
/// The folder has no certificate of this name, or its file or the file of the authority cannot be read.
pub fn describe(folder: &Path, name: &str) -> anyhow::Result<DescribedCertificate> {
    let (file, authority) = (certificate_of(folder, name), certificate_of(folder, AUTHORITY));
    ensure!(file.exists(), "{} has no certificate {name}", folder.display());
    let chain = certificates::files::certificates(&file, &certificates::files::read_file(&file)?)?;
    let leaf = chain.first().with_context(|| format!("{} has no certificate", file.display()))?;
    let damaged = || format!("{} is damaged", file.display());
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).with_context(damaged)?;
    let roots = certificates::files::certificates(&authority, &certificates::files::read_file(&authority)?)?;
    let trusted = roots.iter().any(|root| {
        let Ok((_, root)) = x509_parser::parse_x509_certificate(root) else { return false };
        parsed.issuer() == root.subject() && parsed.verify_signature(Some(root.public_key())).is_ok()
    });
    let usage = parsed.extended_key_usage().with_context(damaged)?;
    let (serves, calls) = usage.map_or((false, false), |usage| (usage.value.server_auth, usage.value.client_auth));
    let expires_at_s = parsed.validity().not_after.timestamp();
    let left_s = expires_at_s - i64::try_from(clock::now_s()).unwrap_or(i64::MAX);
    Ok(DescribedCertificate {
        name: name.to_owned(),
        subject: Subject { names: files::names(&parsed), serves, calls },
        expires_at: clock::format_rfc3339(expires_at_s.saturating_mul(1_000_000)),
        expires_in_days: left_s.div_euclid(DAY_S),
        trusted,
        key: KeyFileState::of(folder, name, leaf),
    })
}

pub fn certificate_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pem"))
}

pub fn key_of(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}

/// Parses a host: a DNS name or an address.
///
/// # Errors
/// The text is neither. The error quotes it.
pub fn host(text: &str) -> Result<String, String> {
    let text = text.trim_matches(['[', ']']);
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() < 64
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let is_name = text.len() < 254 && text.strip_prefix("*.").unwrap_or(text).split('.').all(is_label);
    if is_name || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("a host is a DNS name or an address, without a port".to_owned())
    }
}

fn params(name: &str, days: u32) -> anyhow::Result<CertificateParams> {
    let now = date_time_ymd(1970, 1, 1) + Duration::from_secs(clock::now_s());
    let mut params = CertificateParams::default();
    params.not_before = now - VALID_BEFORE;
    params.not_after = now + Duration::from_secs(u64::from(days) * DAY_S.unsigned_abs());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// Refuses a name that cannot be the name of a file.
fn check_name(name: &str) -> anyhow::Result<()> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name == AUTHORITY || name.starts_with('.') || !name.bytes().all(is_good) {
        bail!("{name:?} is no name for a certificate: use letters, digits, '-', '_' and '.', and not {AUTHORITY:?}");
    }
    Ok(())
}

/// Writes a key and its certificate. They replace the former files of this name.
fn write(folder: &Path, name: &str, key: &str, certificate: &str) -> anyhow::Result<()> {
    steps(folder, name, key, certificate).iter().try_for_each(FileReplacement::take)
}

/// A file to replace.
struct FileReplacement {
    file: PathBuf,
    text: String,
    audience: Audience,
}

impl FileReplacement {
    fn take(&self) -> anyhow::Result<()> {
        durable::replace(&self.file, &self.text, self.audience)
    }
}

/// The order in which a key and its certificate are written. After each step, the key file contains the key of the present certificate.
fn steps(folder: &Path, name: &str, key: &str, certificate: &str) -> Vec<FileReplacement> {
    let (certificate_file, key_file) = (certificate_of(folder, name), key_of(folder, name));
    let keys = |text: String| FileReplacement { file: key_file.clone(), text, audience: Audience::Owner };
    let is_key = |text: &String| files::private_keys(&key_file, text.as_bytes()).is_ok();
    let former = fs::read_to_string(&key_file).ok().filter(|text| certificate_file.exists() && is_key(text));
    let certificate = FileReplacement {
        file: certificate_file.clone(),
        text: certificate.to_owned(),
        audience: Audience::Everyone,
    };
    match former {
        Some(former) => vec![keys(format!("{}\n{key}", former.trim_end())), certificate, keys(key.to_owned())],
        None => vec![keys(key.to_owned()), certificate],
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use certificates::{Certificates, TlsConfig};

    use super::*;

    #[test]
    fn certificates_are_of_the_authority_and_name_their_hosts_and_keys_are_secret() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tls");
        let hosts = ["ledger.example".to_owned(), "10.0.0.1".to_owned(), "::1".to_owned()];
        let authority = Authority::create(&folder, 3650).unwrap();
        for purpose in Purpose::ALL {
            authority.issue(purpose.name(), &purpose.subject(&hosts), 90).unwrap();
        }
        assert!(Authority::create(&folder, 1).is_err(), "an authority is never replaced");
        assert_eq!(issued(&folder).unwrap(), ["ca", "https", "node", "operator", "router"]);
        let node = describe(&folder, "node").unwrap();
        assert_eq!(node.subject.names, [NODE, "ledger.example", "10.0.0.1", "::1"]);
        // 89 whole days once the second of the issue is over.
        assert!(node.trusted && node.subject.serves && node.subject.calls, "{node:?}");
        assert!((89..=90).contains(&node.expires_in_days), "{node:?}");
        let https = describe(&folder, "https").unwrap();
        assert!(https.subject.serves && !https.subject.calls, "{https:?}");
        let router = describe(&folder, "router").unwrap();
        assert!(!router.subject.serves && router.subject.names == [ROUTER], "{router:?}");
        for name in issued(&folder).unwrap() {
            let mode = fs::metadata(key_of(&folder, &name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_renewal_that_is_cut_off_anywhere_leaves_a_certificate_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("tls");
        let authority = Authority::create(&folder, 3650).unwrap();
        let subject = Purpose::Https.subject(&["localhost".to_owned()]);
        let config = TlsConfig { certificate: certificate_of(&folder, "https"), key: key_of(&folder, "https") };
        authority.issue("https", &subject, 90).unwrap();
        for (taken, left) in [
            (0, KeyFileState::Matches),
            (1, KeyFileState::Unfinished),
            (2, KeyFileState::Unfinished),
            (3, KeyFileState::Matches),
        ] {
            let (key, certificate) = authority.make("https", &subject, 90).unwrap();
            let steps = steps(&folder, "https", &key, &certificate);
            assert_eq!(steps.len(), 3);
            steps.iter().take(taken).try_for_each(FileReplacement::take).unwrap();
            // A process that starts now finds a pair.
            Certificates::open(&config).unwrap();
            assert_eq!(describe(&folder, "https").unwrap().key, left, "after {taken} steps");
            authority.issue("https", &subject, 90).unwrap();
            assert_eq!(describe(&folder, "https").unwrap().key, KeyFileState::Matches);
        }
        let keys = fs::read(key_of(&folder, "https")).unwrap();
        assert_eq!(files::private_keys(&config.key, &keys).unwrap().len(), 1, "former keys are gone");
    }

    #[test]
    fn an_authority_that_is_opened_again_issues_certificates_that_the_first_ones_trust() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, other) = (folder.path().join("a"), folder.path().join("b"));
        Authority::create(&folder, 3650).unwrap();
        let subject = Purpose::Node.subject(&["localhost".to_owned()]);
        Authority::open(&folder).unwrap().issue("node-7", &subject, 1).unwrap();
        assert!(describe(&folder, "node-7").unwrap().trusted);
        // A certificate of another authority is not trusted.
        Authority::create(&other, 3650).unwrap().issue("node", &subject, 1).unwrap();
        fs::copy(certificate_of(&other, "node"), certificate_of(&folder, "node-7")).unwrap();
        assert!(!describe(&folder, "node-7").unwrap().trusted);
    }

    #[test]
    fn what_is_no_host_and_what_is_no_name_is_refused() {
        for good in ["localhost", "db-7.internal", "10.0.0.1", "::1", "[::1]", "*.ledger.example"] {
            assert!(host(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "host:8443", "https://host", "a..b", "10.0.0.1/24"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        for bad in ["", "ca", "../node", ".hidden", "a/b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}

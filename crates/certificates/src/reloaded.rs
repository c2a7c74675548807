//! What is made of certificate files, while it is in use. The files are taken or refused together. After a refusal, what is in use
//! stays in use.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use metrics::{describe_gauge, gauge};
use telemetry::{Tasks, clock};

use crate::{
    CertificateError,
    files::{Contents, Described, Files},
};

const NOT_AFTER: &str = "shardledger_tls_certificate_not_after_seconds";
const LAST_RELOAD_SUCCESS: &str = "shardledger_tls_last_reload_success";

type Build<T> = fn(&Files, &Contents) -> Result<Built<T>, CertificateError>;

/// What was made of the files.
pub struct Built<T> {
    pub value: T,
    /// The certificate itself, and after it the others of its file.
    pub certificates: Vec<Described>,
}

/// Clones share it.
pub struct Reloaded<T>(Arc<Shared<T>>);

impl<T> Clone for Reloaded<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloaded").field(&self.0.files).finish()
    }
}

struct Shared<T> {
    /// What the certificate is for, in metrics and in the log.
    purpose: &'static str,
    files: Files,
    build: Build<T>,
    in_use: ArcSwap<T>,
    state: Mutex<State>,
}

struct State {
    /// What was read last, whether it was taken or refused.
    seen: Option<Contents>,
    loaded_at_us: i64,
    /// Of the certificate in use itself, in seconds since 1970. Peers may not need the others of its file.
    expires_at_s: i64,
    refusal: Option<String>,
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

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files. `purpose` is the label of the metrics.
    ///
    /// A certificate that is not valid now is taken, and logged as an error: the peers decide, and their clocks may differ.
    ///
    /// # Errors
    /// A file cannot be read, or `build` refuses what it says.
    pub fn open(purpose: &'static str, files: Files, build: Build<T>) -> Result<Self, CertificateError> {
        describe_gauge!(
            LAST_RELOAD_SUCCESS,
            "0 while the newest certificate or key is refused and the former certificate stays in use; else 1."
        );
        describe_gauge!(NOT_AFTER, "When the certificate in use expires, in seconds since 1970; subtract time().");
        let contents = files.read()?;
        let Built { value, certificates } = build(&files, &contents)?;
        if let Err(error) = valid_now(&files, &certificates) {
            tracing::error!(purpose, %error, "the certificate is used, although peers may refuse it");
        }
        warn_of_others(purpose, &files, &certificates);
        let expires_at_s = expiry(&certificates);
        let state = State { seen: Some(contents), loaded_at_us: clock::now_us(), expires_at_s, refusal: None };
        report(purpose, expires_at_s);
        let in_use = ArcSwap::from_pointee(value);
        Ok(Self(Arc::new(Shared { purpose, files, build, in_use, state: Mutex::new(state) })))
    }

    /// From now on, changes of the files are taken in, and SIGHUP makes the process look at them, until `tasks` end. A change of a file in
    /// another folder than the certificate's is seen at the next interval.
    ///
    /// # Errors
    /// The process cannot receive SIGHUP.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        let reloaded = self.clone();
        file_watch::follow("certificate", Some(&self.0.files.certificate), tasks, move |_| {
            let reloaded = reloaded.clone();
            async move {
                if let Err(error) = tokio::task::spawn_blocking(move || reloaded.reload_if_changed()).await {
                    tracing::error!(%error, "looking at the certificate failed");
                }
            }
        })
    }

    pub fn in_use(&self) -> Arc<T> {
        self.0.in_use.load_full()
    }

    pub fn files(&self) -> &Files {
        &self.0.files
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

    /// Takes the files if they have changed. Files that do not fit each other, and a certificate that is not valid now, are refused; what is in
    /// use stays in use. Other certificates of the file that are not valid now are logged: peers ignore one that they do not need, such as
    /// a root that has expired.
    pub(crate) fn reload_if_changed(&self) {
        let read = self.0.files.read();
        let mut state = self.state();
        if read.as_ref().is_ok_and(|contents| state.seen.as_ref() == Some(contents)) {
            return;
        }
        // When a file can be read again, its text counts as new.
        state.seen = None;
        let built = read.and_then(|contents| (self.0.build)(&self.0.files, state.seen.insert(contents)));
        let built = built.and_then(|built| {
            valid_now(&self.0.files, &built.certificates).inspect_err(|_| {
                // The time may come when these files can be taken.
                state.seen = None;
            })?;
            Ok(built)
        });
        let purpose = self.0.purpose;
        match built {
            Ok(Built { value, certificates }) => {
                warn_of_others(purpose, &self.0.files, &certificates);
                let expires_at_s = expiry(&certificates);
                self.0.in_use.store(Arc::new(value));
                tracing::info!(purpose, file = %self.0.files.certificate.display(), "certificate replaced");
                state.loaded_at_us = clock::now_us();
                state.expires_at_s = expires_at_s;
                state.refusal = None;
                report(purpose, expires_at_s);
            }
            Err(error) => {
                let reason = error.to_string();
                // A file that cannot be read is looked at every few seconds.
                if state.refusal.as_ref() != Some(&reason) {
                    tracing::error!(purpose, %error, "certificate refused; the certificate in use is unchanged");
                }
                state.refusal = Some(reason);
                gauge!(LAST_RELOAD_SUCCESS, "purpose" => purpose).set(0.0);
            }
        }
    }

    /// A panic while the lock is held leaves bytes and times, of which each is right by itself.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refuses a certificate that is not valid now. It is the first of its file.
fn valid_now(files: &Files, certificates: &[Described]) -> Result<(), CertificateError> {
    match certificates.first() {
        Some(first) if !is_valid_now(first) => {
            Err(CertificateError::NotValidNow { file: files.certificate.clone(), certificate: first.clone() })
        }
        _ => Ok(()),
    }
}

/// Logs the certificates of the file, besides the first, that are not valid now.
fn warn_of_others(purpose: &'static str, files: &Files, certificates: &[Described]) {
    for Described { subject, validity } in
        certificates.iter().skip(1).filter(|certificate| !is_valid_now(certificate))
    {
        tracing::warn!(
            purpose,
            file = %files.certificate.display(),
            subject,
            %validity,
            "another certificate of the file is not valid now; peers that need it refuse the first one"
        );
    }
}

fn is_valid_now(certificate: &Described) -> bool {
    certificate.validity.contains(i64::try_from(clock::now_s()).unwrap_or(i64::MAX))
}

/// When the certificate itself expires, in seconds since 1970.
fn expiry(certificates: &[Described]) -> i64 {
    certificates.first().map_or(0, |first| first.validity.until_s)
}

fn report(purpose: &'static str, expires_at_s: i64) {
    gauge!(NOT_AFTER, "purpose" => purpose).set(expires_at_s as f64);
    gauge!(LAST_RELOAD_SUCCESS, "purpose" => purpose).set(1.0);
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;
    use crate::{Certificates, TlsConfig};

    const HOUR: i64 = 60 * 60;

    /// A folder with a certificate and its key.
    struct Folder {
        path: PathBuf,
        config: TlsConfig,
    }

    impl Folder {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("shardledger-reloaded-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            let config = TlsConfig { certificate: path.join("https.pem"), key: path.join("https.key") };
            Self { path, config }
        }

        /// Writes a certificate that is valid between these times, in seconds from now, and its key. Gives the texts.
        fn write(&self, from: i64, until: i64) -> (String, String) {
            let (certificate, key) = pair(from, until);
            fs::write(&self.config.certificate, &certificate).unwrap();
            fs::write(&self.config.key, &key).unwrap();
            (certificate, key)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    fn pair(from: i64, until: i64) -> (String, String) {
        let now = i64::try_from(clock::now_s()).unwrap();
        let at = |offset: i64| date_time_ymd(1970, 1, 1) + Duration::from_secs((now + offset).unsigned_abs());
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (at(from), at(until));
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Looks at the files, and gives the reason of a refusal.
    fn refusal(certificates: &Certificates) -> String {
        certificates.reload_if_changed();
        certificates.status().refusal.unwrap_or_default()
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_leaves_the_former_in_use() {
        let folder = Folder::new("validity");
        folder.write(-HOUR, HOUR);
        let certificates = Certificates::open(&folder.config).unwrap();
        let before = certificates.status();
        for (from, until) in [(-2 * HOUR, -HOUR), (HOUR, 2 * HOUR)] {
            folder.write(from, until);
            let refused = refusal(&certificates);
            assert!(
                refused.contains("https.pem") && refused.contains("not valid now: it is valid from 20"),
                "{refused}"
            );
            assert_eq!(certificates.status().expires_at_s, before.expires_at_s);
        }
        folder.write(-HOUR, 2 * HOUR);
        assert_eq!(refusal(&certificates), "");
        assert!(certificates.status().expires_at_s > before.expires_at_s);
    }

    #[test]
    fn an_expired_certificate_after_the_first_is_no_reason_to_refuse_the_file() {
        let folder = Folder::new("expired-root");
        folder.write(-HOUR, HOUR);
        let certificates = Certificates::open(&folder.config).unwrap();
        let before = certificates.status();
        let (expired, _) = pair(-2 * HOUR, -HOUR);
        let (renewed, key) = pair(-HOUR, 3 * HOUR);
        fs::write(&folder.config.certificate, format!("{renewed}{expired}")).unwrap();
        fs::write(&folder.config.key, &key).unwrap();
        assert_eq!(refusal(&certificates), "");
        let taken = certificates.status().expires_at_s;
        assert!(taken > before.expires_at_s, "the expiry is that of the first certificate");
        // The first one decides, and the error names it.
        let (late, key) = pair(-2 * HOUR, -HOUR);
        fs::write(&folder.config.certificate, format!("{late}{renewed}")).unwrap();
        fs::write(&folder.config.key, &key).unwrap();
        let refused = refusal(&certificates);
        assert!(refused.contains("its first certificate, CN=") && refused.contains("not valid now"), "{refused}");
        assert_eq!(certificates.status().expires_at_s, taken);
    }

    #[test]
    fn a_certificate_is_taken_when_its_time_has_come() {
        let folder = Folder::new("later");
        folder.write(-HOUR, HOUR);
        let certificates = Certificates::open(&folder.config).unwrap();
        folder.write(3, 2 * HOUR);
        let until = std::time::Instant::now() + Duration::from_secs(30);
        while !refusal(&certificates).is_empty() {
            assert!(std::time::Instant::now() < until, "the certificate is never taken");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    #[test]
    fn a_key_file_may_have_the_former_key_and_the_new_one() {
        let folder = Folder::new("two-keys");
        let (_, former) = folder.write(-HOUR, HOUR);
        let certificates = Certificates::open(&folder.config).unwrap();
        let (new_certificate, new) = pair(-HOUR, 2 * HOUR);
        // The new key alone is none of the former certificate.
        fs::write(&folder.config.key, &new).unwrap();
        assert!(refusal(&certificates).contains("https.key"));
        for keys in [format!("{former}{new}"), format!("{new}{former}")] {
            fs::write(&folder.config.key, keys).unwrap();
            assert_eq!(refusal(&certificates), "");
        }
        let before = certificates.status().expires_at_s;
        fs::write(&folder.config.certificate, &new_certificate).unwrap();
        assert_eq!(refusal(&certificates), "");
        assert!(certificates.status().expires_at_s > before);
        // A process that starts now finds the pair, too.
        Certificates::open(&folder.config).unwrap();
    }
}

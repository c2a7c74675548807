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
    files::{Contents, Files},
};

const NOT_AFTER: &str = "shardledger_tls_certificate_not_after_seconds";
const LAST_RELOAD_SUCCESS: &str = "shardledger_tls_last_reload_success";

type Build<T> = fn(&Files, &Contents) -> Result<Built<T>, CertificateError>;

/// What was made of the files.
pub struct Built<T> {
    pub value: T,
    /// The end of the certificate's validity, in seconds since 1970.
    pub expires_at_s: i64,
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
    /// Of the certificate in use, in seconds since 1970.
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
    /// # Errors
    /// A file cannot be read, or `build` refuses what it says.
    pub fn open(purpose: &'static str, files: Files, build: Build<T>) -> Result<Self, CertificateError> {
        describe_gauge!(
            LAST_RELOAD_SUCCESS,
            "0 while the newest certificate or key is refused and the former certificate stays in use; else 1."
        );
        describe_gauge!(NOT_AFTER, "When the certificate in use expires, in seconds since 1970; subtract time().");
        let contents = files.read()?;
        let Built { value, expires_at_s } = build(&files, &contents)?;
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

    fn reload_if_changed(&self) {
        let read = self.0.files.read();
        let mut state = self.state();
        if read.as_ref().is_ok_and(|contents| state.seen.as_ref() == Some(contents)) {
            return;
        }
        // When a file can be read again, its text counts as new.
        state.seen = None;
        let built = read.and_then(|contents| (self.0.build)(&self.0.files, state.seen.insert(contents)));
        let purpose = self.0.purpose;
        match built {
            Ok(Built { value, expires_at_s }) => {
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

fn report(purpose: &'static str, expires_at_s: i64) {
    gauge!(NOT_AFTER, "purpose" => purpose).set(expires_at_s as f64);
    gauge!(LAST_RELOAD_SUCCESS, "purpose" => purpose).set(1.0);
}

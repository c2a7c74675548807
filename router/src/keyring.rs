//! The keys in use: read from `keys.toml` at start, and again whenever the file changes (ADR 15).
//!
//! A file is taken or refused as a whole, as the shard map is. After a refusal, the keys in use stay in use.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwap;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use keys::{Key, KeyFileError, KeyTable, Rate};
use ledger::KeyName;
use metrics::{describe_gauge, gauge};
use telemetry::{Tasks, clock};

/// Above the size of a file of 100,000 keys with some prefixes each.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

const KEYS: &str = "shardledger_keys";
const LAST_RELOAD_SUCCESS: &str = "shardledger_keys_last_reload_success";

/// Why a file of keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("cannot read {}: {reason}", file.display())]
    Read { file: PathBuf, reason: io::Error },
    #[error("{}, {reason}", file.display())]
    Refused { file: PathBuf, reason: KeyFileError },
}

/// The keys of this router. Clones share them.
#[derive(Debug, Clone)]
pub struct Keyring(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    file: PathBuf,
    in_use: ArcSwap<InUse>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct InUse {
    table: KeyTable,
    /// By the name of the key.
    limiters: HashMap<KeyName, (Rate, Arc<DefaultDirectRateLimiter>)>,
}

#[derive(Debug)]
struct State {
    /// The text that was read last, whether it was taken or refused.
    seen: Option<String>,
    loaded_at_us: i64,
    refusal: Option<String>,
}

/// The keys for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyringStatus {
    pub file: PathBuf,
    pub keys: usize,
    pub loaded_at_us: i64,
    /// Why the newest file was refused; `None` while the newest file is in use.
    pub refusal: Option<String>,
}

impl Keyring {
    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, or a line of it is wrong.
    pub fn open(file: &Path) -> Result<Self, KeyringError> {
        describe_gauge!(KEYS, "Keys of the file in use, expired ones included.");
        describe_gauge!(
            LAST_RELOAD_SUCCESS,
            "0 while the newest file of keys is refused and an older one stays in use; else 1."
        );
        let text = read(file)?;
        let table = parse(file, &text)?;
        let in_use = InUse::new(table, &InUse::default());
        let state = State { seen: Some(text), loaded_at_us: clock::now_us(), refusal: None };
        let shared =
            Opened { file: file.to_owned(), in_use: ArcSwap::from_pointee(in_use), state: Mutex::new(state) };
        let keyring = Self(Arc::new(shared));
        keyring.count();
        Ok(keyring)
    }

    /// From now on, changes of the file are taken in, and SIGHUP makes the router look at it, until `tasks` end.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        let keyring = self.clone();
        file_watch::follow("keys", Some(&self.0.file), tasks, move |_| {
            let keyring = keyring.clone();
            async move {
                if let Err(error) = tokio::task::spawn_blocking(move || keyring.reload_if_changed()).await {
                    tracing::error!(%error, "looking at the file of keys failed");
                }
            }
        })
    }

    /// The key of a secret that is good now, and what limits its rate.
    pub fn find(&self, secret: &str) -> Option<(Arc<Key>, Option<Arc<DefaultDirectRateLimiter>>)> {
        let in_use = self.0.in_use.load();
        let key = in_use.table.find(secret, clock::now_us())?;
        let limiter = in_use.limiters.get(&key.name).map(|(_, limiter)| Arc::clone(limiter));
        Some((Arc::clone(key), limiter))
    }

    pub fn status(&self) -> KeyringStatus {
        let state = self.state();
        KeyringStatus {
            file: self.0.file.clone(),
            keys: self.0.in_use.load().table.keys().len(),
            loaded_at_us: state.loaded_at_us,
            refusal: state.refusal.clone(),
        }
    }

    fn reload_if_changed(&self) {
        let text = read(&self.0.file);
        let mut state = self.state();
        if text.as_ref().ok() == state.seen.as_ref() && text.is_ok() {
            return;
        }
        match text.and_then(|text| {
            state.seen = Some(text.clone());
            parse(&self.0.file, &text)
        }) {
            Ok(table) => {
                tracing::info!(keys = table.keys().len(), "keys replaced");
                self.0.in_use.store(Arc::new(InUse::new(table, &self.0.in_use.load())));
                state.loaded_at_us = clock::now_us();
                state.refusal = None;
                self.count();
            }
            Err(error) => {
                let reason = error.to_string();
                if matches!(error, KeyringError::Read { .. }) {
                    // When the file can be read again, its text counts as new.
                    state.seen = None;
                }
                // A file that cannot be read is looked at every few seconds.
                if state.refusal.as_ref() != Some(&reason) {
                    tracing::error!(%error, "keys refused; the keys in use are unchanged");
                }
                state.refusal = Some(reason);
                gauge!(LAST_RELOAD_SUCCESS).set(0.0);
            }
        }
    }

    fn count(&self) {
        gauge!(KEYS).set(self.0.in_use.load().table.keys().len() as f64);
        gauge!(LAST_RELOAD_SUCCESS).set(1.0);
    }

    /// A panic while the lock is held leaves texts and times, of which each is right by itself.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    /// A key whose rate has not changed keeps its count: a new file must not give every key another burst.
    fn new(table: KeyTable, before: &Self) -> Self {
        let limiters = table.keys().iter().filter_map(|key| {
            let rate = key.rate?;
            let limiter = match before.limiters.get(&key.name) {
                Some((before, limiter)) if *before == rate => Arc::clone(limiter),
                _ => {
                    let quota = Quota::per_second(rate.requests_per_second).allow_burst(rate.burst);
                    Arc::new(RateLimiter::direct(quota))
                }
            };
            Some((key.name.clone(), (rate, limiter)))
        });
        Self { limiters: limiters.collect(), table }
    }
}

fn read(file: &Path) -> Result<String, KeyringError> {
    let failed = |reason| KeyringError::Read { file: file.to_owned(), reason };
    let mut text = String::new();
    let read =
        File::open(file).map_err(failed)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > MAX_FILE_BYTES {
        return Err(failed(io::Error::other(format!("it is larger than {MAX_FILE_BYTES} bytes"))));
    }
    Ok(text)
}

fn parse(file: &Path, text: &str) -> Result<KeyTable, KeyringError> {
    KeyTable::parse(text).map_err(|reason| KeyringError::Refused { file: file.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use keys::Digest;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("shardledger-keys-{test}-{}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn file(&self) -> PathBuf {
            self.0.join("keys.toml")
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn entry(name: &str, more: &str) -> String {
        format!(
            "[[key]]\nname = \"{name}\"\nroles = [\"read\"]\nsecrets = [{{ sha256 = \"{}\" }}]\n{more}\n",
            Digest::of(name)
        )
    }

    async fn becomes(keyring: &Keyring, secret: &str, known: bool) {
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        while keyring.find(secret).is_some() != known {
            assert!(tokio::time::Instant::now() < until, "{secret} is not known: {known}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn a_new_file_is_taken_in_and_a_wrong_one_leaves_the_keys_in_use() {
        let folder = Folder::new("reload");
        fs::write(folder.file(), entry("one", "")).unwrap();
        let keyring = Keyring::open(&folder.file()).unwrap();
        let tasks = Tasks::new();
        keyring.watch(&tasks).unwrap();
        fs::write(folder.file(), entry("two", "")).unwrap();
        becomes(&keyring, "two", true).await;
        assert!(keyring.find("one").is_none());

        fs::write(folder.file(), entry("three", "roles = 1")).unwrap();
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        while keyring.status().refusal.is_none() {
            assert!(tokio::time::Instant::now() < until, "the wrong file is never refused");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let refusal = keyring.status().refusal.unwrap();
        assert!(refusal.contains("keys.toml, line 5"), "{refusal}");
        assert!(keyring.find("two").is_some());

        // A file that is away for a while.
        fs::remove_file(folder.file()).unwrap();
        keyring.reload_if_changed();
        assert!(keyring.find("two").is_some() && keyring.status().refusal.unwrap().contains("cannot read"));
        fs::write(folder.file(), entry("two", "")).unwrap();
        let until = tokio::time::Instant::now() + Duration::from_secs(10);
        while keyring.status().refusal.is_some() {
            assert!(tokio::time::Instant::now() < until, "the refusal stays");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tasks.shutdown(Duration::from_secs(5)).await.unwrap();
    }

    #[test]
    fn a_key_keeps_its_count_when_another_file_has_the_same_rate() {
        let folder = Folder::new("rate");
        fs::write(folder.file(), entry("one", "requests_per_second = 1\nburst = 2")).unwrap();
        let keyring = Keyring::open(&folder.file()).unwrap();
        let limiter = |keyring: &Keyring| keyring.find("one").unwrap().1.unwrap();
        let before = limiter(&keyring);
        fs::write(folder.file(), entry("one", "requests_per_second = 1\nburst = 2") + &entry("two", "")).unwrap();
        keyring.reload_if_changed();
        assert!(Arc::ptr_eq(&before, &limiter(&keyring)));
        fs::write(folder.file(), entry("one", "requests_per_second = 1\nburst = 3")).unwrap();
        keyring.reload_if_changed();
        assert!(!Arc::ptr_eq(&before, &limiter(&keyring)));
    }
}

//! Replacing the map, from its file or from a node that has a newer one.
//!
//! A map is taken or refused as a whole. A refusal is reported in the log with its line, by a counter and by
//! `/readyz?verbose`; the map in use stays in use.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, MutexGuard},
};

use file_watch::Look;
use shard_map::{MapError, ShardMap, SlotRange};
use telemetry::Tasks;

use super::{MapRefusal, Routing, Writer, shard_ids};
use crate::core::metrics::{self, MapReload};

/// Far above the size of a map of 4096 shards with scattered slots, and small enough to keep in memory.
pub const MAX_MAP_BYTES: u64 = 8 * 1024 * 1024;

/// The result of a reload that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The new map has the content of the map in use.
    Unchanged {
        version: u64,
    },
    Replaced {
        from: u64,
        to: u64,
    },
}

/// Why a map was refused.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("cannot read {}: {reason}", file.display())]
    Read { file: PathBuf, reason: io::Error },
    #[error("{} is larger than {MAX_MAP_BYTES} bytes", file.display())]
    TooLarge { file: PathBuf },
    #[error("{source_name}: {error}")]
    Map { source_name: String, error: MapError },
    #[error("the map of this router came from no file")]
    NoFile,
    #[error("the router is shutting down")]
    ShuttingDown,
}

impl ReloadError {
    /// The line of the map that caused the refusal.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Map { error, .. } => error.line(),
            _ => None,
        }
    }
}

impl Routing {
    /// From now on, changes of the file are taken in, and SIGHUP reloads it, until `tasks` end.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        let routing = self.clone();
        let file = self.writer().file.clone();
        file_watch::follow("shard map", file.as_deref(), tasks, move |look| {
            let routing = routing.clone();
            async move {
                match look {
                    Look::IfChanged => routing.reload_if_changed().await,
                    // Reported where it happens.
                    Look::Reload => drop(routing.reload().await),
                }
            }
        })
    }

    /// Reads the file and puts its map to use. Reading and checking run outside the async threads.
    pub async fn reload(&self) -> Result<Reload, ReloadError> {
        let routing = self.clone();
        blocking(move || routing.reload_file()).await?
    }

    /// Runs [`Routing::reload`] if the file has changed since it was last read.
    async fn reload_if_changed(&self) {
        let routing = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let Some(file) = routing.writer().file.clone() else { return };
            let text = read(&file);
            if text.as_ref().ok() != routing.writer().seen.as_ref() {
                // `take_file` reports its own errors.
                let _ = routing.take_file(file, text);
            }
        });
        if let Err(failed) = looked.await {
            tracing::error!(error = %failed, "looking at the shard map failed");
        }
    }

    pub(super) fn reload_file(&self) -> Result<Reload, ReloadError> {
        let file = self.writer().file.clone().ok_or(ReloadError::NoFile)?;
        let text = read(&file);
        self.take_file(file, text)
    }

    fn take_file(&self, file: PathBuf, text: Result<String, ReloadError>) -> Result<Reload, ReloadError> {
        let mut writer = self.writer();
        writer.seen = text.as_ref().ok().cloned();
        let source = name(&file);
        match text {
            Ok(text) => self.take(writer, &text, source),
            Err(error) => Err(writer.refused(&source, error)),
        }
    }

    /// Puts a map to use that a node had. The rules for maps from the file apply. The file is not written; while its
    /// version is lower, a reload refuses it.
    pub fn adopt_toml(&self, text: &str, source: &str) -> Result<Reload, ReloadError> {
        self.take(self.writer(), text, source.to_owned())
    }

    /// Judges a map as a reload would, by the map in use and what the shards say, without using it. Returns the
    /// version of the judged map.
    pub async fn check(&self, text: String) -> Result<Result<u64, MapError>, ReloadError> {
        let routing = self.clone();
        let judge = move || {
            let writer = routing.writer();
            Ok(writer.successor(&text)?.map_or(writer.map.version, |map| map.version))
        };
        blocking(judge).await
    }

    fn take(&self, mut writer: MutexGuard<'_, Writer>, text: &str, source: String) -> Result<Reload, ReloadError> {
        let from = writer.map.version;
        match writer.successor(text) {
            Ok(Some(map)) => {
                let to = map.version;
                writer.replace(map, source);
                self.publish(&writer);
                Ok(Reload::Replaced { from, to })
            }
            Ok(None) => {
                tracing::debug!(source, version = from, "shard map unchanged");
                writer.refusal = None;
                metrics::map_reload(MapReload::Unchanged);
                Ok(Reload::Unchanged { version: from })
            }
            Err(error) => Err(writer.refused(&source.clone(), ReloadError::Map { source_name: source, error })),
        }
    }
}

impl Writer {
    /// The map that this text would put in place of the one in use; `None` if both have the same content.
    fn successor(&self, text: &str) -> Result<Option<ShardMap>, MapError> {
        let known = |slot| self.facts.owner(slot).map(|owner| self.map.shard(owner).id.as_str());
        ShardMap::parse_successor(text, &self.map, known)
    }

    fn replace(&mut self, map: ShardMap, source: String) {
        let (facts, lost) = self.facts.carried_over(&self.map, &map);
        if !lost.is_empty() {
            let slots = lost.iter().map(SlotRange::to_string).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                slots,
                "the new shard map lacks the shards that owned these slots; it decides about them now"
            );
        }
        tracing::info!(
            source,
            from = self.map.version,
            to = map.version,
            shards = map.shards.len(),
            slots_moved = self.map.diff(&map).slots_moved(),
            "shard map replaced"
        );
        metrics::map_loaded(map.version);
        metrics::map_reload(MapReload::Replaced);
        self.ids = shard_ids(&map);
        self.map = Arc::new(map);
        self.facts = facts;
        self.source = source;
        self.loaded_at_us = telemetry::clock::now_us();
        self.refusal = None;
    }

    fn refused(&mut self, source: &str, error: ReloadError) -> ReloadError {
        tracing::error!(source, line = error.line(), %error, in_use = self.map.version, "shard map refused; the map in use is unchanged");
        metrics::map_reload(MapReload::Refused);
        self.refusal = Some(MapRefusal {
            at_us: telemetry::clock::now_us(),
            source: source.to_owned(),
            line: error.line(),
            reason: error.to_string(),
        });
        error
    }
}

/// Runs work outside the async threads. A panic of the work goes on in the caller.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ReloadError> {
    tokio::task::spawn_blocking(work).await.map_err(|failed| match failed.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_cancelled) => ReloadError::ShuttingDown,
    })
}

pub(super) fn read(file: &Path) -> Result<String, ReloadError> {
    let failed = |reason| ReloadError::Read { file: file.to_owned(), reason };
    let mut text = String::new();
    let read = File::open(file).map_err(failed)?.take(MAX_MAP_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > MAX_MAP_BYTES {
        return Err(ReloadError::TooLarge { file: file.to_owned() });
    }
    Ok(text)
}

/// The file's name for messages, without the `..` of a path relative to a configuration. Only the folder is resolved:
/// a link is shown under its own name.
pub(super) fn name(file: &Path) -> String {
    let resolved = || Some(file.parent()?.canonicalize().ok()?.join(file.file_name()?));
    resolved().as_deref().unwrap_or(file).display().to_string()
}

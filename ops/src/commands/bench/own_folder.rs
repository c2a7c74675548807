//! Measuring in a folder that is gone afterwards, also when somebody stops it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;
use telemetry::shutdown;

use crate::output;

/// Runs `work` in a folder of its own below `parent`.
pub async fn run_in<T>(
    parent: Option<PathBuf>,
    work: impl AsyncFnOnce(&Path) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let folder = Folder::create(parent.unwrap_or_else(std::env::temp_dir))?;
    let stopped = shutdown::signal()?;
    tokio::select! {
        done = work(&folder.0) => done,
        // Dropping the work stops and removes its clusters.
        signal = stopped => anyhow::bail!("stopped by {signal}"),
    }
}

/// Writes a result to a file, where one is named.
pub fn write_json(file: Option<&Path>, result: &impl Serialize) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(result)?;
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// A folder for one run, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn create(parent: PathBuf) -> anyhow::Result<Self> {
        let path = parent.join(format!("shardledger-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            output::note(&format!("{} could not be removed: {error}", self.0.display()));
        }
    }
}

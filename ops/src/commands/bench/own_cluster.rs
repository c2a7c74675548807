//! Measurements of clusters that are made for them: in a folder that is gone afterwards, also when somebody stops it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;
use telemetry::{clock, shutdown};

use crate::{commands::Context, output};

/// Where to measure, from which seed, and where the result goes.
#[derive(clap::Args)]
pub struct OwnCluster {
    /// Folder of the clusters that are measured, made and removed here [default: the system's for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Write the result as JSON to this file as well
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Repeats what a run drew at random [default: from the clock; printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl OwnCluster {
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_else(|| clock::now_us().unsigned_abs())
    }

    /// Runs `work` in a folder of its own.
    pub async fn run<T>(&self, work: impl AsyncFnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let folder = Folder::create(&self.folder.clone().unwrap_or_else(std::env::temp_dir))?;
        let stopped = shutdown::signal()?;
        tokio::select! {
            done = work(&folder.0) => done,
            // Dropping the work stops and removes its clusters.
            signal = stopped => anyhow::bail!("stopped by {signal}"),
        }
    }

    /// Gives the result to whoever asked for it: the file, where one is named; a program or a person.
    pub fn report<R: Serialize>(
        &self,
        result: &R,
        context: &Context,
        print: fn(&R) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if let Some(file) = &self.out {
            let text = serde_json::to_string_pretty(result)?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        if context.json { output::json(result) } else { print(result) }
    }
}

/// A folder for one run, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn create(parent: &Path) -> anyhow::Result<Self> {
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

//! Clusters that exist for a measurement only.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use super::cpu::Spent;
use crate::{
    cluster::{Description, Layout},
    verify::Target,
};

/// A cluster in a folder of its own, gone with its data when this is dropped.
pub struct OwnCluster {
    data_dir: PathBuf,
    pub description: Description,
    layout: Layout,
}

impl OwnCluster {
    /// Starts a cluster through this very program, on ports that are free.
    pub fn start(data_dir: PathBuf, shards: u16, routers: u16) -> anyhow::Result<Self> {
        // Guards from here on: whatever `up` has started when it fails goes too.
        let guard = Remains(&data_dir);
        let up = shardctl(&data_dir)?
            .args(["up", "--port-base", "0", "--shards"])
            .arg(shards.to_string())
            .arg("--routers")
            .arg(routers.to_string())
            .stdout(Stdio::null())
            .output()?;
        ensure!(up.status.success(), "starting a cluster: {}", String::from_utf8_lossy(&up.stderr));
        let layout = Layout::find(&data_dir)?;
        let description = Description::load(&layout)?.context("the cluster that was started has no description")?;
        std::mem::forget(guard);
        Ok(Self { data_dir, description, layout })
    }

    /// The databases, by shard.
    pub fn databases(&self) -> anyhow::Result<Vec<Target>> {
        let shards = self.description.shards.iter();
        shards.map(|shard| Ok(Target { shard: shard.id.clone(), dsn: shard.dsn(&self.layout)? })).collect()
    }

    /// The processor time its processes and this one have spent so far.
    pub fn spent(&self) -> anyhow::Result<Spent> {
        Spent::now(&self.layout, &self.description)
    }
}

impl Drop for OwnCluster {
    fn drop(&mut self) {
        remove(&self.data_dir);
    }
}

struct Remains<'a>(&'a Path);

impl Drop for Remains<'_> {
    fn drop(&mut self) {
        remove(self.0);
    }
}

fn remove(data_dir: &Path) {
    let removed = shardctl(data_dir).and_then(|mut command| {
        Ok(command.args(["down", "--wipe", "--yes"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?)
    });
    if !removed.is_ok_and(|status| status.success()) {
        crate::output::note(&format!("the cluster in {} could not be removed", data_dir.display()));
    }
}

fn shardctl(data_dir: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--data-dir").arg(data_dir).stdin(Stdio::null());
    Ok(command)
}

//! The description of the API against a live cluster: every example of it is played, clients are generated from it and used, and
//! schemathesis tries whatever the description allows and forbids.

mod examples;
mod generated_clients;
pub mod node_packages;
pub mod python;
mod schemathesis;

use std::path::{Path, PathBuf};

use anyhow::Context;
use testkit::{cluster::Cluster, programs::program, seed::Seed};

use super::api::Api;

/// The committed copy, which a unit test of the router compares with the code.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_true() -> anyhow::Result<()> {
    let seed = Seed::announce("description");
    let schemathesis = schemathesis::Installed::ensure().await?;

    let cluster = Cluster::start(3, 1).await?;
    let api = Api::connect(cluster.status().routers.iter().map(|router| router.url.clone()).collect()).await?;
    examples::are_answered_as_described(&api).await?;
    schemathesis.finds_nothing(api.url(0), &seed).await?;
    cluster.verify().await?;
    cluster.finish().await
}

/// A folder of the target folder for what tests install.
fn target_folder(name: &str) -> anyhow::Result<PathBuf> {
    let shardctl = program("shardctl")?;
    let folder = shardctl.ancestors().nth(2).context("the programs are in no target folder")?.join(name);
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The folder `name` in `home`, which `install` fills unless an earlier run has. Tests run in processes of their own, so a file lock keeps two
/// of them from filling it at once.
async fn installed(
    home: &Path,
    name: &str,
    install: impl AsyncFnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let lock = std::fs::File::create(home.join("lock"))?;
    let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    let folder = home.join(name);
    if !folder.exists() {
        // An installation that was cut short must not be taken for a whole one.
        let draft = home.join("draft");
        if draft.exists() {
            std::fs::remove_dir_all(&draft)?;
        }
        install(&draft).await?;
        std::fs::rename(&draft, &folder)?;
    }
    lock.unlock()?;
    Ok(folder)
}

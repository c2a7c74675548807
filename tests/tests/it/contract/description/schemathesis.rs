//! schemathesis, in exactly the versions of its `requirements.txt`.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use testkit::seed::Seed;
use uuid::Uuid;

use super::python::Packages;

/// How long it tries new things, once everything that it tries always is done.
const BUDGET_S: u64 = 60;
/// What it may take in all on a busy machine.
const PATIENCE: Duration = Duration::from_secs(500);

/// Configuration, hooks and requirements.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/schemathesis");

/// Ready to run.
#[derive(Debug)]
pub struct Installed(Packages);

impl Installed {
    pub async fn ensure() -> anyhow::Result<Self> {
        Ok(Self(Packages::ensure("schemathesis", &Path::new(FOLDER).join("requirements.txt")).await?))
    }

    /// Runs all its checks in all its phases against a router.
    pub async fn finds_nothing(&self, url: &str, seed: &Seed) -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("shardledger-schemathesis-{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder)?;
        let said = self.run(url, seed, &folder).await;
        std::fs::remove_dir_all(&folder)?;
        let (success, said) = said?;
        ensure!(success, "{said}\nschemathesis has findings; the seed is at the end");
        let summary = said.find("= SUMMARY =").map_or(said.as_str(), |at| &said[at..]);
        eprintln!("schemathesis {summary}");
        Ok(())
    }

    /// In a folder of its own, because it leaves files where it runs.
    async fn run(&self, url: &str, seed: &Seed, folder: &Path) -> anyhow::Result<(bool, String)> {
        let seed = u32::try_from(seed.random().bits() >> 32)?;
        let mut command = self.0.command(None)?;
        command
            .args(["-m", "schemathesis.cli", "--config-file"])
            .arg(Path::new(FOLDER).join("schemathesis.toml"))
            .args(["run", &format!("{url}/openapi.json")])
            .args(["--seed", &seed.to_string(), "--max-time", &BUDGET_S.to_string()])
            .args(["--no-color", "--output-truncate", "false"])
            .env("SCHEMATHESIS_HOOKS", Path::new(FOLDER).join("hooks.py"))
            // Wide enough that no line of its report is folded.
            .env("COLUMNS", "200")
            .current_dir(folder);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .with_context(|| format!("schemathesis did not end within {PATIENCE:?}"))?
            .context("cannot run schemathesis")?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }
}

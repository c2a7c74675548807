//! Generators of clients understand the description, and the programs in `clients/` work with what they generate.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use testkit::cluster::Cluster;
use tokio::process::Command;
use uuid::Uuid;

use super::{
    DOCUMENT,
    packages::{NodePackages, Packages, run},
};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients");
const LINTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/description");

/// A folder that is removed at the end of a test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("shardledger-clients-{}", Uuid::now_v7().simple()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a folder of temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a cluster of two shards and runs a program with the address of its router.
async fn run_against_a_cluster(program: &mut Command) -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let printed = run(program.arg(&cluster.status().routers[0].url)).await?;
    ensure!(printed.ends_with("has 74.00 EUR"), "{printed}");
    cluster.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generated_python_client_works() -> anyhow::Result<()> {
    let folder = Path::new(CLIENTS).join("python");
    let packages = Packages::ensure("python-client", &folder.join("requirements.txt")).await?;
    let scratch = Scratch::new()?;
    let client = scratch.0.join("shardledger_client");
    let mut generate = packages.command(None)?;
    generate
        .args([
            "-m",
            "openapi_python_client",
            "generate",
            "--meta",
            "none",
            "--fail-on-warning",
            "--path",
            DOCUMENT,
            "--config",
        ])
        .arg(folder.join("generator.yaml"))
        .arg("--output-path")
        .arg(&client);
    run(&mut generate).await?;
    let program = folder.join("payments.py");
    let mut check = packages.command(Some(&scratch.0))?;
    run(check.args(["-m", "mypy", "--cache-dir"]).arg(scratch.0.join("mypy")).arg(&program).current_dir(&scratch.0))
        .await?;
    run_against_a_cluster(packages.command(Some(&scratch.0))?.arg(&program)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generated_typescript_client_works() -> anyhow::Result<()> {
    let folder = Path::new(CLIENTS).join("typescript");
    let Some(packages) = NodePackages::ensure("typescript-client", &folder).await? else { return Ok(()) };
    let scratch = Scratch::new()?;
    for file in ["payments.ts", "tsconfig.json", "package.json"] {
        std::fs::copy(folder.join(file), scratch.0.join(file))?;
    }
    std::os::unix::fs::symlink(packages.folder().join("node_modules"), scratch.0.join("node_modules"))?;
    run(packages.command("openapi-typescript").args([DOCUMENT, "-o"]).arg(scratch.0.join("schema.d.ts"))).await?;
    run(packages.command("tsc").current_dir(&scratch.0)).await?;
    run_against_a_cluster(Command::new("node").arg(scratch.0.join("payments.js"))).await
}

#[tokio::test]
async fn linters_and_another_generator_find_nothing_in_the_description() -> anyhow::Result<()> {
    let Some(packages) = NodePackages::ensure("description-linters", Path::new(LINTERS)).await? else {
        return Ok(());
    };
    let scratch = Scratch::new()?;
    let mut redocly = packages.command("redocly");
    // The strict rules are the recommended ones with errors in place of warnings.
    run(redocly.args(["lint", "--extends=recommended-strict", DOCUMENT]).current_dir(&scratch.0)).await?;
    let rules = Path::new(LINTERS).join("spectral.yaml");
    run(packages.command("spectral").args(["lint", "--fail-severity=hint", DOCUMENT, "--ruleset"]).arg(rules))
        .await?;
    run(packages
        .command("openapi-ts")
        .args(["-i", DOCUMENT, "-o"])
        .arg(scratch.0.join("hey"))
        .current_dir(&scratch.0))
    .await?;
    Ok(())
}

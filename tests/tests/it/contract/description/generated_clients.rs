//! Tests that generators of clients accept the description, and that the programs in `clients/` work with the generated code.

use std::path::Path;

use testkit::{cluster::Cluster, node::Folder};
use tokio::process::Command;

use super::{
    DOCUMENT,
    packages::{NodePackages, Packages, run},
};

const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../clients");
const LINTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/description");

/// Starts a cluster of two shards and runs a program with the address of its router.
async fn run_against_a_cluster(program: &mut Command) -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let printed = run(program.arg(&cluster.status().routers[0].url)).await?;
    expect!(printed.ends_with("has 74.00 EUR"), "{printed}");
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generated_python_client_works() -> anyhow::Result<()> {
    let folder = Path::new(CLIENTS).join("python");
    let packages = Packages::ensure("python-client", &folder.join("requirements.txt")).await?;
    let scratch = Folder::create()?;
    let client = scratch.path().join("shardledger_client");
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
    let mut check = packages.command(Some(scratch.path()))?;
    run(check
        .args(["-m", "mypy", "--cache-dir"])
        .arg(scratch.path().join("mypy"))
        .arg(&program)
        .current_dir(scratch.path()))
    .await?;
    run_against_a_cluster(packages.command(Some(scratch.path()))?.arg(&program)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_generated_typescript_client_works() -> anyhow::Result<()> {
    let folder = Path::new(CLIENTS).join("typescript");
    let Some(packages) = NodePackages::ensure("typescript-client", &folder).await? else { return Ok(()) };
    let scratch = Folder::create()?;
    for file in ["payments.ts", "tsconfig.json", "package.json"] {
        std::fs::copy(folder.join(file), scratch.path().join(file))?;
    }
    std::os::unix::fs::symlink(packages.folder().join("node_modules"), scratch.path().join("node_modules"))?;
    run(packages.command("openapi-typescript").args([DOCUMENT, "-o"]).arg(scratch.path().join("schema.d.ts")))
        .await?;
    run(packages.command("tsc").current_dir(scratch.path())).await?;
    run_against_a_cluster(Command::new("node").arg(scratch.path().join("payments.js"))).await
}

#[tokio::test]
async fn linters_and_another_generator_find_nothing_in_the_description() -> anyhow::Result<()> {
    let Some(packages) = NodePackages::ensure("description-linters", Path::new(LINTERS)).await? else {
        return Ok(());
    };
    let scratch = Folder::create()?;
    let mut redocly = packages.command("redocly");
    // The strict rules are the recommended ones. They report errors instead of warnings.
    run(redocly.args(["lint", "--extends=recommended-strict", DOCUMENT]).current_dir(scratch.path())).await?;
    let rules = Path::new(LINTERS).join("spectral.yaml");
    run(packages.command("spectral").args(["lint", "--fail-severity=hint", DOCUMENT, "--ruleset"]).arg(rules))
        .await?;
    run(packages
        .command("openapi-ts")
        .args(["-i", DOCUMENT, "-o"])
        .arg(scratch.path().join("hey"))
        .current_dir(scratch.path()))
    .await?;
    Ok(())
}

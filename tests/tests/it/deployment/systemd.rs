//! The units are read by systemd's own tools, where they are installed.

use std::path::Path;

use anyhow::ensure;
use testkit::programs::program;
use tokio::process::Command;

use super::{CONFIGURATION, DEPLOY, Scratch, check_command, run};

const UNITS: [(&str, &str); 2] = [("router.service", "router"), ("shard-node@.service", "shard-node")];

/// The exposure of a unit in tenths, from 0 to 100, above which the test fails. `systemd-analyze security` rates the units at 12.
const EXPOSURE: &str = "15";

#[tokio::test]
async fn systemd_takes_the_units_and_finds_them_closed() -> anyhow::Result<()> {
    if run(Command::new("systemd-analyze").arg("--version")).await.is_err() {
        eprintln!("SKIPPED: the units are checked by systemd-analyze (Debian: apt-get install systemd)");
        return Ok(());
    }
    let scratch = Scratch::new()?;
    for (unit, name) in UNITS {
        let text = std::fs::read_to_string(Path::new(DEPLOY).join("systemd").join(unit))?;
        let copy = scratch.0.join(unit);
        // systemd looks for the program.
        let built = program(name)?.display().to_string();
        std::fs::write(&copy, text.replace(&format!("/usr/local/bin/{name}"), &built))?;
        let said = run(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy)).await?;
        ensure!(said.is_empty(), "{unit}: {said}");
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

//! Where the programs under test are: beside the test executable, in the folder cargo built both into.

use std::path::PathBuf;

use anyhow::{Context, ensure};

/// The built program of this name.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe().context("cannot tell where this test is")?;
    // target/<profile>/deps/<test>
    let folder = test.parent().and_then(|deps| deps.parent()).context("the test is not in a target folder")?;
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    Ok(path)
}

//! Node.js packages that are installed once into the target folder.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, ensure};
use tokio::process::Command;
use uuid::Uuid;

use super::{installed, target_folder};

const NEEDED: &str = "the description of the API is tested by programs for Node.js 20 or later with npm (Debian: apt-get install nodejs npm)";

/// Exactly the packages of one lock file.
#[derive(Debug)]
pub struct NodePackages(PathBuf);

impl NodePackages {
    /// Installs what the `package.json` and `package-lock.json` of a folder list, unless an earlier run has. `name` is that of the
    /// folder they are installed into. `None` if this machine has no npm: the caller then skips its test, and the reason is printed.
    ///
    /// # Errors
    /// The registry does not have these packages, or cannot be reached.
    pub async fn ensure(name: &str, lists: &Path) -> anyhow::Result<Option<Self>> {
        if run(Command::new("npm").arg("--version")).await.is_err() {
            eprintln!("SKIPPED: {NEEDED}");
            return Ok(None);
        }
        let home = target_folder(name)?;
        let files = ["package.json", "package-lock.json"];
        let mut wanted = String::new();
        for file in files {
            let path = lists.join(file);
            wanted += &std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        let name = format!("packages-{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, wanted.as_bytes()).simple());
        let folder = installed(&home, &name, async |draft| {
            std::fs::create_dir_all(draft)?;
            for file in files {
                std::fs::copy(lists.join(file), draft.join(file))?;
            }
            let mut npm = Command::new("npm");
            npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel", "error"]).current_dir(draft);
            run(&mut npm).await.context("cannot install packages of Node.js, which this test needs once")?;
            Ok(())
        })
        .await?;
        Ok(Some(Self(folder)))
    }

    /// A program of the packages.
    pub fn command(&self, program: &str) -> Command {
        Command::new(self.0.join("node_modules/.bin").join(program))
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }
}

/// Runs a program to its end, and returns what it printed.
///
/// # Errors
/// It ended with another status than 0; the error has what it printed.
pub async fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = output.await.with_context(|| format!("cannot run {program}"))?;
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
    ensure!(output.status.success(), "{program}: {}\n{printed}", output.status);
    Ok(printed)
}

//! A Python that can install packages.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;

const NEEDED: &str = "the description of the API is tested by schemathesis, which needs Python 3.11 or later with pip or venv \
    (Debian: apt-get install python3-pip)";
const OLDEST: (u32, u32) = (3, 11);

/// One that has pip.
#[derive(Debug)]
pub struct Python {
    program: PathBuf,
    /// Packages of one minor version do not work in another.
    pub version: String,
}

impl Python {
    /// The system's, else one of its virtual environments: distributions ship Python without pip, but then often with what
    /// makes one. `home` is where it may be.
    pub async fn with_pip(home: &Path) -> anyhow::Result<Self> {
        for name in ["python3", "python"] {
            let Ok(version) = version(Path::new(name)).await else { continue };
            if has_pip(Path::new(name)).await {
                return Ok(Self { program: name.into(), version });
            }
            let environment = home.join(format!("python-{version}"));
            let made = run(Command::new(name).args(["-m", "venv"]).arg(&environment)).await;
            let program = environment.join("bin").join("python");
            if made.is_ok() && has_pip(&program).await {
                return Ok(Self { program, version });
            }
        }
        bail!("{NEEDED}")
    }

    /// Installs exactly these packages into a folder of their own.
    pub async fn install(&self, requirements: &Path, target: &Path) -> anyhow::Result<()> {
        let mut pip = self.command();
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
            .args(["--require-hashes", "--only-binary", ":all:", "--target"])
            .arg(target)
            .arg("--requirement")
            .arg(requirements)
            .env("PIP_ROOT_USER_ACTION", "ignore");
        let hint = "cannot install schemathesis from the Python package index, which this test needs once";
        run(&mut pip).await.context(hint)
    }

    pub fn command(&self) -> Command {
        Command::new(&self.program)
    }
}

async fn version(python: &Path) -> anyhow::Result<String> {
    let print = "import sys; print('%d.%d' % sys.version_info[:2])";
    let output = Command::new(python).args(["-c", print]).stderr(Stdio::null()).output().await?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (major, minor) = version.split_once('.').context("no version")?;
    ensure!((major.parse::<u32>()?, minor.parse::<u32>()?) >= OLDEST, "{version} is too old");
    Ok(version)
}

async fn has_pip(python: &Path) -> bool {
    run(Command::new(python).args(["-m", "pip", "--version"])).await.is_ok()
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

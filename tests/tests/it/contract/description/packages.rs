//! Packages for Python and Node.js that are installed once into the target folder.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, bail, ensure};
use tokio::process::Command;
use uuid::Uuid;

use super::{installed, target_folder};

const PYTHON_NEEDED: &str = "the description of the API is tested by Python programs, which need Python 3.11 or later with pip or venv \
    (Debian: apt-get install python3-pip)";
const OLDEST: (u32, u32) = (3, 11);

/// Python with exactly the packages of one file of requirements.
#[derive(Debug)]
pub struct Packages {
    python: Python,
    folder: PathBuf,
}

impl Packages {
    /// Installs the packages into the folder `name`, unless an earlier run has.
    ///
    /// # Errors
    /// There is no Python with pip, or the package index does not have these packages.
    pub async fn ensure(name: &str, requirements: &Path) -> anyhow::Result<Self> {
        let home = target_folder(name)?;
        let wanted = std::fs::read_to_string(requirements)
            .with_context(|| format!("cannot read {}", requirements.display()))?;
        let python = Python::with_pip(&home).await?;
        let version = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{}\n{wanted}", python.version).as_bytes());
        let name = format!("packages-{}", version.simple());
        let folder = installed(&home, &name, async |draft| python.install(requirements, draft).await).await?;
        Ok(Self { python, folder })
    }

    /// The command of a program that a package installs.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.folder.join("bin").join(name))
    }

    /// A command that runs Python with the packages. It also imports from the folder `also`.
    pub fn command(&self, also: Option<&Path>) -> anyhow::Result<Command> {
        let folders = [Some(self.folder.as_path()), also].into_iter().flatten();
        let mut command = Command::new(&self.python.program);
        command
            .env("PYTHONPATH", std::env::join_paths(folders)?)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

/// A Python that has pip.
#[derive(Debug)]
struct Python {
    program: PathBuf,
    /// The version up to the minor number. Packages for one minor version do not work in another.
    pub version: String,
}

impl Python {
    /// Returns the system's Python if it has pip, or else a virtual environment in `home`. Distributions that ship Python without pip often
    /// ship the module `venv`.
    async fn with_pip(home: &Path) -> anyhow::Result<Self> {
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
        bail!("{PYTHON_NEEDED}")
    }

    /// Installs exactly these packages into the folder `target`.
    async fn install(&self, requirements: &Path, target: &Path) -> anyhow::Result<()> {
        let mut pip = Command::new(&self.program);
        pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
            .args(["--require-hashes", "--only-binary", ":all:", "--target"])
            .arg(target)
            .arg("--requirement")
            .arg(requirements)
            .env("PIP_ROOT_USER_ACTION", "ignore");
        let hint = format!(
            "cannot install {} from the Python package index, which this test needs once",
            requirements.display()
        );
        run(&mut pip).await.context(hint)?;
        Ok(())
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

const NODE_NEEDED: &str = "the description of the API is tested by programs for Node.js 20 or later with npm (Debian: apt-get install nodejs npm)";

/// Node.js with exactly the packages of one lock file.
#[derive(Debug)]
pub struct NodePackages(PathBuf);

impl NodePackages {
    /// Installs the packages in the `package.json` and `package-lock.json` of a folder into the folder `name`, unless an earlier run has.
    /// Returns `None` and prints the reason if this machine has no npm. The caller then skips its test.
    ///
    /// # Errors
    /// The registry does not have these packages, or cannot be reached.
    pub async fn ensure(name: &str, lists: &Path) -> anyhow::Result<Option<Self>> {
        if run(Command::new("npm").arg("--version")).await.is_err() {
            eprintln!("SKIPPED: {NODE_NEEDED}");
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

    /// The command of a program of the packages.
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
    expect!(output.status.success(), "{program}: {}\n{printed}", output.status);
    Ok(printed)
}

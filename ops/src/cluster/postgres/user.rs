//! The user that runs PostgreSQL. PostgreSQL refuses to run as root, so under root it runs as another user, who must
//! be able to reach the databases' folder ([`super::home`]).

use std::{
    fmt, fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, chown},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// In order of preference. The distribution's package creates the first one.
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

/// Asks the kernel as that user, so that modes, groups and access lists all count.
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

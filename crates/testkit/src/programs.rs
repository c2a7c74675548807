//! Finds the programs under test, which cargo builds into the folder of the test executable, PostgreSQL's programs, and free ports for
//! both.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};

/// The environment variable that names the folder of PostgreSQL's programs. `shardctl` reads the same variable.
const PG_BIN_VARIABLE: &str = "SHARDLEDGER_PG_BIN";
/// Folders in which distributions install each version's programs.
const PG_BIN_FOLDERS: &str = "/usr/lib/postgresql";
/// Users that run PostgreSQL if the tests run as root, in order of preference.
const USERS: [&str; 2] = ["postgres", "nobody"];

/// The built program of this name.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // A test is the file target/<profile>/deps/<test>. The program that starts the shared fixtures is target/<profile>/<program>.
    let folder = own.parent().context("this program is in no target folder")?;
    let folder = folder.parent().filter(|_| folder.ends_with("deps")).unwrap_or(folder);
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo build --workspace --bins` first", path.display());
    Ok(path)
}

/// The folder of PostgreSQL's programs.
pub fn postgres_programs() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os(PG_BIN_VARIABLE) {
        return Ok(folder.into());
    }
    let installed = std::fs::read_dir(PG_BIN_FOLDERS).into_iter().flatten().flatten();
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    let folders = installed.map(|version| version.path().join("bin")).chain(std::env::split_paths(&in_path));
    folders
        .filter(|folder| folder.join("initdb").is_file())
        .max()
        .with_context(|| format!("found no PostgreSQL: name the folder of its programs with {PG_BIN_VARIABLE}"))
}

/// The program of this name in `PATH`, if there is one.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// A user other than the one that runs the tests.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    pub uid: u32,
    pub gid: u32,
}

/// The user that runs PostgreSQL, because PostgreSQL refuses to run as root. `None` means the user that runs the tests.
pub fn service_user() -> anyhow::Result<Option<Service>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    for name in USERS {
        if let (Some(uid), Some(gid)) = (id_of("-u", name)?, id_of("-g", name)?) {
            return Ok(Some(Service { uid, gid }));
        }
    }
    bail!("PostgreSQL refuses to run as root, and this machine has none of the users {}", USERS.join(", "))
}

fn id_of(which: &str, user: &str) -> anyhow::Result<Option<u32>> {
    let output = Command::new("id").args([which, user]).stderr(Stdio::null()).output().context("cannot run id")?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().parse()).transpose()?)
}

/// The ports that tests use. They are below the range from which the kernel picks ports of outgoing connections (32768 and above), so that
/// no connection takes the port of a process that is down for a moment.
const FIRST_PORT: u16 = 12_000;
const LAST_PORT: u16 = 32_000;
const PORT_TRIES: u32 = 200;

/// A port on which no program listens now.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..PORT_TRIES {
        // The search starts at a random port, because tests that start at the same moment would find the same first free port.
        let [.., high, low] = uuid::Uuid::now_v7().into_bytes();
        let port = FIRST_PORT + u16::from_be_bytes([high, low]) % (LAST_PORT - FIRST_PORT);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    None.context("found no free port")
}

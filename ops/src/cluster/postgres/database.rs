//! Making a shard's database: a PostgreSQL data folder of its own with one role, one database and no way in without a
//! password.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use super::{
    server::Server,
    settings::{HOST_BASED_AUTHENTICATION, INCLUDES, Settings},
    user::{ServiceUser, create_owned, give, run_as},
};
use crate::cluster::{
    description::{Description, ROLE, ShardPlace},
    durable_file::{self, Audience},
    layout::Layout,
    secrets::new_password,
};

/// The role initdb makes. The services never use it.
const SUPERUSER: &str = "postgres";
/// Everyone needs a password, so between initdb and the making of the roles nobody has one to get in with.
const BOOTSTRAP_AUTHENTICATION: &str = "reject";

/// Makes the shard's database unless it is there, and writes its settings.
pub fn ensure_database(layout: &Layout, description: &Description, shard: &ShardPlace) -> anyhow::Result<()> {
    let place = &description.postgres;
    let (folder, user) = (place.data_folder(shard), place.user.as_ref());
    let server = Server { bin_dir: place.bin_dir.clone(), major: place.major };
    if !folder.exists() {
        make(&server, &folder, user, &read_passwords(layout, shard)?)
            .with_context(|| format!("cannot make the database of shard {}", shard.id))?;
    }
    let sockets = folder.with_file_name("sockets");
    create_owned(&sockets, 0o755, user)?;
    let settings = Settings::for_server(shard.postgres_port, &sockets, description.shards.len());
    write_owned(&folder.join("shardledger.conf"), &settings.text(), user)
}

struct Passwords {
    superuser: String,
    role: String,
}

/// Makes the passwords of the shard's database, unless they are there.
pub fn ensure_passwords(layout: &Layout, shard: &ShardPlace) -> anyhow::Result<()> {
    for role in [SUPERUSER, ROLE] {
        durable_file::create_once(&layout.password(&shard.id, role), &new_password()?, Audience::Owner)?;
    }
    Ok(())
}

fn read_passwords(layout: &Layout, shard: &ShardPlace) -> anyhow::Result<Passwords> {
    let read = |role: &str| -> anyhow::Result<String> {
        let path = layout.password(&shard.id, role);
        Ok(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned())
    };
    Ok(Passwords { superuser: read(SUPERUSER)?, role: read(ROLE)? })
}

/// Works in a draft folder that is renamed when all is done, so that a crash leaves no half-made database behind.
fn make(server: &Server, folder: &Path, user: Option<&ServiceUser>, passwords: &Passwords) -> anyhow::Result<()> {
    let draft = folder.with_extension("new");
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    create_owned(&draft, 0o700, user)?;
    let mut initdb = Command::new(server.program("initdb"));
    initdb
        .arg("-D")
        .arg(&draft)
        .args(["--username", SUPERUSER, "--auth", BOOTSTRAP_AUTHENTICATION, "--encoding", "UTF8"])
        // Sort order that no upgrade of the C library changes, and checksums that make a damaged page loud.
        .args(["--no-locale", "--data-checksums"]);
    run(initdb, &draft, user, "")?;
    append(&draft.join("postgresql.conf"), INCLUDES)?;
    write_owned(&draft.join("shardledger.conf"), "", user)?;
    write_owned(&draft.join("pg_hba.conf"), HOST_BASED_AUTHENTICATION, user)?;

    let mut single = Command::new(server.program("postgres"));
    // `-j` ends a statement at a semicolon and an empty line; without exit_on_error a failure would go unnoticed.
    single.args(["--single", "-j", "-c", "exit_on_error=on", "-D"]).arg(&draft).arg("postgres");
    run(single, &draft, user, &bootstrap_sql(passwords))?;
    fs::rename(&draft, folder)?;
    Ok(())
}

/// Given on standard input: a command line can be read by every user of the machine.
fn bootstrap_sql(passwords: &Passwords) -> String {
    let Passwords { superuser, role } = passwords;
    [
        format!("ALTER ROLE {SUPERUSER} PASSWORD '{superuser}'"),
        format!("CREATE ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{role}'"),
        format!("CREATE DATABASE {ROLE} OWNER {ROLE}"),
        format!("REVOKE ALL ON DATABASE {ROLE} FROM PUBLIC"),
    ]
    .map(|statement| statement + ";\n\n")
    .concat()
}

/// Runs a program of PostgreSQL to its end; what it said is told when it fails.
fn run(mut command: Command, folder: &Path, user: Option<&ServiceUser>, input: &str) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    run_as(&mut command, user);
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn append(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut file = fs::OpenOptions::new().append(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(file.sync_all()?)
}

fn write_owned(path: &Path, text: &str, user: Option<&ServiceUser>) -> anyhow::Result<()> {
    durable_file::replace(path, text, Audience::Owner)?;
    give(path, user)
}

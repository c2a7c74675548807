//! Creates a shard's database: a PostgreSQL data folder with one role and one database, which is accessible only with a password. The
//! passwords are generated here, and each is written to a file of its own.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};

use super::{
    server::{Server, ServiceUser, create_owned, give, run_as},
    settings::{HOST_BASED_AUTHENTICATION, INCLUDES, MAX_CONNECTIONS, Peer, Settings},
    standby,
    stopped_server::{self, ControlFile, FolderFault, is_missing_or_empty},
};
use crate::{
    cluster::{
        description::{Description, ROLE, Replication, ServerPlace, Servers, ShardPlace},
        failover::FailoverStep,
        files::{self, Audience},
        layout::Layout,
        process,
    },
    output::note,
};

/// The role that initdb creates. The services never use it.
pub const SUPERUSER: &str = "postgres";
/// Rejects all connections between initdb and the creation of the roles.
const BOOTSTRAP_AUTHENTICATION: &str = "reject";

/// Fails unless every recorded database is in place. A recorded database is never created again: an empty database in
/// place of a ledger would execute payments a second time.
pub fn check(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    let mut faults = Vec::new();
    for shard in &description.shards {
        if let Err(fault) = check_shard(layout, description, shard) {
            faults.push(format!("shard {}: {fault:#}", shard.id));
        }
    }
    ensure!(
        faults.is_empty(),
        "{}\nnothing was started; run `shardctl up` again when that is done. (`shardctl down --wipe` removes the data of \
         the whole cluster.)",
        faults.join("\n")
    );
    Ok(())
}

fn check_shard(layout: &Layout, description: &Description, shard: &ShardPlace) -> anyhow::Result<()> {
    let folder = description.servers(layout, shard).primary.folder;
    match shard.system_identifier {
        Some(recorded) => stopped_server::check_system_identifier(&folder, recorded)?,
        // The server's log is created at its first start, after the database was created.
        None if layout.log(&shard.postgres_name()).exists() && is_missing_or_empty(&folder) => {
            return Err(FolderFault::Missing(folder).into());
        }
        // The first `up` was interrupted before it created the database.
        None => return Ok(()),
    }
    for role in [SUPERUSER, ROLE] {
        let password = layout.password(&shard.id, role);
        ensure!(password.exists(), "the password {} is missing: restore the file", password.display());
    }
    Ok(())
}

/// A shard's database, ready to be started.
#[derive(Debug)]
pub struct PreparedDatabase {
    pub system_identifier: u64,
    /// The step that the stand-by still needs once the primary runs.
    pub pending: Option<FailoverStep>,
}

/// Creates the shard's database unless it exists, and writes its settings. A stand-by that is missing or damaged does not keep the
/// primary from being started.
pub fn ensure_database(
    layout: &Layout,
    description: &Description,
    shard: &ShardPlace,
) -> anyhow::Result<PreparedDatabase> {
    let place = &description.postgres;
    let Servers { primary, standby } = description.servers(layout, shard);
    let (folder, user) = (&primary.folder, place.user.as_ref());
    let server = Server { bin_dir: place.bin_dir.clone(), major: place.major };
    if shard.system_identifier.is_none() && !folder.exists() {
        make(&server, folder, user, &read_passwords(layout, shard)?)
            .with_context(|| format!("cannot make the database of shard {}", shard.id))?;
    }
    let control = ControlFile::read(folder)?
        .with_context(|| format!("shard {}: {} is no database folder", shard.id, folder.display()))?;
    let pending = match (shard.pending(), standby) {
        (None, Some(standby)) => ensure_standby(folder, &control, &standby, user),
        (pending, _) => pending,
    };
    if let Some(step) = pending.filter(|_| shard.pending().is_none()) {
        let what = if step == FailoverStep::Rebuild { "is missing" } else { "holds no copy of its database" };
        note(&format!(
            "shard {}: the folder of its stand-by {what}. The primary starts without it, and the stand-by is rebuilt",
            shard.id
        ));
    }
    write_settings(layout, description, shard)?;
    Ok(PreparedDatabase { system_identifier: control.system_identifier, pending })
}

/// Copies the stand-by from a primary that is shut down, unless the stand-by exists. Returns how to rebuild a stand-by that cannot be
/// copied or is damaged.
fn ensure_standby(
    primary: &Path,
    control: &ControlFile,
    standby: &ServerPlace,
    user: Option<&ServiceUser>,
) -> Option<FailoverStep> {
    if !is_missing_or_empty(&standby.folder) {
        return stopped_server::check_system_identifier(&standby.folder, control.system_identifier)
            .is_err()
            .then_some(FailoverStep::SetAside);
    }
    if !control.is_shut_down() {
        return Some(FailoverStep::Rebuild);
    }
    let copied = standby::copy(primary, &standby.folder, user);
    if let Err(error) = &copied {
        note(&format!("cannot copy {} to {}: {error:#}", primary.display(), standby.folder.display()));
    }
    copied.is_err().then_some(FailoverStep::Rebuild)
}

/// Writes the settings of the existing servers of the shard. The settings do not change when the servers exchange their roles.
pub fn write_settings(layout: &Layout, description: &Description, shard: &ShardPlace) -> anyhow::Result<()> {
    let Servers { primary, standby } = description.servers(layout, shard);
    let user = description.postgres.user.as_ref();
    let sockets = primary.folder.with_file_name("sockets");
    create_owned(&sockets, 0o755, user)?;
    let count = description.shards.len() * if standby.is_some() { 2 } else { 1 };
    let both = || std::iter::once(&primary).chain(&standby);
    // A stand-by that is damaged is replaced.
    for server in both().filter(|server| stopped_server::control_file(&server.folder).exists()) {
        let mut settings = Settings::for_server(server.port, &sockets, count);
        if let (Some(other), Some(standby)) = (both().find(|other| other.port != server.port), &shard.standby) {
            settings.peer = Some(Peer {
                port: other.port,
                user: SUPERUSER,
                password: superuser_password(layout, shard)?,
                is_synchronous: standby.mode == Replication::Sync,
            });
        }
        write_owned(&server.folder.join("shardledger.conf"), &settings.text(), user)?;
    }
    Ok(())
}

/// The password of the role that initdb creates.
pub fn superuser_password(layout: &Layout, shard: &ShardPlace) -> anyhow::Result<String> {
    read_password(layout, shard, SUPERUSER)
}

fn read_password(layout: &Layout, shard: &ShardPlace, role: &str) -> anyhow::Result<String> {
    let path = layout.password(&shard.id, role);
    Ok(fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?.trim().to_owned())
}

struct Passwords {
    superuser: String,
    role: String,
}

/// Generates the missing passwords of the shard's database.
pub fn ensure_passwords(layout: &Layout, shard: &ShardPlace) -> anyhow::Result<()> {
    for role in [SUPERUSER, ROLE] {
        files::create_once(&layout.password(&shard.id, role), &new_password()?, Audience::Owner)?;
    }
    Ok(())
}

fn read_passwords(layout: &Layout, shard: &ShardPlace) -> anyhow::Result<Passwords> {
    Ok(Passwords { superuser: superuser_password(layout, shard)?, role: read_password(layout, shard, ROLE)? })
}

/// Works in a draft folder that is renamed at the end, so that a crash leaves no half-created database.
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
        // A sort order that no upgrade of the C library changes, and checksums that report damaged pages.
        .args(["--no-locale", "--data-checksums"]);
    process::clean_environment(&mut initdb);
    run(initdb, &draft, user, "")?;
    append(&draft.join("postgresql.conf"), INCLUDES)?;
    write_owned(&draft.join("shardledger.conf"), "", user)?;
    write_owned(&draft.join("pg_hba.conf"), HOST_BASED_AUTHENTICATION, user)?;

    let mut single = Command::new(server.program("postgres"));
    // `-j` ends a statement at a semicolon and an empty line. Without exit_on_error a failure would go unnoticed.
    single.args(["--single", "-j", "-c", "exit_on_error=on"]);
    // The control file records the setting, and a stand-by that is copied from here compares its own setting with it.
    single.arg("-c").arg(format!("max_connections={MAX_CONNECTIONS}"));
    single.arg("-D").arg(&draft).arg("postgres");
    process::clean_environment(&mut single);
    run(single, &draft, user, &bootstrap_sql(passwords))?;
    fs::rename(&draft, folder)?;
    // `cluster.json` will record the database, so a power failure after that must not undo the rename.
    let databases = folder.parent().context("the database folder has no parent")?;
    Ok(fs::File::open(databases)?.sync_all()?)
}

/// The SQL goes to standard input, because every user of the machine can read a command line.
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

/// Runs a program of PostgreSQL to its end. If it fails, the error contains its output.
pub(super) fn run(
    mut command: Command,
    folder: &Path,
    user: Option<&ServiceUser>,
    input: &str,
) -> anyhow::Result<()> {
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

pub(super) fn write_owned(path: &Path, text: &str, user: Option<&ServiceUser>) -> anyhow::Result<()> {
    files::replace(path, text, Audience::Owner)?;
    give(path, user)
}

/// Only letters and digits, so that a password needs no escaping in a URL and in SQL.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// The length of a password. 62^32 is a little more than 2^190.
const LENGTH: usize = 32;

/// A new password from the kernel's random numbers.
pub fn new_password() -> anyhow::Result<String> {
    let mut source = File::open("/dev/urandom").context("no source of random numbers")?;
    let mut password = String::with_capacity(LENGTH);
    let mut byte = [0_u8];
    while password.len() < LENGTH {
        source.read_exact(&mut byte)?;
        // 256 is no multiple of 62, so the remainder of a byte would favour the first letters. A byte that gives no letter is skipped.
        if let Some(letter) = ALPHABET.get(usize::from(byte[0] >> 2)) {
            password.push(char::from(*letter));
        }
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cluster of two shards with passwords and without databases.
    fn cluster() -> (tempfile::TempDir, Layout, Description) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let description = Description::for_tests(&layout);
        for shard in &description.shards {
            ensure_passwords(&layout, shard).unwrap();
        }
        (folder, layout, description)
    }

    #[test]
    fn a_first_up_that_was_interrupted_can_be_resumed() {
        let (_folder, layout, mut description) = cluster();
        check(&layout, &description).unwrap();
        // One database was created, the other was not.
        let made = description.database_folder(&layout, &description.shards[0]);
        fs::create_dir_all(made.join("global")).unwrap();
        fs::write(stopped_server::control_file(&made), [1; 64]).unwrap();
        check(&layout, &description).unwrap();
        description.shards[0].system_identifier = Some(u64::from_ne_bytes([1; 8]));
        check(&layout, &description).unwrap();
    }

    #[test]
    fn a_database_is_never_created_twice() {
        let (_folder, layout, mut description) = cluster();
        description.shards[1].system_identifier = Some(7);
        let refusal = check(&layout, &description).unwrap_err().to_string();
        let missing = description.database_folder(&layout, &description.shards[1]);
        for part in ["shard s1", &missing.to_string_lossy(), "down --wipe"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        assert!(!refusal.contains("shard s0"), "{refusal}");
        // The previous format of `cluster.json` has no identifier, but the log shows that the server has run.
        description.shards[1].system_identifier = None;
        fs::write(layout.log("postgres-s1"), "").unwrap();
        assert_eq!(check(&layout, &description).unwrap_err().to_string(), refusal);
    }

    #[test]
    fn a_damaged_or_missing_standby_is_rebuilt_and_does_not_keep_the_primary_from_starting() {
        let folder = tempfile::tempdir().unwrap();
        let (primary, standby) = (folder.path().join("s0"), folder.path().join("s0.second"));
        let database = |folder: &Path, identifier: u8, state: u8| {
            fs::create_dir_all(folder.join("global")).unwrap();
            let bytes = [[identifier; 8].as_slice(), &[0; 8], &[state, 0, 0, 0], &[0; 44]].concat();
            fs::write(stopped_server::control_file(folder), bytes).unwrap();
            ControlFile::read(folder).unwrap().unwrap()
        };
        let place = ServerPlace { name: "postgres-s0.second".to_owned(), folder: standby.clone(), port: 1 };
        let (shut_down, crashed) = (1, 6);
        let control = database(&primary, 1, crashed);
        assert_eq!(ensure_standby(&primary, &control, &place, None), Some(FailoverStep::Rebuild));
        fs::create_dir(&standby).unwrap();
        fs::write(standby.join("lost+found"), "").unwrap();
        assert_eq!(ensure_standby(&primary, &control, &place, None), Some(FailoverStep::SetAside));
        database(&standby, 2, crashed);
        assert_eq!(
            ensure_standby(&primary, &control, &place, None),
            Some(FailoverStep::SetAside),
            "another database"
        );
        database(&standby, 1, crashed);
        assert_eq!(ensure_standby(&primary, &control, &place, None), None);
        fs::remove_dir_all(&standby).unwrap();
        let control = database(&primary, 1, shut_down);
        assert_eq!(ensure_standby(&primary, &control, &place, None), None);
        assert!(standby.join("standby.signal").exists(), "a primary that is shut down is copied");
    }

    #[test]
    fn a_lost_password_is_not_replaced() {
        let (_folder, layout, mut description) = cluster();
        let made = description.database_folder(&layout, &description.shards[0]);
        fs::create_dir_all(made.join("global")).unwrap();
        fs::write(stopped_server::control_file(&made), [1; 64]).unwrap();
        description.shards[0].system_identifier = Some(u64::from_ne_bytes([1; 8]));
        fs::remove_file(layout.password("s0", ROLE)).unwrap();
        let refusal = check(&layout, &description).unwrap_err().to_string();
        assert!(refusal.contains("s0.shardledger.password is missing"), "{refusal}");
    }

    #[test]
    fn passwords_are_long_plain_and_new() {
        let (first, second) = (new_password().unwrap(), new_password().unwrap());
        assert_eq!(first.len(), LENGTH);
        assert!(first.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(first, second);
    }
}

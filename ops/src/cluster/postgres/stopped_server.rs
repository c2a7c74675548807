//! Reads the files of a server that does not run: `global/pg_control`, and the length of the log beyond a position. That length is what a
//! stand-by has not received.
//!
//! `global/pg_control` begins with the system identifier, which initdb generates and which never changes. The state of the
//! server is at byte 16 and the position of the latest checkpoint at byte 32 in every supported version.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

use super::server::run_as;
use crate::cluster::{description::Description, process};

/// The number of bytes that are read: identifier (8), version of the file (4), version of the catalog (4), state (4), padding (4), time (8),
/// position of the latest checkpoint (8).
const LENGTH: usize = 40;
const STATE_OFFSET: usize = 16;
const CHECKPOINT_OFFSET: usize = 32;
/// `DB_SHUTDOWNED`: the server wrote its last checkpoint and ended.
const SHUT_DOWN: u32 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlFile {
    pub system_identifier: u64,
    state: u32,
    /// Where the record of the latest checkpoint begins, in bytes since the beginning of the log. After a clean shutdown, this is the
    /// last record of the log.
    pub checkpoint: u64,
}

/// The reason why a folder is not the database folder of a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FolderFault {
    #[error(
        "its database folder {} is missing or empty, but the shard held a ledger: mount or restore the folder",
        .0.display()
    )]
    Missing(PathBuf),
    #[error(
        "its folder {} is no database folder (it has no global/pg_control), but the shard held a ledger: restore the folder",
        .0.display()
    )]
    NoDatabase(PathBuf),
    #[error(
        "its folder {} holds another database: its system identifier is {found}, the shard's database has {recorded}: \
         put the shard's own folder there",
        .folder.display()
    )]
    Foreign { folder: PathBuf, found: u64, recorded: u64 },
}

impl ControlFile {
    /// The control file of a database folder; `None` if the folder has none.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(control_file(folder)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            opened => opened?,
        };
        let mut bytes = [0; LENGTH];
        file.read_exact(&mut bytes)?;
        Ok(Some(Self::parse(bytes)))
    }

    /// Parses the file, which is in the byte order of the machine that wrote it.
    fn parse(bytes: [u8; LENGTH]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = bytes;
        let mut state = [0; 4];
        state.copy_from_slice(&bytes[STATE_OFFSET..STATE_OFFSET + 4]);
        let mut checkpoint = [0; 8];
        checkpoint.copy_from_slice(&bytes[CHECKPOINT_OFFSET..]);
        Self {
            system_identifier: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            state: u32::from_ne_bytes(state),
            checkpoint: u64::from_ne_bytes(checkpoint),
        }
    }

    /// Whether the server shut down cleanly, so that the files contain the whole database.
    pub fn is_shut_down(&self) -> bool {
        self.state == SHUT_DOWN
    }
}

pub fn control_file(folder: &Path) -> PathBuf {
    folder.join("global").join("pg_control")
}

/// Checks that the folder holds the database with the recorded identifier.
pub fn check_system_identifier(folder: &Path, recorded: u64) -> anyhow::Result<()> {
    match ControlFile::read(folder)? {
        Some(control) if control.system_identifier == recorded => Ok(()),
        Some(control) => {
            Err(FolderFault::Foreign { folder: folder.to_owned(), found: control.system_identifier, recorded }.into())
        }
        None if is_missing_or_empty(folder) => Err(FolderFault::Missing(folder.to_owned()).into()),
        None => Err(FolderFault::NoDatabase(folder.to_owned()).into()),
    }
}

/// Whether the folder is missing or empty, as it is while a volume is not mounted.
pub fn is_missing_or_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

/// The size of one file of the log, in bytes. This is the default of `initdb`.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// The number of log files for each step of the middle number in their names.
const SEGMENTS_IN_GROUP: u64 = 0x1_0000_0000 / SEGMENT_BYTES;
/// The message of `pg_waldump` if its first position is the end of the log.
const NO_RECORD: &str = "could not find a valid record after";

/// The bytes of log that the server of this folder wrote after `received`, in bytes since the beginning of the log. After a clean
/// shutdown, the control file has the end of the log. After a crash, `pg_waldump` looks for it. The server must not run.
///
/// # Errors
/// The folder is missing or damaged, or the log from `received` on has been removed.
pub fn bytes_beyond(description: &Description, folder: &Path, received: u64) -> anyhow::Result<u64> {
    let control = ControlFile::read(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let control = control.with_context(|| format!("{} has no global/pg_control", folder.display()))?;
    if control.is_shut_down() {
        return Ok(control.checkpoint.saturating_sub(received));
    }
    let log = folder.join("pg_wal");
    let files = log_files(&log)?;
    let timeline = files.iter().map(|(timeline, _)| *timeline).max().context("the log has no files")?;
    let is_needed = |file: &&(u32, u64)| file.0 == timeline && file.1 >= received / SEGMENT_BYTES;
    match files.iter().filter(is_needed).map(|(_, number)| *number).min() {
        // The log ends before the file in which the position lies.
        None => return Ok(0),
        Some(first) if first == received / SEGMENT_BYTES => {}
        Some(_) => bail!("{} does not have the log from {} on any more", log.display(), lsn(received)),
    }
    let program = description.postgres.bin_dir.join("pg_waldump");
    let mut dump = Command::new(&program);
    process::clean_environment(&mut dump);
    dump.args(["--stats", "--timeline", &timeline.to_string(), "--start", &lsn(received), "--path"]).arg(&log);
    dump.env("LC_ALL", "C").current_dir("/");
    run_as(&mut dump, description.postgres.user.as_ref());
    let output = dump.output().with_context(|| format!("cannot run {}", program.display()))?;
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match end_of(&said) {
        Some(end) => Ok(end.saturating_sub(received)),
        None => {
            ensure!(error.contains(NO_RECORD), "pg_waldump cannot read {}: {}", log.display(), error.trim());
            Ok(0)
        }
    }
}

/// The timeline and the number of each file of the log.
fn log_files(log: &Path) -> anyhow::Result<Vec<(u32, u64)>> {
    let entries = fs::read_dir(log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(entries.flatten().filter_map(|entry| log_file(entry.file_name().to_str()?)).collect())
}

/// `000000020000000000000013` is file 0x13 of timeline 2.
fn log_file(name: &str) -> Option<(u32, u64)> {
    let part = |from: usize| u32::from_str_radix(name.get(from..from + 8)?, 16).ok();
    if name.len() != 24 {
        return None;
    }
    Some((part(0)?, u64::from(part(8)?) * SEGMENTS_IN_GROUP + u64::from(part(16)?)))
}

/// The end in `WAL statistics between 0/15A0020 and 0/15B3290:`.
fn end_of(statistics: &str) -> Option<u64> {
    let line = statistics.lines().find(|line| line.starts_with("WAL statistics between "))?;
    let (high, low) = line.trim_end_matches(':').rsplit_once(' ')?.1.split_once('/')?;
    Some((u64::from_str_radix(high, 16).ok()? << 32) | u64::from_str_radix(low, 16).ok()?)
}

/// A position of the log as PostgreSQL writes it.
fn lsn(position: u64) -> String {
    format!("{:X}/{:X}", position >> 32, position & 0xFFFF_FFFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn database(identifier: u64, state: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("global")).unwrap();
        let mut bytes = identifier.to_ne_bytes().to_vec();
        bytes.extend([0; 8]);
        bytes.extend(state.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(0x0150_0718_u64.to_ne_bytes());
        bytes.extend([7; 100]);
        fs::write(control_file(folder.path()), bytes).unwrap();
        folder
    }

    #[test]
    fn the_identifier_the_state_and_the_checkpoint_are_read() {
        let running = database(7_300_000_000_000_000_001, 6);
        let control = ControlFile::read(running.path()).unwrap().unwrap();
        assert_eq!(control.system_identifier, 7_300_000_000_000_000_001);
        assert!(!control.is_shut_down());
        assert_eq!(control.checkpoint, 0x0150_0718);
        assert!(ControlFile::read(database(1, SHUT_DOWN).path()).unwrap().unwrap().is_shut_down());
    }

    #[test]
    fn each_fault_names_the_folder() {
        let fault = |folder: &Path, recorded| {
            check_system_identifier(folder, recorded).unwrap_err().downcast::<FolderFault>().unwrap()
        };
        let shard = database(1, SHUT_DOWN);
        assert!(check_system_identifier(shard.path(), 1).is_ok());
        let foreign = FolderFault::Foreign { folder: shard.path().to_owned(), found: 1, recorded: 2 };
        assert_eq!(fault(shard.path(), 2), foreign);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(fault(empty.path(), 1), FolderFault::Missing(empty.path().to_owned()));
        let missing = empty.path().join("s0");
        assert_eq!(fault(&missing, 1), FolderFault::Missing(missing.clone()));
        fs::write(empty.path().join("lost+found"), "").unwrap();
        assert_eq!(fault(empty.path(), 1), FolderFault::NoDatabase(empty.path().to_owned()));
    }

    #[test]
    fn positions_and_files_of_the_log_are_read_as_postgresql_writes_them() {
        assert_eq!(lsn(0x1_015B_3290), "1/15B3290");
        let said = "WAL statistics between 0/15A0020 and 1/15B3290:\nType  N\n";
        assert_eq!(end_of(said), Some(0x1_015B_3290));
        assert_eq!(end_of("first record is after 0/15A0003\n"), None);
        assert_eq!(log_file("000000020000000100000013"), Some((2, 256 + 0x13)));
        for other in ["00000002.history", "archive_status", "000000020000000100000013.partial"] {
            assert_eq!(log_file(other), None, "{other}");
        }
    }

    #[test]
    fn a_folder_without_a_database_cannot_be_compared() {
        let folder = tempfile::tempdir().unwrap();
        let layout = crate::cluster::Layout::create(folder.path()).unwrap();
        let description = Description::for_tests(&layout);
        let refusal = bytes_beyond(&description, &folder.path().join("gone"), 1).unwrap_err().to_string();
        assert!(refusal.contains("has no global/pg_control"), "{refusal}");
    }
}

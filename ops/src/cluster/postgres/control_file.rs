//! `global/pg_control`: the facts about a database folder that can be read while no server runs on it.
//!
//! The file begins with the system identifier, which initdb generates and which never changes. The state of the
//! server is at byte 16 and the position of the latest checkpoint at byte 32 in every supported version.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The bytes that are read: identifier (8), version of the file (4), version of the catalog (4), state (4), padding (4), time (8),
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

/// Why a folder is not the database folder of a shard.
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
        let mut file = match File::open(path(folder)) {
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

pub fn path(folder: &Path) -> PathBuf {
    folder.join("global").join("pg_control")
}

/// Checks that the folder holds the database with the recorded identifier.
pub fn check(folder: &Path, recorded: u64) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn database(identifier: u64, state: u32) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("global")).unwrap();
        let mut bytes = identifier.to_ne_bytes().to_vec();
        bytes.extend([0; 8]);
        bytes.extend(state.to_ne_bytes());
        bytes.extend([0; 12]);
        bytes.extend(0x0150_0718_u64.to_ne_bytes());
        bytes.extend([7; 100]);
        fs::write(path(folder.path()), bytes).unwrap();
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
        let fault = |folder: &Path, recorded| check(folder, recorded).unwrap_err().downcast::<FolderFault>().unwrap();
        let shard = database(1, SHUT_DOWN);
        assert!(check(shard.path(), 1).is_ok());
        let foreign = FolderFault::Foreign { folder: shard.path().to_owned(), found: 1, recorded: 2 };
        assert_eq!(fault(shard.path(), 2), foreign);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(fault(empty.path(), 1), FolderFault::Missing(empty.path().to_owned()));
        let missing = empty.path().join("s0");
        assert_eq!(fault(&missing, 1), FolderFault::Missing(missing.clone()));
        fs::write(empty.path().join("lost+found"), "").unwrap();
        assert_eq!(fault(empty.path(), 1), FolderFault::NoDatabase(empty.path().to_owned()));
    }
}

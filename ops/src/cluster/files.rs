//! Files that several processes share. A file is replaced as a whole, so a crash leaves the old text or the new text, and never a part of
//! either. A lock is held by an open file, so the kernel releases it when its holder dies.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Everyone,
    /// The owner of the file, because the file contains a secret.
    Owner,
}

/// Replaces the file's text.
pub fn replace(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    write(path, text, audience).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the file unless it exists, so that the edits of an operator stay.
pub fn create_once(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    if path.exists() { Ok(()) } else { replace(path, text, audience) }
}

fn write(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    // A link stays a link, and its target gets the new text.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = folder_of(path)?;
    // The folder is opened before anything is written, because the rename cannot be made durable without it.
    let opened_folder = File::open(folder)?;
    let draft = draft_of(path);
    let mode = match audience {
        Audience::Everyone => 0o644,
        Audience::Owner => 0o600,
    };
    // A draft that a crash left may have another mode.
    if let Err(error) = fs::remove_file(&draft)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error.into());
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
    // The program that reads the file may run as another user than this one.
    if let Ok(before) = fs::metadata(path) {
        let now = file.metadata()?;
        if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
            fchown(&file, Some(before.uid()), Some(before.gid()))
                .context("cannot give the new file to the owner of the old one")?;
        }
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    // The rename is durable only after the folder is synced.
    opened_folder.sync_all()?;
    Ok(())
}

/// The folder of a file; a bare name is in the working directory.
pub fn folder_of(path: &Path) -> anyhow::Result<&Path> {
    let folder = path.parent().context("it has no folder")?;
    Ok(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}

fn draft_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// A lock that is held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

const LOOKS_FOR_NAME: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes the lock and writes this process's id into the file. Returns `None` if another process holds the lock until `patience` is over.
/// [`lock_holder`] takes a shared lock for a moment, so a single attempt could fail although no process holds the lock.
pub async fn take_lock(path: &Path, patience: Duration) -> anyhow::Result<Option<Lock>> {
    let mut file = open(path)?;
    let deadline = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                return Ok(Some(Lock { _file: file }));
            }
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => tokio::time::sleep(LOOK_EVERY).await,
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// The process that holds the lock.
pub fn lock_holder(path: &Path) -> anyhow::Result<Option<i32>> {
    if !path.exists() {
        return Ok(None);
    }
    for _ in 0..LOOKS_FOR_NAME {
        match open(path)?.try_lock_shared() {
            Ok(()) => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if let Ok(pid) = fs::read_to_string(path)?.trim().parse() {
            return Ok(Some(pid));
        }
        // The holder has just taken the lock and has not written its process id yet.
        std::thread::sleep(Duration::from_millis(1));
    }
    bail!("{} is held, and names no process", path.display())
}

fn open(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_holder_at_a_time_and_none_after_it_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(lock_holder(&path).unwrap(), None);
        let held = take_lock(&path, Duration::ZERO).await.unwrap().unwrap();
        assert_eq!(lock_holder(&path).unwrap(), i32::try_from(std::process::id()).ok());
        assert!(take_lock(&path, Duration::from_millis(60)).await.unwrap().is_none());
        drop(held);
        // Another test of this process may be starting a program. Its child holds all open files for a moment, including the lock.
        let again = take_lock(&path, Duration::from_secs(10)).await.unwrap();
        assert!(again.is_some(), "the lock is free again");
    }
}

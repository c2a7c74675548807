//! Locks between processes, held by an open file: the kernel lets go of them when the holder dies, however it dies.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;

/// A lock that is held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A look at a lock is itself a moment's shared lock, so a single failure to take it proves nothing.
const ATTEMPTS: u32 = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);

/// Takes the lock and writes this process's id into the file; `None` when another process holds it.
pub async fn take(path: &Path) -> anyhow::Result<Option<Lock>> {
    let mut file = open(path)?;
    for attempt in 1..=ATTEMPTS {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.rewind()?;
                write!(file, "{}", std::process::id())?;
                return Ok(Some(Lock { _file: file }));
            }
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The process that holds the lock.
pub fn holder(path: &Path) -> anyhow::Result<Option<i32>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut file = open(path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(text.trim().parse().with_context(|| format!("{} names no process", path.display()))?))
        }
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
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

//! Locks between processes, held by an open file: the kernel lets go of them when the holder dies, however it dies.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Seek, Write},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

/// A lock that is held until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

const LOOKS_FOR_NAME: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Takes the lock and writes this process's id into the file; `None` when another process holds it all the while. A
/// look at a lock is itself a moment's shared lock, so there is no use in trying only once.
pub async fn take(path: &Path, patience: Duration) -> anyhow::Result<Option<Lock>> {
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
pub fn holder(path: &Path) -> anyhow::Result<Option<i32>> {
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
        // Taken a moment ago: its holder is about to write its name.
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
        assert_eq!(holder(&path).unwrap(), None);
        let held = take(&path, Duration::ZERO).await.unwrap().unwrap();
        assert_eq!(holder(&path).unwrap(), i32::try_from(std::process::id()).ok());
        assert!(take(&path, Duration::from_millis(60)).await.unwrap().is_none());
        drop(held);
        // Another test of this process may be starting a program, which has all files for a moment, the lock's included.
        let again = take(&path, Duration::from_secs(10)).await.unwrap();
        assert!(again.is_some(), "nobody holds it any more");
    }
}

//! The file of an import, and the first reading of the file.

use std::{
    fs::{self, File, TryLockError},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::{Kind, rows::RowReader};

const BUFFER_BYTES: usize = 256 * 1024;

/// A file, locked so that no other import works on it.
pub struct SourceFile {
    path: PathBuf,
    /// Holds the lock, which the kernel releases when the process ends in any way.
    lock: File,
    /// The length and the time of the last change when the file was opened.
    state: (u64, SystemTime),
}

/// The result of the first reading.
#[derive(Debug, PartialEq, Eq)]
pub struct Survey {
    /// The SHA-256 of the file's bytes in hexadecimal digits, as `sha256sum` prints it.
    pub sha256: String,
    pub rows: u64,
}

/// Passes bytes on and hashes them.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl SourceFile {
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("another import works on {}", path.display()),
            Err(TryLockError::Error(error)) => return Err(error).context(path.display().to_string()),
        }
        let state = state(&file)?;
        Ok(Self { path: path.to_owned(), lock: file, state })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file beside this one. `balances.csv` and `rejected.csv` give `balances.rejected.csv`.
    pub fn beside(&self, ending: &str) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.strip_suffix(".csv").unwrap_or(&name);
        self.path.with_file_name(format!("{stem}.{ending}"))
    }

    /// Reads the file from its beginning. The header has been read when this returns.
    pub fn rows<K: Kind>(&self) -> anyhow::Result<RowReader<BufReader<File>>> {
        let input = BufReader::with_capacity(BUFFER_BYTES, File::open(&self.path)?);
        RowReader::new(input, K::REQUIRED, K::OPTIONAL).with_context(|| self.path.display().to_string())
    }

    /// Reads the whole file once and shows the kind every row.
    pub fn survey<K: Kind>(&self, kind: &mut K) -> anyhow::Result<Survey> {
        let mut input = Hashing { inner: File::open(&self.path)?, hash: Sha256::new() };
        let mut rows = 0;
        let mut read = || -> anyhow::Result<()> {
            let buffered = BufReader::with_capacity(BUFFER_BYTES, &mut input);
            let mut reader = RowReader::new(buffered, K::REQUIRED, K::OPTIONAL)?;
            while let Some(row) = reader.next_row()? {
                rows += 1;
                kind.survey(&row);
            }
            Ok(())
        };
        read().with_context(|| self.path.display().to_string())?;
        let sha256 = input.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.must_be_unchanged()?;
        Ok(Survey { sha256, rows })
    }

    /// Fails if the file was written to since it was opened, because recorded places would then be wrong.
    pub fn must_be_unchanged(&self) -> anyhow::Result<()> {
        let is_same_file = state(&File::open(&self.path)?)? == self.state && state(&self.lock)? == self.state;
        if is_same_file { Ok(()) } else { bail!("{} was changed while it was imported", self.path.display()) }
    }
}

fn state(file: &File) -> io::Result<(u64, SystemTime)> {
    let metadata: fs::Metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified()?))
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::accounts::Accounts;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn the_first_reading_counts_rows_and_hashes_the_file() {
        let (_folder, path) = file("id,asset\nalice,USD\nbob\n");
        let survey = SourceFile::open(&path).unwrap().survey(&mut Accounts::new().unwrap()).unwrap();
        assert_eq!(survey.rows, 2);
        assert_eq!(survey.sha256, "f729722af42f8ef5f7e3eca14a8287e8b1c00a0db2694943d1eedc0b4cf76259");
    }

    #[test]
    fn two_imports_do_not_work_on_one_file_at_the_same_time() {
        let (_folder, path) = file("id,asset\n");
        let first = SourceFile::open(&path).unwrap();
        assert!(SourceFile::open(&path).err().unwrap().to_string().contains("another import"));
        drop(first);
        assert!(SourceFile::open(&path).is_ok());
    }

    #[test]
    fn a_file_that_was_written_to_is_noticed() {
        let (_folder, path) = file("id,asset\nalice,USD\n");
        let source = SourceFile::open(&path).unwrap();
        source.must_be_unchanged().unwrap();
        fs::write(&path, "id,asset\nalice,USD\nbob,USD\n").unwrap();
        assert!(source.must_be_unchanged().unwrap_err().to_string().contains("was changed"));
    }

    #[test]
    fn files_beside_it_are_named_after_it() {
        for (name, expected) in
            [("b.csv", "b.rejected.csv"), ("b", "b.rejected.csv"), ("b.txt", "b.txt.rejected.csv")]
        {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(name), "").unwrap();
            let source = SourceFile::open(&folder.path().join(name)).unwrap();
            assert_eq!(source.beside("rejected.csv"), folder.path().join(expected));
        }
    }
}

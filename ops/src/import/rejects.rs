//! The rows that an import rejects. `FILE.rejected.csv` has the line, the reason and the values of each row, in the order of the lines. The
//! first rejected rows are also printed on standard error.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;

use super::rows::CsvRow;
use crate::output;

/// The number of rows that are printed on standard error.
const SHOWN: u64 = 10;

/// The list of rejected rows.
pub struct Rejects {
    /// `None`: a dry run writes no file.
    path: Option<PathBuf>,
    names: Vec<String>,
    file: Option<File>,
    bytes: u64,
    shown: u64,
    show: u64,
}

impl Rejects {
    /// Continues the file of an interrupted run after its first `bytes` bytes. 0 begins a new list.
    pub fn open(path: PathBuf, names: &[String], bytes: u64) -> anyhow::Result<Self> {
        let file = if bytes == 0 { remove(&path)? } else { Some(reopen(&path, bytes)?) };
        Ok(Self { path: Some(path), names: names.to_vec(), file, bytes, shown: 0, show: SHOWN })
    }

    /// A list that prints all rows and writes no file.
    pub fn shown_only() -> Self {
        Self { path: None, names: Vec::new(), file: None, bytes: 0, shown: 0, show: u64::MAX }
    }

    /// The length of the file so far, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref().filter(|_| self.bytes > 0)
    }

    /// Appends rows with their reasons.
    pub fn add(&mut self, rows: &[(CsvRow, String)], bar: &ProgressBar) -> anyhow::Result<()> {
        for (row, reason) in rows {
            if self.shown < self.show {
                bar.suspend(|| output::note(&format!("line {}: {reason}", row.line)));
            } else if self.shown == self.show {
                let path = self.path.as_deref().unwrap_or(Path::new("")).display();
                bar.suspend(|| output::note(&format!("further rows are in {path}")));
            }
            self.shown += 1;
        }
        let Some(path) = self.path.as_deref().filter(|_| !rows.is_empty()) else { return Ok(()) };
        let mut text = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
        if self.bytes == 0 {
            text.write_record(["line", "reason"].into_iter().chain(self.names.iter().map(String::as_str)))?;
        }
        for (row, reason) in rows {
            let line = row.line.to_string();
            let values = row.values.iter().map(String::as_str);
            text.write_record([line.as_str(), reason.as_str()].into_iter().chain(values))?;
        }
        let text = text.into_inner().context("rows that are left out")?;
        let mut write = || -> std::io::Result<()> {
            let mut file = match self.file.take() {
                Some(file) => file,
                None => OpenOptions::new().write(true).create(true).truncate(true).open(path)?,
            };
            file.write_all(&text)?;
            self.file = Some(file);
            Ok(())
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Makes the added rows durable.
    pub fn sync(&self) -> anyhow::Result<()> {
        match &self.file {
            Some(file) => Ok(file.sync_data()?),
            None => Ok(()),
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<Option<File>> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(None),
    }
}

/// Opens the file and truncates it to `bytes`. An interrupted run appended the rest after its last progress, and those rows are read again.
fn reopen(path: &Path, bytes: u64) -> anyhow::Result<File> {
    let describe = || format!("{}, of the interrupted import (--restart begins it again)", path.display());
    let mut file = OpenOptions::new().write(true).open(path).with_context(describe)?;
    ensure!(file.metadata()?.len() >= bytes, "{} has become shorter", describe());
    file.set_len(bytes)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(line: u64) -> Vec<(CsvRow, String)> {
        vec![(CsvRow { line, ..CsvRow::of(&[("id", "a,b"), ("asset", "USD")]) }, "no \"id\"".to_owned())]
    }

    #[test]
    fn the_list_goes_on_where_the_progress_of_an_interrupted_run_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.rejected.csv");
        let names = ["id".to_owned(), "asset".to_owned()];
        let bar = ProgressBar::hidden();
        let mut first = Rejects::open(path.clone(), &names, 0).unwrap();
        assert_eq!(first.path(), None);
        first.add(&left_out(3), &bar).unwrap();
        let bytes = first.bytes();
        first.add(&left_out(5), &bar).unwrap();
        drop(first);

        let mut second = Rejects::open(path.clone(), &names, bytes).unwrap();
        second.add(&left_out(5), &bar).unwrap();
        second.add(&left_out(7), &bar).unwrap();
        let row = |line: u64| format!("{line},\"no \"\"id\"\"\",\"a,b\",USD\n");
        let expected = format!("line,reason,id,asset\n{}{}{}", row(3), row(5), row(7));
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        assert_eq!(second.bytes(), expected.len() as u64);
        assert!(Rejects::open(path.clone(), &names, 10_000).err().unwrap().to_string().contains("shorter"));

        let third = Rejects::open(path.clone(), &names, 0).unwrap();
        assert_eq!(third.path(), None);
        assert!(!path.exists(), "a list of an earlier run is left");
    }
}

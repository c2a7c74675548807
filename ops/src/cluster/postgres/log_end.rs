//! How far the log of a server that does not run goes beyond a position: what a stand-by has not received of it.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, bail, ensure};

use super::{control_file::ControlFile, user::run_as};
use crate::cluster::{description::Description, environment};

/// The size of one file of the log, in bytes. `initdb` chooses it unless it is told otherwise.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Files of the log for each step of the middle number in their names.
const SEGMENTS_IN_GROUP: u64 = 0x1_0000_0000 / SEGMENT_BYTES;
/// What `pg_waldump` says if its first position is the end of the log.
const NO_RECORD: &str = "could not find a valid record after";

/// The bytes of log that the server of this folder wrote after `received`, in bytes since the beginning of the log. After a clean
/// shutdown, the control file has the end of the log. After a crash, `pg_waldump` looks for it. The server must not run.
///
/// # Errors
/// The folder is missing or damaged, or the log from `received` on is not there any more.
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
    environment::clean(&mut dump);
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

/// Timeline and number of each file of the log.
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

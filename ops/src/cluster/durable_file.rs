//! Files that are replaced as a whole: a crash leaves the old text or the new, never half of one.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    Everyone,
    /// The file carries a secret.
    Owner,
}

/// Replaces the file's text.
pub fn replace(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    write(path, text, audience).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the file unless it is there: what an operator has edited stays as it is.
pub fn create_once(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    if path.exists() { Ok(()) } else { replace(path, text, audience) }
}

fn write(path: &Path, text: &str, audience: Audience) -> anyhow::Result<()> {
    // A link stays, and leads to the new text.
    let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let folder = folder_of(path)?;
    // Before anything is written: without the folder, the rename could not be made durable.
    let opened_folder = File::open(folder)?;
    let draft = draft_of(path);
    let mode = match audience {
        Audience::Everyone => 0o644,
        Audience::Owner => 0o600,
    };
    // A draft left by a crash may carry another mode.
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
    // The rename itself is durable only once the folder is.
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

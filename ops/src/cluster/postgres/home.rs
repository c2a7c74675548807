//! The location of a cluster's databases: its data folder, or another folder if the user that runs PostgreSQL cannot
//! reach the data folder.
//!
//! A home elsewhere has a marker that names its data folder and its cluster, because the data folder can be moved or
//! copied without it.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use shard_map::ClusterId;

use super::server::{ServiceUser, can_reach};
use crate::{
    cluster::{
        description::Description,
        files::{self, Audience},
        layout::Layout,
    },
    output::note,
};

/// The parent of homes elsewhere, used if the service user cannot reach the data folder (a clone below /root, for
/// example).
pub const HOMES_ELSEWHERE: &str = "/var/lib/shardledger";
/// The text of [`Home::Here`] in `cluster.json`.
const HERE: &str = "here";
const MARKER: &str = "owner.json";

/// The folder that contains the databases' folder `pg`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Home {
    /// The data folder, wherever it is.
    Here,
    /// This folder.
    Elsewhere(PathBuf),
}

/// The marker file of a home elsewhere.
#[derive(Debug, Serialize, Deserialize)]
struct Owner {
    data_dir: PathBuf,
    cluster: ClusterId,
}

impl TryFrom<String> for Home {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            HERE => Ok(Self::Here),
            path if path.starts_with('/') => Ok(Self::Elsewhere(path.into())),
            _ => Err(format!("postgres.home is {text:?}, neither {HERE:?} nor an absolute path")),
        }
    }
}

impl From<Home> for String {
    fn from(home: Home) -> Self {
        match home {
            Home::Here => HERE.to_owned(),
            Home::Elsewhere(path) => path.to_string_lossy().into_owned(),
        }
    }
}

impl Home {
    /// The home of new databases: the data folder if the user can reach it.
    pub fn choose(layout: &Layout, user: Option<&ServiceUser>) -> anyhow::Result<Self> {
        Ok(match user {
            Some(user) if !can_reach(user, layout.root())? => Self::Elsewhere(own_elsewhere(layout)?),
            _ => Self::Here,
        })
    }

    /// The home that a copied data folder's own databases would have.
    pub fn of_copy(layout: &Layout, recorded: &Self) -> anyhow::Result<Self> {
        let link = layout.postgres_link();
        let is_real = fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir());
        let elsewhere = own_elsewhere(layout)?;
        let is_here = is_real || (*recorded == Self::Here && !elsewhere.join("pg").exists());
        Ok(if is_here { Self::Here } else { Self::Elsewhere(elsewhere) })
    }

    pub fn folder(&self, layout: &Layout) -> PathBuf {
        match self {
            Self::Here => layout.root().to_owned(),
            Self::Elsewhere(path) => path.clone(),
        }
    }

    /// Creates the databases' folder, and a link to it in the data folder if it is elsewhere.
    pub fn create(&self, layout: &Layout) -> anyhow::Result<()> {
        let databases = self.folder(layout).join("pg");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&databases)
            .with_context(|| format!("cannot create {}", databases.display()))?;
        if *self == Self::Here {
            return Ok(());
        }
        let link = layout.postgres_link();
        match fs::symlink_metadata(&link) {
            Ok(found) if !found.is_symlink() => return Ok(()),
            Ok(_) if fs::read_link(&link)? == databases => return Ok(()),
            // The link in a copied folder leads to the original's databases.
            Ok(_) => fs::remove_file(&link)?,
            Err(_) => {}
        }
        symlink(&databases, &link).with_context(|| format!("cannot make the link {}", link.display()))
    }

    /// Writes the marker of a home elsewhere. Replaces a marker that names the folder from which this cluster was
    /// moved.
    pub fn claim(&self, layout: &Layout, cluster: ClusterId) -> anyhow::Result<()> {
        let Self::Elsewhere(home) = self else { return Ok(()) };
        if let Some(other) = self.other_owner(layout)? {
            bail!("the databases in {} belong to the cluster in {}", home.display(), other.display());
        }
        if let Some(owner) = Owner::read(home)? {
            ensure!(
                owner.cluster == cluster,
                "the databases in {} belong to cluster {}, which was in {}; this is cluster {cluster}",
                home.display(),
                owner.cluster,
                owner.data_dir.display()
            );
        }
        let owner = Owner { data_dir: layout.root().to_owned(), cluster };
        files::replace(&home.join(MARKER), &serde_json::to_string_pretty(&owner)?, Audience::Everyone)
    }

    /// Another existing data folder that uses this home, if there is one.
    pub fn other_owner(&self, layout: &Layout) -> anyhow::Result<Option<PathBuf>> {
        let Self::Elsewhere(home) = self else { return Ok(None) };
        let Some(owner) = Owner::read(home)? else { return Ok(None) };
        if owner.data_dir == layout.root() || is_same_file(&owner.data_dir, layout.root()) {
            return Ok(None);
        }
        // The folder may be gone or may hold another cluster, and the marker may have been copied with the home.
        let uses_it = Description::peek(&owner.data_dir)
            .is_some_and(|found| found.cluster == owner.cluster && found.postgres.home == *self);
        Ok(uses_it.then_some(owner.data_dir))
    }

    /// Removes a home elsewhere, unless another data folder uses it.
    pub fn remove(&self, layout: &Layout) -> anyhow::Result<()> {
        let Self::Elsewhere(home) = self else { return Ok(()) };
        ensure!(
            home.parent() == Some(Path::new(HOMES_ELSEWHERE)),
            "{} is not where databases of a cluster belong",
            home.display()
        );
        if let Some(other) = self.other_owner(layout)? {
            note(&format!("{} is kept: it belongs to the cluster in {}", home.display(), other.display()));
            return Ok(());
        }
        match fs::remove_dir_all(home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", home.display()))
            }
            _ => {
                // This succeeds only for an empty folder, after the last home was removed.
                let _ = fs::remove_dir(HOMES_ELSEWHERE);
                Ok(())
            }
        }
    }

    /// The folders of all databases in this home, whichever cluster created them.
    pub fn databases(&self, layout: &Layout) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder(layout).join("pg")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|folder| folder.join("PG_VERSION").is_file()).collect()
    }
}

impl Owner {
    fn read(home: &Path) -> anyhow::Result<Option<Self>> {
        let path = home.join(MARKER);
        match fs::read_to_string(&path) {
            Ok(text) => {
                Ok(Some(serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// The home elsewhere that is named after the data folder, or the next free name if a cluster that was moved away from this folder still uses
/// that home.
pub fn own_elsewhere(layout: &Layout) -> anyhow::Result<PathBuf> {
    let first = named_after(layout.root());
    let mut home = first.clone();
    let mut number = 1_u32;
    while Home::Elsewhere(home.clone()).other_owner(layout)?.is_some() {
        number += 1;
        home = first.with_extension(number.to_string());
    }
    Ok(home)
}

fn named_after(root: &Path) -> PathBuf {
    let name = twox_hash::XxHash3_64::oneshot(root.as_os_str().as_encoded_bytes());
    Path::new(HOMES_ELSEWHERE).join(format!("{name:016x}"))
}

/// Whether two paths lead to the same file or folder, for example through links, bind mounts or hard links.
pub fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_data_folder_has_its_own_home() {
        let (one, other) = (named_after(Path::new("/root/a")), named_after(Path::new("/root/b")));
        assert_ne!(one, other);
        assert_eq!(one, named_after(Path::new("/root/a")));
        assert!(one.starts_with(HOMES_ELSEWHERE));
    }

    #[test]
    fn a_home_is_written_as_here_or_as_a_path() {
        for (home, text) in [(Home::Here, r#""here""#), (Home::Elsewhere("/var/lib/x".into()), r#""/var/lib/x""#)] {
            assert_eq!(serde_json::to_string(&home).unwrap(), text);
            assert_eq!(serde_json::from_str::<Home>(text).unwrap(), home);
        }
        assert!(serde_json::from_str::<Home>(r#""var""#).is_err());
    }

    #[test]
    fn a_hard_link_is_the_same_file_and_a_copy_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, copy] = ["file", "link", "copy"].map(|name| folder.path().join(name));
        fs::write(&file, "text").unwrap();
        fs::hard_link(&file, &link).unwrap();
        fs::copy(&file, &copy).unwrap();
        assert!(is_same_file(&file, &link));
        assert!(!is_same_file(&file, &copy));
        assert!(!is_same_file(&file, &folder.path().join("none")));
    }
}

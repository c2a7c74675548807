//! Where a cluster's files lie under its data folder.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// Everything a cluster may put into its data folder: `up` refuses a folder that holds anything else, `down --wipe`
/// removes nothing else. `cluster.json` goes last: a removal that is cut short can be taken up again.
const ENTRIES: [&str; 8] = ["shard-map.toml", "config", "log", "pg", "postgresql", "run", "secrets", "cluster.json"];

/// The data folder of one cluster, by absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// A folder by its absolute path, whatever is there.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder of a cluster that is there.
    pub fn find(root: &Path) -> anyhow::Result<Self> {
        let layout = Self { root: root.canonicalize().unwrap_or_else(|_| root.to_owned()) };
        ensure!(
            layout.description().is_file(),
            "there is no cluster in {}: `shardctl up` starts one, --data-dir names another folder",
            root.display()
        );
        Ok(layout)
    }

    /// The folder of a cluster, made where there is none; refused where it holds something that is no cluster's.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        // Processes are recognised by the paths on their command lines, so there must be one spelling of each.
        let layout = Self { root: root.canonicalize()? };
        layout.refuse_strangers()?;
        layout.create_folders()?;
        layout.let_through()?;
        Ok(layout)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the cluster consists of.
    pub fn description(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub fn shard_map(&self) -> PathBuf {
        self.root.join("shard-map.toml")
    }

    /// Configuration of a router or node.
    pub fn config(&self, process: &str) -> PathBuf {
        self.root.join("config").join(format!("{process}.toml"))
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(format!("{process}.log"))
    }

    /// Password of a database role.
    pub fn password(&self, shard: &str, role: &str) -> PathBuf {
        self.root.join("secrets").join(format!("{shard}.{role}.password"))
    }

    /// Held by the one `up` or `down` that is at work.
    pub fn command_lock(&self) -> PathBuf {
        self.root.join("run").join("command.lock")
    }

    /// Held by the supervisor as long as it lives; the text is its process id.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.root.join("run").join("supervisor.pid")
    }

    /// What the supervisor is doing, for people and for `up`.
    pub fn report(&self) -> PathBuf {
        self.root.join("run").join("processes.json")
    }

    /// Where the databases are seen from the data folder; a link where they had to lie elsewhere.
    pub fn postgres_link(&self) -> PathBuf {
        self.root.join("pg")
    }

    fn refuse_strangers(&self) -> anyhow::Result<()> {
        if self.description().is_file() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.root)? {
            let name = entry?.file_name();
            ensure!(
                ENTRIES.iter().any(|known| name == *known),
                "{} holds {}, which belongs to no cluster: choose an empty or new folder with --data-dir",
                self.root.display(),
                name.display()
            );
        }
        Ok(())
    }

    fn create_folders(&self) -> anyhow::Result<()> {
        for (folder, mode) in [("config", 0o700), ("log", 0o700), ("run", 0o755), ("secrets", 0o700)] {
            let path = self.root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok(())
    }

    /// The databases may run as another user, who must be able to pass through the data folder. What is secret in it
    /// has its own modes.
    fn let_through(&self) -> anyhow::Result<()> {
        let mode = fs::metadata(&self.root)?.permissions().mode();
        if mode & 0o011 != 0o011 {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(mode | 0o011))?;
        }
        Ok(())
    }

    /// Removes all that belongs to the cluster, and the folder where nothing else is left in it.
    pub fn wipe(&self) -> anyhow::Result<()> {
        for entry in ENTRIES {
            let path = self.root.join(entry);
            let removed = match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        match fs::remove_dir(&self.root) {
            Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
                Err(error).with_context(|| format!("cannot remove {}", self.root.display()))
            }
            _ => Ok(()),
        }
    }
}

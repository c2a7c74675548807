//! The locations of a cluster's files in its data folder.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

/// Everything that a cluster may put into its data folder. `up` refuses a folder with anything else, and `down
/// --wipe` removes nothing else. `cluster.json` is removed last, so that an interrupted removal can be resumed.
const ENTRIES: [&str; 10] =
    ["shard-map.toml", "keys.toml", "config", "log", "pg", "postgresql", "run", "secrets", "tls", "cluster.json"];

/// The data folder of one cluster, by absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// A folder by its absolute path, without looking at its content.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder of an existing cluster.
    pub fn find(root: &Path) -> anyhow::Result<Self> {
        let layout = Self { root: root.canonicalize().unwrap_or_else(|_| root.to_owned()) };
        ensure!(
            layout.description().is_file(),
            "there is no cluster in {}: start one with `shardctl up`, or name another folder with --data-dir",
            root.display()
        );
        Ok(layout)
    }

    /// The folder of a cluster, created if it is missing. Refuses a folder that contains anything else.
    pub fn create(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot create {}", root.display()))?;
        // Processes are recognised by the paths on their command lines, so each path must have one spelling.
        let layout = Self { root: root.canonicalize()? };
        layout.refuse_strangers()?;
        layout.create_folders()?;
        layout.let_through()?;
        Ok(layout)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The description of the cluster.
    pub fn description(&self) -> PathBuf {
        self.root.join("cluster.json")
    }

    pub fn shard_map(&self) -> PathBuf {
        self.root.join("shard-map.toml")
    }

    /// The configuration of a router or node.
    pub fn config(&self, process: &str) -> PathBuf {
        self.root.join("config").join(format!("{process}.toml"))
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.root.join("log").join(format!("{process}.log"))
    }

    /// The password of a database role.
    pub fn password(&self, shard: &str, role: &str) -> PathBuf {
        self.root.join("secrets").join(format!("{shard}.{role}.password"))
    }

    /// The authority of the cluster and its certificates, in a cluster with TLS.
    pub fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// The file that a running `up` or `down` locks.
    pub fn command_lock(&self) -> PathBuf {
        self.root.join("run").join("command.lock")
    }

    /// The file that the running supervisor locks. The text is the supervisor's process id.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.root.join("run").join("supervisor.pid")
    }

    /// The supervisor's report, for operators and for `up`.
    pub fn report(&self) -> PathBuf {
        self.root.join("run").join("processes.json")
    }

    /// The path of the databases in the data folder. It is a link if the databases are elsewhere.
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

    /// Lets another user, who may run the databases, pass through the data folder. Secret files in it have their own
    /// modes.
    fn let_through(&self) -> anyhow::Result<()> {
        let mode = fs::metadata(&self.root)?.permissions().mode();
        if mode & 0o011 != 0o011 {
            fs::set_permissions(&self.root, fs::Permissions::from_mode(mode | 0o011))?;
        }
        Ok(())
    }

    /// Removes everything that belongs to the cluster, and the folder if nothing else is left in it.
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

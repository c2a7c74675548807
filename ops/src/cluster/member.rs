//! The processes of a cluster: how each one is started, recognised and stopped. Routers are stopped first, databases last.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::{
    description::{Description, ServerPlace, Servers, ShardPlace},
    layout::Layout,
    postgres::{
        server::{ServiceUser, run_as},
        standby, stopped_server,
    },
    process::{self, Process, ProcessTable},
};

/// A log larger than this is renamed to `.1` before the process starts again.
const LOG_LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// How many seconds `init` may wait for the nodes of the other shards. A busy machine starts them one after another.
const INIT_PATIENCE_S: &str = "90";

/// A service drains when it receives SIGTERM.
static STOPPING_A_SERVICE: [(Signal, Duration); 2] =
    [(Signal::TERM, Duration::from_secs(40)), (Signal::KILL, Duration::from_secs(5))];
/// A fast shutdown ends the sessions and writes a checkpoint; an immediate one recovers at the next start.
static STOPPING_POSTGRES: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(90)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(5)),
];

/// The role of a process, in the order of starting. Processes are stopped in the opposite order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessRole {
    Postgres,
    Node,
    Router,
}

/// One process of the cluster, running or not.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: String,
    pub role: ProcessRole,
    program: PathBuf,
    /// The arguments name a file or folder of this cluster, so no other cluster has the same command line.
    arguments: Vec<String>,
    user: Option<ServiceUser>,
    log: PathBuf,
    /// The folder of a server, and the system identifier that the folder must have. `None` for other processes.
    database: Option<(PathBuf, u64)>,
}

impl ProcessRole {
    /// The order of stopping: each process stops before the ones it depends on.
    pub const STOP_ORDER: [Self; 3] = [Self::Router, Self::Node, Self::Postgres];

    /// The signals to send, and how long to wait after each.
    pub fn ways_to_stop(self) -> &'static [(Signal, Duration)] {
        match self {
            Self::Router | Self::Node => &STOPPING_A_SERVICE,
            Self::Postgres => &STOPPING_POSTGRES,
        }
    }
}

impl Member {
    /// The servers that must not run, because a failover or a rebuild still has to replace their folders. A supervisor that was killed during
    /// a failover may have left one running.
    pub fn unstarted(layout: &Layout, description: &Description) -> Vec<Self> {
        let pending = description.shards.iter().filter(|shard| shard.pending().is_some());
        let server =
            |shard| Some(Self::server(layout, description, shard, &description.servers(layout, shard).standby?));
        pending.filter_map(server).collect()
    }

    /// Every process that the supervisor keeps running.
    pub fn all(layout: &Layout, description: &Description) -> Vec<Self> {
        let postgres = description.shards.iter().flat_map(|shard| {
            let Servers { primary, standby } = description.servers(layout, shard);
            let running = std::iter::once(primary).chain(standby.filter(|_| shard.pending().is_none()));
            running.map(|server| Self::server(layout, description, shard, &server)).collect::<Vec<_>>()
        });
        let service = |name: String, role: ProcessRole, program: &str| Self {
            role,
            program: description.bin_dir.join(program),
            arguments: vec!["--config".to_owned(), text(&layout.config(&name))],
            user: None,
            log: layout.log(&name),
            name,
            database: None,
        };
        let nodes = description.shards.iter().flat_map(|shard| {
            std::iter::once(shard.node_name()).chain(shard.second_node.map(|_| shard.second_node_name()))
        });
        let nodes = nodes.map(|name| service(name, ProcessRole::Node, "shard-node"));
        let routers =
            description.routers.iter().map(|router| service(router.name.clone(), ProcessRole::Router, "router"));
        postgres.chain(nodes).chain(routers).collect()
    }

    /// One PostgreSQL of a shard.
    pub fn server(layout: &Layout, description: &Description, shard: &ShardPlace, server: &ServerPlace) -> Self {
        let place = &description.postgres;
        Self {
            name: server.name.clone(),
            role: ProcessRole::Postgres,
            program: place.bin_dir.join("postgres"),
            arguments: vec!["-D".to_owned(), text(&server.folder)],
            user: place.user.clone(),
            log: layout.log(&server.name),
            database: shard.system_identifier.map(|identifier| (server.folder.clone(), identifier)),
        }
    }

    #[cfg(test)]
    pub fn for_tests(name: &str, role: ProcessRole, program: &str, arguments: Vec<String>, log: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            role,
            program: PathBuf::from(program),
            arguments,
            user: None,
            log,
            database: None,
        }
    }

    /// The process, if it runs. A server is found by its folder as well, because another program may have started it.
    pub fn running(&self, table: &ProcessTable) -> Option<Process> {
        let in_folder = || Process::server_in(&self.database.as_ref()?.0);
        table.find(&self.program, &self.arguments).or_else(in_folder)
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The command that starts the process. Fails for a server whose database folder is missing or holds another
    /// database.
    pub fn command(&self) -> anyhow::Result<Command> {
        if let Some((folder, identifier)) = &self.database {
            stopped_server::check_system_identifier(folder, *identifier)?;
        }
        self.prepared(&self.arguments)
    }

    /// The command that initialises a node's database; it ends by itself.
    pub fn init_command(&self, shard_map: &Path) -> anyhow::Result<Command> {
        let mut arguments = vec!["init".to_owned()];
        arguments.extend(self.arguments.iter().cloned());
        arguments.extend(["--map".to_owned(), text(shard_map), "--wait".to_owned(), INIT_PATIENCE_S.to_owned()]);
        self.prepared(&arguments)
    }

    /// The command that migrates a node's database to the schema of this version; it ends by itself.
    pub fn migrate_command(&self) -> anyhow::Result<Command> {
        let mut arguments = vec!["migrate".to_owned(), "--apply".to_owned()];
        arguments.extend(self.arguments.iter().cloned());
        self.prepared(&arguments)
    }

    /// The command that accepts a node's database although the database lacks acknowledged payments. The command ends
    /// by itself.
    pub fn accept_loss_command(&self) -> anyhow::Result<Command> {
        let mut arguments = vec!["accept".to_owned(), "--accept-loss".to_owned()];
        arguments.extend(self.arguments.iter().cloned());
        arguments.extend(["--wait".to_owned(), INIT_PATIENCE_S.to_owned()]);
        self.prepared(&arguments)
    }

    fn prepared(&self, arguments: &[String]) -> anyhow::Result<Command> {
        let log = self.open_log().with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            // The user of the process may be unable to enter any other folder.
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A terminal's Ctrl-C reaches the supervisor only, which stops the others in order.
            .process_group(0);
        process::clean_environment(&mut command);
        run_as(&mut command, self.user.as_ref());
        Ok(command)
    }

    fn open_log(&self) -> anyhow::Result<File> {
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_LIMIT_BYTES) {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        Ok(OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log)?)
    }
}

/// Converts a path to text, because paths go into configuration files and JSON.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// How long a killed program may take until it is gone.
const COPY_PATIENCE: Duration = Duration::from_secs(5);

/// Stops one process and waits for its end.
pub async fn stop(process: Process, role: ProcessRole) -> anyhow::Result<()> {
    for (signal, patience) in role.ways_to_stop() {
        process.signal(*signal)?;
        if process.ended_within(*patience).await {
            return Ok(());
        }
    }
    anyhow::bail!("process {} does not end, not even when killed", process.pid())
}

/// Stops all running processes of this cluster. Returns how many were stopped.
pub async fn stop_all(layout: &Layout, description: &Description) -> anyhow::Result<usize> {
    let mut members = Member::all(layout, description);
    members.extend(Member::unstarted(layout, description));
    let mut stopped = 0;
    let mut outcome = Ok(());
    for role in ProcessRole::STOP_ORDER {
        // Processes may have ended while those of the previous role were stopped.
        let table = ProcessTable::read()?;
        let running = members.iter().filter(|member| member.role == role).filter_map(|member| member.running(&table));
        // A process that does not end must not prevent the orderly end of the others.
        for ended in join_all(running.map(|process| stop(process, role))).await {
            stopped += 1;
            outcome = outcome.and(ended);
        }
    }
    outcome?;
    end_all_copies(layout, description).await?;
    Ok(stopped)
}

/// Stops the servers that must not run ([`Member::unstarted`]), and the programs that copy a server's folder.
pub async fn stop_unstarted(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    let table = ProcessTable::read()?;
    for server in Member::unstarted(layout, description) {
        if let Some(process) = server.running(&table) {
            stop(process, ProcessRole::Postgres).await?;
        }
    }
    end_all_copies(layout, description).await
}

async fn end_all_copies(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    for shard in &description.shards {
        if let Some(second) = description.servers(layout, shard).standby {
            end_copies(&second.folder).await?;
        }
    }
    Ok(())
}

/// Ends the programs that a killed `shardctl` left copying a primary to this folder. Two of them would write to the same files.
pub async fn end_copies(standby_folder: &Path) -> anyhow::Result<()> {
    let draft = standby::draft_of(standby_folder);
    let table = ProcessTable::read()?;
    for process in standby::COPYING_PROGRAMS.iter().flat_map(|program| table.naming(program, &draft)) {
        process.signal(Signal::KILL)?;
        let has_ended = process.ended_within(COPY_PATIENCE).await;
        ensure!(has_ended, "process {}, which writes to {}, does not end", process.pid(), draft.display());
    }
    Ok(())
}

//! `shardctl up` creates a cluster if there is none, starts it, and waits until it takes requests. The hidden commands `supervise` and
//! `postgres ensure` are parts of it.

use std::{
    fs::OpenOptions,
    future,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::value_parser;
use rustix::process::Signal;
use telemetry::{logging, process::shutdown_signal};
use tokio_util::sync::CancellationToken;

use crate::{
    authority::{self, AUTHORITY},
    cluster::{
        Description, Layout,
        description::{FoundDescription, Replication},
        failover,
        files::{self, Lock},
        member::Member,
        place::FolderPlace,
        ports,
        postgres::{
            home::Home,
            install::{self, ServerRequirements, Source},
            server,
        },
        prepare::{Request, prepare},
        process::{self, Process, ProcessTable},
        readiness::{self, Watch},
        status::ClusterStatus,
        supervisor::{Orders, RestartPolicy, supervise},
    },
    context::Context,
    output::{self, note},
};

#[derive(clap::Args)]
pub struct UpArgs {
    /// Shards of a new cluster [default: 4]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=64))]
    shards: Option<u16>,
    /// Routers of a new cluster [default: 2]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=16))]
    routers: Option<u16>,
    /// Nodes of each shard of a new cluster; the second node follows the first node and takes over when the first node fails [default: 1]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=2))]
    nodes: Option<u16>,
    /// Put all ports of a new cluster, or of a copy at its first start, into one block that begins here; 0 finds a free block
    /// [default: routers 8080 and 9080, PostgreSQL 5510, nodes 7500 and 7600, second nodes 7700 and 7800]
    #[arg(long, value_name = "PORT")]
    port_base: Option<u16>,
    /// Give each shard of a new cluster a second PostgreSQL as a streaming stand-by. `sync`: a commit waits for it, so that a failover
    /// loses nothing. `async`: a failover may lose the last commits
    #[arg(long, value_enum, value_name = "MODE")]
    standby: Option<Replication>,
    /// Make a new cluster with HTTPS at the routers and mutual TLS between routers, nodes and shardctl; the authority is in DATA_DIR/tls
    #[arg(long)]
    tls: bool,
    /// Folder of `router` and `shard-node` [default: that of shardctl itself]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Do not restart processes that exit
    #[arg(long)]
    no_restart: bool,
    /// Start this shard although its database lacks acknowledged payments, and give up the missing payments
    #[arg(long, value_name = "SHARD")]
    accept_loss: Option<String>,
    /// Stay in the foreground; Ctrl-C stops the cluster
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    postgres: PostgresArgs,
}

/// Which PostgreSQL server to use.
#[derive(clap::Args)]
pub struct PostgresArgs {
    /// Folder of PostgreSQL's server binaries [default: search for a server, or install one]
    #[arg(long, value_name = "DIR", env = "SHARDLEDGER_PG_BIN")]
    pub pg_bin: Option<PathBuf>,
    /// Permitted sources of the server
    #[arg(long, value_enum, default_value = "auto", hide = true)]
    pub pg_source: Source,
}

pub async fn run(args: UpArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let layout = Layout::create(&context.data_dir)?;
    let lock = super::alone(&layout).await?;
    let (policy, foreground) = (RestartPolicy::of(args.no_restart), args.foreground);
    let accept_loss = args.accept_loss.clone();
    let request = args.request()?;

    if let Some(found) = Description::find(&layout)? {
        refuse_moved_while_running(&layout, &found)?;
    }
    if let Some(pid) = files::lock_holder(&layout.supervisor_lock())? {
        let description = Description::load(&layout)?.context("its description is missing")?;
        note_copy(&description);
        ensure!(accept_loss.is_none(), "the cluster is up: run `shardctl down` before `shardctl up --accept-loss`");
        description.refuse_changes(&request)?;
        note(&format!("the cluster is up already (supervisor {pid})"));
        let status = readiness::wait(&layout, Watch::any()).await?;
        announce(&status, context)?;
        return Ok(ExitCode::SUCCESS);
    }

    failover::prepare_start(&layout).await?;
    let prepared = layout.clone();
    let description = tokio::task::spawn_blocking(move || prepare(&prepared, &request)).await??;
    if let Some(shard) = &accept_loss {
        ensure!(description.shard(shard).is_some(), "--accept-loss: the cluster has no shard {shard}");
        let table = ProcessTable::read()?;
        let running = Member::all(&layout, &description).iter().any(|member| member.running(&table).is_some());
        ensure!(!running, "processes of the cluster run: run `shardctl down` before `shardctl up --accept-loss`");
    }
    let orders = Orders { policy, accept_loss };
    note_copy(&description);
    refuse_taken_ports(&layout, &description)?;
    readiness::forget_old_report(&layout)?;
    if foreground {
        in_foreground(layout, description, orders, lock, context).await
    } else {
        in_background(&layout, orders, context).await
    }
}

impl UpArgs {
    fn request(self) -> anyhow::Result<Request> {
        let bin_dir = match self.bin_dir {
            Some(folder) => folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?,
            None => std::env::current_exe()?.parent().context("shardctl has no folder")?.to_owned(),
        };
        Ok(Request {
            shards: self.shards,
            routers: self.routers,
            nodes: self.nodes,
            port_base: self.port_base,
            standby: self.standby,
            tls: self.tls,
            bin_dir,
            pg_bin: self.postgres.pg_bin,
            pg_source: self.postgres.pg_source,
        })
    }
}

/// Refuses a folder that was moved while its processes ran, because they use the former paths.
fn refuse_moved_while_running(layout: &Layout, found: &FoundDescription) -> anyhow::Result<()> {
    let FolderPlace::Moved { from } = &found.place else { return Ok(()) };
    let table = ProcessTable::read()?;
    let members = found.place.former().map(|former| Member::all(&former, &found.description)).unwrap_or_default();
    let running = members.iter().any(|member| member.running(&table).is_some());
    ensure!(
        !running && files::lock_holder(&layout.supervisor_lock())?.is_none(),
        "the data folder was moved from {} to {} while its cluster ran: run `shardctl down --data-dir {}` first",
        from.display(),
        layout.root().display(),
        layout.root().display()
    );
    Ok(())
}

fn note_copy(description: &Description) {
    if let Some(of) = &description.copy_of {
        note(&format!(
            "this cluster is a copy of the one in {}: it has the same cluster id {} and ports of its own. Payments in it are \
             not payments in the original",
            of.display(),
            description.cluster
        ));
    }
}

/// Refuses ports that another program uses. A process that a killed supervisor left running may keep its port.
fn refuse_taken_ports(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    let table = ProcessTable::read()?;
    let running: Vec<String> = Member::all(layout, description)
        .into_iter()
        .filter(|member| member.running(&table).is_some())
        .map(|member| member.name)
        .collect();
    for (port, process) in description.ports() {
        ensure!(
            running.contains(&process) || ports::is_free(port),
            "port {port}, which {process} needs, is taken by another program: stop that program, or create the cluster in \
             another --data-dir with another --port-base"
        );
    }
    Ok(())
}

fn announce(status: &ClusterStatus, context: &Context) -> anyhow::Result<()> {
    if context.json {
        return output::json(status);
    }
    let authority = authority::certificate_of(&status.data_dir.join("tls"), AUTHORITY);
    let is_https = status.routers.first().is_some_and(|router| router.url.starts_with("https:"));
    let trust = if is_https { format!(" --cacert {}", authority.display()) } else { String::new() };
    let url = status.routers.first().map(|router| router.url.as_str()).unwrap_or_default();
    output::data(&format!(
        "Shardledger is up: {}, {}, data in {}\n\
         {}\n\n\
         Send it the first request:\n  \
         curl -i{trust} {url}/v1/accounts -H 'content-type: application/json' \\\n       \
         -d '{{\"id\": \"world\", \"asset\": \"USD\", \"overdraft\": \"unlimited\"}}'",
        output::count(status.shards.len(), "shard"),
        output::count(status.routers.len(), "router"),
        status.data_dir.display(),
        status
            .routers
            .iter()
            .map(|router| format!("  {}  (admin {})", router.url, router.admin_url))
            .collect::<Vec<_>>()
            .join("\n"),
    ))
}

/// Starts a supervisor in the background and returns once the cluster is ready.
async fn in_background(layout: &Layout, orders: Orders, context: &Context) -> anyhow::Result<ExitCode> {
    let supervisor = start_supervisor(layout, &orders)?;
    let pid = i32::try_from(supervisor.id())?;
    match readiness::wait(layout, Watch::new(orders.policy, supervisor)).await {
        Ok(status) => {
            announce(&status, context)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            // A cluster that does not become ready is stopped, and its logs are kept.
            if let Some(process) = Process::of(pid) {
                process.signal(Signal::TERM)?;
                process.ended().await;
            }
            Err(error)
        }
    }
}

fn start_supervisor(layout: &Layout, orders: &Orders) -> anyhow::Result<Child> {
    let path = layout.log("supervisor");
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("supervise").arg("--data-dir").arg(layout.root());
    if orders.policy == RestartPolicy::LeaveDead {
        command.arg("--no-restart");
    }
    if let Some(shard) = &orders.accept_loss {
        command.args(["--accept-loss", shard]);
    }
    process::clean_environment(&mut command);
    command.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().context("cannot start the supervisor")
}

/// Supervises the cluster in this process until a signal arrives.
async fn in_foreground(
    layout: Layout,
    description: Description,
    orders: Orders,
    lock: Lock,
    context: &Context,
) -> anyhow::Result<ExitCode> {
    logging::init(&logging::LogConfig::default())?;
    let signal = shutdown_signal()?;
    let stop = CancellationToken::new();
    let supervising = supervise(layout.clone(), description, orders, stop.clone());
    tokio::pin!(supervising);
    let failing_to_come_up = async {
        let come_up = async {
            let status = readiness::wait(&layout, Watch::any()).await?;
            announce(&status, context)
        };
        let came_up = come_up.await;
        // From here on, `down` may run.
        drop(lock);
        match came_up {
            Ok(()) => future::pending().await,
            Err(error) => error,
        }
    };
    let outcome = tokio::select! {
        ended = &mut supervising => return ended.map(|()| ExitCode::SUCCESS),
        error = failing_to_come_up => Err(error),
        _ = signal => Ok(ExitCode::SUCCESS),
    };
    stop.cancel();
    supervising.await.and(outcome)
}

#[derive(clap::Args)]
pub struct SuperviseArgs {
    /// Do not restart processes that exit
    #[arg(long)]
    no_restart: bool,
    /// Give up the acknowledged payments that the database of this shard lacks
    #[arg(long, value_name = "SHARD")]
    accept_loss: Option<String>,
}

/// The background process that `up` starts.
pub async fn run_supervisor(args: SuperviseArgs, context: &Context) -> anyhow::Result<ExitCode> {
    logging::init(&logging::LogConfig::default())?;
    // Leave the terminal's session, so that closing the terminal does not end the cluster. This fails only if the
    // process already leads a session.
    let _ = rustix::process::setsid();
    let layout = Layout::find(&context.data_dir)?;
    let description = Description::load(&layout)?.context("no cluster to supervise")?;
    ensure!(description.root == layout.root(), "the data folder was moved: `shardctl up` starts the cluster");
    let stop = CancellationToken::new();
    let signal = shutdown_signal()?;
    let orders = Orders { policy: RestartPolicy::of(args.no_restart), accept_loss: args.accept_loss };
    let supervising = supervise(layout, description, orders, stop.clone());
    tokio::pin!(supervising);
    tokio::select! {
        ended = &mut supervising => return ended.map(|()| ExitCode::SUCCESS),
        signal = signal => tracing::info!(%signal, "asked to stop"),
    }
    stop.cancel();
    supervising.await?;
    Ok(ExitCode::SUCCESS)
}

#[derive(clap::Subcommand)]
pub enum PostgresCommand {
    /// Find the server, or install it if there is none
    Ensure(PostgresArgs),
}

/// Prints the folder of the server's programs, for scripts.
pub async fn postgres(command: PostgresCommand, context: &Context) -> anyhow::Result<ExitCode> {
    let PostgresCommand::Ensure(args) = command;
    let data_dir = context.data_dir.clone();
    let server = tokio::task::spawn_blocking(move || {
        let present = ServerRequirements {
            bin_dir: args.pg_bin.as_deref(),
            major: None,
            source: args.pg_source,
            home: &data_dir,
        };
        if let Some(server) = present.present() {
            return Ok(server);
        }
        // Only an installation of a server needs the folder.
        let layout = Layout::create(&data_dir)?;
        let home = Home::choose(&layout, server::service_user()?.as_ref())?;
        home.create(&layout)?;
        install::ensure_server(&ServerRequirements { home: &home.folder(&layout), ..present })
    })
    .await??;
    output::data(&server.bin_dir.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

//! The router: HTTP in front, shard-nodes behind, no state of its own.
//!
//! - [`http`]: the edge, what API gateways talk to.
//! - [`core`]: everything between a parsed request and the shards. It routes, batches and drives cross-shard transfers.
//! - [`admin`]: the operators' listener.
//! - [`keyring`]: the keys of the API.
//! - [`trace`]: the request that a task works on, for logs and traces.

mod admin;
mod config;
mod core;
mod http;
mod keyring;
mod trace;

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use certificates::Certificates;
use clap::Parser;
use telemetry::{
    Tasks, build_info, logging, metrics,
    process::{host_name, shutdown_signal},
    traces,
};
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    admin::{Admin, Phase},
    config::{Config, NodeTlsConfig},
    core::{Core, routing::Routing},
    http::{
        Edge,
        server::{self, Connections, ServerLimits},
    },
    keyring::Keyring,
};

/// Routes transfers to the shards that hold the accounts.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", required_unless_present_any = ["print_openapi", "print_config_reference"])]
    config: Option<PathBuf>,
    /// Check the configuration file and exit
    #[arg(long)]
    check_config: bool,
    /// Print the configuration with all defaults filled in and exit
    #[arg(long)]
    print_config: bool,
    /// Print the description of the HTTP API (OpenAPI, JSON) and exit
    #[arg(long)]
    print_openapi: bool,
    /// Print the reference of the configuration files (Markdown) and exit
    #[arg(long)]
    print_config_reference: bool,
}

/// How long the core may take to leave its sagas at a persisted step after the last request.
const CORE_GRACE: Duration = Duration::from_secs(5);
/// How long a reader of the admin listener may take to finish.
const ADMIN_GRACE: Duration = Duration::from_secs(1);
const ADMIN_MAX_CONNECTIONS: usize = 256;

/// Runs the program.
pub fn main() -> ExitCode {
    match start(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("router: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args) -> anyhow::Result<ExitCode> {
    if args.print_openapi {
        let description = serde_json::to_string_pretty(&http::description()?)?;
        writeln!(std::io::stdout(), "{description}")?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.print_config_reference {
        write!(std::io::stdout(), "{}", config::reference()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(args.config.as_deref().context("--config is missing")?)?;
    if args.print_config {
        write!(std::io::stdout(), "{}", toml::to_string(&config)?)?;
    }
    if args.check_config || args.print_config {
        return Ok(ExitCode::SUCCESS);
    }
    logging::init_about(&config.log, trace::SUBJECT)?;
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.worker_threads > 0 {
        runtime.worker_threads(config.worker_threads);
    }
    runtime.enable_all().build()?.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    // There are three sets of tasks, which end in turn: requests, then the core that they need, then the listener
    // that reports readiness.
    let (requests, core, operators) = (Tasks::new(), Tasks::new(), Tasks::new());
    let signal = shutdown_signal()?;

    let build = build_info!();
    let measured = metrics::install(&build, &[], &operators)?;
    http::metrics::describe();
    let exported = traces::install(
        &config.traces,
        traces::Service {
            name: "shardledger-router",
            version: build.version,
            instance: format!("{} on {}", config.http.listen, host_name()),
            shard: None,
        },
    )?;
    server::raise_file_limit(config.http.max_connections);

    let keyring = config.keys.path.as_deref().map(Keyring::open).transpose()?;
    if let Some(keyring) = &keyring {
        keyring.watch(&core)?;
    }
    let certificates = config.http.tls.as_ref().map(Certificates::open).transpose()?;
    if let Some(certificates) = &certificates {
        certificates.watch(&core)?;
    }
    let routing = Routing::open(&config.map.path)?;
    routing.watch(&core)?;
    let mut core_config = config.core();
    core_config.tls = config.shards.tls.as_ref().map(NodeTlsConfig::open).transpose().context("shards.tls")?;
    if let Some(tls) = &core_config.tls {
        tls.watch(&core)?;
    }
    let router = Core::start(&core_config, routing, core.clone());
    // Amounts would be read and written with a wrong power of ten.
    let differing = router.greet().await;
    anyhow::ensure!(
        differing.is_empty(),
        "the assets of this router's configuration are not the cluster's: {}",
        differing.join("; ")
    );

    let observed = router.clone();
    measured.observe(move || observed.set_gauges());

    let public = bind(config.http.listen, "http.listen")?;
    let private = bind(config.admin.listen, "admin.listen")?;
    let clients = Connections::new(config.http.max_connections);
    let plain = telemetry::admin::routes(build, measured);
    let admin = Admin::new(
        router.clone(),
        keyring.clone(),
        certificates.clone(),
        core_config.tls,
        Arc::clone(&clients),
        plain,
        config.assets()?,
    );
    let edge = Edge::new(&config, router, keyring, requests.clone())?;
    requests.spawn_essential(
        "http",
        server::serve(
            public,
            http::api(edge),
            public_limits(&config),
            clients,
            requests.clone(),
            requests.token().clone(),
            certificates,
        ),
    );
    operators.spawn_essential(
        "admin",
        server::serve(
            private,
            admin.routes(),
            ServerLimits { listener: "admin", ..public_limits(&config) },
            Connections::new(ADMIN_MAX_CONNECTIONS),
            operators.clone(),
            operators.token().clone(),
            None,
        ),
    );
    admin.enter(Phase::Ready);
    tracing::info!(http = %config.http.listen, admin = %config.admin.listen, version = build.version, "router ready");

    tokio::select! {
        signal = signal => tracing::info!(%signal, "draining"),
        // An essential task ended and logged its reason.
        () = requests.token().cancelled() => {}
        () = core.token().cancelled() => {}
        () = operators.token().cancelled() => {}
    }
    admin.enter(Phase::Draining);
    for (name, tasks, grace) in [
        ("requests", &requests, Duration::from_millis(config.http.drain_timeout_ms)),
        ("core", &core, CORE_GRACE),
        ("admin", &operators, ADMIN_GRACE),
    ] {
        // Unfinished sagas are safe: the shards hold all state, and any router finishes any saga.
        if let Err(left) = tasks.shutdown(grace).await {
            tracing::warn!(tasks = name, reason = %left, "drain cut short");
        }
    }
    if let Some(exported) = exported {
        exported.finish().await;
    }
    let failed = [&requests, &core, &operators].into_iter().find_map(Tasks::failed);
    tracing::info!(failed, "router stopped");
    Ok(if failed.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Length of the accept queue. The usual 128 is less than the number of clients that reconnect at once after a
/// restart of a router. A client that finds the queue full is reset, or waits a second until its kernel retries.
const ACCEPT_BACKLOG: u32 = 4096;

fn bind(address: SocketAddr, setting: &'static str) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted router must not wait until the kernel forgets the connections of its predecessor.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(ACCEPT_BACKLOG)
    };
    listen().with_context(|| format!("{setting} = {address}"))
}

fn public_limits(config: &Config) -> ServerLimits {
    ServerLimits {
        listener: "http",
        header_timeout: Duration::from_millis(config.http.header_timeout_ms),
        idle_timeout: Duration::from_millis(config.http.idle_timeout_ms),
    }
}

/// The core of a router without its edge, for simulations of the cluster (`crates/simulation`). The shard map is fixed. Everything between a
/// parsed request and the connections to the nodes is what serves.
#[cfg(feature = "simulation")]
pub mod simulation {
    use std::sync::Arc;

    use shard_map::ShardMap;
    use telemetry::Tasks;

    use crate::core::{Core, routing::Routing};
    pub use crate::{
        config::CoreConfig,
        core::{
            call::CallError,
            reply::{AtomicReply, HoldReply, NewTransfer, ReleaseReply, TransferReply},
        },
    };

    /// A router. Clones share it.
    pub type Router = Arc<Core>;

    /// Starts a router. Its tasks are its process.
    pub fn start(config: &CoreConfig, map: ShardMap, tasks: Tasks) -> Router {
        Core::start_without_offers(config, Routing::fixed(map), tasks)
    }
}

//! Serving: connect, migrate, start the lane, listen, and drain on a signal.

use std::time::Duration;

use anyhow::Context;
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgPool, PgPoolOptions},
};
use telemetry::{Tasks, admin as telemetry_admin, logging, metrics, shutdown};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    config::Config,
    expiry,
    lane::Lane,
    metric_definitions,
    rpc::Service,
    store::{StoreError, error::Remedy, migrations, shard_state},
};

/// How long a drain may take before the process ends all the same.
const DRAIN_GRACE: Duration = Duration::from_secs(20);

const RECONNECT_PAUSE: Duration = Duration::from_millis(250);

pub async fn serve(config: Config) -> anyhow::Result<()> {
    logging::init(&config.log)?;
    let signal = shutdown::signal()?;
    let tasks = Tasks::new();
    let recorder = metrics::install(&telemetry::build_info!(), &tasks)?;
    metric_definitions::describe();

    let rpc =
        TcpListener::bind(config.rpc.listen).await.with_context(|| format!("rpc.listen {}", config.rpc.listen))?;
    let admin_listener = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("admin.listen {}", config.admin.listen))?;

    tokio::pin!(signal);
    let (reads, shard_number) = tokio::select! {
        opened = open_shard(&config) => opened?,
        stopped_by = &mut signal => {
            tracing::info!(%stopped_by, "stopped before the database was reached");
            return Ok(());
        }
    };
    let (lane, handle) = Lane::new(&config.shard.id, config.database.clone(), &config.lane);
    tasks.spawn_essential("lane", lane.run(tasks.token().clone()));

    let admin_closing = CancellationToken::new();
    let admin_routes = admin::routes(handle.clone(), recorder);
    let closing = admin_closing.clone();
    // Not among the tasks: it answers until the drain is over.
    #[allow(clippy::disallowed_methods, reason = "outlives the task tracker on purpose")]
    let admin_task = tokio::spawn(telemetry_admin::serve(admin_listener, admin_routes, closing));

    tasks.spawn_essential("expiry", expiry::run(reads.clone(), handle.clone(), tasks.token().clone()));

    let service = Service::new(&config.shard.id, shard_number, handle, reads.clone(), tasks.clone());
    let closing = tasks.token().clone();
    tracing::info!(shard = config.shard.id, rpc = %config.rpc.listen, admin = %config.admin.listen, "listening");
    tasks.spawn_essential("rpc", async move {
        let served = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .trace_fn(|call| match call.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
                Some(traceparent) => tracing::debug_span!("call", path = call.uri().path(), traceparent),
                None => tracing::Span::none(),
            })
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_connection_window_size(16 * 1024 * 1024)
            .initial_stream_window_size(8 * 1024 * 1024)
            .add_service(service.into_server())
            .serve_with_incoming_shutdown(
                tonic::transport::server::TcpIncoming::from(rpc).with_nodelay(Some(true)),
                closing.cancelled(),
            )
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the RPC listener failed");
        }
    });

    tokio::select! {
        stopped_by = signal => tracing::info!(%stopped_by, "draining"),
        () = tasks.token().cancelled() => {}
    }
    let drained = tasks.shutdown(DRAIN_GRACE).await;
    admin_closing.cancel();
    let _ = admin_task.await;
    reads.close().await;
    if let Some(task) = tasks.failed() {
        anyhow::bail!("the {task} task ended by itself");
    }
    drained?;
    tracing::info!("drained");
    Ok(())
}

/// Waits for the database, migrates it, and makes sure that it is the shard this node is configured for.
async fn open_shard(config: &Config) -> anyhow::Result<(PgPool, u16)> {
    let statement_timeout = config.database.statement_timeout_ms.to_string();
    let options = config
        .database
        .connect_options()
        .application_name("shardledger-reads")
        .options([("statement_timeout", statement_timeout.as_str()), ("jit", "off")]);
    let mut connection = connect(config, &options).await?;
    migrations::run(&mut connection).await?;
    let configured = &config.shard.id;
    let number = match shard_state::identity(&mut connection).await? {
        Some((owner, number)) if owner == *configured => u16::try_from(number)?,
        Some((owner, _)) => anyhow::bail!("database.url leads to shard {owner:?}, but shard.id is {configured:?}"),
        None => anyhow::bail!(
            "the database was never initialised as a shard. If it is meant to be a new one, run \
             `shard-node init --config FILE --map shard-map.toml`; if it held a ledger before, do not: restore it"
        ),
    };
    let pool = PgPoolOptions::new()
        .max_connections(config.database.read_connections)
        // Opened before anybody reads: the first burst of reads is not the moment to make connections.
        .min_connections(config.database.read_connections)
        .acquire_timeout(config.database.connect_timeout())
        .connect_lazy_with(options);
    Ok((pool, number))
}

/// Waits for a database that is starting or out of reach; one that refuses this node for good is an error.
async fn connect(config: &Config, options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let limit = config.database.connect_timeout();
    loop {
        let error = match tokio::time::timeout(limit, PgConnection::connect_with(options)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => StoreError::from(error),
            Err(_) => StoreError::TimedOut(limit),
        };
        if error.remedy() == Remedy::Report {
            return Err(error).context("the shard's database refuses the connection (database.url)");
        }
        tracing::warn!(%error, "the shard's database is out of reach; trying again");
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

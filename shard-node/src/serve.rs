//! Serving: bind the listeners, compare the database with what this node expects, start the lane, drain on a signal.
//! Serving never migrates.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use certificates::Mutual;
use identity::{Disagreement, Disagreements, time::OtherClock};
use shard_database::{
    Database,
    record::{ShardRecord, set_complete},
};
use shard_map::ShardMap;
use sqlx::{PgConnection, PgPool};
use telemetry::{
    Tasks, admin as telemetry_admin, logging, metrics,
    process::{host_name, shutdown_signal},
    traces,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    admin,
    clock::{NodeClock, steady_us},
    config::Config,
    durable, expiry, fold,
    gate::Gate,
    gauges::{self, Gauges},
    hosts::Hosts,
    lane::Lane,
    metric_definitions,
    monitor::{self, Monitor},
    moves::{Moves, driver},
    peers::Peers,
    role::NodeRole,
    rpc::{Service, listener},
    store::{
        StoreError,
        error::Remedy,
        moves::postgres::MovePool,
        postgres::Postgres,
        read::Readable,
        session::{self, READ_SETTINGS},
    },
    tail::Tail,
};

/// Longest drain; the process then exits even if work is left.
const DRAIN_GRACE: Duration = Duration::from_secs(20);

const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// How long a starting node waits for the answers of all other shards before one answer is enough.
const WITNESS_GRACE: Duration = Duration::from_secs(3);
/// Pause between two looks at an empty database.
const LOOK_FOR_INIT: Duration = Duration::from_millis(500);

/// `alone`: the operator says that no other shard and no router is left to ask.
pub async fn serve(config: Config, alone: bool) -> anyhow::Result<()> {
    logging::init(&config.log)?;
    let signal = shutdown_signal()?;
    let tasks = Tasks::new();
    let build = telemetry::build_info!();
    let measured = metrics::install(&build, &[("shard", &config.shard.id)], &tasks)?;
    metric_definitions::describe();
    let exported = traces::install(
        &config.traces,
        traces::Service {
            name: "shardledger-node",
            version: build.version,
            instance: format!("{} on {}", config.rpc.listen, host_name()),
            shard: Some(config.shard.id.clone()),
        },
    )?;
    durable::write_step_list();

    let tls = config.rpc.mutual_tls().context("rpc.tls")?;
    if let Some(tls) = &tls {
        tls.watch(&tasks)?;
    }
    let rpc =
        TcpListener::bind(config.rpc.listen).await.with_context(|| format!("rpc.listen {}", config.rpc.listen))?;
    let admin_listener = TcpListener::bind(config.admin.listen)
        .await
        .with_context(|| format!("admin.listen {}", config.admin.listen))?;

    let gate = Gate::new(config.expected());
    let clock = Arc::new(NodeClock::new(config.clock.max_difference()));
    let hosts = Hosts::new(&config.database).context("database.url")?;
    let pool = session::read_pool(&hosts, &gate);
    let role = NodeRole::new();
    let store = Arc::new(Postgres::new(hosts.clone(), gate.clone(), role.clone()));
    let tail = Tail::new(config.lane.tail_bounds());
    let (lane, handle) = Lane::new(
        gate.clone(),
        Arc::clone(&clock),
        Arc::clone(&store),
        tail.clone(),
        role.clone(),
        tasks.clone(),
        &config.lane,
    )
    .context("cannot make a timer")?;

    let gauges = Gauges {
        gate: gate.clone(),
        role: role.clone(),
        clock: Arc::clone(&clock),
        lane: handle.clone(),
        tail: tail.clone(),
    };
    measured.observe(move || gauges.set());
    let admin_closing = CancellationToken::new();
    let admin_routes = admin::routes(gate.clone(), Arc::clone(&clock), handle.clone(), role.clone(), measured);
    let closing = admin_closing.clone();
    // The admin listener is not a tracked task: it answers until the drain is over.
    #[allow(clippy::disallowed_methods, reason = "must outlive the task tracker")]
    let admin_task = tokio::spawn(telemetry_admin::serve(admin_listener, admin_routes, closing));

    // The RPC listener starts before the database is accepted, because `init` and other nodes call Identify. The gate
    // refuses all other calls.
    let from = Readable::Database(pool.clone());
    let service = Service::new(
        gate.clone(),
        role.clone(),
        Arc::clone(&clock),
        handle.clone(),
        from.clone(),
        tail.clone(),
        tasks.clone(),
    );
    let moves = Moves::new(
        MovePool::new(hosts.clone(), gate.clone(), role.clone()),
        gate.clone(),
        role.clone(),
        Arc::clone(&clock),
        handle.clone(),
        from.clone(),
        tls.clone(),
    );
    serve_rpc(rpc, service, moves.clone(), &config, tls.clone(), &tasks);

    tokio::pin!(signal);
    let opened = tokio::select! {
        opened = open_shard(&hosts, alone, &gate, &clock, &pool, tls) => opened,
        stopped_by = &mut signal => {
            tracing::info!(%stopped_by, "stopped before the database was accepted");
            return Ok(());
        }
    };
    let peers = opened?;
    let monitor =
        Monitor { hosts, pool: pool.clone(), gate: gate.clone(), role: role.clone(), clock: Arc::clone(&clock) };
    // A node that is alone on its shard acts at once. If the look fails, the monitor's next one decides.
    if let Ok(mut connection) = pool.acquire().await
        && let Err(error) = monitor.look_for_active_nodes(&mut connection).await
    {
        tracing::debug!(%error, "cannot look for other nodes of the shard");
    }
    gate.set_reads(Ok(()));
    tasks.spawn_essential("lane", lane.run(tasks.token().clone()));
    tasks.spawn("gauges", gauges::run(gate.clone(), Arc::clone(&clock), pool.clone(), tasks.token().clone()));
    let fold = fold::run(store, tail, role.clone(), config.lane.fold_interval(), tasks.token().clone());
    tasks.spawn_essential("fold", fold);
    let expiry = expiry::run(from, gate.clone(), role, handle, clock, tasks.token().clone());
    tasks.spawn_essential("expiry", expiry);
    tasks.spawn_essential("moves", driver::run(moves.clone(), tasks.clone(), tasks.token().clone()));
    tasks.spawn_essential("monitor", monitor.run(tasks.token().clone()));
    let token = tasks.token().clone();
    tasks.spawn("peers", async move { token.run_until_cancelled(peers.run()).await });

    tokio::select! {
        stopped_by = signal => tracing::info!(%stopped_by, "draining"),
        () = tasks.token().cancelled() => {}
    }
    let drained = tasks.shutdown(DRAIN_GRACE).await;
    admin_closing.cancel();
    let _ = admin_task.await;
    if let Some(exported) = exported {
        exported.finish().await;
    }
    pool.close().await;
    moves.close().await;
    if let Some(task) = tasks.failed() {
        anyhow::bail!("the {task} task ended by itself");
    }
    drained?;
    tracing::info!("drained");
    Ok(())
}

fn serve_rpc(
    rpc: TcpListener,
    service: Service,
    moves: Moves<MovePool>,
    config: &Config,
    tls: Option<Mutual>,
    tasks: &Tasks,
) {
    let closing = tasks.token().clone();
    let is_encrypted = tls.is_some();
    tracing::info!(shard = config.shard.id, rpc = %config.rpc.listen, tls = is_encrypted, admin = %config.admin.listen, "listening");
    tasks.spawn_essential("rpc", async move {
        let served = tonic::transport::Server::builder()
            .trace_fn(|call| match call.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
                Some(traceparent) => tracing::debug_span!("call", path = call.uri().path(), traceparent),
                None => tracing::Span::none(),
            })
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_connection_window_size(16 * 1024 * 1024)
            .initial_stream_window_size(8 * 1024 * 1024)
            .add_service(service.into_server())
            .add_service(moves.into_server())
            .serve_with_incoming_shutdown(listener::incoming(rpc, tls), closing.cancelled())
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the RPC listener failed");
        }
    });
}

/// Waits for the database and verifies that it is the configured shard in full: by its own record, by the marks that
/// other shards remember, and by the clocks.
async fn open_shard(
    hosts: &Hosts,
    alone: bool,
    gate: &Gate,
    clock: &Arc<NodeClock>,
    pool: &PgPool,
    tls: Option<Mutual>,
) -> anyhow::Result<Peers> {
    let mut warned = Vec::new();
    let (mut connection, record) = compare_database(hosts, gate, clock, &mut warned).await?;
    let map: String = sqlx::query_scalar("SELECT text FROM shardledger.known_map").fetch_one(&mut connection).await?;
    let map = ShardMap::parse(&map).context("the shard map in the database (shardledger.known_map)")?;
    session::warm_up(pool).await;
    let mut peers = Peers::new(map, gate.clone(), Arc::clone(clock), pool.clone(), record.identity.number, tls);
    ask_others(&mut peers).await?;
    if record.founding_map.is_some() && !record.complete {
        // A write before all first shards are initialised would block `init` of the remaining ones.
        while let missing = peers.not_initialised()
            && !missing.is_empty()
        {
            let shards = missing.join(", ");
            gate.set_waiting(Some(format!(
                "the cluster is new and incomplete: its founding shards {shards} are not initialised or do not answer. Run `shard-node \
                 init` for each"
            )));
            tokio::time::sleep(LOOK_FOR_INIT).await;
            ask_others(&mut peers).await?;
        }
        (connection, _) = compare_database(hosts, gate, clock, &mut warned).await?;
        set_complete(&mut connection).await?;
    }
    if !alone {
        wait_for_a_witness(&mut peers, gate).await?;
    }
    gate.set_waiting(None);
    // The others may have taken long to answer: the session and the clock measurements are old.
    drop(connection);
    compare_database(hosts, gate, clock, &mut warned).await?;
    clock.compare();
    if let Some(disagreement) = clock.disagreement() {
        return Err(Disagreements::from(disagreement)).context("this node does not start");
    }
    Ok(peers)
}

/// Connects to the database and compares it with what this node expects. Waits while the database is unreachable or
/// uninitialised; any other difference is an error. `warned` has the warnings that are already in the log.
async fn compare_database(
    hosts: &Hosts,
    gate: &Gate,
    clock: &NodeClock,
    warned: &mut Vec<Disagreement>,
) -> anyhow::Result<(PgConnection, Box<ShardRecord>)> {
    loop {
        let acknowledged = gate.acknowledged();
        let mut connection = connect(hosts, gate).await?;
        let asked_us = steady_us();
        let (facts, database) = match session::look(&mut connection, &READ_SETTINGS).await {
            Ok(looked) => looked,
            Err(error) => {
                let error = StoreError::from(error);
                if error.remedy() == Remedy::Report {
                    return Err(error).context("cannot read the shard's database");
                }
                tracing::warn!(%error, "the connection to the shard's database broke; trying again");
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
        };
        clock.measured(OtherClock::measured("PostgreSQL", asked_us, facts.clock_us, steady_us()));
        let warnings = facts.warnings();
        if warnings != *warned {
            for warning in &warnings {
                tracing::warn!("{warning}");
            }
            *warned = warnings;
        }
        // The marks are known before the gate lets Identify report them: a shard that has an answer does not ask again.
        if let Database::Shard(_) = &database {
            for (number, mark) in shard_database::record::peer_marks(&mut connection).await?.iter() {
                gate.observe_peer(number, mark);
            }
        }
        let database = monitor::note_timeline(gate, &mut connection, &facts, database, &acknowledged).await?;
        match (gate.decide(&facts, &database, &READ_SETTINGS, &acknowledged), database) {
            (Ok(()), Database::Shard(record)) => return Ok((connection, record)),
            (_, Database::Uninitialised) if gate.is_uninitialised() => tokio::time::sleep(LOOK_FOR_INIT).await,
            (Err(refused), _) => return Err(refused).context("the database is refused"),
            (Ok(()), Database::Uninitialised) => {}
        }
    }
}

/// Asks the other shards. A failure of this shard's own database is not an error: the caller asks again.
async fn ask_others(peers: &mut Peers) -> anyhow::Result<()> {
    match peers.ask_all().await {
        Ok(agreed) => agreed.context("the other shards do not agree"),
        Err(error) if error.remedy() == Remedy::Report => Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, "the slots of this shard cannot be read; trying again");
            Ok(())
        }
    }
}

/// Waits until another shard or a router has said how far this shard had come. After a power failure the reachable
/// database may be an earlier one, and new payments would hide what it lacks. The node waits [`WITNESS_GRACE`] for all
/// other shards. After that, one of them or a router that remembers this shard is enough, so that a shard that is down
/// does not keep the others down.
async fn wait_for_a_witness(peers: &mut Peers, gate: &Gate) -> anyhow::Result<()> {
    let begun = tokio::time::Instant::now();
    while !peers.all_heard() {
        let has_witness = peers.any_heard() || gate.has_router_reported_mark();
        if has_witness && begun.elapsed() >= WITNESS_GRACE {
            break;
        }
        let cause = if has_witness {
            "not all other shards have answered; the node serves within 3 s"
        } else {
            "no other shard has answered, and no router that remembers this shard: the node cannot check whether the database has every \
             acknowledged payment. Start the nodes of the other shards. If all of them are lost, start this node with `shard-node \
             --config FILE --alone`"
        };
        gate.set_waiting(Some(cause.to_owned()));
        tokio::time::sleep(LOOK_FOR_INIT).await;
        ask_others(peers).await?;
    }
    Ok(())
}

/// Connects, and waits while the database is starting or unreachable, or while none of several hosts is a primary. An error that a retry cannot fix is returned,
/// unless an earlier connection worked: the address and the password were right then, and an operator is at work.
async fn connect(hosts: &Hosts, gate: &Gate) -> anyhow::Result<PgConnection> {
    let limit = hosts.config().connect_timeout();
    loop {
        let error = match session::connect_to_primary(hosts, limit, "shardledger-reads").await {
            Ok(connection) => return Ok(connection),
            Err(error) => error,
        };
        if error.remedy() == Remedy::Report && !gate.has_reached_database() {
            return Err(error).context("the shard's database refuses the connection (database.url)");
        }
        tracing::warn!(%error, "the shard's database is out of reach; trying again");
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

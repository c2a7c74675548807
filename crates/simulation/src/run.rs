//! One run: a cluster, clients and faults that a seed draws, and the audit at the end.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use shard_node::simulation::{Fault, ShardDatabase};
use telemetry::Tasks;
use tokio::{
    runtime::Builder,
    time::{Instant, sleep},
};

use crate::{
    audit,
    client::Client,
    cluster::{Cluster, Template},
    faults,
    moves::{self, Moved, Mover},
    random::Random,
    reader::{Ordered, Reader},
    reads,
    record::{Group, Proof, Record},
    serial_order::{self, Beginning, SerialOrder},
    trace,
};

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// The first thing that is wrong.
    pub finding: Option<String>,
    /// Orders of clients, attempts at them, and attempts of unknown outcome.
    pub orders: usize,
    pub attempts: usize,
    pub doubtful: usize,
    /// Reads with an answer, and reads without one.
    pub reads: usize,
    pub failed_reads: usize,
    pub faults: usize,
    /// What has become of moves of slots.
    pub moves: Moved,
    /// The search for a serial order was ended at its bound.
    pub is_undecided: bool,
    /// Calls of nodes.
    pub calls: u64,
    /// How long the run took in its own time.
    pub took: Duration,
    /// The trace and its hash, if it was asked for.
    pub trace: Option<(Vec<String>, u64)>,
}

/// How long clients and sagas may take after everything has healed.
const LIVENESS: Duration = Duration::from_secs(30);
/// How long the folds may take after that.
const FOLDED_WITHIN: Duration = Duration::from_secs(20);
const ROUTERS: usize = 2;
/// Microseconds after [`trace::BEGIN_US`] at which the clients begin. The template was made before.
const BEGIN_AFTER_US: i64 = 60_000_000;

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps the text of each panic of a thread in which a simulation runs, instead of printing it.
fn catch_panics() {
    static HOOK: OnceLock<()> = OnceLock::new();
    HOOK.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if telemetry::simulation::is_running() {
                PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            } else {
                before(panic);
            }
        }));
    });
}

/// Runs a future in a runtime of its own, from this virtual time on.
fn simulate<T>(begin_us: i64, future: impl Future<Output = T>) -> Result<T, String> {
    catch_panics();
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            telemetry::simulation::begin(begin_us);
            future.await
        })
    }));
    // Tasks that are left are dropped, which a simulation is over for.
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(runtime)));
    node_client::simulation::install(None);
    telemetry::simulation::end();
    let panics = PANICS.take();
    match (outcome, dropped, panics.first()) {
        (_, _, Some(panic)) => Err(panic.clone()),
        (Ok(outcome), Ok(()), None) => Ok(outcome),
        _ => Err("a panic without a text".to_owned()),
    }
}

/// The template of clusters with so many shards.
fn template(shards: usize) -> Arc<Template> {
    static TEMPLATES: Mutex<BTreeMap<usize, Arc<Template>>> = Mutex::new(BTreeMap::new());
    let mut templates = TEMPLATES.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(templates.entry(shards).or_insert_with(|| {
        fastrand::seed(1);
        let founded = simulate(trace::BEGIN_US, Template::found(shards, ROUTERS));
        Arc::new(founded.expect("founding does not panic").expect("the template can be founded"))
    }))
}

/// Plays a seed.
pub fn run(seed: u64, with_trace: bool) -> Report {
    run_with(seed, with_trace, None)
}

/// Plays a seed, in which some commits of the first node of each shard also meet a fault that no audit may overlook.
pub fn run_with_lies(seed: u64, lie: Fault) -> Report {
    run_with(seed, false, Some(lie))
}

fn run_with(seed: u64, with_trace: bool, lie: Option<Fault>) -> Report {
    // The template must not appear in the trace.
    let mut random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d);
    let template = template(if random.percent(75) { 2 } else { 3 });
    fastrand::seed(random.number());
    let recording = with_trace.then(trace::record);
    // Reads change the delays of everything else. Runs of odd seeds have none.
    let reader = seed.is_multiple_of(2).then(|| Random::new(seed ^ 0x2545_f491_4f6c_dd1d));
    // So do moves of slots. A run with moves takes three times as long, so that only each sixth has some: half of them with reads.
    let mover = (matches!(seed % 12, 0 | 9) && lie.is_none()).then(|| Random::new(seed ^ 0x6a09_e667_f3bc_c908));
    let outcome = simulate(trace::BEGIN_US + BEGIN_AFTER_US, play(&template, random, reader, mover, lie));
    let mut report = match outcome {
        Ok(report) => report,
        Err(panic) => Report { finding: Some(format!("panic: {panic}")), ..Report::default() },
    };
    report.trace = recording.map(trace::Recording::finish);
    report
}

async fn play(
    template: &Template,
    mut random: Random,
    reader: Option<Random>,
    mover: Option<Random>,
    lie: Option<Fault>,
) -> Report {
    let begun = Instant::now();
    let longest_ms = *random.pick(&[0, 2, 10, 60]);
    let cluster = Cluster::new(template, random.fork(), longest_ms, mover.is_some());
    for address in cluster.addresses() {
        let settings = cluster.any_settings();
        cluster.start_node(address, settings).expect("a simulated timer can be made");
    }
    (0..ROUTERS).for_each(|router| cluster.start_router(router));
    let before = audit::balances(&cluster);

    let heals_after = Duration::from_millis(random.between(1_500, 5_000));
    // Clients without trouble are done after one or two seconds.
    let strikes_within = Duration::from_millis(random.between(100, 1_500));
    let heals_at = begun + heals_after;
    let tasks = Tasks::new();
    let count = random.index(7);
    let mut planned = faults::draw(&mut random, count, strikes_within, cluster.shard_count(), ROUTERS);
    planned.extend(lie.into_iter().flat_map(|lie| faults::lies(lie, cluster.shard_count())));
    for planned in &planned {
        tasks.spawn("fault", faults::bring_about(cluster.clone(), begun, *planned));
    }
    let healing = cluster.clone();
    tasks.spawn("healing", async move {
        tokio::time::sleep_until(heals_at).await;
        faults::heal(&healing, ROUTERS);
    });
    let ordered = Ordered::default();
    let clients: Vec<_> = (0..random.between(2, 4))
        .map(|number| {
            let orders = 3 + random.index(8);
            let (random, until) = (random.fork(), heals_at + LIVENESS);
            let mut client = Client::new(number, cluster.clone(), ROUTERS, random, until, ordered.clone());
            tasks.spawn("client", async move {
                let outcome = client.run(orders).await;
                (client, outcome)
            })
        })
        .collect();
    let reading = reader.map(|mut random| {
        let reads = 5 + random.index(20);
        let mut reader = Reader::new(0, cluster.clone(), ROUTERS, random, ordered);
        tasks.spawn("reader", async move {
            let outcome = reader.run(reads).await;
            (reader, outcome)
        })
    });
    let movers: Vec<_> = mover
        .into_iter()
        .flat_map(|mut random| {
            let disturbance = moves::disturb(cluster.clone(), random.fork(), begun, Duration::from_secs(3));
            tasks.spawn("fault of moves", disturbance);
            let until = heals_at + LIVENESS;
            (0..random.between(1, 3))
                .map(|_| {
                    let mover = Mover::new(cluster.clone(), random.fork(), heals_at, until);
                    tasks.spawn("mover", mover.run(Duration::from_millis(1_500)))
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let mut report = Report { faults: planned.len(), ..Report::default() };
    let (mut clients_left, mut records, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    for client in join_all(clients).await {
        match client {
            Ok((mut client, outcome)) => {
                records.append(&mut client.records);
                groups.append(&mut client.groups);
                clients_left.push(client);
                report.finding = report.finding.take().or(outcome.err());
            }
            Err(panic) => report.finding = Some(format!("a client failed: {panic}")),
        }
    }
    let mut reader = None;
    if let Some(reading) = reading {
        match reading.await {
            Ok((it, outcome)) => {
                reader = Some(it);
                report.finding = report.finding.take().or(outcome.err());
            }
            Err(panic) => report.finding = Some(format!("a reader failed: {panic}")),
        }
    }
    for mover in join_all(movers).await {
        match mover {
            Ok(moved) => report.moves.add(moved),
            Err(panic) => report.finding = Some(format!("a mover failed: {panic}")),
        }
    }
    report.orders = records.len();
    report.attempts = records.iter().map(|record| record.attempts as usize).sum();
    report.doubtful = records.iter().filter(|record| record.is_doubtful).count();
    if report.finding.is_none() {
        tokio::time::sleep_until(heals_at).await;
        let ended = end(&cluster, heals_at, &mut clients_left[0], &mut records, &before).await;
        report.finding = ended.err();
        if let (Some(reader), None) = (&mut reader, &report.finding) {
            report.finding = check_reads(&cluster, reader, &records).await.err();
        }
        if report.finding.is_none() {
            match serial_order(&cluster, &before, &records, &groups) {
                SerialOrder::Exists => {}
                SerialOrder::Undecided => report.is_undecided = true,
                SerialOrder::Impossible(why) => report.finding = Some(why),
            }
        }
    }
    if let Some(reader) = reader {
        (report.reads, report.failed_reads) = (reader.reads.len(), reader.failed);
    }
    report.calls = cluster.network.calls();
    report.took = begun.elapsed();
    trace::note("run", || format!("ends: {:?}", report.finding));
    cluster.end();
    tasks.process().kill();
    report
}

/// Waits for sagas and folds, sends every order again, and compares the books with the answers.
async fn end(
    cluster: &Cluster,
    heals_at: Instant,
    client: &mut Client,
    records: &mut [Record],
    before: &BTreeMap<ledger::AccountId, i64>,
) -> Result<(), String> {
    if let Some(task) = cluster.failed() {
        return Err(format!("the essential task {task} has ended"));
    }
    loop {
        let under_way = cluster.databases().any(|database| database.sagas_under_way() > 0);
        // Between release and take, no shard counts the sagas of the slots.
        let unrest = moves::unrest(cluster);
        if !under_way && unrest.is_none() {
            break;
        }
        if unrest.is_none() && Instant::now() >= heals_at + LIVENESS {
            return Err("liveness: sagas are under way 30 s after everything has healed".to_owned());
        }
        if let Some(unrest) = unrest.filter(|_| Instant::now() >= heals_at + LIVENESS * 2) {
            return Err(format!("liveness: {unrest} 60 s after everything has healed"));
        }
        sleep(Duration::from_millis(250)).await;
    }
    if let Some(homeless) = moves::homeless(cluster, before.keys()) {
        return Err(homeless);
    }
    for record in records.iter_mut().filter(|record| record.answer.is_some() && !record.is_of_group) {
        let until = Instant::now() + LIVENESS;
        while client.attempt(record).await? != Proof::Answered {
            if Instant::now() >= until {
                return Err(format!("liveness: a replay has no answer: {:?}", record.order));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
    let until = Instant::now() + FOLDED_WITHIN;
    while !cluster.databases().all(ShardDatabase::is_folded) {
        if Instant::now() >= until {
            return Err("liveness: the folds do not reach the end of the journal".to_owned());
        }
        for address in cluster.addresses() {
            if let Some(node) = cluster.network.node(address) {
                node.fold_soon();
            }
        }
        sleep(Duration::from_millis(100)).await;
    }
    cluster.databases().for_each(ShardDatabase::check_folded);
    audit::audit(cluster, before, records)
}

/// Reads everything once more, and judges all reads.
async fn check_reads(cluster: &Cluster, reader: &mut Reader, records: &[Record]) -> Result<(), String> {
    reader.read_all(Instant::now() + LIVENESS).await?;
    let bookings: Vec<ledger::Booking> = cluster.databases().flat_map(ShardDatabase::bookings).collect();
    reads::check(&bookings, records, &reader.reads)
}

fn serial_order(
    cluster: &Cluster,
    before: &BTreeMap<ledger::AccountId, i64>,
    records: &[Record],
    groups: &[Group],
) -> SerialOrder {
    let accounts: Vec<ledger::Account> = cluster.databases().flat_map(|database| database.fold().0).collect();
    let beginning = Beginning { accounts: &cluster.accounts, balances: before };
    serial_order::find(&beginning, records, groups, &accounts, cluster.moment())
}

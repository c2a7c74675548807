//! Sends requests over many connections and times them.
//!
//! Closed loop: each connection sends its next request when the last one is answered. Open loop: requests leave at a fixed rate that does not
//! depend on the answers, and latency counts from the moment at which a request was *due* to leave. A server that stalls can therefore not
//! hide the requests that it kept waiting (no coordinated omission).
//!
//! The connections are distributed over threads, each with a runtime of its own, so that no request passes from one thread to another.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use rustix::time::{ClockId, clock_gettime};
use telemetry::clock;
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Address, Answer, Connection},
    request::{self, Ids, RequestWriter},
    tally::{Recorder, Tally, Window},
    workload::{Picker, Random},
};

/// How a load is driven.
#[derive(Debug, Clone)]
pub struct Load {
    /// The routers. Connections take them in turn.
    pub routers: Vec<Address>,
    pub connections: usize,
    /// Threads of the load generator.
    pub threads: usize,
    /// Transfers a request; 1 sends single transfers.
    pub batch: usize,
    /// Requests a second of all connections together; `None` is the closed loop.
    pub rate: Option<f64>,
    pub ids: Ids,
    /// The share of transfers that are sent a second time.
    pub replays: f64,
    /// How many times a request that was answered 503 is sent again. The pause before each attempt is [`RETRY_PAUSE`].
    pub retries: u32,
    /// The open loop leaves out requests that no connection was free for in time. Without this, it sends them later, and a load beyond the
    /// capacity of the connections runs past its end.
    pub leaves_out_late: bool,
    /// The time of load before the counting begins.
    pub warm_up: Duration,
    pub duration: Duration,
    /// Also counts by windows of this length.
    pub window: Option<Duration>,
    pub seed: u64,
    /// Cancelling this ends the load early.
    pub stop: CancellationToken,
}

/// The result of a load.
#[derive(Debug)]
pub struct LoadResult {
    pub tally: Tally,
    /// Answers with an effect, the warm-up's included.
    pub transfers_in_all: u64,
    pub windows: Vec<Window>,
    /// The longest time between two successful answers.
    pub longest_pause: Duration,
    /// Processor time of the generator's threads for each request, warm-up included.
    pub generator_us_per_request: f64,
}

/// A request is late if no connection was free for this long.
const LATE: Duration = Duration::from_millis(100);
/// The code that is counted for a request that was left out.
pub const NOT_SENT: &str = "not_sent";
/// How long a client waits before it sends a request again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(50);
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const SINGLE: &str = "/v1/transfers";
const BATCH: &str = "/v1/transfers:batch";

/// Ends the threads of the generator when the load is dropped.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the threads of one load share.
struct Shared {
    load: Load,
    picker: Arc<Picker>,
    start: Instant,
    /// The number of the next request of the open loop.
    next: AtomicU64,
    stopped: Arc<AtomicBool>,
}

/// Drives the load to its end.
pub async fn drive(load: &Load, picker: Arc<Picker>) -> anyhow::Result<LoadResult> {
    let stopped = StopOnDrop(Arc::default());
    let shared = Arc::new(Shared {
        load: load.clone(),
        picker,
        start: Instant::now(),
        next: AtomicU64::new(0),
        stopped: Arc::clone(&stopped.0),
    });
    let mut threads = JoinSet::new();
    for thread in 0..load.threads.clamp(1, load.connections) {
        let shared = Arc::clone(&shared);
        threads.spawn(async move { spawn_blocking(move || shared.run_thread(thread)).await? });
    }
    let mut recorder = Recorder::new(shared.start + load.warm_up, load.window)?;
    let (mut spent_us, mut requests) = (0.0, 0);
    while let Some(thread) = threads.join_next().await {
        let thread = thread??;
        recorder.merge(thread.recorder);
        spent_us += thread.spent_us;
        requests += thread.requests;
    }
    Ok(LoadResult {
        windows: recorder.windows(),
        longest_pause: recorder.longest_pause(),
        transfers_in_all: recorder.total.effects() + recorder.warm_up.effects(),
        tally: recorder.total,
        generator_us_per_request: if requests == 0 { 0.0 } else { spent_us / requests as f64 },
    })
}

/// What one thread has recorded, and the processor time that it has spent.
struct Thread {
    recorder: Recorder,
    spent_us: f64,
    requests: u64,
}

impl Shared {
    fn run_thread(self: Arc<Self>, thread: usize) -> anyhow::Result<Thread> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let spent_before_us = thread_time_us();
        let recorder = Arc::new(Mutex::new(Recorder::new(self.start + self.load.warm_up, self.load.window)?));
        let requests = runtime.block_on(self.run_connections(thread, &recorder))?;
        let spent_us = thread_time_us() - spent_before_us;
        drop(runtime);
        let recorder =
            Arc::into_inner(recorder).ok_or_else(|| anyhow::anyhow!("a connection outlived its thread"))?;
        Ok(Thread { recorder: recorder.into_inner().unwrap_or_else(PoisonError::into_inner), spent_us, requests })
    }

    async fn run_connections(self: Arc<Self>, thread: usize, recorder: &Arc<Mutex<Recorder>>) -> anyhow::Result<u64> {
        let load = &self.load;
        let threads = load.threads.clamp(1, load.connections);
        let mut workers = JoinSet::new();
        for number in (thread..load.connections).step_by(threads) {
            let router = &load.routers[number % load.routers.len()];
            let worker = ConnectionWorker {
                connection: Some(Connection::open(router).await?),
                router: router.clone(),
                writer: RequestWriter::new(Random::new(load.seed, number as u64), load.ids, load.replays),
                recorder: Arc::clone(recorder),
                shared: Arc::clone(&self),
                requests: 0,
            };
            workers.spawn(worker.run());
        }
        let mut requests = 0;
        while let Some(worker) = workers.join_next().await {
            requests += worker?;
        }
        Ok(requests)
    }
}

/// The processor time of the calling thread.
fn thread_time_us() -> f64 {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    spent.tv_sec as f64 * 1e6 + spent.tv_nsec as f64 / 1e3
}

struct ConnectionWorker {
    connection: Option<Connection>,
    router: Address,
    writer: RequestWriter,
    recorder: Arc<Mutex<Recorder>>,
    shared: Arc<Shared>,
    requests: u64,
}

impl ConnectionWorker {
    async fn run(mut self) -> u64 {
        let end = self.shared.start + self.shared.load.warm_up + self.shared.load.duration;
        loop {
            let intended = match self.shared.load.rate {
                None => Instant::now(),
                Some(rate) => {
                    let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
                    self.shared.start + Duration::from_secs_f64(number as f64 / rate)
                }
            };
            let stop = self.shared.stopped.load(Ordering::Relaxed) || self.shared.load.stop.is_cancelled();
            if intended >= end || stop {
                return self.requests;
            }
            if self.shared.load.leaves_out_late && Instant::now() > intended + LATE {
                self.record(intended, |tally| tally.count_code(NOT_SENT));
                continue;
            }
            // A request whose time has passed is sent at once.
            if self.shared.load.rate.is_some() {
                sleep_until(intended).await;
            }
            self.requests += 1;
            if self.request(intended).await.is_err() {
                self.connection = None;
                self.record(intended, |tally| tally.count_code("connection_broken"));
                sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    async fn request(&mut self, intended: Instant) -> anyhow::Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.router).await?),
        };
        let Shared { load, picker, .. } = &*self.shared;
        let (writer, batch) = (&mut self.writer, load.batch);
        let now_ms = u64::try_from(clock::now_us() / 1_000).unwrap_or_default();
        let mut sent = Instant::now();
        let mut answer = match batch {
            1 => connection.post(SINGLE, |body| writer.single(picker, now_ms, body)).await?,
            _ => connection.post(BATCH, |body| writer.batch(picker, batch, now_ms, body)).await?,
        };
        for _ in 0..load.retries {
            if answer.status != StatusCode::SERVICE_UNAVAILABLE {
                break;
            }
            sleep(RETRY_PAUSE).await;
            sent = Instant::now();
            answer = connection.again().await?;
        }
        let Answer { status, replayed, body } = answer;
        let answered = Instant::now();
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.record(intended, answered, |tally| {
            let before = tally.posted + tally.pending;
            request::count(status, body, batch as u64, tally);
            if tally.posted + tally.pending == before {
                tally.record_refusal(answered - sent);
            }
            // For a batch, the body says for each transfer whether it is a replay.
            tally.replayed += u64::from(batch == 1 && replayed);
        });
        Ok(())
    }

    fn record(&self, intended: Instant, count: impl Fn(&mut Tally)) {
        let mut recorder = self.recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.record(intended, Instant::now(), count);
    }
}

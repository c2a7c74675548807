//! Sends requests over many connections and times them.
//!
//! Closed loop: each connection sends its next request when the last one is answered. Open loop: requests leave at a
//! fixed rate whatever the answers do, and latency counts from the moment a request was *meant* to leave, so that a
//! server that stalls cannot hide the requests it kept waiting (no coordinated omission).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use telemetry::clock;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    connection::{Address, Connection},
    random::Random,
    request::{self, Writer},
    tally::Tally,
    workload::Picker,
};

/// How a load is driven.
#[derive(Debug, Clone)]
pub struct Load {
    /// Connections take these in turn.
    pub routers: Vec<Address>,
    pub connections: usize,
    /// Transfers a request; 1 sends single transfers.
    pub batch: usize,
    /// Requests a second of all connections together; `None` is the closed loop.
    pub rate: Option<f64>,
    /// Sent before anything counts.
    pub warm_up: Duration,
    pub duration: Duration,
    pub seed: u64,
}

const RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const SINGLE: &str = "/v1/transfers";
const BATCH: &str = "/v1/transfers:batch";

/// Drives the load to its end.
pub async fn drive(load: &Load, picker: Arc<Picker>) -> anyhow::Result<Tally> {
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for (number, router) in (0..load.connections).zip(load.routers.iter().cycle()) {
        let worker = Worker {
            // Opened before the clock of the first request runs: connecting is not what is measured.
            connection: Some(Connection::open(router).await?),
            router: router.clone(),
            writer: Writer::new(Random::new(load.seed, number as u64)),
            picker: Arc::clone(&picker),
            load: load.clone(),
            next: Arc::clone(&next),
            tally: Tally::new()?,
        };
        workers.spawn(worker.run(start));
    }
    let mut tally = Tally::new()?;
    while let Some(worker) = workers.join_next().await {
        tally.merge(worker?);
    }
    Ok(tally)
}

struct Worker {
    connection: Option<Connection>,
    router: Address,
    writer: Writer,
    picker: Arc<Picker>,
    load: Load,
    /// Number of the next request of the open loop.
    next: Arc<AtomicU64>,
    tally: Tally,
}

impl Worker {
    async fn run(mut self, start: Instant) -> Tally {
        let counted_from = start + self.load.warm_up;
        let end = counted_from + self.load.duration;
        loop {
            let intended = match self.load.rate {
                None => Instant::now(),
                Some(rate) => {
                    let number = self.next.fetch_add(1, Ordering::Relaxed);
                    start + Duration::from_secs_f64(number as f64 / rate)
                }
            };
            if intended >= end {
                return self.tally;
            }
            // A schedule that lies in the past is caught up with at once.
            sleep_until(intended).await;
            self.request(intended, intended >= counted_from).await;
        }
    }

    async fn request(&mut self, intended: Instant, counts: bool) {
        let (path, body) = self.write();
        match self.exchange(path, body).await {
            Ok((status, answer)) if counts => {
                self.tally.record(intended.elapsed());
                request::count(status, &answer, self.load.batch as u64, &mut self.tally);
            }
            Ok(_) => {}
            Err(_) => {
                self.connection = None;
                if counts {
                    self.tally.record(intended.elapsed());
                    self.tally.count_code("connection_broken");
                }
                sleep(RECONNECT_PAUSE).await;
            }
        }
    }

    fn write(&mut self) -> (&'static str, Bytes) {
        let now_ms = u64::try_from(clock::now_us() / 1_000).unwrap_or_default();
        match self.load.batch {
            1 => (SINGLE, self.writer.single(&self.picker, now_ms)),
            size => (BATCH, self.writer.batch(&self.picker, size, now_ms)),
        }
    }

    async fn exchange(&mut self, path: &'static str, body: Bytes) -> anyhow::Result<(http::StatusCode, Bytes)> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.router).await?),
        };
        connection.post(path, body).await
    }
}

//! What a connection is doing, seen from both ends: bytes that arrive, and requests being answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use http::Version;
use tokio::time::Instant;

/// Times are milliseconds since the connection began, plus one, so that 0 can say "not".
///
/// Read by the connection's own task, and written there too except for HTTP/2's streams; an order between the fields is
/// not needed, because a check that misses a change sees it the next time.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    requests: AtomicUsize,
    /// When a request's head began to arrive that has not arrived whole.
    head_since: AtomicU64,
    /// When the newest request was answered.
    idle_since: AtomicU64,
    /// HTTP/2: bytes that arrive between requests are no head, but the protocol's own.
    multiplexed: AtomicBool,
    opening: Opening,
}

/// Counts a connection among those of its peer's network whose first head has not arrived, until it arrives or the connection ends.
#[derive(Debug)]
struct Opening {
    is_counted: AtomicBool,
    of_network: Arc<AtomicUsize>,
}

/// What takes too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdue {
    Head,
    Idle,
}

/// What a connection does that answers no request, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// A head has begun to arrive, or the connection is new.
    Head(Duration),
    Idle(Duration),
}

/// A request being answered.
pub struct RequestActivity(Arc<Activity>);

impl Activity {
    /// A connection is taken to begin with a head: one that says nothing is no better than one that trickles.
    /// `opening` counts the connections of the same network whose first head has not arrived.
    pub fn begin(opening: &Arc<AtomicUsize>) -> Arc<Self> {
        opening.fetch_add(1, Relaxed);
        Arc::new(Self {
            opening: Opening { is_counted: AtomicBool::new(true), of_network: Arc::clone(opening) },
            began: Instant::now(),
            requests: AtomicUsize::new(0),
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(1),
            multiplexed: AtomicBool::new(false),
        })
    }

    /// A head has arrived.
    pub fn request(self: &Arc<Self>, version: Version) -> RequestActivity {
        self.requests.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        self.opening.end();
        self.multiplexed.store(version == Version::HTTP_2, Relaxed);
        RequestActivity(Arc::clone(self))
    }

    /// Whether the first head has not arrived.
    pub fn is_opening(&self) -> bool {
        self.opening.is_counted.load(Relaxed)
    }

    /// The connection is told to close: its place is free before its task ends.
    pub fn give_way(&self) {
        self.opening.end();
    }

    /// A further part of an answer is ready.
    pub fn answer_goes_on(&self) {
        self.idle_since.store(self.now(), Relaxed);
    }

    pub fn bytes_arrived(&self) {
        let between_requests = self.requests.load(Relaxed) == 0 && !self.multiplexed.load(Relaxed);
        if between_requests && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    /// `None` while a request is being answered.
    pub fn rest(&self) -> Option<Rest> {
        if self.requests.load(Relaxed) > 0 {
            return None;
        }
        let since = |since: u64| Duration::from_millis(self.now().saturating_sub(since));
        Some(match self.head_since.load(Relaxed) {
            0 => Rest::Idle(since(self.idle_since.load(Relaxed))),
            begin => Rest::Head(since(begin)),
        })
    }

    pub fn overdue(&self, header_timeout: Duration, idle_timeout: Duration) -> Option<Overdue> {
        match self.rest()? {
            Rest::Idle(rest) => (rest >= idle_timeout).then_some(Overdue::Idle),
            Rest::Head(rest) => (rest >= header_timeout).then_some(Overdue::Head),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl Opening {
    fn end(&self) {
        if self.is_counted.swap(false, Relaxed) {
            self.of_network.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for RequestActivity {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.now(), Relaxed);
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

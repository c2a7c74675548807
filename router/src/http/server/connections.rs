//! The connections of one listener: how many there may be, and which one gives way to a new one when there is no room.
//!
//! Closing an idle connection costs its client one reconnect; refusing a new client costs that client its request. The connection that
//! has been idle for longest is therefore closed. Connections with an unfinished head have a small share of the room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Rest};

/// A connection gives way only if it has rested, or has been sending a head, for so long: one that is in use pauses between requests.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Connections with an unfinished head may hold 1/`SLOW_SHARE` of all connections. Beyond that share, the slowest of them is closed before
/// any idle connection.
const SLOW_SHARE: usize = 8;
/// For so long after a refusal the listener counts as full.
const FULL_FOR: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Connections {
    max: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next_number: u64,
    entries: HashMap<u64, Entry>,
    refused_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Entry {
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// The place of a connection, for as long as this lives.
pub struct Place {
    connections: Arc<Connections>,
    number: u64,
    pub activity: Arc<Activity>,
    /// Cancelled when the connection has to give way.
    pub leave: CancellationToken,
}

impl Connections {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default() })
    }

    /// A place for a new connection. Where none is free, a connection is told to give way. `None`: every connection is in use.
    pub fn admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.entries.len() >= self.max {
            let Some(number) = open.next_to_close(self.max / SLOW_SHARE) else {
                open.refused_at = Some(Instant::now());
                return None;
            };
            // Its place is free at once. The connection itself closes as soon as its task runs.
            if let Some(entry) = open.entries.remove(&number) {
                entry.leave.cancel();
            }
        }
        let number = open.next_number;
        open.next_number += 1;
        let (activity, leave) = (Activity::begin(), CancellationToken::new());
        open.entries.insert(number, Entry { activity: Arc::clone(&activity), leave: leave.clone() });
        Some(Place { connections: Arc::clone(self), number, activity, leave })
    }

    /// Whether new clients were refused within the last second because every connection was in use.
    pub fn are_full(&self) -> bool {
        self.open().refused_at.is_some_and(|at| at.elapsed() < FULL_FOR)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // No code panics while it holds the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// The connection that gives way: the slowest head if heads have more than their share, then the one that has been idle for longest,
    /// then the slowest head.
    fn next_to_close(&self, slow_share: usize) -> Option<u64> {
        let (mut idle, mut head) = (None, None);
        let mut heads = 0;
        for (number, entry) in &self.entries {
            let (longest, rest) = match entry.activity.rest() {
                Some(Rest::Idle(rest)) => (&mut idle, rest),
                Some(Rest::Head(rest)) => (&mut head, rest),
                None => continue,
            };
            if rest < SHORTEST_REST {
                continue;
            }
            heads += usize::from(matches!(entry.activity.rest(), Some(Rest::Head(_))));
            if longest.is_none_or(|(_, before)| before < rest) {
                *longest = Some((*number, rest));
            }
        }
        let (idle, head) = (idle.map(|(number, _)| number), head.map(|(number, _)| number));
        if heads > slow_share { head.or(idle) } else { idle.or(head) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.open().entries.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    async fn after(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    /// A connection that has answered a request and is idle now.
    fn idle(connections: &Arc<Connections>) -> Place {
        let place = connections.admit().unwrap();
        drop(place.activity.request(Version::HTTP_11));
        place
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_rested_for_longest_gives_way() {
        let connections = Connections::new(3);
        let busy = connections.admit().unwrap();
        let _request = busy.activity.request(Version::HTTP_11);
        let first = idle(&connections);
        after(100).await;
        let second = idle(&connections);
        assert!(connections.admit().is_none(), "both have paused for a moment only");
        assert!(connections.are_full());
        after(1_000).await;
        assert!(!connections.are_full());
        let third = connections.admit().unwrap();
        assert!(first.leave.is_cancelled() && !second.leave.is_cancelled() && !busy.leave.is_cancelled());
        // The connection that was told to leave gives its place back once.
        drop(first);
        let _request = third.activity.request(Version::HTTP_11);
        let _fourth = connections.admit().unwrap();
        assert!(second.leave.is_cancelled());
        assert!(connections.admit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_heads_beyond_their_share_give_way_before_idle_connections() {
        let connections = Connections::new(16);
        let resting = idle(&connections);
        after(10).await;
        let slow: Vec<Place> = (0..15).map(|_| connections.admit().unwrap()).collect();
        after(1_000).await;
        // Two of sixteen is their share.
        let mut new: Vec<Place> = Vec::new();
        for _ in 0..13 {
            new.push(idle(&connections));
            assert!(!resting.leave.is_cancelled());
        }
        assert_eq!(slow.iter().filter(|place| place.leave.is_cancelled()).count(), 13);
        new.push(idle(&connections));
        assert!(resting.leave.is_cancelled(), "the heads are within their share");
        new.push(idle(&connections));
        assert_eq!(
            slow.iter().filter(|place| place.leave.is_cancelled()).count(),
            14,
            "the new ones have not rested yet"
        );
    }
}

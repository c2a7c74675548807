//! The connections of one listener: how many there may be, and which one gives way to a new one when there is no room.
//!
//! Closing an idle connection costs its client one reconnect; refusing a new client costs that client its request. The connection that
//! has been idle for longest is therefore closed. Connections with an unfinished head have a small share of the room.
//!
//! Connections that have sent no request cost a client nothing. One address (with IPv6, one network) may have half of the room for them, so that
//! sockets without a word from one host leave room for every other host. A network with more than half of all connections gives way to the others
//! between two requests, too, however short the pause is.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use certificates::network_of;
use http::Version;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A connection gives way only if it has rested, or has been sending a head, for so long: one that is in use pauses between requests.
const SHORTEST_REST: Duration = Duration::from_millis(500);
/// Connections with an unfinished head may hold 1/`SLOW_SHARE` of all connections. Beyond that share, the slowest of them is closed before
/// any idle connection.
const SLOW_SHARE: usize = 8;
/// Connections of one network whose first head has not arrived, TLS handshakes included, may hold 1/`OPENING_SHARE` of all connections. Beyond
/// that share, the slowest of them is closed.
const OPENING_SHARE: usize = 2;
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
    networks: HashMap<IpAddr, Network>,
    refused_at: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Entry {
    network: IpAddr,
    activity: Arc<Activity>,
    leave: CancellationToken,
}

/// The connections of one network.
#[derive(Debug, Default)]
struct Network {
    connections: usize,
    /// Its connections whose first head has not arrived.
    opening: Arc<AtomicUsize>,
}

/// Why a connection gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Every connection is in use.
    Full,
    /// Too many connections of the same network have sent no request, and none of them has rested.
    NetworkShare,
}

/// The place of a connection, for as long as this lives.
pub struct ConnectionPlace {
    connections: Arc<Connections>,
    number: u64,
    /// The address of the peer.
    pub address: IpAddr,
    pub activity: Arc<Activity>,
    /// Cancelled when the connection has to give way.
    pub leave: CancellationToken,
}

impl Connections {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default() })
    }

    /// A place for a new connection from this address. Where none is free, a connection is told to give way.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Result<ConnectionPlace, NoPlace> {
        let network = network_of(address);
        let mut open = self.open();
        if open.opening(network) >= (self.max / OPENING_SHARE).max(1) {
            let number = open.slowest_opening(network).ok_or(NoPlace::NetworkShare)?;
            open.close(number);
        }
        if open.entries.len() >= self.max {
            let victim =
                open.next_to_close(self.max / SLOW_SHARE).or_else(|| open.one_of_majority(self.max, network));
            let Some(number) = victim else {
                open.refused_at = Some(Instant::now());
                return Err(NoPlace::Full);
            };
            open.close(number);
        }
        let number = open.next_number;
        open.next_number += 1;
        let of_network = open.networks.entry(network).or_default();
        of_network.connections += 1;
        let (activity, leave) = (Activity::begin(&of_network.opening), CancellationToken::new());
        open.entries.insert(number, Entry { network, activity: Arc::clone(&activity), leave: leave.clone() });
        Ok(ConnectionPlace { connections: Arc::clone(self), number, address, activity, leave })
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
    /// Connections of the network whose first head has not arrived.
    fn opening(&self, network: IpAddr) -> usize {
        self.networks.get(&network).map_or(0, |of_network| of_network.opening.load(Relaxed))
    }

    /// Tells a connection to give way. Its place is free at once. The connection itself closes as soon as its task runs.
    fn close(&mut self, number: u64) {
        if let Some(entry) = self.remove(number) {
            entry.activity.give_way();
            entry.leave.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        if let Some(of_network) = self.networks.get_mut(&entry.network) {
            of_network.connections -= 1;
            if of_network.connections == 0 {
                self.networks.remove(&entry.network);
            }
        }
        Some(entry)
    }

    /// The connection of the network that has been sending its first head for longest.
    fn slowest_opening(&self, network: IpAddr) -> Option<u64> {
        let slowest = self.entries.iter().filter(|(_, entry)| entry.network == network).filter_map(
            |(number, entry)| match entry.activity.rest() {
                Some(Rest::Head(rest)) if entry.activity.is_opening() && rest >= SHORTEST_REST => {
                    Some((rest, *number))
                }
                _ => None,
            },
        );
        slowest.max().map(|(_, number)| number)
    }

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

    /// If another network than the newcomer's has more than half of all connections, the one of them that has rested for longest. A request that
    /// is being answered is never cut off.
    fn one_of_majority(&self, max: usize, newcomer: IpAddr) -> Option<u64> {
        let (majority, _) = self.networks.iter().find(|(_, of_network)| of_network.connections > max / 2)?;
        if *majority == newcomer {
            return None;
        }
        let resting =
            self.entries.iter().filter(|(_, entry)| entry.network == *majority).filter_map(|(number, entry)| {
                match entry.activity.rest()? {
                    Rest::Head(rest) | Rest::Idle(rest) => Some((rest, *number)),
                }
            });
        resting.max().map(|(_, number)| number)
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.connections.open().remove(self.number);
    }
}

// === what a connection is doing ===

/// What a connection is doing, seen from both ends: bytes that arrive, and requests being answered.
///
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
    /// A connection begins with a head: one that sends nothing is treated as one whose head trickles in.
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// One of many hosts.
    fn host(number: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, number).into()
    }

    async fn after(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    /// A connection that has answered a request and is idle now.
    fn idle(connections: &Arc<Connections>) -> ConnectionPlace {
        let place = connections.admit(HOST).unwrap();
        drop(place.activity.request(Version::HTTP_11));
        place
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_rested_for_longest_gives_way() {
        let connections = Connections::new(3);
        let busy = connections.admit(HOST).unwrap();
        let _request = busy.activity.request(Version::HTTP_11);
        let first = idle(&connections);
        after(100).await;
        let second = idle(&connections);
        assert!(connections.admit(HOST).is_err(), "both have paused for a moment only");
        assert!(connections.are_full());
        after(1_000).await;
        assert!(!connections.are_full());
        let third = connections.admit(HOST).unwrap();
        assert!(first.leave.is_cancelled() && !second.leave.is_cancelled() && !busy.leave.is_cancelled());
        // The connection that was told to leave gives its place back once.
        drop(first);
        let _request = third.activity.request(Version::HTTP_11);
        let _fourth = connections.admit(HOST).unwrap();
        assert!(second.leave.is_cancelled());
        assert!(connections.admit(HOST).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_heads_beyond_their_share_give_way_before_idle_connections() {
        let connections = Connections::new(16);
        let resting = idle(&connections);
        after(10).await;
        let slow: Vec<ConnectionPlace> = (0..15).map(|number| connections.admit(host(number)).unwrap()).collect();
        after(1_000).await;
        // Two of sixteen is their share.
        let mut new: Vec<ConnectionPlace> = Vec::new();
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

    #[tokio::test(start_paused = true)]
    async fn a_host_with_most_connections_gives_way_to_others_between_its_requests() {
        let connections = Connections::new(4);
        let busy: Vec<ConnectionPlace> = (0..4).map(|_| idle(&connections)).collect();
        // A request on each of them every 400 ms, which costs the host no key.
        for _ in 0..3 {
            after(400).await;
            busy.iter().for_each(|place| drop(place.activity.request(Version::HTTP_11)));
        }
        after(100).await;
        assert_eq!(connections.admit(HOST).err(), Some(NoPlace::Full), "the host takes nothing from itself");
        after(2_000).await;
        busy.iter().for_each(|place| drop(place.activity.request(Version::HTTP_11)));
        let gone = || busy.iter().filter(|place| place.leave.is_cancelled()).count();
        let first = connections.admit(host(1)).unwrap();
        assert_eq!((gone(), connections.are_full()), (1, false));
        // No request is cut off.
        let requests: Vec<_> = busy.iter().map(|place| place.activity.request(Version::HTTP_11)).collect();
        assert_eq!(connections.admit(host(2)).err(), Some(NoPlace::Full));
        drop(requests);
        let second = connections.admit(host(2)).unwrap();
        assert_eq!(gone(), 2);
        // With half of the connections, the host keeps what it uses.
        assert_eq!(connections.admit(host(3)).err(), Some(NoPlace::Full));
        drop((first, second));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_of_one_host_leave_half_of_the_room_to_others() {
        let connections = Connections::new(8);
        let silent: Vec<ConnectionPlace> = (0..4).map(|_| connections.admit(HOST).unwrap()).collect();
        assert_eq!(connections.admit(HOST).err(), Some(NoPlace::NetworkShare), "none of them has rested");
        assert!(!connections.are_full());
        let other = connections.admit(host(1)).unwrap();
        after(1_000).await;
        // The slowest of the same host gives way, however much room there is.
        let next = connections.admit(HOST).unwrap();
        assert_eq!(silent.iter().filter(|place| place.leave.is_cancelled()).count(), 1);
        assert!(!other.leave.is_cancelled());
        // A connection that has sent a request counts no longer.
        drop(next.activity.request(Version::HTTP_11));
        let last = connections.admit(HOST).unwrap();
        assert_eq!(silent.iter().filter(|place| place.leave.is_cancelled()).count(), 1);
        drop((silent, next, last, other));
        assert!(connections.open().networks.is_empty() && connections.open().entries.is_empty());
    }
}

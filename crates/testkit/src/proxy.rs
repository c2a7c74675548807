//! A TCP proxy in front of PostgreSQL. It imitates faults of the network. It also reads the protocol, so that it can lose the answer to a
//! COMMIT, or the COMMIT itself.
//!
//! The test's seed determines the random delays.

mod connection;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::seed::Random;

/// The fault of the network that the proxy imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    Clear,
    /// The proxy delays each piece of data by a random time up to this one.
    Slow {
        longest: Duration,
    },
    /// The proxy forwards nothing in either direction and keeps connections open.
    BlackHole,
    /// The proxy closes new connections at once. Existing ones continue.
    Refuse,
}

/// The fault that the next COMMIT meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CommitFault {
    None = 0,
    /// The server executes the COMMIT, and the connection breaks before the answer.
    DropReply = 1,
    /// The COMMIT never arrives, and the connection breaks.
    Swallow = 2,
}

/// A running proxy. Dropping it ends the proxy.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _ends: DropGuard,
}

#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    /// Drops the start-up parameters of sessions, as some poolers do.
    drops_options: AtomicBool,
    weather: watch::Sender<Weather>,
    commit_fault: AtomicU8,
    commit_faults_done: AtomicU64,
    connections: AtomicU64,
    /// The token that open connections watch. The proxy cancels and replaces it to break them.
    alive: Mutex<CancellationToken>,
    random: Mutex<Random>,
}

impl TcpProxy {
    /// Listens on a free port and forwards to `upstream`.
    pub async fn start(upstream: SocketAddr, random: Random) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            drops_options: AtomicBool::new(false),
            weather: watch::Sender::new(Weather::Clear),
            commit_fault: AtomicU8::new(CommitFault::None as u8),
            commit_faults_done: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            alive: Mutex::new(end.child_token()),
            random: Mutex::new(random),
        });
        #[allow(clippy::disallowed_methods, reason = "ends with the proxy, by its token")]
        tokio::spawn(accept(listener, shared.clone(), end.clone()));
        Ok(Self { address, shared, _ends: end.drop_guard() })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A database URL that leads through the proxy.
    pub fn through(&self, url: &str) -> anyhow::Result<String> {
        let upstream = self.shared.upstream().to_string();
        anyhow::ensure!(url.contains(&upstream), "the URL does not lead to {upstream}");
        Ok(url.replace(&upstream, &self.address.to_string()))
    }

    /// Forwards to another server from now on and breaks open connections, like an address that moves.
    pub fn retarget(&self, upstream: SocketAddr) {
        self.retarget_new(upstream);
        self.cut();
    }

    /// Forwards new connections to another server and keeps open ones, like a host name that resolves to another
    /// address.
    pub fn retarget_new(&self, upstream: SocketAddr) {
        *self.shared.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
    }

    /// Drops the settings that sessions request when they start.
    pub fn drop_options(&self, drops: bool) {
        self.shared.drops_options.store(drops, SeqCst);
    }

    pub fn set_weather(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Breaks every open connection.
    pub fn cut(&self) {
        let mut alive = self.shared.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.cancel();
        *alive = CancellationToken::new();
    }

    /// Applies the fault to the next COMMIT on any connection.
    pub fn next_commit(&self, fault: CommitFault) {
        self.shared.commit_fault.store(fault as u8, SeqCst);
    }

    /// The number of COMMITs that met a fault; it proves that the fault occurred.
    pub fn commit_faults_done(&self) -> u64 {
        self.shared.commit_faults_done.load(SeqCst)
    }

    /// The number of connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(SeqCst)
    }
}

impl Shared {
    fn upstream(&self) -> SocketAddr {
        *self.upstream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the fault, so that only one COMMIT meets it.
    fn take_commit_fault(&self) -> CommitFault {
        match self.commit_fault.swap(CommitFault::None as u8, SeqCst) {
            1 => CommitFault::DropReply,
            2 => CommitFault::Swallow,
            _ => CommitFault::None,
        }
    }

    fn commit_fault_done(&self) {
        self.commit_faults_done.fetch_add(1, SeqCst);
    }

    /// Delays a piece of data as the present fault requires.
    async fn pass(&self) {
        let mut weather = self.weather.subscribe();
        loop {
            let now = *weather.borrow_and_update();
            match now {
                Weather::Clear | Weather::Refuse => return,
                Weather::Slow { longest } => {
                    let longest_us = usize::try_from(longest.as_micros()).unwrap_or(usize::MAX);
                    let wait_us = self.random.lock().unwrap_or_else(PoisonError::into_inner).below(longest_us);
                    return tokio::time::sleep(Duration::from_micros(wait_us as u64)).await;
                }
                Weather::BlackHole => {
                    if weather.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, end: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let client = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => client,
                Err(_) => continue,
            },
            Some(_) = connections.join_next() => continue,
        };
        if *shared.weather.borrow() == Weather::Refuse {
            continue;
        }
        shared.connections.fetch_add(1, SeqCst);
        let alive = shared.alive.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let shared = shared.clone();
        connections.spawn(async move {
            tokio::select! {
                () = alive.cancelled() => {}
                () = forward(client, &shared) => {}
            }
        });
    }
}

async fn forward(client: TcpStream, shared: &Shared) {
    let Ok(server) = TcpStream::connect(shared.upstream()).await else { return };
    // When one side ends, in whatever way, the proxy ends the other side.
    let _ = connection::run(client, server, shared).await;
}

//! Calls to shard-nodes, for routers and for other nodes.
//!
//! [`Client`] knows the nodes of one shard and uses the first that can be reached. [`Connection`] is one HTTP/2 connection to a node. The
//! caller introduces itself on each connection before it is used ([`Introduce`]). A failed call says whether the request may have been
//! executed ([`CallFailure`]).

mod client;
mod connection;
mod peer_clock;
#[cfg(feature = "simulation")]
pub mod simulation;

pub use client::{CallFailure, Client};
pub use connection::{ConnectError, Connection, MovesClient, NodeClient, NotSent};
pub use peer_clock::PeerClock;

/// What a node has said of itself in the introduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduced {
    /// Its steady clock, in microseconds; 0 if it does not say.
    pub steady_us: i64,
    /// Its reads and writes work.
    pub serves: bool,
}

impl Introduced {
    pub fn of(answer: &wire::IdentifyResponse) -> Self {
        let works = |readiness: &Option<wire::Readiness>| readiness.as_ref().is_some_and(|it| it.works);
        Self { steady_us: answer.steady_us, serves: works(&answer.reads) && works(&answer.writes) }
    }
}

/// Introduces the caller to the node at the other end of a new connection.
#[tonic::async_trait]
pub trait Introduce: Send + Sync {
    /// The first call on a connection. The node must be of the shard that the caller wants.
    ///
    /// # Errors
    /// If the node does not answer, or refuses the caller. The client does not use the connection then.
    async fn introduce(&self, node: NodeClient, uri: &str) -> Result<Introduced, ConnectError>;

    /// Adds headers to each later call.
    fn headers(&self, headers: &mut http::HeaderMap);
}

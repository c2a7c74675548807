//! Moves of slots between shards (`docs/adr/0010`).
//!
//! The node of the target drives a move ([`driver`]) from the row that it keeps in its database (`store::moves`), and folds what it
//! copies into the shard's tables ([`incoming`]). The node of the source answers its calls ([`source`]) and gives the slots away in one
//! transaction ([`hand_over`]). [`leave`] ends its part. [`phase`] says which step may follow which. [`activity`] is what a driver does at
//! the moment, for operators. [`rpc`] is the service. [`crate::durable`] lists the durable steps.

mod activity;
pub mod driver;
pub mod hand_over;
pub mod incoming;
mod leave;
mod load;
pub mod phase;
pub mod progress;
mod publish;
pub mod rpc;
pub mod source;
pub mod throttle;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use certificates::Mutual;
use sqlx::{PgPool, Postgres, pool::PoolConnection};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::{
    clock::NodeClock,
    gate::Gate,
    hosts::Hosts,
    lane::LaneHandle,
    role::NodeRole,
    store::{
        StoreError,
        read::{self, Readable},
        session,
    },
};
use activity::Activity;
use source::Verified;

/// The id of a move in a message.
fn id_to_wire(id: Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id.as_bytes())
}

/// The state that the driver and the service of moves share.
#[derive(Clone)]
pub struct Moves(Arc<Shared>);

struct Shared {
    hosts: Hosts,
    gate: Gate,
    role: NodeRole,
    clock: Arc<NodeClock>,
    lane: LaneHandle,
    /// Connections of the moves alone: a copy must not take the connections of reads.
    pool: PgPool,
    /// For reads of the newest shard map.
    reads: PgPool,
    /// The certificate with which this node calls others; `None`: without TLS.
    tls: Option<Mutual>,
    /// What this node has summed up for moves away from its shard.
    verified: Mutex<HashMap<Uuid, Verified>>,
    /// What the drivers of this node do.
    activities: Mutex<HashMap<Uuid, Activity>>,
    /// Until then, no move to this shard is started: the shard is being removed.
    closed_until: Mutex<Option<Instant>>,
    /// A move was started, or an operator wants something.
    news: Notify,
}

/// Why a step of a move failed.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Another driver has taken over, or the move has gone on.
    #[error("another driver has taken over the move, or the move has gone on")]
    Superseded,
    /// The step cannot be taken. The text says why.
    #[error("{0}")]
    Refused(String),
    /// This node does not serve its database at present. That says nothing about the move.
    #[error("{0}")]
    NotServing(String),
    /// The cut-over would pause the slots for longer than the operator allows.
    #[error("{0}")]
    TooLong(String),
    /// The two sides differ.
    #[error("{0}")]
    Differs(String),
    /// The node of the source does not answer.
    #[error("shard {shard} does not answer: {reason}")]
    Unreachable { shard: String, reason: String },
}

impl From<sqlx::Error> for MoveError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into_move_error()
    }
}

impl StoreError {
    fn into_move_error(self) -> MoveError {
        if self.is_superseded_move() { MoveError::Superseded } else { MoveError::Store(self) }
    }
}

impl Moves {
    pub fn new(
        hosts: Hosts,
        gate: Gate,
        role: NodeRole,
        clock: Arc<NodeClock>,
        lane: LaneHandle,
        reads: PgPool,
        tls: Option<Mutual>,
    ) -> Self {
        let pool = session::move_pool(&hosts, &gate);
        let (verified, activities, closed_until, news) = Default::default();
        Self(Arc::new(Shared {
            hosts,
            gate,
            role,
            clock,
            lane,
            pool,
            reads,
            tls,
            verified,
            activities,
            closed_until,
            news,
        }))
    }

    async fn connection(&self) -> Result<PoolConnection<Postgres>, MoveError> {
        if let Some(why) = self.0.gate.closed() {
            return Err(MoveError::NotServing(why));
        }
        Ok(self.0.pool.acquire().await?)
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<Uuid, Verified>> {
        // No code panics while it holds this lock.
        self.0.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_us(&self) -> i64 {
        self.0.clock.now_us()
    }

    /// The number of this shard.
    fn number(&self) -> Result<u16, MoveError> {
        let (record, _) = self.0.gate.last_seen();
        record
            .map(|record| record.identity.number)
            .ok_or_else(|| MoveError::NotServing("the node has not reached its database yet".to_owned()))
    }

    /// The newest map that this shard was given.
    async fn map(&self) -> Result<shard_map::ShardMap, MoveError> {
        let (text, _) = read::shard_map(&Readable::Database(self.0.reads.clone())).await?;
        shard_map::ShardMap::parse(&text)
            .map_err(|error| MoveError::Refused(format!("the shard's map cannot be read: {error}")))
    }

    pub async fn close(&self) {
        self.0.pool.close().await;
    }
}

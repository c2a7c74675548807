//! Moves of slots between shards (`docs/adr/0010`).
//!
//! The node of the target drives a move ([`driver`]) from the row that it keeps in its database, and folds what it copies into the
//! shard's tables ([`incoming`]). The node of the source answers its calls ([`source`]) and gives the slots away in one transaction
//! ([`hand_over`]). [`leave`] ends its part. [`phase`] says which step may follow which, [`scope`] what a move is about, and [`sums`] what it
//! comes to. [`activity`] is what a driver does at the moment, for operators. [`rpc`] is the service. [`crate::durable`] lists the durable
//! steps, and `crate::store::moves` carries them out.

mod activity;
pub mod driver;
pub mod error;
pub mod hand_over;
pub mod incoming;
mod leave;
mod load;
pub mod phase;
pub mod progress;
mod publish;
pub mod rpc;
pub mod scope;
pub mod source;
pub mod sums;
pub mod throttle;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use certificates::Mutual;
use tokio::{sync::Notify, time::Instant};
use uuid::Uuid;

use crate::{
    clock::NodeClock,
    gate::Gate,
    lane::LaneHandle,
    role::NodeRole,
    store::{
        moves::MoveStore,
        read::{self, Readable},
    },
};
use activity::Activity;
use error::MoveError;
use sums::Verified;

/// The id of a move in a message.
pub fn id_to_wire(id: Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id.as_bytes())
}

/// The state that the driver and the service of moves share.
pub struct Moves<S>(Arc<Shared<S>>);

impl<S> Clone for Moves<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<S> {
    store: S,
    gate: Gate,
    role: NodeRole,
    clock: Arc<NodeClock>,
    lane: LaneHandle,
    /// For the newest shard map.
    reads: Readable,
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

impl<S: MoveStore> Moves<S> {
    pub fn new(
        store: S,
        gate: Gate,
        role: NodeRole,
        clock: Arc<NodeClock>,
        lane: LaneHandle,
        reads: Readable,
        tls: Option<Mutual>,
    ) -> Self {
        let (verified, activities, closed_until, news) = Default::default();
        Self(Arc::new(Shared {
            store,
            gate,
            role,
            clock,
            lane,
            reads,
            tls,
            verified,
            activities,
            closed_until,
            news,
        }))
    }

    async fn connection(&self) -> Result<S::Connection, MoveError> {
        if let Some(why) = self.0.gate.closed() {
            return Err(MoveError::NotServing(why));
        }
        self.0.store.connection().await
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
        let (text, _) = read::shard_map(&self.0.reads).await?;
        shard_map::ShardMap::parse(&text)
            .map_err(|error| MoveError::Refused(format!("the shard's map cannot be read: {error}")))
    }

    pub async fn close(&self) {
        self.0.store.close().await;
    }
}

//! The driver's connection to the node of the source.

use std::time::Duration;

use node_client::MovesClient;
use tokio::time::Instant;
use wire::convert::slots_to_wire;

use super::Driver;
use crate::{
    moves::{MoveError, id_to_wire, progress, scope::OWN_PART},
    peers,
    store::moves::{MoveConnection, MoveStore},
};

/// How long connecting to one of the source's nodes may take. A connection whose node does not answer pings is broken.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

impl<S: MoveStore> Driver<S> {
    /// Connects to the node of the source and tells it who drives.
    pub(super) async fn join(&mut self) -> Result<(), MoveError> {
        let map = self.moves.map().await?;
        let peer = map.shards.iter().find(|shard| shard.id == self.row.peer);
        let peer = peer.ok_or_else(|| MoveError::Refused(format!("shard {} is not in the map", self.row.peer)))?;
        let own = &self.moves.0.gate.expected().shard;
        // The client remembers which of the nodes has failed, and tries it last.
        let client = match self.peer.take() {
            Some((nodes, client)) if nodes == peer.nodes => client,
            _ => peers::client(peer, &map, own, self.moves.0.tls.as_ref()),
        };
        let connected = client.connection(Instant::now() + CONNECT_WITHIN).await;
        self.peer = Some((peer.nodes.clone(), client));
        let mut source = connected
            .map_err(|error| MoveError::Unreachable { shard: self.row.peer.clone(), reason: error.to_string() })?
            .moves();
        let request = wire::JoinMoveRequest {
            r#move: id_to_wire(self.row.id),
            target: self.moves.0.gate.expected().shard.clone(),
            slots: slots_to_wire(&self.row.slots),
            driver_epoch: self.row.driver_epoch,
            reverses: self.progress.reverses.map(id_to_wire).unwrap_or_default(),
            cluster: map.cluster.as_uuid().as_bytes().to_vec().into(),
            source: self.row.peer.clone(),
        };
        let joined = source.join(request).await;
        let joined = joined.map_err(|status| error_of_status(&self.row.peer, &status))?.into_inner();
        self.source = Some(source);
        self.joined = true;
        self.released = joined.released;
        if self.progress.slot_epoch == 0 {
            self.progress.slot_epoch = joined.slot_epoch;
            self.progress.folded_position = joined.folded_position;
            self.progress.expected_accounts = joined.accounts;
            self.progress.expected_bookings = joined.bookings;
            if self.progress.reverses.is_some() {
                self.progress.part = OWN_PART;
                self.progress.after = joined.from_position;
            }
            self.announce().await?;
        }
        Ok(())
    }

    /// Marks the slots as incoming, so that refusals name the source.
    async fn announce(&mut self) -> Result<(), MoveError> {
        let text = progress::write(&self.progress);
        let change = self.change(self.row.phase, &text);
        self.moves.connection().await?.announce(change, self.progress.slot_epoch).await?;
        self.written(self.row.phase, self.progress.clone(), text);
        self.moves.0.lane.look_again();
        Ok(())
    }

    pub(super) async fn source(&mut self) -> Result<&mut MovesClient, MoveError> {
        if self.source.is_none() || !self.joined {
            self.join().await?;
        }
        self.source.as_mut().ok_or(MoveError::Superseded)
    }

    pub(super) fn answered<T>(&self, answer: Result<tonic::Response<T>, tonic::Status>) -> Result<T, MoveError> {
        answer.map(tonic::Response::into_inner).map_err(|status| error_of_status(&self.row.peer, &status))
    }

    pub(super) fn id(&self) -> bytes::Bytes {
        id_to_wire(self.row.id)
    }
}

/// What an answer of the source's node means.
fn error_of_status(shard: &str, status: &tonic::Status) -> MoveError {
    match status.code() {
        tonic::Code::Aborted => MoveError::Superseded,
        tonic::Code::ResourceExhausted => MoveError::TooLong(status.message().to_owned()),
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument => {
            MoveError::Refused(format!("shard {shard}: {}", status.message()))
        }
        _ => MoveError::Unreachable { shard: shard.to_owned(), reason: status.message().to_owned() },
    }
}

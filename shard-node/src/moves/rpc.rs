//! The service `SlotMoves`.

use std::collections::BTreeSet;

use shard_map::{ClusterId, Slot, SlotRange, merge_slots};
use tonic::{Request, Response, Status};
use uuid::Uuid;
use wire::{
    convert::{slots_from_wire, slots_to_wire},
    slot_moves_server::{SlotMoves, SlotMovesServer},
};

use super::{MoveError, Moves, id_to_wire, phase::Role, progress::Wishes, source::Join};
use crate::store::moves::MoveStore;

impl<S: MoveStore> Moves<S> {
    pub fn into_server(self) -> SlotMovesServer<Self> {
        SlotMovesServer::new(self)
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
    }
}

/// `aborted`: another driver has taken over. `failed_precondition`: says what is in the way.
fn status(error: MoveError) -> Status {
    match error {
        MoveError::Superseded => Status::aborted(error.to_string()),
        MoveError::Refused(why) | MoveError::Differs(why) => Status::failed_precondition(why),
        // The driver tells this refusal from the others by its code.
        MoveError::TooLong(why) => Status::resource_exhausted(why),
        MoveError::Unreachable { .. } | MoveError::NotServing(_) => Status::unavailable(error.to_string()),
        MoveError::Store(error) => {
            tracing::warn!(%error, "a step of a move failed");
            Status::unavailable("the shard's database did not answer")
        }
    }
}

fn id(bytes: &[u8]) -> Result<Uuid, Status> {
    Uuid::from_slice(bytes).map_err(|_| Status::invalid_argument("the id of a move has 16 bytes"))
}

fn optional_id(bytes: &[u8]) -> Result<Option<Uuid>, Status> {
    if bytes.is_empty() { Ok(None) } else { id(bytes).map(Some) }
}

/// Sorted ranges that do not touch: rows of moves are compared by them.
fn slots(ranges: &[wire::SlotRange]) -> Result<Vec<SlotRange>, Status> {
    let ranges = slots_from_wire(ranges).map_err(|error| Status::invalid_argument(error.to_string()))?;
    let slots: BTreeSet<Slot> = ranges.into_iter().flat_map(SlotRange::slots).collect();
    Ok(merge_slots(slots))
}

#[tonic::async_trait]
impl<S: MoveStore> SlotMoves for Moves<S> {
    async fn join(
        &self,
        request: Request<wire::JoinMoveRequest>,
    ) -> Result<Response<wire::JoinMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let expected = self.0.gate.expected();
        let cluster = ClusterId::try_from(request.cluster.as_ref()).ok();
        if cluster != Some(expected.cluster) || request.source != expected.shard {
            let here = format!("this is shard {} of cluster {}", expected.shard, expected.cluster);
            return Err(Status::failed_precondition(here));
        }
        let join = Join {
            id: id(&request.r#move)?,
            target: request.target,
            slots: slots(&request.slots)?,
            driver_epoch: request.driver_epoch,
            reverses: optional_id(&request.reverses)?,
        };
        self.join(join).await.map(Response::new).map_err(status)
    }

    async fn read_bookings(
        &self,
        request: Request<wire::ReadMoveBookingsRequest>,
    ) -> Result<Response<wire::ReadMoveBookingsResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.read_bookings(&request, id).await.map(Response::new).map_err(status)
    }

    async fn read_accounts(
        &self,
        request: Request<wire::ReadMoveAccountsRequest>,
    ) -> Result<Response<wire::ReadMoveAccountsResponse>, Status> {
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.read_accounts(&request, id).await.map(Response::new).map_err(status)
    }

    async fn read_small_tables(
        &self,
        request: Request<wire::ReadMoveSmallTablesRequest>,
    ) -> Result<Response<wire::ReadMoveSmallTablesResponse>, Status> {
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.read_small_tables(request.driver_epoch, id).await.map(Response::new).map_err(status)
    }

    async fn sum_up(
        &self,
        request: Request<wire::SumUpMoveRequest>,
    ) -> Result<Response<wire::SumUpMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.sum_up(&request, id).await.map(Response::new).map_err(status)
    }

    async fn release(
        &self,
        request: Request<wire::ReleaseMoveRequest>,
    ) -> Result<Response<wire::ReleaseMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.release(&request, id).await.map(Response::new).map_err(status)
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveMoveRequest>,
    ) -> Result<Response<wire::LeaveMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let (id, how) = (id(&request.r#move)?, request.how());
        self.leave(id, request.driver_epoch, how).await.map(Response::new).map_err(status)
    }

    async fn start(
        &self,
        request: Request<wire::StartMoveRequest>,
    ) -> Result<Response<wire::StartMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let mut wishes = Wishes::default();
        wishes.update(&request.wishes.unwrap_or_default());
        let (id, slots, reverses) = (id(&request.r#move)?, slots(&request.slots)?, optional_id(&request.reverses)?);
        self.start(id, &request.source, slots, reverses, wishes).await.map_err(status)?;
        Ok(Response::new(wire::StartMoveResponse {}))
    }

    async fn list(&self, _: Request<wire::ListMovesRequest>) -> Result<Response<wire::ListMovesResponse>, Status> {
        let moves = self.list().await.map_err(status)?;
        let moves = moves.into_iter().map(|row| wire::MoveStatus {
            activity: self.activity(row.id),
            r#move: id_to_wire(row.id),
            is_target: row.phase.role() == Role::Target,
            peer: row.peer,
            slots: slots_to_wire(&row.slots),
            phase: row.phase.as_str().to_owned(),
            driver_epoch: row.driver_epoch,
            progress: row.progress,
            wishes: row.wishes,
            started_at_us: row.started_at_us,
            updated_at_us: row.updated_at_us,
        });
        Ok(Response::new(wire::ListMovesResponse { moves: moves.collect() }))
    }

    async fn control(
        &self,
        request: Request<wire::ControlMoveRequest>,
    ) -> Result<Response<wire::ControlMoveResponse>, Status> {
        self.0.role.use_now();
        let request = request.into_inner();
        let id = id(&request.r#move)?;
        self.control(id, &request.wishes.unwrap_or_default()).await.map_err(status)?;
        Ok(Response::new(wire::ControlMoveResponse {}))
    }

    async fn count_client_data(
        &self,
        request: Request<wire::ClientDataRequest>,
    ) -> Result<Response<wire::ClientDataResponse>, Status> {
        self.count_client_data(request.into_inner().refuse_moves).await.map(Response::new).map_err(status)
    }

    async fn load(&self, _: Request<wire::LoadRequest>) -> Result<Response<wire::LoadResponse>, Status> {
        self.load().await.map(Response::new).map_err(status)
    }
}

//! The service that routers call: writes go to the lane, reads to the database.

mod account_list;
mod batch_spans;
mod identify;
pub mod listener;

use std::{sync::Arc, time::Duration};

use ledger::{
    AccountId, Limit,
    history::StoredTransfer,
    operation::Operation,
    outcome::{Reason, Reply},
};
use shard_map::ShardMap;
use telemetry::{
    Tasks,
    traces::{self, Kind, Span, Traceparent},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};
use tonic::{Request, Response, Status};
use wire::{
    convert,
    convert::Submitted,
    shard_node_server::{ShardNode, ShardNodeServer},
};

use self::{batch_spans::BatchSpans, identify::DeclaredAssets};
use crate::{
    clock::{NodeClock, steady_us},
    gate::Gate,
    lane::{LaneHandle, Queued, Replies},
    metric_definitions as m,
    reads::{self, Reads, account_list::KnownOwnership},
    role::NodeRole,
    store::{
        self, StoreError,
        read::{Owned, Readable},
    },
    tail::{DueSagas, OpenSaga, Tail},
};

/// Largest page that a router may request; the HTTP contract allows 500.
const MAX_PAGE: u32 = 500;
/// The longest that a call waits for slots to change hands.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Most sagas in one answer.
const MAX_SAGAS: u32 = 1000;

#[derive(Clone)]
pub struct Service {
    gate: Gate,
    role: NodeRole,
    clock: Arc<NodeClock>,
    lane: LaneHandle,
    reads: Reads,
    /// Clients' reads queue here instead of at the pool. A read that waited too long for a connection of the pool
    /// would look as if the database were unreachable.
    turns: Arc<Semaphore>,
    /// One sum of balances at a time, because a sum may take long. The other turns are for short reads.
    sums: Arc<Semaphore>,
    /// One page of accounts as of a time at once, because it may read the history of each of its accounts.
    pages_at: Arc<Semaphore>,
    ownership: KnownOwnership,
    /// The asset declarations of routers, by digest.
    assets: DeclaredAssets,
    tasks: Tasks,
}

impl Service {
    pub fn new(
        gate: Gate,
        role: NodeRole,
        clock: Arc<NodeClock>,
        lane: LaneHandle,
        from: Readable,
        tail: Tail,
        tasks: Tasks,
    ) -> Self {
        let turns = Arc::new(Semaphore::new(from.turns()));
        Self {
            gate,
            role,
            clock,
            reads: Reads { from, lane: lane.clone(), tail },
            lane,
            turns,
            sums: Arc::new(Semaphore::new(1)),
            pages_at: Arc::new(Semaphore::new(1)),
            ownership: KnownOwnership::default(),
            assets: DeclaredAssets::default(),
            tasks,
        }
    }

    /// Admits a read: the gate is open, the database has reached the mark of the caller, and it is the caller's turn.
    ///
    /// Reads are admitted in order of arrival, for as long as the router waits. Each router bounds its reads in
    /// flight, and a call that the router cancels leaves the queue.
    async fn turn<T>(&self, request: &Request<T>) -> Result<SemaphorePermit<'_>, Status> {
        let turn = self.turns.acquire().await.map_err(|_| Status::unavailable("the node is closing"))?;
        self.is_current(request).await?;
        Ok(turn)
    }

    /// INV-12: a read is never older than the mark that its caller was told.
    async fn is_current<T>(&self, request: &Request<T>) -> Result<(), Status> {
        if let Some(why) = self.gate.closed() {
            return Err(Status::unavailable(why));
        }
        let Some(at_least) = wire::at_least(request.metadata()) else { return Ok(()) };
        // Only routers send a mark.
        self.role.use_now();
        if !self.gate.served().is_behind(at_least) {
            return Ok(());
        }
        // Another node of the shard has committed since this node last looked, or the database is the wrong one.
        self.gate.acknowledge(at_least, "a router");
        let look = self.gate.begin_look();
        let found = store::read::mark(&self.reads.from).await.map_err(read_failed)?;
        let Some(found) = self.gate.end_look(look, found) else {
            let why = self.gate.closed();
            return Err(Status::unavailable(
                why.unwrap_or_else(|| "another primary was accepted meanwhile".to_owned()),
            ));
        };
        match found.compare(at_least, "a router") {
            None => Ok(()),
            Some(behind) => {
                tracing::error!(%behind, "a read was refused: the database is behind what was acknowledged");
                Err(Status::failed_precondition(behind.to_string()))
            }
        }
    }

    pub fn into_server(self) -> ShardNodeServer<Self> {
        ShardNodeServer::new(self)
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
    }
}

/// The methods that are counted.
pub const METHODS: [&str; 16] = [
    "identify",
    "examine",
    "execute",
    "get_account",
    "list_entries",
    "balance_at",
    "get_transfers",
    "get_holds",
    "list_sagas",
    "get_ownership",
    "offer_shard_map",
    "status",
    "list_accounts",
    "sum_balances",
    "read_transfers",
    "read_holds",
];

fn count(method: &'static str) {
    debug_assert!(METHODS.contains(&method), "{method} has no series from the start");
    metrics::counter!(m::RPC_REQUESTS, "method" => method).increment(1);
}

/// The span of a read, until it is dropped; `None` if the request of the read is not recorded.
fn read_span<T>(method: &'static str, request: &Request<T>) -> Option<Span> {
    let recorder = traces::recorder()?;
    let caller = Traceparent::of(request.metadata().as_ref())?;
    let mut span = recorder.begin(method, Kind::Server, Some(caller))?;
    batch_spans::name_call(&mut span, method);
    Some(span)
}

/// Reads have no effect, so every failure may be retried. The cause goes to the log, not to the caller.
fn read_failed(error: StoreError) -> Status {
    tracing::warn!(%error, "a read failed");
    Status::unavailable("the shard's database did not answer")
}

/// Fails if the lane took nothing of a call because this node shuts down. A router sends a call that fails in this way to another node of the
/// shard; refusals of the single operations would be answered to the clients.
fn taken(replies: &[Reply]) -> Result<(), Status> {
    let is_refused = |reply: &Reply| matches!(reply, Reply::NotExecuted { reason: Reason::ShuttingDown, .. });
    if replies.is_empty() || !replies.iter().all(is_refused) {
        return Ok(());
    }
    Err(Status::failed_precondition("the shard-node is shutting down"))
}

/// How long ago a call was made up. Both instants are on this node's steady clock, in microseconds; `sent_at_us` is 0 if the caller does not
/// know it.
fn on_its_way(sent_at_us: i64, now_us: i64) -> Duration {
    let us = if sent_at_us > 0 { now_us.saturating_sub(sent_at_us) } else { 0 };
    Duration::from_micros(u64::try_from(us).unwrap_or(0))
}

fn any_account(id: &str) -> Result<AccountId, Status> {
    AccountId::client(id).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn uuid(bytes: &[u8]) -> Result<uuid::Uuid, Status> {
    Ok(convert::id_from_wire(bytes).map_err(|error| Status::invalid_argument(error.to_string()))?.0)
}

#[tonic::async_trait]
impl ShardNode for Service {
    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        count("identify");
        self.identified(request.into_inner()).await.map(Response::new)
    }

    async fn examine(
        &self,
        _request: Request<wire::ExamineRequest>,
    ) -> Result<Response<wire::ExamineResponse>, Status> {
        count("examine");
        Ok(Response::new(wire::ExamineResponse { facts: self.facts() }))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        count("execute");
        self.role.use_now();
        let wire::ExecuteRequest { operations, traces, assets_digest, sent_at_us } = request.into_inner();
        let scales = self.assets.of(assets_digest, self.lane.scales(), &self.gate.expected().shard)?;
        for wire::Trace { traceparent, first, count } in &traces {
            tracing::debug!(traceparent, first, count, of = operations.len(), "operations of a traced request");
        }
        let spans = traces::recorder().and_then(|it| BatchSpans::begin(it, &traces, operations.len()));
        let mut bad: Vec<(usize, String)> = Vec::new();
        let mut good: Vec<Queued> = Vec::with_capacity(operations.len());
        let (now, on_its_way) = (Instant::now(), on_its_way(sent_at_us, steady_us()));
        for (index, operation) in operations.into_iter().enumerate() {
            match Submitted::try_from(operation) {
                Ok(Submitted { operation, timeout_ms, order_group, peer }) => {
                    let scale = match &operation {
                        Operation::CreateAccount(create) => scales.get(create.asset.as_str()).copied(),
                        _ => None,
                    };
                    let left = Duration::from_millis(timeout_ms.into()).saturating_sub(on_its_way);
                    let deadline = (timeout_ms > 0).then(|| now + left);
                    good.push(Queued { operation, peer, scale, order_group: order_group.into(), deadline });
                }
                Err(error) => bad.push((index, error.to_string())),
            }
        }
        let done = self.lane.execute_as(good, spans.is_some()).await;
        if let Some(spans) = spans {
            spans.end(&done.attempts);
        }
        let Replies { mut replies, after_doubt, .. } = done;
        taken(&replies)?;
        for (index, detail) in bad {
            replies.insert(index, Reply::NotExecuted { reason: Reason::Internal, detail });
        }
        let results = replies.into_iter().map(Into::into).collect();
        Ok(Response::new(wire::ExecuteResponse { results, mark: Some(self.gate.served().into()), after_doubt }))
    }

    async fn get_account(
        &self,
        request: Request<wire::GetAccountRequest>,
    ) -> Result<Response<wire::GetAccountResponse>, Status> {
        use wire::get_account_response::Outcome;
        count("get_account");
        let _span = read_span("get_account", &request);
        let _turn = self.turn(&request).await?;
        let id = any_account(&request.into_inner().id)?;
        let outcome = match self.reads.account(&id).await.map_err(read_failed)? {
            Owned::Here(Some((account, _))) => Outcome::Account((&account).into()),
            Owned::Here(None) => Outcome::NotFound(wire::NotFound {}),
            Owned::NotHere(not_owner) => Outcome::NotOwner(not_owner.into()),
        };
        Ok(Response::new(wire::GetAccountResponse { outcome: Some(outcome) }))
    }

    async fn list_entries(
        &self,
        request: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        use wire::list_entries_response::Outcome;
        count("list_entries");
        let _span = read_span("list_entries", &request);
        let _turn = self.turn(&request).await?;
        let request = request.into_inner();
        let id = any_account(&request.account)?;
        let page = reads::Page {
            limit: request.limit.clamp(1, MAX_PAGE).into(),
            ascending: request.ascending,
            after_version: request.after_version,
            from_us: if request.from_us == 0 { i64::MIN } else { request.from_us },
            to_us: if request.to_us == 0 { i64::MAX } else { request.to_us },
            with_metadata: request.with_metadata,
        };
        let outcome = match reads::entries(&self.reads, &id, page).await.map_err(read_failed)? {
            Owned::Here(Some(page)) => Outcome::Page(page),
            Owned::Here(None) => Outcome::NotFound(wire::NotFound {}),
            Owned::NotHere(not_owner) => Outcome::NotOwner(not_owner.into()),
        };
        Ok(Response::new(wire::ListEntriesResponse { outcome: Some(outcome) }))
    }

    async fn balance_at(
        &self,
        request: Request<wire::BalanceAtRequest>,
    ) -> Result<Response<wire::BalanceAtResponse>, Status> {
        use wire::balance_at_response::Outcome;
        count("balance_at");
        let _span = read_span("balance_at", &request);
        let _turn = self.turn(&request).await?;
        let request = request.into_inner();
        let id = any_account(&request.account)?;
        let outcome = match reads::balance_at(&self.reads, &id, request.at_us).await.map_err(read_failed)? {
            Owned::Here(Some(balance)) => Outcome::Balance(balance),
            Owned::Here(None) => Outcome::NotFound(wire::NotFound {}),
            Owned::NotHere(not_owner) => Outcome::NotOwner(not_owner.into()),
        };
        Ok(Response::new(wire::BalanceAtResponse { outcome: Some(outcome) }))
    }

    async fn get_transfers(
        &self,
        request: Request<wire::GetTransfersRequest>,
    ) -> Result<Response<wire::GetTransfersResponse>, Status> {
        count("get_transfers");
        let _span = read_span("get_transfers", &request);
        let _turn = self.turn(&request).await?;
        let request = request.into_inner();
        let id = uuid(&request.id)?;
        let found = reads::transfers(&self.reads, id, &request.debit).await.map_err(read_failed)?;
        Ok(Response::new(found))
    }

    async fn get_holds(
        &self,
        request: Request<wire::GetHoldsRequest>,
    ) -> Result<Response<wire::GetHoldsResponse>, Status> {
        count("get_holds");
        let _span = read_span("get_holds", &request);
        let _turn = self.turn(&request).await?;
        let request = request.into_inner();
        let id = uuid(&request.id)?;
        let found = reads::holds(&self.reads, id, &request.debit).await.map_err(read_failed)?;
        Ok(Response::new(found))
    }

    async fn list_sagas(
        &self,
        request: Request<wire::ListSagasRequest>,
    ) -> Result<Response<wire::ListSagasResponse>, Status> {
        count("list_sagas");
        self.is_current(&request).await?;
        self.reads.catch_up().await.map_err(read_failed)?;
        let request = request.into_inner();
        let now_us = self.clock.now_us();
        let limit = usize::try_from(request.limit.clamp(1, MAX_SAGAS)).unwrap_or(1);
        let tail = &self.reads.tail;
        if !request.retry_id.is_empty() {
            let id = uuid(&request.retry_id)?;
            tail.retry_now(ledger::TransferId(id), now_us);
            let found = reads::transfers(&self.reads, id, "").await.map_err(read_failed)?;
            let pending = u32::from(ledger::outcome::TransferState::PENDING);
            let sagas = found.transfers.into_iter().filter(|t| t.status == pending).collect();
            return Ok(Response::new(wire::ListSagasResponse { sagas, ..Default::default() }));
        }
        let DueSagas { claimed: sagas, left_out, oldest_left_out_us } = if request.claim_due {
            let slots = convert::slots_from_wire(&request.left_out_slots);
            tail.claim_due(now_us, limit, &slots.map_err(|error| Status::invalid_argument(error.to_string()))?)
        } else {
            let before_us = now_us.saturating_sub(request.older_than_ms.saturating_mul(1000));
            DueSagas { claimed: tail.list_sagas(before_us, limit), ..DueSagas::default() }
        };
        let sagas = sagas.iter().map(saga_record).collect::<Result<_, _>>().map_err(read_failed)?;
        let oldest_left_out_us = oldest_left_out_us.unwrap_or(0);
        Ok(Response::new(wire::ListSagasResponse { sagas, left_out, oldest_left_out_us }))
    }

    async fn get_ownership(
        &self,
        request: Request<wire::GetOwnershipRequest>,
    ) -> Result<Response<wire::GetOwnershipResponse>, Status> {
        count("get_ownership");
        // A call with a mark comes from a router, which must wait for the gate; a call without one comes from another
        // shard's node, which may be starting at the same time.
        if wire::at_least(request.metadata()).is_some() || !self.gate.may_be_asked() {
            self.is_current(&request).await?;
        }
        let wire::GetOwnershipRequest { wait_ms, newer_than } = request.into_inner();
        let patience = Duration::from_millis(wait_ms.into()).min(LONGEST_WAIT);
        // The version is read before the slots: a change in between is news for the next call.
        let ownership_version = self.lane.ownership_newer_than(newer_than, patience).await;
        // The gate may have closed during the wait.
        if !patience.is_zero()
            && let Some(why) = self.gate.closed()
        {
            return Err(Status::unavailable(why));
        }
        let ownership = store::read::ownership(&self.reads.from).await.map_err(read_failed)?;
        let (shard_map, shard_map_version) = store::read::shard_map(&self.reads.from).await.map_err(read_failed)?;
        self.gate.saw_map_version(shard_map_version);
        let ranges = ownership
            .ranges()
            .iter()
            .map(|(slots, ownership)| wire::OwnedRange {
                first: slots.first().index().into(),
                last: slots.last().index().into(),
                state: ownership.state as u32,
                epoch: ownership.epoch,
                peer: ownership.peer.clone(),
            })
            .collect();
        Ok(Response::new(wire::GetOwnershipResponse {
            shard: self.gate.expected().shard.clone(),
            shard_number: self.shard_number().into(),
            ranges,
            ownership_version,
            shard_map,
            shard_map_version,
        }))
    }

    async fn offer_shard_map(
        &self,
        request: Request<wire::OfferShardMapRequest>,
    ) -> Result<Response<wire::OfferShardMapResponse>, Status> {
        count("offer_shard_map");
        self.is_current(&request).await?;
        let text = request.into_inner().shard_map;
        let map = ShardMap::parse(&text).map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.refuse_map(&map).await?;
        let version = i64::try_from(map.version).unwrap_or(i64::MAX);
        store::read::offer_shard_map(&self.reads.from, &text, version).await.map_err(read_failed)?;
        let (_, newest_version) = store::read::shard_map(&self.reads.from).await.map_err(read_failed)?;
        self.gate.saw_map_version(newest_version);
        Ok(Response::new(wire::OfferShardMapResponse { newest_version }))
    }

    async fn status(&self, _request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        count("status");
        let lane = self.lane.status();
        let pending_sagas = self.reads.tail.count_sagas() as u64;
        Ok(Response::new(wire::StatusResponse {
            shard: self.gate.expected().shard.clone(),
            state: lane.state.as_str().to_owned(),
            lane_queue: lane.waiting as u64,
            last_batch: lane.last_batch,
            last_commit_us: u64::try_from(lane.last_commit.as_micros()).unwrap_or(u64::MAX),
            batches: lane.batches,
            operations: lane.operations,
            ownership_version: lane.ownership_version,
            slots_owned: u32::try_from(lane.slots_owned).unwrap_or(u32::MAX),
            next_position: lane.next_position.0,
            cached_accounts: lane.cached_accounts as u64,
            pending_sagas,
            last_error: lane.last_error,
            highest_epoch: lane.highest_epoch,
            reads: Some(identify::readiness(self.gate.reads())),
            writes: Some(identify::readiness(self.gate.writes())),
            role: Some(identify::role(self.role.now())),
        }))
    }

    async fn list_accounts(
        &self,
        request: Request<wire::ListAccountsRequest>,
    ) -> Result<Response<wire::ListAccountsResponse>, Status> {
        count("list_accounts");
        let _span = read_span("list_accounts", &request);
        // Before the turn: what waits for this one must not keep short reads waiting.
        let _page_at = match request.get_ref().at_us {
            Some(_) => Some(self.pages_at.acquire().await.map_err(|_| Status::unavailable("the node is closing"))?),
            None => None,
        };
        let _turn = self.turn(&request).await?;
        self.page_of_accounts(request.into_inner()).await.map(Response::new)
    }

    async fn sum_balances(
        &self,
        request: Request<wire::SumBalancesRequest>,
    ) -> Result<Response<wire::SumBalancesResponse>, Status> {
        count("sum_balances");
        let _span = read_span("sum_balances", &request);
        self.is_current(&request).await?;
        self.sums_of_balances(request.into_inner()).await.map(Response::new)
    }

    async fn read_transfers(
        &self,
        request: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadTransfersResponse>, Status> {
        count("read_transfers");
        let _span = read_span("read_transfers", &request);
        let _turn = self.turn(&request).await?;
        let response = match self.keys_owned(request.into_inner().keys).await? {
            Ok(keys) => {
                let transfers = reads::transfers_of(&self.reads, &keys).await.map_err(read_failed)?;
                // The clean-up of a move may have come between.
                match self.not_owned(&keys).await? {
                    moved if moved.is_empty() => wire::ReadTransfersResponse { transfers, not_owner: moved },
                    not_owner => wire::ReadTransfersResponse { transfers: Vec::new(), not_owner },
                }
            }
            Err(not_owner) => wire::ReadTransfersResponse { transfers: Vec::new(), not_owner },
        };
        Ok(Response::new(response))
    }

    async fn read_holds(
        &self,
        request: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadHoldsResponse>, Status> {
        count("read_holds");
        let _span = read_span("read_holds", &request);
        let _turn = self.turn(&request).await?;
        let response = match self.keys_owned(request.into_inner().keys).await? {
            Ok(keys) => {
                let pool = self.reads.from.pool().map_err(read_failed)?;
                let holds = store::bookings::holds_of(pool, &keys).await.map_err(read_failed)?;
                let holds = holds.iter().map(|(key, hold)| convert::hold_to_wire(key, hold)).collect();
                match self.not_owned(&keys).await? {
                    moved if moved.is_empty() => wire::ReadHoldsResponse { holds, not_owner: moved },
                    not_owner => wire::ReadHoldsResponse { holds: Vec::new(), not_owner },
                }
            }
            Err(not_owner) => wire::ReadHoldsResponse { holds: Vec::new(), not_owner },
        };
        Ok(Response::new(response))
    }
}

impl Service {
    /// The identities that a request names, or the slots of their debit accounts that are not owned here.
    async fn keys_owned(
        &self,
        keys: Vec<wire::HoldKey>,
    ) -> Result<Result<Vec<ledger::HoldKey>, Vec<wire::NotOwner>>, Status> {
        if keys.len() > MAX_PAGE as usize {
            return Err(Status::invalid_argument(format!("{} keys, and {MAX_PAGE} is the most", keys.len())));
        }
        let keys = keys.into_iter().map(|key| {
            Ok(ledger::HoldKey { id: ledger::TransferId(uuid(&key.id)?), debit: any_account(&key.debit)? })
        });
        let keys = keys.collect::<Result<Vec<_>, Status>>()?;
        let not_owner = self.not_owned(&keys).await?;
        Ok(if not_owner.is_empty() { Ok(keys) } else { Err(not_owner) })
    }

    /// The slots of the keys' debit accounts that this shard does not own.
    async fn not_owned(&self, keys: &[ledger::HoldKey]) -> Result<Vec<wire::NotOwner>, Status> {
        let slots: std::collections::BTreeSet<_> =
            keys.iter().map(|key| shard_map::slot_of(key.debit.as_str())).collect();
        let not_owner = self.ownership.refusals(&self.reads, slots).await.map_err(read_failed)?;
        Ok(not_owner.into_iter().map(Into::into).collect())
    }
}

/// A saga under way.
fn saga_record(saga: &OpenSaga) -> Result<wire::TransferRecord, StoreError> {
    let stored = StoredTransfer::of(&saga.first, None, None)?;
    Ok(wire::TransferRecord {
        attempts: saga.attempts,
        next_attempt_us: saga.next_attempt_us,
        ..reads::transfer_record(&saga.first, &stored)
    })
}

/// The balance before an account's first entry.
pub fn nothing_yet(asset: String) -> wire::BalanceAt {
    wire::BalanceAt { asset, version: 0, posted: 0, held: 0, overdraft: Some(Limit::ZERO.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_less_time_left_the_longer_it_was_on_its_way() {
        assert_eq!(on_its_way(0, 5_000_000), Duration::ZERO, "the caller does not know the node's clock");
        assert_eq!(on_its_way(3_000_000, 5_000_000), Duration::from_secs(2));
        assert_eq!(on_its_way(5_000_100, 5_000_000), Duration::ZERO, "the caller's estimate is a little ahead");
    }

    #[test]
    fn a_call_of_which_nothing_is_taken_at_shutdown_fails_as_a_whole() {
        let refused = |reason| Reply::NotExecuted { reason, detail: String::new() };
        let failed = taken(&[refused(Reason::ShuttingDown), refused(Reason::ShuttingDown)]).unwrap_err();
        assert_eq!(failed.code(), tonic::Code::FailedPrecondition, "the router takes another node of the shard");
        for replies in [
            vec![],
            vec![refused(Reason::Overloaded)],
            vec![refused(Reason::ShuttingDown), Reply::Unknown],
            vec![refused(Reason::ShuttingDown), refused(Reason::Unavailable)],
        ] {
            assert!(taken(&replies).is_ok(), "{replies:?}");
        }
    }
}

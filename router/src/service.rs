//! The core of the router: everything between a parsed request and the shards.
//!
//! [`Router`] is what the edge calls. [`crate::transfers`] plans and runs transfers, [`crate::saga`] drives transfers
//! between shards, [`crate::reads`] reads, and [`crate::shard`] sends all of it to the nodes. The router keeps no
//! state that another router would miss.
//!
//! A call must run to its end: the edge spawns it and awaits the handle, so that a client that disconnects does not
//! stop it half-way. If it stops anyway, the shards and recovery complete it.

mod accounts;
mod at_owner;
mod call_error;
mod config;
mod core;
mod dry_run;
#[cfg(test)]
pub mod fake_cluster;
pub mod handover;
mod heartbeat;
mod holds;
mod map_offers;
mod metrics;
mod pace;
mod reply;
mod status;

use std::sync::Arc;

use ledger::{
    AccountId, AccountPrefix, HoldKey, TransferId, TransferKey,
    operation::{CreateAccount, PlaceHold, ReleaseHold, UpdateAccount},
};
use telemetry::tasks::Tasks;

pub use self::{
    call_error::CallError,
    config::CoreConfig,
    core::{Core, Learnt, Reroutes},
    handover::{Load, Waited},
    pace::Pace,
    reply::{
        AccountPage, AccountReply, AccountsAtPage, AtomicReply, BalanceSum, BalanceSums, Found, FoundHold,
        FoundTransfer, HoldReply, Located, NewTransfer, ReleaseReply, SagaFilter, SagaView, ShardStatus,
        TransferReply,
    },
};
use crate::{reads, routing::Routing, saga, shard::ShardGauges, transfers};

pub(crate) use self::metrics::{register as register_metrics, wave as count_wave};

/// The deadline of the whole request.
pub type Deadline = tokio::time::Instant;

/// A handle on the core; clones share it.
#[derive(Clone)]
pub struct Router {
    core: Arc<Core>,
    gauges: Arc<ShardGauges>,
}

impl Router {
    /// Starts the shards' senders and the recovery of abandoned sagas. They end with `tasks`.
    pub fn start(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Self {
        metrics::describe();
        let core = Arc::new(Core::start(config, routing, tasks));
        core.tasks.spawn_essential("recovery", saga::run_recovery(Arc::clone(&core)));
        core.tasks.spawn_essential("heartbeat", heartbeat::run(Arc::clone(&core)));
        core.tasks.spawn_essential("shard map offers", map_offers::run(Arc::clone(&core)));
        Self { core, gauges: Arc::default() }
    }

    /// As [`Router::start`], by a map that never changes and is offered to no node.
    #[cfg(feature = "simulation")]
    pub fn start_without_offers(config: &CoreConfig, routing: Routing, tasks: Tasks) -> Self {
        let core = Arc::new(Core::start(config, routing, tasks));
        core.tasks.spawn_essential("recovery", saga::run_recovery(Arc::clone(&core)));
        core.tasks.spawn_essential("heartbeat", heartbeat::run(Arc::clone(&core)));
        Self { core, gauges: Arc::default() }
    }

    /// Sets the gauges of the shards.
    pub fn set_gauges(&self) {
        self.gauges.set(&self.core.view());
    }

    pub fn routing(&self) -> &Routing {
        &self.core.routing
    }

    /// The hand-overs of slots for which requests waited in this router, the latest last.
    pub fn handovers(&self) -> Vec<handover::Record> {
        self.core.handovers.records()
    }

    // === accounts ===

    /// Opens accounts independently of each other. Returns one reply each, in order.
    pub async fn create_accounts(
        &self,
        accounts: Vec<CreateAccount>,
        deadline: Deadline,
    ) -> Vec<Result<AccountReply, CallError>> {
        accounts::create(&self.core, accounts, deadline).await
    }

    pub async fn update_account(&self, update: UpdateAccount, deadline: Deadline) -> Result<AccountReply, CallError> {
        accounts::update(&self.core, update, deadline).await
    }

    pub async fn account(
        &self,
        id: &AccountId,
        deadline: Deadline,
    ) -> Result<Option<Located<wire::Account>>, CallError> {
        reads::account(&self.core, id, deadline).await
    }

    /// A page of an account's journal.
    pub async fn entries(
        &self,
        request: wire::ListEntriesRequest,
        deadline: Deadline,
    ) -> Result<Option<wire::EntryPage>, CallError> {
        // A text that is not an account id names no account.
        let Ok(id) = AccountId::any(&request.account) else { return Ok(None) };
        reads::entries(&self.core, &id, request, deadline).await
    }

    pub async fn balance_at(
        &self,
        id: &AccountId,
        at_us: i64,
        deadline: Deadline,
    ) -> Result<Option<wire::BalanceAt>, CallError> {
        reads::balance_at(&self.core, id, at_us, deadline).await
    }

    /// At most `limit` accounts over all shards whose ids have this prefix and come after `after`, in byte order.
    pub async fn list_accounts(
        &self,
        prefix: &AccountPrefix,
        after: &str,
        limit: u32,
        deadline: Deadline,
    ) -> Result<AccountPage, CallError> {
        reads::list_accounts(&self.core, prefix, after, limit, deadline).await
    }

    /// What the next accounts over all shards held at a time, in microseconds since the epoch. `limit`: the accounts of each shard.
    pub async fn list_accounts_at(
        &self,
        prefix: &AccountPrefix,
        after: &str,
        limit: u32,
        at_us: i64,
        deadline: Deadline,
    ) -> Result<AccountsAtPage, CallError> {
        reads::list_accounts_at(&self.core, prefix, after, limit, at_us, deadline).await
    }

    /// The sum of all accounts whose ids have this prefix, now or as of a time in microseconds since the epoch.
    pub async fn sum_balances(
        &self,
        prefix: &AccountPrefix,
        at_us: Option<i64>,
        deadline: Deadline,
    ) -> Result<BalanceSums, CallError> {
        reads::sum_balances(&self.core, prefix, at_us, deadline).await
    }

    /// The transfers among `keys` that exist, each from the shard of its debit account.
    pub async fn transfers_of(
        &self,
        keys: Vec<TransferKey>,
        deadline: Deadline,
    ) -> Result<Vec<FoundTransfer>, CallError> {
        reads::transfers_of(&self.core, keys, deadline).await
    }

    /// The holds among `keys` that exist.
    pub async fn holds_of(&self, keys: Vec<HoldKey>, deadline: Deadline) -> Result<Vec<FoundHold>, CallError> {
        reads::holds_of(&self.core, keys, deadline).await
    }

    // === transfers ===

    pub async fn transfer(&self, transfer: NewTransfer, deadline: Deadline) -> Result<TransferReply, CallError> {
        let mut replies = transfers::run(&self.core, vec![transfer], deadline).await;
        let reply = replies.pop().unwrap_or(Err(CallError::ShuttingDown));
        metrics::transfer(reply.as_ref());
        reply
    }

    /// Runs transfers as if one after another. Returns one reply each, in order. Their (id, debit) must differ.
    pub async fn transfer_batch(
        &self,
        transfers: Vec<NewTransfer>,
        deadline: Deadline,
    ) -> Vec<Result<TransferReply, CallError>> {
        let replies = transfers::run(&self.core, transfers, deadline).await;
        replies.iter().for_each(|reply| metrics::transfer(reply.as_ref()));
        replies
    }

    /// Runs all of the transfers or none.
    pub async fn transfer_atomic(
        &self,
        transfers: Vec<NewTransfer>,
        deadline: Deadline,
    ) -> Result<AtomicReply, CallError> {
        let count = transfers.len();
        let reply = transfers::run_atomic(&self.core, transfers, deadline).await;
        metrics::atomic(&reply, count);
        reply
    }

    /// The answer that the transfer would get now: posted, refused, or that of a replay. Nothing is stored.
    pub async fn dry_run_transfer(
        &self,
        transfer: &NewTransfer,
        deadline: Deadline,
    ) -> Result<TransferReply, CallError> {
        dry_run::transfer(&self.core, transfer, deadline).await
    }

    /// Every transfer with one id that `sees` accepts, at the debit account's shard or, without a debit account, at all shards.
    pub async fn find_transfer(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        sees: impl Fn(&wire::TransferRecord) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Found<FoundTransfer>, CallError> {
        reads::find_transfer(&self.core, id, debit, &sees, deadline).await
    }

    /// Like [`Router::find_transfer`], but answers after the transfers have ended: a saga in progress is driven and
    /// waited for until the deadline.
    pub async fn find_ended_transfer(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        sees: impl Fn(&wire::TransferRecord) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Found<FoundTransfer>, CallError> {
        saga::find_ended(&self.core, id, debit, &sees, deadline).await
    }

    // === holds ===

    pub async fn place_hold(&self, place: PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
        holds::place(&self.core, place, deadline).await
    }

    pub async fn release_hold(&self, release: ReleaseHold, deadline: Deadline) -> Result<ReleaseReply, CallError> {
        holds::release(&self.core, release, deadline).await
    }

    /// The answer that placing the hold would get now. Nothing is stored.
    pub async fn dry_run_hold(&self, place: &PlaceHold, deadline: Deadline) -> Result<HoldReply, CallError> {
        dry_run::hold(&self.core, place, deadline).await
    }

    /// Every hold with one id, at the debit account's shard or, without a debit account, at all shards.
    pub async fn find_hold(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        deadline: Deadline,
    ) -> Result<Found<FoundHold>, CallError> {
        reads::find_hold(&self.core, id, debit, deadline).await
    }

    // === operators ===

    /// Sagas in progress, oldest first, and the shards that could not be asked.
    pub async fn sagas(&self, filter: SagaFilter, deadline: Deadline) -> (Vec<SagaView>, Vec<Arc<str>>) {
        saga::list(&self.core, filter, deadline).await
    }

    /// Drives the sagas of this id now, even if they are not due. Returns their number (one for each debit account).
    pub async fn retry_saga(&self, id: TransferId, deadline: Deadline) -> Result<usize, CallError> {
        saga::retry(&self.core, id, deadline).await
    }

    /// At how many shards reads and writes work, by the last heartbeats.
    pub fn working(&self) -> (usize, usize, usize) {
        let view = self.core.view();
        let working: Vec<_> = view.shards().map(|shard| shard.working()).collect();
        let count = |of: fn(&crate::shard::Working) -> bool| working.iter().filter(|working| of(working)).count();
        (count(|working| working.reads), count(|working| working.writes), working.len())
    }

    /// Asks every shard which slots it owns. Changes made before this call are known when it returns.
    pub async fn refresh_ownership(&self, deadline: Deadline) {
        // The first refresh may share the answers of one that began before this call; the second cannot.
        self.core.refresh(deadline).await;
        self.core.refresh(deadline).await;
    }

    /// Sends every shard one heartbeat. Returns the disagreements about asset scales.
    pub async fn greet(&self) -> Vec<String> {
        let beats = heartbeat::once(&self.core).await;
        let differing = beats.into_iter().filter_map(|(shard, beat)| match beat {
            crate::shard::Beat::Lost(why) if why.contains(identity::assets::FACT) => {
                Some(format!("shard {shard}: {why}"))
            }
            _ => None,
        });
        differing.collect()
    }

    pub async fn shard_status(&self) -> Vec<ShardStatus> {
        status::of_all(&self.core).await
    }
}

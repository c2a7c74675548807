//! Sagas that other requests have begun: finishes those without a driver (their router died, was shut down, or ran out of time), and lists or
//! drives one on request.
//!
//! Every router polls every shard. The shard postpones the next attempt of each saga that it hands over, so two routers
//! seldom pick the same saga, and nothing bad happens when they do. The answer to a heartbeat says whether a saga is due, so
//! that a shard with nothing due is polled only at each [`UNPROMPTED`]th turn. No signal can be lost for longer than that.
//! A poll makes a pure plan first and then carries it out. A saga that cannot be read is reported and delays no other. Recovery does not
//! claim sagas that pay into a shard that is cut off. They stay due, and the first poll after the shard is back claims them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ledger::{AccountId, TransferId, outcome::TransferState};
use tokio::time::{Instant, sleep};
use wire::{
    ListSagasRequest, ListSagasResponse, TransferRecord,
    convert::{
        BadMessage, account_id, asset, id_from_wire, id_to_wire, name_from_wire, presumed_from_wire,
        purpose_from_wire, state_from_wire,
    },
};

use super::{
    Event, Saga, SagaState,
    coordinator::{Patience, finish},
};
use crate::core::{
    Core,
    call::{CallError, Deadline, Pace},
    metrics,
    reply::{Found, FoundTransfer, SagaFilter, SagaView},
    shard::{NodeClient, Shard},
};

/// How long one page of sagas is driven before they are left to a later poll. Shards that are down answer at once; this
/// is for those that do not answer.
const DRIVE: Duration = Duration::from_secs(5);
/// Attempts after which a saga is reported.
const OVERDUE_ATTEMPTS: u32 = 10;
/// Attempts at which recovery waits for the verdicts of other sagas. The pauses between attempts double, so that these take some seconds: a rival
/// that has its verdict is settled meanwhile.
const PATIENT_ATTEMPTS: u32 = 3;
/// Full pages taken in a row before the next poll's turn: bounds one poll, not the backlog.
const PAGES: usize = 64;
/// A shard whose node reports no due saga is polled at one of so many turns.
const UNPROMPTED: usize = 10;

/// First and longest pause before the transfer is looked at again. Usually its own router is about to finish it.
const LOOK_MIN: Duration = Duration::from_millis(20);
const LOOK_MAX: Duration = Duration::from_millis(500);

impl Core {
    /// The sagas under way of all shards, oldest first, and the shards that could not be asked.
    pub async fn sagas(&self, filter: SagaFilter, deadline: Deadline) -> (Vec<SagaView>, Vec<Arc<str>>) {
        let view = self.view();
        let older_than_ms = i64::try_from(filter.older_than.as_millis()).unwrap_or(i64::MAX);
        let request = &ListSagasRequest { limit: filter.limit, older_than_ms, ..Default::default() };
        let asked = view.ask_all(|shard| async move { list_at(&shard, request, deadline).await }).await;
        let asked = asked.into_iter().map(|(shard, answer)| (shard, answer.map(|listed| listed.sagas)));
        let (mut sagas, mut unreachable) = (Vec::new(), Vec::new());
        for (shard, answer) in asked {
            let Ok(records) = answer else {
                unreachable.push(shard);
                continue;
            };
            sagas.extend(records.into_iter().map(|record| {
                // A record that names no account has no destination; it is shown all the same, because an operator must look at it.
                let destination = account_id(&record.credit, "credit")
                    .map_or_else(|_| Arc::from(""), |credit| Arc::clone(view.shard(view.route(&credit)).id()));
                SagaView { record, source: Arc::clone(&shard), destination }
            }));
        }
        sagas.sort_by_key(|saga| saga.record.created_at_us);
        sagas.truncate(filter.limit as usize);
        (sagas, unreachable)
    }

    /// Drives the sagas of this id now, even if they are not due. Returns their number, one for each debit account.
    pub async fn retry_saga(&self, id: TransferId, deadline: Deadline) -> Result<usize, CallError> {
        let retry_id = id_to_wire(id);
        let request = &ListSagasRequest {
            retry_id: retry_id.clone(),
            limit: self.config.saga_claim_limit,
            ..Default::default()
        };
        let asked = self.view().ask_all(|shard| async move { list_at(&shard, request, deadline).await }).await;
        let (mut found, mut failure) = (0, None);
        for (shard, answer) in asked {
            match answer {
                Ok(ListSagasResponse { sagas: mut records, .. }) => {
                    // The shard may list others beside it; those have their own time.
                    records.retain(|record| record.id == retry_id);
                    found += records.len();
                    drive(self, &shard, records, Verdicts::AtOnce, deadline, &Reports::default()).await;
                }
                Err(error) => failure = Some(error),
            }
        }
        // Found somewhere, the answer is complete: an id has one saga, unless two debit accounts happen to share it.
        match failure {
            Some(error) if found == 0 => Err(error),
            _ => Ok(found),
        }
    }

    /// Finds transfers as [`Core::find_transfer`] does and, while the only one that `sees` accepts is pending, drives it and looks again. A
    /// reversal takes back what was posted, and needs to know whether a pending transfer will be posted.
    pub async fn find_ended_transfer(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        sees: impl Fn(&TransferRecord) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Found<FoundTransfer>, CallError> {
        let mut pace = Pace::new(LOOK_MIN, LOOK_MAX);
        loop {
            let found = self.find_transfer(id, debit, &sees, deadline).await?;
            // With several under one id, the client has to say first which one is meant.
            let pending = match found.found.as_slice() {
                [one] if one.record.status == u32::from(TransferState::PENDING) => one,
                _ => return Ok(found),
            };
            if let Some(closing) = self.closing() {
                return Err(closing);
            }
            // The next look shows whether the transfer has ended. The client that ordered it may still drive it, and may wait for verdicts.
            let record = vec![pending.record.clone()];
            drive(self, &pending.shard, record, Verdicts::Awaited, deadline, &Reports::default()).await;
            if !pace.pause(deadline).await {
                return Err(CallError::Deferred { shard: Arc::clone(&pending.shard) });
            }
        }
    }
}

/// Polls until the router shuts down. A shard that is slow to answer delays no other's poll.
pub async fn run(core: Arc<Core>) {
    let token = core.tasks.token().clone();
    let mut busy: HashMap<Arc<str>, Arc<AtomicBool>> = HashMap::new();
    let reports = Arc::new(Reports::default());
    for turn in 0.. {
        // Jitter keeps routers that were started together from polling together.
        let pause = core.config.saga_poll_interval.mul_f64(0.5 + fastrand::f64());
        if token.run_until_cancelled(sleep(pause)).await.is_none() {
            return;
        }
        let view = core.view();
        busy.retain(|id, _| view.shards().any(|shard| shard.id() == id));
        // Shards have different turns, so that one turn does not poll all of them.
        let is_asked = |(place, shard): &(usize, &Arc<Shard>)| {
            (turn + place).is_multiple_of(UNPROMPTED) || shard.has_due_sagas()
        };
        for (_, shard) in view.shards().enumerate().filter(is_asked) {
            let flag = Arc::clone(busy.entry(Arc::clone(shard.id())).or_default());
            if flag.swap(true, Ordering::AcqRel) {
                continue;
            }
            let (core, shard, reports) = (Arc::clone(&core), Arc::clone(shard), Arc::clone(&reports));
            core.clone().tasks.spawn("saga recovery", async move {
                // Lowered even if the poll panics, or this shard would never be polled again.
                let _lowered = Lowered(flag);
                // Every step that was answered is stored: stopping in between parks the sagas where they are.
                core.tasks.token().run_until_cancelled(poll(&core, &shard, &reports)).await;
            });
        }
    }
}

struct Lowered(Arc<AtomicBool>);

impl Drop for Lowered {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn poll(core: &Core, shard: &Shard, reports: &Reports) {
    let limit = core.config.saga_claim_limit;
    for _ in 0..PAGES {
        let deadline = Instant::now() + DRIVE;
        let (absent, left_out_slots) = absent_shards(core, shard);
        let due = ListSagasRequest { limit, claim_due: true, left_out_slots, ..Default::default() };
        let ListSagasResponse { sagas: records, left_out, oldest_left_out_us } =
            match list_at(shard, &due, deadline).await {
                Ok(listed) => listed,
                Err(error) => {
                    metrics::poll_failed(shard.id());
                    tracing::debug!(shard = %shard.id(), %error, "cannot ask for abandoned sagas");
                    return;
                }
            };
        if left_out > 0 {
            reports.waiting(shard.id(), left_out, oldest_left_out_us, &absent);
        }
        let full = records.len() >= limit as usize;
        drive(core, shard.id(), records, Verdicts::AwaitedAtFirst, deadline, reports).await;
        if !full || core.tasks.token().is_cancelled() {
            return;
        }
    }
}

/// The shards, apart from `source`, that are cut off, and the slots whose requests go to them. Sagas that pay
/// into these slots wait where they are: an attempt could not succeed. The heartbeat, once a second, notices when the shard is back.
fn absent_shards(core: &Core, source: &Shard) -> (Vec<Arc<str>>, Vec<wire::SlotRange>) {
    let view = core.view();
    if view.shards().all(|shard| !shard.is_cut_off()) {
        return Default::default();
    }
    let absent = view.shards_with_slots().into_iter();
    let absent = absent.filter(|(shard, _)| shard.id() != source.id() && shard.is_cut_off());
    let (ids, slots): (Vec<_>, Vec<_>) = absent.map(|(shard, slots)| (Arc::clone(shard.id()), slots)).unzip();
    (ids, slots.into_iter().flatten().map(wire::SlotRange::from).collect())
}

/// What recovery reports in the log: for each shard one line a minute, however many sagas wait.
#[derive(Debug, Default)]
struct Reports(Mutex<HashMap<(Arc<str>, &'static str), Instant>>);

impl Reports {
    const EVERY: Duration = Duration::from_secs(60);

    /// Sagas of `source` wait for shards that do not answer.
    fn waiting(&self, source: &Arc<str>, sagas: u64, oldest_us: i64, absent: &[Arc<str>]) {
        if self.is_due(source, "waiting") {
            let oldest_s = (telemetry::clock::now_us() - oldest_us) / 1_000_000;
            let absent = absent.join(", ");
            tracing::warn!(
                shard = %source, sagas, oldest_s, cut_off = absent,
                "sagas wait because shards are cut off; their money stays in transit until these shards are back"
            );
        }
    }

    /// Sagas of `source` are not finished after many attempts.
    fn overdue(&self, source: &Arc<str>, records: &[TransferRecord]) {
        metrics::overdue(source, records.len());
        if let Some(oldest) = records.iter().min_by_key(|record| record.created_at_us)
            && self.is_due(source, "overdue")
        {
            tracing::warn!(
                shard = %source, sagas = records.len(), attempts = oldest.attempts, debit = oldest.debit, credit = oldest.credit,
                id = %uuid::Uuid::from_slice(&oldest.id).unwrap_or_default(),
                created_at = telemetry::clock::format_rfc3339(oldest.created_at_us),
                "sagas are still not finished after many attempts; the oldest is named"
            );
        }
    }

    fn is_due(&self, shard: &Arc<str>, what: &'static str) -> bool {
        let now = Instant::now();
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = last.get(&(Arc::clone(shard), what)).is_none_or(|at| now.duration_since(*at) >= Self::EVERY);
        if is_due {
            last.insert((Arc::clone(shard), what), now);
        }
        is_due
    }
}

/// What a decision does that depends on the verdicts of other transfers ([`Saga::patient`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdicts {
    /// The decision is taken without them.
    AtOnce,
    /// The decision is not taken yet.
    Awaited,
    /// The decision is not taken at the first [`PATIENT_ATTEMPTS`]. Two sagas may wait for each other's verdict, so that one of them must go on.
    AwaitedAtFirst,
}

async fn drive(
    core: &Core,
    shard: &Arc<str>,
    records: Vec<TransferRecord>,
    verdicts: Verdicts,
    deadline: Deadline,
    reports: &Reports,
) {
    if records.is_empty() {
        return;
    }
    let Plan { mut sagas, overdue, unreadable } = plan(records, verdicts);
    reports.overdue(shard, &overdue);
    for (record, error) in unreadable {
        metrics::recovered(shard, "parked", 1);
        tracing::error!(%shard, debit = record.debit, %error, "a stored saga cannot be read");
    }
    tracing::debug!(%shard, sagas = sagas.len(), "finishing abandoned sagas");
    finish(core, &mut sagas, Patience::Once, deadline).await;
    let count = |wanted: &str| sagas.iter().filter(|saga| ended(saga) == wanted).count() as u64;
    for outcome in metrics::RECOVERY_OUTCOMES {
        metrics::recovered(shard, outcome, count(outcome));
    }
}

fn ended(saga: &Saga) -> &'static str {
    match saga.state {
        _ if saga.parked.is_some() => "parked",
        SagaState::Posted { .. } => "posted",
        SagaState::Rejected { .. } => "rejected",
        SagaState::Unreserved | SagaState::Reserved | SagaState::Credited | SagaState::Refused { .. } => "pending",
    }
}

/// What to do about the sagas a shard handed over.
#[derive(Debug, Default)]
struct Plan {
    sagas: Vec<Saga>,
    /// Driven as well, and reported.
    overdue: Vec<TransferRecord>,
    unreadable: Vec<(TransferRecord, BadMessage)>,
}

fn plan(records: Vec<TransferRecord>, verdicts: Verdicts) -> Plan {
    let mut plan = Plan::default();
    for record in records {
        let patient = match verdicts {
            Verdicts::AtOnce => false,
            Verdicts::Awaited => true,
            Verdicts::AwaitedAtFirst => record.attempts <= PATIENT_ATTEMPTS,
        };
        match saga_of(&record) {
            Ok(Some(saga)) => {
                plan.sagas.push(Saga { patient, ..saga });
                if record.attempts >= OVERDUE_ATTEMPTS {
                    plan.overdue.push(record);
                }
            }
            // Finished between being listed and being read.
            Ok(None) => {}
            Err(error) => plan.unreadable.push((record, error)),
        }
    }
    plan
}

/// The saga of a stored transfer, from the one thing the record proves: that it is reserved, or presumed to be refused.
fn saga_of(record: &TransferRecord) -> Result<Option<Saga>, BadMessage> {
    let stored = state_from_wire(record.status, record.refusal, record.side, record.finished_at_us)?;
    let presumed = presumed_from_wire(stored, record.refusal, record.side)?;
    let state = match SagaState::Unreserved.next(Event::Stored(stored)) {
        Ok(state) if state.next_step().is_some() => state,
        _ => return Ok(None),
    };
    Ok(Some(Saga {
        id: id_from_wire(&record.id)?,
        debit: account_id(&record.debit, "debit")?,
        credit: account_id(&record.credit, "credit")?,
        asset: asset(&record.asset)?,
        amount: record.amount,
        purpose: purpose_from_wire(record.purpose.clone())?,
        presumed,
        state,
        debit_after: None,
        defer_limited: false,
        patient: false,
        put_off: false,
        parked: None,
        ordered_by: name_from_wire(&record.ordered_by)?,
    }))
}

/// The sagas that one shard lists.
async fn list_at(
    shard: &Shard,
    request: &ListSagasRequest,
    deadline: Deadline,
) -> Result<ListSagasResponse, CallError> {
    let ask = |mut node: NodeClient| {
        let request = request.clone();
        async move { node.list_sagas(request).await }
    };
    shard.read(deadline, ask).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(status: u32, attempts: u32) -> TransferRecord {
        TransferRecord {
            id: vec![7; 16].into(),
            debit: "alice".to_owned(),
            credit: "bob".to_owned(),
            asset: "USD".to_owned(),
            amount: 5,
            cross_shard: true,
            status,
            attempts,
            finished_at_us: if status == 1 { 0 } else { 9 },
            ..TransferRecord::default()
        }
    }

    #[test]
    fn pending_transfers_are_taken_up_where_they_are() {
        let plan = plan(vec![record(1, 0), record(1, OVERDUE_ATTEMPTS), record(2, 3)], Verdicts::AtOnce);
        assert_eq!(plan.sagas.len(), 2, "the posted one needs nothing");
        assert!(plan.sagas.iter().all(|saga| saga.state == SagaState::Reserved));
        assert_eq!(plan.overdue.len(), 1);
        assert!(plan.unreadable.is_empty());
    }

    #[test]
    fn a_broken_record_is_reported_and_holds_up_nobody() {
        let broken = TransferRecord { id: vec![1, 2].into(), ..record(1, 0) };
        let nonsense = TransferRecord { asset: "us dollars".to_owned(), ..record(1, 0) };
        let plan = plan(vec![broken, record(1, 0), nonsense, record(77, 0)], Verdicts::AtOnce);
        assert_eq!(plan.sagas.len(), 1);
        assert_eq!(plan.unreadable.len(), 3);
    }
}

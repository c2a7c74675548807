//! Finding stored transfers and holds: by an id, with the verdict of a saga beside its transfer, and many by their identities.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use ledger::{AccountId, HoldKey, TransferId, TransferKey, booking::Role, outcome::NotOwner};
use tonic::{Response, Status};
use wire::{
    GetHoldsRequest, GetHoldsResponse, GetTransfersRequest, GetTransfersResponse, HoldRecord, ReadByKeysRequest,
    RegisterRecord, TransferRecord,
    convert::{account_id, hold_from_wire, id_to_wire},
};

use super::{AccountQuestion, ReadAnswer, ask, at_owner};
use crate::core::{
    Core,
    call::{CallError, Deadline, Pace},
    handover::Load,
    reply::{Found, FoundHold, FoundTransfer, Located},
    rerouting::{Learnt, Reroutes},
    shard::{NodeClient, Shard},
};

impl Core {
    /// Every transfer under one id that `sees` accepts. With the debit account, its shard alone is asked; without, all of them are. For a
    /// transfer that `sees` rejects, no verdict is read: neither the time nor the errors of the answer say that it exists.
    pub async fn find_transfer(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        sees: impl Fn(&TransferRecord) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Found<FoundTransfer>, CallError> {
        match debit {
            Some(debit) => transfers_at_owner(self, id, debit, sees, deadline).await,
            None => Ok(transfers_anywhere(self, id, sees, deadline).await),
        }
    }

    /// Every hold under one id. With the debit account, its shard alone is asked; without, all of them are. A hold whose debit account
    /// `sees` rejects is not waited for while its slot changes hands: the time of the answer does not say that the hold exists.
    pub async fn find_hold(
        &self,
        id: TransferId,
        debit: Option<&AccountId>,
        sees: impl Fn(&str) -> bool + Sync,
        deadline: Deadline,
    ) -> Result<Found<FoundHold>, CallError> {
        let Some(debit) = debit else { return holds_anywhere(self, id, sees, deadline).await };
        let request = GetHoldsRequest { id: id_to_wire(id), debit: debit.to_string() };
        let mut found = Found::default();
        if let Some(holds) = at_owner(self, debit, request, deadline).await? {
            take_holds(&mut found, &holds.shard, holds.value)?;
        }
        Ok(found)
    }

    /// The transfers among `keys` that exist, in no order. The verdicts of those between shards are not read.
    pub async fn transfers_of(
        &self,
        keys: Vec<TransferKey>,
        deadline: Deadline,
    ) -> Result<Vec<FoundTransfer>, CallError> {
        let found = at_owners::<TransferRecord>(self, keys, deadline).await?;
        let located = found.into_iter().map(|(shard, record)| FoundTransfer {
            record,
            shard,
            register: None,
            verdict_unread: true,
        });
        Ok(located.collect())
    }

    /// The holds among `keys` that exist, in no order.
    pub async fn holds_of(&self, keys: Vec<HoldKey>, deadline: Deadline) -> Result<Vec<FoundHold>, CallError> {
        let found = at_owners::<HoldRecord>(self, keys, deadline).await?;
        let read = |(shard, record): (Arc<str>, HoldRecord)| {
            let (key, hold) = hold_from_wire(record).map_err(|error| CallError::nonsense(&shard, error))?;
            Ok(FoundHold { key, hold })
        };
        found.into_iter().map(read).collect()
    }
}

// === transfers under one id ===

async fn transfers_at_owner(
    core: &Core,
    id: TransferId,
    debit: &AccountId,
    sees: impl Fn(&TransferRecord) -> bool + Sync,
    deadline: Deadline,
) -> Result<Found<FoundTransfer>, CallError> {
    let request = GetTransfersRequest { id: id_to_wire(id), debit: debit.to_string() };
    let mut found = Found::default();
    let Some(Located { shard, value }) = at_owner(core, debit, request, deadline).await? else { return Ok(found) };
    let (transfers, registers) = (value.transfers, value.registers);
    for record in transfers.into_iter().filter(&sees) {
        let own = verdict_of(&record, &registers).map(|register| (register, Arc::clone(&shard)));
        let before = found.unreachable.len();
        let register = match own {
            None if record.cross_shard => verdict_elsewhere(core, id, &record, deadline, &mut found).await,
            own => own,
        };
        let verdict_unread = found.unreachable.len() > before;
        found.found.push(FoundTransfer { record, shard: Arc::clone(&shard), register, verdict_unread });
    }
    Ok(found)
}

/// The verdict from the credit account's shard.
async fn verdict_elsewhere(
    core: &Core,
    id: TransferId,
    record: &TransferRecord,
    deadline: Deadline,
    found: &mut Found<FoundTransfer>,
) -> Option<(RegisterRecord, Arc<str>)> {
    let credit = account_id(&record.credit, "credit").ok()?;
    let view = core.view();
    let shard = view.shard(view.route(&credit));
    match ask(shard, &under(id), deadline).await {
        // The credit account's slot changes hands: the shard has the verdict and does not own it.
        Ok(answer) if answer.registers_elsewhere.contains(&record.debit) => {
            found.unreachable.push(Arc::clone(shard.id()));
            None
        }
        Ok(answer) => verdict_of(record, &answer.registers).map(|register| (register, Arc::clone(shard.id()))),
        Err(_) => {
            found.unreachable.push(Arc::clone(shard.id()));
            None
        }
    }
}

async fn transfers_anywhere(
    core: &Core,
    id: TransferId,
    sees: impl Fn(&TransferRecord) -> bool + Sync,
    deadline: Deadline,
) -> Found<FoundTransfer> {
    let mut pace = Pace::new(AGAIN_MIN, AGAIN_MAX);
    loop {
        let mut moving = Moving::default();
        let mut found = transfers_now(core, id, &sees, &mut moving, deadline).await;
        if moving.is_over(&mut found, &mut pace, deadline).await {
            return found;
        }
    }
}

/// The transfers that the shards show now.
async fn transfers_now(
    core: &Core,
    id: TransferId,
    sees: impl Fn(&TransferRecord) -> bool + Sync,
    moving: &mut Moving,
    deadline: Deadline,
) -> Found<FoundTransfer> {
    let request = &under(id);
    let asked = core.view().ask_all(|shard| async move { ask(&shard, request, deadline).await }).await;
    let mut found = Found::default();
    let (mut records, mut registers) = (Vec::new(), Vec::new());
    for (shard, answer) in asked {
        match answer {
            Ok(answer) => {
                let shown = answer.transfers.iter().filter(|record| sees(record));
                moving.shown.extend(shown.map(|record| (Role::Transfer, record.debit.clone())));
                moving.shown.extend(answer.registers.iter().map(|register| (Role::Register, register.debit.clone())));
                let transfers = answer.elsewhere.into_iter().filter(&sees).map(|record| record.debit);
                moving.left(&shard, Role::Transfer, transfers);
                moving.left(&shard, Role::Register, answer.registers_elsewhere);
                records.extend(answer.transfers.into_iter().filter(&sees).map(|record| (record, Arc::clone(&shard))));
                registers.extend(answer.registers.into_iter().map(|register| (register, Arc::clone(&shard))));
            }
            Err(_) => found.unreachable.push(shard),
        }
    }
    found.found = records
        .into_iter()
        .map(|(record, shard)| {
            let register = registers
                .iter()
                .find(|(register, _)| register.debit == record.debit)
                .map(|(register, shard)| (register.clone(), Arc::clone(shard)));
            let verdict_unread = register.is_none() && !found.unreachable.is_empty();
            FoundTransfer { record, shard, register, verdict_unread }
        })
        .collect();
    found
}

fn verdict_of(record: &TransferRecord, registers: &[RegisterRecord]) -> Option<RegisterRecord> {
    registers.iter().find(|register| register.debit == record.debit).cloned()
}

/// All that a shard has under the id, whatever the debit account.
fn under(id: TransferId) -> GetTransfersRequest {
    GetTransfersRequest { id: id_to_wire(id), debit: String::new() }
}

impl AccountQuestion for GetTransfersRequest {
    type Answer = GetTransfersResponse;
    type Value = GetTransfersResponse;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetTransfersResponse>, Status> {
        node.get_transfers(self).await
    }

    fn read(mut answer: GetTransfersResponse) -> ReadAnswer<GetTransfersResponse> {
        match answer.not_owner.take() {
            Some(not_owner) => ReadAnswer::NotOwner(not_owner),
            None => ReadAnswer::Found(answer),
        }
    }
}

// === what is in a slot that changes hands ===

/// Which bookings of an id some shard has shown, and which are in slots that a shard has given away or waits for.
#[derive(Default)]
struct Moving {
    shown: HashSet<(Role, String)>,
    elsewhere: HashMap<(Role, String), Arc<str>>,
}

impl Moving {
    /// Takes in what `shard` has of other shards' slots.
    fn left(&mut self, shard: &Arc<str>, role: Role, debits: impl IntoIterator<Item = String>) {
        self.elsewhere.extend(debits.into_iter().map(|debit| ((role, debit), Arc::clone(shard))));
    }

    /// A shard that has what no shard shows. A register is of interest where its transfer is shown, or waited for.
    fn unseen(&self) -> Option<&Arc<str>> {
        let is_unseen = |booking: &(Role, String)| {
            let transfer = (Role::Transfer, booking.1.clone());
            let is_wanted = booking.0 != Role::Register || self.shown.contains(&transfer);
            is_wanted && !self.shown.contains(booking)
        };
        self.elsewhere.iter().find(|(booking, _)| is_unseen(booking)).map(|(_, shard)| shard)
    }
}

/// First and longest pause before all shards are asked again. A slot changes hands within a fraction of a second.
const AGAIN_MIN: Duration = Duration::from_millis(10);
const AGAIN_MAX: Duration = Duration::from_millis(200);

impl Moving {
    /// Whether `found` is all that there is: every booking that some shard knows is shown by its owner. While a slot changes hands, the
    /// source shows what is in it no more, and the target, asked a moment before, does not show it yet. Returns false after a pause: look again.
    /// If the deadline comes first, the shard counts as one that cannot be read, because "not found" would be wrong.
    async fn is_over<T>(&self, found: &mut Found<T>, pace: &mut Pace, deadline: Deadline) -> bool {
        // Of a shard that did not answer, nothing can be expected.
        let Some(shard) = self.unseen().filter(|_| found.unreachable.is_empty()) else { return true };
        if pace.pause(deadline).await {
            return false;
        }
        found.unreachable.push(Arc::clone(shard));
        true
    }
}

// === holds under one id ===

async fn holds_anywhere(
    core: &Core,
    id: TransferId,
    sees: impl Fn(&str) -> bool + Sync,
    deadline: Deadline,
) -> Result<Found<FoundHold>, CallError> {
    let request = &GetHoldsRequest { id: id_to_wire(id), debit: String::new() };
    let mut pace = Pace::new(AGAIN_MIN, AGAIN_MAX);
    loop {
        let asked = core.view().ask_all(|shard| async move { ask(&shard, request, deadline).await }).await;
        let (mut found, mut moving) = (Found::default(), Moving::default());
        for (shard, answer) in asked {
            match answer {
                Ok(answer) => {
                    moving.shown.extend(answer.holds.iter().map(|hold| (Role::Hold, hold.debit.clone())));
                    moving.left(&shard, Role::Hold, answer.elsewhere.into_iter().filter(|debit| sees(debit)));
                    take_holds(&mut found, &shard, answer.holds)?;
                }
                Err(_) => found.unreachable.push(shard),
            }
        }
        if moving.is_over(&mut found, &mut pace, deadline).await {
            return Ok(found);
        }
    }
}

fn take_holds(found: &mut Found<FoundHold>, shard: &Arc<str>, records: Vec<HoldRecord>) -> Result<(), CallError> {
    for record in records {
        let (key, hold) = hold_from_wire(record).map_err(|error| CallError::nonsense(shard, error))?;
        found.found.push(FoundHold { key, hold });
    }
    Ok(())
}

impl AccountQuestion for GetHoldsRequest {
    type Answer = GetHoldsResponse;
    type Value = Vec<HoldRecord>;

    async fn ask(self, mut node: NodeClient) -> Result<Response<GetHoldsResponse>, Status> {
        node.get_holds(self).await
    }

    fn read(answer: GetHoldsResponse) -> ReadAnswer<Vec<HoldRecord>> {
        match answer.not_owner {
            Some(not_owner) => ReadAnswer::NotOwner(not_owner),
            None => ReadAnswer::Found(answer.holds),
        }
    }
}

// === by identities: one call for each shard that has some of them ===

/// The most that a shard takes in one call.
const KEYS_IN_A_CALL: usize = 500;

/// What is read by key.
trait ByKey: Sized + Send {
    /// What exists of the keys, or the slots of them that the shard does not own.
    fn ask(
        shard: &Shard,
        request: ReadByKeysRequest,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(Vec<Self>, Vec<wire::NotOwner>), CallError>> + Send;
}

impl ByKey for TransferRecord {
    async fn ask(
        shard: &Shard,
        request: ReadByKeysRequest,
        deadline: Deadline,
    ) -> Result<(Vec<Self>, Vec<wire::NotOwner>), CallError> {
        let ask = |mut node: NodeClient| {
            let request = request.clone();
            async move { node.read_transfers(request).await }
        };
        let answer = shard.read(deadline, ask).await?;
        Ok((answer.transfers, answer.not_owner))
    }
}

impl ByKey for HoldRecord {
    async fn ask(
        shard: &Shard,
        request: ReadByKeysRequest,
        deadline: Deadline,
    ) -> Result<(Vec<Self>, Vec<wire::NotOwner>), CallError> {
        let ask = |mut node: NodeClient| {
            let request = request.clone();
            async move { node.read_holds(request).await }
        };
        let answer = shard.read(deadline, ask).await?;
        Ok((answer.holds, answer.not_owner))
    }
}

/// Asks the owners of the debit accounts, following those that have moved. A shard out of reach fails the whole.
async fn at_owners<R: ByKey>(
    core: &Core,
    mut keys: Vec<TransferKey>,
    deadline: Deadline,
) -> Result<Vec<(Arc<str>, R)>, CallError> {
    let mut reroutes = Reroutes::new(deadline);
    let mut found = Vec::new();
    loop {
        let view = core.view();
        let mut by_shard: BTreeMap<Arc<str>, Vec<TransferKey>> = BTreeMap::new();
        for key in std::mem::take(&mut keys) {
            by_shard.entry(Arc::clone(view.shard(view.route(&key.debit)).id())).or_default().push(key);
        }
        let mut calls = Vec::new();
        for key_list in by_shard.into_values() {
            for some in key_list.chunks(KEYS_IN_A_CALL) {
                let Some(first) = some.first() else { continue };
                let shard = view.shard(view.route(&first.debit)).clone();
                let asked = some.to_vec();
                calls.push(async move {
                    let wanted =
                        |key: &TransferKey| wire::HoldKey { id: id_to_wire(key.id), debit: key.debit.to_string() };
                    let request = ReadByKeysRequest { keys: asked.iter().map(wanted).collect() };
                    let answer = R::ask(&shard, request, deadline).await;
                    (Arc::clone(shard.id()), asked, answer)
                });
            }
        }
        let mut learnt = Learnt::Owners;
        for (shard, asked, answer) in join_all(calls).await {
            let (records, refusals) = answer?;
            if refusals.is_empty() {
                found.extend(records.into_iter().map(|record| (Arc::clone(&shard), record)));
                continue;
            }
            let refusals = refusals.into_iter().map(NotOwner::try_from).collect::<Result<Vec<_>, _>>();
            let refusals = refusals.map_err(|error| CallError::nonsense(&shard, error))?;
            learnt = learnt.and(core.learn(&shard, &refusals));
            keys.extend(asked);
        }
        let Some(moved) = keys.first() else { return Ok(found) };
        if !core.again(&mut reroutes, &learnt, Load::READ).await {
            let view = core.view();
            return Err(CallError::Unavailable { shard: Arc::clone(view.shard(view.route(&moved.debit)).id()) });
        }
    }
}

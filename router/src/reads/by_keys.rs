//! Many transfers or holds by their identities: one call for each shard that has some of them.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use ledger::{HoldKey, TransferKey, outcome::NotOwner};
use wire::{
    ReadByKeysRequest,
    convert::{hold_from_wire, id_to_wire},
};

use crate::{
    service::{CallError, Core, Deadline, FoundHold, FoundTransfer, Learnt, Load, Reroutes},
    shard::{NodeClient, Shard},
};

/// The most that a shard takes in one call.
const KEYS_IN_A_CALL: usize = 500;

/// What is read by key.
trait Record: Sized + Send {
    /// What exists of the keys, or the slots of them that the shard does not own.
    fn ask(
        shard: &Shard,
        request: ReadByKeysRequest,
        deadline: Deadline,
    ) -> impl Future<Output = Result<(Vec<Self>, Vec<wire::NotOwner>), CallError>> + Send;
}

impl Record for wire::TransferRecord {
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

impl Record for wire::HoldRecord {
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

/// The transfers among `keys` that exist, in no order. The verdicts of those between shards are not read.
pub async fn transfers_of(
    core: &Core,
    keys: Vec<TransferKey>,
    deadline: Deadline,
) -> Result<Vec<FoundTransfer>, CallError> {
    let found = at_owners::<wire::TransferRecord>(core, keys, deadline).await?;
    let located = found.into_iter().map(|(shard, record)| FoundTransfer {
        record,
        shard,
        register: None,
        verdict_unread: true,
    });
    Ok(located.collect())
}

/// The holds among `keys` that exist, in no order.
pub async fn holds_of(core: &Core, keys: Vec<HoldKey>, deadline: Deadline) -> Result<Vec<FoundHold>, CallError> {
    let found = at_owners::<wire::HoldRecord>(core, keys, deadline).await?;
    let read = |(shard, record): (Arc<str>, wire::HoldRecord)| {
        let (key, hold) = hold_from_wire(record).map_err(|error| CallError::nonsense(&shard, error))?;
        Ok(FoundHold { key, hold })
    };
    found.into_iter().map(read).collect()
}

/// Asks the owners of the debit accounts, following those that have moved. A shard out of reach fails the whole.
async fn at_owners<R: Record>(
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

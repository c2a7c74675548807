//! Operations.

use identity::Mark;
use ledger::{
    HoldKey, KeyName, Metadata,
    operation::{
        CreateAccount, Decide, EraseMetadata, Erased, Operation, PlaceHold, ReleaseHold, Settle, Transfer,
        UpdateAccount,
    },
};

use super::{
    BadMessage, account::account_status, account_id, asset, bad, id_from_wire, id_to_wire, purpose_from_wire,
    purpose_to_wire, refused_from_wire, refused_to_wire, shard_mark_from_wire, shard_mark_to_wire, verdict_from_wire,
    verdict_to_wire,
};
use crate::generated as wire;

/// An operation as it travels: with what the lane needs to know about its request.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// Milliseconds it may wait to be decided; 0: no deadline.
    pub timeout_ms: u32,
    pub order_group: u32,
    pub operation: Operation,
    /// For a step of a saga: the mark of the shard at the saga's other end.
    pub peer: Option<(u16, Mark)>,
}

impl From<&Submitted> for wire::Operation {
    fn from(submitted: &Submitted) -> Self {
        let operation = operation_to_wire(&submitted.operation, submitted.order_group, submitted.timeout_ms);
        wire::Operation { peer: submitted.peer.map(shard_mark_to_wire), ..operation }
    }
}

pub fn operation_to_wire(operation: &Operation, order_group: u32, timeout_ms: u32) -> wire::Operation {
    use wire::operation::Kind;
    if let Operation::DryRun(operation) = operation {
        return wire::Operation { dry_run: true, ..operation_to_wire(operation, order_group, timeout_ms) };
    }
    if let Operation::OrNothing(operation) = operation {
        return wire::Operation { or_nothing: true, ..operation_to_wire(operation, order_group, timeout_ms) };
    }
    let kind = match operation {
        Operation::CreateAccount(create) => Kind::CreateAccount(wire::CreateAccount {
            id: create.id.to_string(),
            asset: create.asset.to_string(),
            overdraft: Some(create.overdraft.into()),
            max_balance: Some(create.max_balance.into()),
            metadata: create.metadata.as_str().to_owned(),
            ordered_by: name_to_wire(create.ordered_by.as_ref()),
        }),
        Operation::UpdateAccount(update) => Kind::UpdateAccount(wire::UpdateAccount {
            id: update.id.to_string(),
            status: update.status.map(|s| s.code().into()),
            overdraft: update.overdraft.map(Into::into),
            max_balance: update.max_balance.map(Into::into),
            metadata: update.metadata.as_ref().map(|m| m.as_str().to_owned()),
            ordered_by: name_to_wire(update.ordered_by.as_ref()),
        }),
        Operation::Transfer(transfer) => Kind::Transfer(transfer_to_wire(transfer)),
        Operation::AtomicTransfers(items) => {
            Kind::AtomicTransfers(wire::AtomicTransfers { transfers: items.iter().map(transfer_to_wire).collect() })
        }
        Operation::Decide(decide) => {
            let (presumed_refusal, presumed_side) = decide.presumed.map_or((0, 0), refused_to_wire);
            Kind::Decide(wire::Decide {
                id: id_to_wire(decide.id),
                debit: decide.debit.to_string(),
                credit: decide.credit.to_string(),
                asset: decide.asset.to_string(),
                amount: decide.amount,
                purpose: purpose_to_wire(decide.purpose),
                presumed_refusal,
                presumed_side,
                defer_limited: decide.defer_limited,
                patient: decide.patient,
                ordered_by: name_to_wire(decide.ordered_by.as_ref()),
            })
        }
        Operation::Settle(settle) => {
            let (credited, refusal, side) = verdict_to_wire(settle.verdict);
            Kind::Settle(wire::Settle {
                id: id_to_wire(settle.id),
                debit: settle.debit.to_string(),
                credit: settle.credit.to_string(),
                asset: settle.asset.to_string(),
                amount: settle.amount,
                credited,
                refusal,
                side,
                purpose: purpose_to_wire(settle.purpose),
                reserved: settle.reserved,
            })
        }
        Operation::PlaceHold(place) => Kind::PlaceHold(wire::PlaceHold {
            id: id_to_wire(place.id),
            debit: place.debit.to_string(),
            credit: place.credit.to_string(),
            asset: place.asset.to_string(),
            amount: place.amount,
            expires_in_s: place.expires_in_s.unwrap_or(0),
            metadata: place.metadata.as_str().to_owned(),
            ordered_by: name_to_wire(place.ordered_by.as_ref()),
        }),
        Operation::ReleaseHold(ReleaseHold { key, ordered_by }) => Kind::ReleaseHold(wire::ReleaseHold {
            id: id_to_wire(key.id),
            debit: key.debit.to_string(),
            ordered_by: name_to_wire(ordered_by.as_ref()),
        }),
        Operation::ExpireHold(key) => Kind::ExpireHold(hold_key_to_wire(key)),
        Operation::EraseMetadata(erase) => Kind::EraseMetadata(wire::EraseMetadata {
            is_hold: erase.of == Erased::Hold,
            id: id_to_wire(erase.id),
            debit: erase.debit.to_string(),
            at: erase.at.to_string(),
            credit: erase.credit.as_ref().map(ToString::to_string).unwrap_or_default(),
            ordered_by: name_to_wire(erase.ordered_by.as_ref()),
        }),
        // Peeled off above; two of them are one.
        Operation::DryRun(inner) | Operation::OrNothing(inner) => {
            return operation_to_wire(inner, order_group, timeout_ms);
        }
    };
    wire::Operation { timeout_ms, order_group, kind: Some(kind), dry_run: false, or_nothing: false, peer: None }
}

impl TryFrom<wire::Operation> for Submitted {
    type Error = BadMessage;

    fn try_from(message: wire::Operation) -> Result<Self, BadMessage> {
        use wire::operation::Kind;
        let operation = match message.kind.ok_or(BadMessage::Missing("operation"))? {
            Kind::CreateAccount(create) => Operation::CreateAccount(CreateAccount {
                id: account_id(&create.id, "create_account.id")?,
                asset: asset(&create.asset)?,
                overdraft: create.overdraft.ok_or(BadMessage::Missing("overdraft"))?.into(),
                max_balance: create.max_balance.ok_or(BadMessage::Missing("max_balance"))?.into(),
                metadata: Metadata::from_canonical(&create.metadata),
                ordered_by: name_from_wire(&create.ordered_by)?,
            }),
            Kind::UpdateAccount(update) => Operation::UpdateAccount(UpdateAccount {
                id: account_id(&update.id, "update_account.id")?,
                status: update.status.map(account_status).transpose()?,
                overdraft: update.overdraft.map(Into::into),
                max_balance: update.max_balance.map(Into::into),
                metadata: update.metadata.map(|text| Metadata::from_canonical(&text)),
                ordered_by: name_from_wire(&update.ordered_by)?,
            }),
            Kind::Transfer(transfer) => Operation::Transfer(transfer_from_wire(transfer)?),
            Kind::AtomicTransfers(group) => Operation::AtomicTransfers(
                group.transfers.into_iter().map(local_transfer_from_wire).collect::<Result<_, _>>()?,
            ),
            Kind::Decide(decide) => Operation::Decide(Decide {
                id: id_from_wire(&decide.id)?,
                debit: account_id(&decide.debit, "decide.debit")?,
                credit: account_id(&decide.credit, "decide.credit")?,
                asset: asset(&decide.asset)?,
                amount: amount_for(decide.amount, decide.presumed_refusal != 0)?,
                purpose: purpose_from_wire(decide.purpose)?,
                presumed: match decide.presumed_refusal {
                    0 => None,
                    refusal => Some(refused_from_wire(refusal, decide.presumed_side)?),
                },
                defer_limited: decide.defer_limited,
                patient: decide.patient,
                ordered_by: name_from_wire(&decide.ordered_by)?,
            }),
            Kind::Settle(settle) => Operation::Settle(Settle {
                id: id_from_wire(&settle.id)?,
                debit: account_id(&settle.debit, "settle.debit")?,
                credit: account_id(&settle.credit, "settle.credit")?,
                asset: asset(&settle.asset)?,
                amount: amount_for(settle.amount, !settle.reserved)?,
                purpose: purpose_from_wire(settle.purpose)?,
                reserved: settle.reserved,
                verdict: verdict_from_wire(settle.credited, settle.refusal, settle.side)?,
            }),
            Kind::PlaceHold(place) => Operation::PlaceHold(PlaceHold {
                id: id_from_wire(&place.id)?,
                debit: account_id(&place.debit, "place_hold.debit")?,
                credit: account_id(&place.credit, "place_hold.credit")?,
                asset: asset(&place.asset)?,
                amount: positive(place.amount)?,
                expires_in_s: (place.expires_in_s > 0).then_some(place.expires_in_s),
                metadata: Metadata::from_canonical(&place.metadata),
                ordered_by: name_from_wire(&place.ordered_by)?,
            }),
            Kind::ReleaseHold(release) => Operation::ReleaseHold(ReleaseHold {
                key: HoldKey {
                    id: id_from_wire(&release.id)?,
                    debit: account_id(&release.debit, "release_hold.debit")?,
                },
                ordered_by: name_from_wire(&release.ordered_by)?,
            }),
            Kind::ExpireHold(key) => Operation::ExpireHold(hold_key_from_wire(&key)?),
            Kind::EraseMetadata(erase) => Operation::EraseMetadata(EraseMetadata {
                of: if erase.is_hold { Erased::Hold } else { Erased::Transfer },
                id: id_from_wire(&erase.id)?,
                debit: account_id(&erase.debit, "erase_metadata.debit")?,
                at: account_id(&erase.at, "erase_metadata.at")?,
                credit: match erase.credit.as_str() {
                    "" => None,
                    credit => Some(account_id(credit, "erase_metadata.credit")?),
                },
                ordered_by: name_from_wire(&erase.ordered_by)?,
            }),
        };
        let operation = match (message.dry_run, message.or_nothing) {
            (true, _) => Operation::DryRun(Box::new(operation)),
            (false, true) => Operation::OrNothing(Box::new(operation)),
            (false, false) => operation,
        };
        let peer = message.peer.as_ref().map(shard_mark_from_wire).transpose()?;
        Ok(Self { timeout_ms: message.timeout_ms, order_group: message.order_group, operation, peer })
    }
}

fn transfer_to_wire(transfer: &Transfer) -> wire::Transfer {
    wire::Transfer {
        id: id_to_wire(transfer.id),
        debit: transfer.debit.to_string(),
        credit: transfer.credit.to_string(),
        asset: transfer.asset.to_string(),
        amount: transfer.amount,
        metadata: transfer.metadata.as_str().to_owned(),
        cross_shard: transfer.cross_shard,
        defer_insufficient: transfer.defer_insufficient,
        defer_limited: transfer.defer_limited,
        purpose: purpose_to_wire(transfer.purpose),
        ordered_by: name_to_wire(transfer.ordered_by.as_ref()),
    }
}

fn transfer_from_wire(message: wire::Transfer) -> Result<Transfer, BadMessage> {
    let purpose = purpose_from_wire(message.purpose)?;
    let transfer = Transfer {
        id: id_from_wire(&message.id)?,
        debit: account_id(&message.debit, "transfer.debit")?,
        credit: account_id(&message.credit, "transfer.credit")?,
        asset: asset(&message.asset)?,
        amount: amount_for(message.amount, purpose.is_whole())?,
        metadata: Metadata::from_canonical(&message.metadata),
        purpose,
        cross_shard: message.cross_shard,
        defer_insufficient: message.defer_insufficient,
        defer_limited: message.defer_limited,
        ordered_by: name_from_wire(&message.ordered_by)?,
    };
    if transfer.debit == transfer.credit {
        return Err(bad("transfer.credit", "same account as the debit side"));
    }
    Ok(transfer)
}

/// An item of an atomic group: a reserve cannot be taken back with the rest of the group.
fn local_transfer_from_wire(message: wire::Transfer) -> Result<Transfer, BadMessage> {
    if message.cross_shard {
        return Err(bad("transfer.cross_shard", "set in an atomic group"));
    }
    if message.purpose.is_some() {
        return Err(bad("transfer.purpose", "set in an atomic group"));
    }
    transfer_from_wire(message)
}

fn hold_key_to_wire(key: &HoldKey) -> wire::HoldKey {
    wire::HoldKey { id: id_to_wire(key.id), debit: key.debit.to_string() }
}

fn hold_key_from_wire(message: &wire::HoldKey) -> Result<HoldKey, BadMessage> {
    Ok(HoldKey { id: id_from_wire(&message.id)?, debit: account_id(&message.debit, "hold.debit")? })
}

/// The name of an API key; empty: none. An empty text allocates nothing.
pub fn name_to_wire(name: Option<&KeyName>) -> String {
    name.map_or_else(String::new, KeyName::to_string)
}

pub fn name_from_wire(text: &str) -> Result<Option<KeyName>, BadMessage> {
    if text.is_empty() {
        return Ok(None);
    }
    KeyName::new(text).map(Some).map_err(|error| bad("ordered_by", error.to_string()))
}

fn positive(amount: i64) -> Result<i64, BadMessage> {
    if amount > 0 { Ok(amount) } else { Err(bad("amount", "not positive")) }
}

/// An amount that may be 0 where nothing will move.
fn amount_for(amount: i64, may_be_zero: bool) -> Result<i64, BadMessage> {
    if amount == 0 && may_be_zero { Ok(0) } else { positive(amount) }
}

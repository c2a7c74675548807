//! Accounts and holds.

use ledger::{
    Account, AccountId, AccountStatus, Hold, HoldKey, HoldStatus, Metadata, Position, Refused,
    hold::CaptureInFlight,
    outcome::{HoldAnswer, HoldOutcome},
};

use super::{
    BadMessage, account_id, asset, bad, id_from_wire, id_to_wire, name_from_wire, name_to_wire, outcome::field_name,
    refused_from_wire, refused_to_wire,
};
use crate::generated::{self as wire, hold_outcome::Kind};

impl From<&Account> for wire::Account {
    fn from(account: &Account) -> Self {
        Self {
            id: account.id.to_string(),
            asset: account.asset.to_string(),
            status: account.status.code().into(),
            posted: account.posted,
            held: account.held,
            overdraft: Some(account.overdraft.into()),
            max_balance: Some(account.max_balance.into()),
            version: account.version,
            metadata: account.metadata.shown().to_owned(),
            created_at_us: account.created_at_us,
            updated_at_us: account.updated_at_us,
        }
    }
}

impl TryFrom<wire::Account> for Account {
    type Error = BadMessage;

    /// The journal head stays behind on the shard: it is [`Position::NONE`] here.
    fn try_from(message: wire::Account) -> Result<Self, BadMessage> {
        Ok(Self {
            id: AccountId::any(&message.id).map_err(|e| bad("account.id", e))?,
            asset: asset(&message.asset)?,
            status: account_status(message.status)?,
            posted: message.posted,
            held: message.held,
            overdraft: message.overdraft.ok_or(BadMessage::Missing("overdraft"))?.into(),
            max_balance: message.max_balance.ok_or(BadMessage::Missing("max_balance"))?.into(),
            version: message.version,
            head: Position::NONE,
            opened: Position::NONE,
            metadata: Metadata::from_canonical(&message.metadata),
            created_at_us: message.created_at_us,
            updated_at_us: message.updated_at_us,
        })
    }
}

pub(super) fn account_status(code: u32) -> Result<AccountStatus, BadMessage> {
    let known = u8::try_from(code).ok().and_then(AccountStatus::from_code);
    known.ok_or_else(|| bad("status", format!("{code} is no account status")))
}

/// A stored hold under its key.
pub fn hold_to_wire(key: &HoldKey, hold: &Hold) -> wire::HoldRecord {
    let (refusal, side) = hold.status.refused().map_or((0, 0), refused_to_wire);
    wire::HoldRecord {
        id: id_to_wire(key.id),
        debit: key.debit.to_string(),
        credit: hold.credit.to_string(),
        asset: hold.asset.to_string(),
        amount: hold.amount,
        metadata: hold.metadata.shown().to_owned(),
        status: hold.status.code().into(),
        refusal,
        side,
        captured: hold.captured,
        capture_in_flight: hold.in_flight.map(|flying| id_to_wire(flying.capture)).unwrap_or_default(),
        in_flight_amount: hold.in_flight.map_or(0, |flying| flying.amount),
        expires_at_us: hold.expires_at_us.unwrap_or(0),
        debit_after: hold.debit_after.map(Into::into),
        created_at_us: hold.created_at_us,
        ended_at_us: hold.ended_at_us.unwrap_or(0),
        ordered_by: name_to_wire(hold.ordered_by.as_ref()),
        ended_by: name_to_wire(hold.ended_by.as_ref()),
    }
}

pub fn hold_from_wire(message: wire::HoldRecord) -> Result<(HoldKey, Hold), BadMessage> {
    let key = HoldKey { id: id_from_wire(&message.id)?, debit: account_id(&message.debit, "hold.debit")? };
    let in_flight = if message.capture_in_flight.is_empty() {
        None
    } else {
        let capture = id_from_wire(&message.capture_in_flight)?;
        Some(CaptureInFlight { capture, amount: message.in_flight_amount })
    };
    let hold = Hold {
        credit: account_id(&message.credit, "hold.credit")?,
        asset: asset(&message.asset)?,
        amount: message.amount,
        metadata: Metadata::from_canonical(&message.metadata),
        status: hold_status_from_wire(message.status, message.refusal, message.side)?,
        captured: message.captured,
        in_flight,
        expires_at_us: some(message.expires_at_us),
        debit_after: message.debit_after.map(TryInto::try_into).transpose()?,
        created_at_us: message.created_at_us,
        ended_at_us: some(message.ended_at_us),
        ordered_by: name_from_wire(&message.ordered_by)?,
        ended_by: name_from_wire(&message.ended_by)?,
    };
    Ok((key, hold))
}

/// A hold's status from its code and refusal.
pub fn hold_status_from_wire(status: u32, refusal: u32, side: u32) -> Result<HoldStatus, BadMessage> {
    match u8::try_from(status) {
        Ok(HoldStatus::HELD) => Ok(HoldStatus::Held),
        Ok(HoldStatus::CAPTURED) => Ok(HoldStatus::Captured),
        Ok(HoldStatus::RELEASED) => Ok(HoldStatus::Released),
        Ok(HoldStatus::EXPIRED) => Ok(HoldStatus::Expired),
        Ok(HoldStatus::REJECTED) => refused_from_wire(refusal, side).map(HoldStatus::Rejected),
        _ => Err(BadMessage::Bad { field: "status", reason: format!("{status} is no hold status") }),
    }
}

pub(super) fn hold_outcome_to_wire(outcome: HoldOutcome) -> wire::HoldOutcome {
    let nothing = wire::Nothing {};
    let kind = match outcome {
        HoldOutcome::Placed(answer) => {
            let (refusal, side) = answer.refused.map_or((0, 0), refused_to_wire);
            Kind::Placed(wire::HoldPlaced {
                refusal,
                side,
                debit_after: answer.debit_after.map(Into::into),
                expires_at_us: answer.expires_at_us.unwrap_or(0),
                created_at_us: answer.created_at_us,
                replayed: answer.replayed,
                ordered_by: name_to_wire(answer.ordered_by.as_ref()),
            })
        }
        HoldOutcome::Mismatch { field } => Kind::MismatchField(field.to_owned()),
        HoldOutcome::DebitNotFound => Kind::DebitNotFound(nothing),
        HoldOutcome::Released { key, hold, replayed } => {
            Kind::Released(wire::HoldReleased { hold: Some(hold_to_wire(&key, &hold)), replayed })
        }
        HoldOutcome::Expired => Kind::Expired(nothing),
        HoldOutcome::NotDue => Kind::NotDue(nothing),
        HoldOutcome::NotFound => Kind::NotFound(nothing),
        HoldOutcome::Refused(refused) => Kind::Refusal(refused_to_wire(refused).0),
    };
    wire::HoldOutcome { kind: Some(kind) }
}

pub(super) fn hold_outcome_from_wire(message: wire::HoldOutcome) -> Result<HoldOutcome, BadMessage> {
    Ok(match message.kind.ok_or(BadMessage::Missing("hold outcome"))? {
        Kind::Placed(placed) => HoldOutcome::Placed(HoldAnswer {
            refused: match placed.refusal {
                0 => None,
                refusal => Some(refused_from_wire(refusal, placed.side)?),
            },
            debit_after: placed.debit_after.map(TryInto::try_into).transpose()?,
            expires_at_us: some(placed.expires_at_us),
            created_at_us: placed.created_at_us,
            replayed: placed.replayed,
            ordered_by: name_from_wire(&placed.ordered_by)?,
        }),
        Kind::MismatchField(field) => HoldOutcome::Mismatch { field: field_name(&field) },
        Kind::DebitNotFound(_) => HoldOutcome::DebitNotFound,
        Kind::Released(released) => {
            let (key, hold) = hold_from_wire(released.hold.ok_or(BadMessage::Missing("released hold"))?)?;
            HoldOutcome::Released { key, hold: Box::new(hold), replayed: released.replayed }
        }
        Kind::Expired(_) => HoldOutcome::Expired,
        Kind::NotDue(_) => HoldOutcome::NotDue,
        Kind::NotFound(_) => HoldOutcome::NotFound,
        Kind::Refusal(refusal) => {
            let Refused { refusal, .. } = refused_from_wire(refusal, 0)?;
            HoldOutcome::Refused(Refused::whole(refusal))
        }
    })
}

/// 0 stands for none.
fn some(at_us: i64) -> Option<i64> {
    (at_us != 0).then_some(at_us)
}

//! Operations in the fewest words.

use anyhow::Context;
use ledger::{
    AccountId, AssetCode, Limit, Metadata, Refusal, Refused, TransferId,
    operation::{CreateAccount, Decide, Operation, Purpose, Settle, Transfer, UpdateAccount, Verdict},
};
use uuid::Uuid;

use crate::history::{ASSET, Order};

pub fn account(id: &str) -> anyhow::Result<AccountId> {
    AccountId::client(id).with_context(|| id.to_owned())
}

fn asset() -> anyhow::Result<AssetCode> {
    AssetCode::new(ASSET).context(ASSET)
}

/// Opens an account that may go below zero by as much as `overdraft` allows.
pub fn open(id: &str, overdraft: Limit) -> anyhow::Result<Operation> {
    Ok(Operation::CreateAccount(CreateAccount {
        ordered_by: None,
        id: account(id)?,
        asset: asset()?,
        overdraft,
        max_balance: Limit::Unlimited,
        metadata: Metadata::empty(),
    }))
}

/// Changes how far an account may go below zero.
pub fn limit(id: &str, overdraft: Limit) -> anyhow::Result<Operation> {
    Ok(Operation::UpdateAccount(UpdateAccount {
        ordered_by: None,
        id: account(id)?,
        status: None,
        overdraft: Some(overdraft),
        max_balance: None,
        metadata: None,
    }))
}

/// A local transfer, or the first step of a saga.
pub fn transfer(order: &Order, cross_shard: bool) -> anyhow::Result<Operation> {
    Ok(Operation::Transfer(Transfer {
        ordered_by: None,
        id: TransferId(order.id),
        debit: account(&order.debit)?,
        credit: account(&order.credit)?,
        asset: asset()?,
        amount: order.amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
        cross_shard,
        defer_insufficient: false,
        defer_limited: false,
    }))
}

/// The verdict on a saga, or with `cancel` the end of it.
pub fn decide(order: &Order, cancel: bool) -> anyhow::Result<Operation> {
    let (debit, credit) = (account(&order.debit)?, account(&order.credit)?);
    let id = TransferId(order.id);
    Ok(Operation::Decide(Decide {
        ordered_by: None,
        id,
        debit,
        credit,
        asset: asset()?,
        amount: order.amount,
        purpose: Purpose::Payment,
        presumed: cancel.then(|| Refused::whole(Refusal::Cancelled)),
        defer_limited: false,
        patient: false,
    }))
}

pub fn settle(order: &Order, verdict: Verdict) -> anyhow::Result<Operation> {
    let (debit, credit) = (account(&order.debit)?, account(&order.credit)?);
    let id = TransferId(order.id);
    Ok(Operation::Settle(Settle {
        id,
        debit,
        credit,
        asset: asset()?,
        amount: order.amount,
        purpose: Purpose::Payment,
        reserved: true,
        verdict,
    }))
}

/// An order under a new id.
pub fn order(debit: &str, credit: &str, amount: i64) -> Order {
    Order { id: Uuid::now_v7(), debit: debit.to_owned(), credit: credit.to_owned(), amount }
}

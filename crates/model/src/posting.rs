//! The rules of posting in the order of the contract. The debit side comes before the credit side.

use crate::{Account, Asset, Status};

/// The reason for a refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub side: Option<&'static str>,
}

impl Refusal {
    pub fn debit(code: &'static str) -> Self {
        Self { status: 422, code, side: Some("debit") }
    }

    pub fn credit(code: &'static str) -> Self {
        Self { status: 422, code, side: Some("credit") }
    }

    pub fn whole(status: u16, code: &'static str) -> Self {
        Self { status, code, side: None }
    }
}

/// Checks whether the account may pay at all.
pub fn debit_allowed(account: Option<&Account>, asset: Asset) -> Result<&Account, Refusal> {
    let account = account.ok_or(Refusal::debit("account_not_found"))?;
    if account.asset != asset {
        return Err(Refusal::debit("asset_mismatch"));
    }
    match account.status {
        Status::Closed => Err(Refusal::debit("account_closed")),
        Status::Frozen => Err(Refusal::debit("account_frozen")),
        Status::Open => Ok(account),
    }
}

/// Checks whether this amount is available.
pub fn debit_covered(account: &Account, amount: i64) -> Result<(), Refusal> {
    match account.available() {
        Some(available) if available < i128::from(amount) => Err(Refusal::debit("insufficient_funds")),
        _ => Ok(()),
    }
}

/// Checks whether the balance after the debit fits its number type.
pub fn debit_fits(account: &Account, amount: i64) -> Result<(), Refusal> {
    match account.posted.checked_sub(amount) {
        Some(_) => Ok(()),
        None => Err(Refusal::debit("balance_overflow")),
    }
}

/// Checks whether the account may receive this amount. A frozen account may.
pub fn credit_allowed(account: Option<&Account>, asset: Asset, amount: i64) -> Result<(), Refusal> {
    let account = account.ok_or(Refusal::credit("account_not_found"))?;
    if account.asset != asset {
        return Err(Refusal::credit("asset_mismatch"));
    }
    if account.status == Status::Closed {
        return Err(Refusal::credit("account_closed"));
    }
    let after = i128::from(account.posted) + i128::from(amount);
    if account.max_balance.is_some_and(|max| after > i128::from(max)) {
        return Err(Refusal::credit("limit_exceeded"));
    }
    if after > i128::from(i64::MAX) {
        return Err(Refusal::credit("balance_overflow"));
    }
    Ok(())
}

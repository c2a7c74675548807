//! The rules of posting, one function a rule. Everything here is pure and total.
//!
//! The order of the checks is part of the HTTP contract (`Codes and their precedence`): the debit side first, then the
//! credit side, and it is the same whether the two accounts share a shard (both checked in one commit) or not (debit side at
//! the reserve, credit side at the register).

use crate::{Account, AccountStatus, AssetCode, Limit, Refusal, Refused};

/// May `account` pay `amount` minor units of `asset`?
pub fn check_debit(account: Option<&Account>, asset: AssetCode, amount: i64) -> Result<(), Refused> {
    let account = check_payer(account, asset)?;
    check_available(account, amount)?;
    check_room_below(account, amount)
}

/// May `account` pay `amount` minor units of `asset` out of what a hold of it reserved? It is available by definition.
pub fn check_capture(account: Option<&Account>, asset: AssetCode, amount: i64) -> Result<(), Refused> {
    check_room_below(check_payer(account, asset)?, amount)
}

/// May `amount` minor units of `asset` be reserved on `account`?
pub fn check_hold(account: Option<&Account>, asset: AssetCode, amount: i64) -> Result<(), Refused> {
    let account = check_payer(account, asset)?;
    check_available(account, amount)?;
    check_room_below(account, amount)?;
    if account.held.checked_add(amount).is_none() {
        return Err(Refused::debit(Refusal::BalanceOverflow));
    }
    Ok(())
}

fn check_payer(account: Option<&Account>, asset: AssetCode) -> Result<&Account, Refused> {
    let refuse = |refusal| Err(Refused::debit(refusal));
    let Some(account) = account else {
        return refuse(Refusal::AccountNotFound);
    };
    if account.asset != asset {
        return refuse(Refusal::AssetMismatch);
    }
    match account.status {
        AccountStatus::Closed => refuse(Refusal::AccountClosed),
        AccountStatus::Frozen => refuse(Refusal::AccountFrozen),
        AccountStatus::Open => Ok(account),
    }
}

/// INV-10
fn check_available(account: &Account, amount: i64) -> Result<(), Refused> {
    if account.available().is_some_and(|available| available < i128::from(amount)) {
        return Err(Refused::debit(Refusal::InsufficientFunds));
    }
    Ok(())
}

/// Whether the ledger can hold what is left.
fn check_room_below(account: &Account, amount: i64) -> Result<(), Refused> {
    if account.posted.checked_sub(amount).is_none() {
        return Err(Refused::debit(Refusal::BalanceOverflow));
    }
    Ok(())
}

/// May `account` receive `amount` minor units of `asset`? A frozen account may.
pub fn check_credit(account: Option<&Account>, asset: AssetCode, amount: i64) -> Result<(), Refused> {
    let refuse = |refusal| Err(Refused::credit(refusal));
    let Some(account) = account else {
        return refuse(Refusal::AccountNotFound);
    };
    if account.asset != asset {
        return refuse(Refusal::AssetMismatch);
    }
    if account.status == AccountStatus::Closed {
        return refuse(Refusal::AccountClosed);
    }
    let after = i128::from(account.posted) + i128::from(amount);
    if matches!(account.max_balance, Limit::AtMost(max) if after > i128::from(max)) {
        return refuse(Refusal::LimitExceeded);
    }
    if after > i128::from(i64::MAX) {
        return refuse(Refusal::BalanceOverflow);
    }
    Ok(())
}

/// The status and limits a client asks for, checked against the account's money. `in_flight`: a transfer of the account
/// is under way to another shard, and its money may come back.
pub fn check_update(
    account: &Account,
    status: AccountStatus,
    overdraft: Limit,
    in_flight: bool,
) -> Result<(), Refused> {
    let closes = status == AccountStatus::Closed && account.status != AccountStatus::Closed;
    if closes && (account.posted != 0 || account.held != 0 || in_flight) {
        return Err(Refused::whole(Refusal::AccountNotEmpty));
    }
    let available = crate::account::available(account.posted, account.held, overdraft);
    if available.is_some_and(|available| available < 0) {
        return Err(Refused::whole(Refusal::InsufficientFunds));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AccountId, Metadata, Position};

    fn account(edit: impl FnOnce(&mut Account)) -> Account {
        let mut account = Account {
            id: AccountId::client("a").unwrap(),
            asset: usd(),
            status: AccountStatus::Open,
            posted: 100,
            held: 0,
            overdraft: Limit::ZERO,
            max_balance: Limit::Unlimited,
            version: 1,
            head: Position(1),
            opened: Position(1),
            metadata: Metadata::empty(),
            created_at_us: 0,
            updated_at_us: 0,
        };
        edit(&mut account);
        account
    }

    fn usd() -> AssetCode {
        AssetCode::new("USD").unwrap()
    }

    fn eur() -> AssetCode {
        AssetCode::new("EUR").unwrap()
    }

    type Edit = fn(&mut Account);

    #[test]
    fn debit_side_in_order_of_precedence() {
        let table: &[(&str, Edit, AssetCode, i64, Option<Refusal>)] = &[
            ("all of it", |_| {}, usd(), 100, None),
            ("a cent too much", |_| {}, usd(), 101, Some(Refusal::InsufficientFunds)),
            ("held money is not available", |a| a.held = 1, usd(), 100, Some(Refusal::InsufficientFunds)),
            ("the overdraft is", |a| a.overdraft = Limit::AtMost(1), usd(), 101, None),
            ("unlimited", |a| a.overdraft = Limit::Unlimited, usd(), i64::MAX, None),
            (
                "unlimited still fits the ledger",
                |a| {
                    a.overdraft = Limit::Unlimited;
                    a.posted = -2;
                },
                usd(),
                i64::MAX,
                Some(Refusal::BalanceOverflow),
            ),
            ("frozen before funds", |a| a.status = AccountStatus::Frozen, usd(), 101, Some(Refusal::AccountFrozen)),
            ("closed", |a| a.status = AccountStatus::Closed, usd(), 1, Some(Refusal::AccountClosed)),
            ("asset before status", |a| a.status = AccountStatus::Closed, eur(), 1, Some(Refusal::AssetMismatch)),
        ];
        for (name, edit, asset, amount, expected) in table {
            let got = check_debit(Some(&account(edit)), *asset, *amount);
            assert_eq!(got.err(), expected.map(Refused::debit), "{name}");
        }
        assert_eq!(check_debit(None, usd(), 1).err(), Some(Refused::debit(Refusal::AccountNotFound)));
    }

    #[test]
    fn credit_side_in_order_of_precedence() {
        let table: &[(&str, Edit, AssetCode, i64, Option<Refusal>)] = &[
            ("open", |_| {}, usd(), 1, None),
            ("frozen receives", |a| a.status = AccountStatus::Frozen, usd(), 1, None),
            ("closed does not", |a| a.status = AccountStatus::Closed, usd(), 1, Some(Refusal::AccountClosed)),
            ("asset before status", |a| a.status = AccountStatus::Closed, eur(), 1, Some(Refusal::AssetMismatch)),
            ("up to the limit", |a| a.max_balance = Limit::AtMost(101), usd(), 1, None),
            ("beyond it", |a| a.max_balance = Limit::AtMost(100), usd(), 1, Some(Refusal::LimitExceeded)),
            ("beyond the ledger", |a| a.posted = i64::MAX, usd(), 1, Some(Refusal::BalanceOverflow)),
        ];
        for (name, edit, asset, amount, expected) in table {
            let got = check_credit(Some(&account(edit)), *asset, *amount);
            assert_eq!(got.err(), expected.map(Refused::credit), "{name}");
        }
        assert_eq!(check_credit(None, usd(), 1).err(), Some(Refused::credit(Refusal::AccountNotFound)));
    }

    #[test]
    fn updates_respect_the_money_that_is_there() {
        let open = AccountStatus::Open;
        let closed = AccountStatus::Closed;
        assert!(check_update(&account(|_| {}), open, Limit::ZERO, true).is_ok());
        let refusal = |a: Account, status, overdraft| check_update(&a, status, overdraft, false).unwrap_err().refusal;
        assert_eq!(refusal(account(|_| {}), closed, Limit::ZERO), Refusal::AccountNotEmpty);
        assert_eq!(
            refusal(account(|a| (a.posted, a.held) = (0, 1)), closed, Limit::Unlimited),
            Refusal::AccountNotEmpty
        );
        assert_eq!(refusal(account(|a| a.posted = -5), open, Limit::AtMost(4)), Refusal::InsufficientFunds);
        let empty = account(|a| a.posted = 0);
        assert!(check_update(&empty, closed, Limit::ZERO, false).is_ok());
        assert_eq!(
            check_update(&empty, closed, Limit::ZERO, true),
            Err(Refused::whole(Refusal::AccountNotEmpty)),
            "its money may come back"
        );
    }

    #[test]
    fn captures_and_holds_are_debits_with_their_own_funds() {
        let spent = |a: &mut Account| (a.posted, a.held) = (100, 100);
        assert!(
            check_capture(Some(&account(spent)), usd(), 100).is_ok(),
            "nothing is available, and nothing needs to be"
        );
        let frozen = account(|a| a.status = AccountStatus::Frozen);
        assert_eq!(check_capture(Some(&frozen), usd(), 1), Err(Refused::debit(Refusal::AccountFrozen)));
        assert_eq!(check_hold(Some(&frozen), usd(), 1), Err(Refused::debit(Refusal::AccountFrozen)));
        assert_eq!(check_hold(Some(&account(spent)), usd(), 1), Err(Refused::debit(Refusal::InsufficientFunds)));
        let full = account(|a| (a.posted, a.held, a.overdraft) = (0, i64::MAX, Limit::Unlimited));
        assert_eq!(check_hold(Some(&full), usd(), 1), Err(Refused::debit(Refusal::BalanceOverflow)));
    }
}

//! Writes everything of a batch in as few round trips as possible. With many small batches, round trips are the main
//! cost.

use ledger::{
    Account,
    accounts::{Accounts, Change},
    batch::Effects,
};

use super::{
    StoreError,
    account::{self, BalanceUpdates},
    columns::insert,
    hold, journal, register, reversal,
    session::{Session, check_rows},
    transfer, waypoint,
};

/// New rows of every table and the new balances. A balance is written only over the version it was decided on, so the
/// statement's row count is a second guard behind the fence.
const WRITE: &str = concat!(
    "WITH new_transfers AS (",
    insert!(transfer, "$1"),
    "), new_registers AS (",
    insert!(register, "$2"),
    "), new_entries AS (",
    insert!(journal, "$3"),
    "), new_waypoints AS (",
    insert!(waypoint, "$4"),
    "), new_accounts AS (",
    insert!(account, "$5"),
    ") UPDATE shardledger.account AS a \
     SET posted = u.posted, held = u.held, version = u.version, head = u.head, updated_at_us = u.updated_at_us \
     FROM unnest($6::text[], $7::int8[], $8::int8[], $9::int8[], $10::int8[], $11::int8[], $12::int8[]) \
       AS u(id, loaded_version, posted, held, version, head, updated_at_us) \
     WHERE a.id = u.id AND a.version = u.loaded_version"
);

/// Writes effects and changed accounts in the open transaction.
pub async fn write(session: &mut Session, effects: &Effects, accounts: &Accounts) -> Result<(), StoreError> {
    let (opened, changed): (Vec<_>, Vec<_>) = accounts.changes().partition(|(_, change)| change.loaded_version == 0);
    let attributes: Vec<&Account> =
        changed.iter().filter(|(_, change)| change.attributes).map(|(account, _)| *account).collect();
    // Write attributes first: a balance is only valid with the new overdraft. The statement writes these accounts'
    // balances too.
    if !attributes.is_empty() {
        account::update_attributes(session, &attributes).await?;
    }
    if !effects.settlements.is_empty() {
        transfer::settle(session, &effects.settlements).await?;
    }
    write_holds_and_reversals(session, effects).await?;
    let only_settled = effects.transfers.is_empty() && effects.registers.is_empty() && effects.entries.is_empty();
    if !only_settled {
        write_rows(session, effects, &opened, &changed).await?;
    }
    Ok(())
}

/// Separate statements: most batches have neither kind of row, and pay for neither.
async fn write_holds_and_reversals(session: &mut Session, effects: &Effects) -> Result<(), StoreError> {
    if !effects.holds.is_empty() {
        hold::insert(session, &effects.holds).await?;
    }
    if !effects.changed_holds.is_empty() {
        hold::update(session, &effects.changed_holds).await?;
    }
    if !effects.reversals.is_empty() {
        reversal::insert(session, &effects.reversals).await?;
    }
    if !effects.reversed.is_empty() {
        reversal::update_originals(session, &effects.reversed).await?;
    }
    Ok(())
}

async fn write_rows(
    session: &mut Session,
    effects: &Effects,
    opened: &[(&Account, Change)],
    changed: &[(&Account, Change)],
) -> Result<(), StoreError> {
    let types = *session.row_types();
    let transfers = transfer::rows(types.transfer, &effects.transfers).finish();
    let registers = register::rows(types.register, &effects.registers).finish();
    let entries = journal::rows(types.journal, &effects.entries).finish();
    let waypoints = waypoint::rows(types.waypoint, &effects.entries).finish();
    let accounts = account::opened_rows(types.account, opened.iter().map(|(account, _)| *account)).finish();
    let updates = BalanceUpdates::of(changed);
    let touched = session
        .run(async |c| {
            let done = sqlx::query(WRITE)
                .bind(transfers)
                .bind(registers)
                .bind(entries)
                .bind(waypoints)
                .bind(accounts)
                .bind(updates.ids)
                .bind(updates.loaded_versions)
                .bind(updates.posted)
                .bind(updates.held)
                .bind(updates.versions)
                .bind(updates.heads)
                .bind(updates.updated_at_us)
                .execute(c)
                .await?;
            Ok(done.rows_affected())
        })
        .await?;
    check_rows("the update of account balances", changed.len() as u64, touched)
}

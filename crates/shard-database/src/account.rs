//! The columns of `shardledger.account`, and how a row becomes an [`Account`].

use ledger::{Account, AccountId, AccountStatus, AssetCode, Limit, Metadata, Position};
use sqlx::{Column, Row, postgres::PgRow};

/// The columns of a row named `a`, without its slot, which follows from its id. No statement selects `*`, so a column added to the table
/// changes no statement.
#[macro_export]
macro_rules! account_columns {
    () => {
        "a.id, a.asset, a.status, a.posted, a.held, a.overdraft, a.max_balance, a.version, a.head, a.opened, a.metadata, \
         a.created_at_us, a.updated_at_us"
    };
}

// Places in the list above.
const ID: usize = 0;
const ASSET: usize = 1;
const STATUS: usize = 2;
const POSTED: usize = 3;
const HELD: usize = 4;
const OVERDRAFT: usize = 5;
const MAX_BALANCE: usize = 6;
const VERSION: usize = 7;
const HEAD: usize = 8;
const OPENED: usize = 9;
const METADATA: usize = 10;
const CREATED_AT_US: usize = 11;
const UPDATED_AT_US: usize = 12;

/// The account of a row that begins with [`account_columns!`]. The columns are taken by their places.
///
/// # Errors
/// When the columns are others, or hold what no account holds.
pub fn account_from_row(row: &PgRow) -> Result<Account, sqlx::Error> {
    let name_is = |place: usize, name: &str| row.try_column(place).is_ok_and(|column| column.name() == name);
    if !name_is(ID, "id") || !name_is(HEAD, "head") || !name_is(UPDATED_AT_US, "updated_at_us") {
        return Err(sqlx::Error::Decode("the row does not begin with the columns of an account".into()));
    }
    let id: &str = row.try_get(ID)?;
    let corrupt = |what: String| sqlx::Error::Decode(format!("account {id}: {what}").into());
    let status: i16 = row.try_get(STATUS)?;
    Ok(Account {
        id: AccountId::any(id).map_err(|error| corrupt(error.to_string()))?,
        asset: AssetCode::new(row.try_get(ASSET)?).map_err(|error| corrupt(error.to_string()))?,
        status: u8::try_from(status)
            .ok()
            .and_then(AccountStatus::from_code)
            .ok_or_else(|| corrupt(format!("status {status}")))?,
        posted: row.try_get(POSTED)?,
        held: row.try_get(HELD)?,
        overdraft: Limit::from_nullable(row.try_get(OVERDRAFT)?),
        max_balance: Limit::from_nullable(row.try_get(MAX_BALANCE)?),
        version: row.try_get(VERSION)?,
        head: Position(row.try_get(HEAD)?),
        opened: Position(row.try_get(OPENED)?),
        metadata: Metadata::from_canonical(row.try_get(METADATA)?),
        created_at_us: row.try_get(CREATED_AT_US)?,
        updated_at_us: row.try_get(UPDATED_AT_US)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_of_columns_are_those_of_the_statements() {
        let places = [
            (ID, "id"),
            (ASSET, "asset"),
            (STATUS, "status"),
            (POSTED, "posted"),
            (HELD, "held"),
            (OVERDRAFT, "overdraft"),
            (MAX_BALANCE, "max_balance"),
            (VERSION, "version"),
            (HEAD, "head"),
            (OPENED, "opened"),
            (METADATA, "metadata"),
            (CREATED_AT_US, "created_at_us"),
            (UPDATED_AT_US, "updated_at_us"),
        ];
        let listed: Vec<&str> = account_columns!().split(", ").map(|name| name.trim_start_matches("a.")).collect();
        assert_eq!(listed.len(), places.len());
        for (place, name) in places {
            assert_eq!(listed[place], name);
        }
    }
}

//! A row read back into the ledger's types. What the ledger would not have written is corrupt, and says where.

use ledger::{AccountId, AssetCode, Limit, Refused, TransferId, outcome::DebitAfter};
use sqlx::postgres::PgRow;
use uuid::Uuid;
use wire::convert::refused_from_wire;

use super::{StoreError, session::column};

/// A row of a table whose rows have ids.
pub struct Record<'r> {
    row: &'r PgRow,
    what: &'static str,
    id: Uuid,
}

impl<'r> Record<'r> {
    /// `what` is for whoever has to look at a corrupt one.
    pub fn read(row: &'r PgRow, what: &'static str, id_column: &str) -> Result<Self, StoreError> {
        Ok(Self { row, what, id: column(row, id_column)? })
    }

    pub fn id(&self) -> TransferId {
        TransferId(self.id)
    }

    pub fn column<T>(&self, name: &str) -> Result<T, StoreError>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        column(self.row, name)
    }

    pub fn account(&self, name: &str) -> Result<AccountId, StoreError> {
        AccountId::any(self.column(name)?).map_err(|error| self.corrupt(error))
    }

    pub fn asset(&self) -> Result<AssetCode, StoreError> {
        AssetCode::new(self.column("asset")?).map_err(|error| self.corrupt(error))
    }

    /// A column of codes, 0 where there is none.
    pub fn code(&self, name: &str) -> Result<u32, StoreError> {
        let code: Option<i16> = self.column(name)?;
        Ok(code.and_then(|code| u32::try_from(code).ok()).unwrap_or(0))
    }

    /// The columns `refusal` and `side`, of a row that must have them.
    pub fn refused(&self) -> Result<Refused, StoreError> {
        refused_from_wire(self.code("refusal")?, self.code("side")?).map_err(|error| self.corrupt(error))
    }

    /// The debit account's entry joined to a transfer or hold, as columns `debit_…`.
    pub fn debit_after(&self) -> Result<Option<DebitAfter>, StoreError> {
        let Some(version) = self.column::<Option<i64>>("debit_version")? else { return Ok(None) };
        Ok(Some(DebitAfter {
            posted: self.column("debit_posted")?,
            held: self.column("debit_held")?,
            overdraft: Limit::from_nullable(self.column("debit_overdraft")?),
            version,
        }))
    }

    pub fn corrupt(&self, reason: impl ToString) -> StoreError {
        StoreError::Corrupt(format!("{} {}: {}", self.what, self.id, reason.to_string()))
    }
}

/// The columns `refusal` and `side`.
pub fn refused_columns(refused: Option<Refused>) -> (Option<i16>, Option<i16>) {
    let side = refused.and_then(|refused| refused.side);
    (refused.map(|refused| refused.refusal.code().into()), side.map(|side| side.code().into()))
}

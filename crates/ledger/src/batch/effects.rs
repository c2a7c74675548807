//! What a batch adds to the database.

use super::{StoredRegister, StoredTransfer};
use crate::{AccountId, AssetCode, Position, TransferKey, journal::Entry, outcome::TransferState};

/// What a batch adds to the database besides the changed accounts.
#[derive(Debug, Default)]
pub struct Effects {
    pub transfers: Vec<NewTransfer>,
    pub registers: Vec<NewRegister>,
    /// Pending transfers that became terminal.
    pub settlements: Vec<Settlement>,
    pub entries: Vec<Entry>,
    /// One past the last position used.
    pub next_position: Position,
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty()
            && self.registers.is_empty()
            && self.settlements.is_empty()
            && self.entries.is_empty()
    }

    /// INV-1: the entries of a batch sum to zero per asset.
    pub fn check_balanced(&self) -> Result<(), Unbalanced> {
        let mut sums: Vec<(AssetCode, i128)> = Vec::new();
        for entry in &self.entries {
            match sums.iter_mut().find(|(asset, _)| *asset == entry.asset) {
                Some((_, sum)) => *sum += i128::from(entry.amount),
                None => sums.push((entry.asset, i128::from(entry.amount))),
            }
        }
        match sums.into_iter().find(|(_, sum)| *sum != 0) {
            Some((asset, sum)) => Err(Unbalanced { asset, sum }),
            None => Ok(()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("INV-1: the entries of a batch sum to {sum} minor units of {asset} instead of 0")]
pub struct Unbalanced {
    pub asset: AssetCode,
    pub sum: i128,
}

#[derive(Debug)]
pub struct NewTransfer {
    pub key: TransferKey,
    pub stored: StoredTransfer,
    pub debit_position: Option<Position>,
}

#[derive(Debug)]
pub struct NewRegister {
    pub key: TransferKey,
    pub stored: StoredRegister,
}

#[derive(Debug)]
pub struct Settlement {
    pub key: TransferKey,
    /// What it was reserved with, for the database to compare.
    pub credit: AccountId,
    pub amount: i64,
    pub state: TransferState,
}

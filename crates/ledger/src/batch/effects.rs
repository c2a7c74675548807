//! What a batch adds to the database.

use super::{StoredRegister, StoredTransfer};
use crate::{
    AccountId, AssetCode, Hold, HoldKey, Position, TransferId, TransferKey, journal::Entry, outcome::TransferState,
};

/// What a batch adds to the database besides the changed accounts.
#[derive(Debug, Default)]
pub struct Effects {
    pub transfers: Vec<NewTransfer>,
    pub registers: Vec<NewRegister>,
    /// Pending transfers that became terminal.
    pub settlements: Vec<Settlement>,
    pub holds: Vec<NewHold>,
    /// Holds that were there, as they are now.
    pub changed_holds: Vec<(HoldKey, Hold)>,
    pub reversals: Vec<NewReversal>,
    /// Originals of which more is reversed now.
    pub reversed: Vec<Reversed>,
    pub entries: Vec<Entry>,
    /// One past the last position used.
    pub next_position: Position,
}

impl Effects {
    pub fn is_empty(&self) -> bool {
        self.transfers.is_empty()
            && self.registers.is_empty()
            && self.settlements.is_empty()
            && self.holds.is_empty()
            && self.changed_holds.is_empty()
            && self.reversals.is_empty()
            && self.reversed.is_empty()
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
    /// Until then a router sees to it, and to what must come before it; 0: it would not matter.
    pub coordinated_until_us: i64,
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
    pub reserved: bool,
    pub state: TransferState,
    /// The debit account's entry that the answer's balances come from, where the settlement left a later one.
    pub debit_position: Option<Position>,
}

#[derive(Debug)]
pub struct NewHold {
    pub key: HoldKey,
    pub stored: Hold,
    /// The debit account's entry; `None` when refused.
    pub debit_position: Option<Position>,
}

/// A link from an original to one of its reversals, at the original's shard.
#[derive(Debug)]
pub struct NewReversal {
    pub original: TransferKey,
    pub reversal: TransferId,
    pub amount: i64,
    pub at_us: i64,
}

/// How much of a transfer is reversed, in minor units.
#[derive(Debug)]
pub struct Reversed {
    pub original: TransferKey,
    /// What the batch was decided on: the row must still have it.
    pub before: i64,
    pub after: i64,
}

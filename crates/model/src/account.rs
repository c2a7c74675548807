//! One account with its journal, and assets with the texts of their amounts.

use crate::{Metadata, NewAccount};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    Open,
    /// The account may receive money and must not pay.
    Frozen,
    /// The account must neither pay nor receive money.
    Closed,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Frozen => "frozen",
            Self::Closed => "closed",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    pub id: String,
    pub asset: Asset,
    pub status: Status,
    pub posted: i64,
    pub held: i64,
    /// `None` means that the account may go below zero without limit.
    pub overdraft: Option<i64>,
    /// `None` means that the balance may rise without limit.
    pub max_balance: Option<i64>,
    pub metadata: Metadata,
    /// The request that opened the account.
    pub opening: NewAccount,
    /// The account's version is the number of its entries.
    pub journal: Vec<Entry>,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the request that wrote the entry. The entries of one batch may come in any order.
    pub request: usize,
    pub kind: &'static str,
    pub transfer: Option<String>,
    pub hold: Option<String>,
    pub counterparty: Option<String>,
    /// The change of the posted balance.
    pub amount: i64,
    /// The value after this entry.
    pub posted: i64,
    /// The value after this entry.
    pub held: i64,
}

impl Account {
    pub fn version(&self) -> usize {
        self.journal.len()
    }

    /// The first field in which the account differs from what `new` would open.
    pub fn differs_from(&self, new: &NewAccount) -> Option<&'static str> {
        match () {
            () if self.asset != new.asset => Some("asset"),
            () if self.overdraft != new.overdraft => Some("overdraft"),
            () if self.max_balance != new.max_balance => Some("max_balance"),
            () if self.metadata != new.metadata => Some("metadata"),
            () => None,
        }
    }

    /// The amount that a debit may take. `None` means that there is no limit.
    pub fn available(&self) -> Option<i128> {
        let overdraft = self.overdraft?;
        Some(i128::from(self.posted) - i128::from(self.held) + i128::from(overdraft))
    }
}

/// A currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    pub code: &'static str,
    /// The number of decimal places.
    pub scale: u32,
}

impl Asset {
    pub const USD: Self = Self { code: "USD", scale: 2 };
    pub const EUR: Self = Self { code: "EUR", scale: 2 };
    pub const JPY: Self = Self { code: "JPY", scale: 0 };

    /// Writes minor units as a decimal number with all decimal places of the asset.
    pub fn write(self, minor: i128) -> String {
        let sign = if minor < 0 { "-" } else { "" };
        let (unit, digits) = (10_u128.pow(self.scale), minor.unsigned_abs());
        match usize::try_from(self.scale) {
            Ok(0) | Err(_) => format!("{sign}{digits}"),
            Ok(scale) => format!("{sign}{}.{:0scale$}", digits / unit, digits % unit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_carry_the_full_scale() {
        for (asset, minor, text) in [
            (Asset::USD, 1234, "12.34"),
            (Asset::USD, -5, "-0.05"),
            (Asset::USD, 0, "0.00"),
            (Asset::JPY, -7, "-7"),
            (Asset::USD, i128::from(i64::MIN), "-92233720368547758.08"),
        ] {
            assert_eq!(asset.write(minor), text);
        }
    }
}

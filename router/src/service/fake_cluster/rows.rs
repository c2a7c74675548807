//! What a fake node keeps of holds and reversals, and how a batch gets to know it.

use std::collections::HashMap;

use ledger::{
    AccountId, Hold, HoldKey, TransferId, TransferKey,
    batch::{Effects, Named, Original, StoredTransfer},
    operation::Operation,
    outcome::TransferState,
};

/// Rows beside accounts, transfers and registers.
#[derive(Default)]
pub struct Rows {
    pub holds: HashMap<HoldKey, Hold>,
    /// By original: how much, in minor units, and by which.
    pub reversals: HashMap<TransferKey, (i64, Vec<TransferId>)>,
}

impl Rows {
    /// What the operations name.
    pub fn named<'o>(
        &self,
        transfers: &HashMap<TransferKey, StoredTransfer>,
        operations: impl Iterator<Item = &'o Operation>,
    ) -> Named {
        let mut named = Named::default();
        for operation in operations {
            if let Some(key) = operation.hold()
                && let Some(hold) = self.holds.get(&key)
            {
                named.holds.insert(key, hold.clone());
            }
            if let Some(key) = operation.original()
                && let Some(stored) = transfers.get(&key)
            {
                let original = Original {
                    credit: stored.credit.clone(),
                    asset: stored.asset,
                    amount: stored.amount,
                    state: stored.state,
                    reversed: self.reversed(&key),
                };
                named.originals.insert(key, original);
            }
            if let Some(account) = operation.closes() {
                let own = |(key, stored): (&TransferKey, &StoredTransfer)| {
                    key.debit == *account && stored.state == TransferState::Pending
                };
                if transfers.iter().any(own) {
                    named.in_flight.insert(account.clone());
                }
            }
        }
        named
    }

    pub fn take(&mut self, effects: &mut Effects) {
        self.holds.extend(effects.holds.drain(..).map(|new| (new.key, new.stored)));
        self.holds.extend(effects.changed_holds.drain(..));
        for new in effects.reversals.drain(..) {
            self.reversals.entry(new.original).or_default().1.push(new.reversal);
        }
        for reversed in effects.reversed.drain(..) {
            let known = self.reversals.entry(reversed.original).or_default();
            assert_eq!(known.0, reversed.before);
            known.0 = reversed.after;
        }
    }

    /// A copy of the rows that live with these debit accounts.
    pub fn of_debit_accounts(&self, wanted: impl Fn(&AccountId) -> bool) -> Self {
        let holds = self.holds.iter().filter(|(key, _)| wanted(&key.debit));
        let reversals = self.reversals.iter().filter(|(key, _)| wanted(&key.debit));
        Self {
            holds: holds.map(|(key, hold)| (key.clone(), hold.clone())).collect(),
            reversals: reversals.map(|(key, reversed)| (key.clone(), reversed.clone())).collect(),
        }
    }

    pub fn extend(&mut self, other: Self) {
        self.holds.extend(other.holds);
        self.reversals.extend(other.reversals);
    }

    pub fn reversed(&self, original: &TransferKey) -> i64 {
        self.reversals.get(original).map_or(0, |(amount, _)| *amount)
    }
}

//! How much of a transfer is reversed: it must not be more than was paid (INV-11). The sum over the reversals says it.

use super::Batch;
use crate::{AccountId, Refusal, Refused, TransferId, TransferKey, history::Original};

impl Batch<'_> {
    /// May so much of a transfer be reversed? `payer` and `payee` are the original's.
    pub(super) fn check_reversal(
        &self,
        original: TransferId,
        payer: &AccountId,
        payee: &AccountId,
        amount: i64,
    ) -> Result<(), Refused> {
        let key = TransferKey { id: original, debit: payer.clone() };
        let reversible = match self.originals.get(&key) {
            Some(original) if original.credit == *payee => Original::reversible(original),
            _ => 0,
        };
        if (1..=reversible).contains(&amount) { Ok(()) } else { Err(Refused::whole(Refusal::AlreadyReversed)) }
    }

    /// Counts a reversal that was booked. `payer` is the original's.
    pub(super) fn note_reversal(&mut self, original: TransferId, payer: &AccountId, amount: i64) {
        let key = TransferKey { id: original, debit: payer.clone() };
        if let Some(known) = self.originals.get_mut(&key) {
            known.reversed += amount;
        }
    }
}

//! How much of a transfer is reversed: it must not be more than was paid (INV-11), and is kept with the original.

use super::{Batch, NewReversal, Original, Reversed};
use crate::{AccountId, Refusal, Refused, TransferId, TransferKey};

/// An original, and how much of it was reversed before this batch.
#[derive(Debug, Clone)]
pub(super) struct KnownOriginal {
    original: Original,
    reversed_before: i64,
}

impl KnownOriginal {
    pub fn loaded(original: Original) -> Self {
        Self { reversed_before: original.reversed, original }
    }
}

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
            Some(KnownOriginal { original, .. }) if original.credit == *payee => original.reversible(),
            _ => 0,
        };
        if (1..=reversible).contains(&amount) { Ok(()) } else { Err(Refused::whole(Refusal::AlreadyReversed)) }
    }

    pub(super) fn note_reversal(
        &mut self,
        original: TransferId,
        payer: &AccountId,
        reversal: TransferId,
        amount: i64,
    ) {
        let key = TransferKey { id: original, debit: payer.clone() };
        if let Some(known) = self.originals.get_mut(&key) {
            known.original.reversed += amount;
            self.effects.reversals.push(NewReversal { original: key, reversal, amount, at_us: self.now_us });
        }
    }

    /// Writes down of which originals more is reversed now.
    pub(super) fn note_originals(&mut self) {
        for (key, known) in &self.originals {
            let (before, after) = (known.reversed_before, known.original.reversed);
            if before != after {
                self.effects.reversed.push(Reversed { original: key.clone(), before, after });
            }
        }
    }
}

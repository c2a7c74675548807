//! Erasing the metadata of transfers and holds. An account's metadata is erased by `UpdateAccount`.

use super::{Aside, Batch, Draft, Prior, holds::outcome_of};
use crate::{
    AccountId, AssetCode, HoldKey, Metadata,
    booking::{BookingKind, Extra},
    operation::{EraseMetadata, Erased},
    outcome::{MetadataErased, Outcome},
};

impl Batch<'_> {
    pub(super) fn erase_metadata(&mut self, erase: &EraseMetadata) -> Outcome {
        if let Err(not_owner) = (self.fence)(&erase.at) {
            return Outcome::NotOwner(not_owner);
        }
        // Without loaded results the transfer is unknown: decide the batch again.
        if erase.of == Erased::Transfer && !matches!(self.prior, Prior::Loaded(_)) {
            self.unsure = true;
        }
        let Some((asset, metadata)) = self.metadata_of(erase) else {
            return Outcome::MetadataErased(MetadataErased::NotFound);
        };
        if !metadata.has_text() {
            return Outcome::MetadataErased(MetadataErased::Nothing);
        }
        let also = erase.credit.as_ref().filter(|credit| **credit != erase.at && (self.fence)(credit).is_ok());
        for owner in [&erase.at].into_iter().chain(also) {
            if let Err(aside) = self.book_erasure(erase, owner, asset) {
                return outcome_of(aside);
            }
        }
        self.note_erasure(erase);
        Outcome::MetadataErased(MetadataErased::Now)
    }

    /// `owner`: the account whose slot the booking belongs to.
    fn book_erasure(&mut self, erase: &EraseMetadata, owner: &AccountId, asset: AssetCode) -> Result<usize, Aside> {
        let kind = match erase.of {
            Erased::Transfer => BookingKind::TransferErased,
            Erased::Hold => BookingKind::HoldErased,
        };
        self.book(Draft {
            kind,
            id: None,
            payer: owner,
            payee: Some(&erase.debit),
            asset,
            amount: 0,
            ordered_by: erase.ordered_by.clone(),
            extra: Some(Box::new(Extra { erases: Some(erase.id), ..Extra::default() })),
        })
    }

    /// The asset and the metadata of the transfer or hold.
    fn metadata_of(&self, erase: &EraseMetadata) -> Option<(AssetCode, Metadata)> {
        match erase.of {
            Erased::Transfer => {
                let transfer = self.prior.stored()?.transfers.get(&erase.key())?;
                Some((transfer.asset, transfer.metadata.clone()))
            }
            Erased::Hold => {
                let hold = self.hold(&HoldKey { id: erase.id, debit: erase.debit.clone() })?;
                Some((hold.asset, hold.metadata.clone()))
            }
        }
    }

    /// Later operations of the batch find the metadata erased.
    fn note_erasure(&mut self, erase: &EraseMetadata) {
        let key = erase.key();
        match erase.of {
            Erased::Transfer => {
                let stored = self.prior.stored_mut().and_then(|stored| stored.transfers.get_mut(&key));
                for transfer in stored.into_iter().chain(self.sagas.get_mut(&key)) {
                    transfer.metadata = Metadata::erased();
                }
            }
            Erased::Hold => self.erase_hold_metadata(&HoldKey { id: key.id, debit: key.debit }),
        }
    }
}

//! Erasing the metadata of transfers and holds (ADR 21). An account's metadata is erased by `UpdateAccount`.

use ledger::{
    AccountId, KeyName, TransferKey,
    operation::{EraseMetadata, Erased, Operation},
    outcome::{MetadataErased, Outcome},
};

use super::{
    Core,
    call::{CallError, Deadline},
    rerouting::execute_at_owner,
};

impl Core {
    /// Erases the metadata of a transfer or hold at the shard of its debit account, and, with `credit`, at the shard of its credit account, which
    /// may have a copy of the booking since slots moved.
    ///
    /// # Errors
    /// [`CallError::OutcomeUnknown`] also if one shard has erased it and the other has not. The request can be sent again.
    pub async fn erase_metadata(
        &self,
        of: Erased,
        key: &TransferKey,
        credit: Option<&AccountId>,
        ordered_by: Option<KeyName>,
        deadline: Deadline,
    ) -> Result<MetadataErased, CallError> {
        let erase = async |at: &AccountId| {
            let operation = EraseMetadata {
                of,
                id: key.id,
                debit: key.debit.clone(),
                at: at.clone(),
                credit: credit.cloned(),
                ordered_by: ordered_by.clone(),
            };
            let answer =
                execute_at_owner(self, at, deadline, |_| Operation::EraseMetadata(operation.clone())).await?;
            match answer.outcome {
                Outcome::MetadataErased(erased) => Ok((erased, answer.shard)),
                _ => answer.nonsense(),
            }
        };
        let (erased, shard) = erase(&key.debit).await?;
        if let Some(credit) = credit {
            match erase(credit).await {
                Err(error) if error.is_not_executed() && erased == MetadataErased::Now => {
                    return Err(CallError::OutcomeUnknown { shard });
                }
                copy => drop(copy?),
            }
        }
        Ok(erased)
    }
}

//! Both sides of a move are summed up at one position and compared.

use super::Driver;
use crate::{
    moves::{MoveError, scope::Part},
    store::moves::{Compared, MoveConnection, MoveStore},
};

impl<S: MoveStore> Driver<S> {
    /// Compares every slot with the source at one position. Returns the position.
    pub(super) async fn verify(&mut self) -> Result<i64, MoveError> {
        let theirs = self.sum_up(None).await?;
        self.follow_to(theirs.position).await?;
        let mut connection = self.moves.connection().await?;
        let (from, mut digest) = self.digest.unwrap_or_default();
        let to = if from == 0 { i64::MAX } else { theirs.position };
        let own = Part::own(self.moves.number()?);
        let Compared { slots: ours, bookings, holds } =
            connection.compare_sums(&self.row.slots, own, (from, to)).await?;
        digest.add(&bookings);
        connection.insert_scales(&theirs.scales).await?;
        self.scales.clone_from(&theirs.scales);
        drop(connection);
        if ours != theirs.slots {
            return Err(self.name_the_difference(&ours, &theirs.slots).await?);
        }
        if theirs.bookings.as_ref() != Some(&(&digest).into()) {
            let what =
                format!("the bookings of the slots differ: here {digest:?}, at the source {:?}", theirs.bookings);
            return Err(MoveError::Differs(what));
        }
        if theirs.holds.as_ref() != Some(&holds) {
            let what =
                format!("the open holds of the slots differ: here {holds:?}, at the source {:?}", theirs.holds);
            return Err(MoveError::Differs(what));
        }
        self.digest = Some((theirs.position, digest));
        Ok(theirs.position)
    }

    async fn sum_up(&mut self, slot: Option<u32>) -> Result<wire::SumUpMoveResponse, MoveError> {
        let request = wire::SumUpMoveRequest { r#move: self.id(), driver_epoch: self.row.driver_epoch, slot };
        let answer = self.source().await?.sum_up(request).await;
        self.answered(answer)
    }

    /// Finds the first account that differs, in the first slot that does.
    async fn name_the_difference(
        &mut self,
        ours: &[wire::SlotSum],
        theirs: &[wire::SlotSum],
    ) -> Result<MoveError, MoveError> {
        let differs = |sum: &&wire::SlotSum, others: &[wire::SlotSum]| !others.contains(sum);
        let first =
            theirs.iter().find(|sum| differs(sum, ours)).or_else(|| ours.iter().find(|sum| differs(sum, theirs)));
        let Some(first) = first else {
            return Ok(MoveError::Differs("the sums of the slots differ only in their order".to_owned()));
        };
        let (slot, asset) = (first.slot, first.asset.clone());
        let theirs = self.sum_up(Some(slot)).await?;
        self.follow_to(theirs.position).await?;
        let number = self.moves.number()?;
        let mut connection = self.moves.connection().await?;
        let ours = connection.sum_up(&self.row.slots, number, None, Some(slot)).await?.accounts;
        let of =
            |accounts: &[wire::AccountState], id: &str| accounts.iter().find(|account| account.id == id).cloned();
        let ids = theirs.accounts.iter().chain(&ours).map(|account| account.id.as_str());
        let different = ids.into_iter().find(|id| of(&theirs.accounts, id) != of(&ours, id));
        let Some(id) = different else {
            let what = format!("slot {slot}, asset {asset}: the sums differ, and no account does");
            return Ok(MoveError::Differs(what));
        };
        let shown = |account: Option<wire::AccountState>| match account {
            Some(wire::AccountState { version, posted, held, head, .. }) => {
                format!("version {version}, posted {posted}, held {held}, head {head}")
            }
            None => "no such account".to_owned(),
        };
        Ok(MoveError::Differs(format!(
            "account {id} differs. Here: {}. At shard {}: {}",
            shown(of(&ours, id)),
            self.row.peer,
            shown(of(&theirs.accounts, id))
        )))
    }
}

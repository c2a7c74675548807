//! The end of a move at the source: it is given up, or what has moved away is deleted.

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    MoveError, Moves,
    phase::Phase,
    progress::{self, SourceProgress},
    source::driven_by,
    throttle::PageSize,
};
use crate::{
    durable::{DurableStep, durable},
    store::{
        moves::{Advance, CleanUp, MoveConnection, MoveRow, MoveStore},
        ownership::SlotState,
    },
};

impl<S: MoveStore> Moves<S> {
    /// Ends the source's part of a move.
    ///
    /// # Errors
    /// [`MoveError::Refused`] if the slots are given away and the move is to be given up.
    pub async fn leave(
        &self,
        id: Uuid,
        driver_epoch: i64,
        how: wire::leave_move_request::How,
    ) -> Result<wire::LeaveMoveResponse, MoveError> {
        use wire::leave_move_request::How;
        let mut connection = self.connection().await?;
        let row = driven_by(connection.get(id).await?, id, driver_epoch)?;
        let kept: SourceProgress = progress::read(&row.progress)?;
        let done = wire::LeaveMoveResponse {
            done: true,
            bookings_deleted: i64::try_from(kept.bookings_deleted).unwrap_or(i64::MAX),
        };
        match (how, row.phase) {
            (How::Abort, Phase::Left) | (How::Finish, Phase::CleanedUp) => Ok(done),
            (How::Abort, Phase::Joined) => {
                let left = Advance { row: &row, to: Phase::Left, progress: &row.progress };
                durable(DurableStep::Leave, connection.advance(left)).await?;
                self.verified().remove(&id);
                Ok(done)
            }
            (How::Finish, Phase::Released) => self.clean_up_source(&mut connection, row, kept).await,
            (_, phase) => Err(MoveError::Refused(format!(
                "move {id} is {} at shard {}",
                phase.as_str(),
                self.0.gate.expected().shard
            ))),
        }
    }

    /// Deletes a part of what moved away. Called again until everything is gone.
    async fn clean_up_source(
        &self,
        connection: &mut S::Connection,
        mut row: MoveRow,
        mut kept: SourceProgress,
    ) -> Result<wire::LeaveMoveResponse, MoveError> {
        const AT_ONCE: Duration = Duration::from_secs(1);
        let begun = Instant::now();
        let folded = connection.folded_position().await?;
        // The fold must not find rows missing that it has yet to write.
        let mut answer = wire::LeaveMoveResponse::default();
        if folded <= kept.last_position {
            self.0.lane.want_fold();
            return Ok(answer);
        }
        let epoch = kept.slot_epoch;
        if kept.cleaned_to == 0 {
            let clean_up = CleanUp { row: &row, state: SlotState::Released, epoch };
            durable(DurableStep::CleanUpRows, connection.delete_projections(clean_up)).await?;
        }
        let mut page = PageSize::default();
        loop {
            let page_begun = Instant::now();
            let to = connection.page_end(kept.cleaned_to, page.size().into()).await?;
            let range = (kept.cleaned_to, to.unwrap_or(i64::MAX));
            let phase = if to.is_none() { Phase::CleanedUp } else { row.phase };
            kept.cleaned_to = range.1;
            let clean_up = CleanUp { row: &row, state: SlotState::Released, epoch };
            let written = connection.delete_bookings(clean_up, range, |deleted| {
                kept.bookings_deleted += deleted;
                (phase, progress::write(&kept))
            });
            (row.phase, row.progress) = durable(DurableStep::CleanUpBookings, written).await?;
            answer.bookings_deleted = i64::try_from(kept.bookings_deleted).unwrap_or(i64::MAX);
            answer.done = phase == Phase::CleanedUp;
            if answer.done || begun.elapsed() > AT_ONCE {
                return Ok(answer);
            }
            // Clients have half of the time.
            let took = page_begun.elapsed();
            page.took(took);
            tokio::time::sleep(took).await;
        }
    }
}

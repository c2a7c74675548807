//! The end of a move that is given up before the slots are released.

use tokio::time::Instant;

use super::{Driver, Step};
use crate::{
    durable::{DurableStep, durable},
    moves::{
        MoveError,
        phase::Phase,
        progress::{self, Progress},
        throttle::PageSize,
    },
    store::{
        moves::{CleanUp, MoveConnection, MoveStore, Undo},
        ownership::SlotState,
    },
};

impl<S: MoveStore> Driver<S> {
    /// Gives the move up before the slots are released.
    pub(super) async fn give_up(&mut self) -> Result<Step, MoveError> {
        let request = wire::LeaveMoveRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            how: wire::leave_move_request::How::Abort.into(),
        };
        let answer = self.source().await?.leave(request).await;
        self.answered(answer)?;
        self.progress.cleaned_to = 0;
        durable(DurableStep::Abort, self.advance(Phase::Aborting)).await?;
        Ok(Step::Again)
    }

    /// Deletes what was copied. What was copied for a reversal stays: the move that it reverses keeps it.
    pub(super) async fn clean_up_here(&mut self) -> Result<Step, MoveError> {
        let undo = match self.progress.reverses {
            Some(_) if self.progress.slot_epoch == 0 => Undo::Nothing,
            Some(reverses) => Undo::GiveBack { reverses, reached: self.progress.after },
            None => Undo::Forget,
        };
        let mut connection = self.moves.connection().await?;
        if self.progress.reverses.is_none() && self.progress.slot_epoch > 0 {
            self.delete_copy(&mut connection).await?;
        }
        let progress = Progress { finished_at_us: self.moves.now_us(), ..self.progress.clone() };
        let text = progress::write(&progress);
        connection.end_abort(self.change(Phase::Aborted, &text), undo).await?;
        self.written(Phase::Aborted, progress, text);
        self.moves.0.lane.look_again();
        tracing::info!(move_id = %self.row.id, "a move was given up");
        Ok(Step::Done)
    }

    async fn delete_copy(&mut self, connection: &mut S::Connection) -> Result<(), MoveError> {
        let epoch = self.progress.slot_epoch;
        let clean_up = CleanUp { row: &self.row, state: SlotState::Incoming, epoch };
        durable(DurableStep::DiscardRows, connection.delete_projections(clean_up)).await?;
        connection.delete_lone_rows(clean_up).await?;
        let mut page = PageSize::default();
        loop {
            let begun = Instant::now();
            let after = self.progress.cleaned_to;
            let to = connection.page_end(after, page.size().into()).await?;
            let range = (after, to.unwrap_or(i64::MAX));
            let clean_up = CleanUp { row: &self.row, state: SlotState::Incoming, epoch };
            let mut progress = Progress { cleaned_to: range.1, ..self.progress.clone() };
            let deletion = connection.delete_bookings(clean_up, range, |deleted| {
                progress.bookings_deleted += deleted;
                (Phase::Aborting, progress::write(&progress))
            });
            let (phase, text) = durable(DurableStep::DiscardBookings, deletion).await?;
            self.written(phase, progress, text);
            page.took(begun.elapsed());
            if to.is_none() {
                return Ok(());
            }
        }
    }
}

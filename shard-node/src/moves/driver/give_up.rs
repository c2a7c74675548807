//! The end of a move that is given up before the slots are released.

use std::time::Instant;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::{Driver, Step};
use crate::{
    durable::{DurableStep, durable},
    moves::{
        MoveError,
        phase::Phase,
        progress::{self, Progress},
        source::{INCOMING, SourceProgress},
        throttle::PageSize,
    },
    store::{
        StoreError,
        moves::{self as tables, CleanUp},
        ownership::as_multirange,
    },
};

impl Driver {
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
        const FORGET: &str =
            "DELETE FROM shardledger.slot_ownership WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 3";
        const GIVE_BACK: &str = "UPDATE shardledger.slot_ownership SET state = 2, epoch = epoch - 1, peer = $2 \
             WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 3";
        let mut connection = self.moves.connection().await?;
        if self.progress.reverses.is_none() && self.progress.slot_epoch > 0 {
            self.delete_copy(&mut connection).await?;
        }
        let slots = as_multirange(&self.row.slots);
        let progress = Progress { finished_at_us: self.moves.now_us(), ..self.progress.clone() };
        let mut transaction = connection.begin().await?;
        tables::lock_out_lane(&mut transaction).await?;
        match self.progress.reverses {
            Some(_) if self.progress.slot_epoch == 0 => {}
            Some(reverses) => {
                sqlx::query(GIVE_BACK).bind(slots).bind(&self.row.peer).execute(&mut *transaction).await?;
                self.keep_for_another_reversal(&mut transaction, reverses).await?;
            }
            None => {
                sqlx::query(FORGET).bind(slots).execute(&mut *transaction).await?;
            }
        }
        tables::count_ownership_change(&mut transaction).await?;
        let text = self.advance_in(&mut transaction, Phase::Aborted, &progress).await?;
        durable(DurableStep::EndAbort, transaction.commit()).await?;
        self.written(Phase::Aborted, progress, text);
        self.moves.0.lane.look_again();
        tracing::info!(move_id = %self.row.id, "a move was given up");
        Ok(Step::Done)
    }

    async fn delete_copy(&mut self, connection: &mut PgConnection) -> Result<(), MoveError> {
        let epoch = self.progress.slot_epoch;
        let clean_up = CleanUp { row: &self.row, state: INCOMING, epoch };
        durable(DurableStep::DiscardRows, clean_up.delete_projections(connection)).await?;
        clean_up.delete_lone_waypoints(connection).await?;
        let mut page = PageSize::default();
        loop {
            let begun = Instant::now();
            let after = self.progress.cleaned_to;
            let to = tables::page_end(connection, after, i64::MAX, page.size().into()).await?;
            let range = (after, to.unwrap_or(i64::MAX));
            let clean_up = CleanUp { row: &self.row, state: INCOMING, epoch };
            let mut progress = Progress { cleaned_to: range.1, ..self.progress.clone() };
            let deletion = clean_up.delete_bookings(connection, range, |deleted| {
                progress.bookings_deleted += deleted;
                (Phase::Aborting, progress::write(&progress))
            });
            let written = durable(DurableStep::DiscardBookings, deletion).await;
            let (phase, text) = written.map_err(StoreError::into_move_error)?;
            self.written(phase, progress, text);
            page.took(begun.elapsed());
            if to.is_none() {
                return Ok(());
            }
        }
    }

    /// Records how far the rows reach, for the next reversal.
    async fn keep_for_another_reversal(
        &self,
        connection: &mut PgConnection,
        reverses: Uuid,
    ) -> Result<(), MoveError> {
        let row = tables::get(connection, reverses).await?.ok_or(MoveError::Superseded)?;
        let mut kept: SourceProgress = progress::read(&row.progress)?;
        kept.reversed_to = kept.reversed_to.max(self.progress.after);
        tables::advance(connection, &row, row.phase, &progress::write(&kept))
            .await
            .map_err(StoreError::into_move_error)
    }
}

//! What an operator orders at the target: to start a move, and to change what is wanted of it.

use shard_map::SlotRange;
use uuid::Uuid;

use super::Driver;
use crate::{
    moves::{
        MoveError, Moves,
        phase::{Phase, Role},
        progress::{self, Progress, SourceProgress, Wishes},
        scope::overlap,
    },
    store::moves::{Begin, MoveConnection, MoveRow, MoveStore, Standing},
};

impl<S: MoveStore> Moves<S> {
    /// Begins a move to this shard.
    ///
    /// # Errors
    /// [`MoveError::Refused`] says what is against the move. If the source refuses, or its answer is lost, the row stays and a driver
    /// gives the move up.
    pub async fn start(
        &self,
        id: Uuid,
        source: &str,
        slots: Vec<SlotRange>,
        reverses: Option<Uuid>,
        wishes: Wishes,
    ) -> Result<(), MoveError> {
        let own = self.0.gate.expected().shard.clone();
        let refused = |why: String| Err(MoveError::Refused(why));
        if source == own {
            return refused(format!("shard {own} cannot receive slots from itself"));
        }
        if slots.is_empty() {
            return refused("the move has no slots".to_owned());
        }
        let map = self.map().await?;
        if let Some(missing) = [source, own.as_str()].into_iter().find(|id| map.index_of(id).is_none()) {
            return refused(format!("shard {missing} is not in the map of shard {own}"));
        }
        let mut connection = self.connection().await?;
        let now_us = self.now_us();
        let row = MoveRow {
            id,
            peer: source.to_owned(),
            slots,
            phase: Phase::Copying,
            driver_epoch: 1,
            progress: progress::write(&Progress { reverses, ..Progress::default() }),
            wishes: progress::write(&wishes),
            started_at_us: now_us,
            updated_at_us: now_us,
        };
        let mut is_known = false;
        let judge = |standing: &Standing| {
            if standing.row(id).is_some() {
                is_known = true;
                return Ok(Begin::Nothing);
            }
            self.judge(standing, &row, reverses)?;
            Ok(Begin::Insert(row.clone()))
        };
        connection.start(&row.slots, judge).await?;
        drop(connection);
        if is_known {
            return Ok(());
        }
        // The source is asked before the answer, so that the caller hears what speaks against the move.
        let mut driver = Driver::of(self.clone(), row, wishes)?;
        match driver.join().await {
            Ok(()) => {
                self.0.news.notify_waiters();
                Ok(())
            }
            // A driver has begun already.
            Err(MoveError::Superseded) => Ok(()),
            Err(error) => {
                // The source may have heard of the move: a driver ends it there as well.
                let mut wishes = driver.wishes;
                wishes.abort = true;
                self.connection().await?.set_wishes(id, &progress::write(&wishes)).await?;
                self.0.news.notify_waiters();
                Err(error)
            }
        }
    }

    /// Refuses a move to this shard if something speaks against it.
    fn judge(&self, standing: &Standing, row: &MoveRow, reverses: Option<Uuid>) -> Result<(), MoveError> {
        let own = &self.0.gate.expected().shard;
        let refused = |why: String| Err(MoveError::Refused(why));
        if self.is_closed_to_moves() {
            return refused(format!("shard {own} is being removed"));
        }
        if standing.owned > 0 {
            return refused(format!("shard {own} owns {} of the slots already", standing.owned));
        }
        for other in standing.rows.iter().filter(|other| other.phase.is_open()) {
            let phase = other.phase.as_str();
            if matches!(other.phase, Phase::Copying | Phase::CatchingUp | Phase::Aborting) {
                return refused(format!("move {} to shard {own} is {phase}: one move at a time comes in", other.id));
            }
            if Some(other.id) == reverses {
                if other.phase != Phase::Released || other.peer != row.peer || other.slots != row.slots {
                    return refused(format!("move {} is {phase}, and not one that this move reverses", other.id));
                }
                let kept: SourceProgress = progress::read(&other.progress)?;
                if kept.cleaned_to > 0 {
                    return refused(format!("move {} is being finished and cannot be reversed any more", other.id));
                }
            } else if overlap(&other.slots, &row.slots) {
                return refused(format!(
                    "move {} of some of the slots can still be reversed: reverse it to bring them back, or finish it first",
                    other.id
                ));
            }
        }
        if let Some(reverses) = reverses
            && standing.row(reverses).is_none_or(|row| row.phase != Phase::Released)
        {
            return refused(format!("move {reverses} has not given slots of shard {own} away, or they came back"));
        }
        Ok(())
    }

    /// Changes what an operator wants of a move to this shard.
    ///
    /// # Errors
    /// [`MoveError::Refused`] if the wish cannot be met any more.
    pub async fn control(&self, id: Uuid, said: &wire::MoveWishes) -> Result<(), MoveError> {
        let judge = |row: Option<&MoveRow>| {
            let row = row.ok_or_else(|| MoveError::Refused(format!("move {id} is not known here")))?;
            let phase = row.phase;
            let refused = |why: &str| Err(MoveError::Refused(format!("move {id} is {}: {why}", phase.as_str())));
            if phase.role() == Role::Source {
                return refused("ask the shard that receives the slots");
            }
            if said.abort == Some(true) && !phase.is_before_cut_over() {
                return refused("the slots have changed hands; reverse the move instead");
            }
            if said.finish == Some(true) && !matches!(phase, Phase::Taken | Phase::Finished) {
                return refused("it can be finished after the cut-over");
            }
            if said.verify == Some(true) && !phase.is_before_cut_over() {
                return refused(
                    "it can be verified only before the cut-over; `shardctl verify` checks the ledger at any time",
                );
            }
            let is_of_the_copy = said.hold_cutover.is_none()
                && (said.paused.is_some() || said.rate.is_some() || said.unthrottled.is_some());
            if is_of_the_copy && !phase.is_before_cut_over() {
                return refused("there is no copy to pause, to resume or to throttle");
            }
            let mut wishes: Wishes = progress::read(&row.wishes)?;
            wishes.update(said);
            Ok(progress::write(&wishes))
        };
        self.connection().await?.change_wishes(id, judge).await?;
        self.0.news.notify_waiters();
        Ok(())
    }
}

//! What an operator orders at the target: to start a move, and to change what is wanted of it.

use shard_map::SlotRange;
use sqlx::Connection;
use uuid::Uuid;

use super::Driver;
use crate::{
    durable::{DurableStep, durable},
    moves::{
        MoveError, Moves,
        phase::{Phase, Role},
        progress::{self, Progress, Wishes},
        source::{SourceProgress, overlap},
    },
    store::{
        moves::{self as tables, MoveRow},
        ownership::as_multirange,
    },
};

impl Moves {
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
        let mut transaction = connection.begin().await?;
        tables::lock(&mut transaction).await?;
        if tables::get(&mut transaction, id).await?.is_some() {
            return Ok(());
        }
        if self.is_closed_to_moves() {
            return refused(format!("shard {own} is being removed"));
        }
        const OWNED: &str = "SELECT count(*) FROM shardledger.slot_ownership WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 1";
        let owned: i64 = sqlx::query_scalar(OWNED).bind(as_multirange(&slots)).fetch_one(&mut *transaction).await?;
        if owned > 0 {
            return refused(format!("shard {own} owns {owned} of the slots already"));
        }
        for other in tables::list(&mut transaction).await?.into_iter().filter(|other| other.phase.is_open()) {
            let phase = other.phase.as_str();
            if matches!(other.phase, Phase::Copying | Phase::CatchingUp | Phase::Aborting) {
                return refused(format!("move {} to shard {own} is {phase}: one move at a time comes in", other.id));
            }
            if Some(other.id) == reverses {
                if other.phase != Phase::Released || other.peer != source || other.slots != slots {
                    return refused(format!("move {} is {phase}, and not one that this move reverses", other.id));
                }
                let kept: SourceProgress = progress::read(&other.progress)?;
                if kept.cleaned_to > 0 {
                    return refused(format!("move {} is being finished and cannot be reversed any more", other.id));
                }
            } else if overlap(&other.slots, &slots) {
                return refused(format!(
                    "move {} of some of the slots can still be reversed: reverse it to bring them back, or finish it first",
                    other.id
                ));
            }
        }
        if let Some(reverses) = reverses
            && tables::get(&mut transaction, reverses).await?.is_none_or(|row| row.phase != Phase::Released)
        {
            return refused(format!("move {reverses} has not given slots of shard {own} away, or they came back"));
        }
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
        tables::insert(&mut transaction, &row).await?;
        durable(DurableStep::Start, transaction.commit()).await?;
        drop(connection);
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
                let mut connection = self.connection().await?;
                tables::set_wishes(&mut connection, id, &progress::write(&wishes)).await?;
                self.0.news.notify_waiters();
                Err(error)
            }
        }
    }

    /// Changes what an operator wants of a move to this shard.
    ///
    /// # Errors
    /// [`MoveError::Refused`] if the wish cannot be met any more.
    pub async fn control(&self, id: Uuid, said: &wire::MoveWishes) -> Result<(), MoveError> {
        let mut connection = self.connection().await?;
        let mut transaction = connection.begin().await?;
        tables::lock(&mut transaction).await?;
        let row = tables::get(&mut transaction, id).await?;
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
        tables::set_wishes(&mut transaction, id, &progress::write(&wishes)).await?;
        transaction.commit().await?;
        self.0.news.notify_waiters();
        Ok(())
    }
}

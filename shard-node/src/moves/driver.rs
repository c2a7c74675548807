//! The driver of a move: the task at the target that carries it from phase to phase.
//!
//! Everything that it has done is in the row of the move, changed in the transaction that does it. A driver that fails reads the row
//! again and goes on from there; another one may do so instead ([`MoveConnection::claim`]).

mod copy;
mod cut_over;
mod give_up;
mod orders;
mod source_node;
mod verification;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use node_client::MovesClient;
use telemetry::Tasks;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    MoveError, Moves,
    incoming::Incoming,
    phase::Phase,
    progress::{self, Progress, Wishes},
    sums::BookingsDigest,
    throttle::{CatchUp, Throttle},
};
use crate::{
    durable::{DurableStep, durable},
    metric_definitions as m,
    store::moves::{Advance, MoveConnection, MoveRow, MoveStore},
};

/// Bookings that one page of the copy looks at, and rows of accounts in a page, without a throttle.
const PAGE: u32 = 10_000;
/// How often a node looks for moves without a driver.
const LOOK: Duration = Duration::from_millis(500);
/// A driver that has not touched its row for so long is taken for dead.
const ABANDONED_US: i64 = 3_000_000;
/// How often a driver touches its row.
const ALIVE: Duration = Duration::from_secs(1);
/// The pause after a failure.
const RETRY: Duration = Duration::from_millis(300);
/// The pause before a difference is looked for again.
const RETRY_DIFFERENCE: Duration = Duration::from_secs(5);
/// Pause between two looks at a source that has nothing new.
const TAIL: Duration = Duration::from_millis(50);

/// What a step leads to.
enum Step {
    Again,
    Wait(Duration),
    /// Nothing is left to do, for now.
    Done,
}

/// Looks for moves to this shard without a driver, until `shutdown`.
pub async fn run<S: MoveStore>(moves: Moves<S>, tasks: Tasks, shutdown: CancellationToken) {
    let driven: Arc<Mutex<HashSet<Uuid>>> = Arc::default();
    loop {
        let news = moves.0.news.notified();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = news => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        // A follower leaves the moves to the active node.
        if moves.0.gate.writes().is_err() || !moves.0.role.is_active() {
            continue;
        }
        let rows = match moves.abandoned().await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::debug!(%error, "cannot look for moves");
                continue;
            }
        };
        for row in rows {
            let mut now_driven = driven.lock().unwrap_or_else(PoisonError::into_inner);
            if !now_driven.insert(row.id) {
                continue;
            }
            let (moves, driven, shutdown) = (moves.clone(), Arc::clone(&driven), shutdown.clone());
            tasks.spawn("move of slots", async move {
                shutdown.run_until_cancelled(drive(moves, row.id)).await;
                driven.lock().unwrap_or_else(PoisonError::into_inner).remove(&row.id);
            });
        }
    }
}

async fn drive<S: MoveStore>(moves: Moves<S>, id: Uuid) {
    let mut driver = match Driver::claim(moves, id).await {
        Ok(Some(driver)) => driver,
        Ok(None) => return,
        Err(error) => {
            tracing::warn!(move_id = %id, %error, "a move cannot be driven");
            return;
        }
    };
    let (moves, epoch) = (driver.moves.clone(), driver.row.driver_epoch);
    tokio::select! {
        biased;
        () = run_steps(&mut driver) => {}
        () = keep_alive(moves.clone(), id, epoch) => {}
    }
    moves.forget_activity(id);
}

/// Shows other nodes of the shard that the move has a driver.
async fn keep_alive<S: MoveStore>(moves: Moves<S>, id: Uuid, driver_epoch: i64) {
    loop {
        tokio::time::sleep(ALIVE).await;
        // A node that drives a move acts for its shard until the move ends.
        moves.0.role.use_now();
        let touched = async { moves.connection().await?.touch(id, driver_epoch, moves.now_us()).await };
        if let Err(error) = touched.await {
            tracing::debug!(move_id = %id, %error, "the driver of a move cannot say that it is alive");
        }
    }
}

async fn run_steps<S: MoveStore>(driver: &mut Driver<S>) {
    let id = driver.row.id;
    loop {
        match driver.step().await {
            Ok(Step::Again) => {}
            Ok(Step::Wait(pause)) => {
                tokio::select! {
                    biased;
                    () = driver.moves.0.news.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
            Ok(Step::Done) => return,
            Err(MoveError::Superseded) => {
                tracing::info!(move_id = %id, "another driver has taken over a move");
                return;
            }
            Err(error) => {
                metrics::counter!(m::SLOT_MOVE_FAILURES).increment(1);
                let pause = if matches!(error, MoveError::Differs(_)) { RETRY_DIFFERENCE } else { RETRY };
                tracing::warn!(move_id = %id, phase = driver.row.phase.as_str(), %error, "a move is blocked");
                tokio::time::sleep(pause).await;
                if !driver.reload_after(&error).await {
                    return;
                }
            }
        }
    }
}

struct Driver<S> {
    moves: Moves<S>,
    row: MoveRow,
    progress: Progress,
    wishes: Wishes,
    /// The addresses of the source's nodes, and the client of these nodes.
    peer: Option<(Vec<String>, node_client::Client)>,
    source: Option<MovesClient>,
    /// The source has accepted this driver's epoch.
    joined: bool,
    /// The source has given the slots away.
    released: bool,
    throttle: Throttle,
    catching_up: CatchUp,
    /// A page that the source has read ahead.
    next_page: Option<wire::ReadMoveBookingsResponse>,
    /// The sums over what has come; `None` before the catch-up and after a failure.
    incoming: Option<Incoming>,
    /// The digest of the bookings that have come, and the position of the source that it includes.
    digest: Option<(i64, BookingsDigest)>,
    /// The scales of assets that the last verification has inserted.
    scales: Vec<wire::AssetScale>,
    /// How often in a row the cut-over would have taken too long.
    too_long: u32,
    /// How often the slots were verified without a cut-over.
    stale_verifications: usize,
}

impl<S: MoveStore> Moves<S> {
    /// The moves in which this shard takes part or took part, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self) -> Result<Vec<MoveRow>, MoveError> {
        self.connection().await?.list().await
    }

    /// Moves to this shard that have something to do and that no driver has touched lately.
    async fn abandoned(&self) -> Result<Vec<MoveRow>, MoveError> {
        let stale_us = self.now_us() - ABANDONED_US;
        let mut rows = Vec::new();
        for row in self.list().await? {
            let (progress, wishes): (Progress, Wishes) = match row.phase.role() {
                super::phase::Role::Target => (progress::read(&row.progress)?, progress::read(&row.wishes)?),
                super::phase::Role::Source => continue,
            };
            let has_work = match row.phase {
                Phase::Copying | Phase::CatchingUp | Phase::Aborting => true,
                Phase::Taken => wishes.finish || progress.published_map == 0,
                _ => false,
            };
            // [`Moves::start`] has asked the source, and leaves the rest to a driver.
            let is_new = row.driver_epoch == 1 && (progress.slot_epoch > 0 || wishes.abort);
            if has_work && (is_new || row.updated_at_us < stale_us) {
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

impl<S: MoveStore> Driver<S> {
    async fn claim(moves: Moves<S>, id: Uuid) -> Result<Option<Self>, MoveError> {
        let mut connection = moves.connection().await?;
        let row = durable(DurableStep::Claim, connection.claim(id, moves.now_us())).await?;
        drop(connection);
        let Some(row) = row else { return Ok(None) };
        let wishes = progress::read(&row.wishes)?;
        Ok(Some(Self::of(moves, row, wishes)?))
    }

    fn of(moves: Moves<S>, row: MoveRow, wishes: Wishes) -> Result<Self, MoveError> {
        let progress = progress::read(&row.progress)?;
        Ok(Self {
            moves,
            row,
            progress,
            wishes,
            peer: None,
            source: None,
            joined: false,
            released: false,
            throttle: Throttle::default(),
            catching_up: CatchUp::default(),
            next_page: None,
            incoming: None,
            digest: None,
            stale_verifications: 0,
            scales: Vec::new(),
            too_long: 0,
        })
    }

    /// Forgets what a failure may have made wrong, reads the row again, and notes the failure. False: another driver has taken over.
    async fn reload_after(&mut self, failure: &MoveError) -> bool {
        // Another node of the shard may serve where this one does not answer, or refuses.
        if let (MoveError::Unreachable { .. } | MoveError::Refused(_), Some((_, client))) = (failure, &self.peer) {
            client.drop_connection();
        }
        self.throttle.page_failed();
        self.scales.clear();
        (self.source, self.incoming, self.digest, self.next_page) = (None, None, None, None);
        (self.joined, self.released) = (false, false);
        loop {
            match self.read_again(failure).await {
                Ok(()) => return true,
                Err(MoveError::Superseded) => return false,
                // What is in memory may be ahead of the row, so nothing is done before the row is read.
                Err(error) => tracing::debug!(move_id = %self.row.id, %error, "the row of a move cannot be read"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read_again(&mut self, failure: &MoveError) -> Result<(), MoveError> {
        let mut connection = self.moves.connection().await?;
        let row = connection.get(self.row.id).await?.ok_or(MoveError::Superseded)?;
        drop(connection);
        if row.driver_epoch != self.row.driver_epoch {
            return Err(MoveError::Superseded);
        }
        self.progress = progress::read(&row.progress)?;
        self.row = row;
        self.progress.blocked_by = Some(failure.to_string());
        self.save().await
    }

    /// Bookings or rows in a page.
    fn page_size(&self) -> u32 {
        if self.is_unthrottled() { PAGE } else { self.throttle.page() }
    }

    /// Whether there is no rest after a page: an operator wants none, or the catch-up would fall behind.
    fn is_unthrottled(&self) -> bool {
        self.wishes.unthrottled || self.catching_up.hurries()
    }

    // === the row ===

    /// Writes the progress.
    async fn save(&mut self) -> Result<(), MoveError> {
        self.advance(self.row.phase).await
    }

    async fn advance(&mut self, to: Phase) -> Result<(), MoveError> {
        let text = progress::write(&self.progress);
        let change = self.change(to, &text);
        self.moves.connection().await?.advance(change).await?;
        self.written(to, self.progress.clone(), text);
        Ok(())
    }

    /// A change of the row. [`Driver::written`] follows its commit.
    fn change<'a>(&'a self, to: Phase, progress: &'a str) -> Advance<'a> {
        debug_assert!(self.row.phase == to || self.row.phase.may_become(to), "{:?} to {to:?}", self.row.phase);
        Advance { row: &self.row, to, progress }
    }

    /// The row is committed with this phase and this progress.
    fn written(&mut self, phase: Phase, progress: Progress, text: String) {
        self.row.phase = phase;
        self.row.progress = text;
        self.progress = progress;
    }

    async fn read_wishes(&mut self) -> Result<(), MoveError> {
        let mut connection = self.moves.connection().await?;
        let row = connection.get(self.row.id).await?.ok_or(MoveError::Superseded)?;
        if row.driver_epoch != self.row.driver_epoch || row.phase != self.row.phase {
            return Err(MoveError::Superseded);
        }
        self.wishes = progress::read(&row.wishes)?;
        Ok(())
    }

    // === steps ===

    async fn step(&mut self) -> Result<Step, MoveError> {
        self.read_wishes().await?;
        if self.wishes.abort && matches!(self.row.phase, Phase::Copying | Phase::CatchingUp) {
            match self.source().await.map(|_| ()) {
                // Too late: the move can only be completed, and reversed then.
                Ok(()) if self.released => {}
                Ok(()) => return self.give_up().await,
                // The source has refused the move from the beginning.
                Err(MoveError::Refused(_)) if self.progress.slot_epoch == 0 => {
                    self.advance(Phase::Aborting).await?;
                    return Ok(Step::Again);
                }
                Err(error) => return Err(error),
            }
        }
        match self.row.phase {
            Phase::Copying if self.wishes.paused => Ok(Step::Wait(LOOK)),
            Phase::Copying => self.copy().await,
            Phase::CatchingUp => self.catch_up().await,
            Phase::Aborting => self.clean_up_here().await,
            Phase::Taken => self.finish().await,
            _ => Ok(Step::Done),
        }
    }
}

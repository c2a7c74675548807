//! The driver of a move: the task at the target that carries it from phase to phase.
//!
//! Everything that it has done is in the row of the move, changed in the transaction that does it. A driver that fails reads the row
//! again and goes on from there; another one may do so instead ([`tables::claim`]).

mod give_up;
mod orders;
mod source_node;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection};
use telemetry::Tasks;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use uuid::Uuid;
use wire::slot_moves_client::SlotMovesClient;

use super::{
    MoveError, Moves,
    incoming::{self, Incoming},
    phase::Phase,
    progress::{self, AssetSum, Progress, Wishes},
    source::{OWN_PART, PARTS, SourceProgress, sum_up},
    throttle::Throttle,
};
use crate::store::{
    StoreError,
    moves::{self as tables, BookingsDigest, MoveRow},
};

/// Bookings that one page of the copy looks at, and rows of accounts in a page.
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
/// Bookings in a page during the cut-over.
const SMALL_PAGE: u32 = 2_000;
/// Pause between two looks at a source that has nothing new.
const TAIL: Duration = Duration::from_millis(50);
/// Pause before a cut-over is tried again that would have taken too long.
const TOO_LONG_AGAIN: Duration = Duration::from_secs(1);
/// A verification that took longer than this is repeated, at most [`VERIFICATIONS`] times, because much was appended since.
const FRESH: Duration = Duration::from_secs(2);
/// Most verifications before a cut-over.
const VERIFICATIONS: usize = 5;

/// What a step leads to.
enum Step {
    Again,
    Wait(Duration),
    /// Nothing is left to do, for now.
    Done,
}

/// Looks for moves to this shard without a driver, until `shutdown`.
pub async fn run(moves: Moves, tasks: Tasks, shutdown: CancellationToken) {
    let driven: Arc<Mutex<HashSet<Uuid>>> = Arc::default();
    loop {
        let news = moves.0.news.notified();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = news => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        if moves.0.gate.writes().is_err() {
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

async fn drive(moves: Moves, id: Uuid) {
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
        () = run_steps(&mut driver) => {}
        () = keep_alive(moves.clone(), id, epoch) => {}
    }
    moves.forget_activity(id);
}

/// Shows other nodes of the shard that the move has a driver.
async fn keep_alive(moves: Moves, id: Uuid, driver_epoch: i64) {
    loop {
        tokio::time::sleep(ALIVE).await;
        let touched = async {
            let mut connection = moves.connection().await?;
            Ok::<_, MoveError>(tables::touch(&mut connection, id, driver_epoch, moves.now_us()).await?)
        };
        if let Err(error) = touched.await {
            tracing::debug!(move_id = %id, %error, "the driver of a move cannot say that it is alive");
        }
    }
}

async fn run_steps(driver: &mut Driver) {
    let id = driver.row.id;
    loop {
        match driver.step().await {
            Ok(Step::Again) => {}
            Ok(Step::Wait(pause)) => {
                tokio::select! {
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

struct Driver {
    moves: Moves,
    row: MoveRow,
    progress: Progress,
    wishes: Wishes,
    source: Option<SlotMovesClient<Channel>>,
    /// The source has accepted this driver's epoch.
    joined: bool,
    /// The source has given the slots away.
    released: bool,
    throttle: Throttle,
    /// A page that the source has read ahead.
    next_page: Option<wire::ReadMoveBookingsResponse>,
    /// The sums over what has come; `None` before the catch-up and after a failure.
    incoming: Option<Incoming>,
    /// The digest of the bookings that have come, and the position of the source that it includes.
    digest: Option<(i64, BookingsDigest)>,
    /// How often the slots were verified without a cut-over.
    verifications: usize,
}

impl Moves {
    /// The moves in which this shard takes part or took part, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn list(&self) -> Result<Vec<MoveRow>, MoveError> {
        let mut connection = self.connection().await?;
        Ok(tables::list(&mut connection).await?)
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

impl Driver {
    async fn claim(moves: Moves, id: Uuid) -> Result<Option<Self>, MoveError> {
        let mut connection = moves.connection().await?;
        let row = tables::claim(&mut connection, id, moves.now_us()).await?;
        drop(connection);
        let Some(row) = row else { return Ok(None) };
        let wishes = progress::read(&row.wishes)?;
        Ok(Some(Self::of(moves, row, wishes)?))
    }

    fn of(moves: Moves, row: MoveRow, wishes: Wishes) -> Result<Self, MoveError> {
        let progress = progress::read(&row.progress)?;
        Ok(Self {
            moves,
            row,
            progress,
            wishes,
            source: None,
            joined: false,
            released: false,
            throttle: Throttle::default(),
            next_page: None,
            incoming: None,
            digest: None,
            verifications: 0,
        })
    }

    /// Forgets what a failure may have made wrong, reads the row again, and notes the failure. False: another driver has taken over.
    async fn reload_after(&mut self, failure: &MoveError) -> bool {
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
        let row = tables::get(&mut connection, self.row.id).await?.ok_or(MoveError::Superseded)?;
        drop(connection);
        if row.driver_epoch != self.row.driver_epoch {
            return Err(MoveError::Superseded);
        }
        self.progress = progress::read(&row.progress)?;
        self.row = row;
        self.progress.blocked_by = Some(failure.to_string());
        self.save().await
    }

    // === the row ===

    /// Writes the progress.
    async fn save(&mut self) -> Result<(), MoveError> {
        self.advance(self.row.phase).await
    }

    async fn advance(&mut self, to: Phase) -> Result<(), MoveError> {
        let mut connection = self.moves.connection().await?;
        let progress = self.progress.clone();
        let written = self.advance_in(&mut connection, to, &progress).await?;
        self.written(to, progress, written);
        Ok(())
    }

    /// The same in a transaction of the caller, who calls [`Driver::written`] after its commit.
    async fn advance_in(
        &self,
        connection: &mut PgConnection,
        to: Phase,
        progress: &Progress,
    ) -> Result<String, MoveError> {
        debug_assert!(self.row.phase == to || self.row.phase.may_become(to), "{:?} to {to:?}", self.row.phase);
        let text = progress::write(progress);
        tables::advance(connection, &self.row, to, &text).await.map_err(StoreError::into_move_error)?;
        Ok(text)
    }

    /// The row is committed as [`Driver::advance_in`] has written it.
    fn written(&mut self, phase: Phase, progress: Progress, text: String) {
        self.row.phase = phase;
        self.row.progress = text;
        self.progress = progress;
    }

    async fn read_wishes(&mut self) -> Result<(), MoveError> {
        let mut connection = self.moves.connection().await?;
        let row = tables::get(&mut connection, self.row.id).await?.ok_or(MoveError::Superseded)?;
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

    /// Copies a page: of bookings up to the source's folded position, then of accounts, then the small tables.
    async fn copy(&mut self) -> Result<Step, MoveError> {
        self.source().await?;
        if self.progress.reverses.is_some() {
            return self.skip_copy().await;
        }
        if self.progress.part < PARTS {
            let until = (self.progress.part == OWN_PART).then_some(self.progress.folded_position);
            return self.copy_bookings(until).await;
        }
        if !self.progress.accounts_copied {
            return self.copy_accounts().await;
        }
        self.copy_small_tables().await?;
        Ok(Step::Again)
    }

    /// Writes a page of bookings, while the source reads the next one.
    async fn copy_bookings(&mut self, until: Option<i64>) -> Result<Step, MoveError> {
        let begun = Instant::now();
        let page = match self.next_page.take() {
            Some(page) => page,
            None => self.read_page(until, PAGE).await?,
        };
        let (at_end, bytes) = (page.at_end, page.rows.len());
        if at_end {
            self.write_page(page, until).await?;
            self.progress.part += 1;
            self.progress.after = 0;
            self.save().await?;
            return Ok(Step::Again);
        }
        let request = self.page_request(page.cursor.unwrap_or_default().after, until, PAGE);
        let mut source = self.source().await?.clone();
        let (written, next) = tokio::join!(self.write_page(page, until), source.read_bookings(request));
        written?;
        let next = self.answered(next)?;
        self.hear(next.commits);
        self.note_page(&next);
        self.next_page = Some(next);
        Ok(self.pause_after_page(begun.elapsed(), bytes))
    }

    /// A reversal finds the data here, as it was when the slots left, and copies what was appended since.
    async fn skip_copy(&mut self) -> Result<Step, MoveError> {
        let Some(reverses) = self.progress.reverses else { return Err(MoveError::Superseded) };
        let mut connection = self.moves.connection().await?;
        let row = tables::get(&mut connection, reverses).await?.ok_or(MoveError::Superseded)?;
        let kept: SourceProgress = progress::read(&row.progress)?;
        let folded = tables::folded_position(&mut connection).await?;
        drop(connection);
        self.progress.after = self.progress.after.max(kept.reversed_to);
        // Rows that the fold has not written yet would be older than the bookings that come.
        if folded <= kept.last_position {
            return Ok(Step::Wait(TAIL));
        }
        self.progress.copied_at_us = self.moves.now_us();
        self.advance(Phase::CatchingUp).await?;
        Ok(Step::Again)
    }

    async fn read_page(
        &mut self,
        until: Option<i64>,
        limit: u32,
    ) -> Result<wire::ReadMoveBookingsResponse, MoveError> {
        let request = self.page_request(self.progress.after, until, limit);
        let answer = self.source().await?.read_bookings(request).await;
        let page = self.answered(answer)?;
        self.hear(page.commits);
        self.note_page(&page);
        Ok(page)
    }

    fn note_page(&self, page: &wire::ReadMoveBookingsResponse) {
        let is_caught_up = page.at_end && self.row.phase == Phase::CatchingUp;
        self.moves.note(self.row.id, |activity| activity.page(page.rows.len(), page.entries_left, is_caught_up));
    }

    /// Asks for the bookings after a position of the present part.
    fn page_request(&self, after: i64, until: Option<i64>, limit: u32) -> wire::ReadMoveBookingsRequest {
        wire::ReadMoveBookingsRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            cursor: Some(wire::MoveCursor { part: self.progress.part, after }),
            until,
            limit,
        }
    }

    /// Takes in how long the source's commits have taken since the last page.
    fn hear(&mut self, commits: Option<wire::Commits>) {
        let commits = commits.unwrap_or_default();
        self.throttle.hear(commits.count, Duration::from_micros(commits.total_us));
        self.progress.throttle = self.throttle.factor();
    }

    /// Writes a page of bookings and its waypoints, with the cursor. In the catch-up, also the page's effect on other rows.
    async fn write_page(
        &mut self,
        page: wire::ReadMoveBookingsResponse,
        until: Option<i64>,
    ) -> Result<(), MoveError> {
        let cursor = page.cursor.unwrap_or_default();
        // The source reports where the part ends. A bounded read ends at `until`.
        let to = until.filter(|_| page.at_end).map_or(cursor.after, |until| until.max(cursor.after));
        let (after, is_catching_up) = (self.progress.after, self.row.phase == Phase::CatchingUp);
        if page.rows.is_empty() && after == to {
            return Ok(());
        }
        let mut progress = Progress { after: to, blocked_by: None, ..self.progress.clone() };
        let mut connection = self.moves.connection().await?;
        let mut transaction = connection.begin().await?;
        if !page.rows.is_empty() {
            progress.bytes += page.rows.len() as u64;
            let (came, _) = tables::copy_bookings_in(&mut transaction, page.rows).await?;
            progress.bookings += came;
            if came > 0 {
                tables::insert_waypoints(&mut transaction, &self.row.slots, after, to).await?;
            }
            if is_catching_up && came > 0 {
                let bookings = tables::bookings(&mut transaction, &self.row.slots, after, to).await?;
                let incoming = self.incoming.as_mut().ok_or(MoveError::Superseded)?;
                incoming.apply(&mut transaction, &self.progress, &bookings).await?;
            }
        }
        if is_catching_up && let Some(incoming) = &mut self.incoming {
            incoming.sums.position = to;
            incoming.write_to(&mut progress);
        }
        let text = self.advance_in(&mut transaction, self.row.phase, &progress).await?;
        transaction.commit().await?;
        self.written(self.row.phase, progress, text);
        Ok(())
    }

    async fn copy_accounts(&mut self) -> Result<Step, MoveError> {
        let request = wire::ReadMoveAccountsRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            after: self.progress.after_account.clone(),
            limit: PAGE,
        };
        let answer = self.source().await?.read_accounts(request).await;
        let page = self.answered(answer)?;
        self.hear(page.commits);
        let begun = Instant::now();
        let bytes = page.rows.len();
        self.moves.note(self.row.id, |activity| activity.page(bytes, activity.lag_entries, false));
        let mut progress = Progress {
            bytes: self.progress.bytes + bytes as u64,
            accounts_copied: page.at_end,
            blocked_by: None,
            ..self.progress.clone()
        };
        if !page.last.is_empty() {
            progress.after_account = page.last;
        }
        let mut connection = self.moves.connection().await?;
        let mut transaction = connection.begin().await?;
        progress.accounts += tables::copy_accounts_in(&mut transaction, page.rows).await?;
        let text = self.advance_in(&mut transaction, self.row.phase, &progress).await?;
        transaction.commit().await?;
        self.written(self.row.phase, progress, text);
        Ok(self.pause_after_page(begun.elapsed(), bytes))
    }

    async fn copy_small_tables(&mut self) -> Result<(), MoveError> {
        let request = wire::ReadMoveSmallTablesRequest { r#move: self.id(), driver_epoch: self.row.driver_epoch };
        let answer = self.source().await?.read_small_tables(request).await;
        let small_tables = self.answered(answer)?;
        let mut connection = self.moves.connection().await?;
        let mut transaction = connection.begin().await?;
        tables::copy_holds_in(&mut transaction, small_tables.holds).await?;
        incoming::insert_sagas(&mut transaction, &small_tables.sagas).await?;
        incoming::insert_scales(&mut transaction, &small_tables.scales).await?;
        let progress = Progress {
            holds_at: small_tables.holds_at,
            sagas_at: small_tables.folded_position,
            part: OWN_PART,
            after: self.progress.folded_position,
            copied_at_us: self.moves.now_us(),
            ..self.progress.clone()
        };
        let text = self.advance_in(&mut transaction, Phase::CatchingUp, &progress).await?;
        transaction.commit().await?;
        self.written(Phase::CatchingUp, progress, text);
        Ok(())
    }

    fn pause_after_page(&self, page: Duration, bytes: usize) -> Step {
        let reason = if self.wishes.unthrottled { String::new() } else { self.throttle.reason(self.wishes.rate) };
        self.moves.note(self.row.id, |activity| activity.throttled_by = reason);
        if self.wishes.unthrottled {
            return Step::Again;
        }
        Step::Wait(self.throttle.rest(page, bytes, self.wishes.rate))
    }

    // === catch-up and cut-over ===

    async fn catch_up(&mut self) -> Result<Step, MoveError> {
        self.source().await?;
        self.load_incoming().await?;
        if self.released {
            return self.cut_over(0).await;
        }
        let begun = Instant::now();
        let page = self.read_page(None, PAGE).await?;
        let (at_end, bytes) = (page.at_end, page.rows.len());
        self.write_page(page, None).await?;
        if !at_end {
            return Ok(self.pause_after_page(begun.elapsed(), bytes));
        }
        if self.progress.caught_up_at_us == 0 {
            self.progress.caught_up_at_us = self.moves.now_us();
            self.save().await?;
        }
        self.moves.note(self.row.id, |activity| activity.throttled_by.clear());
        if self.wishes.paused || (self.wishes.hold_cutover && !self.wishes.rehearse) {
            let wanted = self.wishes.verifications;
            if self.progress.verifications < wanted {
                self.progress.verified_position = self.verify().await?;
                self.progress.verifications = wanted;
                self.progress.blocked_by = None;
                self.save().await?;
            }
            return Ok(Step::Wait(TAIL));
        }
        let begun = Instant::now();
        let verified = self.verify().await?;
        self.progress.verified_position = verified;
        if self.wishes.rehearse {
            self.save().await?;
            return self.give_up().await;
        }
        self.verifications += 1;
        if begun.elapsed() > FRESH && self.verifications < VERIFICATIONS {
            return Ok(Step::Again);
        }
        self.verifications = 0;
        self.cut_over(verified).await
    }

    async fn load_incoming(&mut self) -> Result<(), MoveError> {
        if self.incoming.is_none() {
            let mut connection = self.moves.connection().await?;
            let number = self.moves.number()?;
            let mut incoming = Incoming::load(&mut connection, &self.row.slots, number, &self.progress).await?;
            incoming.write_to(&mut self.progress);
            self.incoming = Some(incoming);
            drop(connection);
            // Another driver then does not sum up again.
            self.save().await?;
        }
        Ok(())
    }

    /// Copies what the source appended, up to a position.
    async fn follow_to(&mut self, position: i64) -> Result<(), MoveError> {
        while self.progress.after < position {
            let page = self.read_page(Some(position), SMALL_PAGE).await?;
            let end = page.cursor.unwrap_or_default().after;
            // The source has reported `position`. If it shows less, its state is older.
            if page.at_end && end < position {
                let reason = format!("it shows its journal up to {end} only, and has told of {position}");
                return Err(MoveError::Unreachable { shard: self.row.peer.clone(), reason });
            }
            self.write_page(page, Some(position)).await?;
        }
        Ok(())
    }

    /// Compares every slot with the source at one position. Returns the position.
    async fn verify(&mut self) -> Result<i64, MoveError> {
        let theirs = self.sum_up(None).await?;
        self.follow_to(theirs.position).await?;
        let mut connection = self.moves.connection().await?;
        let last = tables::last_of(self.moves.number()?);
        let ours = tables::slot_sums(&mut connection, &self.row.slots, last).await?;
        let (from, mut digest) = self.digest.unwrap_or_default();
        let to = if from == 0 { i64::MAX } else { theirs.position };
        digest.add(&tables::bookings_digest(&mut connection, &self.row.slots, from, to).await?.0);
        let holds = tables::holds_sum(&mut connection, &self.row.slots).await?;
        incoming::insert_scales(&mut connection, &theirs.scales).await?;
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
            return Ok(MoveError::Differs("the sums of the slots differ in their order".to_owned()));
        };
        let (slot, asset) = (first.slot, first.asset.clone());
        let theirs = self.sum_up(Some(slot)).await?;
        self.follow_to(theirs.position).await?;
        let mut connection = self.moves.connection().await?;
        let number = self.moves.number()?;
        let ours = sum_up(&mut connection, &self.row.slots, number, None, Some(slot)).await?.accounts;
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

    /// The source gives the slots away, and this shard takes them. If the source has given them away already, it says so again.
    async fn cut_over(&mut self, verified_position: i64) -> Result<Step, MoveError> {
        let sessions = self.moves.sessions().await?;
        // Copy as much as possible before the pause.
        let begun = Instant::now();
        let page = self.read_page(None, SMALL_PAGE).await?;
        self.write_page(page, None).await?;
        if let Some(too_long) = self.too_long(begun.elapsed()) {
            self.progress.blocked_by = Some(too_long);
            self.save().await?;
            return Ok(Step::Wait(TOO_LONG_AGAIN));
        }
        let begun = Instant::now();
        let request = wire::ReleaseMoveRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            verified_position,
            max_locked_ms: self.wishes.max_pause_ms / 2,
        };
        let answer = self.source().await?.release(request).await;
        let released = self.answered(answer)?;
        self.released = true;
        self.progress.last_position = released.last_position;
        self.progress.released_at_us = self.moves.now_us();
        self.progress.source_locked_us = released.locked_us;
        self.progress.assets = released.assets.iter().map(AssetSum::from).collect();
        self.follow_to(released.last_position).await?;
        let mut connection = self.moves.connection().await?;
        incoming::insert_scales(&mut connection, &released.scales).await?;
        drop(connection);
        let incoming = self.incoming.clone().ok_or(MoveError::Superseded)?;
        let ours: Vec<AssetSum> = incoming.sums.assets().iter().map(AssetSum::from).collect();
        if ours != self.progress.assets {
            let what = format!(
                "the slots are released and do not sum up to the same: here {ours:?}, at the source {:?}",
                self.progress.assets
            );
            return Err(MoveError::Differs(what));
        }
        let taken = self.moves.take(sessions, &self.row, &self.progress, &incoming).await?;
        let text = progress::write(&taken);
        self.written(Phase::Taken, taken, text);
        self.progress.pause_us = i64::try_from(begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.save().await?;
        tracing::info!(move_id = %self.row.id, from = self.row.peer, pause_ms = begun.elapsed().as_millis(), "slots taken");
        Ok(Step::Again)
    }

    /// Why there must be no cut-over now: it would pause the slots for longer than allowed. `round` is what it took to fetch what the
    /// source had appended. The release, the last fetch and the take each take about as long.
    fn too_long(&self, round: Duration) -> Option<String> {
        let (about, most) = (round * 3, Duration::from_millis(self.wishes.max_pause_ms));
        let is_too_long = !self.released && !most.is_zero() && about > most;
        let (about, most) = (about.as_millis(), most.as_millis());
        is_too_long.then(|| {
            format!("the cut-over would pause the slots for about {about} ms, and --max-pause allows {most} ms; trying again")
        })
    }

    /// After the cut-over: tells every shard the new map, and has the source clean up when an operator wants it.
    async fn finish(&mut self) -> Result<Step, MoveError> {
        if self.progress.published_map == 0 {
            self.progress.published_map = self.moves.publish(&self.row).await?;
            self.progress.blocked_by = None;
            self.save().await?;
        }
        if !self.wishes.finish {
            return Ok(Step::Done);
        }
        let request = wire::LeaveMoveRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            how: wire::leave_move_request::How::Finish.into(),
        };
        let answer = self.source().await?.leave(request).await;
        let left = self.answered(answer)?;
        self.progress.bookings_deleted = u64::try_from(left.bookings_deleted).unwrap_or(0);
        self.progress.blocked_by = None;
        if !left.done {
            self.save().await?;
            return Ok(Step::Wait(TAIL));
        }
        self.progress.finished_at_us = self.moves.now_us();
        self.advance(Phase::Finished).await?;
        Ok(Step::Done)
    }
}

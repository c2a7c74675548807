//! The catch-up, the cut-over, and what follows it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Step, TAIL};
use crate::{
    durable::{DurableStep, durable},
    moves::{
        MoveError,
        incoming::Incoming,
        phase::Phase,
        progress::{self, AssetSum},
        sums::Verified,
    },
    store::moves::{MoveConnection, MoveStore},
};

/// Bookings in a page during the cut-over.
const SMALL_PAGE: u32 = 2_000;
/// The pause before a cut-over that would have taken too long is tried again.
const TOO_LONG_AGAIN: Duration = Duration::from_secs(1);
/// The pause grows to so many times its first length.
const LONGEST_FACTOR: u32 = 30;
/// How long the source may take for a page while the slots are between the shards.
const PAGE_WITHIN: Duration = Duration::from_secs(10);
/// How long a release may take. Before its lock, it reads what was appended since the verification.
const RELEASE_WITHIN: Duration = Duration::from_secs(30);
/// A verification that took longer than this is repeated, at most [`VERIFICATIONS`] times, because much was appended since.
const FRESH: Duration = Duration::from_secs(2);
/// Most verifications before a cut-over.
const VERIFICATIONS: usize = 5;

impl<S: MoveStore> Driver<S> {
    pub(super) async fn catch_up(&mut self) -> Result<Step, MoveError> {
        self.source().await?;
        self.load_incoming().await?;
        if self.released {
            return self.cut_over(0).await;
        }
        let (begun, before) = (Instant::now(), self.progress.after);
        let page = self.read_page(None, self.page_size()).await?;
        let (at_end, bytes) = (page.at_end, page.rows.len());
        self.catching_up.page(page.entries_left, at_end);
        self.write_page(page, None).await?;
        if !at_end {
            return Ok(self.pause_after_page(begun.elapsed(), bytes));
        }
        if self.progress.caught_up_at_us == 0 {
            self.progress.caught_up_at_us = self.moves.now_us();
            self.save().await?;
        }
        self.moves.note(self.row.id, |activity| activity.throttle_reason.clear());
        if self.wishes.paused || (self.wishes.hold_cutover && !self.wishes.rehearse) {
            return self.verify_if_asked().await;
        }
        if self.wishes.max_pause_ms > 0 && self.progress.after - before > i64::from(SMALL_PAGE) {
            // What has piled up during a rest says nothing about the pause.
            return Ok(Step::Again);
        }
        if let Some(why) = self.too_long(begun.elapsed()) {
            return self.wait_because(why).await;
        }
        let begun = Instant::now();
        let verified = match self.verify().await {
            Err(MoveError::Differs(what)) => {
                self.progress.difference = Some(what.clone());
                self.progress.verifications_done = self.wishes.verifications_asked;
                self.save().await?;
                return Err(MoveError::Differs(what));
            }
            verified => verified?,
        };
        self.progress.verified_position = verified;
        self.progress.difference = None;
        if self.wishes.rehearse {
            self.save().await?;
            return self.give_up().await;
        }
        self.stale_verifications += 1;
        if begun.elapsed() > FRESH && self.stale_verifications < VERIFICATIONS {
            return Ok(Step::Again);
        }
        self.stale_verifications = 0;
        self.cut_over(verified).await
    }

    async fn load_incoming(&mut self) -> Result<(), MoveError> {
        if self.incoming.is_none() {
            let (slots, number) = (&self.row.slots, self.moves.number()?);
            let incoming = match Incoming::of(slots, &self.progress) {
                Some(incoming) => incoming,
                None => {
                    let mut connection = self.moves.connection().await?;
                    let sums = connection.sum_up(slots, number, None, None).await?.verified;
                    let newest_us = connection.newest_account_us(slots).await?;
                    Incoming::summed(slots, Verified { position: self.progress.after, ..sums }, newest_us)
                }
            };
            incoming.write_to(&mut self.progress);
            self.incoming = Some(incoming);
            // Another driver then does not sum up again.
            durable(DurableStep::SumUp, self.save()).await?;
        }
        Ok(())
    }

    /// Copies what the source appended, up to a position.
    pub(super) async fn follow_to(&mut self, position: i64) -> Result<(), MoveError> {
        while self.progress.after < position {
            let read = async |driver: &mut Self| driver.read_page(Some(position), SMALL_PAGE).await;
            let page = self.within(PAGE_WITHIN, read).await?;
            let end = page.cursor.unwrap_or_default().after;
            // The source has reported `position`. If it shows less, its state is older.
            if page.at_end && end < position {
                return Err(MoveError::Refused(format!(
                    "the node of shard {} shows its journal up to position {end} only, and position {position} was reported before. It may \
                     stand in front of an older database: look at `shardctl doctor`",
                    self.row.peer
                )));
            }
            self.write_page(page, Some(position)).await?;
        }
        Ok(())
    }

    /// The source gives the slots away, and this shard takes them. If the source has given them away already, it says so again.
    async fn cut_over(&mut self, verified_position: i64) -> Result<Step, MoveError> {
        let sessions = self.moves.sessions().await?;
        // Copy as much as possible before the pause.
        let begun = Instant::now();
        let page = self.within(PAGE_WITHIN, async |driver| driver.read_page(None, SMALL_PAGE).await).await?;
        self.write_page(page, None).await?;
        if let Some(why) = self.too_long(begun.elapsed()) {
            return self.wait_because(why).await;
        }
        let request = wire::ReleaseMoveRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            verified_position,
            max_locked_ms: self.wishes.max_pause_ms / 2,
            after: self.progress.after,
        };
        let answer = self.within(RELEASE_WITHIN, async |driver| {
            let answer = driver.source().await?.release(request).await;
            driver.answered(answer)
        });
        let released = match answer.await {
            Err(MoveError::TooLong(why)) => return self.wait_because(why).await,
            answer => answer?,
        };
        self.too_long = 0;
        let begun = Instant::now();
        self.released = true;
        self.progress.last_position = released.last_position;
        self.progress.released_at_us = self.moves.now_us();
        self.progress.source_locked_us = released.locked_us;
        self.progress.assets = released.assets.iter().map(AssetSum::from).collect();
        if let Some(rows) = released.rows.filter(|_| self.progress.after < released.last_position) {
            let cursor = Some(wire::MoveCursor { part: self.progress.part, after: released.last_position });
            let page = wire::ReadMoveBookingsResponse { rows, cursor, ..Default::default() };
            self.write_page(page, None).await?;
        }
        self.follow_to(released.last_position).await?;
        if released.scales != self.scales {
            self.moves.connection().await?.insert_scales(&released.scales).await?;
        }
        let incoming = self.incoming.clone().ok_or(MoveError::Superseded)?;
        let ours: Vec<AssetSum> = incoming.sums.assets().iter().map(AssetSum::from).collect();
        if ours != self.progress.assets {
            let shown = |sums: &[AssetSum]| {
                let each =
                    sums.iter().map(|sum| format!("{} {} (in-transit shares {})", sum.posted, sum.asset, sum.shares));
                each.collect::<Vec<_>>().join(", ")
            };
            let what = format!(
                "shard {} has released the slots, but the sums differ. Here: {}. There: {}. No shard serves the slots until the sums agree",
                self.row.peer,
                shown(&ours),
                shown(&self.progress.assets)
            );
            return Err(MoveError::Differs(what));
        }
        let taken = self.moves.take(sessions, &self.row, &self.progress, &incoming).await?;
        let text = progress::write(&taken);
        self.written(Phase::Taken, taken, text);
        let since_answer = i64::try_from(begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.progress.pause_us = released.paused_us.saturating_add(since_answer);
        durable(DurableStep::RecordPause, self.save()).await?;
        tracing::info!(move_id = %self.row.id, from = self.row.peer, pause_ms = self.progress.pause_us / 1000, "slots taken");
        Ok(Step::Again)
    }

    /// Bounds a call to the source while the slots may be between the shards. A call that is repeated does no harm.
    async fn within<T>(
        &mut self,
        patience: Duration,
        call: impl AsyncFnOnce(&mut Self) -> Result<T, MoveError>,
    ) -> Result<T, MoveError> {
        match tokio::time::timeout(patience, call(self)).await {
            Ok(answer) => answer,
            Err(_) => {
                let reason = format!("no answer within {} s", patience.as_secs());
                Err(MoveError::Unreachable { shard: self.row.peer.clone(), reason })
            }
        }
    }

    /// Waits before a cut-over that would have taken too long is tried again, longer each time.
    async fn wait_because(&mut self, why: String) -> Result<Step, MoveError> {
        self.progress.blocked_by = Some(why);
        self.save().await?;
        let pause = TOO_LONG_AGAIN * 2_u32.saturating_pow(self.too_long).min(LONGEST_FACTOR);
        self.too_long += 1;
        Ok(Step::Wait(pause))
    }

    /// Compares both sides if an operator has asked for it since the last time.
    async fn verify_if_asked(&mut self) -> Result<Step, MoveError> {
        let asked = self.wishes.verifications_asked;
        if self.progress.verifications_done >= asked {
            return Ok(Step::Wait(TAIL));
        }
        match self.verify().await {
            Ok(position) => {
                self.progress.verified_position = position;
                (self.progress.difference, self.progress.blocked_by) = (None, None);
            }
            Err(MoveError::Differs(what)) => {
                (self.progress.difference, self.progress.blocked_by) = (Some(what.clone()), Some(what));
            }
            Err(error) => return Err(error),
        }
        self.progress.verifications_done = asked;
        self.save().await?;
        Ok(Step::Wait(TAIL))
    }

    /// Why there must be no cut-over now: it would pause the slots for longer than allowed. `round` is the time of the last fetch. The
    /// release, the fetch after it and the take each take about as long as `round`.
    fn too_long(&self, round: Duration) -> Option<String> {
        let (about, most) = (round * 3, Duration::from_millis(self.wishes.max_pause_ms));
        let is_too_long = !self.released && !most.is_zero() && about > most;
        let (about, most) = (about.as_millis(), most.as_millis());
        is_too_long.then(|| {
            format!(
                "the cut-over would pause the slots for about {about} ms, and --max-pause allows {most} ms. The driver tries again. If this \
                 repeats, lower the load, or abort the move, and make and apply a new plan with a larger --max-pause"
            )
        })
    }

    /// After the cut-over: tells every shard the new map, and has the source clean up when an operator wants it.
    pub(super) async fn finish(&mut self) -> Result<Step, MoveError> {
        if self.progress.published_map == 0 {
            self.progress.published_map = self.moves.publish(&self.row).await?;
            self.progress.blocked_by = None;
            durable(DurableStep::RecordMap, self.save()).await?;
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
        durable(DurableStep::Finish, self.advance(Phase::Finished)).await?;
        Ok(Step::Done)
    }
}

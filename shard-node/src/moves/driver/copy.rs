//! The copy: bookings up to the source's folded position, rows of accounts, and the small tables.

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Step, TAIL};
use crate::{
    durable::{DurableStep, durable},
    moves::{
        MoveError,
        phase::Phase,
        progress::{self, Progress, SourceProgress},
        scope::{OWN_PART, PARTS},
    },
    store::moves::{MoveConnection, MoveStore, PageWrite},
};

/// Rows of accounts in a page, at most. Each of them is relevant, and may have metadata of full length.
const LARGEST_ACCOUNT_PAGE: u32 = 5_000;

impl<S: MoveStore> Driver<S> {
    /// Copies a page: of bookings up to the source's folded position, then of accounts, then the small tables.
    pub(super) async fn copy(&mut self) -> Result<Step, MoveError> {
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
            None => self.read_page(until, self.page_size()).await?,
        };
        let (at_end, bytes) = (page.at_end, page.rows.len());
        if at_end {
            self.write_page(page, until).await?;
            self.progress.part += 1;
            self.progress.after = 0;
            self.save().await?;
            return Ok(Step::Again);
        }
        let request = self.page_request(page.cursor.unwrap_or_default().after, until, self.page_size());
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
        let row = connection.get(reverses).await?.ok_or(MoveError::Superseded)?;
        let kept: SourceProgress = progress::read(&row.progress)?;
        let folded = connection.folded_position().await?;
        drop(connection);
        self.progress.after = self.progress.after.max(kept.reversed_to);
        // Rows that the fold has not written yet would be older than the bookings that come.
        if folded <= kept.last_position {
            self.moves.0.lane.want_fold();
            return Ok(Step::Wait(TAIL));
        }
        self.progress.copied_at_us = self.moves.now_us();
        durable(DurableStep::SkipCopy, self.advance(Phase::CatchingUp)).await?;
        Ok(Step::Again)
    }

    pub(super) async fn read_page(
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
    pub(super) async fn write_page(
        &mut self,
        page: wire::ReadMoveBookingsResponse,
        until: Option<i64>,
    ) -> Result<(), MoveError> {
        let cursor = page.cursor.unwrap_or_default();
        // The source reports where the part ends. A bounded read ends at `until`.
        let to = until.filter(|_| page.at_end).map_or(cursor.after, |until| until.max(cursor.after));
        let (after, is_catching_up) = (self.progress.after, self.row.phase == Phase::CatchingUp);
        let has_rows = S::rows_in(&page.rows)
            .map(|rows| rows > 0)
            .ok_or_else(|| MoveError::Refused("the source has sent a page of bookings that ends early".to_owned()))?;
        if !has_rows && after == to {
            return Ok(());
        }
        let mut progress = Progress { after: to, blocked_by: None, ..self.progress.clone() };
        if !has_rows && self.released {
            // The take stores the progress. If it does not come to that, the page is read again.
            if let Some(incoming) = &mut self.incoming {
                incoming.reach(to, &mut progress);
            }
            self.progress = progress;
            return Ok(());
        }
        let mut connection = self.moves.connection().await?;
        let incoming = match &mut self.incoming {
            Some(incoming) if is_catching_up => Some(incoming),
            None if is_catching_up => return Err(MoveError::Superseded),
            _ => None,
        };
        let page = PageWrite {
            row: &self.row,
            rows: has_rows.then_some(page.rows),
            after,
            to,
            progress,
            incoming,
            // No shard serves released slots. The commit of the take makes this commit durable, too, because the log is written in order.
            is_last: self.released,
        };
        let (progress, text) = connection.write_page(page).await?;
        self.written(self.row.phase, progress, text);
        Ok(())
    }

    async fn copy_accounts(&mut self) -> Result<Step, MoveError> {
        let request = wire::ReadMoveAccountsRequest {
            r#move: self.id(),
            driver_epoch: self.row.driver_epoch,
            after: self.progress.after_account.clone(),
            limit: self.page_size().min(LARGEST_ACCOUNT_PAGE),
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
        let written = |came| {
            progress.accounts += came;
            progress::write(&progress)
        };
        let text = connection.write_accounts(&self.row, page.rows, written).await?;
        self.written(self.row.phase, progress, text);
        Ok(self.pause_after_page(begun.elapsed(), bytes))
    }

    async fn copy_small_tables(&mut self) -> Result<(), MoveError> {
        let request = wire::ReadMoveSmallTablesRequest { r#move: self.id(), driver_epoch: self.row.driver_epoch };
        let answer = self.source().await?.read_small_tables(request).await;
        let small_tables = self.answered(answer)?;
        let progress = Progress {
            holds_at: small_tables.holds_at,
            sagas_at: small_tables.folded_position,
            part: OWN_PART,
            after: self.progress.folded_position,
            copied_at_us: self.moves.now_us(),
            ..self.progress.clone()
        };
        let text = progress::write(&progress);
        let change = self.change(Phase::CatchingUp, &text);
        self.moves.connection().await?.write_small_tables(small_tables, change).await?;
        self.written(Phase::CatchingUp, progress, text);
        Ok(())
    }

    pub(super) fn pause_after_page(&mut self, page: Duration, bytes: usize) -> Step {
        self.throttle.page_took(page);
        let reason = if self.is_unthrottled() { String::new() } else { self.throttle.reason(self.wishes.rate) };
        self.moves.note(self.row.id, |activity| activity.throttle_reason = reason);
        if self.is_unthrottled() {
            return Step::Again;
        }
        Step::Wait(self.throttle.rest(page, bytes, self.wishes.rate))
    }
}

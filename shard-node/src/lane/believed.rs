//! What the lane believes of its shard: how it gets to know the shard's state, and how it catches up with other writers.

use std::sync::Arc;

use identity::Marks;
use ledger::{AccountId, Booking, BookingKind, Position, batch::Effects};
use shard_database::ShardState;
use tokio::time::Instant;

use super::{Lane, Link, decide::Decided, load, mark_of};
use crate::store::{Opened, Store, StoreError, ownership::Ownership};

/// Bookings read at once while the lane catches up. A page fits into the buffers of the connection, so that PostgreSQL can send it while the
/// node is busy with the page before it. In unit tests of the lane, a few bookings are several pages.
const CATCH_UP_PAGE: i64 = if cfg!(test) { 3 } else { 5_000 };

impl<S: Store> Lane<S> {
    /// Checks that a batch can be attempted: the shard's state is known, and the database takes writes.
    pub(super) async fn able_to_write(&mut self) -> Result<(), StoreError> {
        let able = self.prepare_to_write().await;
        self.is_able = able.is_ok();
        if let Err(error) = &able
            && !matches!(error, StoreError::Refused(_))
        {
            self.disconnect().await;
        }
        able
    }

    /// Reads what the shard's active node has committed since the last look, and writes nothing. The session that writes is closed: other
    /// nodes take it for the sign of an active node.
    pub(super) async fn able_to_follow(&mut self) -> Result<(), StoreError> {
        // The first batch after this looks again before it is decided.
        self.is_able = false;
        let followed = self.prepare_to_follow().await;
        if let Err(error) = &followed
            && !matches!(error, StoreError::Refused(_))
        {
            self.disconnect().await;
        }
        followed
    }

    async fn prepare_to_follow(&mut self) -> Result<(), StoreError> {
        if let Some(why) = self.tail.damaged() {
            return Err(StoreError::Corrupt(why));
        }
        if self.link.is_some() && !self.store.is_current() {
            self.disconnect().await;
        }
        self.store.close_writer().await;
        self.refresh().await?;
        self.accounts.evict(self.tail.folded_batch());
        self.shared.set_cached(self.accounts.len());
        Ok(())
    }

    async fn prepare_to_write(&mut self) -> Result<(), StoreError> {
        if let Some(why) = self.tail.damaged() {
            return Err(StoreError::Corrupt(why));
        }
        if self.link.is_some() && !self.store.is_current() {
            self.disconnect().await;
        }
        // While the database takes no writes, another node may write: reads go on and need what that node appends.
        if self.link.is_none() || !self.is_able || self.tail.is_outdated() {
            self.refresh().await?;
        }
        if self.store.open_writer().await? {
            self.needs_own_booking = true;
        }
        // Without the second case, an idle shard would not learn which of the bookings that it found were acknowledged.
        if self.unwritable.is_some() || (self.is_unproven && self.gate.needs_commit_as_proof()) {
            let marker = self.marker()?;
            self.write(marker, |_, _, _| {}).await.map_err(|failure| failure.error)?;
            self.unwritable = None;
        }
        Ok(())
    }

    /// A batch of one booking that books nothing.
    fn marker(&mut self) -> Result<Decided, StoreError> {
        let from = self.link.as_ref().ok_or(StoreError::NotOpen)?.state;
        let mut effects = Effects { next_position: Position(from.next_position), ..Effects::default() };
        self.now_us = self.now_us.max(self.clock.now_us());
        effects.add_marker(self.now_us);
        let number = self.accounts.batch();
        let (changed, undo) = self.accounts.finish_batch();
        let (group, outcomes, marks, scales, begun) =
            (Vec::new(), Vec::new(), Marks::default(), Vec::new(), Instant::now());
        let (suspects, decided) = (0, begun);
        Ok(Decided { group, outcomes, from, effects, suspects, changed, undo, number, marks, scales, begun, decided })
    }

    /// Drops the sessions. What is in memory stays, and is brought up to date when there are new sessions.
    pub(super) async fn disconnect(&mut self) {
        self.link = None;
        self.store.close().await;
    }

    /// Reads the shard's state, and what was appended since it was last known.
    pub(super) async fn refresh(&mut self) -> Result<(), StoreError> {
        self.link = None;
        let look = self.gate.begin_look();
        let Opened { state, timeline, folded, ownership, scales, is_new } = self.store.open().await?;
        let end = Position(state.next_position - 1);
        if is_new {
            self.needs_own_booking = true;
            // A shard without a booking has nothing to confirm, and stays new.
            self.is_unproven = end >= Position::first_of(end.shard_number());
        }
        let continues = |(believed, believed_timeline): &(ShardState, i64)| {
            believed.incarnation == state.incarnation
                && *believed_timeline == timeline
                && believed.next_position <= state.next_position
        };
        // A server that lacks a fold which another one had, after a failover for example, has older rows.
        let is_behind = self.tail.is_outdated() || folded < self.tail.folded_position();
        // Bookings up to the folded position are in the rows. They may have moved away since, if slots have changed hands.
        let is_ahead = |(believed, _): &(ShardState, i64)| {
            believed.next_position > folded.0 || believed.ownership_version == state.ownership_version
        };
        let known = self.believed.filter(continues).filter(|_| !is_behind).filter(is_ahead);
        let known = match known {
            Some((believed, _)) => {
                self.take_over_slots(&ownership).await?;
                Position(believed.next_position - 1)
            }
            None => {
                // Until the tail is loaded again, nothing in memory is believed.
                self.believed = None;
                self.accounts.forget_all();
                let folded = self.store.folded().await?;
                let position = folded.position;
                self.tail.reset(folded, state.incarnation, timeline, self.accounts.batch())?;
                position
            }
        };
        self.role.set_behind(end.0.saturating_sub(known.0));
        self.catch_up(known, end, &state, timeline).await?;
        self.role.set_behind(0);
        // Read after the state, the fold may be beyond it; the next look takes it in then.
        self.tail.advance(folded);
        // A saga whose payer has moved away goes on at the new owner.
        self.tail.retain_sagas(|payer| ownership.owns(payer));
        self.ownership = Some(Arc::clone(&ownership));
        self.believed = Some((state, timeline));
        self.shared.set_ownership(&state, &ownership);
        self.shared.set_scales(&scales);
        // If the monitor has accepted another server meanwhile, the mark may be that of the former one.
        let _ = self.gate.end_look(look, mark_of(&state, timeline));
        self.link = Some(Link { state, ahead: state, timeline, ownership, scales });
        Ok(())
    }

    /// Adapts memory to slots that have come from another shard: what was remembered of their accounts is older, and their
    /// sagas are this shard's now.
    async fn take_over_slots(&mut self, ownership: &Arc<Ownership>) -> Result<(), StoreError> {
        let Some(before) = self.ownership.as_ref().filter(|before| !Arc::ptr_eq(before, ownership)) else {
            return Ok(());
        };
        let gained = ownership.gained_since(before);
        if gained.is_empty() {
            return Ok(());
        }
        let sagas = self.store.sagas_of(&gained).await?;
        self.accounts.forget(|account| ownership.has_gained_account(account, before));
        self.tail.rows_were_read();
        self.tail.add_sagas(sagas)?;
        // A catch-up that fails after this must not forget again: by then the accounts may have bookings that are not folded.
        self.ownership = Some(Arc::clone(ownership));
        Ok(())
    }

    /// Applies the bookings between two positions to the accounts and the tail. PostgreSQL produces a page while the page before it is applied.
    async fn catch_up(
        &mut self,
        mut known: Position,
        end: Position,
        state: &ShardState,
        timeline: i64,
    ) -> Result<(), StoreError> {
        if known >= end {
            return Ok(());
        }
        let store = Arc::clone(&self.store);
        let mut page = store.bookings_after(known, CATCH_UP_PAGE).await?;
        loop {
            // Later ones are not part of the state that was read.
            page.truncate(page.partition_point(|booking| booking.position <= end));
            let Some(last) = page.last().map(|booking| booking.position) else {
                let what = format!("the journal ends at position {} instead of {}", known.0, end.0);
                return Err(StoreError::Corrupt(what));
            };
            self.learn_accounts_of(&page).await?;
            let is_last = last >= end;
            let next =
                async { if is_last { Ok(Vec::new()) } else { store.bookings_after(last, CATCH_UP_PAGE).await } };
            // `next` is polled first, so that its statement is under way when the page is applied.
            let (next, applied) = tokio::join!(biased; next, async { self.append(&page) });
            applied?;
            known = last;
            self.role.set_behind(end.0.saturating_sub(known.0));
            self.believed = Some((ShardState { next_position: known.next().0, ..*state }, timeline));
            if is_last {
                return Ok(());
            }
            page = next?;
        }
    }

    /// Loads the accounts of these bookings that are not in memory.
    async fn learn_accounts_of(&mut self, bookings: &[Booking]) -> Result<(), StoreError> {
        let mut missing: Vec<AccountId> = Vec::new();
        for booking in bookings {
            missing.extend(booking.legs().map(|(_, id, _)| id).filter(|id| !self.accounts.is_known(id)).cloned());
            if booking.kind.in_transit() != 0 {
                missing.push(AccountId::in_transit(booking.asset));
            }
        }
        missing.retain(|id| !self.accounts.is_known(id));
        load::learn(&*self.store, &mut self.accounts, missing).await
    }

    /// Applies bookings that follow what is known.
    fn append(&mut self, bookings: &[Booking]) -> Result<(), StoreError> {
        for booking in bookings {
            // Times of accounts that came with a move must not be in this lane's future.
            if booking.kind == BookingKind::MovedIn {
                self.now_us = self.now_us.max(booking.at_us);
            }
            self.recent_ids.remember(booking);
            if let Err(error) = self.accounts.apply(booking) {
                self.accounts.abandon_batch();
                return Err(error.into());
            }
        }
        let number = self.accounts.batch();
        let (changed, _) = self.accounts.finish_batch();
        self.tail.rows_were_read();
        self.tail.follow(bookings, changed, number);
        self.needs_own_booking = true;
        Ok(())
    }
}

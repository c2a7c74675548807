//! The store of moves that serves: a pool of connections for moves alone, because a copy must not take the connections of reads.

use bytes::Bytes;
use shard_map::SlotRange;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres, pool::PoolConnection};
use uuid::Uuid;

use super::{
    AccountsPage, Advance, Begin, BookingsPage, CleanUp, Compared, Estimates, MoveConnection, MoveRow, MoveStore,
    PageWrite, Standing, Undo, arrivals, hand_over::Sessions, load, tables,
};
use crate::{
    durable::{DurableStep, durable},
    gate::Gate,
    hosts::Hosts,
    moves::{
        error::MoveError,
        phase::Phase,
        progress::{Progress, SourceProgress},
        scope::Part,
        sums::{JournalSums, Summed, Verified},
    },
    role::NodeRole,
    store::{ownership::as_multirange, session, session::column},
};

/// The PostgreSQL database of the shard.
pub struct MovePool {
    hosts: Hosts,
    gate: Gate,
    role: NodeRole,
    pool: PgPool,
}

impl MovePool {
    pub fn new(hosts: Hosts, gate: Gate, role: NodeRole) -> Self {
        let pool = session::move_pool(&hosts, &gate);
        Self { hosts, gate, role, pool }
    }
}

impl MoveStore for MovePool {
    type Connection = Connection;
    type HandOver = Sessions;

    async fn connection(&self) -> Result<Connection, MoveError> {
        Ok(Connection(self.pool.acquire().await?))
    }

    async fn hand_over(&self) -> Result<Sessions, MoveError> {
        Ok(Sessions::open(&self.hosts, &self.gate, &self.role).await?)
    }

    fn rows_in(page: &Bytes) -> Option<u64> {
        if page.is_empty() { Some(0) } else { pg_session::last_row(page).map(|(rows, _)| rows) }
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// One of the pool's connections.
pub struct Connection(PoolConnection<Postgres>);

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

impl MoveConnection for Connection {
    async fn list(&mut self) -> Result<Vec<MoveRow>, MoveError> {
        Ok(tables::list(&mut self.0).await?)
    }

    async fn get(&mut self, id: Uuid) -> Result<Option<MoveRow>, MoveError> {
        Ok(tables::get(&mut self.0, id).await?)
    }

    async fn claim(&mut self, id: Uuid, now_us: i64) -> Result<Option<MoveRow>, MoveError> {
        Ok(tables::claim(&mut self.0, id, now_us).await?)
    }

    async fn touch(&mut self, id: Uuid, driver_epoch: i64, now_us: i64) -> Result<(), MoveError> {
        Ok(tables::touch(&mut self.0, id, driver_epoch, now_us).await?)
    }

    async fn set_wishes(&mut self, id: Uuid, wishes: &str) -> Result<(), MoveError> {
        Ok(tables::set_wishes(&mut self.0, id, wishes).await?)
    }

    async fn change_wishes(
        &mut self,
        id: Uuid,
        judge: impl FnOnce(Option<&MoveRow>) -> Result<String, MoveError> + Send,
    ) -> Result<(), MoveError> {
        let mut transaction = self.0.begin().await?;
        tables::lock(&mut transaction).await?;
        let row = tables::get(&mut transaction, id).await?;
        let wishes = judge(row.as_ref())?;
        tables::set_wishes(&mut transaction, id, &wishes).await?;
        Ok(transaction.commit().await?)
    }

    async fn advance(&mut self, change: Advance<'_>) -> Result<(), MoveError> {
        Ok(tables::advance(&mut self.0, change).await?)
    }

    async fn start(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> Result<(), MoveError> {
        let mut transaction = self.0.begin().await?;
        tables::lock(&mut transaction).await?;
        match judge(&standing(&mut transaction, slots).await?)? {
            Begin::Insert(row) => tables::insert(&mut transaction, &row).await?,
            Begin::Drive(id, driver_epoch) => tables::set_epoch(&mut transaction, id, driver_epoch).await?,
            Begin::Nothing => return Ok(()),
        }
        Ok(durable(DurableStep::Start, transaction.commit()).await?)
    }

    async fn join(
        &mut self,
        slots: &[SlotRange],
        judge: impl FnOnce(&Standing) -> Result<Begin, MoveError> + Send,
    ) -> Result<Estimates, MoveError> {
        const OWNED: &str = "SELECT count(*) FROM shardledger.slot_ownership WHERE state = 1";
        const ROWS: &str =
            "SELECT greatest(reltuples, 0)::int8 AS estimate FROM pg_catalog.pg_class WHERE oid = $1::text::regclass";
        let mut transaction = self.0.begin().await?;
        tables::lock(&mut transaction).await?;
        match judge(&standing(&mut transaction, slots).await?)? {
            Begin::Insert(row) => tables::insert(&mut transaction, &row).await?,
            Begin::Drive(id, driver_epoch) => tables::set_epoch(&mut transaction, id, driver_epoch).await?,
            Begin::Nothing => {}
        }
        let folded_position = tables::folded_position(&mut transaction).await?;
        let owned: i64 = sqlx::query_scalar(OWNED).fetch_one(&mut *transaction).await?;
        let accounts = sqlx::query_scalar(ROWS).bind("shardledger.account").fetch_one(&mut *transaction).await?;
        let bookings = sqlx::query_scalar(ROWS).bind("shardledger.journal").fetch_one(&mut *transaction).await?;
        durable(DurableStep::Join, transaction.commit()).await?;
        Ok(Estimates { folded_position, owned, accounts, bookings })
    }

    async fn announce(&mut self, change: Advance<'_>, epoch: i64) -> Result<(), MoveError> {
        const ANNOUNCE: &str = "INSERT INTO shardledger.slot_ownership AS o (slot, state, epoch, peer) \
             SELECT slot, 3, $2, $3 FROM unnest((SELECT $1::text::int4multirange)) AS r, generate_series(lower(r), upper(r) - 1) AS slot \
             ON CONFLICT (slot) DO UPDATE SET state = 3, epoch = excluded.epoch, peer = excluded.peer WHERE o.state = 2";
        let mut transaction = self.0.begin().await?;
        tables::lock_out_lane(&mut transaction).await?;
        sqlx::query(ANNOUNCE)
            .bind(as_multirange(&change.row.slots))
            .bind(epoch)
            .bind(&change.row.peer)
            .execute(&mut *transaction)
            .await?;
        tables::count_ownership_change(&mut transaction).await?;
        tables::advance(&mut transaction, change).await?;
        Ok(durable(DurableStep::Announce, transaction.commit()).await?)
    }

    // === reads at the source ===

    async fn folded_position(&mut self) -> Result<i64, MoveError> {
        Ok(tables::folded_position(&mut self.0).await?)
    }

    async fn read_bookings(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        limit: i64,
    ) -> Result<BookingsPage, MoveError> {
        let (to, at_end) = match tables::page_end(&mut self.0, part, limit).await? {
            Some(end) => (end, false),
            // What is appended after this look belongs to the next page.
            None => (tables::highest(&mut self.0, part).await?.unwrap_or(part.after), true),
        };
        let rows = if to > part.after {
            tables::copy_bookings_out(&mut self.0, slots, part.after, to).await?
        } else {
            Bytes::new()
        };
        Ok(BookingsPage { rows, to, at_end })
    }

    async fn highest(&mut self, part: Part) -> Result<Option<i64>, MoveError> {
        Ok(tables::highest(&mut self.0, part).await?)
    }

    async fn read_accounts(
        &mut self,
        slots: &[SlotRange],
        after: &str,
        limit: u32,
    ) -> Result<AccountsPage, MoveError> {
        let rows = tables::copy_accounts_out(&mut self.0, slots, after, limit).await?;
        let (count, last) = pg_session::last_row(&rows)
            .ok_or_else(|| MoveError::Refused("the database sent a page of accounts that ends early".to_owned()))?;
        let last = String::from_utf8_lossy(last).into_owned();
        Ok(AccountsPage { rows, count, last })
    }

    async fn read_small_tables(
        &mut self,
        slots: &[SlotRange],
        own: Part,
    ) -> Result<wire::ReadMoveSmallTablesResponse, MoveError> {
        const SAGAS: &str = "SELECT s.position FROM shardledger.saga s JOIN shardledger.journal j ON j.position = s.position \
             WHERE j.payer_slot::int4 <@ (SELECT $1::text::int4multirange)";
        // The transaction ends with the call, however the call ends.
        let mut snapshot = self.0.begin_with(SNAPSHOT).await?;
        let folded_position = tables::folded_position(&mut snapshot).await?;
        let holds_at = tables::highest(&mut snapshot, own).await?.unwrap_or(own.after);
        let holds = tables::copy_holds_out(&mut snapshot, slots).await?;
        let sagas = sqlx::query_scalar(SAGAS).bind(as_multirange(slots)).fetch_all(&mut *snapshot).await?;
        let scales = tables::scales(&mut snapshot).await?;
        snapshot.commit().await?;
        Ok(wire::ReadMoveSmallTablesResponse { holds, holds_at, sagas, folded_position, scales })
    }

    async fn sum_up(
        &mut self,
        slots: &[SlotRange],
        number: u16,
        before: Option<Verified>,
        slot: Option<u32>,
    ) -> Result<Summed, MoveError> {
        let mut snapshot = self.0.begin_with(SNAPSHOT).await?;
        let summed = sum_up_in_snapshot(&mut snapshot, slots, number, before, slot).await?;
        snapshot.commit().await?;
        Ok(summed)
    }

    async fn scales(&mut self) -> Result<Vec<wire::AssetScale>, MoveError> {
        Ok(tables::scales(&mut self.0).await?)
    }

    async fn load(&mut self) -> Result<wire::LoadResponse, MoveError> {
        load::load(&mut self.0).await
    }

    // === writes and reads at the target ===

    async fn write_page(&mut self, page: PageWrite<'_>) -> Result<(Progress, String), MoveError> {
        let PageWrite { row, rows, after, to, mut progress, mut incoming, is_last } = page;
        let begin = if is_last { tables::BEGIN_LAST_PAGE } else { tables::BEGIN_PAGE };
        let mut transaction = self.0.begin_with(begin).await?;
        if let Some(rows) = rows {
            progress.bytes += rows.len() as u64;
            let came = tables::copy_bookings_in(&mut transaction, rows).await?;
            progress.bookings += came;
            if came > 0 {
                tables::insert_waypoints(&mut transaction, &row.slots, after, to).await?;
                tables::apply_erasures(&mut transaction, after, to).await?;
                if let Some(incoming) = &mut incoming {
                    let bookings = tables::bookings(&mut transaction, &row.slots, after, to).await?;
                    arrivals::apply(&mut transaction, incoming, &progress, &bookings).await?;
                }
            }
        }
        let step = match incoming {
            Some(incoming) => {
                incoming.reach(to, &mut progress);
                DurableStep::FollowBookings
            }
            None => DurableStep::CopyBookings,
        };
        let text = crate::moves::progress::write(&progress);
        tables::advance(&mut transaction, Advance { row, to: row.phase, progress: &text }).await?;
        durable(step, transaction.commit()).await?;
        Ok((progress, text))
    }

    async fn write_accounts(
        &mut self,
        row: &MoveRow,
        rows: Bytes,
        written: impl FnOnce(u64) -> String + Send,
    ) -> Result<String, MoveError> {
        let mut transaction = self.0.begin().await?;
        let text = written(tables::copy_accounts_in(&mut transaction, rows).await?);
        tables::advance(&mut transaction, Advance { row, to: row.phase, progress: &text }).await?;
        durable(DurableStep::CopyAccounts, transaction.commit()).await?;
        Ok(text)
    }

    async fn write_small_tables(
        &mut self,
        wire::ReadMoveSmallTablesResponse { holds, sagas, scales, .. }: wire::ReadMoveSmallTablesResponse,
        change: Advance<'_>,
    ) -> Result<(), MoveError> {
        let mut transaction = self.0.begin().await?;
        tables::copy_holds_in(&mut transaction, holds).await?;
        arrivals::insert_sagas(&mut transaction, &sagas).await?;
        arrivals::insert_scales(&mut transaction, &scales).await?;
        tables::advance(&mut transaction, change).await?;
        Ok(durable(DurableStep::CopySmallTables, transaction.commit()).await?)
    }

    async fn insert_scales(&mut self, scales: &[wire::AssetScale]) -> Result<(), MoveError> {
        arrivals::insert_scales(&mut self.0, scales).await
    }

    async fn newest_account_us(&mut self, slots: &[SlotRange]) -> Result<i64, MoveError> {
        const NEWEST: &str = "SELECT coalesce(max(updated_at_us), 0) FROM shardledger.account WHERE slot <@ (SELECT $1::text::int4multirange)";
        Ok(sqlx::query_scalar(NEWEST).bind(as_multirange(slots)).fetch_one(&mut *self.0).await?)
    }

    async fn compare_sums(
        &mut self,
        slots: &[SlotRange],
        own: Part,
        (after, to): (i64, i64),
    ) -> Result<Compared, MoveError> {
        let sums = tables::slot_sums(&mut self.0, slots, own).await?;
        let (bookings, _) = tables::bookings_digest(&mut self.0, slots, after, to).await?;
        let holds = tables::holds_sum(&mut self.0, slots).await?;
        Ok(Compared { slots: sums, bookings, holds })
    }

    async fn end_abort(&mut self, change: Advance<'_>, undo: Undo) -> Result<(), MoveError> {
        const FORGET: &str =
            "DELETE FROM shardledger.slot_ownership WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 3";
        const GIVE_BACK: &str = "UPDATE shardledger.slot_ownership SET state = 2, epoch = epoch - 1, peer = $2 \
             WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 3";
        let slots = as_multirange(&change.row.slots);
        let mut transaction = self.0.begin().await?;
        tables::lock_out_lane(&mut transaction).await?;
        match undo {
            Undo::Nothing => {}
            Undo::Forget => {
                sqlx::query(FORGET).bind(slots).execute(&mut *transaction).await?;
            }
            Undo::GiveBack { reverses, reached } => {
                sqlx::query(GIVE_BACK).bind(slots).bind(&change.row.peer).execute(&mut *transaction).await?;
                let row = tables::get(&mut transaction, reverses).await?.ok_or(MoveError::Superseded)?;
                let kept = SourceProgress::reached_by_reversal(&row.progress, reached)?;
                tables::advance(&mut transaction, Advance { row: &row, to: row.phase, progress: &kept }).await?;
            }
        }
        tables::count_ownership_change(&mut transaction).await?;
        tables::advance(&mut transaction, change).await?;
        Ok(durable(DurableStep::EndAbort, transaction.commit()).await?)
    }

    // === clean-up, at either shard ===

    async fn page_end(&mut self, after: i64, rows: i64) -> Result<Option<i64>, MoveError> {
        Ok(tables::page_end(&mut self.0, Part { after, last: i64::MAX }, rows).await?)
    }

    async fn delete_projections(&mut self, clean_up: CleanUp<'_>) -> Result<(), MoveError> {
        Ok(clean_up.delete_projections(&mut self.0).await?)
    }

    async fn delete_lone_rows(&mut self, clean_up: CleanUp<'_>) -> Result<(), MoveError> {
        Ok(clean_up.delete_lone_rows(&mut self.0).await?)
    }

    async fn delete_bookings(
        &mut self,
        clean_up: CleanUp<'_>,
        range: (i64, i64),
        deleted: impl FnOnce(u64) -> (Phase, String) + Send,
    ) -> Result<(Phase, String), MoveError> {
        Ok(clean_up.delete_bookings(&mut self.0, range, deleted).await?)
    }
}

/// What is known when a move begins, in a transaction that holds [`tables::lock`].
async fn standing(connection: &mut PgConnection, slots: &[SlotRange]) -> Result<Standing, MoveError> {
    const OWNED: &str = "SELECT count(*) AS owned, coalesce(max(epoch), 0) AS epoch FROM shardledger.slot_ownership \
         WHERE slot <@ (SELECT $1::text::int4multirange) AND state = 1";
    let owned = sqlx::query(OWNED).bind(as_multirange(slots)).fetch_one(&mut *connection).await?;
    let (owned, epoch) = (column(&owned, "owned")?, column(&owned, "epoch")?);
    Ok(Standing { rows: tables::list(connection).await?, owned, epoch })
}

async fn sum_up_in_snapshot(
    connection: &mut PgConnection,
    slots: &[SlotRange],
    number: u16,
    before: Option<Verified>,
    slot: Option<u32>,
) -> Result<Summed, MoveError> {
    let own = Part::own(number);
    let position = tables::highest(connection, own).await?.unwrap_or(own.after);
    let (mut sums, ranges) = JournalSums::to_complete(before, number, position);
    for (after, to) in ranges {
        let (bookings, shares) = tables::bookings_digest(connection, slots, after, to).await?;
        sums.add(&bookings, shares);
    }
    let slot_sums = tables::slot_sums(connection, slots, own).await?;
    let accounts = match slot.and_then(|slot| shard_map::Slot::try_from(slot).ok()) {
        Some(slot) => match SlotRange::new(slot, slot) {
            Ok(slot) => tables::account_states(connection, slot, own).await?,
            Err(_) => Vec::new(),
        },
        None => Vec::new(),
    };
    let holds = tables::holds_sum(connection, slots).await?;
    Ok(Summed::of(position, sums, slot_sums, accounts, holds))
}

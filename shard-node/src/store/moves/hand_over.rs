//! The transactions of a hand-over in PostgreSQL.

use std::collections::HashMap;

use bytes::Bytes;
use ledger::{AccountId, Booking};
use shard_database::{ShardState, record, server::Purpose};
use shard_map::SlotRange;
use uuid::Uuid;

use super::{Advance, HandOver, MoveRow, SlotsChange, tables};
use crate::{
    durable::durable,
    gate::Gate,
    hosts::Hosts,
    moves::{error::MoveError, scope::Part},
    role::NodeRole,
    store::{
        Append, StoreError,
        message::{BEGIN, Message},
        session::{Session, connect_writer},
    },
};

/// The two sessions of a hand-over: one holds the lock and writes, the other reads meanwhile.
pub struct Sessions {
    reader: Session,
    writer: pg_session::Session,
}

impl Sessions {
    pub async fn open(hosts: &Hosts, gate: &Gate, role: &NodeRole) -> Result<Self, StoreError> {
        let (reader, _) = Session::connect(hosts, gate, Purpose::Writes, "shardledger-move").await?;
        let writer = connect_writer(hosts, gate, reader.server(), role.writer()).await?;
        Ok(Self { reader, writer })
    }
}

impl HandOver for Sessions {
    async fn get(&mut self, id: Uuid) -> Result<Option<MoveRow>, MoveError> {
        Ok(self.reader.run(async |c| Ok(tables::get(c, id).await)).await??)
    }

    async fn appended(
        &mut self,
        slots: &[SlotRange],
        part: Part,
        at_once: i64,
    ) -> Result<(Vec<Booking>, i64), MoveError> {
        let read = async |c: &mut sqlx::PgConnection| {
            let to = match tables::page_end(c, part, at_once).await? {
                Some(end) => end,
                None => tables::highest(c, part).await?.unwrap_or(part.after),
            };
            if to == part.after {
                return Ok((Vec::new(), to));
            }
            Ok::<_, StoreError>((tables::bookings(c, slots, part.after, to).await?, to))
        };
        Ok(self.reader.run(async |c| Ok(read(c).await)).await??)
    }

    async fn bookings(&mut self, slots: &[SlotRange], after: i64, to: i64) -> Result<Vec<Booking>, MoveError> {
        Ok(self.reader.run(async |c| Ok(tables::bookings(c, slots, after, to).await)).await??)
    }

    async fn rows(&mut self, slots: &[SlotRange], after: i64, to: i64) -> Result<Bytes, MoveError> {
        Ok(rows(&mut self.reader, slots, after, to).await?)
    }

    async fn posted(&mut self, ids: &[AccountId]) -> Result<HashMap<String, i64>, MoveError> {
        const POSTED: &str = "SELECT id, posted FROM shardledger.account WHERE id = ANY($1)";
        let ids: Vec<&str> = ids.iter().map(AccountId::as_str).collect();
        let rows: Vec<(String, i64)> =
            self.reader.run(async |c| sqlx::query_as(POSTED).bind(&ids).fetch_all(c).await).await?;
        Ok(rows.into_iter().collect())
    }

    async fn scales(&mut self) -> Result<Vec<wire::AssetScale>, MoveError> {
        Ok(scales(&mut self.reader).await?)
    }

    async fn confirm(&mut self, row: &MoveRow) -> Result<(), MoveError> {
        let again = tables::advance_statement(Advance { row, to: row.phase, progress: &row.progress });
        let completed = self.writer.run(&format!("BEGIN; {again}COMMIT"), None).await.map_err(StoreError::from)?;
        Ok(confirmed(&completed)?)
    }

    async fn lock(&mut self) -> Result<ShardState, MoveError> {
        self.writer.run(BEGIN, None).await.map_err(StoreError::from)?;
        let state = self.reader.run(async |c| record::read_state(c).await).await?;
        Ok(state.ok_or_else(|| StoreError::Corrupt("shardledger.shard_state has no row".to_owned()))?)
    }

    async fn commit(&mut self, change: &SlotsChange<'_>) -> Result<(), MoveError> {
        Ok(durable(change.step, commit(&mut self.writer, change)).await?)
    }

    async fn commit_and_read(
        &mut self,
        change: &SlotsChange<'_>,
        bookings: Option<(i64, i64)>,
    ) -> Result<(Option<Bytes>, Vec<wire::AssetScale>), MoveError> {
        let Self { reader, writer } = self;
        let read = async {
            let rows = match bookings {
                Some((after, to)) => rows(reader, change.slots, after, to).await.ok(),
                None => None,
            };
            Ok::<_, StoreError>((rows, scales(reader).await?))
        };
        let (committed, read) = tokio::join!(durable(change.step, commit(writer, change)), read);
        committed?;
        Ok(read?)
    }
}

async fn rows(reader: &mut Session, slots: &[SlotRange], after: i64, to: i64) -> Result<Bytes, StoreError> {
    reader.run(async |c| Ok(tables::copy_bookings_out(c, slots, after, to).await)).await?
}

async fn scales(reader: &mut Session) -> Result<Vec<wire::AssetScale>, StoreError> {
    reader.run(async |c| Ok(tables::scales(c).await)).await?
}

/// Commits the rest of a transaction that holds the lock.
async fn commit(writer: &mut pg_session::Session, change: &SlotsChange<'_>) -> Result<(), StoreError> {
    let mut statements = tables::change_slots_statement(change);
    for advance in &change.advances {
        statements.push_str(&tables::advance_statement(*advance));
    }
    let marks = identity::Marks::default();
    let append = Append { state: change.state, effects: change.effects, marks: &marks, scales: &[] };
    let Message { script, rows } = Message::under_lock(&append, &statements);
    confirmed(&writer.run(&script, rows).await?)
}

/// Whether a transaction was committed, and confirmed by a synchronous stand-by if there is one.
fn confirmed(completed: &pg_session::Completed) -> Result<(), StoreError> {
    if let Some(warning) = completed.warnings.first() {
        return Err(StoreError::Unconfirmed(warning.to_string()));
    }
    match completed.tags.last() {
        Some(tag) if tag.as_str() == "COMMIT" => Ok(()),
        tag => {
            let tag = tag.map(ToString::to_string).unwrap_or_default();
            Err(StoreError::Corrupt(format!("the hand-over ended with {tag:?} instead of COMMIT")))
        }
    }
}

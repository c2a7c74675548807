//! The shard record: which shard of which cluster a database is, and how far it has come.
//!
//! Which slots the shard owns.

use identity::{AssetScales, Disagreement, Expected, Mark, Marks, ShardIdentity, shard::RoutingFacts};
use ledger::{AccountId, Booking, Position};
use shard_map::{ClusterId, SLOTS};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{journal::slot_column, schema, server::ServerId};

/// What every write depends on. The fence compares all four (ADR 9). The next position follows the
/// highest in the journal; the others are columns of `shard_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardState {
    pub next_position: i64,
    pub ownership_version: i64,
    pub incarnation: i64,
    pub schema_version: i32,
}

/// The record of a database that was initialised as a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardRecord {
    pub identity: ShardIdentity,
    /// The fingerprint of the map that the shard was founded with; `None` for a shard that was added later.
    pub founding_map: Option<i64>,
    /// True once every shard of the founding map was initialised. No founding shard is written to before that.
    pub complete: bool,
    /// PostgreSQL's system identifier as last seen.
    pub system_identifier: i64,
    pub database_oid: i64,
    pub timeline: i64,
    /// The next position of the journal when a node first accepted the timeline; 0 if the shard was founded on it.
    pub timeline_began: i64,
    pub state: ShardState,
}

/// What a database contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Database {
    /// The database contains no ledger.
    Uninitialised,
    Shard(Box<ShardRecord>),
}

impl ShardRecord {
    pub fn mark(&self) -> Mark {
        Mark {
            incarnation: self.state.incarnation,
            timeline: self.timeline,
            position: self.state.next_position,
            began: self.timeline_began,
            earlier: 0,
        }
    }

    /// The mark if the server is on this timeline. Where a timeline began is unknown until a node has recorded it.
    pub fn mark_on(&self, timeline: i64) -> Mark {
        let began = if timeline == self.timeline { self.timeline_began } else { 0 };
        Mark { timeline, began, ..self.mark() }
    }

    /// Whether no lane has ever written to the shard.
    pub fn is_fresh(&self) -> bool {
        self.state.next_position == Position::first_of(self.identity.number).0 && self.state.incarnation == 1
    }

    /// Compares identity and schema version with what a program expects.
    pub fn compare(&self, expected: &Expected) -> Vec<Disagreement> {
        let mut found = expected.compare(&self.identity, "database.url");
        found.extend(compare_schema(self.state.schema_version));
        found
    }
}

/// The disagreement about a schema version, if there is one.
pub fn compare_schema(version: i32) -> Option<Disagreement> {
    let remedy = match version.cmp(&schema::VERSION) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Greater => {
            "the database was migrated by a newer version: run that version of shard-node or a later one; nothing was changed"
        }
        std::cmp::Ordering::Less => {
            "the database is of an older version: run `shard-node migrate --dry-run`, then `shard-node migrate --apply`"
        }
    };
    Some(Disagreement::new("schema version", schema::VERSION, version, remedy))
}

/// `to_regclass` returns NULL for a missing table; naming the table itself would be an error.
const IS_THERE: &str = "SELECT pg_catalog.to_regclass('shardledger.shard_state') IS NOT NULL";

/// The highest position in the own range of the shard that the row `i` of `shard_identity` names, as a scalar of SQL. NULL: nothing was
/// ever booked.
#[macro_export]
macro_rules! highest_position {
    () => {
        "(SELECT j.position FROM shardledger.journal j \
           WHERE j.position > (i.shard_number::int8 << 51) AND j.position <= (i.shard_number::int8 << 51) + 2251799813685247 \
           ORDER BY j.position DESC LIMIT 1)"
    };
}
// The statement above has the layout of positions.
const _: () = assert!((1_i64 << Position::SEQUENCE_BITS) - 1 == 2_251_799_813_685_247);

macro_rules! state_columns {
    () => {
        concat!(
            "coalesce(",
            highest_position!(),
            ", i.shard_number::int8 << 51) + 1 AS next_position, \
         s.ownership_version, s.incarnation, s.schema_version \
         FROM shardledger.shard_identity i CROSS JOIN shardledger.shard_state s"
        )
    };
}

/// `timeline_began` is read in a way that also works on a database of an older schema version, so that the version can be named.
const RECORD: &str = concat!(
    "SELECT i.cluster_id, i.shard_id, i.shard_number, i.slot_count, i.hash_seed, i.founding_map, i.complete, \
       i.system_identifier, i.database_oid, i.timeline, \
       coalesce((pg_catalog.to_jsonb(i) ->> 'timeline_began')::int8, 0) AS timeline_began, ",
    state_columns!()
);

/// Reads which shard the database belongs to.
pub async fn read(connection: &mut PgConnection) -> Result<Database, sqlx::Error> {
    let is_there: bool = sqlx::query_scalar(IS_THERE).fetch_one(&mut *connection).await?;
    if !is_there {
        return Ok(Database::Uninitialised);
    }
    match sqlx::query(RECORD).fetch_optional(connection).await? {
        Some(row) => Ok(Database::Shard(Box::new(from_row(&row)?))),
        // `init` writes tables and rows in one transaction, so a missing row means damage.
        None => Err(sqlx::Error::Decode(
            "shardledger.shard_identity or shard_state has no row: the database is damaged".into(),
        )),
    }
}

fn from_row(row: &PgRow) -> Result<ShardRecord, sqlx::Error> {
    let corrupt = |what: String| sqlx::Error::Decode(format!("shardledger.shard_identity: {what}").into());
    let cluster: Uuid = row.try_get("cluster_id")?;
    let number: i32 = row.try_get("shard_number")?;
    let slots: i32 = row.try_get("slot_count")?;
    let seed: i64 = row.try_get("hash_seed")?;
    Ok(ShardRecord {
        identity: ShardIdentity {
            cluster: ClusterId::try_from(cluster).map_err(|error| corrupt(error.to_string()))?,
            shard: row.try_get("shard_id")?,
            number: u16::try_from(number).map_err(|_| corrupt(format!("shard_number is {number}")))?,
            routing: RoutingFacts {
                slots: u32::try_from(slots).map_err(|_| corrupt(format!("slot_count is {slots}")))?,
                hash_seed: seed.cast_unsigned(),
            },
        },
        founding_map: row.try_get("founding_map")?,
        complete: row.try_get("complete")?,
        system_identifier: row.try_get("system_identifier")?,
        database_oid: row.try_get("database_oid")?,
        timeline: row.try_get("timeline")?,
        timeline_began: row.try_get("timeline_began")?,
        state: state_from_row(row)?,
    })
}

const STATE: &str = concat!("SELECT ", state_columns!());

/// Reads the columns that the fence compares; `None` if the row is missing.
pub async fn read_state(connection: &mut PgConnection) -> Result<Option<ShardState>, sqlx::Error> {
    sqlx::query(STATE).fetch_optional(connection).await?.as_ref().map(state_from_row).transpose()
}

fn state_from_row(row: &PgRow) -> Result<ShardState, sqlx::Error> {
    Ok(ShardState {
        next_position: row.try_get("next_position")?,
        ownership_version: row.try_get("ownership_version")?,
        incarnation: row.try_get("incarnation")?,
        schema_version: row.try_get("schema_version")?,
    })
}

const INSERT_IDENTITY: &str = "INSERT INTO shardledger.shard_identity (cluster_id, shard_id, shard_number, slot_count, hash_seed, \
       founding_map, complete, system_identifier, database_oid, timeline) VALUES ($1, $2, $3, $4, $5, $6, $6 IS NULL, $7, $8, $9)";
const INSERT_STATE: &str =
    "INSERT INTO shardledger.shard_state (ownership_version, incarnation, schema_version) VALUES (1, 1, $1)";
const INSERT_FOLD_STATE: &str = "INSERT INTO shardledger.fold_state (folded_position) VALUES ($1)";

/// Writes the rows that make the database this shard, in the caller's transaction. The one-row constraints make a
/// second initialiser fail.
pub async fn write(
    connection: &mut PgConnection,
    identity: &ShardIdentity,
    founding_map: Option<i64>,
    server: ServerId,
    timeline: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT_IDENTITY)
        .bind(identity.cluster.as_uuid())
        .bind(&identity.shard)
        .bind(i32::from(identity.number))
        .bind(i32::try_from(identity.routing.slots).unwrap_or(i32::MAX))
        .bind(identity.routing.hash_seed.cast_signed())
        .bind(founding_map)
        .bind(server.system_identifier)
        .bind(server.database_oid)
        .bind(timeline)
        .execute(&mut *connection)
        .await?;
    sqlx::query(INSERT_STATE).bind(schema::VERSION).execute(&mut *connection).await?;
    let before_first = Position::first_of(identity.number).0 - 1;
    sqlx::query(INSERT_FOLD_STATE).bind(before_first).execute(connection).await?;
    Ok(())
}

const SET_COMPLETE: &str = "UPDATE shardledger.shard_identity SET complete = TRUE";

/// Records that every shard of the founding map was initialised.
pub async fn set_complete(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(SET_COMPLETE).execute(connection).await?;
    Ok(())
}

const SET_SERVER: &str = concat!(
    "UPDATE shardledger.shard_identity i SET system_identifier = $1, database_oid = $2, timeline = $3, \
     timeline_began = CASE WHEN i.timeline = $3 THEN i.timeline_began ELSE 1 + coalesce(",
    highest_position!(),
    ", i.shard_number::int8 << 51) END"
);

/// Records PostgreSQL's system identifier and timeline as last seen, and the position at which a timeline that was not seen before begins.
/// No lane writes on a timeline before it is recorded.
pub async fn remember_server(
    connection: &mut PgConnection,
    server: ServerId,
    timeline: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(SET_SERVER)
        .bind(server.system_identifier)
        .bind(server.database_oid)
        .bind(timeline)
        .execute(connection)
        .await?;
    Ok(())
}

const PEER_MARKS: &str = "SELECT shard_number, incarnation, timeline, max(position) AS position \
     FROM shardledger.peer_mark GROUP BY shard_number, incarnation, timeline";

/// The marks of other shards that this shard has stored.
pub async fn peer_marks(connection: &mut PgConnection) -> Result<Marks, sqlx::Error> {
    let rows = sqlx::query(PEER_MARKS).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            let number: i32 = row.try_get("shard_number")?;
            let mark = Mark {
                incarnation: row.try_get("incarnation")?,
                timeline: row.try_get("timeline")?,
                position: row.try_get("position")?,
                ..Mark::default()
            };
            Ok((u16::try_from(number).unwrap_or(u16::MAX), mark))
        })
        .collect()
}

const ASSET_SCALES: &str = "SELECT asset, scale FROM shardledger.asset_scale";

/// The scales of the assets that accounts of this shard use.
pub async fn asset_scales(connection: &mut PgConnection) -> Result<AssetScales, sqlx::Error> {
    let rows: Vec<(String, i16)> = sqlx::query_as(ASSET_SCALES).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(asset, scale)| (asset, u32::try_from(scale).unwrap_or(u32::MAX))).collect())
}

/// Positions skipped at the beginning of an incarnation: far more than could be acknowledged and known only to
/// routers.
pub const POSITIONS_SKIPPED: i64 = 1 << 32;

/// Waits for the transactions of lanes, and keeps them out until the transaction ends.
const LOCK_OUT_LANES: &str = "LOCK TABLE shardledger.lane_fence IN SHARE ROW EXCLUSIVE MODE";
const BEGIN_INCARNATION: &str = "UPDATE shardledger.shard_state SET incarnation = $1 WHERE incarnation = $2";
/// A booking without legs. It takes the first position of the incarnation, so that no lane of an earlier one passes the fence.
const INSERT_MARKER: &str = "INSERT INTO shardledger.journal (position, amount, at_us, payer_slot, payee_slot, kind, role, payer, payee, asset) \
     VALUES ($1, 0, (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::int8, -1, -1, 3, 0, '@marker', '', 'XXX')";
const RECORD_INCARNATION: &str = "INSERT INTO shardledger.incarnation (incarnation, lost_from, first, reason, began_at_us) \
     VALUES ($1, $2, $3, $4, (pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000000)::int8)";

/// The reason of an acceptance that gave something up contains this word.
const LOSS: &str = "loss";

/// One acceptance of the database in the state that it had (`shard-node accept`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acceptance {
    /// The incarnation that began.
    pub incarnation: i64,
    /// The next position of the database when it was accepted.
    pub lost_from: i64,
    /// The first position of the incarnation.
    pub first: i64,
    pub reason: String,
    pub began_at_us: i64,
}

impl Acceptance {
    /// The highest position that another participant remembered; `None` if none remembered more than the database had.
    pub fn acknowledged(&self) -> Option<i64> {
        Some(self.first - POSITIONS_SKIPPED).filter(|position| *position > self.lost_from)
    }

    /// Whether the operator gave something up, known or not.
    pub fn admits_loss(&self) -> bool {
        self.reason.contains(LOSS)
    }
}

const ACCEPTANCES: &str =
    "SELECT incarnation, lost_from, first, reason, began_at_us FROM shardledger.incarnation ORDER BY incarnation";

/// Every acceptance of the shard's database, oldest first.
pub async fn acceptances(connection: &mut PgConnection) -> Result<Vec<Acceptance>, sqlx::Error> {
    let rows = sqlx::query(ACCEPTANCES).fetch_all(connection).await?;
    rows.iter()
        .map(|row| {
            Ok(Acceptance {
                incarnation: row.try_get("incarnation")?,
                lost_from: row.try_get("lost_from")?,
                first: row.try_get("first")?,
                reason: row.try_get("reason")?,
                began_at_us: row.try_get("began_at_us")?,
            })
        })
        .collect()
}

/// Accepts the database in its present state. Begins a new incarnation whose first position is beyond every known
/// mark, so that no position is used twice. Runs in its own transaction under the lanes' lock: writers of the old
/// incarnation are waited for and then fail at the fence.
///
/// # Errors
/// `RowNotFound` if another program changed the incarnation in the meantime.
pub async fn begin_incarnation(
    connection: &mut PgConnection,
    from: &ShardRecord,
    acknowledged: Mark,
    server: ServerId,
    timeline: i64,
    reason: &str,
) -> Result<Mark, sqlx::Error> {
    // New commits may have taken the positions of those that are lost.
    let lost_from = from.mark_on(timeline).lost_from(acknowledged).unwrap_or(from.state.next_position);
    // Routers may have been told of more than any shard remembers.
    let first = from.state.next_position.max(acknowledged.position) + POSITIONS_SKIPPED;
    let incarnation = from.state.incarnation.max(acknowledged.incarnation) + 1;
    // INV-8: a position begins with the number of its shard.
    let number = from.identity.number;
    if Position(first).shard_number() != number {
        let what = format!("position {first} is not one of shard number {number}");
        return Err(sqlx::Error::Encode(what.into()));
    }
    let mut transaction = sqlx::Connection::begin(connection).await?;
    sqlx::query(LOCK_OUT_LANES).execute(&mut *transaction).await?;
    let updated = sqlx::query(BEGIN_INCARNATION)
        .bind(incarnation)
        .bind(from.state.incarnation)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if updated != 1 {
        return Err(sqlx::Error::RowNotFound);
    }
    sqlx::query(INSERT_MARKER).bind(first).execute(&mut *transaction).await?;
    sqlx::query(RECORD_INCARNATION)
        .bind(incarnation)
        .bind(lost_from)
        .bind(first)
        .bind(reason)
        .execute(&mut *transaction)
        .await?;
    remember_server(&mut transaction, server, timeline).await?;
    transaction.commit().await?;
    Ok(Mark { incarnation, timeline, position: first + 1, ..Mark::default() })
}

/// The slots that a shard owned at one ownership version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedSlots {
    pub version: i64,
    owned: Vec<bool>,
}

const OWNED: &str = "SELECT s.ownership_version, o.slot FROM shardledger.shard_state s \
     LEFT JOIN shardledger.slot_ownership o ON o.state = 1";

impl OwnedSlots {
    pub fn new(version: i64, slots: impl IntoIterator<Item = u16>) -> Self {
        let mut owned = vec![false; usize::from(SLOTS)];
        for slot in slots {
            if let Some(place) = owned.get_mut(usize::from(slot)) {
                *place = true;
            }
        }
        Self { version, owned }
    }

    /// Reads the owned slots and their version in one snapshot.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(connection: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(OWNED).fetch_all(connection).await?;
        let version = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("ownership_version")?;
        let slots: Vec<Option<i32>> = rows.iter().map(|row| row.try_get("slot")).collect::<Result<_, _>>()?;
        Ok(Self::new(version, slots.into_iter().flatten().filter_map(|slot| u16::try_from(slot).ok())))
    }

    /// Whether a client's account is in an owned slot.
    pub fn has(&self, account: &AccountId) -> bool {
        usize::try_from(slot_column(account)).is_ok_and(|slot| self.owned[slot])
    }

    /// Whether the shard answers for the booking: it is of an owned slot, or of this shard itself.
    pub fn answers_for(&self, booking: &Booking, shard_number: u16) -> bool {
        match booking.owner() {
            Some(owner) => self.has(owner),
            None => booking.position.shard_number() == shard_number,
        }
    }
}

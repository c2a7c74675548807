//! The two transactions in which slots change hands: the release at the source, and the take at the target.
//!
//! Each holds the lane's lock from before it looks until it commits, so that it sees everything and nothing comes in between. What has
//! to be read is read before the lock as far as possible, because the lane waits for the lock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use bytes::Bytes;
use ledger::{
    AccountId, AssetCode, Booking, BookingKind, Limit, Metadata, Position,
    batch::Effects,
    booking::{Attributes, Extra, Leg},
};
use shard_database::{ShardState, record, server::Purpose};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    MoveError, Moves,
    incoming::Incoming,
    phase::Phase,
    progress::{self, AssetSum, Progress},
    source::{INCOMING, OWNED, Part, RELEASED, SourceProgress, Verified, contains},
};
use crate::{
    durable::{DurableStep, durable},
    store::{
        Append, StoreError,
        message::{BEGIN, Message},
        moves::{self as tables, MoveRow},
        session::{Session, connect_writer},
    },
};

/// The release takes the lane's lock once fewer positions than this are left to read.
const FEW: i64 = 200;
/// Positions that one statement reads.
const AT_ONCE: i64 = 20_000;
/// Most positions that the answer of a release reaches back.
const LARGEST_REST: i64 = 5_000;
/// Most reads before the lock. After them, the release is refused.
const LOOKS: usize = 20;

/// The two sessions of a hand-over: one holds the lock and writes, the other reads meanwhile.
pub struct Sessions {
    reader: Session,
    writer: pg_session::Session,
}

impl Moves {
    /// Opens the sessions of a hand-over. Connecting takes longer than the hand-over itself.
    ///
    /// # Errors
    /// When the database is out of reach, or refused by the gate.
    pub(super) async fn sessions(&self) -> Result<Sessions, MoveError> {
        let (hosts, gate) = (&self.0.hosts, &self.0.gate);
        let (reader, _) = Session::connect(hosts, gate, Purpose::Writes, "shardledger-move").await?;
        let writer = connect_writer(hosts, gate, reader.server(), self.0.role.writer()).await?;
        Ok(Sessions { reader, writer })
    }

    /// Gives the slots away. The answer of a release that was carried out is stored, and returned again.
    ///
    /// # Errors
    /// [`MoveError::Refused`] if this node has not summed the slots up at `verified_position`: the driver has to verify again. Also if
    /// the lane would be locked out for longer than the driver allows.
    pub async fn release(
        &self,
        request: &wire::ReleaseMoveRequest,
        id: Uuid,
    ) -> Result<wire::ReleaseMoveResponse, MoveError> {
        let wire::ReleaseMoveRequest { driver_epoch, verified_position, max_locked_ms, after, .. } = *request;
        let Sessions { reader: mut session, mut writer } = self.sessions().await?;
        let row = session.run(async |c| Ok(self.row_at_source(c, id, driver_epoch).await)).await??;
        let kept: SourceProgress = progress::read(&row.progress)?;
        if row.phase == Phase::Released {
            // The release is visible. It need not be replicated yet, if the wait for a stand-by was cancelled.
            let again = tables::advance_statement(&row, Phase::Released, &row.progress);
            confirmed(&writer.run(&format!("BEGIN; {again}COMMIT"), None).await.map_err(StoreError::from)?)?;
            let scales = scales(&mut session).await?;
            let rows = rest(&mut session, &row, after, kept.last_position).await?;
            return Ok(wire::ReleaseMoveResponse { rows, ..answer(&kept, scales) });
        }
        if row.phase != Phase::Joined {
            return Err(MoveError::Refused(format!("move {id} is {}", row.phase.as_str())));
        }
        let verified = self.verified().get(&id).filter(|it| it.position == verified_position).cloned();
        let Some(mut verified) = verified else {
            return Err(MoveError::Refused("the slots have to be summed up again".to_owned()));
        };
        let number = self.number()?;
        let own = Part::own(number);
        let take_in = |verified: &mut Verified, bookings: Vec<Booking>, to: i64| {
            for booking in &bookings {
                verified.add(booking, |account| contains(&row.slots, account));
            }
            verified.position = to;
        };
        for look in 0.. {
            if look == LOOKS {
                return Err(MoveError::Refused("too much was booked since the slots were summed up".to_owned()));
            }
            let (bookings, to) = session.run(async |c| Ok(appended(c, &row, verified.position, own).await)).await??;
            let count = to - verified.position;
            take_in(&mut verified, bookings, to);
            if count < FEW {
                break;
            }
        }

        let locked = Instant::now();
        run(&mut writer, BEGIN).await?;
        // Nothing is appended any more, so that the state says where the journal ends.
        let state = read_state(&mut session).await?;
        let to = state.next_position - 1;
        if to > verified.position {
            let read = async |c: &mut PgConnection| Ok(tables::bookings(c, &row.slots, verified.position, to).await);
            let bookings = session.run(read).await??;
            take_in(&mut verified, bookings, to);
        }
        let effects = effects(&mut session, &state, &verified, self.now_us(), Direction::Out).await?;
        if max_locked_ms > 0 && locked.elapsed() > Duration::from_millis(max_locked_ms) {
            let ms = locked.elapsed().as_millis();
            // The session ends, and with it the transaction.
            return Err(MoveError::TooLong(format!(
                "the release had locked the source's lane for {ms} ms before its commit, and the limit is {max_locked_ms} ms, half of --max-pause. \
                 The driver tries again. If this repeats, lower the load, or abort the move, and make and apply a new plan with a larger --max-pause"
            )));
        }
        let kept = SourceProgress {
            last_position: verified.position,
            locked_us: i64::try_from(locked.elapsed().as_micros()).unwrap_or(i64::MAX),
            assets: verified.assets().iter().map(AssetSum::from).collect(),
            ..kept
        };
        let mut statements = tables::change_slots_statement(&row.slots, OWNED, RELEASED, kept.slot_epoch, &row.peer);
        statements.push_str(&tables::advance_statement(&row, Phase::Released, &progress::write(&kept)));
        if let Some(reverses) = kept.reverses {
            statements.push_str(&self.end_reversed(&mut session, reverses, Phase::Reversed).await?);
        }
        // What the target needs is read while the commit waits for the disk: the lock keeps everything else out until then.
        let (committed, rows) = tokio::join!(
            durable(DurableStep::Release, commit(&mut writer, &state, &effects, &statements)),
            // The driver asks again for what does not come with the answer.
            async {
                let rows = rest(&mut session, &row, after, kept.last_position).await.unwrap_or(None);
                Ok::<_, MoveError>((rows, scales(&mut session).await?))
            }
        );
        committed?;
        self.0.lane.look_again();
        self.verified().remove(&id);
        let (rows, scales) = rows?;
        let paused_us = i64::try_from(locked.elapsed().as_micros()).unwrap_or(i64::MAX);
        tracing::info!(
            move_id = %id, to = row.peer, last_position = kept.last_position,
            locked_ms = locked.elapsed().as_millis(), "slots released"
        );
        Ok(wire::ReleaseMoveResponse { paused_us, rows, ..answer(&kept, scales) })
    }

    /// Takes the slots. Everything that is relevant to them is in the tables and summed up in `incoming`. Returns the progress as
    /// stored.
    ///
    /// # Errors
    /// When the database does not answer, or another driver has taken over.
    pub(super) async fn take(
        &self,
        Sessions { reader: mut session, mut writer }: Sessions,
        row: &MoveRow,
        progress: &Progress,
        incoming: &Incoming,
    ) -> Result<Progress, MoveError> {
        run(&mut writer, BEGIN).await?;
        let state = read_state(&mut session).await?;
        // Later than every time that came, so that the order of times is the order of bookings.
        let at_us = self.now_us().max(incoming.newest_us + 1);
        let effects = effects(&mut session, &state, &incoming.sums, at_us, Direction::In).await?;
        let taken = Progress {
            taken_position: effects.bookings.last().map_or(0, |booking| booking.position.0),
            taken_at_us: self.now_us(),
            blocked_by: None,
            ..progress.clone()
        };
        let mut statements = tables::change_slots_statement(&row.slots, INCOMING, OWNED, progress.slot_epoch, "");
        statements.push_str(&tables::advance_statement(row, Phase::Taken, &progress::write(&taken)));
        if let Some(reverses) = progress.reverses {
            statements.push_str(&self.end_reversed(&mut session, reverses, Phase::GotBack).await?);
        }
        durable(DurableStep::Take, commit(&mut writer, &state, &effects, &statements)).await?;
        self.0.lane.look_again();
        Ok(taken)
    }
}

impl Moves {
    /// The statement that ends a move, because another one has brought the slots back.
    async fn end_reversed(&self, session: &mut Session, id: Uuid, to: Phase) -> Result<String, MoveError> {
        let row = session.run(async |c| Ok(tables::get(c, id).await)).await??;
        let row = row.ok_or_else(|| MoveError::Refused(format!("move {id} is not known here")))?;
        if !row.phase.may_become(to) {
            return Err(MoveError::Refused(format!("move {id} is {} and cannot be reversed", row.phase.as_str())));
        }
        Ok(tables::advance_statement(&row, to, &row.progress))
    }
}

async fn read_state(session: &mut Session) -> Result<ShardState, MoveError> {
    let state = session.run(async |c| record::read_state(c).await).await?;
    Ok(state.ok_or_else(|| StoreError::Corrupt("shardledger.shard_state has no row".to_owned()))?)
}

async fn scales(session: &mut Session) -> Result<Vec<wire::AssetScale>, MoveError> {
    Ok(session.run(async |c| Ok(tables::scales(c).await)).await??)
}

fn answer(kept: &SourceProgress, scales: Vec<wire::AssetScale>) -> wire::ReleaseMoveResponse {
    wire::ReleaseMoveResponse {
        last_position: kept.last_position,
        assets: kept
            .assets
            .iter()
            .map(|sum| wire::MoveAssetSum {
                asset: sum.asset.clone(),
                posted: sum.posted.clone(),
                shares: sum.shares.clone(),
            })
            .collect(),
        locked_us: kept.locked_us,
        scales,
        paused_us: 0,
        rows: None,
    }
}

/// The relevant bookings after a position, up to the last one before the release. They go with the answer, because slots belong to no
/// shard until the target has them. `None` if there are too many.
async fn rest(session: &mut Session, row: &MoveRow, after: i64, last: i64) -> Result<Option<Bytes>, MoveError> {
    if after < last - LARGEST_REST {
        return Ok(None);
    }
    let rows = session.run(async |c| Ok(tables::copy_bookings_out(c, &row.slots, after, last).await)).await??;
    Ok(Some(rows))
}

/// The relevant bookings among those that the shard itself appended after a position, and the position up to which it has read.
async fn appended(
    connection: &mut PgConnection,
    row: &MoveRow,
    after: i64,
    own: Part,
) -> Result<(Vec<Booking>, i64), StoreError> {
    let to = match tables::page_end(connection, after, own.last, AT_ONCE).await? {
        Some(end) => end,
        None => tables::highest(connection, after, own.last).await?.unwrap_or(after),
    };
    if to == after {
        return Ok((Vec::new(), after));
    }
    Ok((tables::bookings(connection, &row.slots, after, to).await?, to))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    In,
    Out,
}

/// The bookings with which slots leave or come: for each asset what the accounts hold, and the in-transit shares. At least one, because
/// a change of ownership takes a position.
async fn effects(
    session: &mut Session,
    state: &ShardState,
    sums: &Verified,
    at_us: i64,
    direction: Direction,
) -> Result<Effects, MoveError> {
    let mut effects = Effects { next_position: Position(state.next_position), ..Effects::default() };
    let (money, shares) = match direction {
        Direction::Out => (BookingKind::MovedOut, BookingKind::SharesOut),
        Direction::In => (BookingKind::MovedIn, BookingKind::SharesIn),
    };
    let assets: BTreeSet<&String> = sums.posted.keys().chain(sums.shares.keys()).collect();
    let code = |asset: &String| {
        AssetCode::new(asset).map_err(|error| StoreError::Corrupt(format!("asset {asset}: {error}")))
    };
    let assets: Vec<(&String, AssetCode)> =
        assets.into_iter().map(|asset| Ok((asset, code(asset)?))).collect::<Result<_, StoreError>>()?;
    let there = in_transit(session, assets.iter().map(|(_, code)| AccountId::in_transit(*code)).collect()).await?;
    for (asset, code) in assets {
        let amount = |sums: &BTreeMap<String, i128>| {
            let sum = sums.get(asset).copied().unwrap_or(0);
            i64::try_from(sum).map_err(|_| {
                MoveError::Refused(format!("the slots hold {sum} minor units of {asset}, more than an account can"))
            })
        };
        let (held, share) = (amount(&sums.posted)?, amount(&sums.shares)?);
        let id = AccountId::in_transit(code);
        let there = there.get(id.as_str()).copied();
        // The row may be behind the journal, so half of the range stays free.
        let after = i128::from(there.unwrap_or(0)).abs() + i128::from(held).abs();
        if after > i128::from(i64::MAX / 2) {
            return Err(MoveError::Refused(format!(
                "the shard's in-transit account of {asset} would hold {after} minor units, too near to what an account can"
            )));
        }
        if there.is_none() {
            append(&mut effects, opening(&id, code, at_us));
        }
        // A booking of kind MovedIn raises the lane's clock. It is also written where the accounts hold nothing.
        append(&mut effects, Booking::of_move(Position(0), money, code, held, at_us));
        if share != 0 {
            append(&mut effects, Booking::of_move(Position(0), shares, code, share, at_us));
        }
    }
    if effects.is_empty() {
        effects.add_marker(at_us);
    }
    Ok(effects)
}

/// What the rows of in-transit accounts hold, by id, for the accounts that exist.
async fn in_transit(session: &mut Session, ids: Vec<AccountId>) -> Result<HashMap<String, i64>, MoveError> {
    const IN_TRANSIT: &str = "SELECT id, posted FROM shardledger.account WHERE id = ANY($1)";
    let ids: Vec<&str> = ids.iter().map(AccountId::as_str).collect();
    let rows: Vec<(String, i64)> =
        session.run(async |c| sqlx::query_as(IN_TRANSIT).bind(&ids).fetch_all(c).await).await?;
    Ok(rows.into_iter().collect())
}

fn append(effects: &mut Effects, booking: Booking) {
    let position = effects.next_position;
    effects.bookings.push(Booking { position, ..booking });
    effects.next_position = position.next();
}

fn opening(id: &AccountId, asset: AssetCode, at_us: i64) -> Booking {
    let leg = Leg { version: 1, previous: Position::NONE, posted: 0, held: 0, overdraft: Limit::Unlimited };
    let attributes = Attributes { status: ledger::AccountStatus::Open, max_balance: Limit::Unlimited };
    let extra = Extra { metadata: Some(Metadata::empty()), attributes: Some(attributes), ..Extra::default() };
    Booking {
        kind: BookingKind::Opened,
        payer: id.clone(),
        asset,
        payer_leg: Some(leg),
        extra: Some(Box::new(extra)),
        ..Booking::marker(Position(0), at_us)
    }
}

/// Commits the rest of a transaction that holds the lock.
async fn commit(
    writer: &mut pg_session::Session,
    state: &ShardState,
    effects: &Effects,
    statements: &str,
) -> Result<(), MoveError> {
    let marks = identity::Marks::default();
    let append = Append { state: *state, effects, marks: &marks, scales: &[] };
    let Message { script, rows } = Message::under_lock(&append, statements);
    confirmed(&writer.run(&script, rows).await.map_err(|error| StoreError::from(error).into_move_error())?)
}

/// Whether a transaction was committed, and confirmed by a synchronous stand-by if there is one.
fn confirmed(completed: &pg_session::Completed) -> Result<(), MoveError> {
    if let Some(warning) = completed.warnings.first() {
        return Err(StoreError::Unconfirmed(warning.to_string()).into());
    }
    match completed.tags.last() {
        Some(tag) if tag.as_str() == "COMMIT" => Ok(()),
        tag => {
            let tag = tag.map(ToString::to_string).unwrap_or_default();
            Err(StoreError::Corrupt(format!("the hand-over ended with {tag:?} instead of COMMIT")).into())
        }
    }
}

async fn run(writer: &mut pg_session::Session, script: &str) -> Result<(), MoveError> {
    writer.run(script, None).await.map_err(StoreError::from)?;
    Ok(())
}

//! The store that serves: two sessions on the shard's database for the lane, and one for the fold.

use std::{
    convert::Infallible,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ledger::{
    Account, AccountId, Booking, Hold, HoldKey, Position, TransferKey, batch::Stored, history::Original,
    operation::CreateAccount,
};
use pg_session::{Completed, TransactionStatus};
use shard_database::{
    Database, record,
    server::{Purpose, ServerId},
};
use shard_map::SlotRange;
use sqlx::{Connection, PgConnection};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

use super::{
    Append, CommitFailure, FoldStep, Folded, FoldedAccount, Opened, Store, StoreError, account, bookings,
    message::Message,
    ownership::{self, Ownership},
    session::{Session, WRITER, column, connect_writer},
};
use crate::{gate::Gate, hosts::Hosts, role::NodeRole};

/// A commit that has waited so long looks for a frozen client that keeps it out.
const BLOCKED_AFTER: Duration = Duration::from_millis(500);

/// Ends the sessions of other lanes that block this lane's backend while the server waits for their client. Neither statement_timeout nor idle_in_transaction_session_timeout ends a
/// session that waits for the rows of a COPY.
const END_FROZEN_HOLDERS: &str = "SELECT pg_catalog.pg_terminate_backend(a.pid) FROM pg_catalog.pg_stat_activity a \
     WHERE a.pid = ANY(pg_catalog.pg_blocking_pids($1)) AND a.wait_event_type = 'Client' AND pg_catalog.starts_with(a.application_name, $2) \
       AND a.usename = CURRENT_USER";

/// The PostgreSQL database of the shard.
pub struct Postgres {
    hosts: Hosts,
    gate: Gate,
    role: NodeRole,
    loader: Mutex<Option<Session>>,
    writer: Mutex<Option<pg_session::Session>>,
    folder: Mutex<Option<Session>>,
    /// The server of the loading session, and with it of the writing session.
    server: std::sync::Mutex<Option<ServerId>>,
    /// The loading session is new since what it found was last returned.
    is_new: AtomicBool,
    /// The slots as read last, by their version.
    ownership: std::sync::Mutex<Option<(i64, Arc<Ownership>)>>,
}

impl Postgres {
    pub fn new(hosts: Hosts, gate: Gate, role: NodeRole) -> Self {
        Self {
            hosts,
            gate,
            role,
            loader: Mutex::default(),
            writer: Mutex::default(),
            folder: Mutex::default(),
            server: std::sync::Mutex::default(),
            is_new: AtomicBool::new(false),
            ownership: std::sync::Mutex::default(),
        }
    }

    /// The loading session. [`Store::open`] must have opened it.
    async fn loader(&self) -> Result<Held<'_>, StoreError> {
        Held::of(self.loader.lock().await)
    }

    /// The slots of this version of the ownership, read if they are not known.
    async fn ownership(&self, session: &mut Session, version: i64) -> Result<Arc<Ownership>, StoreError> {
        let known = lock(&self.ownership).clone();
        if let Some((_, ownership)) = known.filter(|(known, _)| *known == version) {
            return Ok(ownership);
        }
        let ownership = Arc::new(ownership::load(session).await?);
        *lock(&self.ownership) = Some((version, Arc::clone(&ownership)));
        Ok(ownership)
    }

    /// Sends a batch and waits for its answer. What keeps the lane out for long is looked for meanwhile.
    async fn send(&self, session: &mut pg_session::Session, message: Message) -> Result<Completed, CommitFailure> {
        let limit = self.hosts.config().statement_timeout();
        let pid = session.backend_pid();
        let sent = {
            let run = session.run(&message.script, message.rows);
            tokio::select! {
                biased;
                done = run => Some(done),
                () = tokio::time::sleep(limit) => None,
                never = self.watch_for_frozen_holders(pid) => match never {},
            }
        };
        match sent {
            Some(Ok(completed)) => Ok(completed),
            Some(Err(error)) => {
                // Only an error within the transaction leaves a failed transaction. After any other the COMMIT may have been
                // carried out: a cancel request that arrives during the COMMIT is reported after it.
                let is_certain = matches!(error, pg_session::Error::Statement(_))
                    && session.transaction() == TransactionStatus::Failed;
                Err(CommitFailure { error: error.into(), in_doubt: !is_certain })
            }
            None => Err(CommitFailure { error: StoreError::TimedOut(limit), in_doubt: true }),
        }
    }

    /// Ends the sessions of frozen lanes that keep the backend out, again and again.
    async fn watch_for_frozen_holders(&self, blocked_pid: i32) -> Infallible {
        loop {
            tokio::time::sleep(BLOCKED_AFTER).await;
            // The wait may also be for the disk; then no session is found.
            if let Err(error) = self.end_frozen_holders(blocked_pid).await {
                tracing::warn!(%error, "cannot look for what blocks the lane");
            }
        }
    }

    /// The folding session. [`Store::begin_fold`] must have opened it, so that all steps of a fold go to one server.
    async fn folder(&self) -> Result<Held<'_>, StoreError> {
        let folder = self.folder.lock().await;
        let serves = folder.as_ref().is_some_and(|session| self.gate.serves(session.server()));
        if serves && self.gate.closed().is_none() { Held::of(folder) } else { Err(StoreError::Superseded) }
    }

    /// Ends the sessions of frozen lanes that keep the backend out.
    async fn end_frozen_holders(&self, blocked_pid: i32) -> Result<(), StoreError> {
        let options = self.hosts.connect_options().application_name("shardledger-unblock");
        let work = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let ended: Vec<bool> = sqlx::query_scalar(END_FROZEN_HOLDERS)
                .bind(blocked_pid)
                .bind(WRITER)
                .fetch_all(&mut connection)
                .await?;
            connection.close().await?;
            Ok::<_, sqlx::Error>(ended.len())
        };
        let limit = self.hosts.config().connect_timeout();
        match timeout(limit, work).await {
            Ok(ended) => {
                let ended = ended?;
                if ended > 0 {
                    tracing::warn!(ended, "ended the session of another node that froze in the middle of a batch");
                }
                Ok(())
            }
            Err(_) => Err(StoreError::TimedOut(limit)),
        }
    }
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session in use. A failed statement drops it, because the state of the connection is unknown then.
struct Held<'s>(MutexGuard<'s, Option<Session>>);

impl<'s> Held<'s> {
    fn of(guard: MutexGuard<'s, Option<Session>>) -> Result<Self, StoreError> {
        if guard.is_some() { Ok(Self(guard)) } else { Err(StoreError::NotOpen) }
    }

    async fn run<T>(
        mut self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Taken out for the time of the work: a caller that goes away in the middle must not leave a broken session.
        let Some(mut session) = self.0.take() else { return Err(StoreError::NotOpen) };
        let done = work(&mut session).await;
        if !matches!(&done, Err(StoreError::Database(_) | StoreError::TimedOut(_))) {
            *self.0 = Some(session);
        }
        done
    }
}

impl Store for Postgres {
    type Message = Message;

    async fn open(&self) -> Result<Opened, StoreError> {
        let mut loader = self.loader.lock().await;
        if loader.is_none() {
            // The writing session follows the reading one to its server.
            *self.writer.lock().await = None;
            let (session, database) =
                Session::connect(&self.hosts, &self.gate, Purpose::Reads, "shardledger-loader").await?;
            if database == Database::Uninitialised {
                return Err(StoreError::NotOpen);
            }
            *lock(&self.server) = Some(session.server());
            self.is_new.store(true, Relaxed);
            *loader = Some(session);
        }
        Held::of(loader)?
            .run(async |session| {
                let acknowledged = self.gate.acknowledged();
                let state = session.run(async |c| record::read_state(c).await).await?;
                let state =
                    state.ok_or_else(|| StoreError::Corrupt("shardledger.shard_state has no row".to_owned()))?;
                self.gate.judge_state(&state, session.timeline(), &acknowledged)?;
                let ownership = self.ownership(session, state.ownership_version).await?;
                let scales = session.run(async |c| record::asset_scales(c).await).await?;
                let folded = session.run(async |c| sqlx::query_scalar(FOLDED_POSITION).fetch_one(c).await).await?;
                let is_new = self.is_new.swap(false, Relaxed);
                let (timeline, folded) = (session.timeline(), Position(folded));
                Ok(Opened { state, timeline, folded, ownership, scales, is_new })
            })
            .await
    }

    async fn open_writer(&self) -> Result<bool, StoreError> {
        let mut writer = self.writer.lock().await;
        if writer.is_some() {
            return Ok(false);
        }
        let server = (*lock(&self.server)).ok_or(StoreError::NotOpen)?;
        let session = connect_writer(&self.hosts, &self.gate, server, self.role.writer()).await?;
        *writer = Some(session);
        Ok(true)
    }

    async fn close_writer(&self) {
        if let Some(session) = self.writer.lock().await.take() {
            // The server also notices a dropped socket; a slow close must not delay anything.
            let _ = timeout(Duration::from_secs(1), session.close()).await;
        }
    }

    async fn close(&self) {
        *lock(&self.server) = None;
        if let Some(session) = self.loader.lock().await.take() {
            session.close().await;
        }
        self.close_writer().await;
    }

    fn is_current(&self) -> bool {
        (*lock(&self.server)).is_some_and(|server| self.gate.serves(server))
    }

    async fn folded(&self) -> Result<Folded, StoreError> {
        // One statement: the sagas are those of exactly this position.
        const FOLDED: &str = "SELECT f.folded_position, s.position FROM shardledger.fold_state f \
             LEFT JOIN shardledger.saga s ON TRUE ORDER BY s.position";
        let held = self.loader().await?;
        held.run(async |session| {
            let rows = session.run(async |c| sqlx::query(FOLDED).fetch_all(c).await).await?;
            let first = rows.first().ok_or_else(|| StoreError::Corrupt("fold_state has no row".to_owned()))?;
            let position = Position(column(first, "folded_position")?);
            let positions = rows.iter().map(|row| column::<Option<i64>>(row, "position"));
            let positions: Vec<Position> =
                positions.filter_map(Result::transpose).map(|p| p.map(Position)).collect::<Result<_, _>>()?;
            let mut sagas = Vec::with_capacity(positions.len());
            for positions in positions.chunks(1000) {
                sagas.extend(session.run(async |c| Ok(bookings::at(c, positions).await)).await??);
            }
            Ok(Folded { position, sagas })
        })
        .await
    }

    async fn sagas_of(&self, slots: &[SlotRange]) -> Result<Vec<Booking>, StoreError> {
        let slots = ownership::as_multirange(slots);
        self.loader().await?.run(async |session| bookings::sagas_of(session, &slots).await).await
    }

    async fn bookings_after(&self, position: Position, limit: i64) -> Result<Vec<Booking>, StoreError> {
        self.loader().await?.run(async |session| bookings::after(session, position, limit).await).await
    }

    async fn accounts(&self, ids: &[AccountId]) -> Result<Vec<Account>, StoreError> {
        self.loader().await?.run(async |session| account::load(session, ids).await).await
    }

    async fn openings(&self, accounts: &[&Account]) -> Result<Vec<CreateAccount>, StoreError> {
        self.loader().await?.run(async |session| bookings::openings(session, accounts).await).await
    }

    async fn holds(&self, keys: &[HoldKey]) -> Result<Vec<(HoldKey, Hold)>, StoreError> {
        self.loader().await?.run(async |session| bookings::holds(session, keys).await).await
    }

    async fn originals(&self, keys: &[TransferKey]) -> Result<Vec<(TransferKey, Original)>, StoreError> {
        self.loader().await?.run(async |session| bookings::originals(session, keys).await).await
    }

    async fn stored(&self, transfers: &[TransferKey], registers: &[TransferKey]) -> Result<Stored, StoreError> {
        self.loader().await?.run(async |session| bookings::stored(session, transfers, registers).await).await
    }

    fn encode(&self, append: &Append<'_>) -> Message {
        Message::of(append)
    }

    async fn commit(&self, message: Message) -> Result<(), CommitFailure> {
        let mut writer = self.writer.lock().await;
        // Taken out for the time of the commit: after a failure the session is not used again.
        // A session that the server has ended is noticed before anything is sent, while it is certain that nothing was.
        let session = writer.take().and_then(|mut session| (!session.has_ended()).then_some(session));
        let Some(mut session) = session else { return Err(StoreError::NotOpen.into()) };
        let completed = match self.send(&mut session, message).await {
            Ok(completed) => completed,
            Err(failure) => {
                // If the script failed before its COMMIT, the session is of use again after a ROLLBACK.
                if !failure.in_doubt {
                    let rolled_back =
                        timeout(self.hosts.config().connect_timeout(), session.run("ROLLBACK", None)).await;
                    if matches!(rolled_back, Ok(Ok(_))) {
                        *writer = Some(session);
                    }
                }
                return Err(failure);
            }
        };
        if let Some(warning) = completed.warnings.first() {
            let error = StoreError::Unconfirmed(warning.to_string());
            return Err(CommitFailure { error, in_doubt: true });
        }
        if completed.tags.last().is_none_or(|tag| tag.as_str() != "COMMIT") {
            let tag = completed.tags.last().map(ToString::to_string).unwrap_or_default();
            // An aborted transaction answers COMMIT with ROLLBACK.
            let in_doubt = tag != "ROLLBACK";
            let error = StoreError::Corrupt(format!("a batch ended with {tag:?} instead of COMMIT"));
            return Err(CommitFailure { error, in_doubt });
        }
        *writer = Some(session);
        drop(writer);
        // This commit went to a database that is no longer the accepted one. The same ids are executed on the accepted
        // database.
        if !self.is_current() {
            return Err(CommitFailure { error: StoreError::Superseded, in_doubt: true });
        }
        Ok(())
    }

    async fn begin_fold(&self, timeline: i64) -> Result<(), StoreError> {
        let mut folder = self.folder.lock().await;
        // A database that is refused, after a migration by a newer version for example, is left alone.
        if self.gate.closed().is_some() {
            *folder = None;
            return Err(StoreError::NotOpen);
        }
        if folder.as_ref().is_none_or(|session| !self.gate.serves(session.server())) {
            *folder = None;
            *folder = Some(Session::connect(&self.hosts, &self.gate, Purpose::Writes, "shardledger-fold").await?.0);
        }
        let same = folder.as_ref().is_some_and(|session| session.timeline() == timeline);
        if same { Ok(()) } else { Err(StoreError::Fenced) }
    }

    async fn dead_versions_per_row(&self) -> Result<f64, StoreError> {
        let held = self.folder().await?;
        held.run(async |session| session.run(async |c| sqlx::query_scalar(DEAD_VERSIONS).fetch_one(c).await).await)
            .await
    }

    async fn fold_accounts(&self, incarnation: i64, accounts: &[&FoldedAccount]) -> Result<(), StoreError> {
        let held = self.folder().await?;
        held.run(async |session| account::fold(session, incarnation, accounts).await).await
    }

    async fn finish_fold(&self, step: &FoldStep) -> Result<bool, StoreError> {
        let held = self.folder().await?;
        held.run(async |session| session.run(async |c| finish_fold(c, step).await).await).await
    }
}

// The statistics' functions need no privilege.
const DEAD_VERSIONS: &str = "SELECT pg_stat_get_dead_tuples(a.oid)::float8 / greatest(pg_stat_get_live_tuples(a.oid), 1) \
     FROM (SELECT 'shardledger.account'::regclass::oid) AS a(oid)";
const FOLDED_POSITION: &str = "SELECT folded_position FROM shardledger.fold_state";
// Only one writer at a time advances the fold from a position, so that the sagas and waypoints are exactly those up to it.
const ADVANCE: &str = "UPDATE shardledger.fold_state SET folded_position = $2 \
     WHERE folded_position = $1 AND (SELECT s.incarnation FROM shardledger.shard_state s) = $3";
const INSERT_WAYPOINTS: &str = "INSERT INTO shardledger.waypoint (account, version, position, at_us) \
     SELECT account, version, position, at_us FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[]) \
       AS new(account, version, position, at_us)";
const DELETE_SAGAS: &str = "DELETE FROM shardledger.saga WHERE position = ANY($1::int8[])";
const INSERT_SAGAS: &str =
    "INSERT INTO shardledger.saga (position) SELECT position FROM unnest($1::int8[]) AS new(position)";

async fn finish_fold(connection: &mut PgConnection, step: &FoldStep) -> Result<bool, sqlx::Error> {
    let FoldStep { incarnation, timeline: _, from, to, waypoints, begun, ended } = step;
    let mut transaction = connection.begin().await?;
    let advanced = sqlx::query(ADVANCE)
        .bind(from.0)
        .bind(to.0)
        .bind(incarnation)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if advanced != 1 {
        transaction.rollback().await?;
        return Ok(false);
    }
    if !waypoints.is_empty() {
        sqlx::query(INSERT_WAYPOINTS)
            .bind(waypoints.iter().map(|w| w.account.as_str()).collect::<Vec<_>>())
            .bind(waypoints.iter().map(|w| w.version).collect::<Vec<_>>())
            .bind(waypoints.iter().map(|w| w.position.0).collect::<Vec<_>>())
            .bind(waypoints.iter().map(|w| w.at_us).collect::<Vec<_>>())
            .execute(&mut *transaction)
            .await?;
    }
    let numbers = |positions: &[Position]| positions.iter().map(|position| position.0).collect::<Vec<i64>>();
    if !ended.is_empty() {
        sqlx::query(DELETE_SAGAS).bind(numbers(ended)).execute(&mut *transaction).await?;
    }
    if !begun.is_empty() {
        sqlx::query(INSERT_SAGAS).bind(numbers(begun)).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

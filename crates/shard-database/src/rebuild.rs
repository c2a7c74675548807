//! Reads one shard's projections and its journal into [`Books`].
//!
//! The journal is immutable, so it is read in bounded statements and not in one snapshot. Only the small tables (`hold`,
//! `saga`, `waypoint`) are read in a snapshot, which ends with them. The rows of `account` are read in bounded statements,
//! too: each row is compared at its own version.
//!
//! [`rebuild`] does everything for one quiet or busy shard. `shardctl verify` uses the steps, because it also compares the
//! shards with each other.

use std::collections::{HashMap, HashSet, VecDeque};

use futures_util::TryStreamExt;
use ledger::{
    Account, AccountId, Booking, HoldKey, Limit, Position, TransferId, TransferKey, history::StoredTransfer,
    outcome::TransferState,
};
use sqlx::{PgConnection, Row, postgres::PgRow};
use uuid::Uuid;

use crate::{
    Database, OwnedSlots,
    account::account_from_row,
    account_columns,
    books::{Books, Counts, Difference, HoldRow, Key, Report, Reversed, Rule, waypoint_key},
    highest_position,
    journal::{booking_from_row, slot_column, slots_from_row},
    journal_columns, record,
};

/// How often a shard is read again because slots moved meanwhile.
const ATTEMPTS: usize = 10;
/// Rows of `account` that one statement reads.
const ACCOUNTS_PER_STATEMENT: i64 = 20_000;
/// Bookings that one statement reads.
const BOOKINGS_PER_STATEMENT: i64 = 50_000;
/// Keys that one statement looks up.
const KEYS_PER_STATEMENT: usize = 5_000;

/// Rebuilds every projection of the shard from its journal, in memory, and returns what differs from the rows. `account`
/// and `fold_state` may be behind the journal; what they are behind of is no difference.
///
/// # Errors
/// When the database does not answer, is no shard, or contains a booking that this version cannot read.
pub async fn rebuild(connection: &mut PgConnection) -> Result<Vec<Difference>, sqlx::Error> {
    let Database::Shard(record) = record::read(connection).await? else {
        return Err(sqlx::Error::Decode("the database contains no ledger".into()));
    };
    for _ in 0..ATTEMPTS {
        if let Some(differences) = rebuild_once(connection, record.identity.number).await? {
            return Ok(differences);
        }
    }
    Err(sqlx::Error::Protocol("slots moved each time the shard was read".to_owned()))
}

/// `None`: slots moved meanwhile.
async fn rebuild_once(connection: &mut PgConnection, number: u16) -> Result<Option<Vec<Difference>>, sqlx::Error> {
    let mut differences = Vec::new();
    let mut report = |difference| differences.push(difference);
    let owned = OwnedSlots::load(connection).await?;
    let version = owned.version;
    let mut books = Books::new(number);
    books.expect_owned(owned);
    expect_accounts(connection, &mut books, |row, slot| check_slot(row, slot, &mut report)).await?;
    expect_small_tables(connection, &mut books).await?;
    let end = highest_position(connection).await?;
    let ranges = Ranges::load(connection, number, end).await?;
    if ranges.is_merged() {
        books.expect_merged();
    }
    read_journal(connection, ranges, |booking, slots| {
        check_slots(booking, slots, &mut report);
        books.apply(booking, &mut report);
    })
    .await?;
    finish(connection, books, end, &mut report).await?;
    Ok((OwnedSlots::load(connection).await?.version == version).then_some(differences))
}

// === rows ===

const FOLDED: &str = "SELECT folded_position FROM shardledger.fold_state";
const ACCOUNTS: &str = concat!(
    "SELECT ",
    account_columns!(),
    ", a.slot FROM shardledger.account a WHERE a.id > $1 ORDER BY a.id LIMIT $2"
);

/// Reads the rows of `account`. `visit` receives each with its slot.
///
/// # Errors
/// When a row cannot be read or holds what no account holds.
pub async fn expect_accounts(
    connection: &mut PgConnection,
    books: &mut Books,
    mut visit: impl FnMut(&Account, i32),
) -> Result<(), sqlx::Error> {
    let folded: i64 = sqlx::query_scalar(FOLDED).fetch_one(&mut *connection).await?;
    books.expect_folded_before(Position(folded));
    for_each_account(connection, |row, slot| {
        books.expect_account(row);
        visit(row, slot);
    })
    .await
}

async fn for_each_account(
    connection: &mut PgConnection,
    mut visit: impl FnMut(&Account, i32),
) -> Result<(), sqlx::Error> {
    let mut after = String::new();
    loop {
        let mut rows = sqlx::query(ACCOUNTS).bind(&after).bind(ACCOUNTS_PER_STATEMENT).fetch(&mut *connection);
        let mut last: Option<AccountId> = None;
        while let Some(row) = rows.try_next().await? {
            let account = account_from_row(&row)?;
            visit(&account, row.try_get("slot")?);
            last = Some(account.id);
        }
        drop(rows);
        match last {
            Some(last) => last.as_str().clone_into(&mut after),
            None => return Ok(()),
        }
    }
}

/// The slot that a row of `account` states must be that of the id.
fn check_slot(row: &Account, slot: i32, report: Report<'_>) {
    let expected = slot_column(&row.id);
    if slot != i32::from(expected) {
        let detail = format!("its row is in slot {slot}, its id says {expected}");
        report(Difference { rule: Rule::Slot, subject: row.id.to_string(), detail });
    }
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const COMMIT: &str = "COMMIT";
const HIGHEST: &str = concat!(
    "SELECT coalesce(",
    highest_position!(),
    ", i.shard_number::int8 << 51) FROM shardledger.shard_identity i"
);
const HOLDS: &str = "SELECT id, payer, payer_slot, position, amount, captured, capture_id, capture_amount, expires_at_us \
     FROM shardledger.hold";
// Rows of slots that are not owned are leftovers of a move, or of one that is under way. While slots are incoming (state 3), a row may be there
// before the booking of another shard that it belongs to.
const SAGAS: &str = "SELECT s.position FROM shardledger.saga s LEFT JOIN shardledger.journal j ON j.position = s.position \
     LEFT JOIN shardledger.slot_ownership o ON o.slot = j.payer_slot AND o.state = 1 \
     WHERE o.slot IS NOT NULL OR j.position IS NULL AND ( \
       s.position >> 51 = (SELECT shard_number FROM shardledger.shard_identity) \
       OR NOT EXISTS (SELECT FROM shardledger.slot_ownership incoming WHERE incoming.state = 3))";
const _: () = assert!(Position::SEQUENCE_BITS == 51, "the statements here have the layout of positions");
const WAYPOINTS: &str = "SELECT account, version, position, at_us FROM shardledger.waypoint";

/// Reads the rows of `hold`, `saga` and `waypoint` in one snapshot.
///
/// # Errors
/// When a row cannot be read or holds what no such row holds.
pub async fn expect_small_tables(connection: &mut PgConnection, books: &mut Books) -> Result<(), sqlx::Error> {
    sqlx::query(BEGIN).execute(&mut *connection).await?;
    let read = read_small_tables(connection, books).await;
    sqlx::query(COMMIT).execute(&mut *connection).await?;
    read
}

async fn read_small_tables(connection: &mut PgConnection, books: &mut Books) -> Result<(), sqlx::Error> {
    // The first statement that reads data fixes the snapshot of all.
    let folded: i64 = sqlx::query_scalar(FOLDED).fetch_one(&mut *connection).await?;
    let highest = highest_position(connection).await?;
    let mut holds = HashMap::new();
    for row in sqlx::query(HOLDS).fetch_all(&mut *connection).await? {
        let (key, hold) = hold_from_row(&row)?;
        holds.insert(key, hold);
    }
    books.expect_holds(highest, holds);
    let positions: Vec<i64> = sqlx::query_scalar(SAGAS).fetch_all(&mut *connection).await?;
    books.expect_sagas(Position(folded), positions.into_iter().map(Position).collect());
    for_each_waypoint(connection, |account, version, position, at_us| {
        books.expect_waypoint(account, version, position, at_us);
    })
    .await
}

fn hold_from_row(row: &PgRow) -> Result<(HoldKey, HoldRow), sqlx::Error> {
    let id: Uuid = row.try_get("id")?;
    let corrupt = |what: String| sqlx::Error::Decode(format!("hold {id}: {what}").into());
    let debit = AccountId::any(row.try_get("payer")?).map_err(|error| corrupt(error.to_string()))?;
    let (slot, expected) = (row.try_get::<i32, _>("payer_slot")?, slot_column(&debit));
    if slot != i32::from(expected) {
        return Err(corrupt(format!("it is in slot {slot}, its debit account in slot {expected}")));
    }
    let capture: Option<Uuid> = row.try_get("capture_id")?;
    let capture_amount: i64 = row.try_get("capture_amount")?;
    let hold = HoldRow {
        position: Position(row.try_get("position")?),
        amount: row.try_get("amount")?,
        captured: row.try_get("captured")?,
        in_flight: capture.map(|id| (TransferId(id), capture_amount)),
        expires_at_us: row.try_get("expires_at_us")?,
    };
    Ok((HoldKey { id: TransferId(id), debit }, hold))
}

async fn for_each_waypoint(
    connection: &mut PgConnection,
    mut visit: impl FnMut(&str, i64, Position, i64),
) -> Result<(), sqlx::Error> {
    let mut rows = sqlx::query(WAYPOINTS).fetch(connection);
    while let Some(row) = rows.try_next().await? {
        let position = Position(row.try_get("position")?);
        visit(row.try_get("account")?, row.try_get("version")?, position, row.try_get("at_us")?);
    }
    Ok(())
}

// === the journal ===

/// The highest position of the shard's own range; the position before the first if nothing was booked. Everything up to there
/// is committed, because one writer at a time appends.
///
/// # Errors
/// When the database does not answer.
pub async fn highest_position(connection: &mut PgConnection) -> Result<Position, sqlx::Error> {
    sqlx::query_scalar(HIGHEST).fetch_one(connection).await.map(Position)
}

const JOURNAL: &str = concat!(
    "SELECT ",
    journal_columns!(core),
    ", ",
    journal_columns!(extra),
    " FROM shardledger.journal WHERE position > $1 AND position <= $2 ORDER BY position LIMIT $3"
);

// Positions begin with the shard number, so each step of the recursion skips all bookings of one shard.
const SHARD_NUMBERS: &str = "WITH RECURSIVE shard AS ( \
       (SELECT position >> 51 AS number FROM shardledger.journal ORDER BY position LIMIT 1) \
       UNION ALL \
       SELECT (SELECT j.position >> 51 FROM shardledger.journal j WHERE j.position >= (shard.number + 1) << 51 \
               ORDER BY j.position LIMIT 1) \
       FROM shard WHERE shard.number < 4095) \
     SELECT number FROM shard WHERE number IS NOT NULL";
const _: () = assert!(Position::MAX_SHARDS == 4096, "the statement above has the layout of positions");

/// The ranges of the journal, one for each shard that wrote bookings in it.
#[derive(Debug)]
pub struct Ranges(Vec<Range>);

/// The bookings of one shard that are still to be read.
#[derive(Debug)]
struct Range {
    /// Of the shard itself, and not of a shard that its slots came from.
    is_own: bool,
    after: i64,
    end: i64,
    page: VecDeque<(Booking, (i16, i16))>,
    is_at_end: bool,
}

impl Ranges {
    /// The shard's own bookings up to `end`, and all that came from other shards.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn load(connection: &mut PgConnection, own: u16, end: Position) -> Result<Self, sqlx::Error> {
        let numbers: Vec<i64> = sqlx::query_scalar(SHARD_NUMBERS).fetch_all(connection).await?;
        let range = |number: i64| {
            let is_own = number == i64::from(own);
            let last = (number << Position::SEQUENCE_BITS) + ((1 << Position::SEQUENCE_BITS) - 1);
            // Positions that belong to no shard are read as well, and reported by what they break.
            let after = (number << Position::SEQUENCE_BITS) - 1;
            Range { is_own, after, end: if is_own { end.0 } else { last }, page: VecDeque::new(), is_at_end: false }
        };
        Ok(Self(numbers.into_iter().map(range).collect()))
    }

    /// Whether bookings came from other shards.
    pub fn is_merged(&self) -> bool {
        self.0.iter().any(|range| !range.is_own)
    }
}

/// Reads the bookings in the order of their positions; those of several shards are merged by time. `visit` receives each with
/// the slots that its row states.
///
/// # Errors
/// When a booking cannot be read by this version.
pub async fn read_journal(
    connection: &mut PgConnection,
    ranges: Ranges,
    mut visit: impl FnMut(&Booking, (i16, i16)),
) -> Result<(), sqlx::Error> {
    let Ranges(mut ranges) = ranges;
    let limit = (BOOKINGS_PER_STATEMENT / i64::try_from(ranges.len().max(1)).unwrap_or(1)).max(1_000);
    loop {
        for range in &mut ranges {
            if range.page.is_empty() && !range.is_at_end {
                range.read_page(connection, limit).await?;
            }
        }
        ranges.retain(|range| !range.page.is_empty());
        // At equal times, what came from elsewhere comes first.
        let next = ranges.iter_mut().min_by_key(|range| {
            let at_us = range.page.front().map_or(i64::MAX, |(booking, _)| booking.at_us);
            (at_us, range.is_own)
        });
        let Some(range) = next else { return Ok(()) };
        if let Some((booking, slots)) = range.page.pop_front() {
            visit(&booking, slots);
        }
    }
}

impl Range {
    async fn read_page(&mut self, connection: &mut PgConnection, limit: i64) -> Result<(), sqlx::Error> {
        let mut rows = sqlx::query(JOURNAL).bind(self.after).bind(self.end).bind(limit).fetch(connection);
        while let Some(row) = rows.try_next().await? {
            let booking = booking_from_row(&row)?;
            self.after = booking.position.0;
            self.page.push_back((booking, slots_from_row(&row)?));
        }
        self.is_at_end = i64::try_from(self.page.len()).is_ok_and(|read| read < limit);
        Ok(())
    }
}

/// The slots that a row of the journal states must be those of its accounts.
pub fn check_slots(booking: &Booking, (payer, payee): (i16, i16), report: Report<'_>) {
    // The account of a marker, and of a booking without a payee, is none.
    let payee_id = booking.payee.as_ref();
    for (id, slot) in [(Some(&booking.payer), payer), (payee_id, payee)] {
        let expected = id.map_or(-1, slot_column);
        if slot != expected {
            let detail = format!("booking {} is in slot {slot}, its account says {expected}", booking.position.0);
            let subject = id.map_or_else(|| booking.payer.to_string(), AccountId::to_string);
            report(Difference { rule: Rule::Slot, subject, detail });
        }
    }
}

// === the end ===

const HAS_ROW: &str = "SELECT id FROM shardledger.account WHERE id = ANY($1)";
const ACCOUNT: &str = concat!("SELECT ", account_columns!(), " FROM shardledger.account a WHERE a.id = $1");

/// Finishes the books and looks up what the fold has left open. `end` is the position up to which the journal was folded.
///
/// # Errors
/// When the database does not answer.
pub async fn finish(
    connection: &mut PgConnection,
    books: Books,
    end: Position,
    report: Report<'_>,
) -> Result<Counts, sqlx::Error> {
    let leftovers = books.finish(report);
    describe_mismatches(connection, &leftovers.mismatched, report).await?;
    check_rows_exist(connection, &leftovers.without_row, report).await?;
    if !leftovers.unreached.is_empty() {
        for_each_account(connection, |row, _| {
            if let Some(version) = leftovers.unreached.get(&Key::of(row.id.as_str())) {
                let detail =
                    format!("its row is at version {version}, the journal up to {} does not reach it", end.0);
                report(Difference { rule: Rule::AccountRow, subject: row.id.to_string(), detail });
            }
        })
        .await?;
    }
    if !leftovers.waypoints.is_empty() {
        for_each_waypoint(connection, |account, version, position, at_us| {
            if leftovers.waypoints.contains(&waypoint_key(account, version, position, at_us)) {
                let detail = format!("the waypoint of version {version} at position {} is no such leg", position.0);
                report(Difference { rule: Rule::WaypointRow, subject: account.to_owned(), detail });
            }
        })
        .await?;
    }
    check_reversals(connection, &leftovers.reversals, end, report).await?;
    check_answers(connection, report).await?;
    Ok(leftovers.counts)
}

const ANSWERS_ARE_GUARDED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index \
     WHERE indexrelid = pg_catalog.to_regclass('shardledger.journal_answer') AND indisunique AND indisvalid)";
const ANSWERED_TWICE: &str = "SELECT id, payer, role, count(*) AS answers FROM shardledger.journal WHERE id IS NOT NULL \
     GROUP BY id, payer, role HAVING count(*) > 1 LIMIT 100";

/// While the unique key is there, no id has two answers. Without it, the whole journal is searched.
async fn check_answers(connection: &mut PgConnection, report: Report<'_>) -> Result<(), sqlx::Error> {
    if sqlx::query_scalar(ANSWERS_ARE_GUARDED).fetch_one(&mut *connection).await? {
        return Ok(());
    }
    let detail = "the unique key is missing or not valid: an id can be used twice".to_owned();
    report(Difference { rule: Rule::Once, subject: "journal_answer".to_owned(), detail });
    for row in sqlx::query(ANSWERED_TWICE).fetch_all(connection).await? {
        let (id, payer): (Uuid, &str) = (row.try_get("id")?, row.try_get("payer")?);
        let (role, answers): (i16, i64) = (row.try_get("role")?, row.try_get("answers")?);
        let detail = format!("debit {payer}: {answers} bookings of role {role} answer it");
        report(Difference { rule: Rule::Once, subject: id.to_string(), detail });
    }
    Ok(())
}

/// Shows a row beside what the journal says, unless the row has changed since.
async fn describe_mismatches(
    connection: &mut PgConnection,
    mismatched: &[Account],
    report: Report<'_>,
) -> Result<(), sqlx::Error> {
    for account in mismatched {
        let row = sqlx::query(ACCOUNT).bind(account.id.as_str()).fetch_optional(&mut *connection).await?;
        let row = row.as_ref().map(account_from_row).transpose()?.filter(|row| row.version == account.version);
        let detail = match row {
            Some(row) => format!("row: {}; journal: {}", shown(&row), shown(account)),
            None => format!("its row of version {} differed; journal: {}", account.version, shown(account)),
        };
        report(Difference { rule: Rule::AccountRow, subject: account.id.to_string(), detail });
    }
    Ok(())
}

fn shown(account: &Account) -> String {
    let Account {
        version,
        head,
        opened,
        posted,
        held,
        overdraft,
        max_balance,
        status,
        created_at_us,
        updated_at_us,
        ..
    } = account;
    let limit = |limit: &Limit| limit.to_nullable().map_or("unlimited".to_owned(), |limit| limit.to_string());
    format!(
        "version {version}, head {}, opened {}, posted {posted}, held {held}, overdraft {}, max_balance {}, {}, \
         created {created_at_us}, updated {updated_at_us}",
        head.0,
        opened.0,
        limit(overdraft),
        limit(max_balance),
        status.as_str()
    )
}

async fn check_rows_exist(
    connection: &mut PgConnection,
    accounts: &[AccountId],
    report: Report<'_>,
) -> Result<(), sqlx::Error> {
    for chunk in accounts.chunks(KEYS_PER_STATEMENT) {
        let ids: Vec<&str> = chunk.iter().map(AccountId::as_str).collect();
        let there: Vec<String> = sqlx::query_scalar(HAS_ROW).bind(ids).fetch_all(&mut *connection).await?;
        let there: HashSet<&str> = there.iter().map(String::as_str).collect();
        for id in chunk.iter().filter(|id| !there.contains(id.as_str())) {
            let detail = "it has bookings and no row".to_owned();
            report(Difference { rule: Rule::AccountRow, subject: id.to_string(), detail });
        }
    }
    Ok(())
}

const TRANSFERS: &str = concat!(
    "SELECT ",
    journal_columns!(core),
    ", ",
    journal_columns!(extra),
    " FROM shardledger.journal WHERE id = ANY($1) AND role IN (1, 2) AND (position <= $2 OR position >> 51 <> $2::int8 >> 51) ORDER BY role"
);

/// A transfer must have been posted before it was reversed, to the account that paid back, and with no less.
async fn check_reversals(
    connection: &mut PgConnection,
    reversals: &HashMap<TransferKey, Reversed>,
    end: Position,
    report: Report<'_>,
) -> Result<(), sqlx::Error> {
    let all: Vec<(&TransferKey, &Reversed)> = reversals.iter().collect();
    for chunk in all.chunks(KEYS_PER_STATEMENT) {
        let ids: Vec<Uuid> = chunk.iter().map(|(key, _)| key.id.0).collect();
        let mut found: HashMap<TransferKey, Vec<Booking>> = HashMap::new();
        for row in sqlx::query(TRANSFERS).bind(ids).bind(end.0).fetch_all(&mut *connection).await? {
            let booking = booking_from_row(&row)?;
            if let Some(key) = booking.key() {
                found.entry(key).or_default().push(booking);
            }
        }
        for (key, reversed) in chunk {
            let bookings = found.get(key).map_or(&[][..], Vec::as_slice);
            if let Err(what) = judge_reversals(bookings, reversed) {
                let detail = format!("debit {}: {what}", key.debit);
                report(Difference { rule: Rule::Reversal, subject: key.id.0.to_string(), detail });
            }
        }
    }
    Ok(())
}

/// `bookings`: the first answer of the original and, if there is one, its settlement.
fn judge_reversals(bookings: &[Booking], reversed: &Reversed) -> Result<(), String> {
    let Reversed { sum, payer } = reversed;
    let (first, settlement) = match bookings {
        [] => return Err(format!("reversed by {sum} minor units, and there is no such transfer")),
        [first] => (first, None),
        [first, settlement, ..] => (first, Some(settlement)),
    };
    let original = StoredTransfer::of(first, settlement, None).map_err(|error| error.to_string())?;
    if !matches!(original.state, TransferState::Posted { .. }) {
        return Err(format!("reversed by {sum} minor units, and it is {}", original.state.as_str()));
    }
    if original.credit != *payer {
        return Err(format!("{} was paid, and {payer} paid it back", original.credit));
    }
    if *sum > i128::from(original.amount) {
        return Err(format!("its reversals come to {sum} of {} minor units", original.amount));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ledger::{AssetCode, BookingKind, Refusal, Refused, booking::Extra};

    use super::*;

    fn booking(kind: BookingKind, amount: i64) -> Booking {
        Booking {
            ordered_by: None,
            position: Position(1),
            kind,
            id: Some(TransferId(Uuid::from_u128(1))),
            payer: AccountId::any("alice").unwrap(),
            payee: Some(AccountId::any("bob").unwrap()),
            asset: AssetCode::new("USD").unwrap(),
            amount,
            at_us: 0,
            payer_leg: None,
            payee_leg: None,
            extra: None,
        }
    }

    #[test]
    fn reversals_are_judged_by_their_original() {
        let reversed = |sum, payer: &str| Reversed { sum, payer: AccountId::any(payer).unwrap() };
        let refused = Extra { refused: Some(Refused::credit(Refusal::AccountClosed)), ..Extra::default() };
        let compensated = Booking { extra: Some(Box::new(refused)), ..booking(BookingKind::Compensated, 50) };
        let posted = || vec![booking(BookingKind::Posted, 50)];
        let reserved = || booking(BookingKind::Reserved, 50);
        for (bookings, reversed, expected) in [
            (posted(), reversed(50, "bob"), true),
            (vec![reserved(), booking(BookingKind::Settled, 50)], reversed(50, "bob"), true),
            (posted(), reversed(51, "bob"), false),
            (posted(), reversed(50, "carol"), false),
            (vec![], reversed(50, "bob"), false),
            (vec![reserved()], reversed(50, "bob"), false),
            (vec![reserved(), compensated], reversed(50, "bob"), false),
            (vec![booking(BookingKind::Settled, 50)], reversed(50, "bob"), false),
        ] {
            assert_eq!(judge_reversals(&bookings, &reversed).is_ok(), expected, "{bookings:?} {reversed:?}");
        }
    }

    #[test]
    fn slots_follow_from_the_accounts() {
        let posted = booking(BookingKind::Posted, 5);
        let (payer, payee) = (slot_column(&posted.payer), slot_column(posted.payee.as_ref().unwrap()));
        let found = |booking: &Booking, slots| {
            let mut found = Vec::new();
            check_slots(booking, slots, &mut |difference| found.push(difference.subject));
            found
        };
        assert_eq!(found(&posted, (payer, payee)), Vec::<String>::new());
        assert_eq!(found(&posted, (payer + 1, payee)), ["alice"]);
        assert_eq!(found(&posted, (payer, -1)), ["bob"]);
        let marker = Booking::marker(Position(1), 0);
        assert_eq!(found(&marker, (-1, -1)), Vec::<String>::new());
    }
}

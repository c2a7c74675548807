//! What reads answer: an account, a page of its journal, its balance at a time, transfers; many accounts in
//! [`account_list`].
//!
//! A row of an account may be older than the journal. The node lays the tail over it, which has everything that is not
//! folded. Two checks make the result as new as the database: the tail must reach the highest position of the row's
//! snapshot, and no fold may finish between the two looks at the tail. Bookings of another node of the shard are noticed by
//! their position, and the lane catches up first.
//!
//! An account's journal is a chain backwards from its head. A page in the middle enters the chain at the next waypoint
//! ([`statement`]), so that it takes no longer in a long history than in a short one.

pub mod account_list;

use std::time::Duration;

use ledger::{
    Account, AccountId, Booking, Entry, Limit, Position, TransferKey,
    booking::{BookingKind, Party, Role},
    history::{StoredRegister, StoredTransfer},
    outcome::TransferState,
};
use tokio::time::timeout;
use uuid::Uuid;
use wire::convert::state_to_columns;

use crate::{
    lane::LaneHandle,
    rpc::nothing_yet,
    store::{
        StoreError,
        bookings::{self, OfId, Transfers},
        read::{self, Owned, Reached, Readable},
        statement,
    },
    tail::{Overlay, Tail},
};

/// Folds that may finish during one read before it gives up. A fold takes far longer than a read.
pub const ATTEMPTS: usize = 8;

/// The lane loads its tail again within this time.
const RELOADS_WITHIN: Duration = Duration::from_secs(1);

/// What reads need: where to read, the lane, and the tail.
#[derive(Debug, Clone)]
pub struct Reads {
    pub from: Readable,
    pub lane: LaneHandle,
    pub tail: Tail,
}

impl Reads {
    /// Waits until the tail reaches the end of the journal.
    ///
    /// # Errors
    /// When the database cannot be read, or the lane cannot catch up with another node of the shard.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        let end = read::mark(&self.from).await?.position - 1;
        self.lane.reach(Position(end)).await
    }

    /// Waits until the tail reaches the end of the snapshot of a read that began when the projections reached `folded`.
    ///
    /// # Errors
    /// When the lane cannot catch up with another node of the shard, or its database.
    async fn reach(&self, folded: Position, reached: Reached) -> Result<(), StoreError> {
        // Another server was accepted that lacks a fold: its rows are older than the tail takes them to be.
        if reached.folded < folded {
            let progress = self.tail.progress();
            self.tail.set_outdated();
            let _ = timeout(RELOADS_WITHIN, progress).await;
        }
        self.lane.reach(reached.highest).await
    }

    /// The account with what the tail knows of it; `None` if it does not exist.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn account(&self, id: &AccountId) -> Result<Owned<Option<(Account, Overlay)>>, StoreError> {
        for _ in 0..ATTEMPTS {
            let (generation, folded) = self.tail.generation();
            let (row, reached) = match read::account(&self.from, id).await? {
                Owned::Here(found) => found,
                Owned::NotHere(not_owner) => return Ok(Owned::NotHere(not_owner)),
            };
            self.reach(folded, reached).await?;
            let mut overlay = self.tail.overlay(id);
            if overlay.generation != generation {
                continue;
            }
            let account = match (row, overlay.account.take()) {
                (Some(row), Some(newer)) if newer.version > row.version => Some(newer),
                (Some(row), _) => Some(row),
                (None, newer) => newer,
            };
            return Ok(Owned::Here(account.map(|account| (account, overlay))));
        }
        Err(StoreError::Fenced)
    }
}

/// Which entries are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    pub limit: i64,
    pub ascending: bool,
    /// Go on strictly beyond this version; 0: from the end.
    pub after_version: i64,
    /// Half-open window in microseconds.
    pub from_us: i64,
    pub to_us: i64,
    /// With the metadata of transfers and holds.
    pub with_metadata: bool,
}

/// A page of an account's journal; `None` if the account does not exist.
///
/// # Errors
/// When the database cannot be read.
pub async fn entries(
    reads: &Reads,
    id: &AccountId,
    page: Page,
) -> Result<Owned<Option<wire::EntryPage>>, StoreError> {
    let (account, overlay) = match reads.account(id).await? {
        Owned::Here(Some(found)) => found,
        Owned::Here(None) => return Ok(Owned::Here(None)),
        Owned::NotHere(not_owner) => return Ok(Owned::NotHere(not_owner)),
    };
    // Versions are gap-free and times never fall with them, so a window in time is a window of versions.
    let mut first = match page.from_us {
        i64::MIN => 1,
        from_us => version_at(reads, &account, &overlay, from_us.saturating_sub(1)).await?.0 + 1,
    };
    let mut last = match page.to_us {
        i64::MAX => account.version,
        to_us => version_at(reads, &account, &overlay, to_us.saturating_sub(1)).await?.0,
    };
    if page.after_version > 0 {
        if page.ascending {
            first = first.max(page.after_version.saturating_add(1));
        } else {
            last = last.min(page.after_version - 1);
        }
    }
    let wanted = (last - first + 1).clamp(0, page.limit);
    let has_more = last - first + 1 > page.limit;
    let mut entries = Vec::new();
    if wanted > 0 {
        let (oldest, newest) = if page.ascending { (first, first + wanted - 1) } else { (last - wanted + 1, last) };
        let bookings = statement::bookings(reads.from.pool()?, &account, &overlay.waypoints, oldest, newest).await?;
        if i64::try_from(bookings.len()) != Ok(wanted) {
            // The clean-up of a move came between the two statements. A page with a hole must not look whole.
            return Err(StoreError::Fenced);
        }
        entries.extend(bookings.iter().filter_map(|booking| Entry::of(booking, id)).map(entry_to_wire));
        if page.with_metadata {
            add_metadata(reads, id, &bookings, &mut entries).await?;
        }
        if page.ascending {
            entries.reverse();
        }
    }
    Ok(Owned::Here(Some(wire::EntryPage { entries, has_more, asset: account.asset.to_string() })))
}

/// Adds the metadata that this shard has. The first booking of a transfer or hold has it, so that most entries need no further read; for
/// settlements and ends of holds, whose debit account is this account, the first bookings are read in one statement. A register's
/// transfer is at its debit account's shard.
async fn add_metadata(
    reads: &Reads,
    account: &AccountId,
    bookings: &[Booking],
    entries: &mut [wire::Entry],
) -> Result<(), StoreError> {
    let first_role = |booking: &Booking| match booking.kind.role() {
        Role::Settlement => Some(Role::Transfer),
        Role::HoldEnd => Some(Role::Hold),
        Role::None | Role::Transfer | Role::Register | Role::Hold => None,
    };
    let keys: Vec<TransferKey> =
        bookings.iter().filter(|booking| first_role(booking).is_some()).filter_map(Booking::key).collect();
    let firsts = match keys.is_empty() {
        true => Vec::new(),
        false => bookings::of_keys(reads.from.pool()?, &keys, &[Role::Transfer, Role::Hold]).await?,
    };
    let of_first = |id, role| {
        firsts.iter().find(|first| first.id == Some(id) && first.payer == *account && first.kind.role() == role)
    };
    let legs = bookings.iter().filter(|booking| Entry::of(booking, account).is_some());
    for (booking, entry) in legs.zip(entries) {
        let first = match (booking.kind.role(), booking.id) {
            (Role::Transfer | Role::Hold, _) => Some(booking),
            (_, Some(id)) => first_role(booking).and_then(|role| of_first(id, role)),
            (_, None) => None,
        };
        entry.metadata = first.map(|first| first.metadata().shown().to_owned());
    }
    Ok(())
}

/// The newest version at or before a time and its entry; (0, None) before the account was opened.
async fn version_at(
    reads: &Reads,
    account: &Account,
    overlay: &Overlay,
    at_us: i64,
) -> Result<(i64, Option<Entry>), StoreError> {
    if at_us < account.created_at_us {
        return Ok((0, None));
    }
    let booking = statement::booking_at(reads.from.pool()?, account, &overlay.waypoints, at_us).await?;
    let entry = booking.and_then(|booking| Entry::of(&booking, &account.id));
    Ok((entry.as_ref().map_or(0, |entry| entry.leg.version), entry))
}

fn entry_to_wire(entry: Entry) -> wire::Entry {
    let (transfer, counterparty) = match entry.cause {
        Some((id, counterparty)) => (wire::convert::id_to_wire(id), counterparty.to_string()),
        None => Default::default(),
    };
    wire::Entry {
        position: entry.position.0,
        version: entry.leg.version,
        kind: entry.kind.code().into(),
        transfer_id: transfer,
        counterparty,
        amount: entry.amount,
        posted: entry.leg.posted,
        held: entry.leg.held,
        created_at_us: entry.at_us,
        overdraft: Some(entry.leg.overdraft.into()),
        ordered_by: wire::convert::name_to_wire(entry.ordered_by.as_ref()),
        is_credit: entry.party == Party::Payee,
        metadata: None,
    }
}

/// An account's balance at a time; `None` if the account does not exist.
///
/// # Errors
/// When the database cannot be read.
pub async fn balance_at(
    reads: &Reads,
    id: &AccountId,
    at_us: i64,
) -> Result<Owned<Option<wire::BalanceAt>>, StoreError> {
    let (account, overlay) = match reads.account(id).await? {
        Owned::Here(Some(found)) => found,
        Owned::Here(None) => return Ok(Owned::Here(None)),
        Owned::NotHere(not_owner) => return Ok(Owned::NotHere(not_owner)),
    };
    let asset = account.asset.to_string();
    let balance = match version_at(reads, &account, &overlay, at_us).await? {
        (version, Some(Entry { leg, .. })) => {
            let overdraft: Limit = leg.overdraft;
            wire::BalanceAt { asset, version, posted: leg.posted, held: leg.held, overdraft: Some(overdraft.into()) }
        }
        (_, None) => nothing_yet(asset),
    };
    Ok(Owned::Here(Some(balance)))
}

/// Transfers and registers of one id. An empty `debit` asks for all; a `debit` whose slot is not owned here is refused.
///
/// # Errors
/// When the database cannot be read.
pub async fn transfers(reads: &Reads, id: Uuid, debit: &str) -> Result<wire::GetTransfersResponse, StoreError> {
    let read = || transfers_now(reads, id, debit);
    let (mut found, not_owner) = read_of_slot(reads, debit, read, |found| found.transfers.is_empty()).await?;
    found.not_owner = not_owner;
    Ok(found)
}

async fn transfers_now(reads: &Reads, id: Uuid, debit: &str) -> Result<wire::GetTransfersResponse, StoreError> {
    let mut found = wire::GetTransfersResponse::default();
    let roles = [Role::Transfer, Role::Settlement, Role::Register];
    let OfId { here, elsewhere } = bookings::by_id(&reads.from, id, debit, &roles).await?;
    let is_refused = |booking: &Booking| {
        matches!(booking.kind, BookingKind::Rejected | BookingKind::Compensated | BookingKind::SettledRefused)
    };
    for booking in &elsewhere {
        match booking.kind.role() {
            Role::Register => found.registers_elsewhere.push(booking.payer.to_string()),
            Role::Transfer => {
                let is_rejected = elsewhere.iter().any(|other| other.payer == booking.payer && is_refused(other));
                let state = if is_rejected { TransferState::REJECTED } else { TransferState::POSTED };
                found.elsewhere.push(wire::TransferRecord {
                    id: booking.id.map(wire::convert::id_to_wire).unwrap_or_default(),
                    debit: booking.payer.to_string(),
                    credit: booking.payee.as_ref().map(ToString::to_string).unwrap_or_default(),
                    status: u32::from(state),
                    ..Default::default()
                });
            }
            Role::None | Role::Settlement | Role::Hold | Role::HoldEnd => {}
        }
    }
    let (registers, transfers): (Vec<Booking>, Vec<Booking>) =
        here.into_iter().partition(|booking| booking.kind.role() == Role::Register);
    let transfers = Transfers::of(transfers);
    let answers = bookings::answers_at(&reads.from, &transfers.answers()).await?;
    for (first, stored) in transfers.with(&answers)? {
        let mut record = transfer_record(&first, &stored);
        if let Some((attempts, next_attempt_us)) = first.key().and_then(|key| reads.tail.attempts(&key)) {
            (record.attempts, record.next_attempt_us) = (attempts, next_attempt_us);
        }
        let (reversed, reversals) = bookings::reversals(&reads.from, id, &record.debit).await?;
        record.reversed = reversed;
        record.reversals = reversals.into_iter().map(wire::convert::id_to_wire).collect();
        found.transfers.push(record);
    }
    for booking in &registers {
        let stored = StoredRegister::of(booking)?;
        let (credited, refusal, side) = wire::convert::verdict_to_wire(stored.verdict);
        found.registers.push(wire::RegisterRecord {
            id: booking.id.map(wire::convert::id_to_wire).unwrap_or_default(),
            debit: booking.payer.to_string(),
            credit: stored.credit.to_string(),
            credited,
            refusal,
            side,
            decided_at_us: stored.decided_at_us,
        });
    }
    Ok(found)
}

/// The transfers among `keys` that exist, with what is reversed of them. Three statements, however many keys.
///
/// # Errors
/// When the database cannot be read.
pub async fn transfers_of(reads: &Reads, keys: &[TransferKey]) -> Result<Vec<wire::TransferRecord>, StoreError> {
    let pool = reads.from.pool()?;
    let transfers = Transfers::of(bookings::of_keys(pool, keys, &[Role::Transfer, Role::Settlement]).await?);
    let answers = bookings::at(pool, &transfers.answers()).await?;
    let reversals = bookings::reversals_of(pool, keys).await?;
    let records = transfers.with(&answers)?.into_iter().map(|(first, stored)| {
        let mut record = transfer_record(&first, &stored);
        if let Some((reversed, ids)) = first.key().and_then(|key| reversals.get(&key)) {
            record.reversed = *reversed;
            record.reversals = ids.iter().copied().map(wire::convert::id_to_wire).collect();
        }
        record
    });
    Ok(records.collect())
}

/// Holds of one id. An empty `debit` asks for all; a `debit` whose slot is not owned here is refused.
///
/// # Errors
/// When the database cannot be read.
pub async fn holds(reads: &Reads, id: Uuid, debit: &str) -> Result<wire::GetHoldsResponse, StoreError> {
    let read = || holds_now(reads, id, debit);
    let (mut found, not_owner) = read_of_slot(reads, debit, read, |found| found.holds.is_empty()).await?;
    found.not_owner = not_owner;
    Ok(found)
}

async fn holds_now(reads: &Reads, id: Uuid, debit: &str) -> Result<wire::GetHoldsResponse, StoreError> {
    let OfId { here, elsewhere } = bookings::holds_of_id(&reads.from, id, debit).await?;
    let mut found = wire::GetHoldsResponse::default();
    found.elsewhere.extend(elsewhere.iter().map(|booking| booking.payer.to_string()));
    found.holds.extend(here.iter().map(|(key, hold)| wire::convert::hold_to_wire(key, hold)));
    Ok(found)
}

/// Reads bookings of an account, and, if there are none, whether its slot belongs to another shard. "None" is right if the shard owned the slot before
/// the read and after it.
async fn read_of_slot<T, F: Future<Output = Result<T, StoreError>>>(
    reads: &Reads,
    account: &str,
    read: impl Fn() -> F,
    is_empty: impl Fn(&T) -> bool,
) -> Result<(T, Option<wire::NotOwner>), StoreError> {
    let found = read().await?;
    if account.is_empty() || !is_empty(&found) {
        return Ok((found, None));
    }
    if let Some(not_owner) = not_owner_of(&reads.from, account).await? {
        return Ok((found, Some(not_owner)));
    }
    // The slot may have arrived between the two reads, with its bookings. Read once more: this shard owns the slot now.
    let found = read().await?;
    let not_owner = if is_empty(&found) { not_owner_of(&reads.from, account).await? } else { None };
    Ok((found, not_owner))
}

/// Whether the slot of an account belongs to another shard. An empty answer then says nothing.
async fn not_owner_of(from: &Readable, account: &str) -> Result<Option<wire::NotOwner>, StoreError> {
    let Ok(account) = AccountId::client(account) else { return Ok(None) };
    match read::account(from, &account).await? {
        Owned::NotHere(not_owner) => Ok(Some(not_owner.into())),
        Owned::Here(_) => Ok(None),
    }
}

/// A transfer as routers see it, without attempts and reversals.
pub fn transfer_record(first: &Booking, stored: &StoredTransfer) -> wire::TransferRecord {
    let key: Option<TransferKey> = first.key();
    let (status, refusal, side, finished_at_us) = state_to_columns(stored.state);
    let (refusal, side) = stored.presumed.map_or((refusal, side), wire::convert::refused_to_wire);
    wire::TransferRecord {
        id: key.map(|key| wire::convert::id_to_wire(key.id)).unwrap_or_default(),
        debit: first.payer.to_string(),
        credit: stored.credit.to_string(),
        asset: stored.asset.to_string(),
        amount: stored.amount,
        metadata: stored.metadata.shown().to_owned(),
        cross_shard: stored.cross_shard,
        status,
        refusal,
        side,
        debit_after: stored.debit_after.map(Into::into),
        created_at_us: stored.created_at_us,
        finished_at_us,
        attempts: 0,
        next_attempt_us: 0,
        purpose: wire::convert::purpose_to_wire(stored.purpose),
        reversed: 0,
        reversals: Vec::new(),
        ordered_by: wire::convert::name_to_wire(stored.ordered_by.as_ref()),
    }
}

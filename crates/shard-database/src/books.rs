//! The books of one shard: the fold of its whole journal, compared with the rows of every projection. No I/O.
//!
//! The rows are handed over first ([`Books::expect_account`] and its neighbours), then the bookings in the order of their
//! positions. A row states how far it reaches: an account's row by its version, the tables `saga` and `waypoint` by the
//! folded position, the table `hold` by the position of the snapshot it was read in. The fold compares a row when it gets
//! there, with the state that it has at that moment. A row that is behind the journal is therefore compared as exactly
//! as one that is not. Rows must be read before the end of the journal is fixed; then none of them can be ahead.
//!
//! After a difference the fold continues with what the booking says, so that one damaged booking is one difference.
//!
//! Bookings of slots that the shard does not own are left out: a move has left them behind, or has not brought all of them.
//! Legs are folded in the order of versions. An account that moved has legs in the ranges of several shards; the caller merges
//! the ranges by time, and a leg that comes too early all the same waits for the one before it.
//!
//! An account takes about 130 bytes, whatever its id and metadata: these are kept as hashes.

mod accounts;
mod holds;
mod sagas;

use std::collections::{BTreeMap, HashMap, HashSet};

use foldhash::fast::RandomState;
use ledger::{
    Account, AccountId, AssetCode, Booking, BookingKind, HoldKey, Limit, Position, TransferKey,
    booking::{Leg, Party, Role},
    fold::{self, FoldError, WAYPOINT_INTERVAL},
};

pub use accounts::Key;
use accounts::{Accounts, Place};
pub use holds::HoldRow;
use holds::Holds;
use sagas::{InTransit, Sagas};

use crate::OwnedSlots;

/// Something that is not as the journal says, or a journal that does not fit itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub rule: Rule,
    /// The account, transfer, hold or asset.
    pub subject: String,
    pub detail: String,
}

/// What a [`Difference`] breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// A leg's balances are the balances before it and what its booking moves.
    Balance,
    /// The accounts of a shard sum to 0 per asset.
    Sum,
    /// A settlement ends a saga of the same content.
    Saga,
    /// An id of a payer has one answer in each role, and the unique key that guards this is there.
    Once,
    /// No more is reversed than was paid.
    Reversal,
    /// A booking about a hold fits the hold, and an account holds what remains of its holds.
    Hold,
    /// `posted - held >= -overdraft`, at every leg.
    Floor,
    /// Versions have no gaps, each leg names the one before it, and times do not go back.
    Chain,
    /// A booking is complete and about accounts of its asset.
    Content,
    /// A booking names the slots of its accounts.
    Slot,
    /// A row of `account` is the fold of the account's legs up to the row's version.
    AccountRow,
    /// A row of `hold` is an open hold.
    HoldRow,
    /// A row of `saga` is a saga under way.
    SagaRow,
    /// A row of `waypoint` is a leg of that version.
    WaypointRow,
    /// The folded position is in the journal.
    FoldState,
}

/// Receives differences.
pub type Report<'r> = &'r mut (dyn FnMut(Difference) + Send);

/// How much was folded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub accounts: u64,
    pub bookings: u64,
    /// Legs, those of in-transit accounts included.
    pub entries: u64,
    pub transfers: u64,
    pub registers: u64,
}

/// What was reversed of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reversed {
    /// In minor units.
    pub sum: i128,
    /// Who paid back: the credit account of the original.
    pub payer: AccountId,
}

/// What is left to look up in the database when everything is folded.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Accounts whose rows are other than the fold at the rows' versions; metadata is left out. At most
    /// [`Leftovers::MISMATCHES`].
    pub mismatched: Vec<Account>,
    /// Rows of `account` whose versions the journal does not reach, with these versions.
    pub unreached: HashMap<Key, i64>,
    /// Accounts that were opened after their rows were read, or have none.
    pub without_row: Vec<AccountId>,
    /// Rows of `waypoint` that no leg explains.
    pub waypoints: HashSet<Key>,
    /// By original.
    pub reversals: HashMap<TransferKey, Reversed>,
    pub counts: Counts,
}

impl Leftovers {
    /// As many mismatches are described in full.
    pub const MISMATCHES: usize = 100;
}

pub struct Books {
    shard_number: u16,
    accounts: Accounts,
    holds: Holds,
    sagas: Sagas,
    reversals: HashMap<TransferKey, Reversed>,
    waypoints: HashSet<Key, RandomState>,
    /// The folded position before the rows of `account` were read, and that of the snapshot of the small tables.
    folded_before: Position,
    folded: Position,
    in_transit: BTreeMap<AssetCode, InTransit>,
    /// `None`: every slot.
    owned: Option<OwnedSlots>,
    /// The journal has bookings that other shards wrote.
    is_merged: bool,
    /// Legs that came before the leg of the version before them, by version.
    early: HashMap<AccountId, BTreeMap<i64, (Booking, Party)>>,
    mismatched: Vec<Account>,
    without_row: Vec<AccountId>,
    counts: Counts,
    last: Position,
}

impl Books {
    pub fn new(shard_number: u16) -> Self {
        Self {
            shard_number,
            accounts: Accounts::default(),
            holds: Holds::default(),
            sagas: Sagas::new(shard_number),
            reversals: HashMap::new(),
            waypoints: HashSet::default(),
            folded_before: Position::NONE,
            folded: Position::NONE,
            in_transit: BTreeMap::new(),
            owned: None,
            is_merged: false,
            early: HashMap::new(),
            mismatched: Vec::new(),
            without_row: Vec::new(),
            counts: Counts::default(),
            last: Position::NONE,
        }
    }

    /// The slots that the books are about. Without this, they are about every slot.
    pub fn expect_owned(&mut self, owned: OwnedSlots) {
        self.owned = Some(owned);
    }

    /// Bookings of several shards will be applied, merged by time.
    pub fn expect_merged(&mut self) {
        self.is_merged = true;
    }

    fn owns(&self, account: &AccountId) -> bool {
        self.owned.as_ref().is_none_or(|owned| owned.has(account))
    }

    // === rows ===

    /// The folded position as of before the first row of `account` was read. No row may be older.
    pub fn expect_folded_before(&mut self, position: Position) {
        self.folded_before = position;
    }

    /// A row of `account`.
    pub fn expect_account(&mut self, row: &Account) {
        if row.id.is_system() {
            self.in_transit.entry(row.asset).or_default().expect(row);
        } else if self.owns(&row.id) {
            self.accounts.expect(row);
        }
    }

    /// The rows of `hold`, read in a snapshot in which `at` was the highest position.
    pub fn expect_holds(&mut self, at: Position, mut rows: HashMap<HoldKey, HoldRow>) {
        rows.retain(|key, _| self.owns(&key.debit));
        self.holds.expect(at, rows);
    }

    /// The rows of `saga`, read in one snapshot with the folded position. `saga` and `waypoint` reach exactly this far.
    pub fn expect_sagas(&mut self, folded: Position, positions: HashSet<Position>) {
        self.folded = folded;
        self.sagas.expect(folded, positions);
    }

    /// A row of `waypoint`, read in the same snapshot.
    pub fn expect_waypoint(&mut self, account: &str, version: i64, position: Position, at_us: i64) {
        if AccountId::any(account).is_ok_and(|id| !self.owns(&id)) {
            return;
        }
        self.waypoints.insert(waypoint_key(account, version, position, at_us));
    }

    // === bookings ===

    /// Folds the booking that follows all those folded before.
    pub fn apply(&mut self, booking: &Booking, report: Report<'_>) {
        let is_own = booking.position.shard_number() == self.shard_number;
        if is_own {
            self.holds.before(booking.position, report);
            self.sagas.before(booking.position, report);
            self.last = booking.position;
        }
        let owner = booking.owner();
        let answers_for = match owner {
            Some(owner) => self.owns(owner),
            None => is_own,
        };
        if answers_for {
            self.counts.bookings += 1;
            match booking.kind.role() {
                Role::Transfer => self.counts.transfers += 1,
                Role::Register => self.counts.registers += 1,
                Role::None | Role::Settlement | Role::Hold | Role::HoldEnd => {}
            }
        }
        if booking.kind == BookingKind::Opened {
            if answers_for {
                self.open(booking, report);
            }
        } else {
            for (party, id, leg) in booking.legs() {
                if self.owns(id) {
                    self.apply_leg(booking, party, id, leg, report);
                }
            }
        }
        if booking.in_transit_share() != 0 || booking.kind.in_transit() != 0 {
            self.apply_in_transit(booking, answers_for, is_own, report);
        }
        if answers_for {
            self.sagas.apply(booking, report);
            self.holds.apply(booking, report);
        }
        self.note_reversal(booking, report);
    }

    fn open(&mut self, booking: &Booking, report: Report<'_>) {
        self.counts.entries += 1;
        let (id, position) = (&booking.payer, booking.position);
        let account = match fold::open_account(booking) {
            Ok(account) => account,
            Err(error) => {
                report(of_fold_error(id, &error));
                if let Some(leg) = &booking.payer_leg {
                    self.continue_with(booking, id, leg);
                }
                return;
            }
        };
        let place = match self.accounts.find(id) {
            Some(place) if self.accounts.at(place).version > 0 => {
                let detail = format!("booking {} opens it a second time", position.0);
                report(difference(Rule::Chain, id, detail));
                place
            }
            Some(place) => place,
            None => {
                // The row of an in-transit account is kept apart.
                let in_transit = id.is_system().then(|| self.in_transit.get(&booking.asset)).flatten();
                if !in_transit.is_some_and(InTransit::has_row) {
                    self.without_row.push(id.clone());
                }
                self.accounts.insert(id.as_str())
            }
        };
        self.accounts.open(place, &account);
        self.after_change(place, id, position, report);
    }

    fn apply_leg(&mut self, booking: &Booking, party: Party, id: &AccountId, leg: &Leg, report: Report<'_>) {
        let position = booking.position;
        let version = self.accounts.find(id).map_or(0, |place| self.accounts.at(place).version);
        if self.is_merged && leg.version > version + 1 {
            self.early.entry(id.clone()).or_default().insert(leg.version, (booking.clone(), party));
            return;
        }
        self.counts.entries += 1;
        if let Limit::AtMost(overdraft) = leg.overdraft
            && i128::from(leg.posted) - i128::from(leg.held) < -i128::from(overdraft)
        {
            let Leg { version, posted, held, .. } = leg;
            let detail = format!("version {version}: posted {posted}, held {held}, overdraft {overdraft}");
            report(difference(Rule::Floor, id, detail));
        }
        let place = self.accounts.find(id).filter(|place| self.accounts.at(*place).version > 0);
        let place = match place {
            Some(place) => {
                let mut account = self.accounts.account(place, id);
                if booking.at_us < account.updated_at_us {
                    let detail = format!("booking {} is earlier than the account's booking before it", position.0);
                    report(difference(Rule::Chain, id, detail));
                }
                match fold::apply_leg(&mut account, booking, party) {
                    Ok(true) => {
                        self.accounts.store(place, &account, booking.kind == BookingKind::Updated);
                        place
                    }
                    Ok(false) => {
                        let (before, after) = (account.version, leg.version);
                        let detail = format!("booking {} brings it from version {before} to {after}", position.0);
                        report(difference(Rule::Chain, id, detail));
                        self.continue_with(booking, id, leg)
                    }
                    Err(error) => {
                        report(of_fold_error(id, &error));
                        self.continue_with(booking, id, leg)
                    }
                }
            }
            None => {
                let detail = format!("booking {} has a leg of it, and none before opened it", position.0);
                report(difference(Rule::Chain, id, detail));
                self.continue_with(booking, id, leg)
            }
        };
        if fold_is_waypoint(leg.version)
            && self.is_folded(position)
            && !self.waypoints.remove(&waypoint_key(id.as_str(), leg.version, position, booking.at_us))
        {
            let detail = format!("version {} at position {} has no waypoint", leg.version, position.0);
            report(difference(Rule::WaypointRow, id, detail));
        }
        self.after_change(place, id, position, report);
        self.apply_early(id, leg.version + 1, report);
    }

    /// Applies a leg that came too early, if its turn has come.
    fn apply_early(&mut self, id: &AccountId, version: i64, report: Report<'_>) {
        let Some(waiting) = self.early.get_mut(id) else { return };
        let Some((booking, party)) = waiting.remove(&version) else { return };
        if waiting.is_empty() {
            self.early.remove(id);
        }
        if let Some(leg) = booking.leg(party).copied() {
            self.apply_leg(&booking, party, id, &leg, report);
        }
    }

    /// Whether the projections that reach exactly to a position include the booking. What came with a move came with its
    /// projections.
    fn is_folded(&self, position: Position) -> bool {
        position <= self.folded || position.shard_number() != self.shard_number
    }

    /// Takes the state that a leg records, where the leg does not continue the state before it.
    fn continue_with(&mut self, booking: &Booking, id: &AccountId, leg: &Leg) -> Place {
        let place = match self.accounts.find(id) {
            Some(place) => place,
            None => {
                self.without_row.push(id.clone());
                self.accounts.insert(id.as_str())
            }
        };
        self.accounts.continue_with(place, booking, leg);
        place
    }

    fn apply_in_transit(&mut self, booking: &Booking, answers_for: bool, is_own: bool, report: Report<'_>) {
        let of_asset = self.in_transit.entry(booking.asset).or_default();
        if answers_for {
            self.counts.entries += u64::from(is_own && booking.kind.in_transit() != 0);
            of_asset.add_share(booking);
        }
        if !is_own || booking.kind.in_transit() == 0 {
            return;
        }
        of_asset.change_row(booking, self.folded_before, report);
        let id = AccountId::in_transit(booking.asset);
        if self.accounts.find(&id).is_none() {
            let detail = format!("booking {} moves money through it, and none before opened it", booking.position.0);
            report(difference(Rule::Chain, &id, detail));
            self.accounts.insert(id.as_str());
        }
    }

    /// Compares the account's row, if the account has just got there.
    fn after_change(&mut self, place: Place, id: &AccountId, position: Position, report: Report<'_>) {
        match self.accounts.compare(place) {
            accounts::Compared::Equal | accounts::Compared::Elsewhere => {}
            accounts::Compared::Different => {
                let account = self.accounts.account(place, id);
                if self.mismatched.len() < Leftovers::MISMATCHES {
                    self.mismatched.push(account);
                } else {
                    report(difference(
                        Rule::AccountRow,
                        id,
                        format!("its row of version {} differs", account.version),
                    ));
                }
            }
            accounts::Compared::Passed { row_version }
                if position <= self.folded_before || position.shard_number() != self.shard_number =>
            {
                let detail = format!(
                    "its row is at version {row_version}, though booking {} is folded up to position {}",
                    position.0, self.folded_before.0
                );
                report(difference(Rule::AccountRow, id, detail));
            }
            accounts::Compared::Passed { .. } => {}
        }
    }

    fn note_reversal(&mut self, booking: &Booking, report: Report<'_>) {
        let reversal = matches!(booking.kind, BookingKind::Posted | BookingKind::Credited);
        let Some(of) = booking.purpose().reversed_transfer().filter(|_| reversal) else { return };
        // A reversal counts where the payer of its original is.
        let Some(payee) = booking.payee.as_ref().filter(|payee| self.owns(payee)) else { return };
        let key = TransferKey { id: of, debit: payee.clone() };
        let payer = booking.payer.clone();
        let reversed = self.reversals.entry(key).or_insert(Reversed { sum: 0, payer });
        reversed.sum += i128::from(booking.amount);
        if reversed.payer != booking.payer {
            let detail = format!("debit {payee}: both {} and {} paid it back", reversed.payer, booking.payer);
            report(Difference { rule: Rule::Reversal, subject: of.0.to_string(), detail });
        }
    }

    // === the end ===

    /// Checks what must hold when the last booking is folded. What is left has to be looked up in the database.
    pub fn finish(mut self, report: Report<'_>) -> Leftovers {
        // What still waits has a gap before it.
        self.is_merged = false;
        for (id, waiting) in std::mem::take(&mut self.early) {
            for (booking, party) in waiting.into_values() {
                if let Some(leg) = booking.leg(party).copied() {
                    self.apply_leg(&booking, party, &id, &leg, report);
                }
            }
        }
        self.holds.finish(report);
        self.sagas.finish(report);
        let folded = self.folded.max(self.folded_before);
        // A new shard is folded up to the position before its first.
        if folded > self.last && folded.next() != Position::first_of(self.shard_number) {
            let detail = format!("{}, the journal ends at {}", folded.0, self.last.0);
            report(Difference { rule: Rule::FoldState, subject: "folded_position".to_owned(), detail });
        }
        let mut sums = self.accounts.sums();
        for (asset, of_asset) in &self.in_transit {
            *sums.entry(*asset).or_default() += of_asset.sum();
            of_asset.finish(*asset, report);
        }
        for (asset, sum) in sums.into_iter().filter(|(_, sum)| *sum != 0) {
            let detail = format!("accounts sum to {sum} minor units");
            report(Difference { rule: Rule::Sum, subject: asset.to_string(), detail });
        }
        let mut due = self.holds.remaining();
        for state in self.accounts.states() {
            let (name, remaining) = match due.remove(&state.key) {
                Some((name, remaining)) => (name.to_string(), remaining),
                None => (format!("account of booking {}", state.head), 0),
            };
            if i128::from(state.held) != remaining {
                let detail = format!("the account holds {} minor units, its holds {remaining}", state.held);
                report(Difference { rule: Rule::Hold, subject: name, detail });
            }
        }
        for (name, remaining) in due.into_values() {
            let detail = format!("there is no such account, its holds come to {remaining}");
            report(difference(Rule::Hold, &name, detail));
        }
        Leftovers {
            mismatched: self.mismatched,
            unreached: self.accounts.unreached(),
            without_row: self.without_row,
            waypoints: self.waypoints.into_iter().collect(),
            reversals: self.reversals,
            counts: Counts { accounts: self.accounts.len(), ..self.counts },
        }
    }
}

/// Identifies a row of `waypoint` with all its columns.
pub fn waypoint_key(account: &str, version: i64, position: Position, at_us: i64) -> Key {
    Key::of_parts(account, [version, position.0, at_us])
}

fn fold_is_waypoint(version: i64) -> bool {
    version % WAYPOINT_INTERVAL == 0
}

fn difference(rule: Rule, account: &AccountId, detail: String) -> Difference {
    Difference { rule, subject: account.to_string(), detail }
}

fn of_fold_error(account: &AccountId, error: &FoldError) -> Difference {
    let rule = match error {
        FoldError::Version { .. } | FoldError::Chain { .. } => Rule::Chain,
        FoldError::Balance { .. } => Rule::Balance,
        FoldError::Content { .. } => Rule::Content,
        FoldError::Hold { .. } => Rule::Hold,
    };
    difference(rule, account, error.to_string())
}

#[cfg(test)]
mod tests;

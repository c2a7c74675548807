//! Bookings: the rows of the journal. A booking is written once and never changed, except that an erasure replaces its metadata.
//!
//! A booking has at most two legs, one of its payer and one of its payee. A leg records the account's version and its
//! balances after the booking, so the newest leg of an account is the account's state. The in-transit account of a
//! shard takes part in some kinds ([`BookingKind::in_transit`]); its leg is not recorded, because it follows from the
//! kind and the amount.

use crate::{
    AccountId, AccountStatus, AssetCode, KeyName, Limit, Metadata, Position, Refused, TransferId, TransferKey,
    operation::Purpose,
};

/// One row of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booking {
    pub position: Position,
    pub kind: BookingKind,
    /// The transfer or the hold; `None` where the kind answers nothing ([`Role::None`]).
    pub id: Option<TransferId>,
    /// The debit account of the transfer or hold; otherwise the account that was opened or updated.
    pub payer: AccountId,
    /// The credit account of the transfer or hold.
    pub payee: Option<AccountId>,
    pub asset: AssetCode,
    /// Minor units. Of the end of a hold: what the hold still reserved.
    pub amount: i64,
    /// Microseconds since the epoch. The times of an account's legs never decrease.
    pub at_us: i64,
    pub payer_leg: Option<Leg>,
    pub payee_leg: Option<Leg>,
    /// The API key that ordered it: of a transfer's or hold's first answer, of a register, and of a hold's end by a client. `None`: the
    /// router had no keys, or no client ordered it.
    pub ordered_by: Option<KeyName>,
    /// Content that most bookings lack.
    pub extra: Option<Box<Extra>>,
}

/// One account's side of a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leg {
    /// The account's version after the booking.
    pub version: i64,
    /// The position of the account's previous leg; [`Position::NONE`] for the first.
    pub previous: Position,
    /// Balances after the booking, in minor units.
    pub posted: i64,
    pub held: i64,
    /// The overdraft in force.
    pub overdraft: Limit,
}

/// Rare content of a booking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extra {
    /// Of a transfer, a hold or an account.
    pub metadata: Option<Metadata>,
    pub refused: Option<Refused>,
    pub purpose: Purpose,
    /// Of a rejected transfer: its payee lives on another shard.
    pub cross_shard: bool,
    /// The booking whose payer leg is the answer, where that is not this booking.
    pub answer: Option<Position>,
    /// Of a saga's first booking: when recovery may run the saga for the first time, in microseconds since the epoch.
    pub first_attempt_us: Option<i64>,
    /// Of a hold, in microseconds since the epoch; `None`: never.
    pub expires_at_us: Option<i64>,
    /// Of the end of a hold: what its captures posted in total, in minor units.
    pub captured: Option<i64>,
    /// Of an account that was opened or updated.
    pub attributes: Option<Attributes>,
    /// The transfer or hold whose metadata was erased. Its debit account is the booking's payee.
    pub erases: Option<TransferId>,
}

/// Attributes of an account, without its overdraft, which each leg carries, and without its metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    pub status: AccountStatus,
    pub max_balance: Limit,
}

/// What a booking records. The numbers are stored: never reuse one. The tens digit is the [`Role`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum BookingKind {
    /// An account was opened.
    Opened = 1,
    /// Status, limits or metadata of an account changed.
    Updated = 2,
    /// Takes a position and books nothing: a writer took over the shard, or the shard's state changed.
    Marker = 3,
    /// Slots moved to another shard: what their accounts held together goes to in-transit. The amount may be negative.
    MovedOut = 4,
    /// Slots came from another shard: what their accounts hold together comes from in-transit. The amount may be negative.
    MovedIn = 5,
    /// Slots moved to another shard: the in-transit shares of the bookings that left with them. No balance changes.
    SharesOut = 6,
    /// Slots came from another shard: the in-transit shares of the bookings that came with them. No balance changes.
    SharesIn = 7,
    /// The metadata of a transfer was erased. The payer is the debit account, or the credit account if this booking belongs to the credit account's slot.
    /// The payee is the debit account.
    TransferErased = 8,
    /// The metadata of a hold was erased. Payer and payee are the hold's debit account.
    HoldErased = 9,
    /// A transfer between two accounts of the shard.
    Posted = 11,
    /// A transfer was refused; no money moved.
    Rejected = 12,
    /// Step 1 of a saga: payer to in-transit.
    Reserved = 13,
    /// Step 1 of a saga whose refusal is presumed: nothing was reserved.
    Presumed = 14,
    /// Step 3 of a saga whose register says credited.
    Settled = 21,
    /// Step 3 of a saga whose register says refused: in-transit back to payer.
    Compensated = 22,
    /// Step 3 of a saga that reserved nothing.
    SettledRefused = 23,
    /// The register of a saga: in-transit to payee.
    Credited = 31,
    /// The register of a saga: refused.
    Refused = 32,
    /// A hold was placed.
    HoldPlaced = 41,
    /// A hold was refused.
    HoldRejected = 42,
    /// A hold ended with a capture; its rest, if any, is available again.
    HoldCaptured = 51,
    HoldReleased = 52,
    HoldExpired = 53,
}

/// What a booking is the answer to. Together with id and payer it is unique in a shard's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    None = 0,
    /// A transfer's first answer: posted, rejected, reserved or presumed to be refused.
    Transfer = 1,
    Settlement = 2,
    Register = 3,
    /// A hold's first answer.
    Hold = 4,
    HoldEnd = 5,
}

/// What an erasure removes metadata from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Erasure<'b> {
    Transfer(TransferKey),
    Hold(TransferKey),
    /// An account's opening, and its updates before `before_version`.
    Account {
        id: &'b AccountId,
        before_version: i64,
    },
}

/// A side of a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Party {
    Payer,
    Payee,
}

/// Changes of one account's balances, in minor units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Change {
    pub posted: i64,
    pub held: i64,
}

impl BookingKind {
    pub const ALL: [Self; 23] = [
        Self::Opened,
        Self::Updated,
        Self::Marker,
        Self::MovedOut,
        Self::MovedIn,
        Self::SharesOut,
        Self::SharesIn,
        Self::TransferErased,
        Self::HoldErased,
        Self::Posted,
        Self::Rejected,
        Self::Reserved,
        Self::Presumed,
        Self::Settled,
        Self::Compensated,
        Self::SettledRefused,
        Self::Credited,
        Self::Refused,
        Self::HoldPlaced,
        Self::HoldRejected,
        Self::HoldCaptured,
        Self::HoldReleased,
        Self::HoldExpired,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    pub fn role(self) -> Role {
        match self.code() / 10 {
            1 => Role::Transfer,
            2 => Role::Settlement,
            3 => Role::Register,
            4 => Role::Hold,
            5 => Role::HoldEnd,
            _ => Role::None,
        }
    }

    /// The signed share of the amount that the shard's in-transit account takes: 1, -1, or 0 where it takes no part.
    pub fn in_transit(self) -> i64 {
        match self {
            Self::Reserved | Self::MovedOut => 1,
            Self::Compensated | Self::Credited | Self::MovedIn => -1,
            _ => 0,
        }
    }

    /// Whether the booking belongs to the shard and to no slot: it stays when slots move.
    pub fn is_of_shard(self) -> bool {
        matches!(self, Self::Marker | Self::MovedOut | Self::MovedIn | Self::SharesOut | Self::SharesIn)
    }

    /// Whether the booking ends a hold.
    pub fn ends_hold(self) -> bool {
        self.role() == Role::HoldEnd
    }
}

impl Role {
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl Booking {
    /// A booking that takes a position and books nothing.
    pub fn marker(position: Position, at_us: i64) -> Self {
        Self {
            position,
            kind: BookingKind::Marker,
            id: None,
            payer: AccountId::marker(),
            payee: None,
            asset: AssetCode::NO_CURRENCY,
            amount: 0,
            at_us,
            payer_leg: None,
            payee_leg: None,
            ordered_by: None,
            extra: None,
        }
    }

    /// A booking about a move of slots: one of the kinds [`BookingKind::MovedOut`] to [`BookingKind::SharesIn`].
    pub fn of_move(position: Position, kind: BookingKind, asset: AssetCode, amount: i64, at_us: i64) -> Self {
        let payer = AccountId::in_transit(asset);
        Self { kind, payer, asset, amount, ..Self::marker(position, at_us) }
    }

    /// The account whose slot the booking belongs to: a register belongs to its payee, every other booking to its payer.
    /// `None`: the booking belongs to the shard.
    pub fn owner(&self) -> Option<&AccountId> {
        let owner = if self.kind.role() == Role::Register { self.payee.as_ref()? } else { &self.payer };
        (!owner.is_system()).then_some(owner)
    }

    /// The identity of the transfer or hold.
    pub fn key(&self) -> Option<TransferKey> {
        Some(TransferKey { id: self.id?, debit: self.payer.clone() })
    }

    pub fn purpose(&self) -> Purpose {
        self.extra.as_ref().map_or(Purpose::Payment, |extra| extra.purpose)
    }

    /// What the booking erases, if it is an erasure.
    pub fn erasure(&self) -> Option<Erasure<'_>> {
        let of_key = || {
            let id = self.extra.as_ref()?.erases?;
            Some(TransferKey { id, debit: self.payee.clone()? })
        };
        match self.kind {
            BookingKind::TransferErased => Some(Erasure::Transfer(of_key()?)),
            BookingKind::HoldErased => Some(Erasure::Hold(of_key()?)),
            BookingKind::Updated if self.metadata() == Metadata::erased() => {
                Some(Erasure::Account { id: &self.payer, before_version: self.payer_leg?.version })
            }
            _ => None,
        }
    }

    /// Erases the metadata of both copies of a booking, if an erasure has reached one of them.
    pub fn share_erasure(&mut self, copy: &mut Self) {
        let erased = Some(Metadata::erased());
        let (Some(here), Some(there)) = (&mut self.extra, &mut copy.extra) else { return };
        if here.metadata.is_some()
            && there.metadata.is_some()
            && (here.metadata == erased || there.metadata == erased)
        {
            here.metadata.clone_from(&erased);
            there.metadata = erased;
        }
    }

    /// Replaces the metadata, if it is what `erasure` erases.
    pub fn erase(&mut self, erasure: &Erasure<'_>) {
        let is_meant = match erasure {
            Erasure::Transfer(key) => self.kind.role() == Role::Transfer && self.key().as_ref() == Some(key),
            Erasure::Hold(key) => self.kind.role() == Role::Hold && self.key().as_ref() == Some(key),
            Erasure::Account { id, before_version } => {
                matches!(self.kind, BookingKind::Opened | BookingKind::Updated)
                    && self.payer == **id
                    && self.payer_leg.is_some_and(|leg| leg.version < *before_version)
            }
        };
        let metadata = self.extra.as_mut().and_then(|extra| extra.metadata.as_mut());
        if let Some(metadata) = metadata.filter(|metadata| is_meant && metadata.has_text()) {
            *metadata = Metadata::erased();
        }
    }

    pub fn metadata(&self) -> Metadata {
        self.extra.as_ref().and_then(|extra| extra.metadata.clone()).unwrap_or_else(Metadata::empty)
    }

    pub fn refused(&self) -> Option<Refused> {
        self.extra.as_ref()?.refused
    }

    pub fn leg(&self, party: Party) -> Option<&Leg> {
        match party {
            Party::Payer => self.payer_leg.as_ref(),
            Party::Payee => self.payee_leg.as_ref(),
        }
    }

    /// The recorded legs with their accounts.
    pub fn legs(&self) -> impl Iterator<Item = (Party, &AccountId, &Leg)> {
        let payer = self.payer_leg.as_ref().map(|leg| (Party::Payer, &self.payer, leg));
        let payee = self.payee_leg.as_ref().zip(self.payee.as_ref()).map(|(leg, id)| (Party::Payee, id, leg));
        payer.into_iter().chain(payee)
    }

    /// How the booking changes a party's balances; `None` where that party has no leg.
    pub fn change(&self, party: Party) -> Option<Change> {
        change(self.kind, self.purpose(), self.amount, party)
    }

    /// How the booking changes the shard's in-transit account of its asset, in minor units.
    pub fn in_transit_change(&self) -> i64 {
        self.kind.in_transit() * self.amount
    }

    /// What the booking contributes to the sum that a shard's in-transit account must have: the changes by all bookings that
    /// the shard answers for, also those that another shard wrote, and its own bookings about moves (`docs/adr/0010`).
    pub fn in_transit_share(&self) -> i64 {
        match self.kind {
            BookingKind::SharesOut => self.amount,
            BookingKind::SharesIn => -self.amount,
            _ => self.in_transit_change(),
        }
    }

    /// What a statement shows for a party's leg.
    pub fn entry_kind(&self, party: Party) -> EntryKind {
        match self.kind {
            BookingKind::Opened => EntryKind::Opened,
            BookingKind::Updated => EntryKind::Updated,
            BookingKind::Compensated => EntryKind::Compensated,
            BookingKind::HoldPlaced => EntryKind::Held,
            BookingKind::HoldCaptured | BookingKind::HoldReleased => EntryKind::Released,
            BookingKind::HoldExpired => EntryKind::Expired,
            BookingKind::Posted | BookingKind::Reserved
                if party == Party::Payer && self.purpose().captured_hold().is_some() =>
            {
                EntryKind::Captured
            }
            BookingKind::Reserved => EntryKind::Reserved,
            _ => EntryKind::Posted,
        }
    }
}

/// How a booking changes a party's balances; `None` where the kind has no leg of that party.
pub fn change(kind: BookingKind, purpose: Purpose, amount: i64, party: Party) -> Option<Change> {
    let captured = if purpose.captured_hold().is_some() { amount } else { 0 };
    match (kind, party) {
        (BookingKind::Opened | BookingKind::Updated, Party::Payer) => Some(Change::default()),
        (BookingKind::Posted | BookingKind::Reserved, Party::Payer) => {
            Some(Change { posted: -amount, held: -captured })
        }
        (BookingKind::Posted | BookingKind::Credited, Party::Payee) => Some(Change { posted: amount, held: 0 }),
        (BookingKind::Compensated, Party::Payer) => Some(Change { posted: amount, held: captured }),
        (BookingKind::HoldPlaced, Party::Payer) => Some(Change { posted: 0, held: amount }),
        // A hold of which nothing is left reserves nothing.
        (BookingKind::HoldCaptured | BookingKind::HoldReleased | BookingKind::HoldExpired, Party::Payer)
            if amount > 0 =>
        {
            Some(Change { posted: 0, held: -amount })
        }
        _ => None,
    }
}

/// One account's side of a booking, as a statement shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub kind: EntryKind,
    /// The side of the booking that the account is on.
    pub party: Party,
    pub leg: Leg,
    /// Signed change of `posted`, in minor units.
    pub amount: i64,
    /// The transfer or hold, with the account at its other side.
    pub cause: Option<(TransferId, AccountId)>,
    pub at_us: i64,
    /// The API key that ordered the booking.
    pub ordered_by: Option<KeyName>,
}

impl Entry {
    /// The entry of `account` in a booking; `None` if the booking has no leg of the account.
    pub fn of(booking: &Booking, account: &AccountId) -> Option<Self> {
        let (party, _, leg) = booking.legs().find(|(_, id, _)| *id == account)?;
        let counterparty = match party {
            Party::Payer => booking.payee.clone(),
            Party::Payee => Some(booking.payer.clone()),
        };
        Some(Self {
            position: booking.position,
            kind: booking.entry_kind(party),
            party,
            leg: *leg,
            amount: booking.change(party)?.posted,
            cause: booking.id.zip(counterparty),
            at_us: booking.at_us,
            ordered_by: booking.ordered_by.clone(),
        })
    }
}

/// What an entry of a statement records. The numbers travel on the wire: never reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The account was opened.
    Opened = 1,
    /// Status, limits or metadata changed; no money moved.
    Updated = 2,
    /// A leg of a posted transfer: both legs of a local one, the payee's of a cross-shard one.
    Posted = 3,
    /// Payer to in-transit: step 1 of a saga.
    Reserved = 4,
    /// In-transit back to payer: the saga's credit side refused.
    Compensated = 5,
    /// A hold was placed; only `held` changes. The cause is the hold.
    Held = 6,
    /// The payer's leg of a capture: out of `posted` and `held` at once. The cause is the capture.
    Captured = 7,
    /// A hold, or the rest of one after its final capture, is available again. The cause is the hold.
    Released = 8,
    /// A hold expired; what remained of it is available again. The cause is the hold.
    Expired = 9,
}

impl EntryKind {
    pub const ALL: [Self; 9] = [
        Self::Opened,
        Self::Updated,
        Self::Posted,
        Self::Reserved,
        Self::Compensated,
        Self::Held,
        Self::Captured,
        Self::Released,
        Self::Expired,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.code() == code)
    }

    /// Whether the cause of such an entry is a hold and not a transfer.
    pub fn is_of_hold(self) -> bool {
        matches!(self, Self::Held | Self::Released | Self::Expired)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Updated => "updated",
            Self::Posted => "posted",
            Self::Reserved => "reserved",
            Self::Compensated => "compensated",
            Self::Held => "held",
            Self::Captured => "captured",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_roles_agree_with_their_numbers() {
        for kind in BookingKind::ALL {
            assert_eq!(BookingKind::from_code(kind.code()), Some(kind));
            assert_eq!(kind.role().code(), kind.code() / 10, "{kind:?}");
        }
        assert_eq!(BookingKind::from_code(0), None);
    }

    #[test]
    fn every_booking_balances() {
        let capture = Purpose::Capture { hold: TransferId(uuid::Uuid::from_u128(1)), whole: false, finalize: true };
        // The counterpart of a move's bookings are the accounts that moved.
        for kind in BookingKind::ALL.into_iter().filter(|kind| !kind.is_of_shard()) {
            for purpose in [Purpose::Payment, capture] {
                let posted = |party| change(kind, purpose, 7, party).map_or(0, |change| change.posted);
                let sum = posted(Party::Payer) + posted(Party::Payee) + kind.in_transit() * 7;
                assert_eq!(sum, 0, "INV-1: {kind:?}, {purpose:?}");
            }
        }
    }
}

//! What is known of ids used before.

use std::collections::{HashMap, HashSet};

use crate::{
    AccountId, Hold, HoldKey, TransferKey,
    fold::Reserved,
    history::{Original, StoredRegister, StoredTransfer},
    operation::CreateAccount,
};

/// What is known of ids used before this batch.
#[derive(Debug)]
pub enum Prior {
    /// Nothing. Every id is taken to be new.
    Unknown,
    /// What the database holds under some of the ids. Every other id is taken to be new.
    Suspected(Stored),
    /// What the database holds under all ids.
    Loaded(Stored),
}

impl Prior {
    pub(super) fn stored(&self) -> Option<&Stored> {
        match self {
            Self::Unknown => None,
            Self::Suspected(stored) | Self::Loaded(stored) => Some(stored),
        }
    }

    pub(super) fn stored_mut(&mut self) -> Option<&mut Stored> {
        match self {
            Self::Unknown => None,
            Self::Suspected(stored) | Self::Loaded(stored) => Some(stored),
        }
    }
}

/// What the database holds under a batch's ids.
#[derive(Debug, Default)]
pub struct Stored {
    pub transfers: HashMap<TransferKey, StoredTransfer>,
    pub registers: HashMap<TransferKey, StoredRegister>,
}

/// The money of one account that reserved transfers have put in transit. It comes back if their verdicts are refusals.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// What would be posted again, in minor units.
    pub posted: i128,
    /// What would be available again, in minor units: the same without captures.
    pub available: i128,
    /// Some of the accounts that the transfers pay.
    pub credits: Vec<AccountId>,
}

impl UnderWay {
    /// So many accounts are named.
    pub const MOST_CREDITS: usize = 8;

    pub fn add(&mut self, reserved: &Reserved) {
        self.posted += i128::from(reserved.amount);
        if !reserved.is_capture {
            self.available += i128::from(reserved.amount);
        }
        if self.credits.len() < Self::MOST_CREDITS && !self.credits.contains(&reserved.credit) {
            self.credits.push(reserved.credit.clone());
        }
    }

    pub fn subtract(&mut self, reserved: &Reserved) {
        self.posted -= i128::from(reserved.amount);
        if !reserved.is_capture {
            self.available -= i128::from(reserved.amount);
        }
    }
}

/// Rows that operations name in addition to accounts and ids. They are always loaded, because the decision is about them. What is
/// missing here does not exist.
#[derive(Debug, Default)]
pub struct Named {
    pub holds: HashMap<HoldKey, Hold>,
    pub originals: HashMap<TransferKey, Original>,
    /// The sagas under way among those that operations settle.
    pub sagas: HashMap<TransferKey, StoredTransfer>,
    /// Of the accounts to be closed, those with a transfer in flight.
    pub in_flight: HashSet<AccountId>,
    /// Of the accounts that operations name, those with reserved money that may come back.
    pub under_way: HashMap<AccountId, UnderWay>,
    /// What accounts were opened with, of those that [`Openings`](super::Openings) asks for.
    pub openings: HashMap<AccountId, CreateAccount>,
}

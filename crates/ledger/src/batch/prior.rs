//! What is known of ids used before.

use std::collections::{HashMap, HashSet};

use crate::{
    AccountId, Hold, HoldKey, TransferKey,
    history::{Original, StoredRegister, StoredTransfer},
    operation::CreateAccount,
};

/// What is known of ids used before this batch.
#[derive(Debug)]
pub enum Prior {
    Unknown,
    Loaded(Stored),
}

/// What the database holds under a batch's ids.
#[derive(Debug, Default)]
pub struct Stored {
    pub transfers: HashMap<TransferKey, StoredTransfer>,
    pub registers: HashMap<TransferKey, StoredRegister>,
}

/// Rows that operations name besides accounts and ids. They are always loaded, because the decision is about them. What is
/// missing here does not exist.
#[derive(Debug, Default)]
pub struct Named {
    pub holds: HashMap<HoldKey, Hold>,
    pub originals: HashMap<TransferKey, Original>,
    /// The sagas under way among those that operations settle.
    pub sagas: HashMap<TransferKey, StoredTransfer>,
    /// Of the accounts to be closed, those with a transfer in flight.
    pub in_flight: HashSet<AccountId>,
    /// What accounts were opened with, of those that [`Openings`](super::Openings) asks for.
    pub openings: HashMap<AccountId, CreateAccount>,
}

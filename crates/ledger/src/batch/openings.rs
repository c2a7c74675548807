//! What accounts were opened with: a creation that comes again is compared with it, since the account may have been changed
//! between its first answer, which was lost, and now.
//!
//! It is in the booking that opened the account ([`Account::opened`]). Reading the booking costs a round trip, so it is read only
//! where the decision can depend on it.

use std::collections::{HashMap, HashSet};

use crate::{
    Account, AccountId,
    accounts::Accounts,
    operation::{CreateAccount, Operation},
};

/// The openings a batch may be decided on. None, unless an account is created again.
#[derive(Debug, Default)]
pub struct Openings<'a> {
    /// Of accounts at their first version: they are what they were opened with.
    pub known: HashMap<AccountId, CreateAccount>,
    /// The accounts whose first bookings have to be read; no account twice.
    pub to_load: Vec<&'a Account>,
}

impl<'a> Openings<'a> {
    /// Asked for when all `accounts` of the operations are loaded and before the first operation is decided.
    pub fn of<'o>(accounts: &'a Accounts, operations: impl Iterator<Item = &'o Operation>) -> Self {
        let mut created: Vec<&CreateAccount> = Vec::new();
        let mut updated: HashSet<&AccountId> = HashSet::new();
        for operation in operations {
            match operation {
                Operation::CreateAccount(create) => created.push(create),
                Operation::UpdateAccount(update) => drop(updated.insert(&update.id)),
                _ => {}
            }
        }
        let mut asked_for = HashSet::new();
        let mut openings = Self::default();
        for create in created {
            let Some(there) = accounts.get(&create.id) else { continue };
            // What is so now is a replay, unless the batch may make it otherwise before.
            let may_differ = create.differs_from(there).is_some() || updated.contains(&there.id);
            // Assets do not change: with another one it is a conflict.
            if create.asset != there.asset || !may_differ || !asked_for.insert(&there.id) {
                continue;
            }
            if there.version == 1 {
                openings.known.insert(there.id.clone(), CreateAccount::like(there));
            } else {
                openings.to_load.push(there);
            }
        }
        openings
    }
}

//! `/v1/accounts`

mod change;
mod list;
mod open;
mod read;

pub use change::{__path_change, change};
pub use list::{__path_list, list};
pub use open::{__path_open, __path_open_batch, open, open_batch};
pub use read::{__path_balance, __path_entries, __path_show, balance, entries, show};

use ledger::AccountId;

use super::problem::{Code, Problem};

/// The URL names an account that does not exist.
pub fn no_such_account(id: &AccountId) -> Problem {
    Problem::new(Code::AccountNotFound, format!("there is no account {id}"))
}

//! The parameters of lists: how many at once, where to go on, and which accounts.

use ledger::AccountPrefix;

use super::{problem::Code, query::Parameters};

pub const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 500;

/// What `cursor` is, for whoever sent something else.
pub const CURSOR_EXPECTED: &str = "next_cursor of the page before";

/// Takes `limit`.
pub fn limit(parameters: &mut Parameters) -> u32 {
    let limit = parameters.take_as("limit", "a number from 1 to 500", |text| {
        text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit))
    });
    limit.unwrap_or(DEFAULT_LIMIT)
}

/// Takes `prefix`, the empty one where there is none. `None`: it is no good, which [`Parameters::finish`] will say.
pub fn prefix(parameters: &mut Parameters) -> Option<AccountPrefix> {
    let text = parameters.take("prefix").unwrap_or_default();
    let prefix = AccountPrefix::new(&text);
    if let Err(reason) = &prefix {
        parameters.refuse(Code::InvalidParameter, "prefix", &format!("the beginning of account ids; {reason}"));
    }
    prefix.ok()
}

//! The parameters of lists: how many at once, where to go on, and which accounts.

use std::time::Duration;

use ledger::AccountPrefix;
use telemetry::clock;

use super::{problem::Code, query::Parameters};

pub const DEFAULT_LIMIT: u32 = 50;
pub const MAX_LIMIT: u32 = 500;

/// What `cursor` is, for a client that sent something else.
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

pub const TIME_EXPECTED: &str = "a time in RFC 3339, such as 2026-01-31T12:00:00Z (a + in an offset is %2B)";

/// Takes `at`, in microseconds since the epoch. A time to come is now: nothing is known of it.
pub fn instant(parameters: &mut Parameters) -> Option<i64> {
    parameters.take_as("at", TIME_EXPECTED, clock::parse_rfc3339).map(|at_us| at_us.min(clock::now_us()))
}

/// The time after which no shard commits anything that is dated before: its lane dates a batch and commits it some milliseconds later, and
/// its clock may be a second behind that of this router.
const SETTLED_AFTER_US: i64 = 2_000_000;

/// Waits until an instant is settled, so that an answer as of it does not have one side of a payment and lack the other.
pub async fn settled(at_us: i64) {
    let wait_us = (at_us + SETTLED_AFTER_US - clock::now_us()).clamp(0, SETTLED_AFTER_US);
    tokio::time::sleep(Duration::from_micros(wait_us.unsigned_abs())).await;
}

/// Times before 1970 are before everything this ledger can know; 0 means "open" on the wire.
pub fn positive_time(text: &str) -> Option<i64> {
    clock::parse_rfc3339(text).map(|us| us.max(1))
}

/// Refuses what only pages have, in an answer that is whole.
pub fn refuse_pages(parameters: &mut Parameters, why: &str) {
    for name in ["limit", "cursor"] {
        if parameters.take(name).is_some() {
            parameters.refuse(Code::InvalidParameter, name, why);
        }
    }
}

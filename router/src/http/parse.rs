//! Request bodies: bytes to the ledger's types.
//!
//! Each body has two readers. The fast one is typed serde over the borrowed bytes; it allocates what the ledger's types
//! need and nothing else, and it says no more than yes or no. Only when it says no does the second one run: it reads the
//! body into a tree that keeps duplicate keys, and names everything wrong with it, each with its code and JSON pointer.
//! Both apply the same [`rules`], and a test holds them to the same verdict over a table of bodies.

mod account;
mod account_changes;
mod explain;
mod fields;
mod follow_up;
mod hold;
mod ndjson;
mod rules;
#[cfg(test)]
mod tests;
mod transfer;
mod transfer_batch;
mod tree;

use ledger::{AccountId, AssetCode, AssetRegistry, TransferId};

pub use account::{AccountBatchBody, AccountBody, account, account_batch};
pub use account_changes::{AccountChanges, account_changes};
pub use follow_up::{CaptureBody, FollowUp, ReversalBody, capture, release, reversal};
pub use hold::{HoldBody, hold};
pub use ndjson::transfer_lines;
pub use rules::UNLIMITED;
pub use transfer::{TransferBody, transfer};
pub use transfer_batch::{TransferBatch, TransferBatchBody, transfer_batch};

use super::problem::{Code, Problem};

/// Items in one batch.
pub const MAX_BATCH_ITEMS: usize = 10_000;

/// What the readers need to know.
#[derive(Debug, Clone)]
pub struct Rulebook {
    pub assets: AssetRegistry,
}

impl Rulebook {
    pub fn new(assets: AssetRegistry) -> Self {
        Self { assets }
    }

    /// The amount of a transfer or hold in minor units. `None`: it is not an amount, or the asset is unknown.
    fn positive_amount(&self, text: &str, asset: AssetCode) -> Option<i64> {
        rules::positive_amount(text, self.assets.scale(asset)?).ok()
    }
}

/// What the fast reader makes of a body.
fn typed<'a, T: serde::Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok().map(|fields::Object(body)| body)
}

/// An account id as a URL names it.
pub fn account_id_parameter(text: &str) -> Result<AccountId, Problem> {
    AccountId::client(text).map_err(|reason| Problem::parameter(Code::InvalidId, "id", reason.to_string()))
}

/// A transfer's or hold's id as a URL names it.
pub fn transfer_id_parameter(text: &str) -> Result<TransferId, Problem> {
    rules::transfer_id(text).map_err(|reason| Problem::parameter(Code::InvalidId, "id", reason))
}

//! Wire messages to the ledger's types and back.
//!
//! Whatever comes off the wire is checked as if a stranger had sent it: a router of another version may have.

mod account;
mod hold;
mod identity;
mod operation;
mod outcome;
mod slots;
mod value;

pub use self::{
    hold::{hold_from_wire, hold_status_from_wire, hold_to_wire},
    identity::{
        assets_from_wire, assets_to_wire, marks_from_wire, marks_to_wire, shard_mark_from_wire, shard_mark_to_wire,
    },
    operation::{Submitted, name_from_wire, name_to_wire, operation_to_wire},
    outcome::{presumed_from_wire, state_from_wire, state_to_columns},
    slots::{slots_from_wire, slots_to_wire},
    value::{
        account_id, asset, id_from_wire, id_to_wire, purpose_from_wire, purpose_to_wire, refused_from_wire,
        refused_to_wire, verdict_from_wire, verdict_to_wire,
    },
};

/// A message that no well-behaved peer sends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{field}: {reason}")]
    Bad { field: &'static str, reason: String },
}

fn bad(field: &'static str, reason: impl ToString) -> BadMessage {
    BadMessage::Bad { field, reason: reason.to_string() }
}

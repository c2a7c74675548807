//! The steps of a cross-shard transfer.

use ledger::outcome::TransferState;
use serde::Serialize;
use telemetry::clock::format_rfc3339;
use utoipa::ToSchema;

use crate::{core::reply::FoundTransfer, http::openapi::values};

/// One durable step of a cross-shard transfer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Step)]
pub struct StepView {
    #[schema(value_type = values::StepName)]
    pub step: &'static str,
    pub shard: String,
    #[schema(value_type = values::Time)]
    pub at: String,
}

/// The steps that left a trace: the record and the register are all there is, nothing is inferred from time. `None`: the
/// register could not be read, or was read before the record; a list with a hole would look whole.
pub fn steps(found: &FoundTransfer, state: TransferState) -> Option<Vec<StepView>> {
    let record = &found.record;
    let at_source = |step, at_us| StepView { step, shard: found.shard.to_string(), at: format_rfc3339(at_us) };
    let reserved = record.debit_after.is_some();
    let decided = match state {
        TransferState::Posted { .. } => true,
        TransferState::Rejected { .. } => reserved,
        TransferState::Pending => false,
    };
    if found.register.is_none() && (decided || found.verdict_unread) {
        return None;
    }
    let mut steps = Vec::new();
    if reserved {
        steps.push(at_source("reserve", record.created_at_us));
    }
    if let Some((register, shard)) = &found.register {
        let at = format_rfc3339(register.decided_at_us);
        steps.push(StepView { step: "decide", shard: shard.to_string(), at });
    }
    match state {
        TransferState::Pending => {}
        TransferState::Posted { at_us } => steps.push(at_source("settle", at_us)),
        TransferState::Rejected { at_us, .. } if reserved => steps.push(at_source("compensate", at_us)),
        // Presumed to be refused, and the verdict was: there is nothing to give back.
        TransferState::Rejected { at_us, .. } if found.register.is_some() => steps.push(at_source("settle", at_us)),
        // Refused by its debit side outright: there was no saga.
        TransferState::Rejected { .. } => {}
    }
    Some(steps)
}

#[cfg(test)]
mod tests {
    use ledger::{AssetRegistry, Refusal};

    use super::*;
    use crate::http::view::transfer::{TransferView, tests::found};

    #[test]
    fn steps_follow_what_is_stored() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        for (found, expected) in [
            (found(TransferState::PENDING, None, true, false), vec!["reserve s0"]),
            (found(TransferState::PENDING, None, true, true), vec!["reserve s0", "decide s1"]),
            (found(TransferState::POSTED, None, true, true), vec!["reserve s0", "decide s1", "settle s0"]),
            (
                found(TransferState::REJECTED, Some(Refusal::AccountClosed), true, true),
                vec!["reserve s0", "decide s1", "compensate s0"],
            ),
            (found(TransferState::REJECTED, Some(Refusal::InsufficientFunds), false, false), vec![]),
            (found(TransferState::REJECTED, Some(Refusal::ExceedsHold), false, true), vec!["decide s1", "settle s0"]),
        ] {
            let view = TransferView::stored(found, &assets).unwrap();
            let steps: Vec<_> = view.steps.unwrap().iter().map(|s| format!("{} {}", s.step, s.shard)).collect();
            assert_eq!(steps, expected);
        }
    }

    #[test]
    fn steps_with_a_hole_are_not_shown() {
        let assets = AssetRegistry::with_declared([]).unwrap();
        let steps = |found| TransferView::stored(found, &assets).unwrap().steps;
        assert!(steps(found(TransferState::POSTED, None, true, false)).is_none(), "settled without its verdict");
        let unread = |status| FoundTransfer { verdict_unread: true, ..found(status, None, true, false) };
        assert!(steps(unread(TransferState::PENDING)).is_none(), "decided or not, nobody knows");
    }
}

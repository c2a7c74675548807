//! The core's errors as problems: the one place that maps them.

use super::problem::{Code, Problem};
use crate::core::call::CallError;

/// The code of an error.
pub fn code(error: &CallError) -> Code {
    match error {
        CallError::Unavailable { .. }
        | CallError::Deadline { .. }
        | CallError::Unfinished { .. }
        | CallError::Deferred { .. } => Code::ShardUnavailable,
        CallError::Undetermined { .. } => Code::Undetermined,
        CallError::Overloaded { .. } => Code::Overloaded,
        CallError::ShuttingDown => Code::ShuttingDown,
        CallError::OutcomeUnknown { .. } => Code::OutcomeUnknown,
        CallError::Illegal { .. } | CallError::Internal { .. } => Code::Internal,
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let code = code(&error);
        match error {
            CallError::Unavailable { shard } => Self::new(code, "the shard cannot be reached").with_shard(&*shard),
            CallError::Deadline { shard } => {
                Self::new(code, "the deadline passed before the shard's turn came").with_shard(&*shard)
            }
            CallError::Unfinished { shard } => {
                let detail = "the sum as of this time did not end within the time of the request: many accounts have moved since. Send \
                              X-Request-Timeout-Ms (up to 30000), ask for narrower prefixes and add up, or read GET /v1/accounts?at=, \
                              which is sent part by part";
                Self::new(code, detail).with_shard(&*shard)
            }
            CallError::Overloaded { shard } => {
                Self::new(code, "too much is waiting for the shard").with_shard(&*shard)
            }
            CallError::Deferred { shard } => {
                Self::new(code, "a capture or transfer under way has to finish first and did not in time")
                    .with_shard(&*shard)
            }
            CallError::Undetermined { shard } => {
                let detail = "the answer depends on another transfer of the account that is under way to the shard named in `shard`: if \
                              that transfer is refused, its money comes back. Nothing was executed; send the same request again";
                Self::new(code, detail).with_shard(&*shard)
            }
            CallError::ShuttingDown => Self::new(code, "another router takes the request"),
            CallError::OutcomeUnknown { shard } => {
                Self::new(code, "resend the same id to learn whether it took effect").with_shard(&*shard)
            }
            CallError::Illegal { .. } | CallError::Internal { .. } => {
                tracing::error!(%error, "a request failed for a reason that must not be");
                Self::internal()
            }
        }
    }
}

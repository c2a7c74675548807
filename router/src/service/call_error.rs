//! Why a call has no answer.

use std::{fmt::Debug, sync::Arc};

/// Why a call has no answer from the ledger. What is not [`CallError::OutcomeUnknown`] or [`CallError::Internal`] had no
/// effect and never will.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not executed: the shard cannot be reached, or its database cannot.
    #[error("shard {shard} is unavailable")]
    Unavailable { shard: Arc<str> },
    /// Not executed: a queue on the way to the shard is full.
    #[error("shard {shard} is overloaded")]
    Overloaded { shard: Arc<str> },
    /// Not executed: this router is draining.
    #[error("the router is shutting down")]
    ShuttingDown,
    /// Not executed: the deadline passed before the operation's turn came.
    #[error("the deadline passed before the operation began on shard {shard}")]
    Deadline { shard: Arc<str> },
    /// Not executed: the node gave a sum up that took all the time there was.
    #[error("the sum did not end on shard {shard}")]
    Unfinished { shard: Arc<str> },
    /// Not executed: something before it has not finished in time. A capture in flight keeps its hold waiting, a transfer
    /// under way its reversal.
    #[error("what has to finish first on shard {shard} did not")]
    Deferred { shard: Arc<str> },
    /// Not executed: whether it is refused depends on transfers under way whose verdicts are not known. One of them pays into this shard.
    #[error("a transfer under way to shard {shard} may yet change the answer")]
    Undetermined { shard: Arc<str> },
    /// It may have been executed. The same id sent again gives the definite answer.
    #[error("the outcome on shard {shard} is unknown")]
    OutcomeUnknown { shard: Arc<str> },
    /// Not executed: an invariant would have been broken; rolled back. A human must look.
    #[error("shard {shard} refused to break an invariant: {detail}")]
    Illegal { shard: Arc<str>, detail: String },
    /// The shard answered what no shard should. Whether it was executed is unknown. A human must look.
    #[error("shard {shard} gave an answer that makes no sense: {detail}")]
    Internal { shard: Arc<str>, detail: String },
}

impl CallError {
    /// The shard said what no shard should.
    pub fn nonsense(shard: &Arc<str>, detail: impl ToString) -> Self {
        Self::Internal { shard: Arc::clone(shard), detail: detail.to_string() }
    }

    /// The shard answered something that was not asked.
    pub fn beside_the_question(shard: &Arc<str>, answer: &impl Debug) -> Self {
        Self::nonsense(shard, format!("an answer to another question: {answer:?}"))
    }

    /// Whether the call certainly had no effect.
    pub fn is_not_executed(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown { .. } | Self::Internal { .. })
    }
}

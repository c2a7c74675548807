//! The terms of a call to a shard: its deadline, the pauses between attempts, and why there is no answer.

use std::{fmt::Debug, sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};

/// The deadline of the whole request.
pub type Deadline = Instant;

/// Why a call has no answer from the ledger. Every error except [`CallError::OutcomeUnknown`] and [`CallError::Internal`] says that the
/// call had no effect and will have none.
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
    /// Not executed: the node gave up a sum that took all the time there was.
    #[error("the sum did not end on shard {shard}")]
    Unfinished { shard: Arc<str> },
    /// Not executed: another operation had to finish first and did not in time. The release of a hold waits for a capture in flight, a
    /// reversal waits for its original.
    #[error("what has to finish first on shard {shard} did not")]
    Deferred { shard: Arc<str> },
    /// Not executed: whether it is refused depends on transfers under way whose verdicts are not known. One of them pays into this shard.
    #[error("a transfer under way to shard {shard} may yet change the answer")]
    Undetermined { shard: Arc<str> },
    /// The operation may have been executed. The same id sent again gives the definite answer.
    #[error("the outcome on shard {shard} is unknown")]
    OutcomeUnknown { shard: Arc<str> },
    /// Not executed: the operation would have broken an invariant and was rolled back. An operator must look into it.
    #[error("shard {shard} refused to break an invariant: {detail}")]
    Illegal { shard: Arc<str>, detail: String },
    /// The answer of the shard breaks the protocol. Whether the operation was executed is unknown. An operator must look into it.
    #[error("shard {shard} gave an answer that makes no sense: {detail}")]
    Internal { shard: Arc<str>, detail: String },
}

impl CallError {
    /// The answer of the shard breaks the protocol.
    pub fn nonsense(shard: &Arc<str>, detail: impl ToString) -> Self {
        Self::Internal { shard: Arc::clone(shard), detail: detail.to_string() }
    }

    /// The shard answered another question than the one it was asked.
    pub fn other_question(shard: &Arc<str>, answer: &impl Debug) -> Self {
        Self::nonsense(shard, format!("an answer to another question: {answer:?}"))
    }

    /// Whether it is certain that the call had no effect.
    pub fn is_not_executed(&self) -> bool {
        !matches!(self, Self::OutcomeUnknown { .. } | Self::Internal { .. })
    }
}

/// The pauses between the attempts at one piece of work: each is longer than the one before, with jitter.
#[derive(Debug)]
pub struct Pace {
    delays: ExponentialBackoff,
}

impl Pace {
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let delays = ExponentialBuilder::new()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        Self { delays }
    }

    /// Waits before the next attempt. Returns false at once if the deadline comes first.
    pub async fn pause(&mut self, deadline: Deadline) -> bool {
        let Some(delay) = self.delays.next() else { return false };
        if Instant::now() + delay >= deadline {
            return false;
        }
        sleep(delay).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_cap_and_stop_at_the_deadline() {
        let begun = Instant::now();
        let deadline = begun + Duration::from_secs(5);
        let mut pace = Pace::new(Duration::from_millis(10), Duration::from_millis(100));
        let mut pauses = 0;
        while pace.pause(deadline).await {
            pauses += 1;
            assert!(pauses < 200, "the cap is 100 ms");
        }
        assert!(pauses >= 5 * 1000 / 200, "jitter at most doubles a pause: {pauses}");
        assert!(Instant::now() < deadline);
    }
}

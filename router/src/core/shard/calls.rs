//! Calls to the node of a shard: reads, with bounds of their own, and the report of every call to the breaker.

use std::sync::Arc;

use node_client::{CallFailure, Connection};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use super::{NodeClient, Shard, breaker::Signal};
use crate::core::call::{CallError, Deadline};

/// Reads of one shard at once; h2's default of 200 streams per connection stays out of reach.
pub const READS_AT_ONCE: usize = 128;
/// The most of these reads that go through many rows. The node makes them one after another, and other reads must not wait behind them.
pub const SCANS_AT_ONCE: usize = 4;
/// The most of these scans that may take all the time of their requests. The node gives turns to other scans between their parts.
pub const LONG_SCANS_AT_ONCE: usize = 2;
/// Reads of one shard that run or wait; more are refused as overloaded.
pub const READS_ADMITTED: usize = 2_048;

impl Shard {
    /// Makes a read. A read that was lost with its connection is made once more, because it has no effect.
    pub async fn read<A, Make, Reply>(&self, deadline: Deadline, mut make: Make) -> Result<A, CallError>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        if self.breaker().refuses(Instant::now()) {
            self.metrics.refused_by_breaker.increment(1);
            return Err(self.unavailable());
        }
        let Ok(_admitted) = self.reads_admitted.try_acquire() else {
            self.metrics.reads_full.increment(1);
            return Err(CallError::Overloaded { shard: Arc::clone(&self.id) });
        };
        let Ok(_turn) = timeout_at(deadline, self.reads_at_once.acquire()).await else {
            self.metrics.expired.increment(1);
            return Err(self.late());
        };
        if !self.breaker().admit(Instant::now()) {
            self.metrics.refused_by_breaker.increment(1);
            return Err(self.unavailable());
        }
        let mut answer = self.call(deadline, |connection| make(connection.client())).await;
        if matches!(answer, Err(CallFailure::Lost(_))) && self.budget.spend() {
            answer = self.call(deadline, |connection| make(connection.client())).await;
        }
        answer.map_err(|failure| of_read(&self.id, failure))
    }

    /// Makes a read that goes through many rows.
    pub async fn scan<A, Make, Reply>(&self, deadline: Deadline, make: Make) -> Result<A, CallError>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let Ok(_turn) = timeout_at(deadline, self.scans_at_once.acquire()).await else {
            self.metrics.expired.increment(1);
            return Err(self.late());
        };
        self.read(deadline, make).await
    }

    /// Makes a scan that may take all the time of its request.
    pub async fn long_scan<A, Make, Reply>(&self, deadline: Deadline, make: Make) -> Result<A, CallError>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let Ok(_turn) = timeout_at(deadline, self.long_scans_at_once.acquire()).await else {
            self.metrics.expired.increment(1);
            return Err(self.late());
        };
        self.scan(deadline, make).await
    }

    /// Asks the node something about itself, whatever the state of the breaker: an operator sees by this that a shard is back.
    pub async fn probe<A, Make, Reply>(&self, deadline: Deadline, mut make: Make) -> Result<A, CallFailure>
    where
        Make: FnMut(NodeClient) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        self.call(deadline, |connection| make(connection.client())).await
    }

    /// Makes a call and reports to the breaker how it ended.
    pub(super) async fn call<A, Make, Reply>(&self, until: Instant, make: Make) -> Result<A, CallFailure>
    where
        Make: FnMut(Connection) -> Reply,
        Reply: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let report = Report { shard: self, reported: false };
        let answer = self.client.call(until, make).await;
        report.of(&answer);
        answer
    }

    fn record(&self, signal: Signal, failure: Option<&CallFailure>) {
        let now = Instant::now();
        let mut breaker = self.breaker();
        if breaker.record(signal, now)
            && let Some(failure) = failure
        {
            tracing::warn!(shard = %self.id, %failure, "breaker opened: calls to this shard are refused for a while");
        }
        drop(breaker);
        if signal == Signal::Answered {
            self.budget.earn();
        }
    }
}

/// Why a read has no answer.
fn of_read(shard: &Arc<str>, failure: CallFailure) -> CallError {
    let shard = Arc::clone(shard);
    match failure {
        CallFailure::NotSent(_) | CallFailure::Lost(_) => CallError::Unavailable { shard },
        CallFailure::TooLate | CallFailure::NoAnswer => CallError::Deadline { shard },
        CallFailure::Refused { code: Code::ResourceExhausted, .. } => CallError::Overloaded { shard },
        // Only the node itself says so, and only of a sum.
        CallFailure::Refused { code: Code::DeadlineExceeded, .. } => CallError::Unfinished { shard },
        CallFailure::Refused { code: Code::Cancelled, .. } => CallError::Deadline { shard },
        CallFailure::Refused { code: Code::Unavailable, .. } => CallError::Unavailable { shard },
        CallFailure::Refused { detail, .. } => CallError::nonsense(&shard, detail),
    }
}

/// Reports to the breaker how a call ended, also when its caller has stopped waiting: the call may have been the probe.
struct Report<'a> {
    shard: &'a Shard,
    reported: bool,
}

impl Report<'_> {
    fn of<A>(mut self, answer: &Result<A, CallFailure>) {
        self.reported = true;
        let signal = match answer {
            Ok(_) | Err(CallFailure::Refused { .. }) => Signal::Answered,
            // The next call goes to another node of the shard. All calls that were lost together would otherwise open the breaker, and
            // that node would be kept from its work.
            Err(CallFailure::Lost(_)) if self.shard.client.has_untried_node() => Signal::NoAnswer,
            Err(CallFailure::NotSent(_) | CallFailure::Lost(_)) => Signal::ConnectionFailed,
            Err(CallFailure::TooLate | CallFailure::NoAnswer) => Signal::NoAnswer,
        };
        self.shard.record(signal, answer.as_ref().err());
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if !self.reported {
            self.shard.record(Signal::NoAnswer, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_unfinished_only_if_the_node_gave_it_up_for_want_of_time() {
        let shard: Arc<str> = "s0".into();
        let refused = |code| of_read(&shard, CallFailure::Refused { code, detail: String::new() });
        assert_eq!(refused(Code::DeadlineExceeded), CallError::Unfinished { shard: Arc::clone(&shard) });
        // A frozen node says nothing. The node knows nothing of a call that was cancelled on the way.
        for late in
            [of_read(&shard, CallFailure::NoAnswer), of_read(&shard, CallFailure::TooLate), refused(Code::Cancelled)]
        {
            assert_eq!(late, CallError::Deadline { shard: Arc::clone(&shard) });
        }
        assert_eq!(refused(Code::Unavailable), CallError::Unavailable { shard });
    }
}

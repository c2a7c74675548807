//! The spans of a call of Execute (`docs/adr/0019-traces.md`).
//!
//! One call has operations of many requests. Each request that is recorded gets spans of its own, so that its trace is whole without
//! another request's.

use telemetry::traces::{Kind, Recorder, Span, Traceparent};
use tokio::time::Instant;

use crate::lane::Attempt;

/// One span for each request of a call that is recorded.
pub struct BatchSpans(Vec<Span>);

impl BatchSpans {
    /// `None`: no request of the call is recorded. The call has `operations` operations.
    pub fn begin(recorder: &'static Recorder, traces: &[wire::Trace], operations: usize) -> Option<Self> {
        let of_request = |trace: &wire::Trace| {
            let caller = Traceparent::parse(trace.traceparent.as_bytes())?;
            let mut span = recorder.begin("batch", Kind::Server, Some(caller))?;
            name_call(&mut span, "execute");
            span.set("shardledger.operations", i64::from(trace.count));
            span.set("shardledger.call_operations", number(operations));
            Some(span)
        };
        let spans: Vec<_> = traces.iter().filter_map(of_request).collect();
        (!spans.is_empty()).then_some(Self(spans))
    }

    /// Ends the spans, with the lane's times as parts of each.
    pub fn end(self, attempts: &[Attempt]) {
        let queued_until = attempts.first().map_or_else(Instant::now, |attempt| attempt.begun);
        for span in self.0 {
            drop(span.part("queue", span.begun(), queued_until));
            for Attempt { begun, decided, sent, ended, operations, failed } in attempts {
                drop(span.part("decide", *begun, *decided));
                let mut commit = span.part("commit", *sent, *ended);
                commit.set("shardledger.commit_operations", number(*operations));
                if let Some(why) = failed {
                    commit.fail(*why);
                }
            }
        }
    }
}

/// Says which call the span stands for. `method` is as metrics name it.
pub fn name_call(span: &mut Span, method: &'static str) {
    span.set("rpc.system", "grpc");
    span.set("rpc.service", "shardledger.v1.ShardNode");
    span.set("rpc.method", method);
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

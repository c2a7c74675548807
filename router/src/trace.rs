//! The request that the current task works on, as the log names it (with the name of its key and the transfer that it orders), and its W3C trace context: taken from the client and
//! passed on to the shard-nodes. The id of the trace is in the log of the router and of each node.
//!
//! If the request is recorded ([`telemetry::traces`]), its trace context names the router's own span of the request, and each call to a shard for
//! the request has a span within it. Otherwise the client's trace context is passed on: unchanged if traces are off, and as not sampled if this
//! router has decided not to record the request.

use std::sync::{Arc, OnceLock};

use axum::extract::{MatchedPath, Request};
use http::{HeaderValue, Method, StatusCode, Uri};
use keys::Key;
use ledger::TransferId;
use telemetry::{
    logging::Subject,
    traces::{self, Kind, Recorder, Span, Traceparent},
};
use uuid::Uuid;

/// A request, by what the log says of it.
#[derive(Debug, Clone)]
pub struct Context {
    pub id: HeaderValue,
    pub method: Method,
    pub uri: Uri,
    /// What calls for the request carry. It is sampled if and only if the request is recorded, provided that traces are on.
    pub traceparent: Option<Traceparent>,
    /// The key that the request came with, once it is known.
    pub key: OnceLock<Arc<Key>>,
    /// Set if this router takes requests without keys.
    pub needs_no_key: OnceLock<()>,
    /// The transfer or hold that the request orders, once it is read. A batch has none.
    pub transfer: OnceLock<Uuid>,
    pub hold: OnceLock<Uuid>,
    /// Set once an operation of the request was sent to a node again.
    pub sent_again: OnceLock<()>,
}

tokio::task_local! {
    static CURRENT: Option<Arc<Context>>;
}

/// What the log says of events while a request is worked on.
pub const SUBJECT: Subject = Subject {
    name: "request",
    fields: |field| {
        let Some(context) = current() else { return };
        field("id", context.id.to_str().unwrap_or_default());
        field("method", context.method.as_str());
        field("path", context.uri.path());
        if let Some(key) = context.key.get() {
            field("key", key.name.as_str());
        }
        for (name, id) in [("transfer", &context.transfer), ("hold", &context.hold)] {
            if let Some(id) = id.get() {
                field(name, id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
            }
        }
        if let Some(traceparent) = &context.traceparent {
            field("trace", &traceparent.trace_id().to_string());
        }
    },
};

/// The request that this task works on.
pub fn current() -> Option<Arc<Context>> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// From now on, every line of the log about this request names this transfer.
pub fn names_transfer(id: TransferId) {
    if let Some(context) = current() {
        let _ = context.transfer.set(id.0);
    }
}

/// From now on, every line of the log about this request names this hold.
pub fn names_hold(id: TransferId) {
    if let Some(context) = current() {
        let _ = context.hold.set(id.0);
    }
}

/// Takes note that an operation of the request was sent again, because the answer to the first sending was lost: a result that was stored before
/// the last sending may be the request's own.
pub fn notes_sent_again() {
    if let Some(context) = current() {
        let _ = context.sent_again.set(());
    }
}

/// Whether an operation of the request was sent again.
pub fn was_sent_again() -> bool {
    current().is_some_and(|context| context.sent_again.get().is_some())
}

/// The trace context of the request that this task works on.
pub fn current_traceparent() -> Option<Traceparent> {
    CURRENT.try_with(|context| context.as_ref()?.traceparent).ok().flatten()
}

// === spans ===

/// What OpenTelemetry writes in place of a method that is not known: in the attribute, and in the name of a span.
const OTHER_METHOD: &str = "_OTHER";
const ANY_METHOD: &str = "HTTP";

/// Begins the span of a request, if it is recorded. `method` is that of the request; `None`: the client made it up, and it may be long. Returns
/// the trace context for calls that the request causes.
pub fn begin(
    recorder: Option<&'static Recorder>,
    method: Option<&'static str>,
    request: &Request,
) -> (Option<Span>, Option<Traceparent>) {
    let caller = Traceparent::of(request.headers());
    let Some(recorder) = recorder else { return (None, caller) };
    let Some(mut span) = recorder.begin("", Kind::Server, caller) else {
        return (None, caller.map(Traceparent::not_sampled));
    };
    let in_name = method.unwrap_or(ANY_METHOD);
    // A path that no route matches was made up by the client, and is no name.
    match request.extensions().get::<MatchedPath>() {
        Some(route) => {
            span.rename(format!("{in_name} {}", route.as_str()));
            span.set("http.route", route.as_str().to_owned());
        }
        None => span.rename(in_name),
    }
    span.set("http.request.method", method.unwrap_or(OTHER_METHOD));
    let traceparent = span.traceparent();
    (Some(span), Some(traceparent))
}

/// Ends the span of a request that is answered. `code` is that of the problem.
pub fn answered(span: Span, context: &Context, status: StatusCode, code: Option<&'static str>) {
    let is_of_known_client = context.key.get().is_some() || context.needs_no_key.get().is_some();
    let span = if is_of_known_client { Some(span) } else { span.drawn_anew() };
    let Some(mut span) = span else { return };
    span.set("http.response.status_code", i64::from(status.as_u16()));
    span.set("shardledger.request_id", context.id.to_str().unwrap_or_default().to_owned());
    for (key, id) in [("shardledger.transfer_id", &context.transfer), ("shardledger.hold_id", &context.hold)] {
        if let Some(id) = id.get() {
            span.set(key, id.to_string());
        }
    }
    if let Some(code) = code {
        span.set("shardledger.code", code);
    }
    if status.is_server_error() {
        span.fail(code.unwrap_or_default());
    }
}

/// The trace context of a call to a shard for the request that this task works on, and the span of the call if the request is recorded.
pub fn begin_call(shard: &str, operations: usize) -> (Option<Traceparent>, Option<Box<Span>>) {
    let Some(request) = current_traceparent() else { return (None, None) };
    let span = traces::recorder()
        .and_then(|recorder| recorder.begin_within(request, Kind::Client, || format!("call {shard}")));
    let Some(mut span) = span else { return (Some(request), None) };
    span.set("rpc.system", "grpc");
    span.set("rpc.service", "shardledger.v1.ShardNode");
    span.set("rpc.method", "execute");
    span.set("shardledger.shard", shard.to_owned());
    span.set("shardledger.operations", i64::try_from(operations).unwrap_or(i64::MAX));
    (Some(span.traceparent()), Some(Box::new(span)))
}

/// Does work for a request. A task that is spawned for it has to be told again.
pub async fn within<F: Future>(context: Option<Arc<Context>>, work: F) -> F::Output {
    CURRENT.scope(context, work).await
}

/// A request without a name, for tests.
#[cfg(test)]
pub fn some_request() -> Arc<Context> {
    Arc::new(Context {
        id: HeaderValue::from_static("a-1"),
        method: Method::POST,
        uri: Uri::from_static("/v1/transfers?dry_run=true"),
        traceparent: None,
        key: OnceLock::new(),
        needs_no_key: OnceLock::new(),
        transfer: OnceLock::new(),
        hold: OnceLock::new(),
        sent_again: OnceLock::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[tokio::test]
    async fn it_lasts_as_long_as_the_work() {
        let traceparent = Traceparent::parse(format!("00-{TRACE}-b7ad6b7169203331-01").as_bytes());
        let context = Context { traceparent, ..Arc::unwrap_or_clone(some_request()) };
        let named = || {
            let mut fields = Vec::new();
            (SUBJECT.fields)(&mut |name, value| fields.push(format!("{name}={value}")));
            fields.join(" ")
        };
        assert_eq!((current_traceparent(), named()), (None, String::new()));
        within(Some(Arc::new(context)), async {
            assert_eq!(current_traceparent(), traceparent);
            assert_eq!(named(), format!("id=a-1 method=POST path=/v1/transfers trace={TRACE}"));
            names_transfer(TransferId(Uuid::nil()));
            assert!(named().contains("transfer=00000000-0000-0000-0000-000000000000"), "{}", named());
        })
        .await;
        assert_eq!((current_traceparent(), named()), (None, String::new()));
    }
}

//! The request that the current task works on, as the log names it (with the name of its key and the transfer that it orders), and its W3C trace context: taken from the client and
//! passed on unchanged to the shard-nodes. The router adds no span of its own to the trace. The id of the trace is in the
//! log of the router and of each node.

use std::sync::{Arc, OnceLock};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use keys::Key;
use ledger::TransferId;
use telemetry::logging::Subject;
use uuid::Uuid;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Versions to come may append to it; longer is not believed.
const LONGEST: usize = 128;

/// A well-formed `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traceparent(Arc<str>);

impl Traceparent {
    /// The request's, where it has a well-formed one. Any other is as good as none: the standard wants no error.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(TRACEPARENT)?.to_str().ok().filter(|text| text.len() <= LONGEST)?;
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |part: &str, len: usize| {
            part.len() == len && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let is_given = |part: &str| part.bytes().any(|b| b != b'0');
        let is_well_formed = hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && hex(trace, 32)
            && is_given(trace)
            && hex(parent, 16)
            && is_given(parent)
            && hex(flags, 2);
        is_well_formed.then(|| Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What all of a trace have in common.
    pub fn trace_id(&self) -> &str {
        self.0.split('-').nth(1).unwrap_or_default()
    }
}

/// A request, by what the log says of it.
#[derive(Debug, Clone)]
pub struct Context {
    pub id: HeaderValue,
    pub method: Method,
    pub uri: Uri,
    pub traceparent: Option<Traceparent>,
    /// The key that the request came with, once it is known.
    pub key: OnceLock<Arc<Key>>,
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
            field("trace", traceparent.trace_id());
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
    CURRENT.try_with(|context| context.as_ref()?.traceparent.clone()).ok().flatten()
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
        transfer: OnceLock::new(),
        hold: OnceLock::new(),
        sent_again: OnceLock::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn read(text: &str) -> Option<Traceparent> {
        Traceparent::of(&HeaderMap::from_iter([(TRACEPARENT, text.parse().unwrap())]))
    }

    #[test]
    fn well_formed_trace_contexts_are_taken() {
        let text = format!("00-{TRACE}-b7ad6b7169203331-01");
        let taken = read(&text).unwrap();
        assert_eq!((taken.as_str(), taken.trace_id()), (text.as_str(), TRACE));
        assert!(read(&format!("01-{TRACE}-b7ad6b7169203331-01-of-the-future")).is_some());
    }

    #[test]
    fn others_are_not() {
        for bad in [
            String::new(),
            "x".to_owned(),
            format!("00-{TRACE}-b7ad6b7169203331"),
            format!("00-{TRACE}-b7ad6b7169203331-01-more"),
            format!("ff-{TRACE}-b7ad6b7169203331-01"),
            format!("00-{}-b7ad6b7169203331-01", TRACE.to_uppercase()),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("01-{TRACE}-b7ad6b7169203331-01-{}", "x".repeat(LONGEST)),
        ] {
            assert_eq!(read(&bad), None, "{bad:?}");
        }
    }

    #[tokio::test]
    async fn it_lasts_as_long_as_the_work() {
        let traceparent = read(&format!("00-{TRACE}-b7ad6b7169203331-01"));
        let context = Context { traceparent: traceparent.clone(), ..Arc::unwrap_or_clone(some_request()) };
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

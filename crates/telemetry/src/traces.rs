//! Traces: spans that are sent to a collector by OTLP. Without a collector in the configuration there are none
//! (`docs/adr/0019-traces.md`).
//!
//! A span exists only for a request that is recorded, so a request that is not recorded costs one look at [`recorder`]. Spans
//! go into a bounded queue, and a task of their own sends them ([`export`]): a request never waits for the collector.

pub mod export;
mod traceparent;

use std::{
    borrow::Cow,
    sync::OnceLock,
    time::{Duration, UNIX_EPOCH},
};

use metrics::{Counter, counter, describe_counter};
use opentelemetry::{
    InstrumentationScope, KeyValue, TraceFlags,
    trace::{SpanContext, SpanId, Status, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::Instant};

pub use self::{
    export::{Export, Service, install},
    traceparent::{TRACEPARENT, Traceparent},
};
pub use opentelemetry::{Value, trace::SpanKind as Kind};

/// Counter: spans that the collector took.
pub const SPANS_EXPORTED: &str = "shardledger_trace_spans_exported_total";
/// Counter, label `reason`: `queue_full` or `not_exported`.
pub const SPANS_DROPPED: &str = "shardledger_trace_spans_dropped_total";

const QUEUE_FULL: &str = "queue_full";
const NOT_EXPORTED: &str = "not_exported";

/// Section `[traces]` of every service's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// The collector's receiver for OTLP by gRPC: `http://HOST:4317`, or `https://HOST:4317` with the authorities that the machine trusts.
    /// Without it there are no traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// The part of the traces that is recorded, from 0 to 1; 0: none. It counts for requests without a `traceparent`, and for those whose
    /// `traceparent` says that they are sampled. A request whose `traceparent` says that it is not sampled is never recorded.
    pub sample_ratio: f64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { otlp_endpoint: None, sample_ratio: 1.0 }
    }
}

/// A setting of `[traces]` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct TracesError {
    pub setting: &'static str,
    pub reason: String,
}

impl TracesConfig {
    /// Refuses what no trace could be sent with, for `--check-config`. It makes no connection.
    ///
    /// # Errors
    /// The ratio is none, or the endpoint is no address of a receiver.
    pub fn check(&self) -> Result<(), TracesError> {
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            let reason = format!("{} is not a number from 0 to 1", self.sample_ratio);
            return Err(TracesError { setting: "traces.sample_ratio", reason });
        }
        self.otlp_endpoint.as_deref().map_or(Ok(()), |endpoint| export::address(endpoint).map(drop))
    }
}

/// Describes the metrics, and makes their series exist.
pub(crate) fn describe() {
    describe_counter!(SPANS_EXPORTED, "Spans that the collector of the traces took.");
    describe_counter!(
        SPANS_DROPPED,
        "Spans that were recorded and lost, because more came than the collector takes (queue_full), or because it did not take them (not_exported)."
    );
    counter!(SPANS_EXPORTED).absolute(0);
    for reason in [QUEUE_FULL, NOT_EXPORTED] {
        counter!(SPANS_DROPPED, "reason" => reason).absolute(0);
    }
}

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// What records spans in this process. `None`: traces are off.
pub fn recorder() -> Option<&'static Recorder> {
    RECORDER.get()
}

/// Decides which requests are recorded, and takes their spans.
#[derive(Debug)]
pub struct Recorder {
    spans: mpsc::Sender<SpanData>,
    /// A trace is recorded if the last 63 bits of its id are below it. Every service with the same ratio decides the same for a trace.
    sampled_below: u64,
    ids: RandomIdGenerator,
    scope: InstrumentationScope,
    queue_full: Counter,
}

impl Recorder {
    fn new(spans: mpsc::Sender<SpanData>, sample_ratio: f64, version: &'static str) -> Self {
        Self {
            spans,
            sampled_below: sampled_below(sample_ratio),
            ids: RandomIdGenerator::default(),
            scope: InstrumentationScope::builder("shardledger").with_version(version).build(),
            queue_full: counter!(SPANS_DROPPED, "reason" => QUEUE_FULL),
        }
    }

    /// Whether spans of the trace are recorded here.
    pub fn records(&self, caller: Traceparent) -> bool {
        caller.is_sampled() && self.is_within_ratio(caller)
    }

    /// The first span of a request in this process, which begins now. `None` if the request is not recorded. Without `caller`, it is the
    /// first span of a new trace.
    pub fn begin(
        &'static self,
        name: impl Into<Cow<'static, str>>,
        kind: Kind,
        caller: Option<Traceparent>,
    ) -> Option<Span> {
        let is_root = caller.is_none();
        let parent = match caller {
            Some(caller) => caller,
            None => Traceparent::sampled(self.ids.new_trace_id(), SpanId::INVALID),
        };
        if !self.records(parent) {
            return None;
        }
        let begun = Begun { at: Instant::now(), us: crate::clock::now_us() };
        let mut span = Span::new(self, name.into(), kind, parent, begun);
        span.has_remote_parent = !is_root;
        Some(span)
    }

    /// A span within one of this process, which begins now. `None` if that one is not recorded; then no name is made.
    pub fn begin_within(
        &'static self,
        parent: Traceparent,
        kind: Kind,
        name: impl FnOnce() -> String,
    ) -> Option<Span> {
        let mut span = self.begin("", kind, Some(parent))?;
        span.has_remote_parent = false;
        span.rename(name());
        Some(span)
    }

    /// Draws by the ratio, whatever a caller says.
    fn draws(&self) -> bool {
        self.is_within_ratio(Traceparent::sampled(self.ids.new_trace_id(), SpanId::INVALID))
    }

    fn is_within_ratio(&self, caller: Traceparent) -> bool {
        caller.trace_id_low() >> 1 < self.sampled_below
    }

    fn record(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.queue_full.increment(1);
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio from 0 to 1 of 2^63"
)]
fn sampled_below(ratio: f64) -> u64 {
    (ratio.clamp(0.0, 1.0) * (1_u64 << 63) as f64) as u64
}

/// One instant on two clocks: all times of a span and its parts are read from the steady one.
#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    /// Microseconds since 1970.
    us: i64,
}

impl Begun {
    /// The same clocks at another instant.
    fn moved_to(self, at: Instant) -> Self {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let later = micros(at.saturating_duration_since(self.at));
        let earlier = micros(self.at.saturating_duration_since(at));
        Self { at, us: self.us.saturating_add(later).saturating_sub(earlier) }
    }

    fn wall(self) -> std::time::SystemTime {
        UNIX_EPOCH + Duration::from_micros(u64::try_from(self.us).unwrap_or(0))
    }
}

/// A span of a request that is recorded. It ends when it is dropped.
#[derive(Debug)]
pub struct Span {
    recorder: &'static Recorder,
    trace: TraceId,
    id: SpanId,
    /// [`SpanId::INVALID`]: none.
    parent: SpanId,
    /// The parent belongs to another process.
    has_remote_parent: bool,
    name: Cow<'static, str>,
    kind: Kind,
    begun: Begun,
    /// `None`: when it is dropped.
    ended: Option<Instant>,
    attributes: Vec<KeyValue>,
    status: Status,
    is_discarded: bool,
}

impl Span {
    fn new(
        recorder: &'static Recorder,
        name: Cow<'static, str>,
        kind: Kind,
        parent: Traceparent,
        begun: Begun,
    ) -> Self {
        Self {
            recorder,
            trace: parent.trace_id(),
            id: recorder.ids.new_span_id(),
            parent: parent.span_id(),
            has_remote_parent: false,
            name,
            kind,
            begun,
            ended: None,
            attributes: Vec::new(),
            status: Status::Unset,
            is_discarded: false,
        }
    }

    /// Decides anew whether to record the span, by a draw of this process, if a caller's trace context has decided it. An id below the ratio
    /// would otherwise let a caller without a key have each of its requests recorded. `None`: it is not recorded.
    #[must_use]
    pub fn drawn_anew(mut self) -> Option<Self> {
        self.is_discarded = self.has_remote_parent && !self.recorder.draws();
        (!self.is_discarded).then_some(self)
    }

    /// The trace context for work that this span causes.
    pub fn traceparent(&self) -> Traceparent {
        Traceparent::sampled(self.trace, self.id)
    }

    /// A span within this one that is over.
    pub fn part(&self, name: &'static str, begun: Instant, ended: Instant) -> Self {
        let begun = self.begun.moved_to(begun);
        let mut part = Self::new(self.recorder, name.into(), Kind::Internal, self.traceparent(), begun);
        part.ended = Some(ended);
        part
    }

    pub fn rename(&mut self, name: impl Into<Cow<'static, str>>) {
        self.name = name.into();
    }

    /// When it began.
    pub fn begun(&self) -> Instant {
        self.begun.at
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    /// What the span stands for has failed.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        self.status = Status::error(why);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.is_discarded {
            return;
        }
        let ended = self.ended.unwrap_or_else(Instant::now).max(self.begun.at);
        let context = SpanContext::new(self.trace, self.id, TraceFlags::SAMPLED, false, TraceState::NONE);
        self.recorder.record(SpanData {
            span_context: context,
            parent_span_id: self.parent,
            parent_span_is_remote: self.has_remote_parent,
            span_kind: self.kind.clone(),
            name: std::mem::take(&mut self.name),
            start_time: self.begun.wall(),
            end_time: self.begun.moved_to(ended).wall(),
            attributes: std::mem::take(&mut self.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: std::mem::replace(&mut self.status, Status::Unset),
            instrumentation_scope: self.recorder.scope.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn caller(flags: &str) -> Option<Traceparent> {
        Traceparent::parse(format!("{}{flags}", &CALLER[..CALLER.len() - 2]).as_bytes())
    }

    fn recording(sample_ratio: f64, queue: usize) -> (&'static Recorder, mpsc::Receiver<SpanData>) {
        let (sender, receiver) = mpsc::channel(queue);
        (Box::leak(Box::new(Recorder::new(sender, sample_ratio, "0"))), receiver)
    }

    #[tokio::test]
    async fn spans_hang_together() {
        let (recorder, mut spans) = recording(1.0, 8);
        let request = recorder.begin("POST /v1/transfers", Kind::Server, caller("01")).unwrap();
        let call = recorder.begin_within(request.traceparent(), Kind::Client, || "call s2".to_owned()).unwrap();
        drop(call.part("queue", call.begun(), Instant::now()));
        drop(call);
        drop(request);
        let [queue, call, request] = [(); 3].map(|()| spans.try_recv().unwrap());
        assert_eq!(request.parent_span_id.to_string(), "b7ad6b7169203331");
        assert!(request.parent_span_is_remote);
        assert_eq!(call.parent_span_id, request.span_context.span_id());
        assert!(!call.parent_span_is_remote);
        assert_eq!(queue.parent_span_id, call.span_context.span_id());
        for span in [&queue, &call, &request] {
            assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
            assert!(span.start_time <= span.end_time);
        }
        assert!(request.start_time <= call.start_time && call.start_time <= queue.start_time);
        assert_eq!((&*queue.name, queue.span_kind), ("queue", Kind::Internal));
    }

    #[tokio::test]
    async fn a_caller_that_is_not_sampled_is_not_recorded() {
        let (recorder, _spans) = recording(1.0, 8);
        assert!(recorder.begin("GET", Kind::Server, caller("00")).is_none());
    }

    #[tokio::test]
    async fn a_request_without_a_caller_begins_a_trace() {
        let (recorder, mut spans) = recording(1.0, 8);
        drop(recorder.begin("GET", Kind::Server, None).unwrap());
        let root = spans.try_recv().unwrap();
        assert_eq!(root.parent_span_id, SpanId::INVALID);
        assert!(!root.parent_span_is_remote);
    }

    #[tokio::test]
    async fn the_ratio_decides_by_the_id_of_the_trace() {
        let (none, _spans) = recording(0.0, 8);
        assert!(none.begin("GET", Kind::Server, caller("01")).is_none());
        assert!(none.begin("GET", Kind::Server, None).is_none());

        let (half, _spans) = recording(0.5, 8);
        let trace =
            |low: &str| Traceparent::parse(format!("00-0af7651916cd43dd{low}-b7ad6b7169203331-01").as_bytes());
        assert!(half.begin("GET", Kind::Server, trace("0448eb211c80319c")).is_some());
        assert!(half.begin("GET", Kind::Server, trace("f448eb211c80319c")).is_none());
        let roots = (0..1000).filter(|_| half.begin("GET", Kind::Server, None).is_some()).count();
        assert!((300..700).contains(&roots), "{roots} of 1000 with a ratio of a half");
    }

    #[tokio::test]
    async fn the_trace_context_of_an_unknown_caller_does_not_decide_what_is_recorded() {
        let (half, mut spans) = recording(0.5, 2_000);
        let low = Traceparent::parse(b"00-0af7651916cd43dd0000000000000001-b7ad6b7169203331-01");
        let begin = |caller| half.begin("GET", Kind::Server, caller).unwrap();
        let kept = (0..1000).filter(|_| begin(low).drawn_anew().is_some()).count();
        assert!((300..700).contains(&kept), "{kept} of 1000 with a ratio of a half");
        assert_eq!(std::iter::from_fn(|| spans.try_recv().ok()).count(), kept);
        // A trace that began here was drawn already.
        let roots = (0..100).filter_map(|_| half.begin("GET", Kind::Server, None));
        assert!(roots.map(Span::drawn_anew).all(|span| span.is_some()));
    }

    #[tokio::test]
    async fn a_full_queue_drops_spans_and_waits_for_nothing() {
        let (recorder, mut spans) = recording(1.0, 1);
        for _ in 0..3 {
            drop(recorder.begin("GET", Kind::Server, None));
        }
        assert!(spans.try_recv().is_ok() && spans.try_recv().is_err());
    }

    #[test]
    fn settings_that_could_not_work_are_named() {
        let config =
            |endpoint: &str, sample_ratio| TracesConfig { otlp_endpoint: Some(endpoint.to_owned()), sample_ratio };
        TracesConfig::default().check().unwrap();
        for good in
            ["http://127.0.0.1:4317", "http://collector:4317/", "https://otlp.example.com", "http://[::1]:4317"]
        {
            config(good, 0.1).check().unwrap();
        }
        for (endpoint, word) in [
            ("", "empty"),
            ("collector:4317", "http://"),
            ("127.0.0.1:4317", "http://"),
            ("grpc://collector:4317", "http://"),
            ("http://", "address"),
            ("http://collector:99999", "address"),
            ("http://user:secret@collector:4317", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://collector:4318/v1/traces", "path"),
        ] {
            let error = config(endpoint, 1.0).check().unwrap_err().to_string();
            assert!(error.starts_with("traces.otlp_endpoint: ") && error.contains(word), "{endpoint}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        for ratio in [-0.1, 1.1, f64::NAN] {
            let error = config("http://collector:4317", ratio).check().unwrap_err().to_string();
            assert!(error.starts_with("traces.sample_ratio: "), "{error}");
        }
    }
}

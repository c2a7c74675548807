//! What sends spans to the collector: one task, which takes them from a bounded queue.

use std::time::Duration;

use http::Uri;
use metrics::{Counter, counter};
use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    trace::{SpanData, SpanExporter},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::{NOT_EXPORTED, RECORDER, Recorder, SPANS_DROPPED, SPANS_EXPORTED, TracesConfig, TracesError};
use crate::tasks::Tasks;

/// Spans that may wait. One takes about half a kilobyte.
const QUEUE_SPANS: usize = 16_384;
/// Spans in one message.
const MESSAGE_SPANS: usize = 512;
/// How long spans are gathered before a message that is not full is sent.
const GATHER: Duration = Duration::from_millis(200);
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// The library's limit for a message, its repetitions included.
const EXPORT_LIMIT: Duration = Duration::from_secs(5);
/// How long a service that ends waits for the last spans.
const FLUSH_LIMIT: Duration = Duration::from_secs(3);

/// Who records: each is an attribute of everything that the process sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: &'static str,
    pub version: &'static str,
    /// Tells the processes of one service apart.
    pub instance: String,
    pub shard: Option<String>,
}

/// The task that sends spans.
#[derive(Debug)]
pub struct Export(Tasks);

/// Begins to record, if the configuration names a collector. The collector need not be there. Call it within the runtime, after the
/// recorder of metrics is installed.
///
/// # Errors
/// The collector cannot be called with this configuration, or this process records already.
pub fn install(config: &TracesConfig, service: Service) -> Result<Option<Export>, TracesError> {
    config.check()?;
    let Some(endpoint) = &config.otlp_endpoint else { return Ok(None) };
    let refused = |reason: String| TracesError { setting: "traces.otlp_endpoint", reason };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(endpoint)?)
        .with_timeout(EXPORT_LIMIT)
        .build();
    let mut exporter = exporter.map_err(|error| refused(error.to_string()))?;
    let version = service.version;
    exporter.set_resource(&resource(service));
    let (sender, spans) = mpsc::channel(QUEUE_SPANS);
    let recorder = Recorder::new(sender, config.sample_ratio, version);
    RECORDER.set(recorder).map_err(|_| refused("this process records traces already".to_owned()))?;
    let tasks = Tasks::new();
    tasks.spawn("traces", Sender::new(exporter, spans).run(tasks.token().clone()));
    tracing::info!(sample_ratio = config.sample_ratio, endpoint, "recording traces");
    Ok(Some(Export(tasks)))
}

impl Export {
    /// Sends what is queued, for at most [`FLUSH_LIMIT`]. Call it after the last span.
    pub async fn finish(self) {
        if self.0.shutdown(FLUSH_LIMIT).await.is_err() {
            tracing::warn!("the collector of the traces did not take the last spans in time");
        }
    }
}

/// The address of a receiver for OTLP by gRPC.
///
/// # Errors
/// It is not `http://HOST:PORT` or `https://HOST:PORT`. The text of the error does not have the address, which may contain a password.
pub(super) fn address(endpoint: &str) -> Result<Uri, TracesError> {
    let refused = |reason: &str| Err(TracesError { setting: "traces.otlp_endpoint", reason: reason.to_owned() });
    if endpoint.is_empty() {
        return refused("is empty; without the setting there are no traces");
    }
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        return refused("must begin with http:// or https://, as in http://127.0.0.1:4317");
    }
    let uri = match endpoint.parse::<Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => uri,
        _ => return refused("is no address; expected is http://HOST:PORT or https://HOST:PORT"),
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refused(
            "has a user or a password. Set the environment variable OTEL_EXPORTER_OTLP_HEADERS instead, for example to \
             authorization=Basic%20…",
        );
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return refused(
            "has a path. Receivers for OTLP by gRPC have none; /v1/traces belongs to OTLP by HTTP, which has another port (4318; gRPC \
             has 4317)",
        );
    }
    // A port beyond 65535 is no error of the parser, which then finds no port.
    let is_host_alone = uri.authority().map(|authority| authority.as_str()) == uri.host();
    if !is_host_alone && uri.port_u16().is_none() {
        return refused("is no address; the port is not from 0 to 65535");
    }
    Ok(uri)
}

/// Connects when there is something to send, and again after a failure.
fn channel(endpoint: &str) -> Result<Channel, TracesError> {
    let uri = address(endpoint)?;
    let is_encrypted = uri.scheme_str() == Some("https");
    let endpoint = Endpoint::from(uri).connect_timeout(CONNECT_LIMIT).timeout(EXPORT_LIMIT);
    if !is_encrypted {
        return Ok(endpoint.connect_lazy());
    }
    let endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(|error| TracesError {
        setting: "traces.otlp_endpoint",
        reason: format!("the authorities that this machine trusts cannot be read: {error}"),
    })?;
    Ok(endpoint.connect_lazy())
}

fn resource(Service { name, version, instance, shard }: Service) -> Resource {
    let attributes = [
        Some(KeyValue::new("service.name", name)),
        Some(KeyValue::new("service.version", version)),
        Some(KeyValue::new("service.instance.id", instance)),
        shard.map(|shard| KeyValue::new("shardledger.shard", shard)),
    ];
    Resource::builder_empty().with_attributes(attributes.into_iter().flatten()).build()
}

struct Sender<E> {
    exporter: E,
    spans: mpsc::Receiver<SpanData>,
    exported: Counter,
    not_exported: Counter,
    /// The last message was not taken.
    is_failing: bool,
}

impl<E: SpanExporter> Sender<E> {
    fn new(exporter: E, spans: mpsc::Receiver<SpanData>) -> Self {
        Self {
            exporter,
            spans,
            exported: counter!(SPANS_EXPORTED),
            not_exported: counter!(SPANS_DROPPED, "reason" => NOT_EXPORTED),
            is_failing: false,
        }
    }

    /// Sends spans until `closing` is cancelled, and then those that are queued.
    async fn run(mut self, closing: CancellationToken) {
        let mut message = Vec::new();
        while let Some(taken) = closing.run_until_cancelled(self.spans.recv_many(&mut message, MESSAGE_SPANS)).await
            && taken > 0
        {
            if message.len() < MESSAGE_SPANS {
                // The rest of the queue goes into the message when this is over, and is sent at once if it is more.
                closing.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                self.fill(&mut message);
            }
            self.send(std::mem::take(&mut message)).await;
        }
        self.spans.close();
        loop {
            self.fill(&mut message);
            if message.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut message)).await;
        }
    }

    fn fill(&mut self, message: &mut Vec<SpanData>) {
        while message.len() < MESSAGE_SPANS
            && let Ok(span) = self.spans.try_recv()
        {
            message.push(span);
        }
    }

    async fn send(&mut self, message: Vec<SpanData>) {
        let spans = message.len();
        let sent = timeout(2 * EXPORT_LIMIT, self.exporter.export(message)).await;
        match sent.unwrap_or(Err(OTelSdkError::Timeout(2 * EXPORT_LIMIT))) {
            Ok(()) => {
                self.exported.increment(spans as u64);
                if std::mem::take(&mut self.is_failing) {
                    tracing::info!("the collector of the traces takes spans again");
                }
            }
            Err(error) => {
                self.not_exported.increment(spans as u64);
                // One line, however long it lasts: the metric counts the spans.
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(%error, "the collector of the traces does not take spans; they are dropped");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering::Relaxed};

    use opentelemetry_sdk::error::OTelSdkResult;

    use super::*;
    use crate::traces::Kind;

    /// Keeps the sizes of messages, or never answers.
    #[derive(Debug, Default, Clone)]
    struct Collector {
        messages: Arc<Mutex<Vec<usize>>>,
        is_dead: Arc<AtomicBool>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            if self.is_dead.load(Relaxed) {
                std::future::pending::<()>().await;
            }
            self.messages.lock().unwrap().push(batch.len());
            Ok(())
        }
    }

    fn started(collector: &Collector) -> (&'static Recorder, Export) {
        let (sender, spans) = mpsc::channel(QUEUE_SPANS);
        let recorder = Box::leak(Box::new(Recorder::new(sender, 1.0, "0")));
        let tasks = Tasks::new();
        tasks.spawn("traces", Sender::new(collector.clone(), spans).run(tasks.token().clone()));
        (recorder, Export(tasks))
    }

    fn record(recorder: &'static Recorder, spans: usize) {
        for _ in 0..spans {
            drop(recorder.begin("GET", Kind::Server, None));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn spans_go_in_bounded_messages_and_the_rest_at_the_end() {
        let collector = Collector::default();
        let (recorder, export) = started(&collector);
        record(recorder, MESSAGE_SPANS + 7);
        tokio::time::sleep(2 * GATHER).await;
        assert_eq!(*collector.messages.lock().unwrap(), [MESSAGE_SPANS, 7]);
        record(recorder, 2 * MESSAGE_SPANS);
        export.finish().await;
        assert_eq!(*collector.messages.lock().unwrap(), [MESSAGE_SPANS, 7, MESSAGE_SPANS, MESSAGE_SPANS]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_does_not_answer_delays_the_end_by_a_bound() {
        let collector = Collector::default();
        collector.is_dead.store(true, Relaxed);
        let (recorder, export) = started(&collector);
        record(recorder, 3 * QUEUE_SPANS);
        tokio::time::sleep(GATHER).await;
        let begun = tokio::time::Instant::now();
        export.finish().await;
        assert_eq!(begun.elapsed(), FLUSH_LIMIT);
        assert!(collector.messages.lock().unwrap().is_empty());
    }
}

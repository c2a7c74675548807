//! A collector of OTLP over gRPC within the test.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use futures_util::stream;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use testkit::wait::until;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{Request, Response, Status, transport::Server};

const PATIENCE: Duration = Duration::from_secs(30);

/// A span, as the collector got it. Ids are hexadecimal.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub trace: String,
    pub id: String,
    /// The id of the parent. It is empty if there is no parent.
    pub parent: String,
    pub name: String,
    /// The time of the beginning in nanoseconds since 1970.
    pub begun: u64,
    pub ended: u64,
    pub attributes: Vec<(String, String)>,
    /// The name of the service that sent the span.
    pub service: String,
    pub shard: Option<String>,
}

impl Recorded {
    fn of(span: Span, resource: &[(String, String)]) -> Self {
        Self {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            begun: span.start_time_unix_nano,
            ended: span.end_time_unix_nano,
            attributes: attributes(span.attributes),
            service: find(resource, "service.name").unwrap_or_default().to_owned(),
            shard: find(resource, "shardledger.shard").map(str::to_owned),
        }
    }

    pub fn attribute(&self, key: &str) -> Option<&str> {
        find(&self.attributes, key)
    }

    /// Whether it begins and ends within the span that it is a part of.
    pub fn lies_in(&self, other: &Self) -> bool {
        other.begun <= self.begun && self.begun <= self.ended && self.ended <= other.ended
    }
}

/// A running collector, which keeps all spans. Dropping it stops it.
pub struct Collector {
    address: SocketAddr,
    spans: Spans,
    _server: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<Recorded>>>);

impl Spans {
    fn lock(&self) -> MutexGuard<'_, Vec<Recorded>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector {
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, spans) = (listener.local_addr()?, Spans::default());
        let service = TraceServiceServer::new(spans.clone());
        let connections = stream::unfold(listener, |listener: TcpListener| async move {
            let accepted = listener.accept().await.map(|(connection, _)| connection);
            Some((accepted, listener))
        });
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = Server::builder().add_service(service).serve_with_incoming(connections).await {
                eprintln!("the collector ended: {error}");
            }
        });
        Ok(Self { address, spans, _server: server })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The spans that have arrived.
    pub fn spans(&self) -> Vec<Recorded> {
        self.spans.lock().clone()
    }

    /// Waits until this many spans have arrived, and returns all that have arrived.
    pub async fn has(&self, spans: usize) -> anyhow::Result<Vec<Recorded>> {
        until(&format!("the collector has {spans} spans"), PATIENCE, async || {
            let arrived = self.spans();
            Ok((arrived.len() >= spans).then_some(arrived))
        })
        .await
        .with_context(|| format!("{:?}", self.spans()))
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let resource = attributes(of_process.resource.map(|resource| resource.attributes).unwrap_or_default());
            let spans = of_process.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.lock().extend(spans.map(|span| Recorded::of(span, &resource)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// Returns the only element.
pub fn only<T: std::fmt::Debug>(mut found: Vec<T>) -> anyhow::Result<T> {
    match found.pop() {
        Some(only) if found.is_empty() => Ok(only),
        last => bail!("expected exactly one: {found:?} and {last:?}"),
    }
}

fn find<'a>(attributes: &'a [(String, String)], key: &str) -> Option<&'a str> {
    attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

fn attributes(attributes: Vec<KeyValue>) -> Vec<(String, String)> {
    let text = |attribute: KeyValue| {
        let value = match attribute.value.and_then(|value| value.value) {
            Some(Value::StringValue(text)) => text,
            Some(Value::IntValue(number)) => number.to_string(),
            Some(Value::BoolValue(flag)) => flag.to_string(),
            other => format!("{other:?}"),
        };
        (attribute.key, value)
    };
    attributes.into_iter().map(text).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! One HTTP/2 connection to a shard-node.
//!
//! tonic's own channel reconnects behind the caller's back, so that "could not connect" and "the answer was lost"
//! look alike. For money they are opposites: the first had no effect, the second may have had one. This module
//! therefore opens connections explicitly, and marks a request that never left the process ([`NotSent`]).

use std::{
    error::Error as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use certificates::{HandshakeError, Mutual, Stream};
use http::{Request, Response, Uri};
use hyper::{client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::Disagreements;
use tokio::{net::TcpStream, sync::watch};
use tonic::{Status, body::Body, client::Grpc};
use wire::{
    execute::{ExecuteCall, Executed, execute},
    shard_node_client::ShardNodeClient,
    slot_moves_client::SlotMovesClient,
};

use crate::{Introduce, peer_clock::PeerClock};

/// A client of the node at the other end of one connection.
pub type NodeClient = ShardNodeClient<Connection>;
/// A client of the node's part in moves of slots.
pub type MovesClient = SlotMovesClient<Connection>;

/// After this much silence the connection is pinged.
const PING_AFTER: Duration = Duration::from_secs(1);
/// How long a ping may take before the connection counts as broken.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Several full batches of answers fit into the window, so that one slow reader does not stall the others.
const WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// How long the reason of an end may come after the failure of a call.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A handle on an established connection. Clones share the connection.
#[derive(Clone)]
pub struct Connection {
    carrier: Carrier,
    origin: Uri,
    /// The index of the endpoint among the shard's endpoints.
    endpoint: usize,
    /// Distinguishes this connection from earlier ones to the same endpoint.
    serial: u64,
    /// Adds headers to each call; `None` before the introduction.
    introduction: Option<Arc<dyn Introduce>>,
    clock: Arc<PeerClock>,
    /// How the connection ended.
    ended: watch::Receiver<Option<End>>,
}

/// How a connection ended.
#[derive(Debug, Clone)]
struct End {
    reason: String,
    /// The peer refuses this process, or the way in which it connects.
    is_refusal: bool,
}

/// What carries the requests.
#[derive(Clone)]
enum Carrier {
    Http2(http2::SendRequest<Body>),
    #[cfg(feature = "simulation")]
    Simulated(Arc<dyn crate::simulation::Link>),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{0} is not the address of a node")]
    Address(String),
    #[error("no connection to {uri} within {timeout_ms} ms")]
    Timeout { uri: String, timeout_ms: u128 },
    #[error("cannot connect to {uri}: {source}")]
    Unreachable { uri: String, source: std::io::Error },
    #[error("{uri} does not speak HTTP/2: {source}")]
    Handshake { uri: String, source: hyper::Error },
    #[error("{uri} and this process do not agree on TLS: {reason}")]
    Tls { uri: String, reason: String },
    #[error("{uri} did not say who it is: {status}")]
    Silent { uri: String, status: String },
    #[error("{uri} is refused: {disagreements}")]
    Refused { uri: String, disagreements: Disagreements },
}

/// The request never left this process, so it was certainly not executed.
#[derive(Debug, thiserror::Error)]
#[error("the connection was closed before the request was sent")]
pub struct NotSent;

impl Connection {
    /// Connects once; the caller may retry. With `tls`, the connection is encrypted whatever the scheme of `uri`: addresses come from the
    /// shard map, which must not be able to switch encryption off.
    pub async fn open(
        uri: &str,
        endpoint: usize,
        serial: u64,
        timeout: Duration,
        tls: Option<&Mutual>,
    ) -> Result<Self, ConnectError> {
        let late = || ConnectError::Timeout { uri: uri.to_owned(), timeout_ms: timeout.as_millis() };
        tokio::time::timeout(timeout, Self::handshake(uri, endpoint, serial, tls)).await.map_err(|_| late())?
    }

    async fn handshake(uri: &str, endpoint: usize, serial: u64, tls: Option<&Mutual>) -> Result<Self, ConnectError> {
        let (end, ended) = watch::channel(None);
        let origin: Uri = uri.parse().map_err(|_| ConnectError::Address(uri.to_owned()))?;
        #[cfg(feature = "simulation")]
        if let Some(network) = crate::simulation::network() {
            let carrier = Carrier::Simulated(network.connect(uri).await?);
            return Ok(Self { carrier, origin, endpoint, serial, introduction: None, clock: Arc::default(), ended });
        }
        let with_port = origin.authority().filter(|authority| authority.port().is_some());
        let address = with_port.ok_or_else(|| ConnectError::Address(uri.to_owned()))?;
        let refused = |source| ConnectError::Unreachable { uri: uri.to_owned(), source };
        let stream = TcpStream::connect(address.as_str()).await.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
        let stream = match tls {
            None => Stream::Plain(stream),
            Some(tls) => tls.connect(address.host(), stream).await.map_err(|error| match error {
                HandshakeError::Io(source) => ConnectError::Unreachable { uri: uri.to_owned(), source },
                // A node that shuts down drops handshakes. An operator has nothing to do.
                HandshakeError::Closed => ConnectError::Unreachable {
                    uri: uri.to_owned(),
                    source: std::io::Error::new(std::io::ErrorKind::UnexpectedEof, error.to_string()),
                },
                error => ConnectError::Tls { uri: uri.to_owned(), reason: error.to_string() },
            })?,
        };
        let (requests, driver) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectError::Handshake { uri: uri.to_owned(), source })?;
        // This task is outside the task tracker, as hyper's own stream tasks are. It carries bytes and decides
        // nothing, and shutdown must not wait for a connection that lives as long as its last handle.
        let peer = uri.to_owned();
        TokioExecutor::new().execute(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%peer, %error, "connection to a shard-node ended");
                end.send_replace(Some(End::of(&error)));
            }
        });
        Ok(Self {
            carrier: Carrier::Http2(requests),
            origin,
            endpoint,
            serial,
            introduction: None,
            clock: Arc::default(),
            ended,
        })
    }

    /// The better reason of a failure of the introduction, if it was that the node has ended the connection: a node that refuses this
    /// process says why. Waits a moment for it.
    pub async fn explain(&self, failure: ConnectError) -> ConnectError {
        let ConnectError::Silent { uri, .. } = &failure else { return failure };
        let mut ended = self.ended.clone();
        let Ok(Ok(end)) = tokio::time::timeout(LAST_WORDS, ended.wait_for(Option::is_some)).await else {
            return failure;
        };
        let (uri, Some(End { reason, is_refusal })) = (uri.clone(), end.clone()) else { return failure };
        if is_refusal { ConnectError::Tls { uri, reason } } else { ConnectError::Silent { uri, status: reason } }
    }

    /// The connection after the caller was introduced.
    pub(crate) fn introduced(self, introduction: Arc<dyn Introduce>) -> Self {
        Self { introduction: Some(introduction), ..self }
    }

    pub fn client(&self) -> NodeClient {
        ShardNodeClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
    }

    pub fn moves(&self) -> MovesClient {
        SlotMovesClient::with_origin(self.clone(), self.origin.clone())
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
    }

    /// Runs operations at the node.
    pub async fn execute(self, call: ExecuteCall) -> Result<tonic::Response<Executed>, Status> {
        let origin = self.origin.clone();
        let mut client = Grpc::with_origin(self, origin)
            .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(wire::MAX_MESSAGE_BYTES);
        execute(&mut client, call).await
    }

    /// The clock of the node at the other end.
    pub fn clock(&self) -> &PeerClock {
        &self.clock
    }

    pub fn is_closed(&self) -> bool {
        match &self.carrier {
            Carrier::Http2(requests) => requests.is_closed(),
            #[cfg(feature = "simulation")]
            Carrier::Simulated(link) => link.is_closed(),
        }
    }

    pub fn endpoint(&self) -> usize {
        self.endpoint
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }
}

impl End {
    fn of(error: &hyper::Error) -> Self {
        let source = error.source();
        if let Some(error) = source.and_then(|source| source.downcast_ref::<h2::Error>()) {
            let is_refusal = error.is_remote() && error.reason() == Some(h2::Reason::INADEQUATE_SECURITY);
            let text = error.to_string();
            // The reason that the node gives is at the end, in the form of a byte string.
            let said = text.split_once("(b\"").and_then(|(_, said)| said.strip_suffix("\")"));
            let reason =
                said.filter(|_| is_refusal).map_or_else(|| text.clone(), |said| format!("the node says: {said}"));
            return Self { reason, is_refusal };
        }
        // rustls reports what it finds as invalid data.
        let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
        let is_refusal = io.is_some_and(|error| error.kind() == std::io::ErrorKind::InvalidData);
        Self { reason: source.map_or_else(|| error.to_string(), ToString::to_string), is_refusal }
    }
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    /// Always ready: the call itself reports a broken connection, with the distinction made above.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(introduction) = &self.introduction {
            introduction.headers(request.headers_mut());
        }
        match &mut self.carrier {
            Carrier::Http2(requests) => {
                let answer = requests.try_send_request(request);
                Box::pin(async move {
                    match answer.await {
                        Ok(answer) => Ok(answer.map(Body::new)),
                        Err(mut failed) => Err(match failed.take_message() {
                            Some(_never_sent) => NotSent.into(),
                            None => failed.into_error().into(),
                        }),
                    }
                })
            }
            #[cfg(feature = "simulation")]
            Carrier::Simulated(link) => link.call(request),
        }
    }
}

//! One HTTP/2 connection to a shard-node.
//!
//! tonic's own channel reconnects behind the caller's back, so that "could not connect" and "the answer was lost"
//! look alike. For money they are opposites: the first had no effect, the second may have had one. This module
//! therefore opens connections explicitly, and marks a request that never left the process ([`NotSent`]).

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Uri};
use hyper::{client::conn::http2, rt::Executor};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use identity::Disagreements;
use tokio::net::TcpStream;
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
    /// Connects once; the caller may retry.
    pub async fn open(uri: &str, endpoint: usize, serial: u64, timeout: Duration) -> Result<Self, ConnectError> {
        let late = || ConnectError::Timeout { uri: uri.to_owned(), timeout_ms: timeout.as_millis() };
        tokio::time::timeout(timeout, Self::handshake(uri, endpoint, serial)).await.map_err(|_| late())?
    }

    async fn handshake(uri: &str, endpoint: usize, serial: u64) -> Result<Self, ConnectError> {
        let origin: Uri = uri.parse().map_err(|_| ConnectError::Address(uri.to_owned()))?;
        #[cfg(feature = "simulation")]
        if let Some(network) = crate::simulation::network() {
            let carrier = Carrier::Simulated(network.connect(uri).await?);
            return Ok(Self { carrier, origin, endpoint, serial, introduction: None, clock: Arc::default() });
        }
        let with_port = origin.authority().filter(|authority| authority.port().is_some());
        let address = with_port.ok_or_else(|| ConnectError::Address(uri.to_owned()))?;
        let refused = |source| ConnectError::Unreachable { uri: uri.to_owned(), source };
        let stream = TcpStream::connect(address.as_str()).await.map_err(refused)?;
        stream.set_nodelay(true).map_err(refused)?;
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
            }
        });
        Ok(Self {
            carrier: Carrier::Http2(requests),
            origin,
            endpoint,
            serial,
            introduction: None,
            clock: Arc::default(),
        })
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

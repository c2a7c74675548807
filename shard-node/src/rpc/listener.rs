//! The connections of the RPC port, each after its handshake. What a refused caller has sent reaches no service.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use certificates::{HandshakeError, Mutual, Stream, mutual};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metric_definitions::RPC_CALLERS_REFUSED;

/// How long a caller may take for its handshake, or for its first byte where there is no TLS.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at one time. Further callers wait in the kernel until one has ended.
const MAX_HANDSHAKES: usize = 256;
/// After an accept that failed for want of something (descriptors, memory), to let connections close.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// A caller that is refused for one reason again and again is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Callers and reasons that are remembered for it.
const MAX_REMEMBERED: usize = 256;

/// A connection of a caller that may call.
pub struct Incoming(Stream);

/// The connections of a listener. With `tls`, each caller has shown a certificate that `tls` accepts.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Mutual>,
) -> impl futures_util::Stream<Item = io::Result<Incoming>> {
    let listener = Listener { listener, tls, handshakes: FuturesUnordered::new(), refusals: Arc::default() };
    stream::unfold(listener, Listener::next)
}

struct Listener {
    listener: TcpListener,
    tls: Option<Mutual>,
    handshakes: FuturesUnordered<BoxFuture<'static, Option<Incoming>>>,
    refusals: Arc<Refusals>,
}

impl Listener {
    async fn next(mut self) -> Option<(io::Result<Incoming>, Self)> {
        loop {
            tokio::select! {
                accepted = self.listener.accept(), if self.handshakes.len() < MAX_HANDSHAKES => match accepted {
                    Ok((socket, caller)) => {
                        let (tls, refusals) = (self.tls.clone(), Arc::clone(&self.refusals));
                        self.handshakes.push(Box::pin(shake_hands(socket, caller, tls, refusals)));
                    }
                    Err(reason) => {
                        tracing::warn!(%reason, "cannot accept connections to the RPC port");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                },
                Some(accepted) = self.handshakes.next(), if !self.handshakes.is_empty() => {
                    if let Some(connection) = accepted {
                        return Some((Ok(connection), self));
                    }
                }
            }
        }
    }
}

/// `None`: the caller is refused, or has gone.
async fn shake_hands(
    socket: TcpStream,
    caller: SocketAddr,
    tls: Option<Mutual>,
    refusals: Arc<Refusals>,
) -> Option<Incoming> {
    if let Err(reason) = socket.set_nodelay(true) {
        tracing::debug!(%reason, "TCP_NODELAY");
    }
    let shaken = async {
        match &tls {
            Some(tls) => tls.accept(socket).await,
            None => mutual::accept_plain(socket).await,
        }
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, shaken).await {
        Ok(Ok(stream)) => return Some(Incoming(stream)),
        // A probe of the port, or a caller that went away.
        Ok(Err(error @ (HandshakeError::Closed | HandshakeError::Io(_)))) => {
            counter!(RPC_CALLERS_REFUSED, "reason" => error.reason()).increment(1);
            tracing::debug!(%caller, %error, "a caller of the RPC port has gone");
        }
        Ok(Err(error)) => refusals.refused(caller, error.reason(), &error.to_string()),
        Err(_) => {
            let error = format!("no handshake within {} s", HANDSHAKE_WITHIN.as_secs());
            refusals.refused(caller, "timeout", &error);
        }
    }
    None
}

/// Which callers were refused lately. A router with a wrong certificate tries again several times a second.
#[derive(Default)]
struct Refusals(Mutex<HashMap<(IpAddr, &'static str), Instant>>);

impl Refusals {
    fn refused(&self, caller: SocketAddr, reason: &'static str, error: &str) {
        counter!(RPC_CALLERS_REFUSED, "reason" => reason).increment(1);
        let now = Instant::now();
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|_, at| now.duration_since(*at) < LOG_EVERY);
        if logged.len() < MAX_REMEMBERED && !logged.contains_key(&(caller.ip(), reason)) {
            logged.insert((caller.ip(), reason), now);
            tracing::warn!(%caller, reason, error, "a caller of the RPC port is refused; nothing that it sent was executed");
        }
    }
}

impl Connected for Incoming {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.socket().connect_info()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

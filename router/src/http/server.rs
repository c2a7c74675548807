//! The accept loop on hyper, with the bounds that `axum::serve` does not set: on heads that trickle in, on idle
//! connections and on how many there are. HTTP/1.1 and HTTP/2 (prior knowledge) on one port.

mod connections;
mod stream;
#[cfg(test)]
mod tests;

use std::{io::Write, pin::pin, sync::Arc, time::Duration};

use axum::body::{Body, HttpBody};
use certificates::Certificates;
use http_body_util::BodyExt;
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use metrics::{counter, gauge};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use telemetry::Tasks;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tower::Service;

pub use self::connections::Connections;
use self::{
    connections::{Activity, ConnectionPlace, NoPlace, Overdue, Rest},
    stream::{Returned, Socket, Watched, whole_answer},
};
use super::{
    admission::PeerAddress,
    context,
    metrics::{CLOSING_REASONS, CONNECTIONS, CONNECTIONS_CLOSED, Counted},
    problem::{Code, Problem},
};

/// Bounds of one listener.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// The listener's name in metrics.
    pub listener: &'static str,
    /// From the beginning of a request's head, or of the connection, to the head's end. A TLS handshake counts as a part of the first head.
    pub header_timeout: Duration,
    /// Between requests; and for a client to take an answer that is ready.
    pub idle_timeout: Duration,
}

/// Head of a request: request line and headers.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_STREAMS_PER_CONNECTION: u32 = 256;
/// A peer that vanished without a word is noticed within twice this time.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// After an accept that failed for want of something (descriptors, memory), to let connections close.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// Accepts until `closing` is cancelled; every connection is a task of `tasks`, and drains by itself when that is. With `certificates`, the
/// listener takes HTTPS only.
pub async fn serve(
    listener: TcpListener,
    app: axum::Router,
    limits: ServerLimits,
    connections: Arc<Connections>,
    tasks: Tasks,
    closing: CancellationToken,
    certificates: Option<Certificates>,
) {
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match connections.admit(peer.ip()) {
                Ok(place) => {
                    let connection =
                        serve_connection(stream, app.clone(), limits, closing.clone(), place, certificates.clone());
                    tasks.spawn("connection", connection);
                }
                Err(refusal) => refuse(stream, refusal, limits, certificates.is_some()),
            },
            Err(reason) if is_about_one_connection(&reason) => {
                tracing::debug!(%reason, listener = limits.listener, "a connection was gone before it was accepted");
            }
            Err(reason) => {
                tracing::warn!(%reason, listener = limits.listener, "cannot accept connections");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

fn is_about_one_connection(reason: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(reason.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

async fn serve_connection(
    stream: TcpStream,
    app: axum::Router,
    limits: ServerLimits,
    closing: CancellationToken,
    place: ConnectionPlace,
    certificates: Option<Certificates>,
) {
    let _counted = Counted::enter(gauge!(CONNECTIONS, "listener" => limits.listener));
    if let Err(reason) = stream.set_nodelay(true) {
        tracing::debug!(%reason, "TCP_NODELAY");
    }
    let returned = Returned::default();
    let ended = match shake_hands(stream, certificates, limits, &closing, &place, &returned).await {
        Ok(stream) => serve_requests(stream, app, limits, &closing, &place, returned.clone()).await,
        Err(ended) => ended,
    };
    match ended {
        Ended::ByItself => linger(returned, &closing, &place).await,
        // No request was sent, or no answer is taken: there is no client to wait for.
        Ended::ByBound(reason) => count_closed(limits, reason),
    }
}

/// Waits until the client has read its answer, or until its place is needed. Then the place is free already, and a socket that stayed open would
/// be counted by nothing but the bound on open files.
async fn linger(returned: Returned, closing: &CancellationToken, place: &ConnectionPlace) {
    tokio::select! {
        biased;
        () = closing.cancelled() => {}
        () = place.leave.cancelled() => {}
        () = returned.linger() => {}
    }
}

enum Ended {
    /// Closed by the client, or by hyper once all was answered.
    ByItself,
    /// Cut off, for the reason in [`CONNECTIONS_CLOSED`].
    ByBound(&'static str),
}

/// The first byte of a TLS connection: the record of a handshake.
const TLS_HANDSHAKE: u8 = 22;

/// Makes the TLS handshake where there are certificates. It is bounded as a head is, and gives way as a head does.
async fn shake_hands(
    mut stream: TcpStream,
    certificates: Option<Certificates>,
    limits: ServerLimits,
    closing: &CancellationToken,
    place: &ConnectionPlace,
    returned: &Returned,
) -> Result<Socket, Ended> {
    let Some(certificates) = certificates else { return Ok(Socket::Plain(stream)) };
    let handshake = async {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(1) if first[0] == TLS_HANDSHAKE => {}
            Ok(1) => {
                count_closed(limits, "plaintext");
                let problem = Problem::new(
                    Code::InvalidRequest,
                    "this address takes HTTPS only: use https:// in place of http://",
                );
                if stream.write_all(&whole_answer(problem)).await.is_ok() && stream.shutdown().await.is_ok() {
                    returned.put(Socket::Plain(stream));
                }
                return Err(Ended::ByItself);
            }
            // The client has closed the connection.
            _ => return Err(Ended::ByItself),
        }
        match certificates.acceptor().accept(stream).await {
            Ok(stream) => Ok(Socket::Tls(Box::new(stream))),
            Err(reason) => {
                tracing::debug!(%reason, listener = limits.listener, "TLS handshake failed");
                Err(Ended::ByBound("tls_handshake"))
            }
        }
    };
    tokio::select! {
        outcome = tokio::time::timeout(limits.header_timeout, handshake) => {
            outcome.unwrap_or(Err(Ended::ByBound("header_timeout")))
        }
        () = place.leave.cancelled() => Err(Ended::ByBound("gave_way")),
        () = closing.cancelled() => Err(Ended::ByItself),
    }
}

async fn serve_requests(
    stream: Socket,
    app: axum::Router,
    limits: ServerLimits,
    closing: &CancellationToken,
    place: &ConnectionPlace,
    returned: Returned,
) -> Ended {
    let (activity, address) = (Arc::clone(&place.activity), PeerAddress(place.address));
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |mut request: Request<Incoming>| {
            context::normalize(&mut request);
            request.extensions_mut().insert(address);
            let request_activity = activity.request(request.version());
            let body_activity = Arc::clone(&activity);
            // A router is always ready, and cloning it clones an Arc.
            let answer = app.clone().call(request);
            async move {
                let answer = answer.await;
                drop(request_activity);
                answer.map(|answer| answer.map(|body| kept_open(body, body_activity)))
            }
        })
    };
    let builder = builder();
    let watched = Watched::new(stream, Arc::clone(&activity), returned);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(watched), service));

    let mut check = interval((limits.header_timeout.min(limits.idle_timeout) / 2).max(Duration::from_millis(1)));
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut draining, mut closing_idle, mut leaving) = (false, false, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(reason) = ended {
                    tracing::debug!(%reason, listener = limits.listener, "connection ended");
                }
                return Ended::ByItself;
            }
            () = closing.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            () = place.leave.cancelled(), if !leaving => {
                if let Some(Rest::Head(_)) = activity.rest() {
                    return Ended::ByBound("gave_way");
                }
                // The client may still be reading an answer, or a request has begun meanwhile. The next check but one cuts an idle
                // connection off.
                leaving = true;
                count_closed(limits, "gave_way");
                connection.as_mut().graceful_shutdown();
            }
            _ = check.tick() => match activity.overdue(limits.header_timeout, limits.idle_timeout) {
                None => closing_idle = false,
                Some(Overdue::Head) => return Ended::ByBound("header_timeout"),
                // Told to finish at the last check, and still there: the peer does not take what it asked for.
                Some(Overdue::Idle) if closing_idle => return Ended::ByBound("stalled"),
                Some(Overdue::Idle) => {
                    closing_idle = true;
                    count_closed(limits, "idle_timeout");
                    connection.as_mut().graceful_shutdown();
                }
            },
        }
    }
}

/// A body of unknown length is being read while it is sent. The connection does not idle while the client takes it.
fn kept_open(body: Body, activity: Arc<Activity>) -> Body {
    if body.size_hint().exact().is_some() {
        return body;
    }
    Body::new(body.map_frame(move |frame| {
        activity.answer_goes_on();
        frame
    }))
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // hyper's own bound makes no difference between a head that trickles in and a connection at rest, and does not
        // begin before the protocol is known; `Activity` does better on both.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_INTERVAL)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    builder
}

/// Answers a connection over the bound with one write that cannot block, and closes it. With TLS there is no answer: it would need a handshake.
fn refuse(stream: TcpStream, refusal: NoPlace, limits: ServerLimits, tls: bool) {
    let (reason, detail) = match refusal {
        NoPlace::Full => ("max_connections", "too many connections"),
        NoPlace::NetworkShare => ("network_share", "too many connections of this address have sent no request"),
    };
    count_closed(limits, reason);
    if tls {
        return;
    }
    let answer = whole_answer(Problem::new(Code::Overloaded, detail));
    // Best effort: the socket's buffer is empty, and a client that misses it sees the connection close.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&answer);
    }
}

fn count_closed(limits: ServerLimits, reason: &'static str) {
    debug_assert!(CLOSING_REASONS.contains(&reason), "{reason} has no series from the start");
    counter!(CONNECTIONS_CLOSED, "listener" => limits.listener, "reason" => reason).increment(1);
}

// === open files ===

/// Files a router has open beside its clients' connections: shards, listeners, log, shard map.
const OWN_FILES: u64 = 256;

/// Raises the bound on open files of the process. The usual 1,024 is less than the connections that this router is meant to hold; at the bound
/// nothing can be accepted any more. Raises the soft bound to what the hard one allows, and warns where that is not enough for `connections`.
pub fn raise_file_limit(connections: usize) {
    let wanted = connections as u64 + OWN_FILES;
    let limit = getrlimit(Resource::Nofile);
    let Some(soft) = limit.current else { return };
    if soft >= wanted {
        return;
    }
    let raised = limit.maximum.map_or(wanted, |hard| hard.min(wanted));
    let outcome = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum });
    if outcome.is_err() || raised < wanted {
        tracing::warn!(
            limit = if outcome.is_ok() { raised } else { soft },
            wanted,
            "fewer files may be open than http.max_connections needs: raise the hard limit (ulimit -Hn)"
        );
    }
}

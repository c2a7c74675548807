//! The accept loop on hyper, with the bounds that `axum::serve` does not set: on heads that trickle in, on idle
//! connections and on how many there are. HTTP/1.1 and HTTP/2 (prior knowledge) on one port.

mod activity;
mod connections;
pub mod descriptors;
mod rejection;
mod stream;

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
    activity::{Activity, Overdue, Rest},
    connections::{Place, Refusal},
    stream::{Returned, Socket, Watched},
};
use super::{
    metrics::{CONNECTIONS, CONNECTIONS_CLOSED},
    path,
    problem::{Code, Problem},
    shares::PeerAddress,
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
    place: Place,
    certificates: Option<Certificates>,
) {
    let _counted = Counted::enter(limits.listener);
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
async fn linger(returned: Returned, closing: &CancellationToken, place: &Place) {
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
    place: &Place,
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
                if stream.write_all(&rejection::answer(problem)).await.is_ok() && stream.shutdown().await.is_ok() {
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
    place: &Place,
    returned: Returned,
) -> Ended {
    let (activity, address) = (Arc::clone(&place.activity), PeerAddress(place.address));
    let service = {
        let activity = Arc::clone(&activity);
        service_fn(move |mut request: Request<Incoming>| {
            path::normalize(&mut request);
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
fn refuse(stream: TcpStream, refusal: Refusal, limits: ServerLimits, tls: bool) {
    let (reason, detail) = match refusal {
        Refusal::Full => ("max_connections", "too many connections"),
        Refusal::NetworkShare => ("network_share", "too many connections of this address have sent no request"),
    };
    count_closed(limits, reason);
    if tls {
        return;
    }
    let answer = rejection::answer(Problem::new(Code::Overloaded, detail));
    // Best effort: the socket's buffer is empty, and a client that misses it sees the connection close.
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(&answer);
    }
}

/// Why this side closes connections.
pub const CLOSING_REASONS: [&str; 8] = [
    "plaintext",
    "tls_handshake",
    "gave_way",
    "idle_timeout",
    "header_timeout",
    "stalled",
    "max_connections",
    "network_share",
];

fn count_closed(limits: ServerLimits, reason: &'static str) {
    debug_assert!(CLOSING_REASONS.contains(&reason), "{reason} has no series from the start");
    counter!(CONNECTIONS_CLOSED, "listener" => limits.listener, "reason" => reason).increment(1);
}

/// Counts the connection for as long as it lives.
struct Counted(metrics::Gauge);

impl Counted {
    fn enter(listener: &'static str) -> Self {
        let gauge = gauge!(CONNECTIONS, "listener" => listener);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tls_tests;

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
        sync::Notify,
    };

    use super::*;

    /// For what comes by itself, on a busy machine.
    pub const PATIENCE: Duration = Duration::from_secs(30);
    /// A bound that nothing meets.
    const NEVER: Duration = Duration::from_secs(600);

    pub struct Server {
        pub address: std::net::SocketAddr,
        tasks: Tasks,
        /// A request for `/slow` has arrived, and its answer may go.
        arrived: Arc<Notify>,
        answer: Arc<Notify>,
    }

    impl Server {
        async fn start(limits: ServerLimits) -> Self {
            Self::with_connections(limits, 8).await
        }

        async fn with_connections(limits: ServerLimits, max_connections: usize) -> Self {
            Self::with_tls(limits, max_connections, None).await
        }

        pub async fn with_tls(
            limits: ServerLimits,
            max_connections: usize,
            certificates: Option<Certificates>,
        ) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let (tasks, arrived, answer) = (Tasks::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (tell, wait) = (arrived.clone(), answer.clone());
            let slow = get(async move || {
                tell.notify_one();
                wait.notified().await;
                "slow"
            });
            let quick = get(async || "quick");
            let app = axum::Router::new().route("/", quick.clone()).route("/name", quick).route("/slow", slow);
            let connections = Connections::new(max_connections);
            let (token, spawner) = (tasks.token().clone(), tasks.clone());
            tasks.spawn("server", serve(listener, app, limits, connections, spawner, token, certificates));
            Self { address, tasks, arrived, answer }
        }

        pub async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        pub async fn end(&self) {
            self.tasks.shutdown(PATIENCE).await.unwrap();
        }
    }

    pub fn limits() -> ServerLimits {
        ServerLimits { listener: "test", header_timeout: NEVER, idle_timeout: NEVER }
    }

    pub async fn read_to_end(stream: &mut TcpStream) -> String {
        let mut text = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut text));
        let _ = read.await.expect("the server closes the connection");
        String::from_utf8(text).unwrap()
    }

    async fn is_answered(stream: &mut TcpStream) {
        let mut buffer = [0; 1024];
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..read].ends_with(b"quick"), "{:?}", String::from_utf8_lossy(&buffer[..read]));
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_is_closed_and_so_is_half_a_head() {
        let server = Server::start(ServerLimits { header_timeout: Duration::from_millis(100), ..limits() }).await;
        for said in ["", "P", "PRI * HTTP/2.0\r\n", "GET / HTTP/1.1\r\nHost: x\r\n"] {
            let mut stream = server.connect().await;
            // A machine slow enough may find the connection closed already.
            let _ = stream.write_all(said.as_bytes()).await;
            assert_eq!(read_to_end(&mut stream).await, "", "{said:?}");
        }
        server.end().await;
    }

    #[tokio::test]
    async fn an_idle_connection_outlives_the_header_timeout() {
        let header_timeout = Duration::from_secs(1);
        let server = Server::start(ServerLimits { header_timeout, ..limits() }).await;
        let mut stream = server.connect().await;
        is_answered(&mut stream).await;
        tokio::time::sleep(2 * header_timeout).await;
        is_answered(&mut stream).await;
        drop(stream);
        server.end().await;
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_at_last() {
        let server = Server::start(ServerLimits { idle_timeout: Duration::from_millis(100), ..limits() }).await;
        let mut stream = server.connect().await;
        is_answered(&mut stream).await;
        assert_eq!(read_to_end(&mut stream).await, "");
        server.end().await;
    }

    #[tokio::test]
    async fn one_connection_too_many_is_told_so() {
        let server = Server::with_connections(limits(), 1).await;
        let mut first = server.connect().await;
        first.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        server.arrived.notified().await;
        let mut second = server.connect().await;
        let answer = read_to_end(&mut second).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"overloaded\""), "{answer}");
        server.answer.notify_one();
        assert!(read_to_end(&mut first).await.ends_with("slow"));
        server.end().await;
    }

    #[tokio::test]
    async fn silent_connections_of_one_address_leave_room_for_another_address() {
        let server = Server::start(limits()).await;
        let mut silent = Vec::new();
        for _ in 0..8 {
            silent.push(server.connect().await);
        }
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = socket.connect(server.address).await.unwrap();
        is_answered(&mut other).await;
        drop((silent, other));
        server.end().await;
    }

    #[tokio::test]
    async fn a_letter_that_is_percent_encoded_is_the_letter() {
        let server = Server::start(limits()).await;
        let mut stream = server.connect().await;
        stream.write_all(b"GET /n%61me HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(read_to_end(&mut stream).await.ends_with("quick"));
        server.end().await;
    }

    #[tokio::test]
    async fn an_idle_connection_gives_way_to_a_new_one() {
        let server = Server::with_connections(limits(), 1).await;
        let mut first = server.connect().await;
        is_answered(&mut first).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        let mut second = server.connect().await;
        is_answered(&mut second).await;
        assert_eq!(read_to_end(&mut first).await, "");
        server.end().await;
    }

    #[tokio::test]
    async fn what_is_no_request_gets_a_problem_too() {
        let server = Server::start(limits()).await;
        let many = "X-A: b\r\n".repeat(101);
        let large = format!("X-A: {}\r\n", "b".repeat(3 * MAX_HEAD_BYTES));
        let long = "b".repeat(3 * MAX_HEAD_BYTES);
        for (said, expected) in [
            ("no request at all\r\n\r\n".to_owned(), &["400 invalid_request"][..]),
            ("GET / HTTP/1.1\r\nno header\r\n\r\n".to_owned(), &["400 invalid_request"]),
            ("GET / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n".to_owned(), &["400 invalid_request"]),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: odd\r\n\r\n".to_owned(), &["400 invalid_request"]),
            ("GET /\0 HTTP/1.1\r\n\r\n".to_owned(), &["400 invalid_request"]),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), &["431 head_too_large"]),
            (format!("GET / HTTP/1.1\r\n{large}\r\n"), &["431 head_too_large"]),
            // Which of the two depends on how the bytes arrive.
            (format!("GET /{long} HTTP/1.1\r\n\r\n"), &["431 head_too_large", "414 uri_too_long"]),
        ] {
            // As the first thing on a connection, and after a request that was answered.
            for before in ["", "GET / HTTP/1.1\r\nHost: x\r\n\r\n"] {
                let mut stream = server.connect().await;
                stream.write_all(before.as_bytes()).await.unwrap();
                let mut answered = [0; 1024];
                if !before.is_empty() {
                    assert!(stream.read(&mut answered).await.unwrap() > 0);
                }
                // The server may stop reading before the end.
                let _ = stream.write_all(said.as_bytes()).await;
                let answer = read_to_end(&mut stream).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
                let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
                let summary = format!("{} {}", body["status"], body["code"].as_str().unwrap_or_default());
                assert!(expected.contains(&summary.as_str()), "{:?}: {answer:?}", &said[..said.len().min(80)]);
                assert!(head.starts_with(&format!("HTTP/1.1 {}", body["status"])), "{head}");
                assert!(head.contains("application/problem+json") && body["executed"] == false, "{answer}");
            }
        }
        server.end().await;
    }

    #[tokio::test]
    async fn a_client_that_sends_what_nobody_reads_still_gets_its_answer() {
        let server = Server::start(limits()).await;
        let mut stream = server.connect().await;
        // More than the sockets' buffers hold, to a route that does not read it.
        let body = vec![b'x'; 20_000_000];
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(read_to_end(&mut stream).await.ends_with("quick"));
        server.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_socket_lingers_no_longer_than_its_place_is_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (connections, closing) = (Connections::new(2), CancellationToken::new());
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        let mut returned = async || {
            // The client keeps its end open.
            clients.push(TcpStream::connect(address).await.unwrap());
            let returned = Returned::default();
            returned.put(Socket::Plain(listener.accept().await.unwrap().0));
            returned
        };
        let (first, second) = (returned().await, returned().await);
        let place = connections.admit(address.ip()).unwrap();
        let begun = tokio::time::Instant::now();
        let next = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            connections.admit(address.ip()).unwrap()
        };
        let ((), _next) = tokio::join!(linger(first, &closing, &place), next);
        assert!(place.leave.is_cancelled() && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        // A connection that was told to give way before it ended does not linger at all.
        let begun = tokio::time::Instant::now();
        linger(second, &closing, &place).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn shutdown_lets_requests_in_flight_finish() {
        let server = Server::start(limits()).await;
        let mut stream = server.connect().await;
        stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        server.arrived.notified().await;
        let answered = async {
            server.tasks.token().cancelled().await;
            server.answer.notify_one();
        };
        tokio::join!(server.end(), answered);
        assert!(read_to_end(&mut stream).await.ends_with("slow"));
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}

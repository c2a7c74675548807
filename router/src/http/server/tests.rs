//! The listener over real sockets: its bounds on connections and heads, and the same with TLS.

use std::{fs, path::PathBuf};

use axum::routing::get;
use certificates::TlsConfig;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    sync::Notify,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::*;

/// For what comes by itself, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A bound that nothing meets.
const NEVER: Duration = Duration::from_secs(600);

struct Server {
    address: std::net::SocketAddr,
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

    async fn with_tls(limits: ServerLimits, max_connections: usize, certificates: Option<Certificates>) -> Self {
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

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn end(&self) {
        self.tasks.shutdown(PATIENCE).await.unwrap();
    }
}

fn limits() -> ServerLimits {
    ServerLimits { listener: "test", header_timeout: NEVER, idle_timeout: NEVER }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
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

// === TLS ===

/// A folder with a certificate and its key.
struct Files {
    folder: PathBuf,
    config: TlsConfig,
}

impl Files {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("shardledger-tls-{test}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let config = TlsConfig { certificate: folder.join("router.pem"), key: folder.join("router.key") };
        Self { folder, config }
    }

    /// Writes a new certificate.
    fn renew(&self) -> CertificateDer<'static> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&self.config.key, signing_key.serialize_pem()).unwrap();
        fs::write(&self.config.certificate, cert.pem()).unwrap();
        cert.der().clone()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

async fn connect_by_tls(
    server: &Server,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, server.connect().await).await
}

async fn is_answered_by_tls(stream: &mut TlsStream<TcpStream>) {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1024];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
    assert!(buffer[..read].ends_with(b"quick"), "{:?}", String::from_utf8_lossy(&buffer[..read]));
}

#[tokio::test]
async fn https_is_answered_in_the_protocol_that_the_client_prefers() {
    let files = Files::new("alpn");
    let trusted = files.renew();
    let server = Server::with_tls(limits(), 8, Some(Certificates::open(&files.config).unwrap())).await;
    let mut first = connect_by_tls(&server, &trusted, &[b"http/1.1"]).await.unwrap();
    is_answered_by_tls(&mut first).await;
    let second = connect_by_tls(&server, &trusted, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(second.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(second)).await.unwrap();
    let request = Request::get("https://localhost/").body(String::new()).unwrap();
    let answer = tokio::select! {
        answer = sender.send_request(request) => answer.unwrap(),
        ended = connection => panic!("the connection ended: {ended:?}"),
    };
    assert_eq!(answer.status(), 200);
    drop((first, sender));
    server.end().await;
}

#[tokio::test]
async fn a_client_without_tls_is_told_to_use_https() {
    let files = Files::new("plaintext");
    files.renew();
    let server = Server::with_tls(limits(), 8, Some(Certificates::open(&files.config).unwrap())).await;
    let mut stream = server.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("HTTPS"), "{answer}");
    assert!(answer.contains("\"executed\":false"), "{answer}");
    drop(stream);
    server.end().await;
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_closed() {
    let files = Files::new("deadline");
    files.renew();
    let certificates = Some(Certificates::open(&files.config).unwrap());
    let limits = ServerLimits { header_timeout: Duration::from_millis(100), ..limits() };
    let server = Server::with_tls(limits, 8, certificates).await;
    for said in [&b""[..], &[TLS_HANDSHAKE], &[TLS_HANDSHAKE, 3, 1, 1, 0]] {
        let mut stream = server.connect().await;
        // A machine slow enough may find the connection closed already.
        let _ = stream.write_all(said).await;
        assert_eq!(read_to_end(&mut stream).await, "", "{said:?}");
    }
    server.end().await;
}

#[tokio::test]
async fn handshakes_that_never_end_give_way_to_a_new_client() {
    let files = Files::new("slow");
    let trusted = files.renew();
    let server = Server::with_tls(limits(), 2, Some(Certificates::open(&files.config).unwrap())).await;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = server.connect().await;
        stream.write_all(&[TLS_HANDSHAKE]).await.unwrap();
        slow.push(stream);
    }
    // Until the slow ones have had half a second, the listener refuses.
    let latest = tokio::time::Instant::now() + PATIENCE;
    let mut stream = loop {
        match connect_by_tls(&server, &trusted, &[]).await {
            Ok(stream) => break stream,
            Err(error) => assert!(tokio::time::Instant::now() < latest, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    is_answered_by_tls(&mut stream).await;
    // Both may have begun in the same millisecond, so that either is the slowest.
    let [first, second] = &mut slow[..] else { panic!("two handshakes were begun") };
    let said = tokio::select! {
        said = read_to_end(first) => said,
        said = read_to_end(second) => said,
    };
    assert_eq!(said, "");
    drop((stream, slow));
    server.end().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_served_and_a_broken_one_leaves_the_former_in_use() {
    let files = Files::new("renew");
    let first = files.renew();
    let certificates = Certificates::open(&files.config).unwrap();
    let server = Server::with_tls(limits(), 8, Some(certificates.clone())).await;
    let tasks = Tasks::new();
    certificates.watch(&tasks).unwrap();
    let mut before = connect_by_tls(&server, &first, &[]).await.unwrap();

    let second = files.renew();
    let latest = tokio::time::Instant::now() + PATIENCE;
    while connect_by_tls(&server, &second, &[]).await.is_err() {
        assert!(tokio::time::Instant::now() < latest, "the new certificate is never served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A connection that stands is not touched.
    is_answered_by_tls(&mut before).await;

    fs::write(&files.config.certificate, "no certificate").unwrap();
    while certificates.status().refusal.is_none() {
        assert!(tokio::time::Instant::now() < latest, "the broken certificate is never refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refusal = certificates.status().refusal.unwrap();
    assert!(refusal.contains("router.pem"), "{refusal}");
    is_answered_by_tls(&mut connect_by_tls(&server, &second, &[]).await.unwrap()).await;
    drop(before);
    tasks.shutdown(PATIENCE).await.unwrap();
    server.end().await;
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (files, other) = (Files::new("pair"), Files::new("other"));
    files.renew();
    other.renew();
    fs::copy(&other.config.key, &files.config.key).unwrap();
    let error = Certificates::open(&files.config).unwrap_err().to_string();
    assert!(error.contains("router.pem") && error.contains("router.key"), "{error}");
}

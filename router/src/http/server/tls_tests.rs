//! The listener with TLS: the handshake is within the bounds of the listener, and the certificate can be replaced.

use std::{fs, path::PathBuf};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
    },
};

use super::{
    tests::{PATIENCE, Server, limits, read_to_end},
    *,
};
use certificates::TlsConfig;

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

async fn connect(
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

async fn is_answered(stream: &mut TlsStream<TcpStream>) {
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
    let mut first = connect(&server, &trusted, &[b"http/1.1"]).await.unwrap();
    is_answered(&mut first).await;
    let second = connect(&server, &trusted, &[b"h2", b"http/1.1"]).await.unwrap();
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
        match connect(&server, &trusted, &[]).await {
            Ok(stream) => break stream,
            Err(error) => assert!(tokio::time::Instant::now() < latest, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    is_answered(&mut stream).await;
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
    let mut before = connect(&server, &first, &[]).await.unwrap();

    let second = files.renew();
    let latest = tokio::time::Instant::now() + PATIENCE;
    while connect(&server, &second, &[]).await.is_err() {
        assert!(tokio::time::Instant::now() < latest, "the new certificate is never served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A connection that stands is not touched.
    is_answered(&mut before).await;

    fs::write(&files.config.certificate, "no certificate").unwrap();
    while certificates.status().refusal.is_none() {
        assert!(tokio::time::Instant::now() < latest, "the broken certificate is never refused");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refusal = certificates.status().refusal.unwrap();
    assert!(refusal.contains("router.pem"), "{refusal}");
    is_answered(&mut connect(&server, &second, &[]).await.unwrap()).await;
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

//! Two processes that do not agree on TLS: what the caller is told.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use certificates::{HandshakeError, Mutual, MutualFiles, mutual};
use node_client::{ConnectError, Connection};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use tokio::{net::TcpListener, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(30);

/// An authority and what it issues, in a folder that is removed when dropped.
struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let folder = std::env::temp_dir().join(format!("shardledger-mutual-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        fs::write(folder.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    fn issue(&self, names: &[&str]) -> MutualFiles {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let file = |end: &str| self.folder.join(format!("{}.{end}", names.join("-")));
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        fs::write(file("pem"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        MutualFiles { certificate: file("pem"), key: file("key"), authority: self.folder.join("ca.pem") }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn open(files: &MutualFiles, callers: &[&str], nodes: &[&str]) -> Mutual {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Mutual::open(files, list(callers), list(nodes)).unwrap()
}

/// Takes one connection, and gives what became of it. `None`: a listener without TLS.
async fn listen(tls: Option<Mutual>) -> (String, JoinHandle<Result<certificates::Stream, HandshakeError>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    #[allow(clippy::disallowed_methods, reason = "a test needs no shutdown")]
    let taken = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        match tls {
            Some(tls) => tls.accept(socket).await,
            None => mutual::accept_plain(socket).await,
        }
    });
    (uri, taken)
}

/// Calls the node, which is expected to refuse. Gives the reason that the caller finds.
async fn refusal(uri: &str, tls: Option<&Mutual>) -> String {
    let connection = match Connection::open(uri, 0, 0, PATIENCE, tls).await {
        Ok(connection) => connection,
        Err(error) => return said(error),
    };
    let status = connection.client().status(wire::StatusRequest {}).await.unwrap_err();
    let silent = ConnectError::Silent { uri: uri.to_owned(), status: status.message().to_owned() };
    said(connection.explain(silent).await)
}

fn said(error: ConnectError) -> String {
    assert!(matches!(error, ConnectError::Tls { .. }), "{error:?}");
    error.to_string()
}

fn file_name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[tokio::test]
async fn two_certificates_of_one_authority_agree() {
    let authority = Authority::new("one");
    let node = open(&authority.issue(&["node.internal", "127.0.0.1"]), &["router.internal"], &[]);
    let router = open(&authority.issue(&["router.internal"]), &[], &["node.internal"]);
    let (uri, taken) = listen(Some(node)).await;
    let connection = Connection::open(&uri, 0, 0, PATIENCE, Some(&router)).await.unwrap();
    assert!(matches!(taken.await.unwrap(), Ok(certificates::Stream::Tls(_))));
    drop(connection);
}

#[tokio::test]
async fn a_caller_without_tls_is_told_that_the_port_takes_tls_only() {
    let authority = Authority::new("one");
    let node = open(&authority.issue(&["node.internal", "127.0.0.1"]), &["router.internal"], &[]);
    let (uri, taken) = listen(Some(node)).await;
    let reason = refusal(&uri, None).await;
    assert!(reason.contains(&uri) && reason.contains("takes TLS only") && reason.contains("shards.tls"), "{reason}");
    assert!(matches!(taken.await.unwrap(), Err(HandshakeError::Plaintext)));
}

#[tokio::test]
async fn a_caller_with_tls_is_told_that_the_port_speaks_none() {
    let authority = Authority::new("one");
    let router = open(&authority.issue(&["router.internal"]), &[], &[]);
    let (uri, taken) = listen(None).await;
    let reason = refusal(&uri, Some(&router)).await;
    assert!(reason.contains(&uri) && reason.contains("does not speak TLS") && reason.contains("rpc.tls"), "{reason}");
    assert!(matches!(taken.await.unwrap(), Err(HandshakeError::Unwanted)));
}

#[tokio::test]
async fn a_caller_of_another_authority_is_refused_and_so_is_a_node() {
    let (authority, other) = (Authority::new("one"), Authority::new("other"));
    let node_files = authority.issue(&["node.internal", "127.0.0.1"]);
    let stranger = other.issue(&["router.internal"]);
    // The caller trusts the node, and is not trusted by it.
    let one_sided = MutualFiles { authority: node_files.authority.clone(), ..stranger.clone() };
    let (uri, taken) = listen(Some(open(&node_files, &["router.internal"], &[]))).await;
    let reason = refusal(&uri, Some(&open(&one_sided, &[], &[]))).await;
    assert!(reason.contains("does not trust the certificate's authority"), "{reason}");
    let error = taken.await.unwrap().unwrap_err();
    assert!(error.to_string().contains(file_name(&node_files.authority)), "{error}");

    let (uri, taken) = listen(Some(open(&node_files, &["router.internal"], &[]))).await;
    let reason = refusal(&uri, Some(&open(&stranger, &[], &[]))).await;
    assert!(reason.contains("is of no authority in") && reason.contains("ca.pem"), "{reason}");
    assert!(taken.await.unwrap().is_err());
}

#[tokio::test]
async fn a_caller_whose_names_are_not_allowed_is_told_which_are() {
    let authority = Authority::new("one");
    let node = open(&authority.issue(&["node.internal", "127.0.0.1"]), &["router.internal", "node.internal"], &[]);
    let (uri, taken) = listen(Some(node)).await;
    let reason = refusal(&uri, Some(&open(&authority.issue(&["web.internal"]), &[], &[]))).await;
    assert!(reason.contains("web.internal") && reason.contains("router.internal, node.internal"), "{reason}");
    let error = taken.await.unwrap().unwrap_err();
    assert!(matches!(&error, HandshakeError::Name { names, .. } if names == &["web.internal"]), "{error}");
}

#[tokio::test]
async fn a_node_that_is_another_host_or_no_node_is_refused() {
    let authority = Authority::new("one");
    let router = authority.issue(&["router.internal"]);
    let (uri, taken) = listen(Some(open(&authority.issue(&["node.internal"]), &["router.internal"], &[]))).await;
    let reason = refusal(&uri, Some(&open(&router, &[], &[]))).await;
    assert!(reason.contains("is not for the host 127.0.0.1"), "{reason}");
    assert!(taken.await.unwrap().is_err());

    let (uri, taken) =
        listen(Some(open(&authority.issue(&["web.internal", "127.0.0.1"]), &["router.internal"], &[]))).await;
    let reason = refusal(&uri, Some(&open(&router, &[], &["node.internal"]))).await;
    assert!(reason.contains("web.internal, 127.0.0.1") && reason.contains("(node.internal)"), "{reason}");
    drop(taken);
}

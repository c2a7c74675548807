//! TLS between the processes of a cluster. Both sides have a certificate, and each compares the other's.
//!
//! A caller checks that a node's certificate comes from one of its authorities, is valid for the host that it called, and has one of the
//! names that it expects of nodes. A listener checks that a caller's certificate comes from one of its authorities and has one of the names
//! that it lets call. A caller that is refused is told why, before a request of it is read. Handshakes are never resumed, because a resumed
//! handshake checks no certificate.

use std::{io, sync::Arc, time::Duration};

use telemetry::Tasks;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        self, AlertDescription, CertificateError as Invalid, ClientConfig, InvalidMessage, ServerConfig,
        client::Resumption,
        crypto::ring,
        pki_types::ServerName,
        server::{NoServerSessionStorage, WebPkiClientVerifier},
        version::TLS13,
    },
};

use crate::{
    CertificateError, CertificateStatus, Stream,
    files::{Contents, Files, is_allowed, names_of},
    reloaded::{Built, Reloaded},
};

/// All of our own calls are HTTP/2.
const PROTOCOL: &[u8] = b"h2";
/// The first byte of a TLS connection: the record of a handshake.
const TLS_HANDSHAKE: u8 = 22;
/// How long a listener waits for a caller that it has refused to read why.
const LINGER: Duration = Duration::from_secs(1);
/// What a refused caller may have sent meanwhile.
const LINGER_BYTES: u64 = 64 * 1024;
/// The code of HTTP/2 with which a listener refuses a caller.
const INADEQUATE_SECURITY: u32 = 0xc;

/// The paths of the files: the certificate, its key, and the authorities of peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MutualFiles {
    pub certificate: std::path::PathBuf,
    pub key: std::path::PathBuf,
    pub authority: std::path::PathBuf,
}

/// The certificate with which a process calls nodes and is called. Clones share it.
#[derive(Debug, Clone)]
pub struct Mutual(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reloaded: Reloaded<Both>,
    /// A caller's certificate must have one of these names.
    callers: Vec<String>,
    /// A node's certificate must have one of these names besides its host. Empty: the host is enough.
    nodes: Vec<String>,
}

struct Both {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why two processes do not talk.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error(
        "the peer does not speak TLS: either side has no certificate in its configuration (rpc.tls of a node, shards.tls of a router)"
    )]
    Plaintext,
    #[error("the peer speaks TLS, and this port does not (rpc.tls is missing)")]
    Unwanted,
    /// The certificates do not suit. The text says whose and why.
    #[error("{0}")]
    Certificate(String),
    #[error("the peer's certificate is for {}, and none of these names is allowed ({})", list(names), list(allowed))]
    Name { names: Vec<String>, allowed: Vec<String> },
    #[error("the peer closed the connection within the TLS handshake")]
    Closed,
    #[error("{0}")]
    Io(io::Error),
}

impl HandshakeError {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Unwanted => "tls",
            Self::Certificate(_) => "certificate",
            Self::Name { .. } => "name",
            Self::Closed | Self::Io(_) => "connection",
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "no name".to_owned() } else { names.join(", ") }
}

impl Mutual {
    /// Reads the files. `callers` are the names of which a caller's certificate must have one; `nodes` those of which a node's must have
    /// one, besides the host in its address (empty: the host is enough).
    ///
    /// # Errors
    /// A file cannot be read, is not PEM, or the key is not the key of the certificate.
    pub fn open(files: &MutualFiles, callers: Vec<String>, nodes: Vec<String>) -> Result<Self, CertificateError> {
        let MutualFiles { certificate, key, authority } = files.clone();
        let files = Files { certificate, key, authority: Some(authority) };
        Ok(Self(Arc::new(Shared { reloaded: Reloaded::open("rpc", files, build)?, callers, nodes })))
    }

    /// From now on, changes of the files are taken in ([`Reloaded::watch`]).
    ///
    /// # Errors
    /// The process cannot receive SIGHUP.
    pub fn watch(&self, tasks: &Tasks) -> io::Result<()> {
        self.0.reloaded.watch(tasks)
    }

    pub fn status(&self) -> CertificateStatus {
        self.0.reloaded.status()
    }

    /// Makes the handshake of a call to a node. `host` is the host of the node's address.
    ///
    /// The node compares this process's certificate after the handshake: the first read of the stream then fails, and its error says what
    /// the node objects to.
    ///
    /// # Errors
    /// The node does not speak TLS, or its certificate is refused.
    pub async fn connect(&self, host: &str, socket: TcpStream) -> Result<Stream, HandshakeError> {
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host.clone())
            .map_err(|_| HandshakeError::Certificate(format!("{host} is no host name and no address")))?;
        let connector = TlsConnector::from(Arc::clone(&self.0.reloaded.in_use().client));
        let stream = connector.connect(name, socket).await.map_err(|error| self.failed(error, Some(&host)))?;
        let names = names_of_peer(stream.get_ref().1.peer_certificates());
        let allowed = &self.0.nodes;
        if !allowed.is_empty() && !is_allowed(&names, allowed) {
            return Err(HandshakeError::Name { names, allowed: allowed.clone() });
        }
        Ok(Stream::Tls(Box::new(stream.into())))
    }

    /// Makes the handshake with a caller. A caller that is refused is told why; nothing that it sent is passed on.
    ///
    /// # Errors
    /// The caller does not speak TLS, or its certificate is refused.
    pub async fn accept(&self, socket: TcpStream) -> Result<Stream, HandshakeError> {
        if !begins_with_tls(&socket).await? {
            dismiss(Stream::Plain(socket), "this port takes TLS only: the caller needs a certificate (shards.tls of a router, rpc.tls of a node)").await;
            return Err(HandshakeError::Plaintext);
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0.reloaded.in_use().server));
        let stream = match acceptor.accept(socket).into_fallible().await {
            Ok(stream) => stream,
            Err((error, socket)) => {
                // rustls has written an alert.
                linger(Stream::Plain(socket)).await;
                return Err(self.failed(error, None));
            }
        };
        let names = names_of_peer(stream.get_ref().1.peer_certificates());
        let stream = Stream::Tls(Box::new(stream.into()));
        if !is_allowed(&names, &self.0.callers) {
            let error = HandshakeError::Name { names, allowed: self.0.callers.clone() };
            if let HandshakeError::Name { names, allowed } = &error {
                let why = format!(
                    "the caller's certificate is for {}, and none of these names may call this node ({})",
                    list(names),
                    list(allowed)
                );
                dismiss(stream, &why).await;
            }
            return Err(error);
        }
        Ok(stream)
    }

    fn failed(&self, error: io::Error, host: Option<&str>) -> HandshakeError {
        let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => HandshakeError::Closed,
                _ => HandshakeError::Io(error),
            };
        };
        let authority = self.0.reloaded.files().authority.as_ref().map(|file| file.display().to_string());
        HandshakeError::Certificate(match inner {
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => {
                return HandshakeError::Plaintext;
            }
            rustls::Error::InvalidCertificate(Invalid::UnknownIssuer) => {
                format!("the peer's certificate is of no authority in {}", authority.unwrap_or_default())
            }
            rustls::Error::InvalidCertificate(Invalid::NotValidForName | Invalid::NotValidForNameContext { .. }) => {
                format!("the peer's certificate is not for the host {}", host.unwrap_or_default())
            }
            other => explain(other),
        })
    }
}

/// Takes a connection to a port without TLS. A caller that begins a handshake is refused: it expects certificates that this process does
/// not have.
///
/// # Errors
/// The caller speaks TLS, or has closed the connection.
pub async fn accept_plain(socket: TcpStream) -> Result<Stream, HandshakeError> {
    if begins_with_tls(&socket).await? {
        // What a caller reads in place of a handshake tells it that this process does not speak TLS.
        dismiss(Stream::Plain(socket), "this port has no TLS").await;
        return Err(HandshakeError::Unwanted);
    }
    Ok(Stream::Plain(socket))
}

/// Whether a caller begins a TLS handshake. Nothing is taken from the socket.
///
/// # Errors
/// The caller has closed the connection, or the socket fails.
async fn begins_with_tls(socket: &TcpStream) -> Result<bool, HandshakeError> {
    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(1) => Ok(first[0] == TLS_HANDSHAKE),
        Ok(_) => Err(HandshakeError::Closed),
        Err(error) => Err(HandshakeError::Io(error)),
    }
}

/// Tells a caller in the language of HTTP/2 that it is refused and why, and closes the connection.
async fn dismiss(mut stream: Stream, why: &str) {
    let reason = refusal(why);
    let told = stream.write_all(&reason);
    // A caller that does not listen misses the reason; it is refused all the same.
    if let Ok(Ok(())) = tokio::time::timeout(LINGER, told).await {
        linger(stream).await;
    }
}

/// Gives a caller that is refused time to read why. Bytes that are not read would reset the connection, and the caller might never see the
/// reason.
async fn linger(mut stream: Stream) {
    let read = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(LINGER, read).await;
}

/// The frames of an HTTP/2 server that refuses a connection: SETTINGS, then GOAWAY with the reason.
fn refusal(why: &str) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const LAST_STREAM: [u8; 4] = [0; 4];
    let length = LAST_STREAM.len() + size_of::<u32>() + why.len();
    let [_, high, middle, low] = u32::try_from(length).unwrap_or_default().to_be_bytes();
    let head = [high, middle, low, 7, 0, 0, 0, 0, 0];
    [&SETTINGS[..], &head, &LAST_STREAM, &INADEQUATE_SECURITY.to_be_bytes(), why.as_bytes()].concat()
}

fn names_of_peer(chain: Option<&[rustls::pki_types::CertificateDer<'static>]>) -> Vec<String> {
    chain.and_then(<[_]>::first).map(names_of).unwrap_or_default()
}

/// An error of rustls in words, with the part of the peer in it.
pub fn explain(error: &rustls::Error) -> String {
    match error {
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA => {
                "the peer refuses the certificate of this process: it does not trust the certificate's authority"
                    .to_owned()
            }
            AlertDescription::CertificateRequired => "the peer needs a certificate of this process".to_owned(),
            AlertDescription::CertificateExpired => {
                "the peer refuses the certificate of this process: it has expired, or the peer's clock is wrong"
                    .to_owned()
            }
            other => format!("the peer refuses the TLS connection ({other:?}); its log says why"),
        },
        rustls::Error::NoCertificatesPresented => "the peer has no certificate".to_owned(),
        rustls::Error::InvalidCertificate(reason) => format!("the peer's certificate is refused: {reason}"),
        other => format!("TLS failed: {other}"),
    }
}

fn build(files: &Files, contents: &Contents) -> Result<Built<Both>, CertificateError> {
    let refused = |reason| files.refused(reason);
    let provider = Arc::new(ring::default_provider());
    let pair = files.pair(contents)?;
    let roots = Arc::new(files.roots(contents)?);
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
        .build()
        .map_err(|reason| CertificateError::Authority {
            file: files.authority.clone().unwrap_or_default(),
            reason: reason.to_string(),
        })?;
    // The builders compare the key with the certificate.
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(refused)?
        .with_client_cert_verifier(callers)
        .with_single_cert(pair.chain.clone(), pair.key.clone_key())
        .map_err(refused)?;
    server.alpn_protocols = vec![PROTOCOL.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(refused)?
        .with_root_certificates(roots)
        .with_client_auth_cert(pair.chain, pair.key)
        .map_err(refused)?;
    client.alpn_protocols = vec![PROTOCOL.to_vec()];
    client.resumption = Resumption::disabled();
    let value = Both { server: Arc::new(server), client: Arc::new(client) };
    Ok(Built { value, certificates: pair.described })
}

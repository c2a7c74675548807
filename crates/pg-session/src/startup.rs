//! How a session begins: encryption of the TCP connection with rustls, start-up parameters and authentication.

use std::sync::Arc;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    },
};

use crate::{
    error::{Error, ServerMessage, Severity, malformed},
    options::{ConnectOptions, Pem, SslMode},
    session::TransactionStatus,
    socket::{Channel, Step},
};

/// What the server says about the new session.
pub(crate) struct Started {
    pub(crate) backend_pid: i32,
    pub(crate) transaction: TransactionStatus,
}

/// How far a SCRAM exchange is.
enum Scram {
    Unused,
    Begun(ScramSha256),
    /// The server has proved that it knows the password.
    Proved,
}

/// Sends the start-up parameters, authenticates, and waits until the server is ready.
///
/// # Errors
///
/// The server refuses the session ([`Error::Terminated`]), asks for an authentication that the options do not allow, or
/// does not prove that it knows the password, or the connection fails.
pub(crate) async fn start(channel: &mut Channel, options: &ConnectOptions) -> Result<Started, Error> {
    let mut message = BytesMut::new();
    frontend::startup_message(options.startup_parameters(), &mut message).map_err(malformed)?;
    channel.push(message.split().freeze());
    let mut scram = Scram::Unused;
    let mut backend_pid = 0;
    loop {
        let Step::Received(received) = channel.step().await? else { continue };
        match received {
            Message::AuthenticationOk => {
                if let Scram::Begun(_) = scram {
                    let reason = "the server did not prove that it knows the password";
                    return Err(Error::Authentication(reason.to_owned()));
                }
            }
            Message::AuthenticationCleartextPassword => {
                frontend::password_message(password(options)?, &mut message).map_err(malformed)?;
            }
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(options.user.as_bytes(), password(options)?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut message).map_err(malformed)?;
            }
            Message::AuthenticationSasl(body) => {
                let begun = begin_scram(&body, options)?;
                frontend::sasl_initial_response(SCRAM_SHA_256, begun.message(), &mut message).map_err(malformed)?;
                scram = Scram::Begun(begun);
            }
            Message::AuthenticationSaslContinue(body) => {
                let Scram::Begun(begun) = &mut scram else { return Err(unexpected("SASL data")) };
                begun.update(body.data()).map_err(|error| Error::Authentication(error.to_string()))?;
                frontend::sasl_response(begun.message(), &mut message).map_err(malformed)?;
            }
            Message::AuthenticationSaslFinal(body) => {
                let Scram::Begun(begun) = &mut scram else { return Err(unexpected("SASL data")) };
                begun.finish(body.data()).map_err(|error| Error::Authentication(error.to_string()))?;
                scram = Scram::Proved;
            }
            Message::AuthenticationGss
            | Message::AuthenticationGssContinue(_)
            | Message::AuthenticationSspi
            | Message::AuthenticationKerberosV5
            | Message::AuthenticationScmCredential => {
                let reason = "the server asks for a method other than trust, password, md5 and SCRAM-SHA-256";
                return Err(Error::Authentication(reason.to_owned()));
            }
            Message::BackendKeyData(body) => backend_pid = body.process_id(),
            Message::ReadyForQuery(body) => {
                let transaction = TransactionStatus::read(body.status())?;
                return Ok(Started { backend_pid, transaction });
            }
            Message::ErrorResponse(body) => {
                let refusal = ServerMessage::read(body.fields(), Severity::Fatal)?;
                return Err(Error::Terminated(Box::new(refusal)));
            }
            Message::NoticeResponse(_) | Message::ParameterStatus(_) => {}
            _ => return Err(unexpected("a message that belongs to a query")),
        }
        channel.push(message.split().freeze());
    }
}

fn begin_scram(body: &AuthenticationSaslBody, options: &ConnectOptions) -> Result<ScramSha256, Error> {
    let mut mechanisms = body.mechanisms();
    while let Some(mechanism) = mechanisms.next().map_err(malformed)? {
        if mechanism == SCRAM_SHA_256 {
            return Ok(ScramSha256::new(password(options)?, ChannelBinding::unsupported()));
        }
    }
    Err(Error::Authentication("the server offers no SCRAM-SHA-256".to_owned()))
}

fn password(options: &ConnectOptions) -> Result<&[u8], Error> {
    match &options.password {
        Some(password) => Ok(password.as_bytes()),
        None => Err(Error::Authentication("the server asks for a password, and the URL has none".to_owned())),
    }
}

fn unexpected(what: &str) -> Error {
    Error::Protocol(format!("the server sends {what} while the session starts"))
}

/// Asks the server whether it encrypts. Only its one byte of answer is read: what followed in clear text could come from
/// an attacker.
///
/// # Errors
///
/// The socket fails, or the server answers something else than yes or no.
pub(crate) async fn tls_offered(socket: &mut TcpStream) -> Result<bool, Error> {
    let mut request = bytes::BytesMut::new();
    postgres_protocol::message::frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        other => Err(Error::Protocol(format!("the server answers the request for TLS with byte {other:#04x}"))),
    }
}

/// Makes the handshake and checks the server's certificate as far as the mode asks for it.
///
/// # Errors
///
/// A certificate file is unusable, the server's certificate is refused, or the socket fails.
pub(crate) async fn encrypt(
    socket: TcpStream,
    host: &str,
    options: &ConnectOptions,
) -> Result<TlsStream<TcpStream>, Error> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::Tls("the host is neither a DNS name nor an IP address".to_owned()))?;
    let connector = TlsConnector::from(Arc::new(config(options).await?));
    connector.connect(name, socket).await.map_err(|error| {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(inner) => Error::Tls(inner.to_string()),
            None => Error::Io(error),
        }
    })
}

async fn config(options: &ConnectOptions) -> Result<ClientConfig, Error> {
    let refused = |error: rustls::Error| Error::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(refused)?
        .dangerous()
        .with_custom_certificate_verifier(verifier(options, provider).await?);
    let Some(identity) = &options.identity else { return Ok(builder.with_no_client_auth()) };
    let certificates = certificates("sslcert", &identity.certificates).await?;
    let key = PrivateKeyDer::from_pem_slice(&contents("sslkey", &identity.key).await?)
        .map_err(|error| Error::Tls(format!("sslkey: {error}")))?;
    builder.with_client_auth_cert(certificates, key).map_err(refused)
}

async fn verifier(
    options: &ConnectOptions,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let with_name = match options.ssl_mode {
        SslMode::VerifyFull => true,
        SslMode::VerifyCa => false,
        // libpq documents that a named root certificate makes `require` as strict as `verify-ca`.
        SslMode::Require if options.root_certificates.is_some() => false,
        SslMode::Disable | SslMode::Prefer | SslMode::Require => {
            return Ok(Arc::new(Lenient { accepts: Accepts::AnyCertificate, provider }));
        }
    };
    let mut roots = RootCertStore::empty();
    match &options.root_certificates {
        Some(pem) => {
            for certificate in certificates("sslrootcert", pem).await? {
                roots.add(certificate).map_err(|error| Error::Tls(format!("sslrootcert: {error}")))?;
            }
        }
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| Error::Tls(error.to_string()))?;
    Ok(if with_name { inner } else { Arc::new(Lenient { accepts: Accepts::AnyName(inner), provider }) })
}

async fn certificates(parameter: &str, pem: &Pem) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = contents(parameter, pem).await?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = read.map_err(|error| Error::Tls(format!("{parameter}: {error}")))?;
    if certificates.is_empty() {
        return Err(Error::Tls(format!("{parameter} holds no certificate")));
    }
    Ok(certificates)
}

async fn contents(parameter: &str, pem: &Pem) -> Result<Vec<u8>, Error> {
    match pem {
        Pem::Inline(text) => Ok(text.clone().into_bytes()),
        Pem::File(path) => tokio::fs::read(path)
            .await
            .map_err(|error| Error::Tls(format!("{parameter} ({}) is not readable: {error}", path.display()))),
    }
}

/// Accepts certificates that a strict verifier refuses. The server still proves that it holds the certificate's key.
#[derive(Debug)]
struct Lenient {
    accepts: Accepts,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Accepts {
    AnyCertificate,
    /// A certificate of an authority that the verifier knows, for whatever name.
    AnyName(Arc<WebPkiServerVerifier>),
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Accepts::AnyName(strict) = &self.accepts else {
            return Ok(ServerCertVerified::assertion());
        };
        // The strict verifier compares the name last, so a mismatch means that all else is right.
        match strict.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

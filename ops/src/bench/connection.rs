//! One HTTP/1.1 connection of the load generator. A request is assembled from prepared bytes, and its answer is read into a buffer that is
//! reused. A request costs two system calls and no allocation.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use certificates::Stream;
use http::{HeaderValue, StatusCode, Uri};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, pki_types::ServerName},
};

use crate::{exit::Unreachable, http_client, trust};

/// A router's address, parsed once, and how its connections are secured.
#[derive(Debug, Clone)]
pub struct Address {
    authority: String,
    host: String,
    port: u16,
    /// The TLS configuration, if the router takes HTTPS.
    tls: Option<Arc<ClientConfig>>,
    /// The `Authorization` header of each request.
    key: Option<HeaderValue>,
}

impl Address {
    /// The router at this URL. `--tls-dir` decides which certificates are trusted. The key comes from the environment.
    ///
    /// # Errors
    /// The URL is none of a router.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        Self::secured(url, trust::https, http_client::key())
    }

    /// The router at this URL, with these certificates if the URL is one of HTTPS, and with this key.
    ///
    /// # Errors
    /// The URL is none of a router.
    pub fn secured(
        url: &str,
        trusted: impl FnOnce() -> ClientConfig,
        key: Option<HeaderValue>,
    ) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url:?} is no URL"))?;
        let authority = uri.authority().with_context(|| format!("{url:?} names no host"))?;
        let is_https = uri.scheme_str() == Some("https");
        anyhow::ensure!(is_https || uri.scheme_str() == Some("http"), "{url:?}: routers speak HTTP and HTTPS");
        let port = authority.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let tls = is_https.then(|| Arc::new(trusted()));
        Ok(Self { authority: authority.to_string(), host, port, tls, key })
    }
}

/// The answer to one request. The body stays valid until the next request of the connection.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'c> {
    pub status: StatusCode,
    /// Whether the header says that a single transfer had been sent before.
    pub replayed: bool,
    pub body: &'c [u8],
}

pub struct Connection {
    stream: Stream,
    /// The header fields between the path and the length of the body.
    fields: Vec<u8>,
    output: Vec<u8>,
    input: Vec<u8>,
}

/// The length of a body is written after the body, into a field of fixed width.
const LENGTH_DIGITS: usize = 10;
const REPLAYED: &str = "idempotent-replayed";
const END_OF_HEAD: &[u8] = b"\r\n\r\n";
/// An answer with more header fields than this is an error.
const MAX_FIELDS: usize = 32;
/// Free space of the buffer before each read.
const READ_AHEAD: usize = 4096;

impl Connection {
    pub async fn open(address: &Address) -> anyhow::Result<Self> {
        let unreachable = |error: std::io::Error| Unreachable {
            what: format!("the router at {}", address.authority),
            reason: error.to_string(),
        };
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let stream = if let Some(tls) = &address.tls {
            let name = ServerName::try_from(address.host.clone()).context("the router's host")?;
            let connector = TlsConnector::from(Arc::clone(tls));
            Stream::Tls(Box::new(connector.connect(name, stream).await.map_err(unreachable)?.into()))
        } else {
            Stream::Plain(stream)
        };
        let mut fields = format!(" HTTP/1.1\r\nhost: {}\r\n", address.authority).into_bytes();
        if let Some(key) = &address.key {
            fields.extend([b"authorization: ", key.as_bytes(), b"\r\n"].concat());
        }
        fields.extend(b"content-type: application/json\r\ncontent-length: ");
        Ok(Self { stream, fields, output: Vec::new(), input: Vec::with_capacity(4 * READ_AHEAD) })
    }

    /// Sends one request, whose body `write_body` appends to the buffer, and reads the whole answer. After an error, the connection cannot be
    /// used again.
    pub async fn post(&mut self, path: &str, write_body: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<Answer<'_>> {
        self.send("POST ", path, write_body).await
    }

    /// Sends one request without a body, and reads the whole answer.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<Answer<'_>> {
        self.send("GET ", path, |_| {}).await
    }

    /// Sends the last request again.
    pub async fn again(&mut self) -> anyhow::Result<Answer<'_>> {
        self.exchange().await
    }

    async fn send(
        &mut self,
        method: &str,
        path: &str,
        write_body: impl FnOnce(&mut Vec<u8>),
    ) -> anyhow::Result<Answer<'_>> {
        write_request(&mut self.output, method, path, &self.fields, write_body);
        self.exchange().await
    }

    async fn exchange(&mut self) -> anyhow::Result<Answer<'_>> {
        self.stream.write_all(&self.output).await?;
        self.input.clear();
        let head = loop {
            self.read().await?;
            if let Some(head) = Head::parse(&self.input)? {
                break head;
            }
        };
        let end = head.length + head.body_length;
        self.input.reserve(end.saturating_sub(self.input.len()));
        while self.input.len() < end {
            self.read().await?;
        }
        ensure!(self.input.len() == end, "the router sent more than one answer");
        Ok(Answer { status: head.status, replayed: head.replayed, body: &self.input[head.length..end] })
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.input.reserve(READ_AHEAD);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            bail!("the router closed the connection");
        }
        Ok(())
    }
}

fn write_request(
    output: &mut Vec<u8>,
    method: &str,
    path: &str,
    fields: &[u8],
    write_body: impl FnOnce(&mut Vec<u8>),
) {
    output.clear();
    output.extend_from_slice(method.as_bytes());
    output.extend_from_slice(path.as_bytes());
    output.extend_from_slice(fields);
    let length_at = output.len();
    output.extend_from_slice(&[b'0'; LENGTH_DIGITS]);
    output.extend_from_slice(END_OF_HEAD);
    let body_at = output.len();
    write_body(output);
    let mut length = output.len() - body_at;
    for digit in output[length_at..length_at + LENGTH_DIGITS].iter_mut().rev() {
        *digit = b'0' + (length % 10) as u8;
        length /= 10;
    }
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: StatusCode,
    replayed: bool,
    length: usize,
    body_length: usize,
}

impl Head {
    /// `None` while the head is not complete.
    fn parse(input: &[u8]) -> anyhow::Result<Option<Self>> {
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(length) = response.parse(input).context("the head of an answer")? else {
            return Ok(None);
        };
        let status = StatusCode::from_u16(response.code.unwrap_or_default())?;
        let field = |name: &str| response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name));
        let value = field("content-length").context("an answer without content-length")?.value;
        let body_length = std::str::from_utf8(value)?.trim().parse().context("content-length")?;
        let replayed = field(REPLAYED).is_some_and(|field| field.value == b"true");
        Ok(Some(Self { status, replayed, length, body_length }))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let address = Address::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("127.0.0.1", 8080));
        assert_eq!(Address::parse("http://router").unwrap().port, 80);
        for bad in ["", "127.0.0.1:8080", "ftp://router", "http://"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_request_states_the_length_of_its_body() {
        let mut output = b"left over".to_vec();
        write_request(&mut output, "POST ", "/p", b" HTTP/1.1\r\ncontent-length: ", |body| {
            body.extend_from_slice(&[b'x'; 123]);
        });
        let expected = format!("POST /p HTTP/1.1\r\ncontent-length: 0000000123\r\n\r\n{}", "x".repeat(123));
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn the_head_of_an_answer_is_read_once_it_is_complete() {
        let answer = b"HTTP/1.1 200 OK\r\nDate: x\r\nContent-Length: 2\r\n\r\n{}";
        for cut in 0..answer.len() - 2 {
            assert_eq!(Head::parse(&answer[..cut]).unwrap(), None, "{cut}");
        }
        let head = Head::parse(answer).unwrap().unwrap();
        assert_eq!((head.status, head.length, head.body_length), (StatusCode::OK, answer.len() - 2, 2));
        assert!(!head.replayed);
        let again = b"HTTP/1.1 200 OK\r\nIdempotent-Replayed: true\r\ncontent-length: 0\r\n\r\n";
        assert!(Head::parse(again).unwrap().unwrap().replayed);
        assert!(Head::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "no length");
        assert!(Head::parse(b"SSH-2.0-x\r\n").is_err());
    }

    #[tokio::test]
    async fn an_answer_may_arrive_in_parts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let received = peer.read(&mut request).await.unwrap();
            for part in ["HTTP/1.1 201 Created\r\nconte", "nt-length: 5\r\n\r\n12", "345"] {
                peer.write_all(part.as_bytes()).await.unwrap();
                peer.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
            String::from_utf8_lossy(&request[..received]).into_owned()
        };
        let client = async {
            let mut connection = Connection::open(&Address::parse(&url).unwrap()).await.unwrap();
            let answer = connection.post("/v1/x", |body| body.extend_from_slice(b"{}")).await.unwrap();
            assert_eq!(answer, Answer { status: StatusCode::CREATED, replayed: false, body: b"12345" });
            assert!(connection.get("/").await.is_err(), "the server has closed");
        };
        let (request, ()) = tokio::join!(server, client);
        assert!(request.starts_with("POST /v1/x HTTP/1.1\r\n") && request.ends_with("\r\n\r\n{}"), "{request}");
    }
}

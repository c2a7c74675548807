//! The socket of a connection as hyper sees it: reports when bytes arrive, gives hyper's own refusals a body, and comes back
//! when hyper is done with it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{StatusCode, header};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;

use super::connections::Activity;
use crate::http::{
    context,
    problem::{Code, PROBLEM_JSON, Problem},
};

/// How long a client may go on sending what is not read, so that it can read the answer.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BUFFER_BYTES: usize = 64 * 1024;

/// The bytes of HTTP, as they are or within TLS.
pub enum Socket {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// A socket lent to hyper.
pub struct Watched {
    /// Absent once dropped.
    stream: Option<Socket>,
    activity: Arc<Activity>,
    returned: Returned,
    /// What of an answer in place of hyper's own is still to be written.
    replacement: Vec<u8>,
}

/// Where the socket is once hyper has let go of it.
#[derive(Clone, Default)]
pub struct Returned(Arc<Mutex<Option<Socket>>>);

impl Watched {
    pub fn new(stream: Socket, activity: Arc<Activity>, returned: Returned) -> Self {
        Self { stream: Some(stream), activity, returned, replacement: Vec::new() }
    }

    /// Writes our own answer where hyper writes a refusal of a head, which it does in one piece, and is done with `written` once all of
    /// the answer is out. `None`: it is something else.
    fn poll_replace(&mut self, cx: &mut Context<'_>, written: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.replacement.is_empty() {
            self.replacement = in_place_of(written)?;
        }
        Some(loop {
            let stream = self.stream.as_mut()?;
            match Pin::new(stream).poll_write(cx, &self.replacement) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(sent)) => {
                    self.replacement.drain(..sent);
                    if self.replacement.is_empty() {
                        break Poll::Ready(Ok(written.len()));
                    }
                }
                unfinished => break unfinished,
            }
        })
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Socket>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.returned.put(stream);
        }
    }
}

impl Returned {
    /// Gives a socket back that hyper has not had.
    pub fn put(&self, stream: Socket) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
    }

    /// Reads what a client is still sending after its answer was sent and this side was shut, until it closes. To close with
    /// unread bytes would reset the connection, and the client might never see why it was refused.
    pub async fn linger(self) {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut stream) = stream else { return };
        let discard = async {
            let mut buffer = vec![0; LINGER_BUFFER_BYTES];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        };
        // Too late or not, the connection closes now.
        let _ = tokio::time::timeout(LINGER, discard).await;
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = self.stream()?.poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_arrived();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_replace(cx, buf) {
            Some(replaced) => replaced,
            None => self.stream()?.poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // hyper's refusal is a head without a body, and so a single slice.
        let replaced = if let [head] = bufs { self.poll_replace(cx, head) } else { None };
        match replaced {
            Some(replaced) => replaced,
            None => self.stream()?.poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

// === answers to what never becomes a request ===
//
// hyper refuses a broken or oversized head by itself, with a head of its own and no body, before any layer of the router. There is no hook for
// it, so that the refusal is recognised where it is written to the socket.

const VERSION: &[u8] = b"HTTP/1.1 ";
/// Every error of the router has one. Those of hyper have no body, and so no type.
const CONTENT_TYPE: &[u8] = b"\r\ncontent-type:";

/// What is sent in place of `written`, if that is a refusal of a head by hyper.
fn in_place_of(written: &[u8]) -> Option<Vec<u8>> {
    let status = written.strip_prefix(VERSION)?.get(..3)?;
    if status[0] != b'4' || !is_whole_head(written) || contains(written, CONTENT_TYPE) {
        return None;
    }
    let (code, detail) = match StatusCode::from_bytes(status).ok()? {
        StatusCode::BAD_REQUEST => (Code::InvalidRequest, "the request line or a header is not HTTP/1.1"),
        StatusCode::URI_TOO_LONG => (Code::UriTooLong, "a request's target has less than 64 KiB"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            (Code::HeadTooLarge, "a request has at most 100 headers, and 64 KiB of them")
        }
        _ => return None,
    };
    Some(whole_answer(Problem::new(code, detail)))
}

/// The problem as a whole answer, after which the connection is closed.
pub fn whole_answer(problem: Problem) -> Vec<u8> {
    let status = problem.code().definition().status;
    let id = context::new_request_id();
    let body = problem.render("", id.to_str().unwrap_or_default());
    let retry_after = match status {
        StatusCode::SERVICE_UNAVAILABLE => "retry-after: 1\r\n",
        _ => "",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{}: {}\r\nx-request-id: {}\r\n{retry_after}connection: close\r\ncontent-length: {}\r\n\r\n",
        header::CONTENT_TYPE,
        PROBLEM_JSON.to_str().unwrap_or_default(),
        id.to_str().unwrap_or_default(),
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// A head and nothing after it.
fn is_whole_head(written: &[u8]) -> bool {
    written.windows(4).position(|bytes| bytes == b"\r\n\r\n") == written.len().checked_sub(4)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hypers_own_refusals_are_replaced() {
        let refusal = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";
        let answer = String::from_utf8(in_place_of(refusal).unwrap()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n") && head.contains("connection: close"), "{head}");
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&body["code"], &body["executed"]), (&"invalid_request".into(), &false.into()));
        assert!(head.contains(body["request_id"].as_str().unwrap()) && body["request_id"] != "");

        for ours in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/problem+json\r\n\r\n{}",
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(in_place_of(ours), None, "{}", String::from_utf8_lossy(ours));
        }
    }
}

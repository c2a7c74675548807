//! The socket, and the messages that wait on either side of it.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{Header, Message};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

use crate::{
    error::{Error, malformed},
    options::{ConnectOptions, Endpoint, SslMode},
    startup,
};

/// The largest message that is received. A ledger's rows and messages are far smaller, so a larger length means that the
/// two sides are out of step.
const MAX_MESSAGE: usize = 64 << 20;
/// How much is read at once.
const READ: usize = 16 << 10;
/// How many parts go into one call of `writev`.
const PARTS: usize = 32;

/// An idle connection to a host that vanished is noticed after `KEEPALIVE_IDLE + KEEPALIVE_PROBES * KEEPALIVE_INTERVAL`.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Sends parts of messages and receives whole messages.
///
/// Sending and receiving make progress side by side. Otherwise the server could wait until the client takes its notices
/// while the client waits until the server takes its rows.
pub(crate) struct Channel {
    socket: Socket,
    received: BytesMut,
    unsent: VecDeque<Bytes>,
    /// Something was written that the TLS layer may still hold.
    unflushed: bool,
    write_error: Option<io::Error>,
}

/// What [`Channel::step`] achieved.
pub(crate) enum Step {
    Received(Message),
    /// Everything that was pushed is sent, or the peer takes no more.
    Sent,
}

enum Progress {
    Received,
    Sent,
}

impl Channel {
    /// Opens the socket and encrypts it as the options say.
    ///
    /// # Errors
    ///
    /// The server is not reached, or it does not encrypt and must, or its certificate is refused.
    pub(crate) async fn open(options: &ConnectOptions) -> Result<Self, Error> {
        let socket = match &options.endpoint {
            // libpq, too, ignores the TLS mode on a Unix socket, on which no other program can listen in.
            Endpoint::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            Endpoint::Tcp(host, port) => {
                let mut socket = TcpStream::connect((host.as_str(), *port)).await?;
                // The flights are whole: a part held back until the peer acknowledges only costs time.
                socket.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
                if options.ssl_mode == SslMode::Disable {
                    Socket::Tcp(socket)
                } else if startup::tls_offered(&mut socket).await? {
                    Socket::Tls(Box::new(startup::encrypt(socket, host, options).await?))
                } else if options.ssl_mode == SslMode::Prefer {
                    Socket::Tcp(socket)
                } else {
                    return Err(Error::Tls("the server offers no TLS, and sslmode demands it".to_owned()));
                }
            }
        };
        let (received, unsent) = (BytesMut::with_capacity(READ), VecDeque::new());
        Ok(Self { socket, received, unsent, unflushed: false, write_error: None })
    }

    /// Appends a part to what is to be sent. [`step`](Self::step) sends it.
    pub(crate) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.unsent.push_back(part);
        }
    }

    /// Whether nothing waits to be sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.unsent.is_empty() && !self.unflushed
    }

    /// The error that stopped the sending, if one did.
    pub(crate) fn write_error(&mut self) -> Option<io::Error> {
        self.write_error.take()
    }

    /// Sends and receives until a message is received or everything is sent. It returns [`Step::Sent`] once for what was
    /// pushed, and after that waits for a message. Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// The socket breaks or the peer closes it, or what is received is no message.
    pub(crate) async fn step(&mut self) -> Result<Step, Error> {
        loop {
            if let Some(message) = self.take_message()? {
                return Ok(Step::Received(message));
            }
            if let Progress::Sent = poll_fn(|cx| self.poll_progress(cx)).await? {
                return Ok(Step::Sent);
            }
        }
    }

    /// Whether the peer has closed its side, as far as is known without waiting.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match self.poll_progress(&mut context) {
                Poll::Pending => return false,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    self.write_error = Some(error);
                    return true;
                }
            }
        }
    }

    /// Says to the peer that nothing more is sent.
    pub(crate) async fn shut_down(&mut self) -> io::Result<()> {
        self.socket.shutdown().await
    }

    fn take_message(&mut self) -> Result<Option<Message>, Error> {
        // The parser reserves memory for the length that the message claims.
        if let Some(header) = Header::parse(&self.received).map_err(malformed)?
            && usize::try_from(header.len()).unwrap_or(usize::MAX) > MAX_MESSAGE
        {
            return Err(Error::Protocol(format!("the server announces a message of {} bytes", header.len())));
        }
        Message::parse(&mut self.received).map_err(malformed)
    }

    fn poll_progress(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Progress>> {
        if !self.is_sent() {
            match self.poll_send(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Ok(Progress::Sent)),
                // The server may have said why it left before it closed its side, so what it sent is still read.
                Poll::Ready(Err(error))
                    if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) =>
                {
                    self.unsent.clear();
                    self.unflushed = false;
                    self.write_error = Some(error);
                    return Poll::Ready(Ok(Progress::Sent));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        self.received.reserve(READ);
        let read = ready!(pin!(self.socket.read_buf(&mut self.received)).poll(cx));
        Poll::Ready(match read {
            Ok(0) => Err(self
                .write_error
                .take()
                .unwrap_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"))),
            Ok(_) => Ok(Progress::Received),
            Err(error) => Err(self.write_error.take().unwrap_or(error)),
        })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() {
            let mut slices = [IoSlice::new(&[]); PARTS];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(&self.unsent) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            self.unflushed = true;
            let mut written = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            while let Some(part) = self.unsent.front_mut() {
                if written < part.len() {
                    part.advance(written);
                    break;
                }
                written -= part.len();
                self.unsent.pop_front();
            }
        }
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(socket) => Pin::new(socket).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

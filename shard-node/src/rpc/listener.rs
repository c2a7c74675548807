//! The connections of the RPC port, each after its handshake. What a refused caller has sent reaches no service.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use certificates::{HandshakeError, Mutual, Stream, mutual, network_of};
use futures_util::{
    StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::metric_definitions::RPC_CALLERS_REFUSED;

/// How long a caller may take for its handshake, or for its first byte where there is no TLS.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes at one time. Beyond them, the oldest one of the network that has most gives way, so that a new caller always begins at once.
const MAX_HANDSHAKES: usize = 256;
/// Handshakes at one time with one address (with IPv6, with one network). Beyond them, the oldest one of that address gives way. A process of
/// a cluster makes a few at once.
const MAX_HANDSHAKES_OF_NETWORK: usize = 32;
/// After an accept that failed for want of something (descriptors, memory), to let connections close.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// A caller that is refused for one reason again and again is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Callers and reasons that are remembered for it.
const MAX_REMEMBERED: usize = 256;

/// A connection of a caller that may call.
pub struct Incoming(Stream);

/// The connections of a listener. With `tls`, each caller has shown a certificate that `tls` accepts.
pub fn incoming(
    listener: TcpListener,
    tls: Option<Mutual>,
) -> impl futures_util::Stream<Item = io::Result<Incoming>> {
    let listener = Listener {
        listener,
        tls,
        handshakes: FuturesUnordered::new(),
        under_way: UnderWay::default(),
        refusals: Arc::default(),
    };
    stream::unfold(listener, Listener::next)
}

struct Listener {
    listener: TcpListener,
    tls: Option<Mutual>,
    handshakes: FuturesUnordered<BoxFuture<'static, Ended>>,
    under_way: UnderWay,
    refusals: Arc<Refusals>,
}

/// A handshake that has ended. `connection` is `None` if the caller is refused, or has gone.
struct Ended {
    place: Place,
    connection: Option<Incoming>,
}

impl Listener {
    async fn next(mut self) -> Option<(io::Result<Incoming>, Self)> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((socket, caller)) => {
                        let (tls, refusals) = (self.tls.clone(), Arc::clone(&self.refusals));
                        let (place, leave) = self.under_way.admit(caller.ip());
                        self.handshakes.push(Box::pin(async move {
                            let shaken = shake_hands(socket, caller, tls, &refusals);
                            let connection = match leave.run_until_cancelled(shaken).await {
                                Some(connection) => connection,
                                None => {
                                    refusals.refused(caller, "gave_way", "too many handshakes are under way");
                                    None
                                }
                            };
                            Ended { place, connection }
                        }));
                    }
                    Err(reason) => {
                        tracing::warn!(%reason, "cannot accept connections to the RPC port");
                        tokio::time::sleep(ACCEPT_BACKOFF).await;
                    }
                },
                Some(Ended { place, connection }) = self.handshakes.next(), if !self.handshakes.is_empty() => {
                    self.under_way.end(place);
                    if let Some(connection) = connection {
                        return Some((Ok(connection), self));
                    }
                }
            }
        }
    }
}

/// The handshakes under way, oldest first, by the network of the caller.
#[derive(Default)]
struct UnderWay {
    by_network: HashMap<IpAddr, VecDeque<(u64, CancellationToken)>>,
    next_number: u64,
}

/// The place of a handshake.
#[derive(Debug, Clone, Copy)]
struct Place {
    network: IpAddr,
    number: u64,
}

impl UnderWay {
    /// A place for a handshake with this address, and what tells it to give way.
    fn admit(&mut self, caller: IpAddr) -> (Place, CancellationToken) {
        let network = network_of(caller);
        if self.by_network.get(&network).is_some_and(|of_network| of_network.len() >= MAX_HANDSHAKES_OF_NETWORK) {
            self.cut_off_oldest(network);
        } else if self.by_network.values().map(VecDeque::len).sum::<usize>() >= MAX_HANDSHAKES
            && let Some((network, _)) = self.by_network.iter().max_by_key(|(_, of_network)| of_network.len())
        {
            self.cut_off_oldest(*network);
        }
        let place = Place { network, number: self.next_number };
        self.next_number += 1;
        let leave = CancellationToken::new();
        self.by_network.entry(network).or_default().push_back((place.number, leave.clone()));
        (place, leave)
    }

    fn cut_off_oldest(&mut self, network: IpAddr) {
        if let Some((number, leave)) =
            self.by_network.get(&network).and_then(|of_network| of_network.front().cloned())
        {
            leave.cancel();
            self.end(Place { network, number });
        }
    }

    /// Frees the place of a handshake that has ended, or has given way.
    fn end(&mut self, place: Place) {
        if let Some(of_network) = self.by_network.get_mut(&place.network) {
            of_network.retain(|(number, _)| *number != place.number);
            if of_network.is_empty() {
                self.by_network.remove(&place.network);
            }
        }
    }
}

/// `None`: the caller is refused, or has gone.
async fn shake_hands(
    socket: TcpStream,
    caller: SocketAddr,
    tls: Option<Mutual>,
    refusals: &Refusals,
) -> Option<Incoming> {
    if let Err(reason) = socket.set_nodelay(true) {
        tracing::debug!(%reason, "TCP_NODELAY");
    }
    let shaken = async {
        match &tls {
            Some(tls) => tls.accept(socket).await,
            None => mutual::accept_plain(socket).await,
        }
    };
    match tokio::time::timeout(HANDSHAKE_WITHIN, shaken).await {
        Ok(Ok(stream)) => return Some(Incoming(stream)),
        // A probe of the port, or a caller that went away.
        Ok(Err(error @ (HandshakeError::Closed | HandshakeError::Io(_)))) => {
            counter!(RPC_CALLERS_REFUSED, "reason" => error.reason()).increment(1);
            tracing::debug!(%caller, %error, "a caller of the RPC port has gone");
        }
        Ok(Err(error)) => refusals.refused(caller, error.reason(), &error.to_string()),
        Err(_) => {
            let error = format!("no handshake within {} s", HANDSHAKE_WITHIN.as_secs());
            refusals.refused(caller, "timeout", &error);
        }
    }
    None
}

/// Which callers were refused lately. A router with a wrong certificate tries again several times a second.
#[derive(Default)]
struct Refusals(Mutex<HashMap<(IpAddr, &'static str), Instant>>);

impl Refusals {
    fn refused(&self, caller: SocketAddr, reason: &'static str, error: &str) {
        counter!(RPC_CALLERS_REFUSED, "reason" => reason).increment(1);
        let now = Instant::now();
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|_, at| now.duration_since(*at) < LOG_EVERY);
        if logged.len() < MAX_REMEMBERED && !logged.contains_key(&(caller.ip(), reason)) {
            logged.insert((caller.ip(), reason), now);
            tracing::warn!(%caller, reason, error, "a caller of the RPC port is refused; nothing that it sent was executed");
        }
    }
}

impl Connected for Incoming {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.socket().connect_info()
    }
}

impl AsyncRead for Incoming {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Incoming {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;

    /// A connection from one of the addresses of the loopback interface.
    async fn connect(from: &str, listener: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(listener).await.unwrap()
    }

    #[tokio::test]
    async fn silent_callers_of_one_host_keep_no_caller_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut connections = pin!(incoming(listener, None));
        let mut silent = Vec::new();
        while silent.len() <= MAX_HANDSHAKES {
            // Callers are accepted meanwhile: the kernel keeps only some of them.
            tokio::select! {
                caller = connect("127.0.0.2", address) => silent.push(caller),
                _ = connections.next() => panic!("a silent caller is let in"),
            }
        }
        // Another host, and a caller of the same host.
        for from in ["127.0.0.3", "127.0.0.2"] {
            let mut caller = connect(from, address).await;
            caller.write_all(b"P").await.unwrap();
            let accepted = tokio::time::timeout(HANDSHAKE_WITHIN / 2, connections.next()).await;
            let Incoming(stream) = accepted.expect("a caller waits for silent ones").unwrap().unwrap();
            assert_eq!(stream.socket().peer_addr().unwrap().ip().to_string(), from);
        }
        // The oldest ones have given way.
        assert_eq!(silent[0].read(&mut [0]).await.unwrap(), 0);
    }

    #[test]
    fn the_network_with_most_handshakes_gives_way_when_all_places_are_taken() {
        let host = |number: usize| IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()]);
        let mut under_way = UnderWay::default();
        let mut admitted = Vec::new();
        // Two hosts have their share, and the others one or two handshakes each.
        for number in 0..2 {
            for _ in 0..MAX_HANDSHAKES_OF_NETWORK {
                admitted.push(under_way.admit(host(number)));
            }
        }
        for number in admitted.len()..MAX_HANDSHAKES {
            admitted.push(under_way.admit(host(2 + number % 128)));
        }
        assert!(admitted.iter().all(|(_, leave)| !leave.is_cancelled()));
        let (newest, _) = under_way.admit(host(200));
        let gone: Vec<IpAddr> =
            admitted.iter().filter(|(_, leave)| leave.is_cancelled()).map(|(place, _)| place.network).collect();
        assert!(gone == [host(0)] || gone == [host(1)], "{gone:?}");
        admitted.iter().for_each(|(place, _)| under_way.end(*place));
        under_way.end(newest);
        assert!(under_way.by_network.is_empty());
    }
}

//! Calls to the nodes of one shard. A call goes to the first endpoint that can be reached, and its failures say
//! whether the request may have been executed.

use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use certificates::Mutual;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

use crate::{
    Introduce, Introduced,
    connection::{ConnectError, Connection, NotSent},
};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// Certainly not executed: there was no connection, or it closed before the request was sent.
    #[error("not sent: {0}")]
    NotSent(String),
    /// Certainly not executed: the deadline passed while another caller was still connecting.
    #[error("the deadline passed before there was a connection")]
    TooLate,
    /// The connection broke after the request was sent.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// No answer in time on an open connection.
    #[error("no answer in time")]
    NoAnswer,
    /// The node, or a proxy in between, answered with an error.
    #[error("the call was refused ({code:?}): {detail}")]
    Refused { code: Code, detail: String },
}

/// The connections to one shard's nodes. At most one is in use at a time.
pub struct Client {
    shard: Arc<str>,
    endpoints: Vec<String>,
    connect_timeout: Duration,
    /// How the caller introduces itself on a new connection; `None`: it does not.
    introduction: Option<Arc<dyn Introduce>>,
    /// The certificate with which the caller calls; `None`: without TLS.
    tls: Option<Mutual>,
    state: Mutex<State>,
    /// Held while connecting, so that many callers share one attempt.
    connecting: tokio::sync::Mutex<()>,
}

struct State {
    current: Option<Connection>,
    next_serial: u64,
    /// The last reason for refusing a node, until a node is accepted.
    refused: Option<String>,
    /// When each endpoint last failed.
    failed_at: Vec<Option<Instant>>,
}

impl Client {
    /// Endpoints that failed this recently are tried last, and not returned to.
    const AVOID_FOR: Duration = Duration::from_secs(5);
    /// How often one call replaces a connection that it finds closed.
    const MAX_UNSENT: u32 = 3;

    /// `endpoints` are in order of preference.
    pub fn new(
        shard: Arc<str>,
        endpoints: Vec<String>,
        connect_timeout: Duration,
        introduction: Option<Arc<dyn Introduce>>,
        tls: Option<Mutual>,
    ) -> Self {
        assert!(!endpoints.is_empty(), "a shard without nodes passed the map's validation");
        let state = State { current: None, next_serial: 0, refused: None, failed_at: vec![None; endpoints.len()] };
        Self {
            shard,
            endpoints,
            connect_timeout,
            introduction,
            tls,
            state: Mutex::new(state),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// Makes a call. `make` runs again if the request was certainly not sent.
    pub async fn call<A, Make, Answer>(&self, until: Instant, mut make: Make) -> Result<A, CallFailure>
    where
        Make: FnMut(Connection) -> Answer,
        Answer: Future<Output = Result<tonic::Response<A>, Status>>,
    {
        let mut unsent = 0;
        loop {
            let connection = self.connection(until).await?;
            let status = match timeout_at(until, make(connection.clone())).await {
                Err(_) => return Err(CallFailure::NoAnswer),
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
            };
            match status.source() {
                Some(source) if source.is::<NotSent>() => {
                    self.discard(&connection);
                    unsent += 1;
                    if unsent == Self::MAX_UNSENT {
                        return Err(CallFailure::NotSent(status.message().to_owned()));
                    }
                }
                // Only transport failures have a source; an answer of the node has none.
                Some(_) => {
                    self.discard(&connection);
                    return Err(CallFailure::Lost(format!("{:?}: {}", status.code(), status.message())));
                }
                // The node does not serve this caller, or is behind the mark it was sent, so the request was
                // certainly not executed. Another node may serve it, and this node must be introduced again.
                None if status.code() == Code::FailedPrecondition => {
                    self.discard(&connection);
                    unsent += 1;
                    if unsent == Self::MAX_UNSENT {
                        return Err(CallFailure::NotSent(status.message().to_owned()));
                    }
                }
                None => {
                    return Err(CallFailure::Refused { code: status.code(), detail: status.message().to_owned() });
                }
            }
        }
    }

    /// The connection in use, or a new one to the first endpoint that accepts one.
    ///
    /// # Errors
    /// [`CallFailure::NotSent`] says why the last endpoint that was tried is not used, [`CallFailure::TooLate`] that `until` has passed.
    pub async fn connection(&self, until: Instant) -> Result<Connection, CallFailure> {
        if let Some(connection) = self.standing() {
            return Ok(connection);
        }
        let _turn = timeout_at(until, self.connecting.lock()).await.map_err(|_| CallFailure::TooLate)?;
        // Another caller may have connected in the meantime.
        if let Some(connection) = self.standing() {
            return Ok(connection);
        }
        let mut failure = None;
        for endpoint in self.order(Instant::now()) {
            let (uri, serial) = (&self.endpoints[endpoint], self.next_serial());
            match timeout_at(until, self.open(uri, endpoint, serial)).await {
                Ok(Ok((connection, _))) => {
                    tracing::info!(shard = %self.shard, endpoint = %uri, "connected to a shard-node");
                    let mut state = self.lock();
                    state.current = Some(connection.clone());
                    state.refused = None;
                    drop(state);
                    return Ok(connection);
                }
                Ok(Err(error)) => failure = Some(self.failed(endpoint, error)),
                Err(_) => return Err(CallFailure::TooLate),
            }
        }
        Err(CallFailure::NotSent(failure.unwrap_or_default()))
    }

    /// Goes back to an endpoint that is preferred to the one in use, if such an endpoint serves again. Calls that are under way stay where
    /// they are. All callers therefore use the same node of a shard again once the preferred node serves.
    pub async fn return_to_preferred(&self, until: Instant) {
        let Some(current) = self.standing() else { return };
        let Ok(_turn) = self.connecting.try_lock() else { return };
        for endpoint in 0..current.endpoint() {
            let failed_at = self.lock().failed_at[endpoint];
            if failed_at.is_some_and(|at| at.elapsed() < Self::AVOID_FOR) {
                continue;
            }
            let (uri, serial) = (&self.endpoints[endpoint], self.next_serial());
            match timeout_at(until, self.open(uri, endpoint, serial)).await {
                Ok(Ok((connection, true))) => {
                    tracing::info!(shard = %self.shard, endpoint = %uri, "went back to the preferred shard-node");
                    self.lock().current = Some(connection);
                    return;
                }
                // The node answers but does not serve yet. It is not asked again for `AVOID_FOR`.
                Ok(Ok((_, false))) => self.lock().failed_at[endpoint] = Some(Instant::now()),
                Ok(Err(error)) => drop(self.failed(endpoint, error)),
                Err(_) => {
                    self.lock().failed_at[endpoint] = Some(Instant::now());
                    return;
                }
            }
        }
    }

    /// Whether a node of the shard has not failed lately. While there is one, a broken connection to another node says little about the
    /// shard.
    pub fn has_untried_node(&self) -> bool {
        let now = Instant::now();
        self.lock().failed_at.iter().any(|at| at.is_none_or(|at| now.duration_since(at) >= Self::AVOID_FOR))
    }

    /// The address of the node in use.
    pub fn in_use(&self) -> Option<&str> {
        self.standing().map(|connection| self.endpoints[connection.endpoint()].as_str())
    }

    /// Opens a connection, and compares the node with what the caller expects. Also says whether the node serves.
    async fn open(&self, uri: &str, endpoint: usize, serial: u64) -> Result<(Connection, bool), ConnectError> {
        let connection = Connection::open(uri, endpoint, serial, self.connect_timeout, self.tls.as_ref()).await?;
        let Some(introduction) = &self.introduction else { return Ok((connection, true)) };
        let asked = Instant::now();
        let introduced = introduction.introduce(connection.client(), uri);
        let Ok(introduced) = tokio::time::timeout(self.connect_timeout, introduced).await else {
            let status = format!("no answer within {} ms", self.connect_timeout.as_millis());
            return Err(ConnectError::Silent { uri: uri.to_owned(), status });
        };
        let Introduced { steady_us, serves } = match introduced {
            Ok(introduced) => introduced,
            Err(failure) => return Err(connection.explain(failure).await),
        };
        connection.clock().heard(asked, Instant::now(), steady_us);
        Ok((connection.introduced(Arc::clone(introduction)), serves))
    }

    fn failed(&self, endpoint: usize, error: ConnectError) -> String {
        let mut state = self.lock();
        state.failed_at[endpoint] = Some(Instant::now());
        let text = error.to_string();
        // Log each reason once: a refused shard is tried again continually.
        let is_refusal = matches!(error, ConnectError::Refused { .. } | ConnectError::Tls { .. });
        if is_refusal && state.refused.as_ref() != Some(&text) {
            tracing::error!(shard = %self.shard, %error, "a shard-node is refused; nothing is sent to it");
            state.refused = Some(text.clone());
        } else {
            tracing::debug!(shard = %self.shard, %error, "a shard-node cannot be reached");
        }
        text
    }

    /// Drops the connection in use, because the node no longer serves the shard.
    pub fn drop_connection(&self) {
        if let Some(connection) = self.standing() {
            self.discard(&connection);
        }
    }

    fn next_serial(&self) -> u64 {
        let mut state = self.lock();
        state.next_serial += 1;
        state.next_serial
    }

    fn standing(&self) -> Option<Connection> {
        self.lock().current.clone().filter(|connection| !connection.is_closed())
    }

    /// Stops using a connection. Calls already waiting on it continue.
    fn discard(&self, connection: &Connection) {
        let mut state = self.lock();
        state.failed_at[connection.endpoint()] = Some(Instant::now());
        // Another caller may already have replaced the connection; the new one stays.
        if state.current.as_ref().is_some_and(|current| current.serial() == connection.serial()) {
            state.current = None;
        }
    }

    /// Endpoints in the order to try them: by preference, recently failed ones last.
    fn order(&self, now: Instant) -> Vec<usize> {
        let failed_at = self.lock().failed_at.clone();
        preference(&failed_at, now, Self::AVOID_FOR)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds the lock, and a panic would leave the state intact.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn preference(failed_at: &[Option<Instant>], now: Instant, avoid_for: Duration) -> Vec<usize> {
    let recent = |at: &Option<Instant>| at.is_some_and(|at| now.duration_since(at) < avoid_for);
    let mut order: Vec<usize> = (0..failed_at.len()).collect();
    // The sort is stable: preference decides within each half.
    order.sort_by_key(|&endpoint| recent(&failed_at[endpoint]));
    order
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Whether the bytes of an HTTP/2 client contain a complete data frame, which is the body of its request.
    fn has_data(sent: &[u8]) -> bool {
        const PREFACE: usize = 24;
        const HEAD: usize = 9;
        const DATA: u8 = 0;
        let mut rest = sent.get(PREFACE..).unwrap_or_default();
        while let [high, middle, low, kind, ..] = *rest {
            let whole = HEAD + u32::from_be_bytes([0, high, middle, low]) as usize;
            if rest.len() < whole {
                return false;
            }
            if kind == DATA {
                return true;
            }
            rest = &rest[whole..];
        }
        false
    }

    #[test]
    fn endpoints_that_failed_lately_go_last() {
        let now = Instant::now() + Duration::from_secs(60);
        let lately = Some(now - Duration::from_secs(1));
        let long_ago = Some(now - Duration::from_secs(30));
        let avoid = Client::AVOID_FOR;
        assert_eq!(preference(&[None, None, None], now, avoid), [0, 1, 2]);
        assert_eq!(preference(&[lately, None, long_ago], now, avoid), [1, 2, 0]);
        assert_eq!(preference(&[lately, lately], now, avoid), [0, 1], "all failed: preference again");
    }

    #[tokio::test]
    async fn a_call_to_a_closed_port_is_certainly_not_executed() {
        // The port is bound, so that no other process takes it, but nothing listens on it.
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let uri = format!("http://{}", taken.local_addr().unwrap());
        let client = Client::new("s0".into(), vec![uri], PATIENCE, None, None);
        let until = Instant::now() + PATIENCE;
        let answer = client
            .call(until, |connection| async move { connection.client().status(wire::StatusRequest {}).await })
            .await;
        assert!(matches!(answer, Err(CallFailure::NotSent(_))), "{answer:?}");
    }

    #[tokio::test]
    async fn a_lost_call_leaves_the_other_nodes_of_the_shard_to_try() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let first = format!("http://{}", listener.local_addr().unwrap());
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let second = format!("http://{}", taken.local_addr().unwrap());
        let client = Client::new("s0".into(), vec![first, second], PATIENCE, None, None);
        let call = || {
            client.call(Instant::now() + PATIENCE, |connection| async move {
                connection.client().status(wire::StatusRequest {}).await
            })
        };
        let cut = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            while !has_data(&received) {
                stream.read_buf(&mut received).await.unwrap();
            }
        };
        let (answer, ()) = tokio::join!(call(), cut);
        assert!(matches!(answer, Err(CallFailure::Lost(_))) && client.has_untried_node(), "{answer:?}");
        drop(listener);
        assert!(matches!(call().await, Err(CallFailure::NotSent(_))));
        assert!(!client.has_untried_node(), "both have failed lately");
    }

    #[tokio::test]
    async fn a_connection_cut_after_the_request_is_lost() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            // The request arrives and is never answered.
            let mut received = Vec::new();
            while !has_data(&received) {
                stream.read_buf(&mut received).await.unwrap();
            }
        };
        let client = Client::new("s0".into(), vec![uri], PATIENCE, None, None);
        let until = Instant::now() + PATIENCE;
        let call =
            client.call(until, |connection| async move { connection.client().status(wire::StatusRequest {}).await });
        let (answer, ()) = tokio::join!(call, server);
        assert!(matches!(answer, Err(CallFailure::Lost(_))), "{answer:?}");
    }
}

//! The network between routers and nodes. A call of a node's service goes through a link, which delays it, loses it together with
//! its connection, delivers it late or twice, or is cut for a while.
//!
//! A router finds out about a lost message as it does with HTTP/2 over TCP: the connection breaks, or nothing comes. A message of a
//! broken connection that has reached a node may still be carried out.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use node_client::{
    ConnectError, NotSent,
    simulation::{Link, Pending},
};
use shard_node::simulation::Node;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tower::Service;

use crate::{random::Random, trace};

/// A node of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub shard: usize,
    pub node: usize,
}

/// Who calls a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    Router(usize),
    /// A node of another shard, for a move of slots.
    Node,
}

/// The way to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub from: Caller,
    pub to: Address,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Router(router) => write!(f, "r{router}"),
            Self::Node => f.write_str("nn"),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to: Address { shard, node } } = self;
        f.pad(&format!("{from}>s{shard}n{node}"))
    }
}

/// What happens to one of the next calls that carry operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkFault {
    /// The connection breaks before the request arrives.
    LoseRequest,
    /// The connection breaks after the request was carried out.
    LoseAnswer,
    /// The request arrives twice, the second time later, and the connection breaks before the answer.
    Duplicate,
    /// The request arrives after this time.
    Late(Duration),
}

/// Pings notice a silent connection after this time (`crates/node-client/src/connection.rs`).
const SILENT_FOR: Duration = Duration::from_secs(4);
/// How often a message looks whether its way is open again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Shared by everything in a run.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

struct State {
    random: Random,
    /// The longest usual delay of a message, in milliseconds.
    longest_ms: u64,
    nodes: BTreeMap<Address, Running>,
    /// Since when a way is cut, or a node frozen.
    cut: BTreeMap<Way, Instant>,
    frozen: BTreeMap<Address, Instant>,
    faults: VecDeque<LinkFault>,
    /// Of calls that move slots.
    faults_of_moves: VecDeque<LinkFault>,
    /// Maps travel in messages.
    has_maps: bool,
    calls: u64,
}

#[derive(Clone)]
struct Running {
    node: Arc<Node>,
    /// Cancelled when the node dies.
    down: CancellationToken,
}

impl Network {
    pub fn new(random: Random, longest_ms: u64, has_maps: bool) -> Self {
        Self(Arc::new(Mutex::new(State {
            random,
            longest_ms,
            nodes: BTreeMap::new(),
            cut: BTreeMap::new(),
            frozen: BTreeMap::new(),
            faults: VecDeque::new(),
            faults_of_moves: VecDeque::new(),
            has_maps,
            calls: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === nodes ===

    pub fn node(&self, address: Address) -> Option<Arc<Node>> {
        self.state().nodes.get(&address).map(|running| Arc::clone(&running.node))
    }

    /// A node listens from now on.
    pub fn up(&self, address: Address, node: Arc<Node>) {
        self.state().nodes.insert(address, Running { node, down: CancellationToken::new() });
    }

    /// A node dies: its connections break. Returns false if it was dead.
    pub fn down(&self, address: Address) -> bool {
        let running = {
            let mut state = self.state();
            state.frozen.remove(&address);
            state.nodes.remove(&address)
        };
        let Some(running) = running else { return false };
        running.node.tasks().process().thaw();
        running.node.tasks().process().kill();
        running.down.cancel();
        true
    }

    pub fn freeze(&self, address: Address) {
        if let Some(node) = self.node(address) {
            node.tasks().process().freeze();
            self.state().frozen.insert(address, Instant::now());
        }
    }

    pub fn thaw(&self, address: Address) {
        self.state().frozen.remove(&address);
        if let Some(node) = self.node(address) {
            node.tasks().process().thaw();
        }
    }

    // === links ===

    pub fn cut(&self, way: Way) {
        self.state().cut.insert(way, Instant::now());
    }

    pub fn mend(&self, way: Way) {
        self.state().cut.remove(&way);
    }

    /// Orders a fault for each of the next calls that carry operations.
    pub fn order(&self, faults: impl IntoIterator<Item = LinkFault>) {
        self.state().faults.extend(faults);
    }

    /// The same for each of the next calls that move slots.
    pub fn order_of_moves(&self, faults: impl IntoIterator<Item = LinkFault>) {
        self.state().faults_of_moves.extend(faults);
    }

    /// No fault occurs from now on. What dies or is cut after this call is another matter.
    pub fn calm(&self) {
        let (frozen, nodes) = {
            let mut state = self.state();
            state.faults.clear();
            state.faults_of_moves.clear();
            state.cut.clear();
            (std::mem::take(&mut state.frozen), state.nodes.clone())
        };
        for address in frozen.keys() {
            if let Some(running) = nodes.get(address) {
                running.node.tasks().process().thaw();
            }
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    fn is_cut(&self, way: Way) -> bool {
        self.state().cut.contains_key(&way)
    }

    /// Whether nothing has come along this way for so long that pings have noticed.
    fn is_silent(&self, way: Way) -> bool {
        let state = self.state();
        let since = [state.cut.get(&way), state.frozen.get(&way.to)].into_iter().flatten().min();
        since.is_some_and(|since| since.elapsed() >= SILENT_FOR)
    }

    fn has_maps(&self) -> bool {
        self.state().has_maps
    }

    fn delay(&self) -> Duration {
        let mut state = self.state();
        let longest_ms = state.longest_ms;
        // A third of the messages takes less than the clock can tell.
        Duration::from_millis(state.random.between(0, longest_ms + longest_ms / 2).saturating_sub(longest_ms / 2))
    }

    fn fault(&self, kind: CallKind) -> Option<LinkFault> {
        let mut state = self.state();
        state.calls += 1;
        match kind {
            CallKind::Execute => state.faults.pop_front(),
            CallKind::Move => state.faults_of_moves.pop_front(),
            CallKind::Other => None,
        }
    }

    async fn connected(self, uri: String) -> Result<Arc<dyn Link>, ConnectError> {
        let way = way_of(&uri).ok_or_else(|| ConnectError::Address(uri.clone()))?;
        sleep(self.delay()).await;
        while self.is_cut(way) {
            sleep(LOOK_AGAIN).await;
        }
        let running = self.state().nodes.get(&way.to).cloned();
        let Some(Running { node, down }) = running else {
            let source = io::Error::from(io::ErrorKind::ConnectionRefused);
            return Err(ConnectError::Unreachable { uri, source });
        };
        Ok(Arc::new(Wire { network: self, way, node, broken: down.child_token() }))
    }
}

impl node_client::simulation::Network for Network {
    fn connect(&self, uri: &str) -> Pending<Arc<dyn Link>, ConnectError> {
        Box::pin(self.clone().connected(uri.to_owned()))
    }
}

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Execute,
    Move,
    Other,
}

/// The address of a node in the map of a caller: each router has its own map, and the nodes have one, so that an address says whose way it
/// is.
pub fn uri(Way { from, to: Address { shard, node } }: Way) -> String {
    format!("http://{from}.s{shard}.n{node}:1")
}

fn way_of(uri: &str) -> Option<Way> {
    let host = uri.strip_prefix("http://")?.strip_suffix(":1")?;
    let (from, to) = host.split_once(".s")?;
    let from = match from {
        "nn" => Caller::Node,
        router => Caller::Router(router.strip_prefix('r')?.parse().ok()?),
    };
    let (shard, node) = to.split_once(".n")?;
    let to = Address { shard: shard.parse().ok()?, node: node.parse().ok()? };
    Some(Way { from, to })
}

/// Replaces the addresses in the maps of a message by those of another caller, which have the same length.
async fn with_addresses_of(caller: Caller, body: Body) -> Result<Body, tonic::Status> {
    const SCHEME: &[u8] = b"http://";
    let prefix = caller.to_string();
    let collected = body.collect().await?;
    // The status of an answer is in its trailers.
    let trailers = collected.trailers().cloned().map(Ok);
    let mut bytes = collected.to_bytes().to_vec();
    for place in 0..bytes.len().saturating_sub(SCHEME.len() + prefix.len()) {
        let (host, end) = (place + SCHEME.len(), place + SCHEME.len() + prefix.len());
        if bytes[place..].starts_with(SCHEME) && bytes[end..].starts_with(b".s") {
            bytes[host..end].copy_from_slice(prefix.as_bytes());
        }
    }
    Ok(Body::new(Full::new(bytes.into()).with_trailers(std::future::ready(trailers))))
}

/// One connection.
#[derive(Clone)]
struct Wire {
    network: Network,
    way: Way,
    node: Arc<Node>,
    broken: CancellationToken,
}

fn kind_of(request: &Request<Body>) -> CallKind {
    let path = request.uri().path();
    let service = path.split('/').nth(1).unwrap_or_default();
    match path.rsplit('/').next() {
        _ if service == wire::slot_moves_server::SERVICE_NAME => CallKind::Move,
        Some("Execute") => CallKind::Execute,
        _ => CallKind::Other,
    }
}

fn lost(why: &'static str) -> Box<dyn std::error::Error + Send + Sync> {
    io::Error::new(io::ErrorKind::ConnectionReset, why).into()
}

type Answer = Response<Body>;

const REQUEST_LOST: &str = "the request was lost";

impl Wire {
    /// Has the node carry out a request when it arrives. The request stays under way if its caller gives up.
    fn deliver(&self, request: Request<Body>, after: Duration, answer: oneshot::Sender<Answer>) {
        let wire = self.clone();
        self.node.tasks().spawn("call", async move {
            sleep(after).await;
            while wire.network.is_cut(wire.way) {
                if wire.broken.is_cancelled() {
                    return;
                }
                sleep(LOOK_AGAIN).await;
            }
            let response = match wire.node.moves() {
                Some(mut moves) if kind_of(&request) == CallKind::Move => moves.call(request).await,
                _ => wire.node.service().call(request).await,
            };
            let Ok(response) = response;
            // The caller may have given up.
            let _ = answer.send(response);
        });
    }

    async fn send(self, request: Request<Body>) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        if self.is_closed() {
            return Err(NotSent.into());
        }
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let fault = self.network.fault(kind_of(&request));
        let request = match method.as_str() {
            "OfferShardMap" if self.network.has_maps() => {
                let (head, body) = request.into_parts();
                Request::from_parts(head, with_addresses_of(Caller::Node, body).await?)
            }
            _ => request,
        };
        let (there, back) = (self.network.delay(), self.network.delay());
        trace::note(self.way, || match fault {
            Some(fault) => format!("{method}, {fault:?}"),
            None => method.clone(),
        });
        let (sender, answer) = oneshot::channel();
        let mut is_lost = None;
        match fault {
            None => self.deliver(request, there, sender),
            Some(LinkFault::Late(late)) => self.deliver(request, late, sender),
            Some(LinkFault::LoseRequest) => {
                is_lost = Some(REQUEST_LOST);
            }
            Some(LinkFault::LoseAnswer) => {
                self.deliver(request, there, sender);
                is_lost = Some("the answer was lost");
            }
            Some(LinkFault::Duplicate) => {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let copy = || Request::from_parts(head.clone(), Body::new(Full::new(body.clone())));
                self.deliver(copy(), there, sender);
                let (unheard, _) = oneshot::channel();
                self.deliver(copy(), there + back + Duration::from_millis(1), unheard);
                is_lost = Some("the request was sent twice, and the answer lost");
            }
        }
        let answered = async {
            if is_lost == Some(REQUEST_LOST) {
                sleep(there + back).await;
                return None;
            }
            let answer = answer.await.ok();
            sleep(back).await;
            while self.network.is_cut(self.way) {
                sleep(LOOK_AGAIN).await;
            }
            answer
        };
        let silent = async {
            loop {
                sleep(Duration::from_secs(1)).await;
                if self.network.is_silent(self.way) {
                    return;
                }
            }
        };
        let outcome = tokio::select! {
            biased;
            () = self.broken.cancelled() => Err("the connection broke"),
            answer = answered => answer.ok_or("the node gave no answer"),
            () = silent => Err("nothing came along the connection"),
        };
        match (outcome, is_lost) {
            (Ok(answer), None) => {
                trace::note(self.way, || format!("{method} is answered"));
                if !self.network.has_maps() || !matches!(method.as_str(), "GetOwnership" | "Identify") {
                    return Ok(answer);
                }
                let (head, body) = answer.into_parts();
                Ok(Response::from_parts(head, with_addresses_of(self.way.from, body).await?))
            }
            (Ok(_), Some(why)) | (Err(_), Some(why)) | (Err(why), None) => {
                self.broken.cancel();
                trace::note(self.way, || format!("{method}: {why}"));
                Err(lost(why))
            }
        }
    }
}

impl Link for Wire {
    fn is_closed(&self) -> bool {
        self.broken.is_cancelled() || self.network.is_silent(self.way)
    }

    fn call(&self, request: Request<Body>) -> Pending<Answer, Box<dyn std::error::Error + Send + Sync>> {
        Box::pin(self.clone().send(request))
    }
}

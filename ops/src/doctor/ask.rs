//! Asks nodes and routers, and stores their answers. The requests contain no marks, assets or clock readings, so they change nothing.

use std::{fmt, time::Duration};

use anyhow::Context;
use futures_util::future::join_all;
use http::Method;
use identity::{Disagreement, Mark, Marks, ShardIdentity, time::OtherClock};
use serde_json::Value;
use shard_map::{Shard, ShardMap, Slot, SlotRange};
use telemetry::clock;
use tonic::transport::{Channel, Endpoint};
use wire::{convert, fact::Verdict as WireVerdict, shard_node_client::ShardNodeClient};

use super::finding::FindingVerdict;
use crate::{context::Routers, http_client::HttpClient, output::items, trust};

/// How long a node may take to answer. A working node answers much sooner.
pub const PATIENCE: Duration = Duration::from_secs(3);
const CALLER: &str = "shardctl doctor";

type Node = ShardNodeClient<Channel>;

/// Asks every node and router once, all at the same time.
pub async fn look(map: &ShardMap, source: &MapSource, routers: &Routers) -> ClusterSeen {
    let asked = join_all(routers.urls.iter().map(|url| ask_router(&routers.client, url)));
    let nodes = join_all(addresses(map).map(|(shard, url)| ask_node(map, shard, url)));
    let (routers, mut nodes) = tokio::join!(asked, nodes);
    // Every mark that was collected so far was acknowledged before this moment. A position that is read from now on must therefore include it.
    let positions = nodes.iter_mut().zip(addresses(map)).map(|(node, (shard, url))| async move {
        if let Ok(answer) = &mut node.answer {
            match within(async { identify(map, shard, &mut connect(url).await?).await }).await {
                Ok((identified, _)) => answer.mark = identified.mark.unwrap_or_default().into(),
                Err(reason) => node.answer = Err(reason),
            }
        }
    });
    join_all(positions).await;
    ClusterSeen { map: map.clone(), source: source.clone(), nodes, routers }
}

/// Asks the nodes again which slots their shards own.
pub async fn look_at_ownership(seen: &mut ClusterSeen) {
    let asked = seen.nodes.iter_mut().map(|node| async {
        if let Ok(answer) = &mut node.answer {
            answer.ownership = within(async { ownership(&mut connect(&node.url).await?).await }).await;
        }
    });
    join_all(asked).await;
}

/// Every node of every shard, in the order of the map.
fn addresses(map: &ShardMap) -> impl Iterator<Item = (&Shard, &String)> {
    map.shards.iter().flat_map(|shard| shard.nodes.iter().map(move |url| (shard, url)))
}

async fn within<T>(work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} ms", PATIENCE.as_millis())),
    }
}

// === nodes ===

async fn ask_node(map: &ShardMap, shard: &Shard, url: &str) -> NodeSeen {
    NodeSeen { shard: shard.id.clone(), url: url.to_owned(), answer: within(examine(map, shard, url)).await }
}

async fn examine(map: &ShardMap, shard: &Shard, url: &str) -> Result<NodeAnswer, String> {
    let mut node = connect(url).await?;
    let (identified, clock) = identify(map, shard, &mut node).await?;
    let examined = node.examine(wire::ExamineRequest {}).await.map_err(error_text)?.into_inner();
    let ownership = ownership(&mut node).await;
    let identity = identified.identity.map(TryInto::try_into).transpose();
    let not_readable = |error: convert::BadMessage| format!("its answer cannot be read: {error}");
    Ok(NodeAnswer {
        identity: identity.map_err(not_readable)?,
        uninitialised: identified.uninitialised,
        refused: identified.refused.into_iter().map(Into::into).collect(),
        facts: examined.facts.into_iter().map(fact).collect(),
        marks: convert::marks_from_wire(&identified.marks).map_err(not_readable)?,
        mark: identified.mark.unwrap_or_default().into(),
        clock,
        server_started_at_us: identified.server_started_at_us,
        database_oid: identified.database_oid,
        ownership,
    })
}

async fn connect(url: &str) -> Result<Node, String> {
    let endpoint =
        Endpoint::from_shared(url.to_owned()).map_err(|error| error.to_string())?.connect_timeout(PATIENCE);
    let channel = trust::connect(endpoint).await?;
    Ok(ShardNodeClient::new(channel).max_decoding_message_size(wire::MAX_MESSAGE_BYTES))
}

async fn identify(
    map: &ShardMap,
    shard: &Shard,
    node: &mut Node,
) -> Result<(wire::IdentifyResponse, OtherClock), String> {
    let request = wire::IdentifyRequest::expecting(map.cluster, &shard.id, shard.number, CALLER);
    let asked_us = clock::now_us();
    let answer = node.identify(request).await.map_err(error_text)?.into_inner();
    let clock = OtherClock::measured(&shard.id, asked_us, answer.clock_us, clock::now_us());
    Ok((answer, clock))
}

async fn ownership(node: &mut Node) -> Result<Ownership, String> {
    let answer = node.get_ownership(wire::GetOwnershipRequest::default()).await.map_err(error_text)?.into_inner();
    let listed = answer.ranges.into_iter().map(|range| {
        let slots = (Slot::try_from(range.first), Slot::try_from(range.last));
        let (Ok(first), Ok(last)) = slots else {
            return Err(format!("it lists slots {} to {}", range.first, range.last));
        };
        let state = match range.state {
            1 => SlotState::Owned,
            2 => SlotState::Released,
            3 => SlotState::Incoming,
            state => return Err(format!("it lists slot {first} in state {state}")),
        };
        let slots = SlotRange::new(first, last).map_err(|error| error.to_string())?;
        Ok(ListedSlots { slots, state, epoch: range.epoch, peer: range.peer })
    });
    Ok(Ownership { ranges: listed.collect::<Result<_, _>>()?, map_version: answer.shard_map_version })
}

fn error_text(status: tonic::Status) -> String {
    trust::error_text(&status)
}

fn fact(fact: wire::Fact) -> (FindingVerdict, Disagreement) {
    let verdict = match fact.verdict() {
        WireVerdict::Agrees => FindingVerdict::Agrees,
        WireVerdict::Warning => FindingVerdict::Warning,
        WireVerdict::Disagrees => FindingVerdict::Disagrees,
    };
    (verdict, fact.fact.unwrap_or_default().into())
}

// === routers ===

async fn ask_router(client: &HttpClient, url: &str) -> RouterSeen {
    let answer = router_answer(client, url).await.map_err(|error| format!("{error:#}"));
    RouterSeen { url: url.to_owned(), answer }
}

async fn router_answer(client: &HttpClient, url: &str) -> anyhow::Result<RouterAnswer> {
    // A router that starts or drains answers with 503 and the same fields.
    let (_, body) = client.send(Method::GET, &format!("{url}/readyz?verbose"), Default::default()).await?;
    let readiness: Value = serde_json::from_slice(&body).context("no JSON")?;
    let map = &readiness["shard_map"];
    let word = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    let overrides = items(&map["overrides"]).iter().map(|slots| Override {
        slots: word(&slots["slots"]),
        in_map: word(&slots["in_map"]),
        owner: word(&slots["owner"]),
    });
    Ok(RouterAnswer {
        status: word(&readiness["status"]),
        reads: word(&readiness["reads"]),
        writes: word(&readiness["writes"]),
        cluster: word(&map["cluster"]),
        map_version: map["version"].as_u64().context("it names no version of its map")?,
        refused: map["refused"]["reason"].as_str().map(str::to_owned),
        overrides: overrides.collect(),
        degraded: items(&readiness["degraded"])
            .iter()
            .map(|shard| (word(&shard["id"]), why_degraded(shard)))
            .collect(),
    })
}

fn why_degraded(shard: &Value) -> String {
    let causes = ["error", "reads_cause", "writes_cause"].into_iter().filter_map(|field| shard[field].as_str());
    match causes.into_iter().next() {
        Some(cause) => cause.to_owned(),
        None => format!("breaker {}, state {}", shard["breaker"], shard["state"]),
    }
}

/// The source of the map that the answers are compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapSource {
    File(String),
    Router(String),
}

impl fmt::Display for MapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.write_str(path),
            Self::Router(url) => write!(f, "router {url}"),
        }
    }
}

/// One examination of a whole cluster.
#[derive(Debug, Clone)]
pub struct ClusterSeen {
    pub map: ShardMap,
    pub source: MapSource,
    /// Every node of every shard, in the order of the map.
    pub nodes: Vec<NodeSeen>,
    pub routers: Vec<RouterSeen>,
}

#[derive(Debug, Clone)]
pub struct NodeSeen {
    /// The shard that the map assigns to the node.
    pub shard: String,
    pub url: String,
    /// The answer, or why there is none.
    pub answer: Result<NodeAnswer, String>,
}

#[derive(Debug, Clone)]
pub struct NodeAnswer {
    /// `None` if the database is not initialised or the node has not reached it yet.
    pub identity: Option<ShardIdentity>,
    pub uninitialised: bool,
    /// The node's refusals of a caller that expects the map's cluster, shard and number.
    pub refused: Vec<Disagreement>,
    /// The facts that the node itself compares.
    pub facts: Vec<(FindingVerdict, Disagreement)>,
    /// The marks that the node knew before any `mark` was read. Each shard must have reached at least its mark.
    pub marks: Marks,
    /// The shard's mark, read after the `marks` of every node.
    pub mark: Mark,
    pub clock: OtherClock,
    /// The time at which the database server started, in microseconds. 0 if unknown.
    pub server_started_at_us: i64,
    /// The OID of the database.
    pub database_oid: i64,
    pub ownership: Result<Ownership, String>,
}

impl NodeAnswer {
    /// The value that the node found for the fact of this name.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().map(|(_, fact)| fact).find(|fact| fact.fact == name).map(|fact| fact.found.as_str())
    }
}

/// The slots that a shard lists, and the version of its map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ownership {
    pub ranges: Vec<ListedSlots>,
    /// 0 if the shard has no map.
    pub map_version: i64,
}

/// A range of slots with the same state, as a shard lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSlots {
    pub slots: SlotRange,
    pub state: SlotState,
    pub epoch: i64,
    /// The shard at the other end of a move; empty without a move.
    pub peer: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotState {
    Owned,
    Released,
    Incoming,
}

#[derive(Debug, Clone)]
pub struct RouterSeen {
    pub url: String,
    /// The answer, or why there is none.
    pub answer: Result<RouterAnswer, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterAnswer {
    pub status: String,
    /// The shards at which reads work: `all`, `some` or `none`. `writes` has the same values.
    pub reads: String,
    pub writes: String,
    pub cluster: String,
    pub map_version: u64,
    /// Why the newest offered map was refused.
    pub refused: Option<String>,
    pub overrides: Vec<Override>,
    /// The shards that the router cannot use, with the reasons.
    pub degraded: Vec<(String, String)>,
}

/// Slots whose requests a router sends to another shard than the one in its map, because the shards report another owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub slots: String,
    pub in_map: String,
    pub owner: String,
}

impl ClusterSeen {
    pub fn reached_anything(&self) -> bool {
        self.nodes.iter().any(|node| node.answer.is_ok()) || self.routers.iter().any(|router| router.answer.is_ok())
    }

    /// The nodes of a shard that answered.
    pub fn answers<'a>(&'a self, shard: &'a str) -> impl Iterator<Item = (&'a NodeSeen, &'a NodeAnswer)> {
        let of_shard = self.nodes.iter().filter(move |node| node.shard == shard);
        of_shard.filter_map(|node| Some((node, node.answer.as_ref().ok()?)))
    }
}

impl NodeSeen {
    pub fn place(&self) -> String {
        format!("shard {} at {}", self.shard, self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_reason_given_explains_a_degraded_shard() {
        for (shard, reason) in [
            (json!({"breaker": "open", "error": "refused"}), "refused"),
            (json!({"breaker": "closed", "reads_cause": "behind", "writes_cause": "w"}), "behind"),
            (json!({"breaker": "open", "state": "serving"}), "breaker \"open\", state \"serving\""),
        ] {
            assert_eq!(why_degraded(&shard), reason);
        }
    }
}

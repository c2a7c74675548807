//! Asks nodes and routers. The requests contain no marks, assets or clock readings, so they change nothing.

use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use http::Method;
use identity::{Disagreement, time::OtherClock};
use serde_json::Value;
use shard_map::{ClusterId, RemovedShard, Shard, ShardMap, Slot, SlotRange, merge_slots};
use telemetry::clock;
use tonic::transport::{Channel, Endpoint};
use wire::{convert, fact::Verdict as WireVerdict, shard_node_client::ShardNodeClient};

use super::{
    finding::Verdict,
    seen::{Listed, MapSource, NodeAnswer, NodeSeen, Override, Ownership, RouterAnswer, RouterSeen, Seen, SlotState},
};
use crate::{http_client::HttpClient, trust};

/// Many times what a working node needs to answer.
const PATIENCE: Duration = Duration::from_secs(3);
const CALLER: &str = "shardctl doctor";

type Node = ShardNodeClient<Channel>;

/// The routers' admin listeners.
pub struct Routers {
    pub urls: Vec<String>,
    pub client: HttpClient,
}

impl Routers {
    pub fn new(urls: Vec<String>) -> Self {
        Self { urls, client: HttpClient::new(PATIENCE) }
    }
}

/// Asks every node and router once, all at the same time.
pub async fn look(map: &ShardMap, source: &MapSource, routers: &Routers) -> Seen {
    let asked = join_all(routers.urls.iter().map(|url| ask_router(&routers.client, url)));
    let nodes = join_all(addresses(map).map(|(shard, url)| ask_node(map, shard, url)));
    let (routers, mut nodes) = tokio::join!(asked, nodes);
    // Every mark collected so far was acknowledged before this moment, so a position read from now on must include
    // it.
    let positions = nodes.iter_mut().zip(addresses(map)).map(|(node, (shard, url))| async move {
        if let Ok(answer) = &mut node.answer {
            match within(async { identify(map, shard, &mut connect(url).await?).await }).await {
                Ok((identified, _)) => answer.mark = identified.mark.unwrap_or_default().into(),
                Err(reason) => node.answer = Err(reason),
            }
        }
    });
    join_all(positions).await;
    Seen { map: map.clone(), source: source.clone(), nodes, routers }
}

/// Asks the nodes again which slots their shards own.
pub async fn look_at_ownership(seen: &mut Seen) {
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
    let examined = node.examine(wire::ExamineRequest {}).await.map_err(said)?.into_inner();
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
    let answer = node.identify(request).await.map_err(said)?.into_inner();
    let clock = OtherClock::measured(&shard.id, asked_us, answer.clock_us, clock::now_us());
    Ok((answer, clock))
}

async fn ownership(node: &mut Node) -> Result<Ownership, String> {
    let answer = node.get_ownership(wire::GetOwnershipRequest::default()).await.map_err(said)?.into_inner();
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
        Ok(Listed { slots, state, epoch: range.epoch, peer: range.peer })
    });
    Ok(Ownership { ranges: listed.collect::<Result<_, _>>()?, map_version: answer.shard_map_version })
}

fn said(status: tonic::Status) -> String {
    trust::said(&status)
}

fn fact(fact: wire::Fact) -> (Verdict, Disagreement) {
    let verdict = match fact.verdict() {
        WireVerdict::Agrees => Verdict::Agrees,
        WireVerdict::Warning => Verdict::Warning,
        WireVerdict::Disagrees => Verdict::Disagrees,
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

/// The map that a router uses, from its file or from a node.
pub async fn router_map(client: &HttpClient, url: &str) -> anyhow::Result<ShardMap> {
    let answer: Value = client.get(&format!("{url}/admin/shard-map")).await?;
    map_from(&answer).with_context(|| format!("the shard map of router {url}"))
}

/// The router lists slots by where their requests go; its overrides say which of them the map gives to another shard.
fn map_from(answer: &Value) -> anyhow::Result<ShardMap> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing");
    let cluster: ClusterId = text(&answer["cluster"])?.parse()?;
    let mut owners: Vec<Option<String>> = vec![None; Slot::all().len()];
    for shard in items(&answer["shards"]) {
        for range in items(&shard["slots"]) {
            set_owner(&mut owners, &text(range)?, &text(&shard["id"])?)?;
        }
    }
    for slots in items(&answer["overrides"]) {
        set_owner(&mut owners, &text(&slots["slots"])?, &text(&slots["in_map"])?)?;
    }
    let shards = items(&answer["shards"]).iter().map(|shard| {
        let id = text(&shard["id"])?;
        let owned = Slot::all().zip(&owners).filter(|(_, owner)| owner.as_ref() == Some(&id)).map(|(slot, _)| slot);
        Ok(Shard {
            number: shard["number"].as_u64().and_then(|number| u16::try_from(number).ok()).context("no number")?,
            nodes: items(&shard["nodes"]).iter().map(text).collect::<anyhow::Result<_>>()?,
            slots: merge_slots(owned),
            id,
        })
    });
    let version = answer["version"].as_u64().context("no version")?;
    let mut map = ShardMap::new(cluster, version, shards.collect::<anyhow::Result<_>>()?)?;
    let removed = items(&answer["removed"]).iter().map(|shard| {
        let number = shard["number"].as_u64().and_then(|number| u16::try_from(number).ok()).context("no number")?;
        Ok(RemovedShard { id: text(&shard["id"])?, number })
    });
    map.removed = removed.collect::<anyhow::Result<_>>()?;
    Ok(map)
}

fn set_owner(owners: &mut [Option<String>], slots: &str, shard: &str) -> anyhow::Result<()> {
    for slot in slots.parse::<SlotRange>()?.slots() {
        owners[usize::from(slot.index())] = Some(shard.to_owned());
    }
    Ok(())
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_routers_map_is_reconstructed_without_its_overrides() {
        let cluster = ClusterId::generate();
        let shard = |id: &str, number: u16, slots: &[&str]| json!({"id": id, "number": number, "nodes": [format!("http://{id}:1")], "slots": slots});
        let answer = json!({
            "cluster": cluster.to_string(), "version": 3,
            "shards": [shard("s0", 0, &["0-8190"]), shard("s1", 1, &["8191-16383"])],
            "overrides": [{"slots": "8191", "in_map": "s0", "owner": "s1", "epoch": 2}],
        });
        let map = map_from(&answer).unwrap();
        let slots: Vec<String> = map.shards.iter().map(|shard| shard.slots[0].to_string()).collect();
        assert_eq!(
            (map.version, map.cluster, slots),
            (3, cluster, vec!["0-8191".to_owned(), "8192-16383".to_owned()])
        );
        assert!(map_from(&json!({})).is_err());
    }

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

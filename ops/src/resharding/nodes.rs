//! Asks the nodes of a cluster about slots and moves.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, anyhow};
use futures_util::future::join_all;
use shard_map::{Shard, ShardMap, Slot, SlotRange};
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use wire::{shard_node_client::ShardNodeClient, slot_moves_client::SlotMovesClient};

use crate::exit::Unreachable;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Counting the accounts of a large shard takes some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// A node reads its few rows of `slot_move` in milliseconds. One that does not answer within this time is frozen or cut off.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The nodes of a cluster, by its newest map.
pub struct Nodes {
    pub map: ShardMap,
}

/// The owner of each slot as the shards say.
#[derive(Debug, Clone, Default)]
pub struct Owners(BTreeMap<Slot, String>);

impl Owners {
    pub fn of(&self, slot: Slot) -> Option<&str> {
        self.0.get(&slot).map(String::as_str)
    }

    /// The slots of a shard.
    pub fn slots_of<'o>(&'o self, shard: &'o str) -> impl Iterator<Item = Slot> + 'o {
        self.0.iter().filter(move |(_, owner)| *owner == shard).map(|(slot, _)| *slot)
    }

    /// The owners once a plan is carried out.
    pub fn after(&self, plan: &super::plan::Plan) -> anyhow::Result<Self> {
        let mut after = self.clone();
        for planned in &plan.moves {
            let slots = planned.ranges()?.into_iter().flat_map(SlotRange::slots);
            after.0.extend(slots.map(|slot| (slot, planned.to.clone())));
        }
        Ok(after)
    }

    #[cfg(test)]
    pub fn from_map(map: &ShardMap) -> Self {
        Self(Slot::all().map(|slot| (slot, map.owner_id(slot).to_owned())).collect())
    }
}

impl Nodes {
    pub fn shard(&self, id: &str) -> anyhow::Result<&Shard> {
        let shard = self.map.shards.iter().find(|shard| shard.id == id);
        shard.with_context(|| format!("the map (version {}) has no shard {id}", self.map.version))
    }

    /// The first node of the shard that answers.
    async fn channel(&self, shard: &str) -> anyhow::Result<Channel> {
        let mut failure = None;
        for url in &self.shard(shard)?.nodes {
            match connect(url).await {
                Ok(channel) => return Ok(channel),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| anyhow!("shard {shard} has no nodes")))
    }

    async fn moves(&self, shard: &str) -> anyhow::Result<SlotMovesClient<Channel>> {
        Ok(SlotMovesClient::new(self.channel(shard).await?).max_decoding_message_size(wire::MAX_MESSAGE_BYTES))
    }

    /// Which shard owns each slot. Every shard must answer.
    pub async fn owners(&self) -> anyhow::Result<Owners> {
        let asked = self.map.shards.iter().map(async |shard| {
            let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
            let answer =
                node.get_ownership(wire::GetOwnershipRequest::default()).await.map_err(|s| said(&shard.id, &s))?;
            anyhow::Ok((shard.id.clone(), answer.into_inner().ranges))
        });
        let mut owners = Owners::default();
        for answer in join_all(asked).await {
            let (shard, ranges) = answer?;
            for range in ranges.iter().filter(|range| range.state == 1) {
                let range = SlotRange::new(Slot::try_from(range.first)?, Slot::try_from(range.last)?)?;
                owners.0.extend(range.slots().map(|slot| (slot, shard.clone())));
            }
        }
        Ok(owners)
    }

    /// How much of each shard is in each of its slots.
    pub async fn loads(&self) -> anyhow::Result<BTreeMap<String, wire::LoadResponse>> {
        let asked = self.map.shards.iter().map(async |shard| {
            let load =
                self.moves(&shard.id).await?.load(wire::LoadRequest {}).await.map_err(|s| said(&shard.id, &s))?;
            anyhow::Ok((shard.id.clone(), load.into_inner()))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// The shards among these that take no writes, each with the cause.
    pub async fn not_writing<'s>(&self, shards: impl Iterator<Item = &'s str>) -> Vec<String> {
        let shards: std::collections::BTreeSet<&str> = shards.collect();
        let asked = shards.into_iter().map(async |shard| {
            let asked = async {
                let mut node = ShardNodeClient::new(self.channel(shard).await?);
                let status = node.status(wire::StatusRequest {}).await.map_err(|status| said(shard, &status))?;
                anyhow::Ok(status.into_inner().writes.unwrap_or_default())
            };
            match asked.await {
                Ok(writes) if writes.works => None,
                Ok(writes) => Some(format!("shard {shard}, which takes no writes: {}", writes.cause)),
                Err(error) => Some(format!("{error:#}")),
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The client data that is still on a shard.
    pub async fn client_data(&self, shard: &str) -> anyhow::Result<wire::ClientDataResponse> {
        let remains = self.moves(shard).await?.count_client_data(wire::ClientDataRequest {}).await;
        Ok(remains.map_err(|status| said(shard, &status))?.into_inner())
    }

    /// The moves to each shard. A shard that does not answer is named.
    pub async fn list(&self) -> (Vec<(String, wire::MoveStatus)>, Vec<anyhow::Error>) {
        let asked = self.map.shards.iter().map(async |shard| {
            let list = self.moves(&shard.id).await?.list(list_request()).await.map_err(|s| said(&shard.id, &s))?;
            let of_target = list.into_inner().moves.into_iter().filter(|it| it.is_target);
            anyhow::Ok(of_target.map(|it| (shard.id.clone(), it)).collect::<Vec<_>>())
        });
        let (mut moves, mut failures) = (Vec::new(), Vec::new());
        for answer in join_all(asked).await {
            match answer {
                Ok(of_shard) => moves.extend(of_shard),
                Err(error) => failures.push(error),
            }
        }
        moves.sort_by_key(|(_, it)| it.started_at_us);
        (moves, failures)
    }

    /// One move, asked at its target.
    pub async fn status(&self, target: &str, id: Uuid) -> anyhow::Result<Option<wire::MoveStatus>> {
        let list = self.moves(target).await?.list(list_request()).await.map_err(|s| said(target, &s))?;
        Ok(list.into_inner().moves.into_iter().find(|it| it.is_target && it.r#move.as_ref() == id.as_bytes()))
    }

    pub async fn start(
        &self,
        target: &str,
        id: Uuid,
        source: &str,
        slots: &[SlotRange],
        reverses: Option<Uuid>,
        wishes: wire::MoveWishes,
    ) -> anyhow::Result<()> {
        let request = wire::StartMoveRequest {
            r#move: id.as_bytes().to_vec().into(),
            source: source.to_owned(),
            slots: wire::convert::slots_to_wire(slots),
            reverses: reverses.map(|id| id.as_bytes().to_vec().into()).unwrap_or_default(),
            wishes: Some(wishes),
        };
        self.moves(target).await?.start(request).await.map_err(|status| said(target, &status))?;
        Ok(())
    }

    pub async fn control(&self, target: &str, id: Uuid, wishes: wire::MoveWishes) -> anyhow::Result<()> {
        let request = wire::ControlMoveRequest { r#move: id.as_bytes().to_vec().into(), wishes: Some(wishes) };
        self.moves(target).await?.control(request).await.map_err(|status| said(target, &status))?;
        Ok(())
    }

    /// The newest map that a shard was given, or that of the routers.
    pub async fn newest_map(&self) -> anyhow::Result<ShardMap> {
        let asked = self.map.shards.iter().map(async |shard| {
            let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
            let answer =
                node.get_ownership(wire::GetOwnershipRequest::default()).await.map_err(|s| said(&shard.id, &s))?;
            anyhow::Ok(ShardMap::parse(&answer.into_inner().shard_map)?)
        });
        let maps = join_all(asked).await.into_iter().filter_map(Result::ok);
        Ok(maps.chain([self.map.clone()]).max_by_key(|map| map.version).unwrap_or_else(|| self.map.clone()))
    }

    /// Offers a map to one node of each shard, which stores it for the shard if it is the newest. Returns why shards did not take it.
    pub async fn offer(&self, map: &ShardMap) -> Vec<String> {
        let text = map.to_toml();
        let offered = self.map.shards.iter().map(async |shard| {
            let request = wire::OfferShardMapRequest { shard_map: text.clone() };
            let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
            node.offer_shard_map(request).await.map_err(|status| said(&shard.id, &status))?;
            anyhow::Ok(())
        });
        join_all(offered)
            .await
            .into_iter()
            .filter_map(|offered| offered.err().map(|error| format!("{error:#}")))
            .collect()
    }
}

fn list_request() -> tonic::Request<wire::ListMovesRequest> {
    let mut request = tonic::Request::new(wire::ListMovesRequest {});
    request.set_timeout(LIST_TIMEOUT);
    request
}

async fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let unreachable = |error: tonic::transport::Error| Unreachable {
        what: format!("the node {url}"),
        reason: crate::http_client::with_causes(&error),
    };
    Ok(endpoint.connect().await.map_err(unreachable)?)
}

/// What a node answered instead.
fn said(shard: &str, status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::Aborted => {
            anyhow!("shard {shard}: {}", status.message())
        }
        _ => Unreachable { what: format!("shard {shard}"), reason: status.message().to_owned() }.into(),
    }
}

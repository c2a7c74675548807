//! Resharding as an operator orders it: plans, moves of slots, and the map file.
//!
//! The nodes carry out the moves. This module asks the nodes ([`Nodes`]), decides what to move ([`plan`]), shows moves ([`view`]) and keeps
//! the map file up to date ([`map_file`]).

pub mod map_file;
pub mod plan;
pub mod view;

use std::{cmp::Ordering, collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::future::join_all;
use shard_map::{Shard, ShardMap, Slot, SlotRange};
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use view::MoveView;
use wire::{shard_node_client::ShardNodeClient, slot_moves_client::SlotMovesClient};

use crate::{
    context::{AdminAddress, Context},
    exit::Unreachable,
    trust,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest wait for most answers. Counting the accounts of a large shard takes some seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// A node reads its few rows of `slot_move` in milliseconds. A node that does not answer within this time is frozen or unreachable.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);

/// The most attempts to publish a map, and the pause between them. Another attempt follows if a move has published another map of the
/// same version.
const PUBLISH_ATTEMPTS: usize = 5;
const PUBLISH_PAUSE: Duration = Duration::from_millis(200);

/// The nodes of a cluster, according to its newest map.
pub struct Nodes {
    pub map: ShardMap,
}

/// The owner of each slot, as the shards report it.
#[derive(Debug, Clone, Default)]
pub struct Owners(BTreeMap<Slot, String>);

/// The epoch and the owners of a slot.
type Claims = BTreeMap<Slot, (i64, Vec<String>)>;

impl Owners {
    pub fn of(&self, slot: Slot) -> Option<&str> {
        self.0.get(&slot).map(String::as_str)
    }

    /// The slots of a shard.
    pub fn slots_of<'o>(&'o self, shard: &'o str) -> impl Iterator<Item = Slot> + 'o {
        self.0.iter().filter(move |(_, owner)| *owner == shard).map(|(slot, _)| *slot)
    }

    /// The owners once a plan is carried out.
    pub fn after(&self, plan: &plan::MovePlan) -> anyhow::Result<Self> {
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
    /// The nodes of the map that the first answering router uses.
    pub async fn of_routers(address: &AdminAddress, context: &Context) -> anyhow::Result<Self> {
        let routers = address.routers(context)?;
        let mut failure = None;
        for url in &routers.urls {
            match map_file::of_router(&routers.client, url).await {
                Ok(map) => return Ok(Self { map }),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.context("there is no router to ask for the map")?)
    }

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

    /// Reads which shard owns each slot. Every shard must answer.
    ///
    /// # Errors
    /// A shard does not answer, or two shards claim a slot at one epoch.
    pub async fn owners(&self) -> anyhow::Result<Owners> {
        let asked = self.map.shards.iter().map(async |shard| {
            let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
            let answer = node
                .get_ownership(wire::GetOwnershipRequest::default())
                .await
                .map_err(|s| node_error(&shard.id, &s))?;
            anyhow::Ok((shard.id.clone(), answer.into_inner().ranges))
        });
        let mut claims = Claims::new();
        for answer in join_all(asked).await {
            let (shard, ranges) = answer?;
            for range in ranges.iter().filter(|range| range.state == 1) {
                let slots = SlotRange::new(Slot::try_from(range.first)?, Slot::try_from(range.last)?)?;
                for slot in slots.slots() {
                    let claim = claims.entry(slot).or_default();
                    match range.epoch.cmp(&claim.0) {
                        Ordering::Greater => *claim = (range.epoch, vec![shard.clone()]),
                        Ordering::Equal => claim.1.push(shard.clone()),
                        Ordering::Less => {}
                    }
                }
            }
        }
        if let Some((slot, (epoch, shards))) = claims.iter().find(|(_, (_, shards))| shards.len() > 1) {
            bail!(
                "slot {slot} is owned by {} at epoch {epoch}: `shardctl doctor` says what to do",
                shards.join(" and ")
            );
        }
        Ok(Owners(claims.into_iter().filter_map(|(slot, (_, mut shards))| Some((slot, shards.pop()?))).collect()))
    }

    /// Reads how much of each shard is in each of its slots.
    pub async fn loads(&self) -> anyhow::Result<BTreeMap<String, wire::LoadResponse>> {
        let asked = self.map.shards.iter().map(async |shard| {
            let load = self
                .moves(&shard.id)
                .await?
                .load(wire::LoadRequest {})
                .await
                .map_err(|s| node_error(&shard.id, &s))?;
            anyhow::Ok((shard.id.clone(), load.into_inner()))
        });
        join_all(asked).await.into_iter().collect()
    }

    /// The shards among `shards` that take no writes, each with the cause.
    pub async fn not_writing<'s>(&self, shards: impl Iterator<Item = &'s str>) -> Vec<String> {
        let shards: std::collections::BTreeSet<&str> = shards.collect();
        let asked = shards.into_iter().map(async |shard| {
            let asked = async {
                let mut node = ShardNodeClient::new(self.channel(shard).await?);
                let status =
                    node.status(wire::StatusRequest {}).await.map_err(|status| node_error(shard, &status))?;
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
        self.count_client_data(shard, false).await
    }

    /// The client data that is still on a shard. The shard then starts no move to itself for one minute.
    pub async fn client_data_before_removal(&self, shard: &str) -> anyhow::Result<wire::ClientDataResponse> {
        self.count_client_data(shard, true).await
    }

    async fn count_client_data(&self, shard: &str, refuse_moves: bool) -> anyhow::Result<wire::ClientDataResponse> {
        let counted = self.moves(shard).await?.count_client_data(wire::ClientDataRequest { refuse_moves }).await;
        Ok(counted.map_err(|status| node_error(shard, &status))?.into_inner())
    }

    /// The moves to each shard, and an error for each shard that does not answer.
    pub async fn list(&self) -> (Vec<(String, wire::MoveStatus)>, Vec<anyhow::Error>) {
        let asked = self.map.shards.iter().map(async |shard| {
            let list =
                self.moves(&shard.id).await?.list(list_request()).await.map_err(|s| node_error(&shard.id, &s))?;
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

    /// The moves as an operator sees them, and an error for each shard that does not answer.
    pub async fn views(&self) -> (Vec<MoveView>, Vec<anyhow::Error>) {
        let (moves, failures) = self.list().await;
        (moves.iter().map(|(target, status)| MoveView::of(target, status)).collect(), failures)
    }

    /// The status of one move, which is read from its target.
    pub async fn status(&self, target: &str, id: Uuid) -> anyhow::Result<Option<wire::MoveStatus>> {
        let list = self.moves(target).await?.list(list_request()).await.map_err(|s| node_error(target, &s))?;
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
        self.moves(target).await?.start(request).await.map_err(|status| node_error(target, &status))?;
        Ok(())
    }

    pub async fn control(&self, target: &str, id: Uuid, wishes: wire::MoveWishes) -> anyhow::Result<()> {
        let request = wire::ControlMoveRequest { r#move: id.as_bytes().to_vec().into(), wishes: Some(wishes) };
        self.moves(target).await?.control(request).await.map_err(|status| node_error(target, &status))?;
        Ok(())
    }

    /// The map that each shard has, or the reason why a shard does not answer.
    async fn known_maps(&self) -> Vec<(String, anyhow::Result<ShardMap>)> {
        join_all(self.map.shards.iter().map(async |shard| {
            let asked = async {
                let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
                let answer = node.get_ownership(wire::GetOwnershipRequest::default()).await;
                let answer = answer.map_err(|status| node_error(&shard.id, &status))?;
                anyhow::Ok(ShardMap::parse(&answer.into_inner().shard_map)?)
            };
            let answer = timeout(LIST_TIMEOUT, asked).await;
            (shard.id.clone(), answer.unwrap_or_else(|_| Err(anyhow!("shard {} does not answer", shard.id))))
        }))
        .await
    }

    /// The newest of the maps of the shards and the map of the routers. Of several maps of one version, the one with the most removed shards.
    pub async fn newest_map(&self) -> ShardMap {
        let maps = self.known_maps().await.into_iter().filter_map(|(_, map)| map.ok());
        let all = maps.chain([self.map.clone()]);
        all.max_by_key(|map| (map.version, map.removed.len())).unwrap_or_else(|| self.map.clone())
    }

    /// Writes the newest map of the shards to the file, and keeps the comments of the file.
    pub async fn update_file(&self, file: &Path) -> anyhow::Result<()> {
        map_file::write(&self.newest_map().await, file)
    }

    /// Whether two shards have different maps of the newest version.
    pub async fn maps_differ(&self) -> bool {
        let maps: Vec<ShardMap> = self.known_maps().await.into_iter().filter_map(|(_, map)| map.ok()).collect();
        let newest = maps.iter().map(|map| map.version).max();
        let mut of_newest = maps.iter().filter(|map| Some(map.version) == newest);
        let first = of_newest.next();
        of_newest.any(|map| Some(map) != first)
    }

    /// Offers a map to one node of each shard, which stores the map if it is the newest. Returns the reasons why shards do not have the map.
    pub async fn offer(&self, map: &ShardMap) -> Vec<String> {
        let text = map.to_toml();
        let offered = join_all(self.map.shards.iter().map(async |shard| {
            let request = wire::OfferShardMapRequest { shard_map: text.clone() };
            let mut node = ShardNodeClient::new(self.channel(&shard.id).await?);
            node.offer_shard_map(request).await.map_err(|status| node_error(&shard.id, &status))?;
            anyhow::Ok(())
        }))
        .await;
        let mut refused: Vec<String> =
            offered.into_iter().filter_map(|offered| offered.err().map(|error| format!("{error:#}"))).collect();
        if refused.is_empty() {
            // A shard ignores a map that is not newer than its own.
            for (shard, known) in self.known_maps().await {
                match known {
                    Ok(known) if known == *map => {}
                    Ok(known) => refused.push(format!("shard {shard} has another map, of version {}", known.version)),
                    Err(error) => refused.push(format!("{error:#}")),
                }
            }
        }
        refused
    }

    /// Applies `change` to the newest map and gives the result to every shard. Starts again if a move publishes a map at the same time.
    pub async fn publish(&self, change: impl Fn(&ShardMap) -> anyhow::Result<ShardMap>) -> anyhow::Result<ShardMap> {
        let mut refused = Vec::new();
        for _ in 0..PUBLISH_ATTEMPTS {
            let newest = self.newest_map().await;
            let map = change(&newest)?;
            refused = self.offer(&map).await;
            if refused.is_empty() {
                return Ok(map);
            }
            tokio::time::sleep(PUBLISH_PAUSE).await;
        }
        bail!(
            "not every shard took the new map: {}. Correct the cause, then run `shardctl doctor --fix`, and repeat the command",
            refused.join("; ")
        )
    }
}

fn list_request() -> tonic::Request<wire::ListMovesRequest> {
    let mut request = tonic::Request::new(wire::ListMovesRequest {});
    request.set_timeout(LIST_TIMEOUT);
    request
}

/// Connects to a node.
pub async fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.connect_timeout(CONNECT_TIMEOUT).timeout(ANSWER_TIMEOUT);
    let unreachable = |reason| Unreachable { what: format!("the node {url}"), reason };
    Ok(trust::connect(endpoint).await.map_err(unreachable)?)
}

/// The error that a node answered with.
fn node_error(shard: &str, status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument | tonic::Code::Aborted => {
            anyhow!("shard {shard}: {}", status.message())
        }
        _ => Unreachable { what: format!("shard {shard}"), reason: trust::error_text(status) }.into(),
    }
}

//! After a cut-over: a map that names the new owner, offered to every shard. Routers take it from the nodes.

use std::time::Duration;

use certificates::Mutual;
use node_client::Connection;
use shard_map::{Shard, ShardMap, SlotRange, merge_slots};
use tokio::time::Instant;

use super::{MoveError, Moves};
use crate::{
    durable::{DurableStep, durable},
    peers,
    store::{
        self,
        moves::{MoveRow, MoveStore},
    },
};

const PATIENCE: Duration = Duration::from_secs(2);

/// Most attempts. An attempt fails if another move has published a map of the same version.
const ATTEMPTS: usize = 5;

impl<S: MoveStore> Moves<S> {
    /// Offers a map in which this shard has the slots to one node of each shard. Returns its version. A shard that does not answer
    /// hears of the map later: from routers, which pass on the newest one.
    ///
    /// Two moves that end at once may each publish a map of one version. The second look finds that a shard has the other map, and a
    /// further version contains both moves.
    ///
    /// # Errors
    /// When this shard's own map cannot be read or written.
    pub(super) async fn publish(&self, row: &MoveRow) -> Result<u64, MoveError> {
        let own = self.0.gate.expected().shard.clone();
        for _ in 0..ATTEMPTS {
            let known = self.known_maps(&own).await?;
            let newest = known.iter().map(|map| map.version).max().unwrap_or_default();
            let of_newest = || known.iter().filter(|map| map.version == newest);
            if of_newest().all(|map| has(map, &own, &row.slots))
                && of_newest().all(|map| Some(map) == of_newest().next())
            {
                return Ok(newest);
            }
            // A map that lists a removed shard is never followed by one that does not.
            let Some(before) = of_newest().max_by_key(|map| map.removed.len()) else { break };
            // The maps of one version may differ in the slots of other moves. `slot_ownership` decides, and those moves publish, too.
            let map = moved(before, &own, &row.slots)
                .map_err(|error| MoveError::Refused(format!("no map follows from version {newest}: {error}")))?;
            let text = map.to_toml();
            let version = i64::try_from(map.version).unwrap_or(i64::MAX);
            durable(DurableStep::PublishMap, store::read::offer_shard_map(&self.0.reads, &text, version)).await?;
            self.0.gate.saw_map_version(version);
            let others = map
                .shards
                .iter()
                .filter(|shard| shard.id != own)
                .map(|shard| offer(shard, &map, &own, &text, self.0.tls.as_ref()));
            futures_util::future::join_all(others).await;
        }
        Err(MoveError::Refused("the shards do not agree on a new map; trying again".to_owned()))
    }

    /// The newest map of each shard that answers, this shard's first.
    async fn known_maps(&self, own: &str) -> Result<Vec<ShardMap>, MoveError> {
        let mut maps = vec![self.map().await?];
        let map = maps[0].clone();
        let others = map.shards.iter().filter(|shard| shard.id != own);
        let asked =
            futures_util::future::join_all(others.map(|shard| known_map(shard, &map, own, self.0.tls.as_ref())))
                .await;
        maps.extend(asked.into_iter().flatten());
        Ok(maps)
    }
}

/// The newest map that a shard knows; `None` if it does not answer.
async fn known_map(shard: &Shard, map: &ShardMap, caller: &str, tls: Option<&Mutual>) -> Option<ShardMap> {
    let ask = |connection: Connection| async move {
        connection.client().get_ownership(wire::GetOwnershipRequest::default()).await
    };
    let answer = peers::client(shard, map, caller, tls).call(Instant::now() + PATIENCE, ask).await.ok()?;
    ShardMap::parse(&answer.shard_map).ok()
}

/// Whether the map gives all of the slots to a shard.
fn has(map: &ShardMap, shard: &str, slots: &[SlotRange]) -> bool {
    slots.iter().copied().flat_map(SlotRange::slots).all(|slot| map.owner_id(slot) == shard)
}

async fn offer(shard: &Shard, map: &ShardMap, caller: &str, text: &str, tls: Option<&Mutual>) {
    let ask = |connection: Connection| async move {
        let request = wire::OfferShardMapRequest { shard_map: text.to_owned() };
        connection.client().offer_shard_map(request).await
    };
    if let Err(error) = peers::client(shard, map, caller, tls).call(Instant::now() + PATIENCE, ask).await {
        tracing::warn!(shard = shard.id, %error, "a shard did not take the new map");
    }
}

/// The map after `slots` went to a shard.
fn moved(map: &ShardMap, to: &str, slots: &[SlotRange]) -> Result<ShardMap, shard_map::MapError> {
    let is_moved = |slot: &shard_map::Slot| slots.iter().any(|range| range.contains(*slot));
    let shards = map.shards.iter().map(|shard| {
        let had = shard.slots.iter().copied().flat_map(SlotRange::slots).filter(|slot| !is_moved(slot));
        let has: std::collections::BTreeSet<shard_map::Slot> = if shard.id == to {
            had.chain(slots.iter().copied().flat_map(SlotRange::slots)).collect()
        } else {
            had.collect()
        };
        Shard { slots: merge_slots(has), ..shard.clone() }
    });
    map.successor(shards.collect())
}

#[cfg(test)]
mod tests {
    use shard_map::ClusterId;

    use super::*;

    #[test]
    fn the_slots_change_hands_and_nothing_else_changes() {
        let shard = |number: u16, slots: &[&str]| Shard {
            id: format!("s{number}"),
            number,
            nodes: vec![format!("http://n{number}:1")],
            slots: slots.iter().map(|range| range.parse().unwrap()).collect(),
        };
        let before = ShardMap::new(ClusterId::generate(), 7, vec![shard(0, &["0-16383"]), shard(1, &[])]).unwrap();
        let slots = ["100-199".parse().unwrap(), "5".parse().unwrap()];
        let after = moved(&before, "s1", &slots).unwrap();
        assert_eq!(after.version, 8);
        assert_eq!(after.shards[0], shard(0, &["0-4", "6-99", "200-16383"]));
        assert_eq!(after.shards[1], shard(1, &["5", "100-199"]));
        assert!(has(&after, "s1", &slots) && !has(&before, "s1", &slots));
    }
}

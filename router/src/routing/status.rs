//! The state of the map for operators: `/readyz?verbose` and `/admin/shard-map`.

use shard_map::{ClusterId, Slot, SlotRange, merge_slots};

use super::Routing;

/// The map in use and its problems.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapStatus {
    pub cluster: ClusterId,
    pub version: u64,
    /// The file or the node that the map came from.
    pub source: String,
    pub loaded_at_us: i64,
    /// The refusal of the newest offered map; `None` after a map was taken, or after the file has the content in use
    /// again.
    pub refusal: Option<MapRefusal>,
    /// Slots whose requests go to another shard than the map says.
    pub overrides: Vec<Override>,
}

/// A map that was offered and refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRefusal {
    pub at_us: i64,
    pub source: String,
    pub line: Option<usize>,
    pub reason: String,
}

/// Slots that the map gives to one shard, while the shards say that another owns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    pub slots: SlotRange,
    pub in_map: String,
    pub owner: String,
    pub epoch: i64,
}

impl Routing {
    pub fn status(&self) -> MapStatus {
        let writer = self.writer();
        let (map, owners) = (&writer.map, writer.facts.owners(&writer.map));
        // The override of a slot; neighbouring slots with equal overrides form one run.
        let routed_elsewhere = |slot: Slot| {
            let (in_map, owner) = (map.owner(slot), owners[usize::from(slot.index())]);
            (in_map != owner).then(|| (in_map, owner, writer.facts.epoch(slot).unwrap_or_default()))
        };
        let slots: Vec<Slot> = Slot::all().collect();
        let overrides = slots.chunk_by(|a, b| routed_elsewhere(*a) == routed_elsewhere(*b)).flat_map(|run| {
            let found = run.first().copied().and_then(routed_elsewhere);
            found.into_iter().flat_map(move |(in_map, owner, epoch)| {
                let (in_map, owner) = (map.shard(in_map).id.clone(), map.shard(owner).id.clone());
                merge_slots(run.iter().copied()).into_iter().map(move |slots| Override {
                    slots,
                    in_map: in_map.clone(),
                    owner: owner.clone(),
                    epoch,
                })
            })
        });
        MapStatus {
            cluster: map.cluster,
            version: map.version,
            source: writer.source.clone(),
            loaded_at_us: writer.loaded_at_us,
            refusal: writer.refusal.clone(),
            overrides: overrides.collect(),
        }
    }
}

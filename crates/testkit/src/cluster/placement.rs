//! Account ids that live where a test wants them.

use anyhow::Context;
use shard_map::{ShardMap, slot_of};

/// The shard map, asked the other way round.
#[derive(Debug, Clone)]
pub struct Placement {
    map: ShardMap,
}

impl Placement {
    pub fn new(map: &str) -> anyhow::Result<Self> {
        Ok(Self { map: ShardMap::parse(map).context("the shard map")? })
    }

    pub fn map(&self) -> &ShardMap {
        &self.map
    }

    /// The id of the shard that owns the account.
    pub fn shard_of(&self, account: &str) -> &str {
        &self.map.shard(self.map.owner(slot_of(account))).id
    }

    /// The account `name` under a hash tag that puts it on this shard: the n-th such id.
    pub fn account_on(&self, shard: &str, name: &str, n: usize) -> anyhow::Result<String> {
        (0_u32..)
            .map(|tag| format!("{{{name}{tag}}}:{name}"))
            .filter(|id| self.shard_of(id) == shard)
            .nth(n)
            .with_context(|| format!("no slot leads to {shard}"))
    }
}

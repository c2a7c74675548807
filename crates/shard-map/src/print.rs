//! A map as the text that [`ShardMap::parse`] reads.

use std::fmt::Write;

use crate::map::ShardMap;

impl ShardMap {
    /// The map as TOML. No value needs escaping: validation admits no character that would.
    pub fn to_toml(&self) -> String {
        let mut text = format!("cluster = \"{}\"\nversion = {}\n", self.cluster, self.version);
        for shard in &self.shards {
            let nodes: Vec<_> = shard.nodes.iter().map(|node| format!("\"{node}\"")).collect();
            let slots: Vec<_> = shard.slots.iter().map(|range| format!("\"{range}\"")).collect();
            let (id, number, nodes, slots) = (&shard.id, shard.number, nodes.join(", "), slots.join(", "));
            // Writing to a String cannot fail.
            let _ =
                write!(text, "\n[[shard]]\nid = \"{id}\"\nnumber = {number}\nnodes = [{nodes}]\nslots = [{slots}]\n");
        }
        for shard in &self.removed {
            let _ = write!(text, "\n[[removed]]\nid = \"{}\"\nnumber = {}\n", shard.id, shard.number);
        }
        text
    }
}

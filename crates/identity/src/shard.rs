//! Which shard of which cluster a database or a node belongs to.

use shard_map::{ClusterId, HASH_SEED, SLOTS};

use crate::disagreement::Disagreement;

/// What a shard's database says of itself. Nodes pass it on in Identify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIdentity {
    pub cluster: ClusterId,
    pub shard: String,
    /// Every position of the shard's journal contains this number.
    pub number: u16,
    /// How an account id leads to a slot.
    pub routing: RoutingFacts,
}

/// The constants of routing, which must be the same in every program of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingFacts {
    pub slots: u32,
    pub hash_seed: u64,
}

impl RoutingFacts {
    /// The constants of this program.
    pub const OWN: Self = Self { slots: SLOTS as u32, hash_seed: HASH_SEED };
}

/// What a program expects a shard to be. `number` is `None` if the program does not know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub cluster: ClusterId,
    pub shard: String,
    pub number: Option<u16>,
}

impl Expected {
    /// `place` names the source of `found` in the remedy: `database.url`, or the URL of a node.
    pub fn compare(&self, found: &ShardIdentity, place: &str) -> Vec<Disagreement> {
        let mut disagreements = Vec::new();
        if found.cluster != self.cluster {
            let remedy =
                format!("{place} leads to another cluster: correct the address, or the cluster id if that is wrong");
            disagreements.push(Disagreement::new("cluster", self.cluster, found.cluster, remedy));
        }
        if found.shard != self.shard {
            let remedy = format!("{place} leads to another shard: correct the address");
            disagreements.push(Disagreement::new("shard", &self.shard, &found.shard, remedy));
        }
        // Another shard has another number: that is no mistake in the map.
        if found.shard == self.shard
            && let Some(number) = self.number.filter(|number| *number != found.number)
        {
            let remedy = "a shard keeps its number: correct the shard map";
            disagreements.push(Disagreement::new("shard number", number, found.number, remedy));
        }
        disagreements.extend(compare_routing(found.routing));
        disagreements
    }
}

/// A program with another number of slots or another hash would look for accounts in the wrong slots.
fn compare_routing(found: RoutingFacts) -> Option<Disagreement> {
    let show = |facts: RoutingFacts| format!("{} slots with hash seed {:#x}", facts.slots, facts.hash_seed);
    (found != RoutingFacts::OWN).then(|| {
        let remedy = "this program finds accounts in other slots than the shard: run the version that the cluster was made with";
        Disagreement::new("routing", show(RoutingFacts::OWN), show(found), remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fact_that_differs_is_named_with_both_values() {
        let cluster = ClusterId::generate();
        let found = ShardIdentity { cluster, shard: "s0".to_owned(), number: 0, routing: RoutingFacts::OWN };
        let expected = Expected { cluster, shard: "s0".to_owned(), number: Some(0) };
        assert_eq!(expected.compare(&found, "database.url"), []);
        assert_eq!(Expected { number: None, ..expected.clone() }.compare(&found, "database.url"), []);

        let other = ClusterId::generate();
        let wrong = ShardIdentity {
            cluster: other,
            shard: "s1".to_owned(),
            number: 1,
            routing: RoutingFacts { slots: 1024, hash_seed: 1 },
        };
        let named = expected.compare(&wrong, "database.url");
        let facts: Vec<&str> = named.iter().map(|disagreement| disagreement.fact.as_str()).collect();
        assert_eq!(facts, ["cluster", "shard", "routing"]);
        let renumbered = ShardIdentity { number: 1, ..found };
        assert_eq!(expected.compare(&renumbered, "database.url")[0].fact, "shard number");
        assert_eq!((named[0].expected.clone(), named[0].found.clone()), (cluster.to_string(), other.to_string()));
        assert!(named[1].remedy.contains("database.url"), "{named:?}");
    }
}

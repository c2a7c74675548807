//! `shardctl doctor` checks whether all parts of a cluster agree on what they are. It asks nodes and routers and
//! changes nothing.
//!
//! [`ask`] collects the answers into [`seen`]. [`compare`] and [`slots`] compare them with the shard map and with
//! each other, without I/O. [`moves`] names moves that are not over. A [`Finding`] is one compared fact.

mod ask;
mod compare;
mod finding;
mod moves;
mod seen;
mod slots;

use std::time::Duration;

pub use ask::{Routers, router_map};
pub use finding::{Finding, Verdict, summary};
pub use seen::MapSource;

use shard_map::ShardMap;

use crate::resharding::nodes::Nodes;

/// How often slots that disagree are read before they are reported. A move takes two commits on two shards, and the
/// answers of the two shards may straddle them.
const OWNERSHIP_LOOKS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);

/// The result of one examination.
pub struct Examination {
    pub findings: Vec<Finding>,
    /// Whether any node or router answered.
    pub reached_anything: bool,
}

/// Asks every node of the map and every router, and compares the answers.
pub async fn examine(map: &ShardMap, source: &MapSource, routers: &Routers) -> Examination {
    let mut seen = ask::look(map, source, routers).await;
    for _ in 1..OWNERSHIP_LOOKS {
        if slots::compare(&seen).iter().all(|finding| finding.verdict == Verdict::Agrees) {
            break;
        }
        tokio::time::sleep(OWNERSHIP_PAUSE).await;
        ask::look_at_ownership(&mut seen).await;
    }
    let mut findings = compare::compare(&seen);
    findings.extend(moves::examine(&Nodes { map: map.clone() }).await);
    Examination { reached_anything: seen.reached_anything(), findings }
}

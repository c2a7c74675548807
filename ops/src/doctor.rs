//! `shardctl doctor`: does everything in a cluster mean the same cluster? Asks nodes and routers and changes nothing.
//!
//! [`ask`] collects what each of them says into [`seen`]; [`compare`] and [`slots`] hold it against the shard map and against each
//! other, without I/O. A [`Finding`] is one fact compared.

mod ask;
mod compare;
mod finding;
mod seen;
mod slots;

use std::time::Duration;

pub use ask::{Routers, router_map};
pub use finding::{Finding, Verdict, summary};
pub use seen::MapSource;

use shard_map::ShardMap;

/// A slot changes hands in two commits on two shards; the answers of the two may fall between. Slots that disagree are looked at so
/// often before they are reported.
const OWNERSHIP_LOOKS: usize = 4;
const OWNERSHIP_PAUSE: Duration = Duration::from_millis(300);

/// What a look at the cluster came to.
pub struct Examination {
    pub findings: Vec<Finding>,
    /// Whether any node or router answered.
    pub reached_anything: bool,
}

/// Asks every node of the map and every router, and compares what they say.
pub async fn examine(map: &ShardMap, source: &MapSource, routers: &Routers) -> Examination {
    let mut seen = ask::look(map, source, routers).await;
    for _ in 1..OWNERSHIP_LOOKS {
        if slots::compare(&seen).iter().all(|finding| finding.verdict == Verdict::Agrees) {
            break;
        }
        tokio::time::sleep(OWNERSHIP_PAUSE).await;
        ask::look_at_ownership(&mut seen).await;
    }
    Examination { reached_anything: seen.reached_anything(), findings: compare::compare(&seen) }
}

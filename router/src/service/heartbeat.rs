//! Sends a heartbeat to every shard once a second, or less often where there are many shards (`shard::heartbeat`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::Core;
use crate::shard::Beat;

const EVERY: Duration = Duration::from_secs(1);
/// Most heartbeats a second: a heartbeat costs a router some 50 µs of processor time.
const PER_SECOND: u32 = 500;
/// A shard that takes longer counts as unhealthy.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs until `core`'s tasks end.
pub async fn run(core: Arc<Core>) {
    let both = async { tokio::join!(beat_repeatedly(&core), return_repeatedly(&core)) };
    core.tasks.token().run_until_cancelled(both).await;
}

async fn return_repeatedly(core: &Core) {
    loop {
        sleep(EVERY).await;
        return_to_preferred(core).await;
    }
}

async fn beat_repeatedly(core: &Core) {
    // By shard: the ownership version and the version of the map for which this router last fetched both.
    let mut known: HashMap<Arc<str>, (i64, i64)> = HashMap::new();
    loop {
        let beats = once(core).await;
        let mut news = false;
        for (shard, beat) in beats {
            if let Beat::Heard { ownership_version, map_version } = beat {
                let versions = (ownership_version, map_version);
                news |= known.insert(shard, versions) != Some(versions);
            }
        }
        // Fetch ownership now, so that a map that contradicts the shards is noticed before a request is misrouted.
        if news {
            core.refresh(Instant::now() + PATIENCE).await;
        }
        sleep(pause(known.len())).await;
    }
}

/// One heartbeat of every shard.
pub async fn once(core: &Core) -> Vec<(Arc<str>, Beat)> {
    let until = Instant::now() + PATIENCE;
    let view = core.view();
    let asked = view.shards().cloned().map(|shard| async move { (Arc::clone(shard.id()), shard.beat(until).await) });
    join_all(asked).await
}

/// Has every shard's client look for the preferred node. A node that is out of reach delays no heartbeat.
async fn return_to_preferred(core: &Core) {
    let until = Instant::now() + PATIENCE;
    let view = core.view();
    join_all(view.shards().map(|shard| shard.return_to_preferred(until))).await;
}

fn pause(shards: usize) -> Duration {
    EVERY.max(Duration::from_secs(1) * u32::try_from(shards).unwrap_or(u32::MAX) / PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_shards_are_asked_less_often() {
        assert_eq!([0, 4, 500].map(pause), [EVERY; 3]);
        assert_eq!(pause(1_000), EVERY * 2);
    }
}

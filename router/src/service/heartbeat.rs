//! Sends a heartbeat to every shard once a second (`shard::heartbeat`).

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::Core;
use crate::shard::Beat;

const EVERY: Duration = Duration::from_secs(1);
/// A shard that takes longer counts as unhealthy.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Runs until `core`'s tasks end.
pub async fn run(core: Arc<Core>) {
    core.tasks.token().run_until_cancelled(beat_repeatedly(&core)).await;
}

async fn beat_repeatedly(core: &Core) {
    // By shard: the ownership version for which this router last fetched the owned slots.
    let mut known: HashMap<Arc<str>, i64> = HashMap::new();
    loop {
        let beats = once(core).await;
        let mut news = false;
        for (shard, beat) in beats {
            if let Beat::Heard { ownership_version } = beat {
                news |= known.insert(shard, ownership_version) != Some(ownership_version);
            }
        }
        // Fetch ownership now, so that a map that contradicts the shards is noticed before a request is misrouted.
        if news {
            core.refresh(Instant::now() + PATIENCE).await;
        }
        sleep(EVERY).await;
    }
}

/// One heartbeat of every shard.
pub async fn once(core: &Core) -> Vec<(Arc<str>, Beat)> {
    let until = Instant::now() + PATIENCE;
    let view = core.view();
    let asked = view.shards().cloned().map(|shard| async move { (Arc::clone(shard.id()), shard.beat(until).await) });
    join_all(asked).await
}

//! What the core does beside requests: heartbeats ([`super::shard`] has a single one), and offers of the shard map to the nodes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use tokio::time::{Instant, sleep};

use super::{
    Core,
    shard::{Beat, Shard},
};

// === heartbeats ===

/// The interval of heartbeats.
const EVERY: Duration = Duration::from_secs(1);
/// The most heartbeats a second, because each costs a router some 50 µs of processor time.
const PER_SECOND: u32 = 500;
/// A shard that takes longer counts as unhealthy.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Sends a heartbeat to every shard once a second, or less often where there are many shards, until the tasks of `core` end.
pub async fn send_heartbeats(core: Arc<Core>) {
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
        let beats = beat_once(core).await;
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

/// Sends one heartbeat to every shard.
pub async fn beat_once(core: &Core) -> Vec<(Arc<str>, Beat)> {
    let until = Instant::now() + PATIENCE;
    let view = core.view();
    let asked = view.shards().cloned().map(|shard| async move { (Arc::clone(shard.id()), shard.beat(until).await) });
    join_all(asked).await
}

/// Goes back to the preferred node of each shard, if it serves again. A node that is out of reach delays no heartbeat.
async fn return_to_preferred(core: &Core) {
    let until = Instant::now() + PATIENCE;
    let view = core.view();
    join_all(view.shards().map(|shard| shard.return_to_preferred(until))).await;
}

fn pause(shards: usize) -> Duration {
    EVERY.max(Duration::from_secs(1) * u32::try_from(shards).unwrap_or(u32::MAX) / PER_SECOND)
}

// === the shard map ===

/// The limit for one node to store the map.
const OFFER_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before the map is offered again to shards that were out of reach.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The most shards that are sent the map at once. A map of many shards is long.
const OFFERS_IN_FLIGHT: usize = 16;

/// Offers each new map to every shard, until the tasks of `core` end. Each node keeps the newest map, and a router with an older file, or
/// one that was down while the file changed, gets it from there.
pub async fn offer_map(core: Arc<Core>) {
    core.tasks.token().run_until_cancelled(offer_repeatedly(&core)).await;
}

async fn offer_repeatedly(core: &Core) {
    let mut changes = core.routing.subscribe();
    // The newest version that each shard is known to have.
    let mut known: HashMap<Arc<str>, u64> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let map = Arc::clone(core.routing.load().map());
        let text: Arc<str> = map.to_toml().into();
        let view = core.view();
        let waiting: Vec<Arc<Shard>> = view
            .shards()
            .filter(|shard| known.get(shard.id()).is_none_or(|had| *had < map.version))
            .cloned()
            .collect();
        let count = waiting.len();
        let answers: Vec<(Arc<str>, u64)> = stream::iter(waiting)
            .map(|shard| offer(shard, Arc::clone(&text)))
            .buffer_unordered(OFFERS_IN_FLIGHT)
            .filter_map(std::future::ready)
            .collect()
            .await;
        let all_answered = answers.len() == count;
        let newest = answers.iter().map(|(_, version)| *version).max().unwrap_or_default();
        known.extend(answers);
        if newest > map.version {
            tracing::info!(newest, in_use = map.version, "a node has a newer shard map");
            core.refresh(Instant::now() + OFFER_TIMEOUT).await;
        }
        // The routing of `core` has the sender, so that `changed` does not fail.
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(RETRY_INTERVAL), if !all_answered => {}
        }
    }
}

/// Offers the map to a shard. Returns the newest version that the shard has then; `None`: it was out of reach.
async fn offer(shard: Arc<Shard>, text: Arc<str>) -> Option<(Arc<str>, u64)> {
    let offer = || wire::OfferShardMapRequest { shard_map: text.to_string() };
    let ask = shard.read(Instant::now() + OFFER_TIMEOUT, |mut node| {
        let request = offer();
        async move { node.offer_shard_map(request).await }
    });
    match ask.await {
        Ok(answer) => Some((Arc::clone(shard.id()), u64::try_from(answer.newest_version).unwrap_or_default())),
        Err(error) => {
            tracing::debug!(shard = %shard.id(), %error, "the shard map could not be handed on; trying again");
            None
        }
    }
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

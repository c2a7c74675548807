//! Handing the shard map on to the nodes, each of which keeps the newest: from there a router with an older file, or one
//! that was down while the file changed, gets it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::Core;
use crate::shard::Shard;

/// How long one node gets to store the map.
const OFFER_TIMEOUT: Duration = Duration::from_secs(2);
/// When to try again with shards that were out of reach.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// A map of many shards is long; not all of them are sent it at once.
const OFFERS_IN_FLIGHT: usize = 16;

/// Offers each new map to every shard, until `core`'s tasks end.
pub async fn run(core: Arc<Core>) {
    core.tasks.token().run_until_cancelled(offer_for_ever(&core)).await;
}

async fn offer_for_ever(core: &Core) {
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
        // Every handle on the routing has a sender in it, this one too: `changed` does not fail.
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep(RETRY_INTERVAL), if !all_answered => {}
        }
    }
}

/// The newest version the shard has after it was offered this one; none when it was out of reach.
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

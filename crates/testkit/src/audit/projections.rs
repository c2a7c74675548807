//! Whether the rows of a shard are what its journal says.

use std::{fmt::Write, time::Duration};

use anyhow::ensure;
use shard_database::rebuild;

use crate::{
    cluster::{Cluster, Member},
    database,
    wait::until,
};

/// The fold of a shard without traffic reaches the end of the journal.
const FOLDS_WITHIN: Duration = Duration::from_secs(30);
const UNFOLDED: &str =
    "SELECT coalesce((SELECT max(position) FROM journal), 0) - (SELECT folded_position FROM fold_state)";
/// As many differences are worth printing.
const SHOWN: usize = 20;

/// Rebuilds every projection of one shard from its journal and compares them with the rows, folded or not.
///
/// # Errors
/// Names the differences.
pub async fn rebuilds(url: &str) -> anyhow::Result<()> {
    let mut connection = database::connect(url).await?;
    let differences = rebuild::rebuild(&mut connection).await?;
    let mut text = String::new();
    for difference in differences.iter().take(SHOWN) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:?}, {}: {}", difference.rule, difference.subject, difference.detail);
    }
    ensure!(differences.is_empty(), "{} differences between journal and rows:\n{text}", differences.len());
    Ok(())
}

/// Does so for each shard whose PostgreSQL runs.
///
/// # Errors
/// Names the differences of the first shard that has some.
pub async fn all_rebuild(cluster: &Cluster) -> anyhow::Result<()> {
    for (number, shard) in cluster.status().shards.iter().enumerate() {
        if cluster.status().pid(Member::Postgres(number)).is_none() {
            continue;
        }
        rebuilds(&shard.dsn).await.map_err(|error| error.context(shard.id.clone()))?;
    }
    Ok(())
}

/// Waits until everything is folded, so that rows can be damaged without the fold mending them.
///
/// # Errors
/// When that takes too long.
pub async fn all_folded(cluster: &Cluster) -> anyhow::Result<()> {
    for shard in &cluster.status().shards {
        until("the journal is folded", FOLDS_WITHIN, async || {
            Ok((database::number(&shard.dsn, UNFOLDED).await? <= 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

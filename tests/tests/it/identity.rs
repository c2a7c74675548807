//! Databases, nodes, routers and maps that are not the ones their users expect (`docs/adr/0008`). Each is refused by
//! name before it does harm, and no acknowledged operation is lost or executed twice.
//!
//! Most tests start PostgreSQL, nodes and routers themselves, through [`stage::Stage`], so that they can stop, swap
//! and replace each of them.

mod added_shard;
mod addresses;
mod asset_scales;
mod clocks;
mod earlier_state;
mod environment;
mod lost_shard;
mod marks_of_reads;
mod migrations;
mod patroni;
mod payments;
mod promotion;
mod restore;
mod settings;
mod stage;
mod standbys;
mod tables;

use std::time::Duration;

use anyhow::ensure;
use testkit::{node::Node, wait::until};

/// How long a node or router may take to notice a change on a busy machine. An idle machine takes a second or two.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// The part of `/readyz` that a node returns while neither reads nor writes work.
const UNREADY: &str = "\"status\":\"unready\"";

/// Checks that the text contains each of the words.
fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in: {text}");
    }
    Ok(())
}

/// Waits until the node's `/readyz?verbose` contains each of the words, and returns it.
async fn node_says(node: &Node, words: &[&str]) -> anyhow::Result<serde_json::Value> {
    until(&format!("the node says {words:?}"), NOTICED_WITHIN, async || {
        let readiness = node.readiness().await?;
        says(&readiness.to_string(), words)?;
        Ok(Some(readiness))
    })
    .await
}

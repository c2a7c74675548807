//! Databases, nodes, routers and maps that are not what their users believe (`docs/adr/0008`): each is refused by name before it does
//! harm, and nothing that was acknowledged is lost or executed twice.
//!
//! Most tests start PostgreSQL, nodes and routers by themselves, through [`stage::Stage`], so that they can stop, swap and replace
//! each of them.

mod added_shard;
mod addresses;
mod asset_scales;
mod clocks;
mod earlier_state;
mod environment;
mod lost_shard;
mod marks_of_reads;
mod migrations;
mod payments;
mod settings;
mod stage;
mod standbys;
mod tables;

use std::time::Duration;

use anyhow::ensure;
use testkit::{node::Node, wait::until};

/// How long a node or router may take to notice something on a busy machine. On an idle one it is a second or two.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// What a node says in `/readyz` while neither reads nor writes work.
const UNREADY: &str = "\"status\":\"unready\"";

/// Each of the words is in the text.
fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in: {text}");
    }
    Ok(())
}

/// Waits until the node's `/readyz?verbose` has each of the words, and gives it.
async fn node_says(node: &Node, words: &[&str]) -> anyhow::Result<serde_json::Value> {
    until(&format!("the node says {words:?}"), NOTICED_WITHIN, async || {
        let readiness = node.readiness().await?;
        says(&readiness.to_string(), words)?;
        Ok(Some(readiness))
    })
    .await
}

//! Reads through a node that has not taken part in what was acknowledged.

use anyhow::ensure;
use identity::Mark;
use ledger::Limit;
use testkit::node::{Node, NodeConfig, open, order, transfer};
use wire::get_account_response::Outcome;

use super::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_through_another_node_has_what_was_acknowledged_or_is_refused() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let first = stage.found().await?.remove(0);
    let config = NodeConfig::write_in(&stage.folder, "second", stage.map.cluster, "s0", &stage.database("s0"))?;
    let second = Node::start(&config).await?;
    first.execute_until_definite(&open("payer", Limit::Unlimited)?).await?;
    first.execute_until_definite(&open("payee", Limit::ZERO)?).await?;
    for paid in 1..=20 {
        first.execute_until_definite(&transfer(&order("payer", "payee", 1), false)?).await?;
        let answer = second.account_at_least("payee", first.mark().await?).await?;
        ensure!(matches!(&answer.outcome, Some(Outcome::Account(a)) if a.posted == paid), "{paid}: {answer:?}");
    }
    let mark = first.mark().await?;
    let beyond = Mark { position: mark.position + 1, ..mark };
    let refused = second.account_at_least("payee", beyond).await;
    let named = |status: &tonic::Status| {
        status.code() == tonic::Code::FailedPrecondition && status.message().contains("position")
    };
    ensure!(refused.as_ref().is_err_and(named), "{refused:?}");
    Ok(())
}

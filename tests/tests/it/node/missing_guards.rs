//! Tests of the check that the other tests end with. The database lacks a guard, and the check must find the damage.

use std::time::Duration;

use anyhow::ensure;
use ledger::operation::Operation;
use testkit::{
    database,
    node::{Node, decide, order, transfer},
    wait::until,
};

use super::{Place, books_are_sound, open_pair};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_carried_out_twice_is_noticed() -> anyhow::Result<()> {
    unguarded("unguarded_transfer", &[], &transfer(&order("payer", "payee", 100), false)?).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saga_credited_twice_is_noticed() -> anyhow::Result<()> {
    let order = order("payer", "payee", 100);
    unguarded("unguarded_register", &[transfer(&order, true)?], &decide(&order, false)?).await
}

/// Exactly once rests on the unique key of the journal's answers. Without the key, the second of two equal operations is
/// carried out again.
async fn unguarded(name: &str, before: &[Operation], twice: &Operation) -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard(name).await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "payer", "payee").await?;
    for operation in before {
        node.execute_until_definite(operation).await?;
    }
    let url = &config.database_url;
    books_are_sound(url).await?;
    database::run(url, "ALTER INDEX journal_answer RENAME TO former; CREATE INDEX journal_answer ON journal (id, payer, role) WHERE id IS NOT NULL; DROP INDEX former").await?;
    node.execute_until_definite(twice).await?;
    // A node has recent ids in memory. A new node reads the ids that are not folded.
    until("everything is folded", Duration::from_secs(10), async || {
        let unfolded = "SELECT max(position) - (SELECT folded_position FROM fold_state) FROM journal";
        Ok((database::number(url, unfolded).await? == 0).then_some(()))
    })
    .await?;
    drop(node);
    let node = Node::start(&config).await?;
    node.execute_until_definite(twice).await?;
    ensure!(
        node.account("payee").await?.posted == 200,
        "the guard is gone, and nothing happened: this proves nothing"
    );
    ensure!(books_are_sound(url).await.is_err(), "money moved twice under one id, and no check noticed");
    Ok(())
}

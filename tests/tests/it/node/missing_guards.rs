//! The tests of the tests: a guard is taken away from the database, and what the other tests look at must show it.

use std::time::Duration;

use anyhow::ensure;
use ledger::operation::Operation;
use testkit::{
    database,
    node::{Node, decide, order, transfer},
    wait::until,
};

use super::{Place, books_are_sound, open_pair};

/// Exactly once rests on the unique key of the journal's answers. Without it, the second of two equal operations is carried out
/// again.
pub async fn are_noticed(place: &Place<'_>) -> anyhow::Result<()> {
    let order = order("payer", "payee", 100);
    let reserve = transfer(&order, true)?;
    unguarded(place, "unguarded_transfer", &[], &transfer(&order, false)?).await?;
    unguarded(place, "unguarded_register", &[reserve], &decide(&order, false)?).await
}

async fn unguarded(place: &Place<'_>, name: &str, before: &[Operation], twice: &Operation) -> anyhow::Result<()> {
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
    // A node remembers recent ids. A new one remembers those that are not folded.
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

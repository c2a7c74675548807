//! What is decided together is written together.

use anyhow::{bail, ensure};
use ledger::{
    Limit,
    outcome::{AccountOutcome, Outcome, Reply},
};
use testkit::node::{Node, limit, open, order, transfer};

use super::{Place, books_are_sound, open_pair};

/// The debtor pays back and loses the overdraft in one batch. No check of the database may see the new limit with the old balance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debt_is_paid_and_its_limit_lowered_in_one_commit() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("one_batch").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "payee").await?;
    node.execute_until_definite(&open("debtor", Limit::AtMost(50))?).await?;
    node.execute_until_definite(&transfer(&order("debtor", "payee", 50), false)?).await?;

    let before = node.status().await?.batches;
    let lower = limit("debtor", Limit::ZERO)?;
    let replies = node.execute(&[transfer(&order("treasury", "debtor", 50), false)?, lower]).await?;
    let [Reply::Outcome(Outcome::Transfer(_)), Reply::Outcome(Outcome::Account(lowered))] = &replies[..] else {
        bail!("{replies:?}")
    };
    // The wire has one message for an account that was opened and one that was changed.
    let (AccountOutcome::Created(debtor) | AccountOutcome::Updated(debtor)) = lowered else { bail!("{lowered:?}") };
    ensure!((debtor.posted, debtor.overdraft) == (0, Limit::ZERO), "{debtor:?}");
    let batches = node.status().await?.batches - before;
    ensure!(batches == 1, "the batch was taken apart: {batches} commits");
    books_are_sound(&config.database_url).await
}

//! Creations that are sent again after the account was changed. What the account was opened with is in its first entry.

use anyhow::{Context, ensure};
use ledger::{
    Limit,
    operation::Operation,
    outcome::{AccountOutcome, Outcome, Reply, TransferOutcome},
};
use testkit::{
    history::Order,
    node::{Node, limit, open, order, transfer},
};

use super::{Place, books_are_sound};

/// Versions at which a creation is sent again: around the waypoints, which are 64 entries apart.
const VERSIONS: [usize; 9] = [2, 3, 63, 64, 65, 127, 128, 129, 200];
/// More accounts than the node reads the openings of in one statement.
const MANY: usize = 600;

const OPENED: Limit = Limit::AtMost(10);
const CHANGED: Limit = Limit::AtMost(20);
const NEVER: Limit = Limit::AtMost(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_is_opened_again_with_what_its_first_entry_says() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("opened_again").await?;
    let node = Node::start(&config).await?;
    node.execute_until_definite(&open("bank", Limit::Unlimited)?).await?;

    let of_versions = VERSIONS.map(|version| (format!("version{version}"), version));
    let many = (0..MANY).map(|n| (format!("many{n}"), 2));
    let accounts: Vec<(String, usize)> = of_versions.into_iter().chain(many).collect();
    let mut history = Vec::new();
    for (id, version) in &accounts {
        history.push(open(id, OPENED)?);
        for _ in 2..*version {
            history.push(transfer(&order("bank", id, 1), false)?);
        }
        history.push(limit(id, CHANGED)?);
    }
    node.execute(&history).await?;
    // The first node has the accounts in memory. The second node has to read them.
    let other = Node::start(&place.another_node("opened_again_other", &config.database_url)?).await?;
    for node in [&node, &other] {
        for (limit, expected) in [(OPENED, "replayed"), (CHANGED, "replayed"), (NEVER, "conflict overdraft")] {
            let again: Vec<Operation> = accounts.iter().map(|(id, _)| open(id, limit)).collect::<Result<_, _>>()?;
            let replies = node.execute(&again).await?;
            for ((id, version), reply) in accounts.iter().zip(&replies) {
                let expected = match expected {
                    "replayed" => format!("replayed, version {version}, {CHANGED:?}"),
                    conflict => conflict.to_owned(),
                };
                ensure!(summary(reply) == expected, "{id} opened with {limit:?} is {}", summary(reply));
            }
        }
    }
    in_the_batch_that_changes_them(&node).await.context("in one batch")?;
    books_are_sound(&config.database_url).await
}

/// The change and the creation come in one batch, once alone and once with a transfer that was carried out before. The transfer makes the
/// node decide the batch twice, the second time with care.
async fn in_the_batch_that_changes_them(node: &Node) -> anyhow::Result<()> {
    let paid: Order = order("bank", "version2", 1);
    let replay = transfer(&paid, false)?;
    node.execute_until_definite(&replay).await?;
    for (id, with) in
        [("version3", None), ("version63", Some(&replay)), ("version64", None), ("version200", Some(&replay))]
    {
        let before = node.account(id).await?.version;
        let new = format!("new-{id}");
        let mut batch = vec![
            limit(id, NEVER)?,
            open(id, OPENED)?,
            open(id, CHANGED)?,
            open(id, NEVER)?,
            open(&new, OPENED)?,
            limit(&new, CHANGED)?,
            open(&new, OPENED)?,
            open(&new, NEVER)?,
        ];
        batch.extend(with.cloned());
        let replies = node.execute(&batch).await?;
        let replies: Vec<String> = replies.iter().map(summary).collect();
        let now = format!("version {}, {NEVER:?}", before + 1);
        let expected = [
            format!("there, {now}"),
            format!("replayed, {now}"),
            "conflict overdraft".to_owned(),
            format!("replayed, {now}"),
            format!("there, version 1, {OPENED:?}"),
            format!("there, version 2, {CHANGED:?}"),
            format!("replayed, version 2, {CHANGED:?}"),
            "conflict overdraft".to_owned(),
        ];
        ensure!(replies[..expected.len()] == expected, "{id}: {replies:#?}");
        ensure!(replies.get(expected.len()).is_none_or(|reply| reply == "paid before"), "{id}: {replies:#?}");
    }
    Ok(())
}

fn summary(reply: &Reply) -> String {
    match reply {
        Reply::Outcome(Outcome::Account(AccountOutcome::Replayed(account))) => {
            format!("replayed, version {}, {:?}", account.version, account.overdraft)
        }
        // The wire has one message for an account that was opened and one that was changed.
        Reply::Outcome(Outcome::Account(AccountOutcome::Created(account) | AccountOutcome::Updated(account))) => {
            format!("there, version {}, {:?}", account.version, account.overdraft)
        }
        Reply::Outcome(Outcome::Account(AccountOutcome::Conflict { field })) => format!("conflict {field}"),
        Reply::Outcome(Outcome::Transfer(TransferOutcome::Done(answer))) if answer.replayed => {
            "paid before".to_owned()
        }
        other => format!("{other:?}"),
    }
}

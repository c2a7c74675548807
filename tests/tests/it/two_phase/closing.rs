//! Tests of accounts that are closed while money is in transit from or to them.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::{join3, try_join_all};
use http::Method;
use serde_json::json;
use testkit::{
    client::{account_path, transfer_path},
    history::payment_body,
    seed::Seed,
    shared,
};
use uuid::Uuid;

use super::{Bank, ELSEWHERE, SOURCE, finish};

const ROUNDS: usize = 8;
/// The number of attempts to close the account while the payment is under way.
const TRIES: usize = 6;
const BETWEEN_TRIES_MS: usize = 12;

/// A payer is closed while its last money is in transit to another shard, where it is refused in every other round.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_money_comes_back_to_a_closed_account() -> anyhow::Result<()> {
    let random = &mut Seed::announce("closed payers").random();
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    let rounds: Vec<(bool, usize)> = (0..ROUNDS).map(|n| (n % 2 == 0, random.below(BETWEEN_TRIES_MS) + 1)).collect();
    try_join_all(rounds.into_iter().map(|(refused, pause_ms)| async move {
        for captures in [false, true] {
            let round = ClosingRound { refused, captures, pause_ms };
            round.run(bank).await.with_context(|| format!("{round:?}"))?;
        }
        anyhow::Ok(())
    }))
    .await?;
    finish(cluster).await
}

#[derive(Debug)]
struct ClosingRound {
    refused: bool,
    /// Whether the money leaves through a capture of a hold.
    captures: bool,
    pause_ms: usize,
}

impl ClosingRound {
    async fn run(&self, bank: &Bank<'_>) -> anyhow::Result<()> {
        let payer = bank.account(SOURCE, "10.00").await?;
        let payee = bank.account(ELSEWHERE, "0.00").await?;
        let held = match self.captures {
            true => Some(bank.hold(&payer, &payee, "10.00", None).await?),
            false => None,
        };
        if self.refused {
            set_status(bank, &payee, "closed").await?;
        }
        let id = Uuid::now_v7();
        let paid = async {
            match &held {
                Some(held) => bank.send(&held.path("/capture"), &json!({"id": id})).await,
                None => bank.send("/v1/transfers", &payment_body(id, &payer, &payee, "10.00")).await,
            }
        };
        let closed = async {
            let mut closed = false;
            for _ in 0..TRIES {
                // The tries to close it are spread over the time that the payment takes.
                tokio::time::sleep(Duration::from_millis(self.pause_ms as u64)).await;
                closed |= set_status(bank, &payer, "closed").await?;
            }
            anyhow::Ok(closed)
        };
        let (paid, closed) = tokio::join!(paid, closed);
        let (paid, closed) = (paid?, closed?);
        if self.refused {
            expect!(paid.outcome() == "account_closed", "{}", paid.text());
            ensure!(!closed, "the account was closed while its money was in transit");
            let in_hold = if self.captures { "10.00" } else { "0.00" };
            ensure!(bank.balance(&payer).await? == ("10.00".to_owned(), in_hold.to_owned()));
            return Ok(());
        }
        expect!(paid.outcome() == "posted", "{}", paid.text());
        ensure!(closed || set_status(bank, &payer, "closed").await?, "an empty account cannot be closed");
        // A closed account is not paid back, so the payee keeps the money.
        let back = bank.send(&transfer_path(id, &payer, "/reverse"), &json!({"id": Uuid::now_v7()})).await?;
        expect!(back.outcome() == "account_closed" && back.json()?["side"] == "credit", "{}", back.text());
        ensure!(bank.balance(&payer).await?.0 == "0.00" && bank.balance(&payee).await?.0 == "10.00");
        Ok(())
    }
}

/// A payee is closed while a hold is captured to it and an earlier payment to it is reversed. Each of the three requests finds the others
/// either done or not begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_outlives_its_closed_payee() -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    try_join_all((0..ROUNDS).map(|n| async move {
        let payee_shard = if n % 2 == 0 { SOURCE } else { ELSEWHERE };
        let payer = bank.account(SOURCE, "15.00").await?;
        let payee = bank.account(payee_shard, "0.00").await?;
        let before = bank.pay(&payer, &payee, "5.00").await?;
        let hold = bank.hold(&payer, &payee, "10.00", None).await?;
        let (captured, reversed, closed) = join3(
            take_all(bank, &hold.path("/capture")),
            take_all(bank, &transfer_path(before, &payer, "/reverse")),
            set_status(bank, &payee, "closed"),
        )
        .await;
        let (captured, reversed, mut closed) = (captured?, reversed?, closed?);
        expect!(reversed == "posted", "{reversed}");
        if captured == "posted" {
            ensure!(!closed, "the account was closed with money in it");
            ensure!(bank.balance(&payee).await?.0 == "10.00" && bank.balance(&payer).await?.1 == "0.00");
        } else {
            ensure!(captured == "account_closed" && closed, "{captured}, closed: {closed}");
            ensure!(bank.balance(&payer).await? == ("15.00".to_owned(), "10.00".to_owned()));
            // The hold is unchanged. It is captured once the payee is open again, or released.
            if n % 4 < 2 {
                closed = !set_status(bank, &payee, "open").await?;
                ensure!(take_all(bank, &hold.path("/capture")).await? == "posted" && !closed);
            } else {
                let released = bank.send(&hold.path("/release"), &json!({})).await?;
                expect!(released.outcome() == "released", "{}", released.text());
                ensure!(bank.balance(&payer).await? == ("15.00".to_owned(), "0.00".to_owned()));
            }
        }
        anyhow::Ok(())
    }))
    .await?;
    finish(cluster).await
}

/// Captures or reverses all that is left, under a new id.
async fn take_all(bank: &Bank<'_>, path: &str) -> anyhow::Result<String> {
    Ok(bank.send(path, &json!({"id": Uuid::now_v7()})).await?.outcome())
}

/// Changes the status of an account. Returns whether the account has the status now.
async fn set_status(bank: &Bank<'_>, account: &str, status: &str) -> anyhow::Result<bool> {
    let answer = bank.send_as(Method::PATCH, &account_path(account), &json!({"status": status})).await?;
    expect!(answer.status == 200 || answer.outcome() == "account_not_empty", "{}", answer.text());
    Ok(answer.status == 200)
}

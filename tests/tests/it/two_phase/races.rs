//! Several requests, each with its own id, that cannot all have their way.

use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::future::{join_all, try_join_all};
use serde_json::{Value, json};
use testkit::{client::Answer, history::decimal as money, seed::Random, wait::until};
use uuid::Uuid;

use super::stage::{ELSEWHERE, Held, PATIENCE, SOURCE, Stage, said, transfer_path};

/// On each kind of road: to the same shard, and to another one.
const HOLDS: usize = 12;
/// Requests come in around the moment the hold expires.
const EXPIRES_IN_S: u32 = 1;
const FIRST_MS: usize = 600;
const SPREAD_MS: usize = 800;
/// Of each hold.
const REQUESTS: usize = 6;

/// Two partial captures, two final ones and two releases of each hold meet its expiry.
pub async fn a_hold_ends_once(stage: &Stage<'_>, random: &mut Random) -> anyhow::Result<()> {
    let delays = |random: &mut Random| [0; REQUESTS].map(|_| FIRST_MS + random.below(SPREAD_MS));
    let delays: Vec<[usize; REQUESTS]> = (0..2 * HOLDS).map(|_| delays(random)).collect();
    let ends = try_join_all(delays.into_iter().enumerate().map(|(n, delays)| async move {
        let payee_shard = if n % 2 == 0 { SOURCE } else { ELSEWHERE };
        let payer = stage.account(SOURCE, "10.00").await?;
        let payee = stage.account(payee_shard, "0.00").await?;
        let hold = stage.hold(&payer, &payee, "10.00", Some(EXPIRES_IN_S)).await?;
        end(stage, &hold, delays).await.with_context(|| format!("{hold:?} to {payee_shard}"))
    }))
    .await?;
    let count = |end: &str| ends.iter().filter(|it| *it == end).count();
    eprintln!("    {} captured, {} released, {} expired", count("captured"), count("released"), count("expired"));
    Ok(())
}

/// Gives what the hold has become.
async fn end(stage: &Stage<'_>, hold: &Held, delays_ms: [usize; REQUESTS]) -> anyhow::Result<String> {
    let bodies: [Option<Value>; REQUESTS] = [
        Some(json!({"id": Uuid::now_v7(), "amount": "1.00", "final": false})),
        Some(json!({"id": Uuid::now_v7(), "amount": "2.00", "final": false})),
        Some(json!({"id": Uuid::now_v7(), "amount": "4.00"})),
        Some(json!({"id": Uuid::now_v7()})),
        None,
        None,
    ];
    let sent = bodies.iter().zip(delays_ms).map(async |(body, delay_ms)| {
        tokio::time::sleep(Duration::from_millis(delay_ms as u64)).await;
        match body {
            Some(capture) => stage.send(&hold.path("/capture"), capture).await,
            None => stage.send(&hold.path("/release"), &json!({})).await,
        }
    });
    let answers: Vec<Answer> = join_all(sent).await.into_iter().collect::<anyhow::Result<_>>()?;
    let shown = until("the hold has ended", PATIENCE, async || {
        let shown = stage.show(hold).await?;
        Ok((shown["status"] != "held").then_some(shown))
    })
    .await?;
    let status = shown["status"].as_str().unwrap_or_default().to_owned();
    let told: Vec<(u16, String)> = answers.iter().map(|answer| (answer.status, said(answer))).collect();

    // Every capture was told how the hold had ended, or that it took its part before that.
    let mut captured = 0;
    let mut final_ones = 0;
    for (answer, body) in answers.iter().zip(&bodies) {
        let Some(body) = body else { continue };
        if answer.status < 300 {
            let amount = answer.json()?["amount"].as_str().unwrap_or_default().to_owned();
            captured += cents(&amount)?;
            final_ones += usize::from(body["final"].is_null());
        } else {
            ensure!(said(answer) == format!("hold_{status}"), "the hold is {status}, and they were told {told:?}");
        }
        let again = stage.send(&hold.path("/capture"), body).await?;
        let same = if answer.status < 300 { again.body == answer.body } else { said(&again) == said(answer) };
        ensure!(again.is_replay() && same, "first {}, then {}", answer.text(), again.text());
    }
    for release in &answers[4..] {
        let expected = if status == "released" { "released".to_owned() } else { format!("hold_{status}") };
        ensure!(said(release) == expected, "the hold is {status}, and they were told {told:?}");
    }
    ensure!(final_ones == usize::from(status == "captured"), "the hold is {status}, and they were told {told:?}");
    ensure!(shown["captured"] == money(captured) && shown["remaining"] == "0.00", "{shown} {told:?}");
    ensure!(stage.balance(&hold.debit).await? == (money(1000 - captured), "0.00".to_owned()), "{told:?}");
    ensure!(stage.balance(&hold.credit).await?.0 == money(captured), "{told:?}");
    Ok(status)
}

/// Through two routers at once: what is paid back never exceeds what was paid, and each loser is told why.
pub async fn no_more_is_reversed_than_was_paid(stage: &Stage<'_>) -> anyhow::Result<()> {
    for payee_shard in [SOURCE, ELSEWHERE] {
        // The payee has more than it was paid, or just that.
        for funds in ["50.00", "0.00"] {
            // One of two, two of three, and all that is left twice.
            for (amounts, wins) in
                [(&[Some("7.00"), Some("7.00")][..], 1), (&[Some("4.00"); 3][..], 2), (&[None, None][..], 1)]
            {
                let payer = stage.account(SOURCE, "10.00").await?;
                let payee = stage.account(payee_shard, funds).await?;
                let original = stage.pay(&payer, &payee, "10.00").await?;
                race(stage, (original, &payer, &payee), amounts, wins, funds)
                    .await
                    .with_context(|| format!("{amounts:?} of a payment to {payee_shard}, which had {funds}"))?;
            }
        }
    }
    Ok(())
}

async fn race(
    stage: &Stage<'_>,
    (original, payer, payee): (Uuid, &str, &str),
    amounts: &[Option<&str>],
    wins: usize,
    funds: &str,
) -> anyhow::Result<()> {
    let path = transfer_path(original, payer, "/reverse");
    let bodies: Vec<Value> = amounts.iter().map(|amount| json!({"id": Uuid::now_v7(), "amount": amount})).collect();
    let answers: Vec<Answer> = join_all(bodies.iter().map(|body| stage.send(&path, body)))
        .await
        .into_iter()
        .collect::<anyhow::Result<_>>()?;
    let mut reversed = 0;
    let mut winners = Vec::new();
    for (answer, body) in answers.iter().zip(&bodies) {
        if answer.status == 201 {
            reversed += cents(answer.json()?["amount"].as_str().unwrap_or_default())?;
            winners.push(body["id"].clone());
            continue;
        }
        // A saga has the money in hand before it learns that it is one too many.
        let is_short = said(answer) == "insufficient_funds" && funds == "0.00";
        ensure!(answer.status == 422 && (said(answer) == "already_reversed" || is_short), "{}", answer.text());
    }
    ensure!(winners.len() == wins, "{} of them won", winners.len());
    let shown = stage.transfer(original, payer).await?;
    let by = shown["reversed_by"].as_array().context("no reversals are shown")?;
    ensure!(shown["reversed_amount"] == money(reversed) && by.len() == wins, "{shown}");
    ensure!(winners.iter().all(|winner| by.contains(winner)), "{shown}");
    ensure!((shown["status"] == "reversed") == (reversed == 1000), "{shown}");
    ensure!(stage.balance(payer).await?.0 == money(reversed));
    ensure!(stage.balance(payee).await?.0 == money(cents(funds)? + 1000 - reversed));
    Ok(())
}

fn cents(amount: &str) -> anyhow::Result<i64> {
    amount.replace('.', "").parse().with_context(|| format!("{amount:?} is no amount"))
}

//! Tests of requests that compete: one id many times, several requests for one hold, reversals of one transfer, and the expiry of holds.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, bail, ensure};
use futures_util::future::{join_all, try_join_all};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::{Answer, transfer_path},
    database,
    history::{decimal as money, payment_body},
    seed::{Random, Seed},
    shared,
    wait::until,
};
use tokio::sync::Barrier;
use uuid::Uuid;

use super::{Bank, ELSEWHERE, Held, PATIENCE, SOURCE, finish};

/// The number of holds to the same shard, and also of holds to another one.
const HOLDS: usize = 12;
/// The life of a hold. The requests are sent around the moment at which the hold expires.
const EXPIRES_IN_S: u32 = 1;
const FIRST_MS: usize = 600;
const SPREAD_MS: usize = 800;
/// The number of requests about each hold.
const REQUESTS: usize = 6;

/// Two partial captures, two final ones and two releases of each hold meet its expiry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_once_whatever_races_for_it() -> anyhow::Result<()> {
    let random = &mut Seed::announce("ends of holds").random();
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    let delays = |random: &mut Random| [0; REQUESTS].map(|_| FIRST_MS + random.below(SPREAD_MS));
    let delays: Vec<[usize; REQUESTS]> = (0..2 * HOLDS).map(|_| delays(random)).collect();
    let ends = try_join_all(delays.into_iter().enumerate().map(|(n, delays)| async move {
        let payee_shard = if n % 2 == 0 { SOURCE } else { ELSEWHERE };
        let payer = bank.account(SOURCE, "10.00").await?;
        let payee = bank.account(payee_shard, "0.00").await?;
        let hold = bank.hold(&payer, &payee, "10.00", Some(EXPIRES_IN_S)).await?;
        end(bank, &hold, delays).await.with_context(|| format!("{hold:?} to {payee_shard}"))
    }))
    .await?;
    let count = |end: &str| ends.iter().filter(|it| *it == end).count();
    eprintln!("{} captured, {} released, {} expired", count("captured"), count("released"), count("expired"));
    finish(cluster).await
}

/// Sends the competing requests about a hold. Returns the status that the hold has afterwards.
async fn end(bank: &Bank<'_>, hold: &Held, delays_ms: [usize; REQUESTS]) -> anyhow::Result<String> {
    let bodies: [Option<Value>; REQUESTS] = [
        Some(json!({"id": Uuid::now_v7(), "amount": "1.00", "final": false})),
        Some(json!({"id": Uuid::now_v7(), "amount": "2.00", "final": false})),
        Some(json!({"id": Uuid::now_v7(), "amount": "4.00"})),
        Some(json!({"id": Uuid::now_v7()})),
        None,
        None,
    ];
    let sent = bodies.iter().zip(delays_ms).map(async |(body, delay_ms)| {
        // The requests of a hold meet in a random order.
        tokio::time::sleep(Duration::from_millis(delay_ms as u64)).await;
        match body {
            Some(capture) => bank.send(&hold.path("/capture"), capture).await,
            None => bank.send(&hold.path("/release"), &json!({})).await,
        }
    });
    let answers: Vec<Answer> = join_all(sent).await.into_iter().collect::<anyhow::Result<_>>()?;
    let shown = until("the hold has ended", PATIENCE, async || {
        let shown = bank.show(hold).await?;
        Ok((shown["status"] != "held").then_some(shown))
    })
    .await?;
    let status = shown["status"].as_str().unwrap_or_default().to_owned();
    let told: Vec<(u16, String)> = answers.iter().map(|answer| (answer.status, answer.outcome())).collect();

    // Each capture must be answered with its part, or with the way in which the hold ended.
    let mut captured = 0;
    let mut final_ones = 0;
    for (answer, body) in answers.iter().zip(&bodies) {
        let Some(body) = body else { continue };
        if answer.status < 300 {
            let amount = answer.json()?["amount"].as_str().unwrap_or_default().to_owned();
            captured += cents(&amount)?;
            final_ones += usize::from(body["final"].is_null());
        } else {
            ensure!(
                answer.outcome() == format!("hold_{status}"),
                "the hold is {status}, and they were told {told:?}"
            );
        }
        let again = bank.send(&hold.path("/capture"), body).await?;
        let same = if answer.status < 300 { again.body == answer.body } else { again.outcome() == answer.outcome() };
        ensure!(again.is_replay() && same, "first {}, then {}", answer.text(), again.text());
    }
    for release in &answers[4..] {
        let expected = if status == "released" { "released".to_owned() } else { format!("hold_{status}") };
        ensure!(release.outcome() == expected, "the hold is {status}, and they were told {told:?}");
    }
    ensure!(final_ones == usize::from(status == "captured"), "the hold is {status}, and they were told {told:?}");
    expect!(shown["captured"] == money(captured) && shown["remaining"] == "0.00", "{shown} {told:?}");
    expect!(bank.balance(&hold.debit).await? == (money(1000 - captured), "0.00".to_owned()), "{told:?}");
    expect!(bank.balance(&hold.credit).await?.0 == money(captured), "{told:?}");
    Ok(status)
}

/// Reversals go through two routers at the same time. Each refused one must be told why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_reversed_than_was_paid() -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    for payee_shard in [SOURCE, ELSEWHERE] {
        // The payee has more money than the payment, or only the payment.
        for funds in ["50.00", "0.00"] {
            // The cases are one winner of two, two winners of three, and one winner of two for all that is left.
            for (amounts, wins) in
                [(&[Some("7.00"), Some("7.00")][..], 1), (&[Some("4.00"); 3][..], 2), (&[None, None][..], 1)]
            {
                let payer = bank.account(SOURCE, "10.00").await?;
                let payee = bank.account(payee_shard, funds).await?;
                let original = bank.pay(&payer, &payee, "10.00").await?;
                race(bank, (original, &payer, &payee), amounts, wins, funds)
                    .await
                    .with_context(|| format!("{amounts:?} of a payment to {payee_shard}, which had {funds}"))?;
            }
        }
    }
    finish(cluster).await
}

async fn race(
    bank: &Bank<'_>,
    (original, payer, payee): (Uuid, &str, &str),
    amounts: &[Option<&str>],
    wins: usize,
    funds: &str,
) -> anyhow::Result<()> {
    let path = transfer_path(original, payer, "/reverse");
    let bodies: Vec<Value> = amounts.iter().map(|amount| json!({"id": Uuid::now_v7(), "amount": amount})).collect();
    let answers: Vec<Answer> = join_all(bodies.iter().map(|body| bank.send(&path, body)))
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
        // A saga reserves the money before the register refuses it.
        let is_short = answer.outcome() == "insufficient_funds" && funds == "0.00";
        expect!(answer.status == 422 && (answer.outcome() == "already_reversed" || is_short), "{}", answer.text());
    }
    ensure!(winners.len() == wins, "{} reversals won", winners.len());
    let shown = bank.transfer(original, payer).await?;
    let by = shown["reversed_by"].as_array().with_context(|| format!("expected reversed_by in {shown}"))?;
    expect!(shown["reversed_amount"] == money(reversed) && by.len() == wins, "{shown}");
    expect!(winners.iter().all(|winner| by.contains(winner)), "{shown}");
    expect!((shown["status"] == "reversed") == (reversed == 1000), "{shown}");
    ensure!(bank.balance(payer).await?.0 == money(reversed));
    ensure!(bank.balance(payee).await?.0 == money(cents(funds)? + 1000 - reversed));
    Ok(())
}

fn cents(amount: &str) -> anyhow::Result<i64> {
    amount.replace('.', "").parse().with_context(|| format!("{amount:?} is not an amount"))
}

const AT_ONCE: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_with_one_id_have_one_effect_and_one_answer() -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    for payee_shard in [SOURCE, ELSEWHERE] {
        let payer = bank.account(SOURCE, "50.00").await?;
        let payee = bank.account(payee_shard, "0.00").await?;
        let id = Uuid::now_v7();
        let order = payment_body(id, &payer, &payee, "30.00");
        let held = one_answer(bank, "/v1/holds", &order).await?;
        expect!(held["debit_account"]["held"] == "30.00", "{held}");
        let hold = Held { id, debit: payer.clone(), credit: payee.clone() };

        // Captures a part and all that remains, and releases a second hold.
        let part = json!({"id": Uuid::now_v7(), "amount": "5.00", "final": false});
        let captured = one_answer(bank, &hold.path("/capture"), &part).await?;
        expect!(captured["amount"] == "5.00" && captured["debit_account"]["held"] == "25.00", "{captured}");
        let capture = Uuid::now_v7();
        let rest = json!({"id": capture, "amount": "20.00"});
        let captured = one_answer(bank, &hold.path("/capture"), &rest).await?;
        expect!(captured["status"] == "posted" && captured["debit_account"]["held"] == "0.00", "{captured}");
        ensure!(bank.balance(&payer).await? == ("25.00".to_owned(), "0.00".to_owned()));
        ensure!(bank.balance(&payee).await?.0 == "25.00", "the captures should have taken effect once");

        let reversal = json!({"id": Uuid::now_v7()});
        let reversed = one_answer(bank, &transfer_path(capture, &payer, "/reverse"), &reversal).await?;
        expect!(reversed["amount"] == "20.00", "{reversed}");
        ensure!(bank.balance(&payee).await?.0 == "5.00", "the reversal should have taken effect once");

        let second = bank.hold(&payer, &payee, "40.00", None).await?;
        let released = one_answer(bank, &second.path("/release"), &json!({})).await?;
        expect!(released["status"] == "released", "{released}");
        ensure!(bank.balance(&payer).await? == ("45.00".to_owned(), "0.00".to_owned()));
    }
    finish(cluster).await
}

/// Sends one request many times at the same moment. One of them must be executed, the others must be replays, and all must get the same
/// body.
async fn one_answer(bank: &Bank<'_>, path: &str, body: &Value) -> anyhow::Result<Value> {
    let start = Barrier::new(AT_ONCE);
    let requests = (0..AT_ONCE).map(async |_| {
        start.wait().await;
        bank.send(path, body).await
    });
    let answers: Vec<Answer> = join_all(requests).await.into_iter().collect::<anyhow::Result<_>>()?;
    for answer in &answers {
        expect!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.status, answer.text());
        // A release creates nothing, so its first answer is 200 as well.
        expect!(answer.status == 200 || !answer.is_replay(), "{path}: {} {}", answer.status, answer.text());
    }
    let first = answers.iter().filter(|answer| !answer.is_replay()).count();
    ensure!(first == 1, "{path}: one answer should be the first, but {first} are no replays");
    let different: HashSet<String> = answers.iter().map(Answer::text).collect();
    ensure!(different.len() == 1, "{path}: {} different answers: {different:?}", different.len());
    answers[0].json()
}

/// The number of holds. They are placed one after another, so that they come due at different moments of the node's poll.
const EXPIRING: usize = 20;
/// The delay that the contract allows, and the additional time that a busy machine may need.
const ALLOWED_US: i64 = 1_000_000;
const SLACK_US: i64 = 1_000_000;
/// The number of attempts, because a busy machine may pause for longer than that.
const TRIES: usize = 5;

/// No client sends a request while the holds come due. The shard's own clock says how late each one expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_expires_within_a_second_without_a_client() -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    let mut late_us = Vec::new();
    for _ in 0..TRIES {
        let latest = latest(bank).await?;
        eprintln!("the last of {EXPIRING} holds expired {latest} µs late");
        if latest <= ALLOWED_US + SLACK_US {
            return finish(cluster).await;
        }
        late_us.push(latest);
    }
    bail!("holds expired {late_us:?} µs late")
}

/// Places holds and returns how late the last of them expires, in microseconds.
async fn latest(bank: &Bank<'_>) -> anyhow::Result<i64> {
    let payer = bank.account(SOURCE, "20.00").await?;
    let payee = bank.account(ELSEWHERE, "0.00").await?;
    for _ in 0..EXPIRING {
        bank.hold(&payer, &payee, "1.00", Some(1)).await?;
    }
    let dsn = &bank.cluster.status().shards[0].dsn;
    let expired = format!("FROM {} WHERE status = 4 AND debit = '{payer}'", database::HOLDS);
    until("all holds have expired", PATIENCE, async || {
        let count = database::number(dsn, &format!("SELECT count(*) {expired}")).await?;
        Ok((usize::try_from(count)? == EXPIRING).then_some(()))
    })
    .await?;
    let early = database::number(dsn, &format!("SELECT count(*) {expired} AND ended_at_us < expires_at_us")).await?;
    ensure!(early == 0, "{early} holds expired before their time");
    ensure!(bank.balance(&payer).await? == ("20.00".to_owned(), "0.00".to_owned()));
    ensure!(bank.balance(&payee).await?.0 == "0.00");
    database::number(dsn, &format!("SELECT max(ended_at_us - expires_at_us) {expired}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_sent_many_times_at_one_instant_is_made_once() -> anyhow::Result<()> {
    one_id_is_one_transfer(SOURCE, "local").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_to_another_shard_sent_many_times_at_one_instant_is_made_once() -> anyhow::Result<()> {
    one_id_is_one_transfer(ELSEWHERE, "cross_shard").await
}

/// Other content under the id is refused with the name of the field that differs.
async fn one_id_is_one_transfer(payee_shard: &str, scope: &str) -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    let payer = bank.account(SOURCE, "1000.00").await?;
    let payee = bank.account(payee_shard, "0.00").await?;
    let other_payee = bank.account(payee_shard, "0.00").await?;
    let id = Uuid::now_v7();
    let mut order = payment_body(id, &payer, &payee, "7.00");
    order["metadata"] = json!({"invoice": "1"});

    let body = one_answer(bank, "/v1/transfers", &order).await?;
    expect!(body["status"] == "posted" && body["scope"] == scope, "{body}");
    ensure!(bank.balance(&payee).await?.0 == "7.00", "the money moved more than once, or not at all");

    // The other content may name an account of another shard.
    let elsewhere = if payee_shard == SOURCE { ELSEWHERE } else { SOURCE };
    for (field, value) in [
        ("credit", json!(other_payee)),
        ("credit", json!(bank.placement.account_on(elsewhere, "nobody", 0)?)),
        ("amount", json!("7.01")),
        ("asset", json!("EUR")),
        ("metadata", json!({"invoice": "2"})),
    ] {
        let mut other = order.clone();
        other[field] = value;
        let answer = bank.send("/v1/transfers", &other).await?;
        expect!(answer.status == 422 && answer.code() == "idempotency_mismatch", "{field}: {}", answer.text());
        expect!(answer.json()?["field"] == field, "{field}: {}", answer.text());
    }
    // The first result stays replayable.
    let again = bank.send("/v1/transfers", &order).await?;
    expect!(again.is_replay() && again.status == 200 && again.json()? == body, "{}", again.text());
    ensure!(bank.balance(&payee).await?.0 == "7.00", "a mismatch had an effect");
    let stored = format!("SELECT count(*) FROM {} WHERE id = '{id}'", database::TRANSFERS);
    for (shard, expected) in cluster.status().shards.iter().zip([1, 0, 0]) {
        ensure!(database::number(&shard.dsn, &stored).await? == expected, "on {}", shard.id);
    }
    finish(cluster).await
}

/// A transfer is found by its id and its debit account.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_with_two_payers_is_two_transfers() -> anyhow::Result<()> {
    let cluster = shared::cluster().await?;
    let bank = &Bank::open(&cluster).await?;
    let payee = bank.account("s1", "0.00").await?;
    let id = Uuid::now_v7();
    for shard in ["s0", "s2"] {
        let payer = bank.account(shard, "5.00").await?;
        let order = payment_body(id, &payer, &payee, "1.00");
        let answer = bank.send("/v1/transfers", &order).await?;
        answer.expect_status(201)?;
    }
    ensure!(bank.balance(&payee).await?.0 == "2.00");
    let ambiguous = bank.client.call(0, Method::GET, &format!("/v1/transfers/{id}"), None).await?;
    expect!(ambiguous.status == 409 && ambiguous.code() == "ambiguous_id", "{}", ambiguous.text());
    finish(cluster).await
}

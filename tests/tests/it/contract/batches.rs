//! Tests of batches. The items take effect as if one came after another, wherever the accounts live.

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::{Call, NDJSON},
    stage::{Findings, Shard, Stage, terms},
};

/// A batch. `accounts` are A, B, C and so on, as [`Stage::account`] takes them. `items` have payer, payee and amount, each with its result.
/// `posted` is what the accounts hold in the end.
struct Story {
    accounts: &'static [&'static str],
    items: &'static [(&'static str, &'static str)],
    posted: &'static [&'static str],
}

/// Each placement gives the shard of the n-th account. All are on one shard, or neighbours are on different shards, or both occur.
const PLACEMENTS: [fn(usize) -> Shard; 5] = [|_| 0, |n| n % 3, |n| n % 2, |n| n / 2 % 3, |n| n.div_ceil(2) % 2];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn money_goes_down_a_chain() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10", "USD", "USD", "USD"],
        items: &[("A B 10", "posted"), ("B C 10", "posted"), ("C D 10", "posted")],
        posted: &["0.00", "0.00", "0.00", "10.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn money_does_not_go_up_a_chain() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10", "USD", "USD", "USD"],
        items: &[("C D 10", "rejected insufficient_funds debit"), ("B C 10", "rejected insufficient_funds debit"), ("A B 10", "posted")],
        posted: &["0.00", "10.00", "0.00", "0.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn money_that_the_credit_side_refused_is_there_for_the_next_item() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10", "USD", "USD closed"],
        items: &[("A C 10", "rejected account_closed credit"), ("A B 10", "posted")],
        posted: &["0.00", "10.00", "0.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_item_refused_by_the_credit_side_is_followed_by_one_refused_by_the_debit_side() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10", "USD", "none", "EUR", "USD"],
        items: &[
            ("A C 6", "rejected account_not_found credit"), ("A D 6", "rejected asset_mismatch credit"), ("A B 6", "posted"),
            ("A E 6", "rejected insufficient_funds debit"), ("A E 4", "posted"), ("E B 4", "posted"),
        ],
        posted: &["0.00", "10.00", "", "0.00", "0.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn an_item_that_was_short_stays_refused_when_money_comes_later() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD", "USD", "USD posted=10"],
        items: &[("A B 5", "rejected insufficient_funds debit"), ("C A 5", "posted"), ("A B 5", "posted")],
        posted: &["0.00", "5.00", "5.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn money_goes_round_and_round() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10", "USD", "USD"],
        items: &[
            ("A B 10", "posted"), ("B C 10", "posted"), ("C A 10", "posted"), ("C A 10", "rejected insufficient_funds debit"),
            ("A B 10", "posted"), ("B C 9", "posted"), ("C A 9", "posted"),
        ],
        posted: &["9.00", "1.00", "0.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn money_of_many_accounts_goes_to_one_and_on() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD", "USD posted=3", "USD posted=4", "USD posted=5", "USD"],
        items: &[
            ("B A 3", "posted"), ("C A 4", "posted"), ("A E 8", "rejected insufficient_funds debit"), ("D A 5", "posted"),
            ("A E 12", "posted"), ("A E 0.01", "rejected insufficient_funds debit"),
        ],
        posted: &["0.00", "0.00", "0.00", "0.00", "12.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn room_under_max_balance_is_there_from_the_item_that_makes_it() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["USD posted=10 max=10", "USD posted=10", "USD"],
        items: &[("B A 5", "rejected limit_exceeded credit"), ("A C 5", "posted"), ("B A 5", "posted"), ("B A 0.01", "rejected limit_exceeded credit")],
        posted: &["10.00", "5.00", "5.00"],
    }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[rustfmt::skip]
async fn a_failure_of_one_item_is_its_own() -> anyhow::Result<()> {
    tell(&Story {
        accounts: &["none", "USD posted=5", "USD frozen", "EUR posted=5"],
        items: &[
            ("A B 1", "failed account_not_found debit"), ("C B 1", "rejected account_frozen debit"), ("D B 1", "rejected asset_mismatch debit"),
            ("B C 1", "posted"), ("A C 1", "failed account_not_found debit"), ("B A 1", "rejected account_not_found credit"),
        ],
        posted: &["", "4.00", "1.00", "5.00"],
    }).await
}

/// Plays a story in all placements at the same time.
async fn tell(story: &Story) -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let told = (0..PLACEMENTS.len()).map(async |placement| tell_with(&stage, story, placement).await);
    let mut findings = Findings::default();
    for (placement, told) in join_all(told).await.into_iter().enumerate() {
        findings.note(format!("placement {placement}"), told);
    }
    findings.conclude()?;
    stage.finish().await
}

async fn tell_with(stage: &Stage, story: &Story, placement: usize) -> anyhow::Result<()> {
    let mut accounts = Vec::new();
    for (index, wanted) in story.accounts.iter().enumerate() {
        accounts.push(stage.account(PLACEMENTS[placement](index), wanted).await?);
    }
    let mut items = Vec::new();
    for (item, _) in story.items {
        items.push(parse(item, &accounts)?);
    }
    // Every other placement sends the items as lines.
    let call = || match placement % 2 {
        0 => Call::post("/v1/transfers:batch", &json!({"transfers": items, "atomic": false})),
        _ => {
            let lines: Vec<String> = items.iter().map(Value::to_string).collect();
            Call::bare(Method::POST, "/v1/transfers:batch", lines.join("\n")).header("content-type", NDJSON)
        }
    };
    let expected: Vec<String> = story.items.iter().map(|(_, result)| (*result).to_owned()).collect();
    let found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    expect!(found == expected, "{found:#?}");
    // The batch, sent again, is answered with the stored results, and no money moves.
    let replayed =
        |result: &String| if result.starts_with("failed") { result.clone() } else { format!("{result} replayed") };
    let again = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    ensure!(again == expected.iter().map(replayed).collect::<Vec<_>>(), "the replay has other results: {again:#?}");
    for (account, posted) in accounts.iter().zip(story.posted).filter(|(_, posted)| !posted.is_empty()) {
        let there = stage.posted(account).await?;
        ensure!(there == *posted, "{account} holds {there}, not {posted}");
    }
    Ok(())
}

/// The payer, the payee and the amount of an item such as `A B 10`.
fn parse(item: &str, accounts: &[String]) -> anyhow::Result<Value> {
    let words: Vec<&str> = item.split(' ').collect();
    let [debit, credit, amount] = words[..] else { anyhow::bail!("{item:?} is not of the form `A B 10`") };
    let account = |letter: &str| {
        let index = letter.bytes().next().map(|letter| usize::from(letter - b'A'));
        index.and_then(|index| accounts.get(index)).with_context(|| format!("the story has no account {letter}"))
    };
    Ok(terms(Uuid::now_v7(), account(debit)?, account(credit)?, amount, "USD"))
}

/// The results, one text each, such as `rejected insufficient_funds debit replayed`. They must have the ids of the items, in the same
/// order.
pub fn results(body: &Value, items: &[Value]) -> anyhow::Result<Vec<String>> {
    let results = body["results"].as_array().with_context(|| format!("expected results in {body}"))?;
    ensure!(results.len() == items.len(), "{} results for {} items", results.len(), items.len());
    results
        .iter()
        .zip(items)
        .map(|(result, item)| {
            ensure!(result["id"] == item["id"], "{result} for {item}");
            expect!(result["code"].is_string() == result["detail"].is_string(), "{result}");
            let words = ["status", "code", "side", "field"].iter().filter_map(|name| result[*name].as_str());
            let replayed = (result["replayed"] == true).then_some("replayed");
            Ok(words.chain(replayed).collect::<Vec<_>>().join(" "))
        })
        .collect()
}

/// The number of items of the largest batch, and how often a batch is sent again if the machine is too slow for it.
const LARGEST: usize = 10_000;
const TRIES: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_transfers_are_a_batch() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let payer = stage.account(0, "USD overdraft=unlimited").await?;
    let payees = [stage.account(0, "USD").await?, stage.account(1, "USD").await?];
    let items: Vec<Value> =
        (0..LARGEST).map(|n| terms(Uuid::now_v7(), &payer, &payees[n % 2], "0.01", "USD")).collect();
    let call = || Call::post("/v1/transfers:batch", &json!({"transfers": items}));
    let mut found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    // A machine may be too slow for the whole batch within the time limit of one request. The next request does the rest.
    for _ in 0..TRIES {
        if found.iter().all(|result| result.starts_with("posted")) {
            break;
        }
        let left: Vec<&String> = found.iter().filter(|result| !result.starts_with("posted")).collect();
        ensure!(left.iter().all(|result| is_undecided(result)), "{} are not posted, such as {}", left.len(), left[0]);
        eprintln!("contract: {} of {LARGEST} are not decided in time, such as {}", left.len(), left[0]);
        found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    }
    let other: Vec<&String> = found.iter().filter(|result| !result.starts_with("posted")).collect();
    ensure!(other.is_empty(), "{} are not posted, such as {}", other.len(), other[0]);
    ensure!(stage.posted(&payer).await? == "-100.00", "the payer should have paid 100.00");
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_accounts_are_a_batch() -> anyhow::Result<()> {
    let stage = Stage::quiet().await?;
    let accounts: Vec<Value> =
        (0..LARGEST).map(|n| json!({"id": format!("{{{n}}}{}", stage.word()), "asset": "USD"})).collect();
    let call = Call::post("/v1/accounts:batch", &json!({"accounts": accounts}));
    let reply = stage.api.expect(call, "200").await?.body;
    let created = reply["results"].as_array().into_iter().flatten().filter(|result| result["status"] == "created");
    ensure!(created.count() == LARGEST, "not all accounts were created");
    stage.finish().await
}

/// Whether the time limit ended before the item had a final answer.
fn is_undecided(result: &str) -> bool {
    ["pending", "unknown", "failed shard_unavailable", "failed overloaded"]
        .iter()
        .any(|open| result.starts_with(open))
}

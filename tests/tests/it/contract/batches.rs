//! Batches: the items take effect as if one after another, wherever the accounts live.

use anyhow::{Context, ensure};
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    api::{Call, NDJSON},
    stage::{Findings, Shard, Stage, terms},
};

/// Items of the largest batch, and how often it is sent again to a machine that is too slow for it.
const LARGEST: usize = 10_000;
const TRIES: usize = 4;

struct Story {
    name: &'static str,
    /// What the accounts A, B, C … are, as [`Stage::account`] takes them.
    accounts: &'static [&'static str],
    /// Payer, payee, amount; and what becomes of it.
    items: &'static [(&'static str, &'static str)],
    /// What A, B, C … hold in the end.
    posted: &'static [&'static str],
}

#[rustfmt::skip]
const STORIES: &[Story] = &[
    Story {
        name: "money goes down a chain",
        accounts: &["USD posted=10", "USD", "USD", "USD"],
        items: &[("A B 10", "posted"), ("B C 10", "posted"), ("C D 10", "posted")],
        posted: &["0.00", "0.00", "0.00", "10.00"],
    },
    Story {
        name: "money does not go up a chain",
        accounts: &["USD posted=10", "USD", "USD", "USD"],
        items: &[("C D 10", "rejected insufficient_funds debit"), ("B C 10", "rejected insufficient_funds debit"), ("A B 10", "posted")],
        posted: &["0.00", "10.00", "0.00", "0.00"],
    },
    Story {
        name: "what the credit side refused is there for the next",
        accounts: &["USD posted=10", "USD", "USD closed"],
        items: &[("A C 10", "rejected account_closed credit"), ("A B 10", "posted")],
        posted: &["0.00", "10.00", "0.00"],
    },
    Story {
        name: "refused by the credit side, and then by the debit side",
        accounts: &["USD posted=10", "USD", "none", "EUR", "USD"],
        items: &[
            ("A C 6", "rejected account_not_found credit"), ("A D 6", "rejected asset_mismatch credit"), ("A B 6", "posted"),
            ("A E 6", "rejected insufficient_funds debit"), ("A E 4", "posted"), ("E B 4", "posted"),
        ],
        posted: &["0.00", "10.00", "", "0.00", "0.00"],
    },
    Story {
        name: "short stays short, however much comes later",
        accounts: &["USD", "USD", "USD posted=10"],
        items: &[("A B 5", "rejected insufficient_funds debit"), ("C A 5", "posted"), ("A B 5", "posted")],
        posted: &["0.00", "5.00", "5.00"],
    },
    Story {
        name: "round and round",
        accounts: &["USD posted=10", "USD", "USD"],
        items: &[
            ("A B 10", "posted"), ("B C 10", "posted"), ("C A 10", "posted"), ("C A 10", "rejected insufficient_funds debit"),
            ("A B 10", "posted"), ("B C 9", "posted"), ("C A 9", "posted"),
        ],
        posted: &["9.00", "1.00", "0.00"],
    },
    Story {
        name: "from many to one and on",
        accounts: &["USD", "USD posted=3", "USD posted=4", "USD posted=5", "USD"],
        items: &[
            ("B A 3", "posted"), ("C A 4", "posted"), ("A E 8", "rejected insufficient_funds debit"), ("D A 5", "posted"),
            ("A E 12", "posted"), ("A E 0.01", "rejected insufficient_funds debit"),
        ],
        posted: &["0.00", "0.00", "0.00", "0.00", "12.00"],
    },
    Story {
        name: "room under max_balance comes when it comes",
        accounts: &["USD posted=10 max=10", "USD posted=10", "USD"],
        items: &[("B A 5", "rejected limit_exceeded credit"), ("A C 5", "posted"), ("B A 5", "posted"), ("B A 0.01", "rejected limit_exceeded credit")],
        posted: &["10.00", "5.00", "5.00"],
    },
    Story {
        name: "one failure is its own",
        accounts: &["none", "USD posted=5", "USD frozen", "EUR posted=5"],
        items: &[
            ("A B 1", "failed account_not_found debit"), ("C B 1", "rejected account_frozen debit"), ("D B 1", "rejected asset_mismatch debit"),
            ("B C 1", "posted"), ("A C 1", "failed account_not_found debit"), ("B A 1", "rejected account_not_found credit"),
        ],
        posted: &["", "4.00", "1.00", "5.00"],
    },
];

/// Which account lives where: all together, each elsewhere, and mixtures.
const PLACEMENTS: [fn(usize) -> Shard; 5] = [|_| 0, |n| n % 3, |n| n % 2, |n| n / 2 % 3, |n| n.div_ceil(2) % 2];

pub async fn take_effect_in_order(stage: &Stage) -> anyhow::Result<()> {
    let all = STORIES.iter().flat_map(|story| (0..PLACEMENTS.len()).map(move |placement| (story, placement)));
    let told = join_all(all.map(async |(story, placement)| {
        let told = tell(stage, story, placement).await;
        (format!("{} (placement {placement})", story.name), told)
    }));
    let mut findings = Findings::default();
    for (name, told) in told.await {
        findings.note(name, told);
    }
    findings.conclude()
}

async fn tell(stage: &Stage, story: &Story, placement: usize) -> anyhow::Result<()> {
    let mut accounts = Vec::new();
    for (index, wanted) in story.accounts.iter().enumerate() {
        accounts.push(stage.account(PLACEMENTS[placement](index), wanted).await?);
    }
    let mut items = Vec::new();
    for (item, _) in story.items {
        items.push(parse(item, &accounts)?);
    }
    // Every other time in lines.
    let call = || match placement % 2 {
        0 => Call::post("/v1/transfers:batch", &json!({"transfers": items, "atomic": false})),
        _ => {
            let lines: Vec<String> = items.iter().map(Value::to_string).collect();
            Call::bare(Method::POST, "/v1/transfers:batch", lines.join("\n")).header("content-type", NDJSON)
        }
    };
    let expected: Vec<String> = story.items.iter().map(|(_, result)| (*result).to_owned()).collect();
    let found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    ensure!(found == expected, "{found:#?}");
    // Everything that was stored is answered again; nothing moves.
    let replayed =
        |result: &String| if result.starts_with("failed") { result.clone() } else { format!("{result} replayed") };
    let again = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    ensure!(again == expected.iter().map(replayed).collect::<Vec<_>>(), "again: {again:#?}");
    for (account, posted) in accounts.iter().zip(story.posted).filter(|(_, posted)| !posted.is_empty()) {
        let there = stage.posted(account).await?;
        ensure!(there == *posted, "{account} holds {there}, not {posted}");
    }
    Ok(())
}

/// `A B 10`
fn parse(item: &str, accounts: &[String]) -> anyhow::Result<Value> {
    let words: Vec<&str> = item.split(' ').collect();
    let [debit, credit, amount] = words[..] else { anyhow::bail!("{item:?} is no item") };
    let account = |letter: &str| {
        let index = letter.bytes().next().map(|letter| usize::from(letter - b'A'));
        index.and_then(|index| accounts.get(index)).with_context(|| format!("who is {letter}?"))
    };
    Ok(terms(Uuid::now_v7(), account(debit)?, account(credit)?, amount, "USD"))
}

/// One line a result, such as `rejected insufficient_funds debit replayed`; the ids are the items', in order.
pub fn results(body: &Value, items: &[Value]) -> anyhow::Result<Vec<String>> {
    let results = body["results"].as_array().context("no results")?;
    ensure!(results.len() == items.len(), "{} results for {} items", results.len(), items.len());
    results
        .iter()
        .zip(items)
        .map(|(result, item)| {
            ensure!(result["id"] == item["id"], "{result} for {item}");
            ensure!(result["code"].is_string() == result["detail"].is_string(), "{result}");
            let words = ["status", "code", "side", "field"].iter().filter_map(|name| result[*name].as_str());
            let replayed = (result["replayed"] == true).then_some("replayed");
            Ok(words.chain(replayed).collect::<Vec<_>>().join(" "))
        })
        .collect()
}

/// What is answered when the time is up.
fn is_undecided(result: &str) -> bool {
    ["pending", "unknown", "failed shard_unavailable", "failed overloaded"]
        .iter()
        .any(|open| result.starts_with(open))
}

/// 10,000 items are a batch.
pub async fn of_the_largest_size_are_taken(stage: &Stage) -> anyhow::Result<()> {
    let payer = stage.account(0, "USD overdraft=unlimited").await?;
    let payees = [stage.account(0, "USD").await?, stage.account(1, "USD").await?];
    let items: Vec<Value> =
        (0..LARGEST).map(|n| terms(Uuid::now_v7(), &payer, &payees[n % 2], "0.01", "USD")).collect();
    let call = || Call::post("/v1/transfers:batch", &json!({"transfers": items}));
    let mut found = results(&stage.api.expect(call(), "200").await?.body, &items)?;
    // A machine may be too slow for all of it in the time of one request. What is left over is done by the next.
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
    ensure!(stage.posted(&payer).await? == "-100.00", "not all was paid");
    let accounts: Vec<Value> =
        (0..LARGEST).map(|n| json!({"id": format!("{{{n}}}largest"), "asset": "USD"})).collect();
    let call = Call::post("/v1/accounts:batch", &json!({"accounts": accounts}));
    let reply = stage.api.expect(call, "200").await?.body;
    let created = reply["results"].as_array().into_iter().flatten().filter(|result| result["status"] == "created");
    ensure!(created.count() == LARGEST, "not all accounts were created");
    Ok(())
}

//! Tests of lists of accounts over all shards, and of sums of balances.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::client::account_path;

use super::{
    api::Call,
    callers::{items, results_are},
    stage::{Stage, order},
};

/// The length of a page. No list here has a multiple of this length, so the last page is shorter.
const PAGE: usize = 7;

/// Pages stay in the order of bytes while accounts are opened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_in_the_order_of_bytes_over_all_shards() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let begin = format!("lists{}.", stage.word());
    let mut ids: BTreeSet<String> = BTreeSet::new();
    for first in ["-", ".", "0", "9", ":", "@", "A", "Z", "_", "a", "z", "{", "}"] {
        ids.extend(["", "-", "Z", "a", "}"].map(|rest| format!("{begin}{first}{rest}")));
    }
    open(&stage, ids.iter().map(String::as_str)).await?;
    let whole = list(&stage, &format!("prefix={begin}&limit=500")).await?;
    expect!(ids.iter().eq(&whole.ids), "{:?}", whole.ids);
    let shards: BTreeSet<String> = whole.accounts.iter().map(|account| account["shard"].to_string()).collect();
    ensure!(shards.len() == 3, "the accounts should live on three shards, not on {shards:?}");
    for account in whole.accounts.iter().step_by(PAGE) {
        let id = account["id"].as_str().unwrap_or_default();
        ensure!(*account == stage.show(id).await?, "listed and read differently: {account}");
    }

    let (mut walked, mut cursor, mut expected) = (Vec::new(), String::new(), ids.clone());
    loop {
        let page = list(&stage, &format!("prefix={begin}&limit={PAGE}{cursor}")).await?;
        walked.extend(page.ids.iter().cloned());
        ensure!(walked.len() <= 4 * ids.len(), "the pages do not end");
        let Some(next) = page.next else { break };
        ensure!(page.ids.len() == PAGE, "a short page before the end: {:?}", page.ids);
        cursor = format!("&cursor={next}");
        // Opens one account before this page, which the walk has passed, and one right behind it, which the walk meets.
        let (missed, met) = (format!("{begin}--{}", walked.len()), format!("{}-", page.ids[PAGE - 1]));
        open(&stage, [missed.as_str(), met.as_str()]).await?;
        expected.insert(met);
    }
    ensure!(expected.iter().eq(&walked), "the pages together are {walked:?}, not {expected:?}");

    // A page has 50 accounts by default. A cursor continues with any number of accounts.
    let by_default = list(&stage, &format!("prefix={begin}")).await?;
    ensure!(by_default.ids.len() == 50, "{} by default", by_default.ids.len());
    let next = by_default.next.context("expected a cursor")?;
    let rest = list(&stage, &format!("prefix={begin}&limit=1&cursor={next}")).await?;
    expect!(rest.ids.first() > by_default.ids.last(), "{rest:?}");
    stage.finish().await
}

/// The braces of a hash tag are part of the prefix. A cursor belongs to its prefix.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_by_prefix_has_the_accounts_that_begin_with_it() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let word = stage.word();
    let id = |before: &str, after: &str| format!("{before}{word}{after}");
    let under_tag = [id("{lists", "}:a"), id("{lists", "}:b")];
    let [digit, upper, open_brace] = [id("{lists", "0}:c"), id("{Lists", "}:d"), id("{lists", "")];
    open(&stage, under_tag.iter().chain([&digit, &upper, &open_brace]).map(String::as_str)).await?;
    let tag = id("%7Blists", "%7D");
    let found = list(&stage, &format!("prefix={tag}")).await?;
    expect!(found.ids == under_tag && found.next.is_none(), "{found:?}");
    let shards: BTreeSet<String> = found.accounts.iter().map(|account| account["shard"].to_string()).collect();
    ensure!(shards.len() == 1, "one tag on several shards: {found:?}");
    let found = list(&stage, &id("prefix=%7Blists", "")).await?;
    expect!(found.ids == [open_brace, digit, under_tag[0].clone(), under_tag[1].clone()], "{found:?}");
    // A whole id is a prefix. No list has the system's accounts. The list of a prefix without accounts is an empty page.
    ensure!(list(&stage, &format!("prefix={tag}:a")).await?.ids == under_tag[..1], "a whole id");
    for nothing in ["@", "@in-transit:USD", &"n".repeat(128), &format!("{tag}:ab")] {
        let found = list(&stage, &format!("prefix={nothing}")).await?;
        expect!(found.ids.is_empty() && found.next.is_none(), "{nothing}: {found:?}");
    }
    let everything = list(&stage, "limit=500").await?;
    ensure!(everything.ids.iter().all(|id| !id.starts_with('@')), "a system's account is listed");

    let next = list(&stage, &format!("prefix={tag}&limit=1")).await?.next.context("expected a cursor")?;
    let last = list(&stage, &format!("prefix={tag}&limit=1&cursor={next}")).await?;
    expect!(last.ids == under_tag[1..] && last.next.is_none(), "{last:?}");
    for query in [format!("cursor={next}"), format!("prefix={tag}:&cursor={next}"), format!("prefix=x&cursor={next}")]
    {
        let call = Call::get(&format!("/v1/accounts?{query}"));
        stage.api.expect(call, "400 invalid_parameter at=?cursor").await?;
    }
    // A cursor of entries is refused in a list of accounts.
    stage.api.expect(Call::get("/v1/accounts?cursor=v7"), "400 invalid_parameter at=?cursor").await?;
    stage.finish().await
}

/// A master account and its sub-accounts live on several shards and are added up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_are_the_sums_of_the_accounts_with_a_prefix() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let word = stage.word();
    let prefix = &format!("master{word}.");
    let [all, yen] = ["all", "yen"].map(|name| format!("{prefix}{name}"));
    let other = format!("Master{word}.other");
    let world = stage.account(0, "USD overdraft=unlimited").await?;
    let yen_world = stage.account(1, "JPY overdraft=unlimited").await?;
    ensure!(sums(&stage, prefix).await?.is_empty(), "there is a sum before an account is opened");
    let subs: Vec<String> = (0..12).map(|n| format!("{prefix}sub{n}")).collect();
    open(&stage, subs.iter().chain([&all, &other]).map(String::as_str)).await?;
    stage.open(&yen, "JPY", json!({})).await?;
    expect!(
        sums(&stage, prefix).await? == of(&[("JPY", "0", 1), ("USD", "0.00", 13)]),
        "{:?}",
        sums(&stage, prefix).await?
    );
    stage.pay(&world, &all, "1200.00", "USD").await?;
    stage.pay(&world, &other, "1.00", "USD").await?;
    stage.pay(&yen_world, &yen, "7", "JPY").await?;
    let expected = of(&[("JPY", "7", 1), ("USD", "1200.00", 13)]);
    expect!(sums(&stage, prefix).await? == expected, "{:?}", sums(&stage, prefix).await?);
    // Transfers among the accounts, also between shards, leave the sums as they are. A closed account counts.
    for sub in &subs {
        stage.pay(&all, sub, "99.99", "USD").await?;
    }
    expect!(sums(&stage, prefix).await? == expected, "{:?}", sums(&stage, prefix).await?);
    stage.pay(&subs[0], &world, "99.99", "USD").await?;
    let closed = Call::patch(&account_path(&subs[0]), &json!({"status": "closed"}));
    stage.api.expect(closed, "200 closed").await?;
    expect!(
        sums(&stage, prefix).await? == of(&[("JPY", "7", 1), ("USD", "1100.01", 13)]),
        "{:?}",
        sums(&stage, prefix).await?
    );
    ensure!(sums(&stage, &all).await? == of(&[("USD", "0.12", 1)]), "expected the sum of one account");
    stage.api.expect(order(&all, &world, "0.13", "USD"), "422 insufficient_funds side=debit").await?;
    // Money between shards is in the system's accounts, which no sum counts.
    ensure!(sums(&stage, "@").await?.is_empty(), "a sum counts the system's accounts");
    stage.finish().await
}

#[derive(Debug)]
struct Page {
    ids: Vec<String>,
    accounts: Vec<Value>,
    next: Option<String>,
}

async fn list(stage: &Stage, query: &str) -> anyhow::Result<Page> {
    let body = stage.api.expect(Call::get(&format!("/v1/accounts?{query}")), "200").await?.body;
    let accounts = items(&body)?.clone();
    expect!(body["has_more"] == body["next_cursor"].is_string(), "{body}");
    let ids = accounts.iter().filter_map(|account| account["id"].as_str().map(str::to_owned)).collect();
    Ok(Page { ids, accounts, next: body["next_cursor"].as_str().map(str::to_owned) })
}

/// Opens accounts in USD.
async fn open(stage: &Stage, ids: impl IntoIterator<Item = &str>) -> anyhow::Result<()> {
    let accounts: Vec<Value> = ids.into_iter().map(|id| json!({"id": id, "asset": "USD"})).collect();
    let body = json!({ "accounts": accounts });
    let reply = stage.api.expect(Call::post("/v1/accounts:batch", &body), "200").await?.body;
    results_are(&reply, "created")?;
    Ok(())
}

/// The posted amount and the number of accounts of each asset.
type Sums = BTreeMap<String, (String, u64)>;

async fn sums(stage: &Stage, prefix: &str) -> anyhow::Result<Sums> {
    let body = stage.api.expect(Call::get(&format!("/v1/balances?prefix={prefix}")), "200").await?.body;
    expect!(body["partial"] == false && body["missing_shards"] == json!([]), "{body}");
    let data = items(&body)?;
    expect!(data.is_sorted_by_key(|sum| sum["asset"].to_string()), "{body}");
    let read = |sum: &Value| {
        let scale = sum["posted"].as_str()?.split_once('.').map_or(0, |(_, fraction)| fraction.len());
        let nothing_held = if scale == 0 { "0" } else { "0.00" };
        (sum["held"] == nothing_held).then_some(())?;
        Some((sum["asset"].as_str()?.to_owned(), (sum["posted"].as_str()?.to_owned(), sum["accounts"].as_u64()?)))
    };
    data.iter().map(read).collect::<Option<Sums>>().with_context(|| body.to_string())
}

fn of(sums: &[(&str, &str, u64)]) -> Sums {
    sums.iter().map(|(asset, posted, accounts)| ((*asset).to_owned(), ((*posted).to_owned(), *accounts))).collect()
}

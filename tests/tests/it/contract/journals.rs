//! Tests of journals: pages in both directions while entries are added, windows in time, and balances at a time.

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::client::account_path;

use super::{
    api::Call,
    callers::{items, results_are},
    stage::{Shard, Stage},
};

/// So many transfers that an account gets several waypoints, which are 64 versions apart.
const TRANSFERS: usize = 200;
/// The length of a page. No journal here has a multiple of this length, so the last page is shorter.
const PAGE: usize = 37;

struct Journal {
    account: String,
    other: String,
    /// All entries, oldest first.
    entries: Vec<Value>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_of_local_transfers_is_read_in_pages_and_at_times() -> anyhow::Result<()> {
    is_read_in_pages_and_at_times(0).await
}

/// Sagas write these entries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_of_transfers_between_shards_is_read_in_pages_and_at_times() -> anyhow::Result<()> {
    is_read_in_pages_and_at_times(1).await
}

async fn is_read_in_pages_and_at_times(other_shard: Shard) -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let journal = write(&stage, other_shard).await?;
    adds_up(&journal)?;
    pages(&stage, &journal).await?;
    windows(&stage, &journal).await?;
    balances(&stage, &journal).await?;
    stage.finish().await
}

async fn write(stage: &Stage, other_shard: Shard) -> anyhow::Result<Journal> {
    let account = stage.account(0, "USD overdraft=unlimited").await?;
    let other = stage.account(other_shard, "USD overdraft=unlimited").await?;
    for chunk in 0..4 {
        let items: Vec<Value> = (0..TRANSFERS / 4)
            .map(|n| {
                let amount = format!("{}.0{}", chunk + 1, n % 9 + 1);
                let (debit, credit) = if n % 3 == 0 { (&other, &account) } else { (&account, &other) };
                super::stage::terms(uuid::Uuid::now_v7(), debit, credit, &amount, "USD")
            })
            .collect();
        let reply =
            stage.api.expect(Call::post("/v1/transfers:batch", &serde_json::json!({"transfers": items})), "200");
        let reply = reply.await?.body;
        results_are(&reply, "posted")?;
    }
    let page = page(stage, &account, "order=asc&limit=500").await?;
    ensure!(page["has_more"] == false && page["next_cursor"].is_null(), "the journal should have one page: {page}");
    let entries = items(&page)?.clone();
    Ok(Journal { account, other, entries })
}

async fn page(stage: &Stage, account: &str, query: &str) -> anyhow::Result<Value> {
    let path = format!("{}/entries?{query}", account_path(account));
    Ok(stage.api.expect(Call::get(&path), "200").await?.body)
}

/// Checks that versions have no gap, that positions and times grow, and that balances follow from amounts.
fn adds_up(journal: &Journal) -> anyhow::Result<()> {
    // The first entry opens the account.
    ensure!(journal.entries.len() == TRANSFERS + 1, "{} entries", journal.entries.len());
    let mut posted = 0;
    for (index, entry) in journal.entries.iter().enumerate() {
        ensure!(entry["version"] == index + 1, "version of entry {index}: {entry}");
        let is_transfer = ["posted", "reserved", "compensated"].iter().any(|kind| entry["kind"] == *kind);
        expect!(is_transfer == entry["transfer_id"].is_string(), "{entry}");
        expect!(!is_transfer || entry["counterparty"] == journal.other.as_str(), "{entry}");
        posted += minor(&entry["amount"])?;
        ensure!(minor(&entry["posted"])? == posted && entry["held"] == "0.00", "should hold {posted}: {entry}");
    }
    for pair in journal.entries.windows(2) {
        let time = |entry: &Value| entry["created_at"].as_str().unwrap_or_default().to_owned();
        ensure!(position(&pair[0])? < position(&pair[1])?, "positions of {pair:?}");
        ensure!(time(&pair[0]) <= time(&pair[1]), "times of {pair:?}");
    }
    Ok(())
}

fn position(entry: &Value) -> anyhow::Result<i64> {
    let text = entry["position"].as_str().with_context(|| format!("no position in {entry}"))?;
    Ok(text.parse()?)
}

fn minor(amount: &Value) -> anyhow::Result<i64> {
    let text = amount.as_str().with_context(|| format!("{amount} is not an amount"))?;
    Ok(text.replace('.', "").parse()?)
}

/// Walks through all pages in both directions while entries are added.
async fn pages(stage: &Stage, journal: &Journal) -> anyhow::Result<()> {
    for ascending in [true, false] {
        let order = if ascending { "order=asc" } else { "order=desc" };
        let (mut walked, mut cursor) = (Vec::new(), String::new());
        loop {
            let found = page(stage, &journal.account, &format!("{order}&limit={PAGE}{cursor}")).await?;
            let data = items(&found)?;
            walked.extend(data.iter().cloned());
            expect!(found["has_more"] == found["next_cursor"].is_string(), "{found}");
            let Some(next) = found["next_cursor"].as_str() else { break };
            ensure!(data.len() == PAGE, "a short page before the end: {found}");
            ensure!(walked.len() < 2 * journal.entries.len(), "the pages do not end");
            cursor = format!("&cursor={next}");
            stage.pay(&journal.account, &journal.other, "0.01", "USD").await?;
        }
        // Entries that were added meanwhile are at the end in ascending order, and before the first page in descending order.
        let mut expected = journal.entries.clone();
        if !ascending {
            let begun = walked.len().saturating_sub(expected.len());
            expected.reverse();
            walked.drain(..begun);
        }
        walked.truncate(expected.len());
        ensure!(walked == expected, "{order}: the pages together are not all entries in order");
    }
    let by_default = page(stage, &journal.account, "").await?;
    let data = items(&by_default)?;
    expect!(data.len() == 50 && data[0]["version"].as_i64() > data[49]["version"].as_i64(), "{by_default}");
    Ok(())
}

/// `from` is included, `to` is not.
async fn windows(stage: &Stage, journal: &Journal) -> anyhow::Result<()> {
    let time = |index: usize| journal.entries[index]["created_at"].as_str().unwrap_or_default();
    let (from, to) = (time(TRANSFERS / 3), time(2 * TRANSFERS / 3));
    let within: Vec<&Value> = journal
        .entries
        .iter()
        .filter(|entry| entry["created_at"].as_str().is_some_and(|at| (from..to).contains(&at)))
        .collect();
    ensure!(!within.is_empty(), "nothing between {from} and {to}");
    let found = page(stage, &journal.account, &format!("order=asc&limit=500&from={from}&to={to}")).await?;
    expect!(items(&found)?.iter().eq(within.iter().copied()), "{found}");
    let found = page(stage, &journal.account, &format!("limit=500&from={from}&to={to}")).await?;
    expect!(items(&found)?.iter().rev().eq(within.iter().copied()), "{found}");
    for empty in
        [format!("from={to}&to={from}"), "to=2001-01-01T00:00:00Z".to_owned(), "from=2999-01-01T00:00:00Z".to_owned()]
    {
        let found = page(stage, &journal.account, &empty).await?;
        expect!(found["data"] == serde_json::json!([]) && found["has_more"] == false, "{empty}: {found}");
    }
    // The same moment with another offset gives the same entry. Then the test reads the window in pages.
    let elsewhere = from.replace('Z', "-00:00");
    let found = page(stage, &journal.account, &format!("order=asc&limit=1&from={elsewhere}")).await?;
    ensure!(found["data"][0] == *within[0], "from {elsewhere}: {found}");
    let (mut walked, mut cursor) = (Vec::new(), String::new());
    loop {
        let found = page(stage, &journal.account, &format!("limit={PAGE}&from={from}&to={to}{cursor}")).await?;
        walked.extend(items(&found)?.iter().cloned());
        let Some(next) = found["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    ensure!(walked.iter().rev().eq(within), "the pages of the window together are not the window");
    Ok(())
}

/// At the time of an entry, the balance is that of the last entry of that time. Before the first entry, it is zero.
async fn balances(stage: &Stage, journal: &Journal) -> anyhow::Result<()> {
    let at = async |time: &str| {
        let path = format!("{}/balance?at={time}", account_path(&journal.account));
        anyhow::Ok(stage.api.expect(Call::get(&path), "200").await?.body)
    };
    let before = at("2001-01-01T00:00:00Z").await?;
    expect!(before["version"] == 0 && before["posted"] == "0.00" && before["available"] == "0.00", "{before}");
    for index in (0..journal.entries.len()).step_by(11) {
        let time = journal.entries[index]["created_at"].as_str().unwrap_or_default();
        let last = journal
            .entries
            .iter()
            .rfind(|entry| entry["created_at"] == time)
            .with_context(|| format!("expected an entry of {time}"))?;
        let balance = at(time).await?;
        for member in ["version", "posted", "held"] {
            ensure!(balance[member] == last[member], "{member} at {time}: {balance}, the entry is {last}");
        }
        expect!(balance["at"] == time && balance["account"] == journal.account.as_str(), "{balance}");
    }
    let path = account_path(&journal.account);
    let now = stage.api.expect(Call::get(&format!("{path}/balance")), "200").await?.body;
    let account = stage.show(&journal.account).await?;
    for member in ["version", "posted", "held", "available", "asset"] {
        ensure!(now[member] == account[member], "{member}: {now}, the account is {account}");
    }
    Ok(())
}

//! Tests of answers in CSV. They have the same items as the answers in JSON.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{
    client::{account_path, escaped},
    seed::Seed,
};

use super::{
    callers::{CSV, CsvAnswer, items, results_are, text},
    reports::{History, statement_path},
    stage::Stage,
};

/// More accounts than one part of a whole list has. A part has up to 2,000 accounts of each of the three shards.
const MANY_ACCOUNTS: usize = 6_500;

impl CsvAnswer {
    /// Checks that the lines have the members of these items, in this order. In the columns `guarded`, an apostrophe stands before a first
    /// character that begins a formula in spreadsheets.
    fn has(&self, items: &[Value], guarded: &[&str]) -> anyhow::Result<()> {
        ensure!(self.lines.len() == items.len(), "{} lines, not {}", self.lines.len(), items.len());
        for (line, item) in self.lines.iter().zip(items) {
            for (name, found) in self.header.iter().zip(line) {
                let mut expected = cell(&item[name]);
                if guarded.contains(&name.as_str()) && expected.starts_with(['-', '@', '=', '+']) {
                    expected = format!("'{expected}");
                }
                ensure!(*found == expected, "{name}: {found:?}, not {expected:?}");
            }
        }
        Ok(())
    }
}

/// A JSON member as a table shows it.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(members) if members.is_empty() => String::new(),
        other => other.to_string(),
    }
}

/// The router reads such a list in several parts, for JSON and for CSV.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_list_has_the_accounts_of_all_its_parts() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let caller = stage.caller();
    let prefix = format!("many{}:", stage.word());
    let accounts: Vec<Value> = (0..MANY_ACCOUNTS)
        .map(|n| json!({"id": format!("{prefix}{:07}", n * 7_919 % 1_000_003), "asset": "EUR"}))
        .collect();
    let opened = caller.post("/v1/accounts:batch", &json!({"accounts": accounts}), "200").await?;
    results_are(&opened, "created")?;
    let mut ids: Vec<String> = accounts.iter().map(|one| cell(&one["id"])).collect();
    ids.sort();

    let now = caller.get(&format!("/v1/accounts?at=2100-01-01T00:00:00Z&prefix={prefix}")).await?;
    expect!(now["accounts"] == MANY_ACCOUNTS, "{}", now["accounts"]);
    let found: Vec<String> = items(&now)?.iter().map(|one| cell(&one["id"])).collect();
    ensure!(found == ids, "{} accounts, not those that were opened, or not in order", found.len());

    let table = caller.csv(&format!("/v1/accounts?at={}&prefix={prefix}", text(&now, "at")?)).await?;
    ensure!(table.body.starts_with("id,asset,posted,held,available,overdraft,version,created_at,updated_at\r\n"));
    table.has(items(&now)?, &["id"])?;

    let table = caller.csv(&format!("/v1/accounts?prefix={prefix}")).await?;
    let pages = caller.walk(&format!("/v1/accounts?prefix={prefix}&limit=500")).await?;
    expect!(pages.len() == MANY_ACCOUNTS, "{}", pages.len());
    table.has(&pages, &["id", "shard"])?;

    let sums = format!("/v1/balances?prefix={prefix}");
    let table = caller.csv(&sums).await?;
    expect!(table.header == ["asset", "posted", "held", "accounts"], "{:?}", table.header);
    table.has(items(&caller.get(&sums).await?)?, &[])?;
    stage.finish().await
}

/// A statement in CSV has no pages.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_has_all_entries_of_its_window() -> anyhow::Result<()> {
    let seed = Seed::announce("statements in CSV");
    let stage = Stage::shared().await?;
    let caller = stage.caller();
    let history = History::write(&stage, &mut seed.random()).await?;
    for (account, entries) in &history.statements {
        let table = caller.csv(&statement_path(account)).await?;
        table.has(entries, &["counterparty", "ordered_by"]).with_context(|| account.clone())?;
        let middle = text(&entries[entries.len() / 2], "created_at")?;
        let path = format!("{}/entries?from={middle}", account_path(account));
        let table = caller.csv(&path).await?;
        expect!(!table.header.contains(&"metadata".to_owned()), "{:?}", table.header);
        let newest_first: Vec<Value> =
            entries.iter().rev().filter(|entry| entry["created_at"].as_str() >= Some(middle)).cloned().collect();
        table.has(&newest_first, &["counterparty", "ordered_by"]).with_context(|| path)?;
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cell_is_a_formula_and_every_text_can_be_read_back() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let id = format!("-formula{}", stage.word());
    let metadata =
        json!({"=cmd|' /C calc'!A0": "=HYPERLINK(\"http://x\")", "say": "\"so\", they\r\nsaid", "+1": "@SUM(A1)"});
    stage.open(&id, "EUR", json!({"metadata": metadata})).await?;
    let table = stage.caller().csv(&format!("/v1/accounts?prefix={}", escaped(&id))).await?;
    let line = table.lines.first().context("expected a line of the table")?;
    expect!(line[0] == format!("'{id}"), "{line:?}");
    let column = table.header.iter().position(|name| name == "metadata").context("expected a column metadata")?;
    let read: Value = serde_json::from_str(&line[column])?;
    expect!(read == metadata && line[column].starts_with('{'), "{line:?}");
    for cell in table.lines.iter().flatten() {
        let is_amount = cell.strip_prefix('-').unwrap_or(cell).chars().all(|c| c.is_ascii_digit() || c == '.');
        expect!(is_amount || !cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_for_csv_is_answered_with_a_problem_in_json() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let account = account_path(&stage.account(0, "EUR").await?);
    let unopened = account_path(&stage.name(0)?);
    for (path, status, code) in [
        ("/v1/accounts?limit=5".to_owned(), 400, "invalid_parameter"),
        (format!("{account}/entries?limit=5"), 400, "invalid_parameter"),
        (format!("{account}/entries?cursor=v1-00000000"), 400, "invalid_parameter"),
        (format!("{unopened}/entries"), 404, "account_not_found"),
        ("/v1/balances?at=never".to_owned(), 400, "invalid_parameter"),
    ] {
        let reply = stage.caller().text(&path, "text/csv").await?;
        let problem: Value = serde_json::from_str(&reply.body).with_context(|| reply.body.clone())?;
        expect!(reply.status == status && problem["code"] == code, "{path}: {} {problem}", reply.status);
        let media_type = reply.headers.get("content-type").context("expected a content type")?;
        expect!(media_type == "application/problem+json", "{path}: {media_type:?}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_accept_header_asks_for_csv_or_json() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    for (accept, media_type) in [
        ("text/csv", CSV),
        ("application/json, text/csv;q=0.5", CSV),
        ("text/csv;q=0", "application/json"),
        ("*/*", "application/json"),
    ] {
        let reply = stage.caller().text("/v1/balances", accept).await?;
        let found = reply.headers.get("content-type").context("expected a content type")?;
        expect!(reply.status == 200 && found == media_type, "{accept}: {found:?}");
    }
    stage.finish().await
}

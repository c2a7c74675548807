//! Answers with `Accept: text/csv`.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::client::account_path;

use super::{MANY_ACCOUNTS, MEDIA_TYPE, Setting, Table, history::History, items, statement_path, text};

/// A JSON member as the cell of a table shows it.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Object(members) if members.is_empty() => String::new(),
        other => other.to_string(),
    }
}

/// The table has these items, member by member. `guarded`: columns of text, in which an apostrophe may guard the first character.
fn has(table: &Table, items: &[Value], guarded: &[&str]) -> anyhow::Result<()> {
    ensure!(table.lines.len() == items.len(), "{} lines, not {}", table.lines.len(), items.len());
    for (line, item) in table.lines.iter().zip(items) {
        for (name, found) in table.header.iter().zip(line) {
            let mut expected = cell(&item[name]);
            if guarded.contains(&name.as_str()) && expected.starts_with(['-', '@', '=', '+']) {
                expected = format!("'{expected}");
            }
            ensure!(*found == expected, "{name}: {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

/// Several parts make one answer, in JSON and in CSV.
pub async fn of_many_accounts_are_whole(setting: &Setting) -> anyhow::Result<()> {
    let accounts: Vec<Value> = (0..MANY_ACCOUNTS)
        .map(|n| json!({"id": format!("many:{:07}", n * 7_919 % 1_000_003), "asset": "EUR"}))
        .collect();
    let opened = setting.post("/v1/accounts:batch", json!({"accounts": accounts}), "200").await?;
    let results = opened["results"].as_array().context("no results")?;
    ensure!(results.iter().all(|result| result["status"] == "created"), "{opened}");
    let mut ids: Vec<String> = accounts.iter().map(|one| cell(&one["id"])).collect();
    ids.sort();

    let now = setting.get("/v1/accounts?at=2100-01-01T00:00:00Z&prefix=many:").await?;
    ensure!(now["accounts"] == MANY_ACCOUNTS, "{}", now["accounts"]);
    let found: Vec<String> = items(&now)?.iter().map(|one| cell(&one["id"])).collect();
    ensure!(found == ids, "{} accounts, not those that were opened, or not in order", found.len());

    let at = text(&now, "at")?;
    let table = setting.csv(&format!("/v1/accounts?at={at}&prefix=many:"), &setting.operator).await?;
    ensure!(table.body.starts_with("id,asset,posted,held,available,overdraft,version,created_at,updated_at\r\n"));
    has(&table, items(&now)?, &["id"])?;

    let table = setting.csv("/v1/accounts?prefix=many:", &setting.operator).await?;
    let pages = setting.walk("/v1/accounts?prefix=many:&limit=500", &setting.operator).await?;
    ensure!(pages.len() == MANY_ACCOUNTS, "{}", pages.len());
    has(&table, &pages, &["id", "shard"])?;

    let table = setting.csv("/v1/balances", &setting.operator).await?;
    ensure!(table.header == ["asset", "posted", "held", "accounts"], "{:?}", table.header);
    has(&table, items(&setting.get("/v1/balances").await?)?, &[])
}

/// A statement as a table has all entries of its window, whatever the size of pages.
pub async fn are_the_statements(setting: &Setting, history: &History) -> anyhow::Result<()> {
    for (account, entries) in &history.statements {
        let table = setting.csv(&statement_path(account).replace("limit=70&", ""), &setting.operator).await?;
        has(&table, entries, &["counterparty", "ordered_by"]).with_context(|| account.clone())?;
        let middle = text(&entries[entries.len() / 2], "created_at")?;
        let path = format!("{}/entries?from={middle}", account_path(account));
        let table = setting.csv(&path, &setting.operator).await.with_context(|| path.clone())?;
        ensure!(!table.header.contains(&"metadata".to_owned()), "{:?}", table.header);
        let newest_first: Vec<Value> =
            entries.iter().rev().filter(|entry| entry["created_at"].as_str() >= Some(middle)).cloned().collect();
        has(&table, &newest_first, &["counterparty", "ordered_by"]).with_context(|| path)?;
    }
    Ok(())
}

/// No text is taken for a formula, and every text can be read back.
pub async fn have_no_formula(setting: &Setting) -> anyhow::Result<()> {
    let metadata =
        json!({"=cmd|' /C calc'!A0": "=HYPERLINK(\"http://x\")", "say": "\"so\", they\r\nsaid", "+1": "@SUM(A1)"});
    setting.open("-formula", json!({"metadata": metadata})).await?;
    let table = setting.csv("/v1/accounts?prefix=-formula", &setting.operator).await?;
    let line = table.lines.first().context("no line")?;
    ensure!(line[0] == "'-formula", "{line:?}");
    let column = table.header.iter().position(|name| name == "metadata").context("no metadata")?;
    let read: Value = serde_json::from_str(&line[column])?;
    ensure!(read == metadata && line[column].starts_with('{'), "{line:?}");
    for cell in table.lines.iter().flatten() {
        let is_amount = cell.strip_prefix('-').unwrap_or(cell).chars().all(|c| c.is_ascii_digit() || c == '.');
        ensure!(is_amount || !cell.starts_with(['=', '+', '-', '@', '\t', '\r']), "{cell:?}");
    }
    Ok(())
}

/// What CSV cannot be sent for is a problem in JSON; who does not ask for CSV gets JSON.
pub async fn are_refused_as_problems(setting: &Setting) -> anyhow::Result<()> {
    for (path, status, code) in [
        ("/v1/accounts?limit=5", 400, "invalid_parameter"),
        ("/v1/accounts/bank:0/entries?limit=5", 400, "invalid_parameter"),
        ("/v1/accounts/bank:0/entries?cursor=v1-00000000", 400, "invalid_parameter"),
        ("/v1/accounts/none/entries", 404, "account_not_found"),
        ("/v1/balances?at=never", 400, "invalid_parameter"),
    ] {
        let reply = setting.text(path, "text/csv", &setting.operator).await?;
        let problem: Value = serde_json::from_str(&reply.body).with_context(|| reply.body.clone())?;
        ensure!(reply.status == status && problem["code"] == code, "{path}: {} {problem}", reply.status);
        let media_type = reply.headers.get("content-type").context("no content type")?;
        ensure!(media_type == "application/problem+json", "{path}: {media_type:?}");
    }
    for (accept, media_type) in [
        ("text/csv", MEDIA_TYPE),
        ("application/json, text/csv;q=0.5", MEDIA_TYPE),
        ("text/csv;q=0", "application/json"),
        ("*/*", "application/json"),
    ] {
        let reply = setting.text("/v1/balances", accept, &setting.operator).await?;
        let found = reply.headers.get("content-type").context("no content type")?;
        ensure!(reply.status == 200 && found == media_type, "{accept}: {found:?}");
    }
    Ok(())
}

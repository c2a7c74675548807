//! `GET /v1/accounts?at` and `GET /v1/balances?at`.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{Setting, history::History, items};

/// What accounts held at an instant is their newest entry then, and the sums are the sums of that.
pub async fn agrees_with_statements(setting: &Setting, history: &History) -> anyhow::Result<()> {
    for at in &history.instants {
        for prefix in ["", "bank:"] {
            compare(setting, history, at, prefix).await.with_context(|| format!("at {at}, prefix {prefix:?}"))?;
        }
    }
    // Of a time to come nothing is known but what is there now.
    let now = setting.get("/v1/accounts?at=2100-01-01T00:00:00Z").await?;
    for account in items(&now)?
        .iter()
        .filter(|account| history.statements.contains_key(account["id"].as_str().unwrap_or_default()))
    {
        let newest = account["id"].as_str().and_then(|id| history.statements[id].last());
        ensure!(newest.is_some_and(|newest| newest["version"] == account["version"]), "{account}: {newest:?}");
    }
    ensure!(now["at"].as_str() < Some("2100"), "{}", now["at"]);
    let operator = &setting.operator;
    setting.read("/v1/accounts?at=2026-01-01T00:00:00Z&limit=5", operator, "400 invalid_parameter at=?limit").await?;
    setting.read("/v1/accounts?at=yesterday", operator, "400 invalid_parameter at=?at").await?;
    setting.read("/v1/balances?at=2026-13-01T00:00:00Z", operator, "400 invalid_parameter at=?at").await?;
    Ok(())
}

async fn compare(setting: &Setting, history: &History, at: &str, prefix: &str) -> anyhow::Result<()> {
    let mut expected = Vec::new();
    let (mut posted, mut held) = (0, 0);
    for (id, entries) in history.statements.iter().filter(|(id, _)| id.starts_with(prefix)) {
        let Some(last) = entries.iter().rfind(|entry| entry["created_at"].as_str() <= Some(at)) else { continue };
        posted += cents(&last["posted"])?;
        held += cents(&last["held"])?;
        expected.push(json!([id, last["posted"], last["held"], last["version"], last["created_at"]]));
    }
    let then = setting.get(&format!("/v1/accounts?at={at}&prefix={prefix}")).await?;
    let found: Vec<Value> = items(&then)?
        .iter()
        .map(|one| json!([one["id"], one["posted"], one["held"], one["version"], one["updated_at"]]))
        .collect();
    ensure!(found == expected, "{then}\n expected {expected:?}");
    ensure!(then["accounts"] == expected.len() && then["at"] == at, "{}, {}", then["accounts"], then["at"]);

    let sums = setting.get(&format!("/v1/balances?at={at}&prefix={prefix}")).await?;
    ensure!(sums["at"] == at && sums["partial"] == false, "{sums}");
    match items(&sums)?.as_slice() {
        [] => ensure!(expected.is_empty(), "{sums}"),
        [sum] => {
            let sum = (cents(&sum["posted"])?, cents(&sum["held"])?, sum["accounts"].as_u64());
            ensure!(sum == (posted, held, Some(expected.len() as u64)), "{sums}, not {posted} and {held}");
        }
        _ => anyhow::bail!("{sums}"),
    }
    Ok(())
}

/// An amount in cents.
fn cents(amount: &Value) -> anyhow::Result<i64> {
    Ok(amount.as_str().context("no amount")?.replace('.', "").parse()?)
}

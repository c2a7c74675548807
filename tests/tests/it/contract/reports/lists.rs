//! `GET /v1/transfers` and `GET /v1/holds`.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Setting, escaped, history::History, items, text};

/// More than the 2,000 entries that one request looks at.
const LONG: usize = 2_300;

/// A list has what the statement names, in its order, whatever the size of pages, and of that what the filter leaves.
pub async fn have_everything_once_and_in_order(setting: &Setting, history: &History) -> anyhow::Result<()> {
    for account in ["{shop42}:0", "bank:0"] {
        let statement = &history.statements[account];
        let middle = text(&statement[statement.len() / 2], "created_at")?;
        for (filter, wanted) in [
            (String::new(), None),
            ("&metadata=round=3".into(), Some(3)),
            ("&metadata=round".into(), None),
            ("&status=posted".into(), None),
            (format!("&from={middle}"), None),
            (format!("&to={middle}"), None),
        ] {
            for order in ["desc", "asc"] {
                let path = format!("/v1/transfers?account={}&limit=17&order={order}{filter}", escaped(account));
                let found = setting.walk(&path, &setting.operator).await.with_context(|| path.clone())?;
                let found: Vec<&str> = found.iter().map(|one| text(one, "id")).collect::<Result<_, _>>()?;
                let is_meant = |entry: &&Value| {
                    let in_window = match &filter {
                        window if window.starts_with("&from") => entry["created_at"].as_str() >= Some(middle),
                        window if window.starts_with("&to") => entry["created_at"].as_str() < Some(middle),
                        _ => true,
                    };
                    let round = wanted.map(|round: usize| json!(round.to_string()));
                    in_window && round.is_none_or(|round| entry["metadata"]["round"] == round)
                };
                let named = statement.iter().filter(|entry| entry["transfer_id"].is_string()).filter(is_meant);
                let mut expected: Vec<&str> =
                    named.map(|entry| text(entry, "transfer_id")).collect::<Result<_, _>>()?;
                if order == "desc" {
                    expected.reverse();
                }
                ensure!(!expected.is_empty() && found == expected, "{path}: {found:?}\n expected {expected:?}");
            }
        }
    }
    // An item is what reading the transfer shows, without the steps.
    let page = setting.get("/v1/transfers?account=bank:0&limit=5").await?;
    for listed in items(&page)? {
        let debit = escaped(text(listed, "debit")?);
        let mut read = setting
            .read(&format!("/v1/transfers/{}?debit={debit}", text(listed, "id")?), &setting.operator, "200 posted")
            .await?;
        read.as_object_mut().context("no object")?.remove("steps");
        let mut listed = listed.clone();
        listed.as_object_mut().context("no object")?.remove("steps");
        ensure!(read == listed, "{listed}\n {read}");
    }

    let holds = "/v1/holds?account=%7Bshop42%7D:0";
    let all = setting.walk(&format!("{holds}&limit=4"), &setting.operator).await?;
    let rounds: Vec<&Value> = all.iter().map(|hold| &hold["metadata"]["round"]).collect();
    ensure!(rounds == ["5", "4", "3", "2", "1", "0"], "{rounds:?}");
    let some = setting.get(&format!("{holds}&metadata=round=2&status=held")).await?;
    ensure!(items(&some)?.len() == 1 && some["data"][0]["metadata"]["round"] == "2", "{some}");
    ensure!(items(&setting.get("/v1/holds?account=bank:0").await?)?.is_empty(), "holds of another account");
    Ok(())
}

/// `status` is that of now, and tells apart what ended in different ways.
pub async fn are_filtered_by_the_state_of_now(setting: &Setting) -> anyhow::Result<()> {
    let payer = setting.open("states:payer", json!({})).await?;
    setting.open("states:payee", json!({})).await?;
    // One that takes nothing, on the other shard: the money is reserved and comes back.
    let mut full = None;
    for n in 0..64 {
        let id = format!("states:full{n}");
        let opened = setting.open(&id, json!({"max_balance": "0.00"})).await?;
        if opened["shard"] != payer["shard"] {
            full = Some(id);
            break;
        }
    }
    let full = full.context("no account on the other shard")?;
    let order = |id: Uuid, credit: &str| json!({"id": id, "debit": "states:payer", "credit": credit, "amount": "5.00", "asset": "EUR"});
    let [posted, reversed, refused, held, captured, released, capture, reversal] = [(); 8].map(|()| Uuid::now_v7());
    setting.post("/v1/transfers", order(posted, "states:payee"), "201 posted").await?;
    setting.post("/v1/transfers", order(reversed, "states:payee"), "201 posted").await?;
    setting.post(&format!("/v1/transfers/{reversed}/reverse"), json!({"id": reversal}), "201 posted").await?;
    setting.post("/v1/transfers", order(refused, &full), "422 limit_exceeded side=credit").await?;
    for hold in [held, captured, released] {
        setting.post("/v1/holds", order(hold, "states:payee"), "201 held").await?;
    }
    setting.post(&format!("/v1/holds/{captured}/capture"), json!({"id": capture}), "201 posted").await?;
    setting.post(&format!("/v1/holds/{released}/release"), json!({}), "200 released").await?;

    for (query, expected) in [
        ("transfers?account=states:payer", vec![capture, refused, reversal, reversed, posted]),
        ("transfers?account=states:payer&status=posted", vec![capture, reversal, posted]),
        ("transfers?account=states:payer&status=reversed", vec![reversed]),
        ("transfers?account=states:payer&status=rejected", vec![refused]),
        ("transfers?account=states:payer&status=pending", vec![]),
        ("transfers?account=states:payee", vec![capture, reversal, reversed, posted]),
        (&format!("transfers?account={full}"), vec![]),
        ("holds?account=states:payer", vec![released, captured, held]),
        ("holds?account=states:payer&status=held", vec![held]),
        ("holds?account=states:payer&status=captured", vec![captured]),
        ("holds?account=states:payer&status=released", vec![released]),
        ("holds?account=states:payer&status=expired", vec![]),
        ("holds?account=states:payee", vec![]),
    ] {
        let found = setting.walk(&format!("/v1/{query}{}", "&limit=2"), &setting.operator).await?;
        let ids: Vec<&Value> = found.iter().map(|one| &one["id"]).collect();
        let expected: Vec<Value> = expected.iter().map(|id| json!(id)).collect();
        ensure!(ids.iter().copied().eq(&expected), "{query}: {ids:?}, not {expected:?}");
    }
    for (query, expected) in [
        ("transfers", "400 invalid_parameter at=?account"),
        ("holds", "400 invalid_parameter at=?account"),
        ("transfers?account=@x", "400 invalid_id at=?account"),
        ("transfers?account=states:payer&status=would_post", "400 invalid_parameter at=?status"),
        ("holds?account=states:payer&status=posted", "400 invalid_parameter at=?status"),
        ("transfers?account=states:payer&metadata==x", "400 invalid_parameter at=?metadata"),
        ("transfers?account=states:payer&from=now", "400 invalid_parameter at=?from"),
        ("transfers?account=states:none", "404 account_not_found"),
    ] {
        setting.read(&format!("/v1/{query}"), &setting.operator, expected).await?;
    }
    Ok(())
}

/// A request looks at a bounded number of entries: it ends with an empty page and a cursor, and the next one goes on from there.
pub async fn end_a_request_that_finds_nothing(setting: &Setting) -> anyhow::Result<()> {
    setting.open("long:payer", json!({})).await?;
    setting.open("long:payee", json!({})).await?;
    let needle = Uuid::now_v7();
    let items_of = |metadata: Value, ids: Vec<Uuid>| -> Value {
        let order = |id: Uuid| json!({"id": id, "debit": "long:payer", "credit": "long:payee", "amount": "0.01", "asset": "EUR", "metadata": metadata});
        json!({"transfers": ids.into_iter().map(order).collect::<Vec<_>>()})
    };
    setting.post("/v1/transfers:batch", items_of(json!({"needle": "here"}), vec![needle]), "200").await?;
    let others = (0..LONG).map(|_| Uuid::now_v7()).collect();
    setting.post("/v1/transfers:batch", items_of(json!({}), others), "200").await?;
    for account in ["long:payer", "long:payee"] {
        let path = format!("/v1/transfers?account={account}&metadata=needle");
        let first = setting.get(&path).await?;
        ensure!(items(&first)?.is_empty() && first["has_more"] == true, "{first}");
        let second = setting.get(&format!("{path}&cursor={}", text(&first, "next_cursor")?)).await?;
        ensure!(items(&second)?.len() == 1 && second["data"][0]["id"] == json!(needle), "{second}");
        ensure!(second["has_more"] == false, "{second}");
    }
    Ok(())
}

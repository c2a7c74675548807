//! Tests of reports: what accounts held at an instant, sums, and lists of transfers and holds. The statements of the accounts are the
//! oracle.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use testkit::{
    audit::all_folded,
    client::{account_path, escaped},
    seed::{Random, Seed},
};
use uuid::Uuid;

use super::{
    callers::{Caller, items, results_are, text},
    stage::Stage,
};

const ROUNDS: usize = 6;
/// So many transfers that some accounts get more than two waypoints, which are 64 entries apart.
const TRANSFERS_A_ROUND: usize = 70;
/// A number of entries above the 2,000 that one request for a list of transfers looks at.
const LONG: usize = 2_300;

/// A posted transfer.
#[derive(Debug)]
struct Paid {
    id: Uuid,
    debit: String,
    credit: String,
    round: usize,
}

/// Random transfers and holds between new accounts of all shards.
#[derive(Debug)]
pub struct History {
    /// The beginning of the ids of accounts that live on several shards.
    bank: String,
    /// The beginning of the ids of accounts that have one hash tag. Holds debit the first of them.
    shop: String,
    paid: Vec<Paid>,
    /// The entries of each account with their metadata, oldest first.
    pub statements: BTreeMap<String, Vec<Value>>,
    /// Instants before, between and at entries.
    instants: Vec<String>,
}

impl Stage {
    /// A caller without a key, through the routers of the cluster.
    pub fn caller(&self) -> Caller<'_> {
        Caller { api: &self.api, key: None }
    }
}

impl History {
    /// Orders the transfers and holds, and reads the statements.
    pub async fn write(stage: &Stage, random: &mut Random) -> anyhow::Result<Self> {
        let caller = stage.caller();
        let word = stage.word();
        let (bank, shop) = (format!("bank{word}:"), format!("{{shop{word}}}:"));
        let mut accounts: Vec<String> = (0..4).map(|n| format!("{bank}{n}")).collect();
        accounts.extend((0..2).map(|n| format!("{shop}{n}")));
        // A spreadsheet would take this id for a formula.
        accounts.push(format!("-minus{word}"));
        let mut instants = vec!["2020-01-01T00:00:00.000000Z".to_owned()];
        for (index, id) in accounts.iter().enumerate() {
            let opened = stage.open(id, "EUR", json!({"overdraft": "unlimited"})).await?.body;
            if index % 4 == 0 {
                instants.push(text(&opened, "created_at")?.to_owned());
            }
        }
        let mut paid = Vec::new();
        for round in 0..ROUNDS {
            let mut batch = Vec::new();
            for _ in 0..TRANSFERS_A_ROUND {
                let payer = random.below(accounts.len());
                let payee = (payer + 1 + random.below(accounts.len() - 1)) % accounts.len();
                let (id, debit, credit) = (Uuid::now_v7(), accounts[payer].clone(), accounts[payee].clone());
                let amount = format!("{}.{:02}", random.below(50), 1 + random.below(99));
                let metadata = json!({"round": round.to_string(), "note": format!("\"n{payer}\",\n=1+1")});
                batch.push(json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR", "metadata": metadata}));
                paid.push(Paid { id, debit, credit, round });
            }
            let answer = caller.post("/v1/transfers:batch", &json!({"transfers": batch}), "200").await?;
            results_are(&answer, "posted")?;
            let hold = json!({"id": Uuid::now_v7(), "debit": format!("{shop}0"), "credit": format!("{bank}0"), "amount": "3.00",
                "asset": "EUR", "metadata": {"round": round.to_string()}});
            let hold = caller.post("/v1/holds", &hold, "201 held").await?;
            instants.push(text(&hold, "created_at")?.to_owned());
        }
        let mut statements = BTreeMap::new();
        for id in accounts {
            let entries = caller.walk(&format!("{}&limit=70", statement_path(&id))).await?;
            for _ in 0..2 {
                instants.push(text(&entries[random.below(entries.len())], "created_at")?.to_owned());
            }
            statements.insert(id, entries);
        }
        Ok(Self { bank, shop, paid, statements, instants })
    }
}

/// The statement of an account, oldest entry first, with metadata.
pub fn statement_path(account: &str) -> String {
    format!("{}/entries?order=asc&include=metadata", account_path(account))
}

/// The other account of a transfer may live on another shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_both_accounts_have_the_metadata_of_their_transfer() -> anyhow::Result<()> {
    let seed = Seed::announce("metadata of entries");
    let stage = Stage::shared().await?;
    let history = History::write(&stage, &mut seed.random()).await?;
    for Paid { id, debit, credit, round } in &history.paid {
        let round = round.to_string();
        for account in [debit, credit] {
            let entry = history.statements[account].iter().find(|entry| entry["transfer_id"] == id.to_string());
            let entry = entry.with_context(|| format!("no entry of {id} for {account}"))?;
            expect!(entry["metadata"]["round"] == round, "{account}: {entry}");
        }
    }
    let first_of = |prefix: &str| &history.statements[&format!("{prefix}0")];
    let holds = first_of(&history.shop).iter().filter(|entry| entry["kind"] == "held");
    let rounds: Vec<&Value> = holds.map(|entry| &entry["metadata"]["round"]).collect();
    expect!(rounds == ["0", "1", "2", "3", "4", "5"], "{rounds:?}");
    let opened = &first_of(&history.bank)[0];
    expect!(opened["kind"] == "opened" && opened.get("metadata").is_none(), "{opened}");
    stage.finish().await
}

/// The newest entry at an instant has what the account held then. Rows of the projections may be older or newer than the instant, so the
/// test looks before and after the journal is folded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_and_sums_at_an_instant_are_what_the_statements_say() -> anyhow::Result<()> {
    let seed = Seed::announce("accounts at an instant");
    let stage = Stage::shared().await?;
    let history = History::write(&stage, &mut seed.random()).await?;
    history.agrees_at_each_instant(stage.caller()).await.context("before the fold")?;
    all_folded(&stage.cluster).await?;
    history.agrees_at_each_instant(stage.caller()).await.context("after the fold")?;
    // A time in the future shows the present state.
    let now = stage.caller().get("/v1/accounts?at=2100-01-01T00:00:00Z").await?;
    let mut seen = 0;
    for account in items(&now)? {
        let Some(entries) = history.statements.get(text(account, "id")?) else { continue };
        expect!(entries.last().is_some_and(|newest| newest["version"] == account["version"]), "{account}");
        seen += 1;
    }
    ensure!(seen == history.statements.len(), "{seen} of {} accounts are listed", history.statements.len());
    expect!(now["at"].as_str() < Some("2100"), "{}", now["at"]);
    stage.finish().await
}

impl History {
    async fn agrees_at_each_instant(&self, caller: Caller<'_>) -> anyhow::Result<()> {
        for at in &self.instants {
            for prefix in [&self.bank, &self.shop] {
                self.agrees_at(caller, at, prefix).await.with_context(|| format!("at {at}, prefix {prefix:?}"))?;
            }
        }
        Ok(())
    }

    async fn agrees_at(&self, caller: Caller<'_>, at: &str, prefix: &str) -> anyhow::Result<()> {
        let mut expected = Vec::new();
        let (mut posted, mut held) = (0, 0);
        for (id, entries) in self.statements.iter().filter(|(id, _)| id.starts_with(prefix)) {
            let Some(last) = entries.iter().rfind(|entry| entry["created_at"].as_str() <= Some(at)) else { continue };
            posted += cents(&last["posted"])?;
            held += cents(&last["held"])?;
            expected.push(json!([id, last["posted"], last["held"], last["version"], last["created_at"]]));
        }
        let prefix = escaped(prefix);
        let then = caller.get(&format!("/v1/accounts?at={at}&prefix={prefix}")).await?;
        let found: Vec<Value> = items(&then)?
            .iter()
            .map(|one| json!([one["id"], one["posted"], one["held"], one["version"], one["updated_at"]]))
            .collect();
        ensure!(found == expected, "{then}\n expected {expected:?}");
        expect!(then["accounts"] == expected.len() && then["at"] == at, "{}, {}", then["accounts"], then["at"]);

        let sums = caller.get(&format!("/v1/balances?at={at}&prefix={prefix}")).await?;
        expect!(sums["at"] == at && sums["partial"] == false, "{sums}");
        match items(&sums)?.as_slice() {
            [] => expect!(expected.is_empty(), "{sums}"),
            [sum] => {
                let sum = (cents(&sum["posted"])?, cents(&sum["held"])?, sum["accounts"].as_u64());
                ensure!(sum == (posted, held, Some(expected.len() as u64)), "{sums}, not {posted} and {held}");
            }
            _ => bail!("{sums}"),
        }
        Ok(())
    }
}

/// A part of a query, and the entries that pass it.
type Filter<'a> = (String, &'a dyn Fn(&Value) -> bool);

/// Reads an amount as cents.
fn cents(amount: &Value) -> anyhow::Result<i64> {
    Ok(amount.as_str().with_context(|| format!("expected an amount, not {amount}"))?.replace('.', "").parse()?)
}

/// With pages of any size, a list has the transfers of the statement that pass the filter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_of_transfers_has_each_once_and_in_the_order_of_the_statement() -> anyhow::Result<()> {
    let seed = Seed::announce("lists of transfers");
    let stage = Stage::shared().await?;
    let caller = stage.caller();
    let history = History::write(&stage, &mut seed.random()).await?;
    for account in [format!("{}0", history.shop), format!("{}0", history.bank)] {
        let statement: Vec<&Value> =
            history.statements[&account].iter().filter(|entry| entry["transfer_id"].is_string()).collect();
        let middle = text(statement[statement.len() / 2], "created_at")?;
        let all = |_: &Value| true;
        let of_round_3 = |entry: &Value| entry["metadata"]["round"] == "3";
        let since = |entry: &Value| entry["created_at"].as_str() >= Some(middle);
        let before = |entry: &Value| entry["created_at"].as_str() < Some(middle);
        let filters: [Filter<'_>; 6] = [
            (String::new(), &all),
            ("&metadata=round=3".to_owned(), &of_round_3),
            ("&metadata=round".to_owned(), &all),
            ("&status=posted".to_owned(), &all),
            (format!("&from={middle}"), &since),
            (format!("&to={middle}"), &before),
        ];
        for (filter, passes) in filters {
            for order in ["desc", "asc"] {
                let path = format!("/v1/transfers?account={}&limit=17&order={order}{filter}", escaped(&account));
                let found = caller.walk(&path).await?;
                let found: Vec<&Value> = found.iter().map(|transfer| &transfer["id"]).collect();
                let passing = statement.iter().filter(|entry| passes(entry));
                let mut expected: Vec<&Value> = passing.map(|entry| &entry["transfer_id"]).collect();
                if order == "desc" {
                    expected.reverse();
                }
                ensure!(!expected.is_empty() && found == expected, "{path}: {found:?}\n expected {expected:?}");
            }
        }
    }
    // A listed transfer has what a read of the transfer shows, without the steps.
    let page = caller.get(&format!("/v1/transfers?account={}0&limit=5", history.bank)).await?;
    for listed in items(&page)? {
        let path = format!("/v1/transfers/{}?debit={}", text(listed, "id")?, escaped(text(listed, "debit")?));
        let (read, listed) = (without_steps(caller.read(&path, "200 posted").await?), without_steps(listed.clone()));
        expect!(read == listed, "{listed}\n {read}");
    }

    let holds = format!("/v1/holds?account={}", escaped(&format!("{}0", history.shop)));
    let all = caller.walk(&format!("{holds}&limit=4")).await?;
    let rounds: Vec<&Value> = all.iter().map(|hold| &hold["metadata"]["round"]).collect();
    expect!(rounds == ["5", "4", "3", "2", "1", "0"], "{rounds:?}");
    let some = caller.get(&format!("{holds}&metadata=round=2&status=held")).await?;
    expect!(items(&some)?.len() == 1 && some["data"][0]["metadata"]["round"] == "2", "{some}");
    let of_payee = caller.get(&format!("/v1/holds?account={}0", history.bank)).await?;
    ensure!(items(&of_payee)?.is_empty(), "holds are listed for their credit account: {of_payee}");
    stage.finish().await
}

/// A transfer without the member that only a read of one transfer has.
pub fn without_steps(mut transfer: Value) -> Value {
    if let Some(members) = transfer.as_object_mut() {
        members.remove("steps");
    }
    transfer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_filtered_by_the_present_state() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let caller = stage.caller();
    let (payer, payee) = (stage.account(0, "EUR overdraft=unlimited").await?, stage.account(0, "EUR").await?);
    // The account accepts no money and lives on another shard, so that money is reserved for it and comes back.
    let full = stage.account(1, "EUR max=0.00").await?;
    let order = |id: Uuid, credit: &str| json!({"id": id, "debit": payer, "credit": credit, "amount": "5.00", "asset": "EUR"});
    let [posted, reversed, refused, held, captured, released, capture, reversal] = [(); 8].map(|()| Uuid::now_v7());
    caller.post("/v1/transfers", &order(posted, &payee), "201 posted").await?;
    caller.post("/v1/transfers", &order(reversed, &payee), "201 posted").await?;
    caller.post(&format!("/v1/transfers/{reversed}/reverse"), &json!({"id": reversal}), "201 posted").await?;
    caller.post("/v1/transfers", &order(refused, &full), "422 limit_exceeded side=credit").await?;
    for hold in [held, captured, released] {
        caller.post("/v1/holds", &order(hold, &payee), "201 held").await?;
    }
    caller.post(&format!("/v1/holds/{captured}/capture"), &json!({"id": capture}), "201 posted").await?;
    caller.post(&format!("/v1/holds/{released}/release"), &json!({}), "200 released").await?;

    for (list, account, status, expected) in [
        ("transfers", &payer, "", &[capture, refused, reversal, reversed, posted][..]),
        ("transfers", &payer, "&status=posted", &[capture, reversal, posted]),
        ("transfers", &payer, "&status=reversed", &[reversed]),
        ("transfers", &payer, "&status=rejected", &[refused]),
        ("transfers", &payer, "&status=pending", &[]),
        ("transfers", &payee, "", &[capture, reversal, reversed, posted]),
        ("transfers", &full, "", &[]),
        ("holds", &payer, "", &[released, captured, held]),
        ("holds", &payer, "&status=held", &[held]),
        ("holds", &payer, "&status=captured", &[captured]),
        ("holds", &payer, "&status=released", &[released]),
        ("holds", &payer, "&status=expired", &[]),
        ("holds", &payee, "", &[]),
    ] {
        let found = caller.walk(&format!("/v1/{list}?account={}{status}&limit=2", escaped(account))).await?;
        let ids: Vec<&Value> = found.iter().map(|one| &one["id"]).collect();
        let expected: Vec<Value> = expected.iter().map(|id| json!(id)).collect();
        ensure!(ids.iter().copied().eq(&expected), "{list} of {account}{status}: {ids:?}, not {expected:?}");
    }
    stage.finish().await
}

/// One request looks at a bounded number of entries. If none of them passes the filter, the answer is an empty page with a cursor, from
/// which the next request continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_finds_nothing_ends_with_a_cursor() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let caller = stage.caller();
    let (payer, payee) = (stage.account(0, "EUR overdraft=unlimited").await?, stage.account(0, "EUR").await?);
    let order = |metadata: Value| json!({"id": Uuid::now_v7(), "debit": payer, "credit": payee, "amount": "0.01", "asset": "EUR", "metadata": metadata});
    let needle = order(json!({"needle": "here"}));
    caller.post("/v1/transfers", &needle, "201 posted").await?;
    let others: Vec<Value> = (0..LONG).map(|_| order(json!({}))).collect();
    caller.post("/v1/transfers:batch", &json!({"transfers": others}), "200").await?;
    for account in [&payer, &payee] {
        let path = format!("/v1/transfers?account={}&metadata=needle", escaped(account));
        let first = caller.get(&path).await?;
        expect!(items(&first)?.is_empty() && first["has_more"] == true, "{first}");
        let second = caller.get(&format!("{path}&cursor={}", text(&first, "next_cursor")?)).await?;
        expect!(items(&second)?.len() == 1 && second["data"][0]["id"] == needle["id"], "{second}");
        expect!(second["has_more"] == false, "{second}");
    }
    stage.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_with_a_wrong_parameter_is_refused() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let account = stage.account(0, "EUR").await?;
    let (account, unopened) = (escaped(&account), escaped(&stage.name(0)?));
    for (path, expected) in [
        ("transfers".to_owned(), "400 invalid_parameter at=?account"),
        ("holds".to_owned(), "400 invalid_parameter at=?account"),
        ("transfers?account=@x".to_owned(), "400 invalid_id at=?account"),
        (format!("transfers?account={account}&status=would_post"), "400 invalid_parameter at=?status"),
        (format!("holds?account={account}&status=posted"), "400 invalid_parameter at=?status"),
        (format!("transfers?account={account}&metadata==x"), "400 invalid_parameter at=?metadata"),
        (format!("transfers?account={account}&from=now"), "400 invalid_parameter at=?from"),
        (format!("transfers?account={unopened}"), "404 account_not_found"),
        ("accounts?at=2026-01-01T00:00:00Z&limit=5".to_owned(), "400 invalid_parameter at=?limit"),
        ("accounts?at=yesterday".to_owned(), "400 invalid_parameter at=?at"),
        ("balances?at=2026-13-01T00:00:00Z".to_owned(), "400 invalid_parameter at=?at"),
    ] {
        stage.caller().read(&format!("/v1/{path}"), expected).await?;
    }
    stage.finish().await
}

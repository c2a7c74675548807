//! What a key for `{shop42}:` sees of reports.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::client::account_path;
use uuid::Uuid;

use super::{Setting, escaped, items, text};

/// The rival's accounts. What the shop may see of them is their ids, as the other side of its own payments.
const RIVALS: [&str; 2] = ["{shop43}:till", "{shop43}:vault"];
const OWN: [&str; 2] = ["{shop42}:safe", "{shop42}:till"];
/// Stands in metadata of the rival only.
const SECRET: &str = "tell-nobody";

/// Two tenants, a bank, and payments between all of them.
pub struct Stage {
    /// A time after all of it.
    at: String,
}

impl Stage {
    pub async fn set(setting: &Setting) -> anyhow::Result<Self> {
        for id in RIVALS.into_iter().chain(OWN).chain(["bank:cash"]) {
            setting.open(id, json!({"metadata": {"owner": if OWN.contains(&id) { "own" } else { SECRET }}})).await?;
        }
        for (debit, credit, note) in [
            ("bank:cash", "{shop42}:till", "deposit"),
            ("bank:cash", "{shop43}:till", SECRET),
            ("{shop42}:till", "{shop42}:safe", "own"),
            ("{shop42}:till", "{shop43}:till", "invoice"),
            ("{shop43}:till", "{shop42}:till", "refund"),
            ("{shop43}:till", "{shop43}:vault", SECRET),
        ] {
            for _ in 0..3 {
                let order = json!({"id": Uuid::now_v7(), "debit": debit, "credit": credit, "amount": "7.00", "asset": "EUR", "metadata": {"note": note}});
                setting.post("/v1/transfers", order, "201 posted").await?;
            }
        }
        for (debit, note) in [("{shop42}:till", "own"), ("{shop43}:till", SECRET)] {
            for _ in 0..3 {
                let hold = json!({"id": Uuid::now_v7(), "debit": debit, "credit": "{shop42}:safe", "amount": "1.00", "asset": "EUR", "metadata": {"note": note}});
                setting.post("/v1/holds", hold, "201 held").await?;
            }
        }
        let now = setting.get("/v1/accounts?at=2100-01-01T00:00:00Z").await?;
        ensure!(now["accounts"] == 5, "{now}");
        Ok(Self { at: text(&now, "at")?.to_owned() })
    }

    /// The same status and words for a rival's account and for one that does not exist, whatever is asked for.
    pub async fn foreign_accounts_are_as_if_they_did_not_exist(&self, setting: &Setting) -> anyhow::Result<()> {
        for list in ["transfers", "holds"] {
            for filter in [
                "",
                "&limit=1",
                "&status=posted",
                "&status=held",
                "&metadata=note",
                "&metadata=note=tell-nobody",
                "&from=2020-01-01T00:00:00Z",
                "&order=asc",
                "&cursor=v1-00000000",
            ] {
                let path = |account: &str| format!("/v1/{list}?account={}{filter}", escaped(account));
                Self::same(setting, path, "application/json").await?;
            }
        }
        for query in ["", "?include=metadata", "?order=asc&from=2020-01-01T00:00:00Z"] {
            let path = |account: &str| format!("{}/entries{query}", account_path(account));
            Self::same(setting, path, "application/json").await?;
            Self::same(setting, path, "text/csv").await?;
        }
        let balance = |account: &str| format!("{}/balance?at={}", account_path(account), self.at);
        Self::same(setting, balance, "application/json").await
    }

    /// The answers for rivals' accounts are the answers for accounts that do not exist, and no 200.
    async fn same(setting: &Setting, path: impl Fn(&str) -> String, accept: &str) -> anyhow::Result<()> {
        let answer = async |account: &str| {
            let reply = setting.text(&path(account), accept, &setting.shop).await?;
            let mut problem: Value = serde_json::from_str(&reply.body).with_context(|| reply.body.clone())?;
            problem["request_id"] = Value::Null;
            let named = problem.to_string().replace(account, "…").replace(&escaped(account), "…");
            anyhow::Ok((reply.status, named))
        };
        let missing = answer("{shop43}:none").await?;
        for rival in RIVALS.into_iter().chain(["bank:cash"]) {
            let found = answer(rival).await?;
            ensure!(found.0 >= 400 && found == missing, "{}: {found:?}, not {missing:?}", path(rival));
        }
        Ok(())
    }

    /// Lists of the tenant's accounts have the payments that touch them, as reading each of them shows it.
    pub async fn lists_have_what_touches_the_own_accounts(&self, setting: &Setting) -> anyhow::Result<()> {
        let path = "/v1/transfers?account=%7Bshop42%7D:till&limit=2";
        let found = setting.walk(path, &setting.shop).await?;
        ensure!(found.len() == 12, "{} transfers", found.len());
        for transfer in &found {
            let debit = text(transfer, "debit")?;
            ensure!(debit == "{shop42}:till" || transfer["credit"] == "{shop42}:till", "{transfer}");
            let is_own = debit.starts_with("{shop42}:");
            ensure!(is_own == transfer["debit_account"].is_object(), "the payer's balances: {transfer}");
            ensure!(!transfer.to_string().contains(SECRET), "{transfer}");
            let path = format!("/v1/transfers/{}?debit={}", text(transfer, "id")?, escaped(debit));
            let mut read = setting.read(&path, &setting.shop, "200 posted").await?;
            let mut listed = transfer.clone();
            for one in [&mut read, &mut listed] {
                one.as_object_mut().context("no object")?.remove("steps");
            }
            ensure!(read == listed, "{listed}\n {read}");
        }
        // A filter that only a rival's payments would pass.
        let none = setting.walk(&format!("{path}&metadata=note={SECRET}"), &setting.shop).await?;
        ensure!(none.is_empty(), "{none:?}");
        // A hold is its debit account's: the rival's holds for the own account are not listed.
        ensure!(setting.walk("/v1/holds?account=%7Bshop42%7D:till&limit=2", &setting.shop).await?.len() == 3);
        ensure!(setting.walk("/v1/holds?account=%7Bshop42%7D:safe&limit=2", &setting.shop).await?.is_empty());

        for query in ["?include=metadata", "?include=metadata&order=asc"] {
            let path = format!("/v1/accounts/%7Bshop42%7D:till/entries{query}");
            let page = setting.read(&format!("{path}&limit=500"), &setting.shop, "200").await?;
            let table = setting.csv(&path, &setting.shop).await?;
            // Opened, twelve transfers, three holds.
            ensure!(items(&page)?.len() == 16 && table.lines.len() == 16, "{page}");
            ensure!(!page.to_string().contains(SECRET) && !table.body.contains(SECRET), "{page}");
        }
        Ok(())
    }

    /// A cursor of a rival's list is none of an own one, and leads to no account of its own.
    pub async fn cursors_lead_nowhere_else(&self, setting: &Setting) -> anyhow::Result<()> {
        let (own, rival) = ("%7Bshop42%7D:till", "%7Bshop43%7D:till");
        for list in ["transfers", "holds"] {
            let path = |account: &str| format!("/v1/{list}?account={account}&limit=1");
            let cursor = setting.get(&path(rival)).await?;
            let cursor = text(&cursor, "next_cursor")?;
            let shop = &setting.shop;
            setting.read(&format!("{}&cursor={cursor}", path(own)), shop, "400 invalid_parameter at=?cursor").await?;
            setting.read(&format!("{}&cursor={cursor}", path(rival)), shop, "404 account_not_found").await?;
        }
        // Of the list of all accounts, which for this key is the list of its own.
        let page = setting.get("/v1/accounts?limit=1").await?;
        let cursor = format!("/v1/accounts?limit=1&cursor={}", text(&page, "next_cursor")?);
        setting.read(&cursor, &setting.shop, "400 invalid_parameter at=?cursor").await?;
        let entries = |account: &str| format!("/v1/accounts/{account}/entries?limit=1&include=metadata");
        let page = setting.get(&entries(rival)).await?;
        let cursor = text(&page, "next_cursor")?;
        let own = format!("{}&cursor={cursor}", entries(own));
        setting.read(&own, &setting.shop, "400 invalid_parameter at=?cursor").await?;
        Ok(())
    }

    /// Lists of accounts and sums at an instant, in JSON and in CSV.
    pub async fn accounts_and_sums_are_the_own_ones(&self, setting: &Setting) -> anyhow::Result<()> {
        let (at, shop) = (&self.at, &setting.shop);
        let own = setting.read(&format!("/v1/accounts?at={at}"), shop, "200").await?;
        let ids: Vec<&Value> = items(&own)?.iter().map(|account| &account["id"]).collect();
        ensure!(ids == OWN && own["accounts"] == OWN.len(), "{own}");
        for path in [format!("/v1/accounts?at={at}"), "/v1/accounts".to_owned()] {
            let table = setting.csv(&path, shop).await?;
            let ids: Vec<&String> = table.lines.iter().map(|line| &line[0]).collect();
            ensure!(ids == OWN && !table.body.contains(SECRET), "{}", table.body);
        }
        // 12 × 7.00 came to the two accounts or left them: 3 deposits, 3 invoices paid, 3 refunds.
        let sums = setting.read(&format!("/v1/balances?at={at}"), shop, "200").await?;
        ensure!(
            sums["data"] == json!([{"asset": "EUR", "posted": "21.00", "held": "3.00", "accounts": 2}]),
            "{sums}"
        );
        let table = setting.csv(&format!("/v1/balances?at={at}"), shop).await?;
        ensure!(table.lines == [["EUR", "21.00", "3.00", "2"]], "{}", table.body);

        for prefix in ["%7B", "%7Bshop4", "%7Bshop43%7D:", "bank:", "%7Bshop42%7D"] {
            for path in
                [format!("/v1/accounts?at={at}&prefix={prefix}"), format!("/v1/balances?at={at}&prefix={prefix}")]
            {
                setting.read(&path, shop, "403 not_permitted at=?prefix").await?;
                let reply = setting.text(&path, "text/csv", shop).await?;
                ensure!(reply.status == 403 && !reply.body.contains("{shop43}:"), "{path}: {}", reply.body);
            }
            let reply = setting.text(&format!("/v1/accounts?prefix={prefix}"), "text/csv", shop).await?;
            ensure!(reply.status == 403, "{prefix}: {}", reply.body);
        }
        let narrower = setting.read(&format!("/v1/accounts?at={at}&prefix=%7Bshop42%7D:s"), shop, "200").await?;
        ensure!(narrower["accounts"] == 1, "{narrower}");
        Ok(())
    }
}

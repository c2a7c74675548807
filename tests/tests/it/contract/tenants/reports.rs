//! Tests of what a tenant's key sees of reports. It sees its own accounts through every list, filter, cursor and table, and nothing of
//! another tenant.

use anyhow::{Context, ensure};
use keys::Secret;
use serde_json::{Value, json};
use testkit::client::{account_path, escaped};
use uuid::Uuid;

use super::super::{
    callers::{Caller, OwnRouter, entry, items, results_are, text},
    reports::without_steps,
    stage::Stage,
};

/// A word that is only in the rival's metadata.
const SECRET: &str = "tell-nobody";

/// The accounts of two tenants and a bank, with payments between all of them.
struct TwoTenants {
    /// The shop's accounts, in order of their ids. Payments and holds debit the till.
    safe: String,
    till: String,
    rival_till: String,
    rival_vault: String,
    bank: String,
    /// The beginnings of all ids of the shop, and of all ids of the rival.
    shop_prefix: String,
    rival_prefix: String,
    /// A time after all payments and holds.
    at: String,
    operator: Secret,
    shop: Secret,
    router: OwnRouter,
    stage: Stage,
}

impl TwoTenants {
    async fn order() -> anyhow::Result<Self> {
        let stage = Stage::shared().await?;
        let word = stage.word();
        let (shop_prefix, rival_prefix) = (format!("{{shop42{word}}}:"), format!("{{shop43{word}}}:"));
        let (operator, shop) = (Secret::generate()?, Secret::generate()?);
        let keys = entry("operator", "*", &operator) + &entry("shop", &shop_prefix, &shop);
        let tenants = Self {
            safe: format!("{shop_prefix}safe"),
            till: format!("{shop_prefix}till"),
            rival_till: format!("{rival_prefix}till"),
            rival_vault: format!("{rival_prefix}vault"),
            bank: format!("bank{word}:cash"),
            shop_prefix,
            rival_prefix,
            at: String::new(),
            operator,
            shop,
            router: OwnRouter::with_keys(&stage.cluster, &keys).await?,
            stage,
        };
        let at = tenants.move_money().await?;
        Ok(Self { at, ..tenants })
    }

    /// Opens the accounts and orders the payments and holds. Returns a time after them.
    async fn move_money(&self) -> anyhow::Result<String> {
        let Self { safe, till, rival_till, rival_vault, bank, .. } = self;
        let opened = [safe, till, rival_till, rival_vault, bank].map(|id| {
            let owner = if [safe, till].contains(&id) { "own" } else { SECRET };
            json!({"id": id, "asset": "EUR", "overdraft": "unlimited", "metadata": {"owner": owner}})
        });
        self.operator().post("/v1/accounts:batch", &json!({"accounts": opened}), "200").await?;
        let payments = [
            (bank, till, "deposit"),
            (bank, rival_till, SECRET),
            (till, safe, "own"),
            (till, rival_till, "invoice"),
            (rival_till, till, "refund"),
            (rival_till, rival_vault, SECRET),
        ];
        let orders: Vec<Value> = payments
            .into_iter()
            .flat_map(|(debit, credit, note)| (0..3).map(move |_| order(debit, credit, "7.00", note)))
            .collect();
        let paid = self.operator().post("/v1/transfers:batch", &json!({"transfers": orders}), "200").await?;
        results_are(&paid, "posted")?;
        for (debit, note) in [(till, "own"), (rival_till, SECRET)] {
            for _ in 0..3 {
                self.operator().post("/v1/holds", &order(debit, safe, "1.00", note), "201 held").await?;
            }
        }
        let now = self.shop().get("/v1/accounts?at=2100-01-01T00:00:00Z").await?;
        Ok(text(&now, "at")?.to_owned())
    }

    fn operator(&self) -> Caller<'_> {
        self.router.caller(&self.operator)
    }

    fn shop(&self) -> Caller<'_> {
        self.router.caller(&self.shop)
    }

    /// Checks that the rival's accounts have the same answers as an account that does not exist, and that these are refusals.
    async fn are_as_if_missing(&self, path: impl Fn(&str) -> String, accept: &str) -> anyhow::Result<()> {
        let answer = async |account: &str| {
            let reply = self.shop().text(&path(account), accept).await?;
            let mut problem: Value = serde_json::from_str(&reply.body).with_context(|| reply.body.clone())?;
            problem["request_id"] = Value::Null;
            let named = problem.to_string().replace(account, "…").replace(&escaped(account), "…");
            anyhow::Ok((reply.status, named))
        };
        let missing = answer(&format!("{}none", self.rival_prefix)).await?;
        for rival in [&self.rival_till, &self.rival_vault, &self.bank] {
            let found = answer(rival).await?;
            ensure!(found.0 >= 400 && found == missing, "{}: {found:?}, not {missing:?}", path(rival));
        }
        Ok(())
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.stage.finish().await
    }
}

fn order(debit: &str, credit: &str, amount: &str, note: &str) -> Value {
    json!({"id": Uuid::now_v7(), "debit": debit, "credit": credit, "amount": amount, "asset": "EUR", "metadata": {"note": note}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_tenants_accounts_are_answered_as_if_they_did_not_exist() -> anyhow::Result<()> {
    let tenants = TwoTenants::order().await?;
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
            tenants.are_as_if_missing(path, "application/json").await?;
        }
    }
    for query in ["", "?include=metadata", "?order=asc&from=2020-01-01T00:00:00Z"] {
        let path = |account: &str| format!("{}/entries{query}", account_path(account));
        tenants.are_as_if_missing(path, "application/json").await?;
        tenants.are_as_if_missing(path, "text/csv").await?;
    }
    let balance = |account: &str| format!("{}/balance?at={}", account_path(account), tenants.at);
    tenants.are_as_if_missing(balance, "application/json").await?;
    tenants.finish().await
}

/// Each listed payment is shown as a read of it shows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenants_lists_have_what_touches_its_own_accounts() -> anyhow::Result<()> {
    let tenants = TwoTenants::order().await?;
    let (till, safe) = (escaped(&tenants.till), escaped(&tenants.safe));
    let path = format!("/v1/transfers?account={till}&limit=2");
    let found = tenants.shop().walk(&path).await?;
    ensure!(found.len() == 12, "{} transfers", found.len());
    for transfer in found {
        let debit = text(&transfer, "debit")?;
        expect!(debit == tenants.till || transfer["credit"] == tenants.till, "{transfer}");
        let is_own = debit.starts_with(&tenants.shop_prefix);
        ensure!(is_own == transfer["debit_account"].is_object(), "the payer's balances: {transfer}");
        expect!(!transfer.to_string().contains(SECRET), "{transfer}");
        let path = format!("/v1/transfers/{}?debit={}", text(&transfer, "id")?, escaped(debit));
        let read = without_steps(tenants.shop().read(&path, "200 posted").await?);
        let listed = without_steps(transfer);
        expect!(read == listed, "{listed}\n {read}");
    }
    // Only payments of the rival pass this filter.
    let none = tenants.shop().walk(&format!("{path}&metadata=note={SECRET}")).await?;
    expect!(none.is_empty(), "{none:?}");
    // A hold is listed for its debit account only, so the rival's holds that credit the safe are not listed.
    ensure!(tenants.shop().walk(&format!("/v1/holds?account={till}&limit=2")).await?.len() == 3);
    ensure!(tenants.shop().walk(&format!("/v1/holds?account={safe}&limit=2")).await?.is_empty());

    for query in ["?include=metadata", "?include=metadata&order=asc"] {
        let path = format!("/v1/accounts/{till}/entries{query}");
        let page = tenants.shop().get(&format!("{path}&limit=500")).await?;
        let table = tenants.shop().csv(&path).await?;
        // The entries are the opening, twelve transfers and three holds.
        expect!(items(&page)?.len() == 16 && table.lines.len() == 16, "{page}");
        expect!(!page.to_string().contains(SECRET) && !table.body.contains(SECRET), "{page}");
    }
    tenants.finish().await
}

/// A cursor of a rival's list belongs to no list of the tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_of_another_tenants_list_is_refused() -> anyhow::Result<()> {
    let tenants = TwoTenants::order().await?;
    let (operator, shop) = (tenants.operator(), tenants.shop());
    let (own, rival) = (escaped(&tenants.till), escaped(&tenants.rival_till));
    for list in ["transfers", "holds"] {
        let path = |account: &str| format!("/v1/{list}?account={account}&limit=1");
        let page = operator.get(&path(&rival)).await?;
        let cursor = text(&page, "next_cursor")?;
        shop.read(&format!("{}&cursor={cursor}", path(&own)), "400 invalid_parameter at=?cursor").await?;
        shop.read(&format!("{}&cursor={cursor}", path(&rival)), "404 account_not_found").await?;
    }
    // The operator's list of all accounts is another list than the shop's, which has the shop's accounts.
    let page = operator.get("/v1/accounts?limit=1").await?;
    let path = format!("/v1/accounts?limit=1&cursor={}", text(&page, "next_cursor")?);
    shop.read(&path, "400 invalid_parameter at=?cursor").await?;
    let entries = |account: &str| format!("/v1/accounts/{account}/entries?limit=1&include=metadata");
    let page = operator.get(&entries(&rival)).await?;
    let path = format!("{}&cursor={}", entries(&own), text(&page, "next_cursor")?);
    shop.read(&path, "400 invalid_parameter at=?cursor").await?;
    tenants.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_lists_and_sums_its_own_accounts_only() -> anyhow::Result<()> {
    let tenants = TwoTenants::order().await?;
    let (at, shop) = (&tenants.at, tenants.shop());
    let own = [&tenants.safe, &tenants.till];
    let listed = shop.get(&format!("/v1/accounts?at={at}")).await?;
    let ids: Vec<&Value> = items(&listed)?.iter().map(|account| &account["id"]).collect();
    expect!(ids == own && listed["accounts"] == own.len(), "{listed}");
    for path in [format!("/v1/accounts?at={at}"), "/v1/accounts".to_owned()] {
        let table = shop.csv(&path).await?;
        let ids: Vec<&String> = table.lines.iter().map(|line| &line[0]).collect();
        expect!(ids == own && !table.body.contains(SECRET), "{}", table.body);
    }
    // Three deposits and three refunds came to the two accounts, and three invoices left them, each of 7.00.
    let sums = shop.get(&format!("/v1/balances?at={at}")).await?;
    let expected = json!([{"asset": "EUR", "posted": "21.00", "held": "3.00", "accounts": 2}]);
    expect!(sums["data"] == expected, "{sums}");
    let table = shop.csv(&format!("/v1/balances?at={at}")).await?;
    expect!(table.lines == [["EUR", "21.00", "3.00", "2"]], "{}", table.body);

    let begins_both = &tenants.shop_prefix[.."{shop4".len()];
    let without_colon = tenants.shop_prefix.trim_end_matches(':');
    for prefix in ["{", begins_both, &tenants.rival_prefix, &tenants.bank, without_colon] {
        let prefix = escaped(prefix);
        for path in [format!("/v1/accounts?at={at}&prefix={prefix}"), format!("/v1/balances?at={at}&prefix={prefix}")]
        {
            shop.read(&path, "403 not_permitted at=?prefix").await?;
            let reply = shop.text(&path, "text/csv").await?;
            expect!(reply.status == 403 && !reply.body.contains(&tenants.rival_till), "{path}: {}", reply.body);
        }
        let reply = shop.text(&format!("/v1/accounts?prefix={prefix}"), "text/csv").await?;
        expect!(reply.status == 403, "{prefix}: {}", reply.body);
    }
    let narrower = format!("/v1/accounts?at={at}&prefix={}", escaped(&format!("{}s", tenants.shop_prefix)));
    ensure!(shop.get(&narrower).await?["accounts"] == 1);
    tenants.finish().await
}

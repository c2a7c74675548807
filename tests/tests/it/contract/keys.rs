//! Tests of keys: what a key permits, and that a key cannot read, move or notice anything of another tenant. The tests follow the risks of
//! the OWASP API Security Top 10 (2023), which `docs/operations/keys.md` lists.

use std::time::Duration;

use anyhow::{Context, ensure};
use http::Method;
use keys::{Digest, Secret};
use ledger::BookingKind;
use serde_json::{Value, json};
use testkit::{
    client::{account_path, escaped},
    database,
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
};
use uuid::Uuid;

use super::{
    api::{Call, NDJSON, Reply},
    callers::{OwnRouter, entry, items},
    stage::Stage,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A router with keys. The operator's key may do everything; `shop` and `rival` are tenants.
struct Setting {
    operator: Secret,
    shop: Secret,
    rival: Secret,
    /// Accounts of the tenants. Each till has 100.00 at first.
    shop_till: String,
    shop_safe: String,
    rival_till: String,
    rival_safe: String,
    /// Accounts of the bank. Tenants may credit the fee account and nothing else.
    cash: String,
    fees: String,
    router: OwnRouter,
    stage: Stage,
}

impl Setting {
    async fn new() -> anyhow::Result<Self> {
        let stage = Stage::shared().await?;
        let word = stage.word();
        let (operator, shop, rival) = (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        let keys =
            entry("operator", "*", &operator) + &tenant(word, "shop", &shop, "") + &tenant(word, "rival", &rival, "");
        let setting = Self {
            operator,
            shop,
            rival,
            shop_till: format!("{{shop{word}}}:till"),
            shop_safe: format!("{{shop{word}}}:safe"),
            rival_till: format!("{{rival{word}}}:till"),
            rival_safe: format!("{{rival{word}}}:safe"),
            cash: format!("bank{word}:cash"),
            fees: format!("bank{word}:fees"),
            router: OwnRouter::with_keys(&stage.cluster, &keys).await?,
            stage,
        };
        let Self { shop_till, shop_safe, rival_till, rival_safe, cash, fees, .. } = &setting;
        for id in [cash, fees, shop_till, shop_safe, rival_till, rival_safe] {
            let overdraft = if id == cash { "unlimited" } else { "0" };
            let body = json!({"id": id, "asset": "EUR", "overdraft": overdraft});
            setting.send(Call::post("/v1/accounts", &body), &setting.operator).await?.expect("201 open")?;
        }
        for payee in [shop_till, rival_till] {
            setting.order(&setting.operator, Uuid::now_v7(), cash, payee, "100.00").await?.expect("201 posted")?;
        }
        Ok(setting)
    }

    /// The entry of a tenant's key.
    fn tenant(&self, name: &str, secret: &Secret, more: &str) -> String {
        tenant(self.stage.word(), name, secret, more)
    }

    fn operator_entry(&self) -> String {
        entry("operator", "*", &self.operator)
    }

    async fn send(&self, call: Call, secret: &Secret) -> anyhow::Result<Reply> {
        self.router.caller(secret).send(call).await
    }

    async fn order(
        &self,
        secret: &Secret,
        id: Uuid,
        debit: &str,
        credit: &str,
        amount: &str,
    ) -> anyhow::Result<Reply> {
        self.send(Call::post("/v1/transfers", &transfer(id, debit, credit, amount)), secret).await
    }

    /// Writes the file of keys, and waits until a key is known, or is unknown.
    async fn rewrite(&self, keys: &str, secret: &Secret, known: bool) -> anyhow::Result<()> {
        std::fs::write(self.router.keys(), keys)?;
        until("the router has the new keys", PATIENCE, async || {
            let reply = self.send(Call::get("/v1/accounts?limit=1"), secret).await?;
            Ok(((reply.status != 401) == known).then_some(()))
        })
        .await
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.stage.finish().await
    }
}

/// The entry of a tenant's key. It may credit the bank's fee account besides its own accounts. `word` is the stage's.
fn tenant(word: &str, name: &str, secret: &Secret, more: &str) -> String {
    format!(
        "[[key]]\nname = \"{name}\"\nroles = [\"read\", \"write\"]\ndebit = [\"{{{name}{word}}}:\"]\n\
         credit = [\"{{{name}{word}}}:\", \"=bank{word}:fees\"]\nread = [\"{{{name}{word}}}:\"]\n\
         secrets = [{{ sha256 = \"{}\" }}]\n{more}\n",
        Digest::of(secret.text())
    )
}

fn transfer(id: Uuid, debit: &str, credit: &str, amount: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR"})
}

/// The answer without the parts that differ between two answers of the same kind: the request's id, and the names in the request.
fn form(reply: &Reply, asked: &[&str]) -> String {
    let mut body = reply.body.clone();
    body["request_id"] = Value::Null;
    let text = format!("{} {body}", reply.status);
    asked.iter().fold(text, |text, name| text.replace(name, "…").replace(&escaped(name), "…"))
}

/// Who ordered something stays in the journal, and a tenant learns no name of another tenant's keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_names_the_key_that_ordered_each_booking() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, rival, operator, shop_till, shop_safe, rival_till, .. } = &setting;
    let (own, paid, held) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let ordered = setting.order(shop, own, shop_till, shop_safe, "10.00").await?.expect("201 posted")?;
    expect!(ordered.body["ordered_by"] == "shop", "{}", ordered.body);
    // A replay with another key names the first one.
    let again = setting.order(operator, own, shop_till, shop_safe, "10.00").await?.expect("200 posted replayed")?;
    expect!(again.body["ordered_by"] == "shop", "{}", again.body);
    setting.order(operator, paid, shop_till, rival_till, "1.00").await?.expect("201 posted")?;

    let hold = json!({"id": held, "debit": shop_till, "credit": rival_till, "amount": "5.00", "asset": "EUR"});
    let placed = setting.send(Call::post("/v1/holds", &hold), operator).await?.expect("201 held")?;
    expect!(placed.body["ordered_by"] == "operator" && placed.body["ended_by"].is_null(), "{}", placed.body);
    let release = Call::post(&format!("/v1/holds/{held}/release"), &json!({}));
    let released = setting.send(release, shop).await?.expect("200 released")?;
    expect!(released.body["ordered_by"] == "operator" && released.body["ended_by"] == "shop", "{}", released.body);
    let freeze = Call::patch(&account_path(shop_safe), &json!({"status": "frozen"}));
    setting.send(freeze, operator).await?.expect("200 frozen")?;

    // The payer sees the name, the payee does not.
    for (secret, path, expected) in [
        (shop, format!("/v1/transfers/{paid}"), json!("operator")),
        (rival, format!("/v1/transfers/{paid}"), Value::Null),
        (shop, format!("/v1/transfers/{own}"), json!("shop")),
    ] {
        let seen = setting.send(Call::get(&path), secret).await?.expect("200 posted")?;
        expect!(seen.body["ordered_by"] == expected, "{path}: {}", seen.body);
    }
    let names = async |account: &str, secret: &Secret| -> anyhow::Result<Vec<String>> {
        let page =
            setting.send(Call::get(&format!("{}/entries", account_path(account))), secret).await?.expect("200")?;
        let entries = items(&page.body)?;
        Ok(entries
            .iter()
            .map(|entry| format!("{} {}", entry["kind"].as_str().unwrap_or("?"), entry["ordered_by"]))
            .collect())
    };
    // The entries come newest first. The operator funded both tills and opened all accounts.
    let till = names(shop_till, shop).await?;
    let payee = names(rival_till, rival).await?;
    let safe = names(shop_safe, shop).await?;
    expect!(payee.iter().all(|entry| entry.ends_with(" null") || entry.starts_with("opened")), "{payee:?}");
    expect!(till.iter().filter(|entry| entry.ends_with("\"shop\"")).count() == 2, "{till:?}");
    expect!(safe.iter().any(|entry| entry.ends_with("\"operator\"")), "{safe:?}");

    // Each row that a client's request wrote has the name, on both sides of a transfer between shards.
    let mut found = Vec::new();
    for shard in &setting.stage.cluster.status().shards {
        for id in [own, paid, held] {
            for booking in database::bookings(&shard.dsn, id).await? {
                let name = booking.ordered_by.map(|name| name.to_string()).unwrap_or_default();
                found.push((id, booking.kind, name));
            }
        }
    }
    for (id, first, name) in [
        (own, BookingKind::Posted, "shop"),
        (held, BookingKind::HoldPlaced, "operator"),
        (held, BookingKind::HoldReleased, "shop"),
    ] {
        expect!(found.contains(&(id, first, name.to_owned())), "{id} {first:?}: {found:?}");
    }
    let of_paid: Vec<_> = found.iter().filter(|(id, kind, _)| *id == paid && *kind != BookingKind::Settled).collect();
    expect!(!of_paid.is_empty() && of_paid.iter().all(|(_, _, name)| name == "operator"), "{found:?}");
    setting.finish().await
}

/// API1 (object level), API3 (property level) and API5 (function level): another tenant's accounts, transfers and holds are answered with
/// the status, code and words of something that does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_url_names_of_another_tenant_is_answered_as_if_it_did_not_exist() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, rival, shop_till, shop_safe, .. } = &setting;
    let (paid, held, unused) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    setting.order(shop, paid, shop_till, shop_safe, "10.00").await?.expect("201 posted")?;
    let hold = transfer(held, shop_till, shop_safe, "5.00");
    setting.send(Call::post("/v1/holds", &hold), shop).await?.expect("201 held")?;

    let (till, none) = (account_path(shop_till), shop_till.replace("till", "none"));
    let missing = account_path(&none);
    let debit = escaped(shop_till);
    for (method, path, missing, body) in [
        (Method::GET, till.clone(), missing.clone(), json!({})),
        (Method::GET, format!("{till}/entries"), format!("{missing}/entries"), json!({})),
        (Method::GET, format!("{till}/balance"), format!("{missing}/balance"), json!({})),
        (Method::GET, format!("/v1/transfers/{paid}"), format!("/v1/transfers/{unused}"), json!({})),
        (
            Method::GET,
            format!("/v1/transfers/{paid}?debit={debit}"),
            format!("/v1/transfers/{unused}?debit={debit}"),
            json!({}),
        ),
        (Method::GET, format!("/v1/holds/{held}"), format!("/v1/holds/{unused}"), json!({})),
        (
            Method::POST,
            format!("/v1/holds/{held}/capture"),
            format!("/v1/holds/{unused}/capture"),
            json!({"id": Uuid::now_v7()}),
        ),
        (Method::POST, format!("/v1/holds/{held}/release"), format!("/v1/holds/{unused}/release"), json!({})),
        (
            Method::POST,
            format!("/v1/transfers/{paid}/reverse"),
            format!("/v1/transfers/{unused}/reverse"),
            json!({"id": Uuid::now_v7()}),
        ),
    ] {
        let call = |path: &str| match method {
            Method::GET => Call::get(path),
            _ => Call::post(path, &body),
        };
        let real = setting.send(call(&path), rival).await?;
        let unreal = setting.send(call(&missing), rival).await?;
        expect!(real.status == 404, "{method} {path}: {}", real.body);
        let real = form(&real, &[&paid.to_string(), &held.to_string(), shop_till]);
        let unreal = form(&unreal, &[&unused.to_string(), &none, shop_till]);
        expect!(real == unreal, "{method} {path}\n  {real}\n  {unreal}");
    }
    setting.finish().await
}

/// API1: the key alone decides that an order is refused, whether the accounts exist or not, and nothing is stored under its id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_names_an_account_of_another_tenant_is_refused_and_leaves_nothing() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { operator, rival, shop_till, rival_till, rival_safe, cash, fees, .. } = &setting;
    let none = shop_till.replace("till", "none");
    for (debit, credit, at) in [
        (shop_till, rival_till, "'/debit'"),
        (&none, rival_till, "'/debit'"),
        (rival_till, shop_till, "'/credit'"),
        (fees, rival_till, "'/debit'"),
        (rival_till, cash, "'/credit'"),
    ] {
        let id = Uuid::now_v7();
        let refused = format!("403 not_permitted at={at}");
        setting.order(rival, id, debit, credit, "1.00").await?.expect(&refused)?;
        let dry = Call::post("/v1/transfers?dry_run=true", &transfer(id, debit, credit, "1.00"));
        setting.send(dry, rival).await?.expect(&refused)?;
        setting.send(Call::post("/v1/holds", &transfer(id, debit, credit, "1.00")), rival).await?.expect(&refused)?;
        let there = setting.send(Call::get(&format!("/v1/transfers/{id}")), operator).await?;
        there.expect("404 transfer_not_found")?;
    }
    // A batch with one such item has no effect.
    let good = Uuid::now_v7();
    let items =
        [transfer(good, rival_till, rival_safe, "1.00"), transfer(Uuid::now_v7(), shop_till, rival_till, "1.00")];
    for atomic in [false, true] {
        let batch = Call::post("/v1/transfers:batch", &json!({"transfers": items, "atomic": atomic}));
        setting.send(batch, rival).await?.expect("403 not_permitted at='/transfers/1/debit'")?;
    }
    let lines = Call::bare(Method::POST, "/v1/transfers:batch", format!("{}\n{}\n", items[0], items[1]))
        .header("content-type", NDJSON);
    setting.send(lines, rival).await?.expect("403 not_permitted at='/1/debit'")?;
    setting.send(Call::get(&format!("/v1/transfers/{good}")), rival).await?.expect("404 transfer_not_found")?;
    setting.finish().await
}

/// API1: a conflict with an account that exists reveals nothing, either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_of_another_tenant_are_neither_opened_nor_changed() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, rival, shop_till, rival_till, .. } = &setting;
    let opened = json!({"id": shop_till, "asset": "USD"});
    setting.send(Call::post("/v1/accounts", &opened), rival).await?.expect("403 not_permitted at='/id'")?;
    let new = rival_till.replace("till", "new");
    let batch = Call::post("/v1/accounts:batch", &json!({"accounts": [{"id": new, "asset": "EUR"}, opened]}));
    setting.send(batch, rival).await?.expect("403 not_permitted at='/accounts/1/id'")?;
    setting.send(Call::get(&account_path(&new)), rival).await?.expect("404 account_not_found")?;
    let freeze = Call::patch(&account_path(shop_till), &json!({"status": "frozen"}));
    setting.send(freeze, rival).await?.expect("403 not_permitted")?;
    // A key that may debit every account and read none learns no balance when it opens an account that exists.
    let collector = Secret::generate()?;
    let entry = setting.tenant("collector", &collector, "");
    let own = format!("debit = [\"{{collector{}}}:\"]", setting.stage.word());
    expect!(entry.contains(&own), "{entry}");
    let keys = setting.operator_entry()
        + &setting.tenant("shop", shop, "")
        + &setting.tenant("rival", rival, "")
        + &entry.replace(&own, "debit = [\"*\"]");
    setting.rewrite(&keys, &collector, true).await?;
    let again = Call::post("/v1/accounts", &json!({"id": shop_till, "asset": "EUR"}));
    setting.send(again, &collector).await?.expect("403 not_permitted at='/id'")?;
    setting.finish().await
}

/// API1 (object level).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_sums_have_the_tenants_own_accounts_only() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { operator, shop, rival, shop_till, rival_till, rival_safe, .. } = &setting;
    setting.order(operator, Uuid::now_v7(), shop_till, rival_till, "1.00").await?.expect("201 posted")?;
    let own = setting.send(Call::get("/v1/accounts"), rival).await?.expect("200")?;
    let ids: Vec<&Value> = items(&own.body)?.iter().map(|account| &account["id"]).collect();
    expect!(ids == [rival_safe, rival_till], "{ids:?}");
    let page = setting.send(Call::get("/v1/accounts?limit=1"), shop).await?.expect("200")?;
    let cursor =
        page.body["next_cursor"].as_str().with_context(|| format!("expected next_cursor in {}", page.body))?;
    let (shops, rivals) = (escaped(shop_till).replace("till", ""), escaped(rival_till).replace("till", "t"));
    for (path, expected) in [
        (format!("/v1/accounts?prefix={shops}"), "403 not_permitted at=?prefix"),
        ("/v1/accounts?prefix=%7B".to_owned(), "403 not_permitted at=?prefix"),
        (format!("/v1/balances?prefix={shops}"), "403 not_permitted at=?prefix"),
        (format!("/v1/accounts?limit=1&cursor={cursor}"), "400 invalid_parameter at=?cursor"),
        (format!("/v1/accounts?prefix={rivals}"), "200"),
    ] {
        setting.send(Call::get(&path), rival).await?.expect(expected)?;
    }
    let sums = setting.send(Call::get("/v1/balances"), rival).await?.expect("200")?;
    expect!(sums.body["data"][0]["posted"] == "101.00" && sums.body["data"][0]["accounts"] == 2, "{}", sums.body);
    setting.finish().await
}

/// API3: the payee of a payment sees it without the payer's balances, and cannot give back money of others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_between_tenants_is_seen_by_both_and_reversed_by_neither() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { operator, shop, rival, shop_till, rival_till, .. } = &setting;
    let (paid, refused) = (Uuid::now_v7(), Uuid::now_v7());
    let read = |id: Uuid| Call::get(&format!("/v1/transfers/{id}"));
    setting.order(operator, paid, shop_till, rival_till, "1.00").await?.expect("201 posted")?;
    let payee = setting.send(read(paid), rival).await?.expect("200 posted")?;
    expect!(payee.body["debit_account"].is_null() && payee.body["amount"] == "1.00", "{}", payee.body);
    let payer = setting.send(read(paid), shop).await?.expect("200 posted")?;
    expect!(payer.body["debit_account"]["available"].is_string(), "{}", payer.body);
    // A reversal debits the rival's account, which the shop must not debit, and credits the shop's account, which the rival must not
    // credit.
    let reverse = Call::post(&format!("/v1/transfers/{paid}/reverse"), &json!({"id": Uuid::now_v7()}));
    setting.send(reverse.clone(), rival).await?.expect("403 not_permitted")?;
    setting.send(reverse, shop).await?.expect("403 not_permitted")?;

    // The payee does not learn of a payment to it that was refused.
    let too_much = setting.order(operator, refused, shop_till, rival_till, "5000.00").await?;
    too_much.expect("422 insufficient_funds side=debit")?;
    setting.send(read(refused), rival).await?.expect("404 transfer_not_found")?;
    setting.send(read(refused), shop).await?.expect("200 rejected side=debit")?;
    setting.finish().await
}

/// API1 (object level).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_two_tenants_use_is_ambiguous_for_neither_of_them() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { operator, shop, rival, shop_till, shop_safe, rival_till, rival_safe, .. } = &setting;
    let id = Uuid::now_v7();
    setting.order(shop, id, shop_till, shop_safe, "1.00").await?.expect("201 posted")?;
    setting.order(rival, id, rival_till, rival_safe, "1.00").await?.expect("201 posted")?;
    let read = || Call::get(&format!("/v1/transfers/{id}"));
    for (secret, debit) in [(shop, shop_till), (rival, rival_till)] {
        let found = setting.send(read(), secret).await?.expect("200 posted")?;
        expect!(found.body["debit"] == *debit, "{}", found.body);
    }
    setting.send(read(), operator).await?.expect("409 ambiguous_id")?;

    // The shop reverses its transfer under the transfer's own id. The reversal can be replayed although the rival has a transfer of that
    // id.
    let path = format!("/v1/transfers/{id}/reverse");
    let reversal = Call::post(&format!("{path}?debit={}", escaped(shop_till)), &json!({"id": id}));
    setting.send(reversal.clone(), shop).await?.expect("201 posted")?;
    setting.send(reversal, shop).await?.expect("200 posted replayed")?;
    setting.send(Call::post(&path, &json!({"id": id})), shop).await?.expect("200 posted replayed")?;
    setting.finish().await
}

/// The key of a tenant may credit one account of the bank, which it may not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_does_what_its_key_permits() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, shop_till, shop_safe, fees, .. } = &setting;
    setting.order(shop, Uuid::now_v7(), shop_till, fees, "0.50").await?.expect("201 posted")?;
    setting.send(Call::get(&account_path(fees)), shop).await?.expect("404 account_not_found")?;
    let beside = setting.order(shop, Uuid::now_v7(), shop_till, &format!("{fees}2"), "0.50").await?;
    beside.expect("403 not_permitted at='/credit'")?;

    let (paid, held) = (Uuid::now_v7(), Uuid::now_v7());
    setting.order(shop, paid, shop_till, shop_safe, "10.00").await?.expect("201 posted")?;
    let hold = Call::post("/v1/holds", &transfer(held, shop_till, shop_safe, "5.00"));
    setting.send(hold, shop).await?.expect("201 held")?;
    for path in [format!("/v1/holds/{held}/capture"), format!("/v1/transfers/{paid}/reverse")] {
        let ordered = setting.send(Call::post(&path, &json!({"id": Uuid::now_v7()})), shop).await?;
        ordered.expect("201 posted")?;
    }
    setting.finish().await
}

/// API2: authentication.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_known_key_is_refused() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, rival, shop_till, .. } = &setting;
    let own = account_path(shop_till);
    let api = &setting.router.api;
    for call in [
        Call::get(&own),
        Call::get(&own).header("authorization", "Bearer"),
        Call::get(&own).header("authorization", "Basic c2hvcDpzaG9w"),
        Call::get(&own).header("authorization", format!("Bearer {}x", shop.text())),
        Call::get(&own).header("authorization", format!("Bearer {}", Digest::of(shop.text()))),
        Call::get("/v1/nothing"),
    ] {
        let reply = api.send(call).await?.expect("401 unauthenticated")?;
        expect!(reply.header("www-authenticate") == "Bearer", "{:?}", reply.headers);
    }
    // Two values are refused, because a proxy on the way may have judged the other one.
    let twice = Call::get(&own).key(shop).key(rival);
    api.send(twice).await?.expect("400 invalid_parameter at=Authorization:")?;
    ensure!(api.send(Call::get("/openapi.json")).await?.status == 200);
    setting.finish().await
}

/// API3 and API5: the role `write` opens accounts that cannot go below zero, and changes no account. The role `read` orders nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_needs_a_key_with_the_role() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, shop_till, shop_safe, .. } = &setting;
    let new = shop_till.replace("till", "new");
    let open =
        |overdraft: &str| Call::post("/v1/accounts", &json!({"id": new, "asset": "EUR", "overdraft": overdraft}));
    setting.send(open("unlimited"), shop).await?.expect("403 not_permitted at='/overdraft'")?;
    setting.send(open("5.00"), shop).await?.expect("403 not_permitted at='/overdraft'")?;
    setting.send(open("0"), shop).await?.expect("201 open")?;
    let raise = Call::patch(&account_path(&new), &json!({"overdraft": "unlimited"}));
    setting.send(raise, shop).await?.expect("403 not_permitted")?;

    let reader = Secret::generate()?;
    let entry = setting.tenant("shop", &reader, "").replace("\"read\", \"write\"", "\"read\"");
    setting.rewrite(&(setting.operator_entry() + &entry), &reader, true).await?;
    setting.send(Call::get(&account_path(shop_till)), &reader).await?.expect("200 open")?;
    let ordered = setting.order(&reader, Uuid::now_v7(), shop_till, shop_safe, "1.00").await?;
    ordered.expect("403 not_permitted")?;
    setting.finish().await
}

/// API4 (resource consumption): the requests of one key do not count against another key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_beyond_its_rate_is_refused() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { shop, shop_till, rival_till, .. } = &setting;
    let slow = Secret::generate()?;
    let keys = setting.operator_entry()
        + &setting.tenant("shop", shop, "")
        + &setting.tenant("rival", &slow, "requests_per_second = 1\nburst = 2");
    setting.rewrite(&keys, &slow, true).await?;
    let mut refused = None;
    for _ in 0..20 {
        let reply = setting.send(Call::get(&account_path(rival_till)), &slow).await?;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.context("no request was refused for its rate")?.expect("429 rate_limited")?;
    expect!(refused.header("retry-after") == "1" && refused.body["executed"] == false, "{}", refused.body);
    setting.send(Call::get(&account_path(shop_till)), shop).await?.expect("200 open")?;
    setting.finish().await
}

/// API8 (configuration) and API10: a file of keys is taken or refused as a whole, and no log has a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_and_revoked_while_the_router_runs() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let Setting { operator, shop, rival, shop_till, .. } = &setting;
    let own = || Call::get(&account_path(shop_till));
    let next = Secret::generate()?;
    let both = setting
        .tenant("shop", shop, "")
        .replace(" }]", &format!(" }}, {{ sha256 = \"{}\" }}]", Digest::of(next.text())));
    setting.rewrite(&(setting.operator_entry() + &both), &next, true).await?;
    setting.send(own(), shop).await?.expect("200 open")?;
    // The other tenant is no longer in the file.
    setting.send(own(), rival).await?.expect("401 unauthenticated")?;

    // A wrong file changes nothing, and `/readyz` says what is wrong.
    std::fs::write(setting.router.keys(), both.replace("\"write\"", "\"root\""))?;
    until("the router names the wrong file", PATIENCE, async || {
        let readiness = setting.router.process.readiness().await?;
        Ok(readiness["keys"]["refused"].as_str().is_some_and(|reason| reason.contains("line 3")).then_some(()))
    })
    .await?;
    setting.send(own(), shop).await?.expect("200 open")?;

    setting.rewrite(&(setting.operator_entry() + &setting.tenant("shop", &next, "")), shop, false).await?;
    setting.send(own(), &next).await?.expect("200 open")?;
    let expired = setting.tenant("shop", &next, "expires_at = \"2020-01-01T00:00:00Z\"");
    setting.rewrite(&(setting.operator_entry() + &expired), &next, false).await?;

    let log = setting.router.process.log();
    for secret in [shop, rival, operator, &next] {
        let has_secret = log.contains(secret.text()) || log.contains(&Digest::of(secret.text()).to_string());
        ensure!(!has_secret, "the log has a secret");
    }
    setting.finish().await
}

/// API8: without keys, a router listens on loopback only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_without_keys_refuses_to_listen_beyond_loopback() -> anyhow::Result<()> {
    let folder = Folder::create()?;
    let map = folder.path().join("shard-map.toml");
    let config = RouterConfig::write(&folder, "open", &map, "")?;
    config.edit(|text| text.replace("127.0.0.1", "0.0.0.0"))?;
    let said = Router::start_refused(&config).await?;
    expect!(said.contains("keys.path") && said.contains("keys.allow_unauthenticated"), "{said}");
    Ok(())
}

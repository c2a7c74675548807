//! Keys: what a key permits, and that nothing of another tenant can be read, moved or noticed without one. The tests follow the
//! risks of the OWASP API Security Top 10 (2023), which `docs/operations/keys.md` lists.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use http::Method;
use keys::{Digest, Secret};
use ledger::BookingKind;
use serde_json::{Value, json};
use testkit::{
    cluster::Cluster,
    database,
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
};
use uuid::Uuid;

use super::api::{Api, Call, NDJSON, Reply};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A router with keys in front of a cluster. The operator's key may do everything; `shop` and `rival` are tenants.
struct Setting {
    api: Api,
    file: PathBuf,
    operator: Secret,
    shop: Secret,
    rival: Secret,
    _folder: Folder,
    router: Router,
    cluster: Cluster,
}

/// A key of a tenant, which may credit the bank's fee account, too.
fn tenant(name: &str, secret: &Secret, more: &str) -> String {
    format!(
        "[[key]]\nname = \"{name}\"\nroles = [\"read\", \"write\"]\ndebit = [\"{{{name}}}:\"]\ncredit = [\"{{{name}}}:\", \"=bank:fees\"]\n\
         read = [\"{{{name}}}:\"]\nsecrets = [{{ sha256 = \"{}\" }}]\n{more}\n",
        Digest::of(secret.text())
    )
}

fn operator(secret: &Secret) -> String {
    format!(
        "[[key]]\nname = \"operator\"\nroles = [\"read\", \"write\", \"admin\"]\ndebit = [\"*\"]\ncredit = [\"*\"]\nread = [\"*\"]\n\
         secrets = [{{ sha256 = \"{}\" }}]\n",
        Digest::of(secret.text())
    )
}

trait WithKey {
    fn key(self, secret: &Secret) -> Call;
}

impl WithKey for Call {
    fn key(self, secret: &Secret) -> Call {
        self.header("authorization", format!("Bearer {}", secret.text()))
    }
}

impl Setting {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::start(2, 1).await?;
        let folder = Folder::create()?;
        let (operator_key, shop, rival) = (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        let file = folder.path().join("keys.toml");
        let keys = operator(&operator_key) + &tenant("shop", &shop, "") + &tenant("rival", &rival, "");
        std::fs::write(&file, keys)?;
        let config = RouterConfig::write(
            &folder,
            "router",
            &cluster.shard_map_path(),
            "[keys]\npath = \"keys.toml\"\n[assets]\nBTC = 8",
        )?;
        let router = Router::start(&config).await?;
        let api = Api::connect(vec![config.url()]).await?;
        let setting = Self { api, file, operator: operator_key, shop, rival, _folder: folder, router, cluster };
        for (id, overdraft) in [
            ("bank:cash", "unlimited"),
            ("bank:fees", "0"),
            ("{shop}:till", "0"),
            ("{shop}:safe", "0"),
            ("{rival}:till", "0"),
            ("{rival}:safe", "0"),
        ] {
            let body = json!({"id": id, "asset": "EUR", "overdraft": overdraft});
            setting.send(Call::post("/v1/accounts", &body), &setting.operator).await?.expect("201 open")?;
        }
        for payee in ["{shop}:till", "{rival}:till"] {
            setting
                .order(&setting.operator, Uuid::now_v7(), "bank:cash", payee, "100.00")
                .await?
                .expect("201 posted")?;
        }
        Ok(setting)
    }

    async fn send(&self, call: Call, secret: &Secret) -> anyhow::Result<Reply> {
        self.api.send(call.key(secret)).await
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

    /// Writes the file of keys, and waits until a key is known, or is not any more.
    async fn rewrite(&self, keys: &str, secret: &Secret, known: bool) -> anyhow::Result<()> {
        std::fs::write(&self.file, keys)?;
        until("the router has the new keys", PATIENCE, async || {
            let reply = self.api.send(Call::get("/v1/accounts?limit=1").key(secret)).await?;
            Ok(((reply.status != 401) == known).then_some(()))
        })
        .await
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.cluster.verify().await?;
        self.cluster.finish().await
    }
}

fn transfer(id: Uuid, debit: &str, credit: &str, amount: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR"})
}

/// The answer, without what differs between two answers of the same kind: the request's id, and the id or account that was asked for.
fn form(reply: &Reply, asked: &str) -> String {
    let mut body = reply.body.clone();
    body["request_id"] = Value::Null;
    format!(
        "{} {}",
        reply.status,
        body.to_string().replace(asked, "…").replace(&asked.replace('{', "%7B").replace('}', "%7D"), "…")
    )
}

/// Who ordered something stays in the journal, and a tenant learns no name of another tenant's keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_names_the_key_that_ordered_each_booking() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let (shop, rival, operator) = (&setting.shop, &setting.rival, &setting.operator);
    let (own, paid, held) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let ordered = setting.order(shop, own, "{shop}:till", "{shop}:safe", "10.00").await?.expect("201 posted")?;
    ensure!(ordered.body["ordered_by"] == "shop", "{}", ordered.body);
    // A replay with another key names the first one.
    let again =
        setting.order(operator, own, "{shop}:till", "{shop}:safe", "10.00").await?.expect("200 posted replayed")?;
    ensure!(again.body["ordered_by"] == "shop", "{}", again.body);
    setting.order(operator, paid, "{shop}:till", "{rival}:till", "1.00").await?.expect("201 posted")?;

    let hold =
        json!({"id": held, "debit": "{shop}:till", "credit": "{rival}:till", "amount": "5.00", "asset": "EUR"});
    let placed = setting.send(Call::post("/v1/holds", &hold), operator).await?.expect("201 held")?;
    ensure!(placed.body["ordered_by"] == "operator" && placed.body["ended_by"].is_null(), "{}", placed.body);
    let release = Call::post(&format!("/v1/holds/{held}/release"), &json!({}));
    let released = setting.send(release, shop).await?.expect("200 released")?;
    ensure!(released.body["ordered_by"] == "operator" && released.body["ended_by"] == "shop", "{}", released.body);
    let freeze = Call::patch("/v1/accounts/%7Bshop%7D:safe", &json!({"status": "frozen"}));
    setting.send(freeze, operator).await?.expect("200 frozen")?;

    // The payer sees the name, the payee does not.
    for (secret, path, expected) in [
        (shop, format!("/v1/transfers/{paid}"), json!("operator")),
        (rival, format!("/v1/transfers/{paid}"), Value::Null),
        (shop, format!("/v1/transfers/{own}"), json!("shop")),
    ] {
        let seen = setting.send(Call::get(&path), secret).await?.expect("200 posted")?;
        ensure!(seen.body["ordered_by"] == expected, "{path}: {}", seen.body);
    }
    let names = async |account: &str, secret: &Secret| -> anyhow::Result<Vec<String>> {
        let page =
            setting.send(Call::get(&format!("/v1/accounts/{account}/entries")), secret).await?.expect("200")?;
        let entries = page.body["data"].as_array().context("data")?;
        Ok(entries
            .iter()
            .map(|entry| format!("{} {}", entry["kind"].as_str().unwrap_or("?"), entry["ordered_by"]))
            .collect())
    };
    // Newest first. The operator funded both tills and opened all accounts.
    let till = names("%7Bshop%7D:till", shop).await?;
    let payee = names("%7Brival%7D:till", rival).await?;
    let safe = names("%7Bshop%7D:safe", shop).await?;
    ensure!(payee.iter().all(|entry| entry.ends_with(" null") || entry.starts_with("opened")), "{payee:?}");
    ensure!(till.iter().filter(|entry| entry.ends_with("\"shop\"")).count() == 2, "{till:?}");
    ensure!(safe.iter().any(|entry| entry.ends_with("\"operator\"")), "{safe:?}");

    // Each row that a client's request wrote has the name, on both sides of a transfer between shards.
    let mut found = Vec::new();
    for shard in &setting.cluster.status().shards {
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
        ensure!(found.contains(&(id, first, name.to_owned())), "{id} {first:?}: {found:?}");
    }
    let of_paid: Vec<_> = found.iter().filter(|(id, kind, _)| *id == paid && *kind != BookingKind::Settled).collect();
    ensure!(!of_paid.is_empty() && of_paid.iter().all(|(_, _, name)| name == "operator"), "{found:?}");
    setting.finish().await
}

/// API1 (object level), API3 (property level), API5 (function level): no route, id, cursor, batch, hold, reversal or message gives a tenant
/// anything of another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_neither_reads_nor_moves_what_is_another_tenants() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let (shop, rival) = (&setting.shop, &setting.rival);
    let (paid, held, mixed) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    setting.order(shop, paid, "{shop}:till", "{shop}:safe", "10.00").await?.expect("201 posted")?;
    let hold = json!({"id": held, "debit": "{shop}:till", "credit": "{shop}:safe", "amount": "5.00", "asset": "EUR"});
    setting.send(Call::post("/v1/holds", &hold), shop).await?.expect("201 held")?;
    // A payment of the shop to the rival, by the operator: both may see it.
    setting.order(&setting.operator, mixed, "{shop}:till", "{rival}:till", "1.00").await?.expect("201 posted")?;

    // What the URL names is answered as if it did not exist: the same status, code and words.
    let unused = Uuid::now_v7();
    for (method, path, missing, body) in [
        (
            Method::GET,
            "/v1/accounts/%7Bshop%7D:till".to_owned(),
            "/v1/accounts/%7Bshop%7D:none".to_owned(),
            json!({}),
        ),
        (
            Method::GET,
            "/v1/accounts/%7Bshop%7D:till/entries".into(),
            "/v1/accounts/%7Bshop%7D:none/entries".into(),
            json!({}),
        ),
        (
            Method::GET,
            "/v1/accounts/%7Bshop%7D:till/balance".into(),
            "/v1/accounts/%7Bshop%7D:none/balance".into(),
            json!({}),
        ),
        (Method::GET, format!("/v1/transfers/{paid}"), format!("/v1/transfers/{unused}"), json!({})),
        (
            Method::GET,
            format!("/v1/transfers/{paid}?debit=%7Bshop%7D:till"),
            format!("/v1/transfers/{unused}?debit=%7Bshop%7D:till"),
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
        ensure!(real.status == 404, "{method} {path}: {}", real.body);
        let (real, unreal) = (
            form(&real, &paid.to_string())
                .replace(&held.to_string(), "…")
                .replace("{shop}:till", "…")
                .replace("%7Bshop%7D:till", "…"),
            form(&unreal, &unused.to_string())
                .replace("{shop}:none", "…")
                .replace("%7Bshop%7D:none", "…")
                .replace("%7Bshop%7D:till", "…"),
        );
        ensure!(real == unreal, "{method} {path}\n  {real}\n  {unreal}");
    }

    // What the body names is refused by the key alone, whether it exists or not.
    for (debit, credit, at) in [
        ("{shop}:till", "{rival}:till", "'/debit'"),
        ("{shop}:none", "{rival}:till", "'/debit'"),
        ("{rival}:till", "{shop}:till", "'/credit'"),
        ("bank:fees", "{rival}:till", "'/debit'"),
        ("{rival}:till", "bank:cash", "'/credit'"),
    ] {
        let id = Uuid::now_v7();
        let refused = format!("403 not_permitted at={at}");
        setting.order(rival, id, debit, credit, "1.00").await?.expect(&refused)?;
        let dry = Call::post("/v1/transfers?dry_run=true", &transfer(id, debit, credit, "1.00"));
        setting.send(dry, rival).await?.expect(&refused)?;
        setting.send(Call::post("/v1/holds", &transfer(id, debit, credit, "1.00")), rival).await?.expect(&refused)?;
        // Nothing was stored under the id.
        let there = setting.send(Call::get(&format!("/v1/transfers/{id}")), &setting.operator).await?;
        there.expect("404 transfer_not_found")?;
    }
    // A batch with one such item does nothing.
    let good = Uuid::now_v7();
    let items = [
        transfer(good, "{rival}:till", "{rival}:safe", "1.00"),
        transfer(Uuid::now_v7(), "{shop}:till", "{rival}:till", "1.00"),
    ];
    for atomic in [false, true] {
        let batch = Call::post("/v1/transfers:batch", &json!({"transfers": items, "atomic": atomic}));
        setting.send(batch, rival).await?.expect("403 not_permitted at='/transfers/1/debit'")?;
    }
    let lines = Call::bare(Method::POST, "/v1/transfers:batch", format!("{}\n{}\n", items[0], items[1]))
        .header("content-type", NDJSON);
    setting.send(lines, rival).await?.expect("403 not_permitted at='/1/debit'")?;
    setting.send(Call::get(&format!("/v1/transfers/{good}")), rival).await?.expect("404 transfer_not_found")?;

    // Accounts are neither opened nor changed elsewhere, and tell nothing by a conflict.
    let opened = json!({"id": "{shop}:till", "asset": "USD"});
    setting.send(Call::post("/v1/accounts", &opened), rival).await?.expect("403 not_permitted at='/id'")?;
    let batch = json!({"accounts": [{"id": "{rival}:new", "asset": "EUR"}, opened]});
    setting
        .send(Call::post("/v1/accounts:batch", &batch), rival)
        .await?
        .expect("403 not_permitted at='/accounts/1/id'")?;
    setting.send(Call::get("/v1/accounts/%7Brival%7D:new"), rival).await?.expect("404 account_not_found")?;
    let freeze = json!({"status": "frozen"});
    setting.send(Call::patch("/v1/accounts/%7Bshop%7D:till", &freeze), rival).await?.expect("403 not_permitted")?;
    // A key that may debit every account and read none learns no balance by opening an account that is there.
    let collector = Secret::generate()?;
    let keys = operator(&setting.operator)
        + &tenant("shop", shop, "")
        + &tenant("rival", rival, "")
        + &tenant("collector", &collector, "").replace("debit = [\"{collector}:\"]", "debit = [\"*\"]");
    setting.rewrite(&keys, &collector, true).await?;
    let again = json!({"id": "{shop}:till", "asset": "EUR"});
    setting.send(Call::post("/v1/accounts", &again), &collector).await?.expect("403 not_permitted at='/id'")?;

    // Lists and sums hold the tenant's own accounts only.
    let own = setting.send(Call::get("/v1/accounts"), rival).await?.expect("200")?;
    let ids: Vec<_> =
        own.body["data"].as_array().context("data")?.iter().map(|account| account["id"].clone()).collect();
    ensure!(ids == ["{rival}:safe", "{rival}:till"], "{ids:?}");
    let page = setting.send(Call::get("/v1/accounts?limit=1"), shop).await?.expect("200")?;
    let cursor = page.body["next_cursor"].as_str().context("a second page")?.to_owned();
    for (path, expected) in [
        ("/v1/accounts?prefix=%7Bshop%7D:".to_owned(), "403 not_permitted at=?prefix"),
        ("/v1/accounts?prefix=%7B".to_owned(), "403 not_permitted at=?prefix"),
        ("/v1/balances?prefix=%7Bshop%7D:".to_owned(), "403 not_permitted at=?prefix"),
        (format!("/v1/accounts?limit=1&cursor={cursor}"), "400 invalid_parameter at=?cursor"),
        ("/v1/accounts?prefix=%7Brival%7D:t".to_owned(), "200"),
    ] {
        setting.send(Call::get(&path), rival).await?.expect(expected)?;
    }
    let sums = setting.send(Call::get("/v1/balances"), rival).await?.expect("200")?;
    ensure!(sums.body.to_string().contains("101.00") && !sums.body.to_string().contains("199"), "{}", sums.body);

    // The payee sees a payment to it, without the payer's balances; it gives back its own money, and takes no more.
    let seen = setting.send(Call::get(&format!("/v1/transfers/{mixed}")), rival).await?.expect("200 posted")?;
    ensure!(seen.body["debit_account"].is_null() && seen.body["amount"] == "1.00", "{}", seen.body);
    let payer = setting.send(Call::get(&format!("/v1/transfers/{mixed}")), shop).await?.expect("200 posted")?;
    ensure!(payer.body["debit_account"]["available"].is_string(), "{}", payer.body);
    // A reversal credits the shop's account, which the rival may not.
    let reverse = Call::post(&format!("/v1/transfers/{mixed}/reverse"), &json!({"id": Uuid::now_v7()}));
    setting.send(reverse.clone(), rival).await?.expect("403 not_permitted")?;
    setting.send(reverse, shop).await?.expect("403 not_permitted")?;

    // One id, used by both tenants, is ambiguous for neither of them.
    let shared = Uuid::now_v7();
    setting.order(shop, shared, "{shop}:till", "{shop}:safe", "1.00").await?.expect("201 posted")?;
    setting.order(rival, shared, "{rival}:till", "{rival}:safe", "1.00").await?.expect("201 posted")?;
    for (secret, debit) in [(shop, "{shop}:till"), (rival, "{rival}:till")] {
        let found =
            setting.send(Call::get(&format!("/v1/transfers/{shared}")), secret).await?.expect("200 posted")?;
        ensure!(found.body["debit"] == debit, "{}", found.body);
    }
    setting
        .send(Call::get(&format!("/v1/transfers/{shared}")), &setting.operator)
        .await?
        .expect("409 ambiguous_id")?;

    // A rival's transfer under the id of one does not make it ambiguous, and a reversal under the id of its original is replayed.
    let reversal =
        Call::post(&format!("/v1/transfers/{shared}/reverse?debit=%7Bshop%7D:till"), &json!({"id": shared}));
    setting.send(reversal.clone(), shop).await?.expect("201 posted")?;
    setting.send(reversal, shop).await?.expect("200 posted replayed")?;
    let reversal = Call::post(&format!("/v1/transfers/{shared}/reverse"), &json!({"id": shared}));
    setting.send(reversal, shop).await?.expect("200 posted replayed")?;

    // The payee does not learn of a payment to it that was refused.
    let refused = Uuid::now_v7();
    let too_much = setting.order(&setting.operator, refused, "{shop}:till", "{rival}:till", "5000.00").await?;
    too_much.expect("422 insufficient_funds side=debit")?;
    setting.send(Call::get(&format!("/v1/transfers/{refused}")), rival).await?.expect("404 transfer_not_found")?;
    setting.send(Call::get(&format!("/v1/transfers/{refused}")), shop).await?.expect("200 rejected side=debit")?;

    // What is permitted works: a fee to the bank, which the tenant cannot read.
    setting.order(shop, Uuid::now_v7(), "{shop}:till", "bank:fees", "0.50").await?.expect("201 posted")?;
    setting.send(Call::get("/v1/accounts/bank:fees"), shop).await?.expect("404 account_not_found")?;
    let beside = setting.order(shop, Uuid::now_v7(), "{shop}:till", "bank:fees2", "0.50").await?;
    beside.expect("403 not_permitted at='/credit'")?;
    setting
        .send(Call::post(&format!("/v1/holds/{held}/capture"), &json!({"id": Uuid::now_v7()})), shop)
        .await?
        .expect("201 posted")?;
    setting
        .send(Call::post(&format!("/v1/transfers/{paid}/reverse"), &json!({"id": Uuid::now_v7()})), shop)
        .await?
        .expect("201 posted")?;
    setting.finish().await
}

/// API2 (authentication) and API5: no key, a wrong one, one without the role.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_needs_a_key_with_the_role_and_within_its_rate() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let own = "/v1/accounts/%7Bshop%7D:till";
    for call in [
        Call::get(own),
        Call::get(own).header("authorization", "Bearer"),
        Call::get(own).header("authorization", "Basic c2hvcDpzaG9w"),
        Call::get(own).header("authorization", format!("Bearer {}x", setting.shop.text())),
        Call::get(own).header("authorization", format!("Bearer {}", Digest::of(setting.shop.text()))),
        Call::get("/v1/nothing"),
    ] {
        let reply = setting.api.send(call).await?.expect("401 unauthenticated")?;
        ensure!(reply.header("www-authenticate") == "Bearer", "{:?}", reply.headers);
    }
    // Two values: a proxy on the way may have judged the other one.
    let twice = Call::get(own).key(&setting.shop).key(&setting.rival);
    setting.api.send(twice).await?.expect("400 invalid_parameter at=Authorization:")?;
    ensure!(setting.api.send(Call::get("/openapi.json")).await?.status == 200);

    // The tenant's key opens accounts, but none that could go below zero, and changes none.
    let open = |overdraft: &str| {
        Call::post("/v1/accounts", &json!({"id": "{shop}:new", "asset": "EUR", "overdraft": overdraft}))
    };
    setting.send(open("unlimited"), &setting.shop).await?.expect("403 not_permitted at='/overdraft'")?;
    setting.send(open("5.00"), &setting.shop).await?.expect("403 not_permitted at='/overdraft'")?;
    setting.send(open("0"), &setting.shop).await?.expect("201 open")?;
    let raise = Call::patch("/v1/accounts/%7Bshop%7D:new", &json!({"overdraft": "unlimited"}));
    setting.send(raise, &setting.shop).await?.expect("403 not_permitted")?;

    // A key with one role, and a rate of its own.
    let (reader, slow) = (Secret::generate()?, Secret::generate()?);
    let keys = operator(&setting.operator)
        + &tenant("shop", &reader, "").replace("\"read\", \"write\"", "\"read\"")
        + &tenant("rival", &slow, "requests_per_second = 1\nburst = 2");
    setting.rewrite(&keys, &reader, true).await?;
    setting.send(Call::get(own), &reader).await?.expect("200 open")?;
    setting
        .order(&reader, Uuid::now_v7(), "{shop}:till", "{shop}:safe", "1.00")
        .await?
        .expect("403 not_permitted")?;
    let mut refused = None;
    for _ in 0..20 {
        let reply = setting.send(Call::get("/v1/accounts/%7Brival%7D:till"), &slow).await?;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.context("the rate is never met")?.expect("429 rate_limited")?;
    ensure!(refused.header("retry-after") == "1" && refused.body["executed"] == false, "{}", refused.body);
    // The rate of one key is not another key's.
    setting.send(Call::get(own), &reader).await?.expect("200 open")?;
    setting.finish().await
}

/// API8 (configuration), and the life of a key: a file is taken as a whole, a key is rotated, revoked and expires; no log has a secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_and_revoked_while_the_router_runs() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let own = || Call::get("/v1/accounts/%7Bshop%7D:till");
    let next = Secret::generate()?;
    let both = tenant("shop", &setting.shop, "")
        .replace(" }]", &format!(" }}, {{ sha256 = \"{}\" }}]", Digest::of(next.text())));
    setting.rewrite(&(operator(&setting.operator) + &both), &next, true).await?;
    setting.send(own(), &setting.shop).await?.expect("200 open")?;
    // The other tenant is no longer in the file.
    setting.send(own(), &setting.rival).await?.expect("401 unauthenticated")?;

    // A wrong file changes nothing, and is named.
    std::fs::write(&setting.file, both.replace("\"write\"", "\"root\""))?;
    until("the router names the wrong file", PATIENCE, async || {
        let readiness = setting.router.readiness().await?;
        Ok(readiness["keys"]["refused"].as_str().is_some_and(|reason| reason.contains("line 3")).then_some(()))
    })
    .await?;
    setting.send(own(), &setting.shop).await?.expect("200 open")?;

    setting.rewrite(&(operator(&setting.operator) + &tenant("shop", &next, "")), &setting.shop, false).await?;
    setting.send(own(), &next).await?.expect("200 open")?;
    let expired = tenant("shop", &next, "expires_at = \"2020-01-01T00:00:00Z\"");
    setting.rewrite(&(operator(&setting.operator) + &expired), &next, false).await?;

    // API10, and "log nothing secret".
    let log = setting.router.log();
    for secret in [&setting.shop, &setting.rival, &setting.operator, &next] {
        ensure!(
            !log.contains(secret.text()) && !log.contains(&Digest::of(secret.text()).to_string()),
            "the log has a secret"
        );
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
    ensure!(said.contains("keys.path") && said.contains("keys.allow_unauthenticated"), "{said}");
    Ok(())
}

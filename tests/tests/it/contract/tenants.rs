//! Tests that a key of one tenant can neither read nor move another tenant's money, by any operation of the API.
//!
//! Each attack is sent twice: about something of another tenant, and about something that does not exist. The two answers must be the same
//! except for the names, so that an answer does not reveal what exists. Every operation of `docs/openapi.json` and each of its parameters
//! has an attack. A new operation fails the first test until it has one.

mod attacks;
mod reports;

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use http::HeaderName;
use keys::Secret;
use serde_json::{Value, json};
use testkit::client::{account_path, escaped};
use uuid::Uuid;

use self::attacks::{ATTACKS, Attack, OWN_READS, REUSED_IDS, under_key};
use super::{
    api::{Call, Reply},
    callers::{OwnRouter, entry, text},
    stage::Stage,
};

/// Parameters that do not name accounts, transfers or holds.
const NEUTRAL: [&str; 3] = ["X-Request-Id", "X-Request-Timeout-Ms", "traceparent"];

#[test]
fn every_operation_and_every_parameter_of_the_description_has_an_attack() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json")).unwrap();
    let description: Value = serde_json::from_str(&text).unwrap();
    let target = Target::nothing(&Tenants::own_accounts("0"));
    let tried = |operation: &str| {
        let attacks = ATTACKS.iter().filter(|attack| attack.operation == operation);
        attacks.map(|attack| (attack.request)(&target)).collect::<Vec<_>>()
    };
    let mut operations = BTreeSet::new();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            operations.insert(name);
            let requests = tried(name);
            assert!(
                !requests.is_empty(),
                "{name} ({method} {path}) has no attack: add one to contract/tenants/attacks.rs"
            );
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = match parameter["$ref"].as_str() {
                    Some(reference) => description.pointer(reference.trim_start_matches('#')).unwrap(),
                    None => parameter,
                };
                let (kind, parameter) = (parameter["in"].as_str().unwrap(), parameter["name"].as_str().unwrap());
                let is_tried = match kind {
                    "path" => true,
                    "query" => requests.iter().any(|request| has_parameter(request, parameter)),
                    _ => NEUTRAL.contains(&parameter) || requests.iter().any(|request| request.has_header(parameter)),
                };
                assert!(is_tried, "no attack on {name} uses {parameter}: add one to contract/tenants/attacks.rs");
            }
        }
    }
    for Attack { operation, .. } in ATTACKS {
        assert!(operations.contains(operation), "the description has no operation {operation}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_learns_and_moves_nothing_of_another_one_by_any_operation() -> anyhow::Result<()> {
    let stage = Tenants::set().await?;
    let (foreign, own) = (stage.read_foreign().await?, stage.read_own().await?);
    let mut findings = Vec::new();
    for attack in ATTACKS {
        for target in &stage.targets {
            if let Err(error) = attacked(&stage, attack, target).await {
                findings.push(format!("{} {}: {error:#}", attack.operation, target.account));
            }
        }
    }
    ensure!(stage.read_own().await? == own, "a part of an attack was executed on accounts of the attacker");

    // An id or a key that another tenant has used is treated as one that was never used.
    for (operation, request) in REUSED_IDS {
        for id in stage.used_ids() {
            let reply = stage.attack(request(&stage, id)).await?;
            if reply.status != 201 || is_replay(&reply) {
                findings.push(format!("{operation} with an id of another tenant: {} {}", reply.status, reply.body));
            }
        }
    }
    let under_key = stage.attack(under_key(&stage, USED_KEY)).await?;
    expect!(under_key.status == 201 && !is_replay(&under_key), "{}", under_key.body);
    for request in OWN_READS {
        let request = request(&stage);
        let answer = stage.router.api.text(&request.clone().key(&stage.attacker)).await?;
        if answer.status != 200 {
            findings.push(format!("{}: {} {}", request.path, answer.status, answer.body));
        }
        findings.extend(stage.secret_in(&answer.body).map(|secret| format!("{} shows {secret}", request.path)));
    }
    // The reused ids must not have changed anything of others, either.
    ensure!(stage.read_foreign().await? == foreign, "something of another tenant has changed");
    ensure!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
    stage.finish().await
}

/// Whether the query has this parameter.
fn has_parameter(call: &Call, name: &str) -> bool {
    let query = call.path.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|parameter| parameter.split('=').next() == Some(name))
}

/// Sends an attack on something that exists and on something that does not.
async fn attacked(stage: &Tenants, attack: &Attack, target: &Target) -> anyhow::Result<()> {
    let request = (attack.request)(target);
    let missing = Target::nothing(&target.own);
    let told = format!("{} {}", request.method, request.path);
    let (found, absent) = (stage.attack(request).await?, stage.attack((attack.request)(&missing)).await?);
    let code = found.body["code"].as_str().unwrap_or_default();
    ensure!(
        format!("{} {code}", found.status) == attack.expected,
        "{told}: {} {}, not {}",
        found.status,
        found.body,
        attack.expected
    );
    let (found_form, absent_form) = (form(&found, target), form(&absent, &missing));
    ensure!(found_form == absent_form, "{told}\n  exists: {found_form}\n  absent: {absent_form}");
    if let Some(secret) = stage.secret_in(&found.body.to_string()) {
        anyhow::bail!("{told}: {} {} shows {secret}", found.status, found.body);
    }
    Ok(())
}

fn is_replay(reply: &Reply) -> bool {
    reply.header("idempotent-replayed") == "true"
}

/// The answer without the parts that differ between two answers of the same kind: the request's id, and the names in the request.
fn form(reply: &Reply, target: &Target) -> String {
    let mut body = reply.body.clone();
    body["request_id"] = Value::Null;
    let mut headers: Vec<&str> = reply.headers.keys().map(HeaderName::as_str).collect();
    headers.sort_unstable();
    let mut text = format!("{} {headers:?} {body}", reply.status);
    for (number, own) in target.own.iter().enumerate() {
        text = text.replace(own, &format!("OWN-{number}")).replace(&escaped(own), &format!("OWN-{number}"));
    }
    for (name, stands_for) in [
        (target.account.clone(), "ACCOUNT"),
        (target.path(), "ACCOUNT"),
        (target.id.to_string(), "ID"),
        (target.new.to_string(), "NEW"),
    ] {
        text = text.replace(&name, stands_for);
    }
    text
}

/// The object of an attack.
#[derive(Debug, Clone)]
struct Target {
    account: String,
    /// The accounts of the attacker.
    own: [String; 4],
    /// The id of a transfer or hold.
    id: Uuid,
    /// An id for the attacker's own order.
    new: Uuid,
    key: String,
    /// Cursors of pages that the attacker must not see.
    cursors: Cursors,
}

/// Cursors by the kind of their list.
#[derive(Debug, Clone)]
struct Cursors {
    accounts: String,
    entries: String,
    transfers: String,
    holds: String,
}

impl Target {
    /// A target that does not exist.
    fn nothing(own: &[String; 4]) -> Self {
        let cursor = "v1-00000000".to_owned();
        Self {
            account: own[0].replace("shop42", "shop43").replace("till", "none"),
            own: own.clone(),
            id: Uuid::now_v7(),
            new: Uuid::now_v7(),
            key: Uuid::now_v7().to_string(),
            cursors: Cursors {
                accounts: cursor.clone(),
                entries: cursor.clone(),
                transfers: cursor.clone(),
                holds: cursor,
            },
        }
    }

    /// The path of the account.
    fn path(&self) -> String {
        escaped(&self.account)
    }
}

/// Two tenants and a bank, with their accounts, transfers and holds. One tenant is the attacker, the other one is the rival.
struct Tenants {
    operator: Secret,
    attacker: Secret,
    /// Accounts of the attacker.
    own: [String; 4],
    /// Accounts of others. Some of their ids begin as the attacker's ids do, or nearly so.
    foreign: [String; 5],
    targets: Vec<Target>,
    /// The rival's transfers and holds, which debit its till.
    transfers: Vec<Uuid>,
    holds: Vec<Uuid>,
    /// A transfer and an open hold of the attacker.
    own_transfer: Uuid,
    own_hold: Uuid,
    router: OwnRouter,
    stage: Stage,
}

/// The idempotency key that the rival has used.
const USED_KEY: &str = "order-1";

fn order(id: Uuid, debit: &str, credit: &str, amount: &str, note: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR", "metadata": {"note": note}})
}

impl Tenants {
    async fn set() -> anyhow::Result<Self> {
        let stage = Stage::shared().await?;
        let word = stage.word();
        let (operator, attacker, rival) = (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        let keys = entry("operator", "*", &operator)
            + &entry("shop42", &format!("{{shop42{word}}}:"), &attacker)
            + &entry("shop43", &format!("{{shop43{word}}}:"), &rival);
        let mut tenants = Self {
            operator,
            attacker,
            own: Self::own_accounts(word),
            foreign: [
                format!("{{shop43{word}}}:till"),
                format!("{{shop43{word}}}:vault"),
                format!("{{shop42{word}1}}:till"),
                format!("{{shop42{word}}}"),
                format!("bank{word}:cash"),
            ],
            targets: Vec::new(),
            transfers: Vec::new(),
            holds: Vec::new(),
            own_transfer: Uuid::now_v7(),
            own_hold: Uuid::now_v7(),
            router: OwnRouter::with_keys(&stage.cluster, &keys).await?,
            stage,
        };
        tenants.fill(&rival).await?;
        Ok(tenants)
    }

    fn own_accounts(word: &str) -> [String; 4] {
        ["till", "safe", "desk", "box"].map(|name| format!("{{shop42{word}}}:{name}"))
    }

    async fn fill(&mut self, rival: &Secret) -> anyhow::Result<()> {
        for id in self.foreign.iter().chain(&self.own) {
            let note = if self.own.contains(id) { "own" } else { "tell-nobody" };
            let account = json!({"id": id, "asset": "EUR", "overdraft": "unlimited", "metadata": {"note": note}});
            self.done(Call::post("/v1/accounts", &account), 201).await?;
        }
        let [till, vault, _, _, cash] = &self.foreign;
        let [own, safe, desk, own_box] = &self.own;
        let [paid, reversed, refused] = [(); 3].map(|()| Uuid::now_v7());
        for (id, debit, credit, amount, note) in [
            (Uuid::now_v7(), cash, till, "7777.77", "tell-nobody"),
            (paid, till, vault, "70.00", "tell-nobody"),
            (reversed, till, cash, "3.00", "tell-nobody"),
            (Uuid::now_v7(), cash, own, "50.00", "own"),
            (self.own_transfer, own, desk, "20.00", "own"),
            // Both tenants may see these transfers.
            (Uuid::now_v7(), till, own, "1.00", "refund"),
            (Uuid::now_v7(), own, till, "1.00", "invoice"),
        ] {
            self.done(Call::post("/v1/transfers", &order(id, debit, credit, amount, note)), 201).await?;
        }
        let reversal = Uuid::now_v7();
        let reverse = Call::post(&format!("/v1/transfers/{reversed}/reverse"), &json!({"id": reversal}));
        self.done(reverse, 201).await?;
        // The refusal of this transfer is stored.
        let closed = till.replace("till", "closed");
        self.done(Call::post("/v1/accounts", &json!({"id": closed, "asset": "EUR"})), 201).await?;
        self.done(Call::patch(&account_path(&closed), &json!({"status": "closed"})), 200).await?;
        let to_closed = order(refused, till, &closed, "5.00", "tell-nobody");
        self.done(Call::post("/v1/transfers", &to_closed), 422).await?;
        let by_key = json!({"debit": till, "credit": vault, "amount": "2.00", "asset": "EUR"});
        let by_key = Call::post("/v1/transfers", &by_key).header("idempotency-key", USED_KEY);
        self.router.caller(rival).send(by_key).await?.expect("201 posted")?;

        let holds = [(); 3].map(|()| Uuid::now_v7());
        for id in holds {
            let mut hold = order(id, till, vault, "4.00", "tell-nobody");
            hold["expires_in_s"] = json!(86_400);
            self.done(Call::post("/v1/holds", &hold), 201).await?;
        }
        let [held, captured, released] = holds;
        let capture = Uuid::now_v7();
        let captures = Call::post(&format!("/v1/holds/{captured}/capture"), &json!({"id": capture}));
        self.done(captures, 201).await?;
        self.done(Call::post(&format!("/v1/holds/{released}/release"), &json!({})), 200).await?;
        let own_hold = order(self.own_hold, own_box, safe, "10.00", "own");
        self.done(Call::post("/v1/holds", &own_hold), 201).await?;

        let cursors = self.cursors(till).await?;
        let target = |account: &str, id: Uuid| Target {
            account: account.to_owned(),
            own: self.own.clone(),
            id,
            new: Uuid::now_v7(),
            key: USED_KEY.to_owned(),
            cursors: cursors.clone(),
        };
        let mut targets: Vec<Target> = self.foreign.iter().map(|account| target(account, paid)).collect();
        let others = [reversed, reversal, refused, capture, held, captured, released];
        targets.extend(others.map(|id| target(till, id)));
        self.targets = targets;
        self.transfers = vec![paid, reversed, refused, capture];
        self.holds = holds.to_vec();
        Ok(())
    }

    /// Reads cursors of pages of the rival with the operator's key.
    async fn cursors(&self, account: &str) -> anyhow::Result<Cursors> {
        let cursor = async |path: String| {
            let page = self.done(Call::get(&path), 200).await?;
            anyhow::Ok(text(&page, "next_cursor").with_context(|| format!("{path} has one page"))?.to_owned())
        };
        let account = escaped(account);
        Ok(Cursors {
            accounts: cursor("/v1/accounts?limit=1".to_owned()).await?,
            entries: cursor(format!("/v1/accounts/{account}/entries?limit=1")).await?,
            transfers: cursor(format!("/v1/transfers?account={account}&limit=1")).await?,
            holds: cursor(format!("/v1/holds?account={account}&limit=1")).await?,
        })
    }

    /// The ids that the rival has used.
    fn used_ids(&self) -> impl Iterator<Item = Uuid> {
        self.transfers.iter().chain(&self.holds).copied()
    }

    /// Sends a request with the attacker's key.
    async fn attack(&self, call: Call) -> anyhow::Result<Reply> {
        self.router.caller(&self.attacker).send(call).await
    }

    /// Sends a request with the operator's key. The answer must have this status. Returns the body.
    async fn done(&self, call: Call, status: u16) -> anyhow::Result<Value> {
        let told = format!("{} {}", call.method, call.path);
        let reply = self.router.caller(&self.operator).send(call).await?;
        expect!(reply.status == status, "{told}: {} {}", reply.status, reply.body);
        Ok(reply.body)
    }

    /// Reads everything of others than the attacker, with the operator's key.
    async fn read_foreign(&self) -> anyhow::Result<Vec<Value>> {
        let debit = escaped(&self.foreign[0]);
        let accounts = self.foreign.iter().flat_map(|account| {
            [account_path(account), format!("{}/entries?limit=500&include=metadata", account_path(account))]
        });
        let transfers = self.transfers.iter().map(|id| format!("/v1/transfers/{id}?debit={debit}"));
        let holds = self.holds.iter().map(|id| format!("/v1/holds/{id}?debit={debit}"));
        self.read(accounts.chain(transfers).chain(holds)).await
    }

    /// Reads the attacker's accounts.
    async fn read_own(&self) -> anyhow::Result<Vec<Value>> {
        self.read(self.own.iter().map(|account| account_path(account))).await
    }

    async fn read(&self, paths: impl Iterator<Item = String>) -> anyhow::Result<Vec<Value>> {
        let mut seen = Vec::new();
        for path in paths {
            seen.push(self.done(Call::get(&path), 200).await?);
        }
        Ok(seen)
    }

    /// Finds a part of the text that the attacker must not see: metadata, balances of the rival, or an account that has no transfers with
    /// the attacker.
    fn secret_in(&self, text: &str) -> Option<String> {
        let shown = text.replace("%7B", "{").replace("%7D", "}");
        let [_, vault, resembles, ..] = &self.foreign;
        let secrets = ["tell-nobody", "7777.77", vault, resembles];
        // Names that the attacker sent itself are no secret.
        let sent_back = |secret: &str| secret.starts_with('{') && shown.contains("\"code\":");
        secrets.into_iter().find(|secret| shown.contains(secret) && !sent_back(secret)).map(str::to_owned)
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.stage.finish().await
    }
}

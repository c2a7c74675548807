//! Two tenants, a bank, and what each of them has.

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use keys::{Digest, Secret};
use serde_json::{Value, json};
use testkit::{
    client::{Answer, Client, account_path, escaped},
    cluster::Cluster,
    node::Folder,
    router::{Router, RouterConfig},
    wait::until,
};
use uuid::Uuid;

use super::attacks::Wanted;

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// Accounts of the attacker.
pub const OWN: [&str; 4] = ["{shop42}:till", "{shop42}:safe", "{shop42}:desk", "{shop42}:box"];
/// Accounts of others. Some ids begin as the attacker's do, or nearly.
const FOREIGN: [&str; 5] = ["{shop43}:till", "{shop43}:vault", "{shop421}:till", "{shop42}", "bank:cash"];
/// Texts that stand for what the attacker must not see: metadata, the balances of the rival, an account that has no business with the attacker.
const SECRETS: [&str; 4] = ["tell-nobody", "7777.77", "{shop43}:vault", "{shop421}"];
/// The key of idempotency that the rival has used.
pub const USED_KEY: &str = "order-1";

/// What an attack is about.
#[derive(Debug, Clone)]
pub struct Target {
    pub account: String,
    /// Of a transfer or hold.
    pub id: Uuid,
    /// For what the attacker orders itself.
    pub new: Uuid,
    pub key: String,
    /// Of pages that the attacker may not see.
    pub cursors: Cursors,
}

/// Cursors, by what they are a page of.
#[derive(Debug, Clone)]
pub struct Cursors {
    pub accounts: String,
    pub entries: String,
    pub transfers: String,
    pub holds: String,
}

impl Cursors {
    fn none() -> Self {
        let none = "v1-00000000".to_owned();
        Self { accounts: none.clone(), entries: none.clone(), transfers: none.clone(), holds: none }
    }
}

impl Target {
    /// Something that does not exist.
    pub fn nothing() -> Self {
        Self {
            account: "{shop43}:none".to_owned(),
            id: Uuid::now_v7(),
            new: Uuid::now_v7(),
            key: Uuid::now_v7().to_string(),
            cursors: Cursors::none(),
        }
    }

    /// The same of something that does not exist.
    pub fn missing(&self) -> Self {
        Self::nothing()
    }

    /// The account in a URL.
    pub fn path(&self) -> String {
        escaped(&self.account)
    }
}

/// The answer without what differs between two answers of the same kind: the request's id, and the names that were asked for.
pub fn form(answer: &Answer, target: &Target) -> anyhow::Result<String> {
    let mut body = answer.json()?;
    body["request_id"] = Value::Null;
    let mut headers: Vec<&str> = answer.headers.keys().map(http::HeaderName::as_str).collect();
    headers.sort_unstable();
    let mut text = format!("{} {headers:?} {body}", answer.status);
    for (number, own) in OWN.iter().enumerate() {
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
    Ok(text)
}

pub struct Stage {
    client: Client,
    operator: Secret,
    attacker: Secret,
    targets: Vec<Target>,
    /// Of the rival's transfers and holds, with their debit accounts.
    transfers: Vec<Uuid>,
    holds: Vec<Uuid>,
    /// A transfer and an open hold of the attacker's own.
    pub own_transfer: Uuid,
    pub own_hold: Uuid,
    _folder: Folder,
    router: Router,
    cluster: Cluster,
}

fn key(name: &str, prefix: &str, secret: &Secret) -> String {
    format!(
        "[[key]]\nname = \"{name}\"\nroles = [\"read\", \"write\", \"admin\"]\ndebit = [\"{prefix}\"]\ncredit = [\"{prefix}\"]\n\
         read = [\"{prefix}\"]\nsecrets = [{{ sha256 = \"{}\" }}]\n",
        Digest::of(secret.text())
    )
}

fn order(id: Uuid, debit: &str, credit: &str, amount: &str, note: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": "EUR", "metadata": {"note": note}})
}

impl Stage {
    pub async fn set() -> anyhow::Result<Self> {
        let cluster = Cluster::start(2, 1).await?;
        let folder = Folder::create()?;
        let (operator, attacker, rival) = (Secret::generate()?, Secret::generate()?, Secret::generate()?);
        let keys = key("operator", "*", &operator)
            + &key("shop42", "{shop42}:", &attacker)
            + &key("shop43", "{shop43}:", &rival);
        std::fs::write(folder.path().join("keys.toml"), keys)?;
        let config =
            RouterConfig::write(&folder, "router", &cluster.shard_map_path(), "[keys]\npath = \"keys.toml\"\n")?;
        let router = Router::start(&config).await?;
        let mut stage = Self {
            client: Client::new(vec![router.url()]),
            operator,
            attacker,
            targets: Vec::new(),
            transfers: Vec::new(),
            holds: Vec::new(),
            own_transfer: Uuid::now_v7(),
            own_hold: Uuid::now_v7(),
            _folder: folder,
            router,
            cluster,
        };
        stage.fill(&rival).await?;
        Ok(stage)
    }

    async fn fill(&mut self, rival: &Secret) -> anyhow::Result<()> {
        for id in FOREIGN.into_iter().chain(OWN) {
            let note = if OWN.contains(&id) { "own" } else { "tell-nobody" };
            let account = json!({"id": id, "asset": "EUR", "overdraft": "unlimited", "metadata": {"note": note}});
            self.done(&Wanted::post("/v1/accounts", account), 201).await?;
        }
        let [till, vault, ..] = FOREIGN;
        let [own, safe, desk, own_box] = OWN;
        let ids: [Uuid; 3] = std::array::from_fn(|_| Uuid::now_v7());
        let [paid, reversed, refused] = ids;
        for (id, debit, credit, amount, note) in [
            (Uuid::now_v7(), "bank:cash", till, "7777.77", "tell-nobody"),
            (paid, till, vault, "70.00", "tell-nobody"),
            (reversed, till, "bank:cash", "3.00", "tell-nobody"),
            (Uuid::now_v7(), "bank:cash", own, "50.00", "own"),
            (self.own_transfer, own, desk, "20.00", "own"),
            // What both may see.
            (Uuid::now_v7(), till, own, "1.00", "refund"),
            (Uuid::now_v7(), own, till, "1.00", "invoice"),
        ] {
            self.done(&Wanted::post("/v1/transfers", order(id, debit, credit, amount, note)), 201).await?;
        }
        let reversal = Uuid::now_v7();
        self.done(&Wanted::post(&format!("/v1/transfers/{reversed}/reverse"), json!({"id": reversal})), 201).await?;
        // Its refusal is stored.
        let closed = json!({"id": "{shop43}:closed", "asset": "EUR"});
        self.done(&Wanted::post("/v1/accounts", closed), 201).await?;
        self.done(&Wanted::patch("/v1/accounts/%7Bshop43%7D:closed", json!({"status": "closed"})), 200).await?;
        let to_closed = order(refused, till, "{shop43}:closed", "5.00", "tell-nobody");
        self.done(&Wanted::post("/v1/transfers", to_closed), 422).await?;
        // By the rival's key, under a key of idempotency.
        let by_key = json!({"debit": till, "credit": vault, "amount": "2.00", "asset": "EUR"});
        let by_key = Wanted::post("/v1/transfers", by_key).header("idempotency-key", USED_KEY);
        let by_key = self.sent(&by_key, rival).await?;
        ensure!(by_key.status == 201, "{}", by_key.text());

        let holds: [Uuid; 3] = std::array::from_fn(|_| Uuid::now_v7());
        for id in holds {
            let mut hold = order(id, till, vault, "4.00", "tell-nobody");
            hold["expires_in_s"] = json!(86_400);
            self.done(&Wanted::post("/v1/holds", hold), 201).await?;
        }
        let [held, captured, released] = holds;
        let capture = Uuid::now_v7();
        self.done(&Wanted::post(&format!("/v1/holds/{captured}/capture"), json!({"id": capture})), 201).await?;
        self.done(&Wanted::post(&format!("/v1/holds/{released}/release"), json!({})), 200).await?;
        let own_hold = order(self.own_hold, own_box, safe, "10.00", "own");
        self.done(&Wanted::post("/v1/holds", own_hold), 201).await?;

        let cursors = self.cursors(till).await?;
        let target = |account: &str, id: Uuid| Target {
            account: account.to_owned(),
            id,
            new: Uuid::now_v7(),
            key: USED_KEY.to_owned(),
            cursors: cursors.clone(),
        };
        self.targets = FOREIGN.into_iter().map(|account| target(account, paid)).collect();
        let others = [reversed, reversal, refused, capture, held, captured, released];
        self.targets.extend(others.map(|id| target(till, id)));
        self.transfers = vec![paid, reversed, refused, capture];
        self.holds = holds.to_vec();
        Ok(())
    }

    /// Cursors of pages of the rival, as the operator gets them.
    async fn cursors(&self, account: &str) -> anyhow::Result<Cursors> {
        let cursor = async |path: String| {
            let page = self.done(&Wanted::get(&path), 200).await?;
            let cursor = page.json()?["next_cursor"].as_str().map(str::to_owned);
            cursor.with_context(|| format!("{path} has one page"))
        };
        let account = escaped(account);
        Ok(Cursors {
            accounts: cursor("/v1/accounts?limit=1".to_owned()).await?,
            entries: cursor(format!("/v1/accounts/{account}/entries?limit=1")).await?,
            transfers: cursor(format!("/v1/transfers?account={account}&limit=1")).await?,
            holds: cursor(format!("/v1/holds?account={account}&limit=1")).await?,
        })
    }

    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The ids that the rival has used.
    pub fn used_ids(&self) -> impl Iterator<Item = Uuid> {
        self.transfers.iter().chain(&self.holds).copied()
    }

    /// Sends a request with the attacker's key.
    pub async fn attack(&self, wanted: &Wanted) -> anyhow::Result<Answer> {
        self.sent(wanted, &self.attacker).await
    }

    /// Sends a request with the operator's key, which must be answered so.
    async fn done(&self, wanted: &Wanted, status: u16) -> anyhow::Result<Answer> {
        let answer = self.sent(wanted, &self.operator).await?;
        ensure!(answer.status == status, "{} {}: {} {}", wanted.method, wanted.path, answer.status, answer.text());
        Ok(answer)
    }

    /// Sends it again while the machine is too busy to execute it.
    async fn sent(&self, wanted: &Wanted, secret: &Secret) -> anyhow::Result<Answer> {
        until("the router answers", PATIENCE, async || {
            let mut request = Request::builder()
                .method(wanted.method.clone())
                .uri(format!("{}{}", self.router.url(), wanted.path))
                .header("authorization", format!("Bearer {}", secret.text()))
                .header("x-request-timeout-ms", "30000");
            for (name, value) in &wanted.headers {
                request = request.header(*name, value);
            }
            let answer = self.client.exchange(request.body(Full::new(Bytes::from(wanted.body.clone())))?).await?;
            Ok((answer.status != 503).then_some(answer))
        })
        .await
    }

    /// Everything that the operator sees of others than the attacker.
    pub async fn foreign(&self) -> anyhow::Result<Vec<String>> {
        let debit = escaped(FOREIGN[0]);
        let accounts = FOREIGN.into_iter().flat_map(|account| {
            [account_path(account), format!("{}/entries?limit=500&include=metadata", account_path(account))]
        });
        let transfers = self.transfers.iter().map(|id| format!("/v1/transfers/{id}?debit={debit}"));
        let holds = self.holds.iter().map(|id| format!("/v1/holds/{id}?debit={debit}"));
        self.read(accounts.chain(transfers).chain(holds)).await
    }

    /// The attacker's own accounts.
    pub async fn own(&self) -> anyhow::Result<Vec<String>> {
        self.read(OWN.into_iter().map(account_path)).await
    }

    async fn read(&self, paths: impl Iterator<Item = String>) -> anyhow::Result<Vec<String>> {
        let mut seen = Vec::new();
        for path in paths {
            seen.push(self.done(&Wanted::get(&path), 200).await?.text());
        }
        Ok(seen)
    }

    pub fn secret_in(&self, text: &str) -> Option<&'static str> {
        let shown = text.replace("%7B", "{").replace("%7D", "}");
        // Names that the attacker sent itself are no secret.
        let sent_back = |secret: &str| secret.starts_with('{') && shown.contains("\"code\":");
        SECRETS.into_iter().find(|secret| shown.contains(secret) && !sent_back(secret))
    }

    pub async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.cluster.verify().await?;
        self.cluster.finish().await
    }
}

//! Reports: balances at an instant, lists of transfers and holds, CSV, metadata in statements. The statements are the oracle of what accounts
//! held and in which order.

mod at_an_instant;
mod csv_answers;
mod history;
mod lists;
mod tenant;

use anyhow::{Context, ensure};
use keys::{Digest, Secret};
use serde_json::{Value, json};
use testkit::{
    client::{account_path, escaped},
    cluster::Cluster,
    node::Folder,
    router::{Router, RouterConfig},
    seed::Seed,
};

use self::history::History;
use super::{
    api::{Api, Call, Reply, TextReply},
    stage::Findings,
};

/// Of CSV.
const MEDIA_TYPE: &str = "text/csv; charset=utf-8; header=present";
/// More than one part of a whole list of two shards, which is up to 2,000 accounts of each.
const MANY_ACCOUNTS: usize = 4_500;

/// A router with keys in front of a cluster: the operator's, and that of the tenant `{shop42}:`.
struct Setting {
    api: Api,
    operator: Secret,
    shop: Secret,
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

impl Setting {
    async fn new() -> anyhow::Result<Self> {
        let cluster = Cluster::start(2, 1).await?;
        let folder = Folder::create()?;
        let (operator, shop) = (Secret::generate()?, Secret::generate()?);
        let keys = key("operator", "*", &operator) + &key("shop", "{shop42}:", &shop);
        std::fs::write(folder.path().join("keys.toml"), keys)?;
        let settings = "[keys]\npath = \"keys.toml\"\n[assets]\nBTC = 8";
        let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), settings)?;
        let router = Router::start(&config).await?;
        let api = Api::connect(vec![config.url()]).await?;
        Ok(Self { api, operator, shop, _folder: folder, router, cluster })
    }

    async fn send(&self, call: Call, secret: &Secret) -> anyhow::Result<Reply> {
        self.api.send(call.header("authorization", format!("Bearer {}", secret.text()))).await
    }

    /// Reads with the operator's key, and must be answered 200.
    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.read(path, &self.operator, "200").await
    }

    async fn read(&self, path: &str, secret: &Secret, expected: &str) -> anyhow::Result<Value> {
        Ok(self.send(Call::get(path), secret).await?.expect(expected).with_context(|| path.to_owned())?.body)
    }

    /// Writes with the operator's key.
    async fn post(&self, path: &str, body: Value, expected: &str) -> anyhow::Result<Value> {
        let reply = self.send(Call::post(path, &body), &self.operator).await?;
        Ok(reply.expect(expected).with_context(|| format!("{path} {body}"))?.body)
    }

    async fn open(&self, id: &str, more: Value) -> anyhow::Result<Value> {
        let mut body = json!({"id": id, "asset": "EUR", "overdraft": "unlimited"});
        for (name, value) in more.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.post("/v1/accounts", body, "201 open").await
    }

    async fn text(&self, path: &str, accept: &str, secret: &Secret) -> anyhow::Result<TextReply> {
        let call = Call::get(path).header("accept", accept);
        self.api.text(&call.header("authorization", format!("Bearer {}", secret.text()))).await
    }

    /// The header line and all others of an answer in CSV.
    async fn csv(&self, path: &str, secret: &Secret) -> anyhow::Result<Table> {
        let TextReply { status, headers, body } = self.text(path, "text/csv", secret).await?;
        ensure!(status == 200, "{path}: {status} {body}");
        let media_type = headers.get("content-type").context("no content type")?;
        ensure!(media_type == MEDIA_TYPE, "{path}: {media_type:?}");
        ensure!(body.ends_with("\r\n"), "{path}: the last line is open: {body:?}");
        let mut reader = csv::ReaderBuilder::new().terminator(csv::Terminator::CRLF).from_reader(body.as_bytes());
        let header = reader.headers()?.iter().map(str::to_owned).collect();
        let lines = reader.records().map(|line| Ok(line?.iter().map(str::to_owned).collect()));
        Ok(Table { header, lines: lines.collect::<anyhow::Result<_>>()?, body })
    }

    /// All items of a list, page by page. Each page says what it has.
    async fn walk(&self, path: &str, secret: &Secret) -> anyhow::Result<Vec<Value>> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.read(&format!("{path}{cursor}"), secret, "200").await?;
            found.extend(items(&page)?.iter().cloned());
            ensure!(page["has_more"] == page["next_cursor"].is_string(), "{path}: {page}");
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(found),
            }
        }
    }

    async fn finish(self) -> anyhow::Result<()> {
        drop(self.router);
        self.cluster.verify().await?;
        self.cluster.finish().await
    }
}

/// A table of CSV.
#[derive(Debug)]
struct Table {
    header: Vec<String>,
    lines: Vec<Vec<String>>,
    body: String,
}

fn items(page: &Value) -> anyhow::Result<&Vec<Value>> {
    page["data"].as_array().with_context(|| page.to_string())
}

fn text<'a>(value: &'a Value, member: &str) -> anyhow::Result<&'a str> {
    value[member].as_str().with_context(|| format!("no {member} in {value}"))
}

/// The statement of an account, oldest first, with metadata.
fn statement_path(account: &str) -> String {
    format!("{}/entries?order=asc&limit=70&include=metadata", account_path(account))
}

/// For random histories, reports agree with the statements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_agree_with_the_statements() -> anyhow::Result<()> {
    let seed = Seed::announce("reports");
    let setting = Setting::new().await?;
    let history = History::write(&setting, &mut seed.random()).await?;
    let mut findings = Findings::default();
    findings.note("metadata of entries", history.entries_have_the_metadata_of_their_transfers());
    findings.note("at an instant", at_an_instant::agrees_with_statements(&setting, &history).await);
    // The rows of the projections are older or newer than the time that is asked for, depending on the fold.
    findings.note("the fold", testkit::audit::all_folded(&setting.cluster).await);
    findings.note("at an instant, folded", at_an_instant::agrees_with_statements(&setting, &history).await);
    findings.note("lists", lists::have_everything_once_and_in_order(&setting, &history).await);
    findings.note("filters of state", lists::are_filtered_by_the_state_of_now(&setting).await);
    findings.note("bounded requests", lists::end_a_request_that_finds_nothing(&setting).await);
    findings.note("whole lists", csv_answers::of_many_accounts_are_whole(&setting).await);
    findings.note("statements as CSV", csv_answers::are_the_statements(&setting, &history).await);
    findings.note("formulas", csv_answers::have_no_formula(&setting).await);
    findings.note("refusals for CSV", csv_answers::are_refused_as_problems(&setting).await);
    findings.conclude()?;
    setting.finish().await
}

/// A key for `{shop42}:` sees its own through every report, filter, cursor and table, and nothing of another tenant.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_show_a_tenant_nothing_of_another_one() -> anyhow::Result<()> {
    let setting = Setting::new().await?;
    let stage = tenant::Stage::set(&setting).await?;
    let mut findings = Findings::default();
    findings.note("foreign accounts", stage.foreign_accounts_are_as_if_they_did_not_exist(&setting).await);
    findings.note("own lists", stage.lists_have_what_touches_the_own_accounts(&setting).await);
    findings.note("cursors", stage.cursors_lead_nowhere_else(&setting).await);
    findings.note("accounts and sums", stage.accounts_and_sums_are_the_own_ones(&setting).await);
    findings.conclude()?;
    setting.finish().await
}

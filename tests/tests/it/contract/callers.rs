//! Callers of the API with and without keys, and routers that one test starts in front of a cluster that other tests may share.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use keys::{Digest, Secret};
use serde_json::Value;
use testkit::{
    cluster::Cluster,
    node::Folder,
    router::{Router, RouterConfig},
};

use super::api::{Api, Call, Reply, TextReply};

/// The media type of answers in CSV.
pub const CSV: &str = "text/csv; charset=utf-8; header=present";

/// The name of the file of keys.
const KEYS: &str = "keys.toml";

/// A caller of the API with its key. Without a key, the routers must have no keys.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    pub api: &'a Api,
    pub key: Option<&'a Secret>,
}

impl Caller<'_> {
    pub async fn send(&self, call: Call) -> anyhow::Result<Reply> {
        self.api.send(self.with_key(call)).await
    }

    /// Sends a `GET` whose answer must be 200, and returns the body.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.read(path, "200").await
    }

    /// Sends a `GET` whose answer must have this [`Reply::summary`], and returns the body.
    pub async fn read(&self, path: &str, expected: &str) -> anyhow::Result<Value> {
        Ok(self.send(Call::get(path)).await?.expect(expected).with_context(|| path.to_owned())?.body)
    }

    /// Sends a `POST` whose answer must have this [`Reply::summary`], and returns the body.
    pub async fn post(&self, path: &str, body: &Value, expected: &str) -> anyhow::Result<Value> {
        let reply = self.send(Call::post(path, body)).await?;
        Ok(reply.expect(expected).with_context(|| format!("{path} {body}"))?.body)
    }

    /// Sends a `GET` with this `Accept` header, and returns the answer as text.
    pub async fn text(&self, path: &str, accept: &str) -> anyhow::Result<TextReply> {
        self.api.text(&self.with_key(Call::get(path).header("accept", accept))).await
    }

    /// Sends a `GET` for CSV, whose answer must be 200.
    pub async fn csv(&self, path: &str) -> anyhow::Result<CsvAnswer> {
        let TextReply { status, headers, body } = self.text(path, "text/csv").await?;
        expect!(status == 200, "{path}: {status} {body}");
        let media_type = headers.get("content-type").context("no content type")?;
        expect!(media_type == CSV, "{path}: {media_type:?}");
        ensure!(body.ends_with("\r\n"), "{path}: the last line does not end with CRLF: {body:?}");
        let mut reader = csv::ReaderBuilder::new().terminator(csv::Terminator::CRLF).from_reader(body.as_bytes());
        let header = reader.headers()?.iter().map(str::to_owned).collect();
        let lines = reader.records().map(|line| Ok(line?.iter().map(str::to_owned).collect()));
        Ok(CsvAnswer { header, lines: lines.collect::<anyhow::Result<_>>()?, body })
    }

    /// Reads all items of a list, page by page. `path` must have a query.
    pub async fn walk(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}{cursor}")).await?;
            found.extend(items(&page)?.iter().cloned());
            expect!(page["has_more"] == page["next_cursor"].is_string(), "{path}: {page}");
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(found),
            }
        }
    }

    fn with_key(&self, call: Call) -> Call {
        match self.key {
            Some(key) => call.key(key),
            None => call,
        }
    }
}

impl Call {
    /// Adds a key to the request.
    pub fn key(self, secret: &Secret) -> Self {
        self.header("authorization", format!("Bearer {}", secret.text()))
    }
}

/// An answer in CSV.
#[derive(Debug)]
pub struct CsvAnswer {
    pub header: Vec<String>,
    pub lines: Vec<Vec<String>>,
    pub body: String,
}

/// Returns the items of a page.
pub fn items(page: &Value) -> anyhow::Result<&Vec<Value>> {
    page["data"].as_array().with_context(|| format!("expected data in {page}"))
}

/// Checks that all results of a batch have this status.
pub fn results_are(batch: &Value, status: &str) -> anyhow::Result<()> {
    let results = batch["results"].as_array().with_context(|| format!("expected results in {batch}"))?;
    let other = results.iter().find(|result| result["status"] != status);
    ensure!(other.is_none(), "an item should be {status}: {other:?}");
    Ok(())
}

/// Returns a member that is a text.
pub fn text<'a>(value: &'a Value, member: &str) -> anyhow::Result<&'a str> {
    value[member].as_str().with_context(|| format!("no {member} in {value}"))
}

/// A router of one test, with its own settings. Its cluster may be shared.
pub struct OwnRouter {
    pub api: Api,
    pub process: Router,
    folder: Folder,
}

impl OwnRouter {
    /// Starts a router with this map and these settings.
    pub async fn start(map: &str, settings: &str) -> anyhow::Result<Self> {
        Self::start_in(Folder::create()?, map, settings).await
    }

    /// Starts a router with the map of a cluster and this file of keys.
    pub async fn with_keys(cluster: &Cluster, keys: &str) -> anyhow::Result<Self> {
        let folder = Folder::create()?;
        std::fs::write(folder.path().join(KEYS), keys)?;
        let map = std::fs::read_to_string(cluster.shard_map_path())?;
        // The routers of the cluster have the same scale of BTC.
        let settings = format!("[keys]\npath = \"{KEYS}\"\n[assets]\nBTC = 8");
        Self::start_in(folder, &map, &settings).await
    }

    async fn start_in(folder: Folder, map: &str, settings: &str) -> anyhow::Result<Self> {
        let path = folder.path().join("map.toml");
        std::fs::write(&path, map)?;
        let config = RouterConfig::write(&folder, "router", &path, settings)?;
        let process = Router::start(&config).await?;
        Ok(Self { api: Api::connect(vec![config.url()]).await?, process, folder })
    }

    /// The path of the file of keys. The router reads the file again when it has changed.
    pub fn keys(&self) -> PathBuf {
        self.folder.path().join(KEYS)
    }

    pub fn caller<'a>(&'a self, key: &'a Secret) -> Caller<'a> {
        Caller { api: &self.api, key: Some(key) }
    }
}

/// The entry of a key with all roles. `prefix` stands for the accounts that it debits, credits and reads; `*` stands for all accounts.
pub fn entry(name: &str, prefix: &str, secret: &Secret) -> String {
    format!(
        "[[key]]\nname = \"{name}\"\nroles = [\"read\", \"write\", \"admin\"]\ndebit = [\"{prefix}\"]\ncredit = [\"{prefix}\"]\n\
         read = [\"{prefix}\"]\nsecrets = [{{ sha256 = \"{}\" }}]\n",
        Digest::of(secret.text())
    )
}

//! The options that commands share, and the routers that a command calls. A command calls the named router, or the routers of the data
//! folder's cluster in turn until one answers. Lists are read page by page.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    cluster::{Description, Layout, description::RouterPlace},
    exit::Unreachable,
    http_client::{HttpClient, encoded},
    output::{self, JsonObject},
};

/// The longest wait for one answer. A router answers within this time, even if only with an error.
const PATIENCE: Duration = Duration::from_secs(35);
/// The most items that a router puts on a page.
const PAGE: u64 = 500;

/// The options of every command.
#[derive(clap::Args)]
pub struct Context {
    /// Folder of the cluster on this machine
    #[arg(long, global = true, value_name = "DIR", env = "SHARDLEDGER_DATA_DIR", default_value = "./.shardledger")]
    pub data_dir: PathBuf,
    /// Print data as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct PublicAddress {
    /// A router's address [default: the routers of the cluster in --data-dir]
    #[arg(long, value_name = "URL", env = "SHARDLEDGER_URL", value_parser = router_url)]
    url: Option<String>,
}

#[derive(clap::Args)]
pub struct AdminAddress {
    /// A router's admin address [default: the routers of the cluster in --data-dir]
    #[arg(long, value_name = "URL", env = "SHARDLEDGER_ADMIN_URL", value_parser = router_url)]
    admin_url: Option<String>,
}

/// Identifies a transfer or hold: an id is unique within its debit account.
#[derive(clap::Args)]
pub struct OwnedId {
    /// The id
    id: Uuid,
    /// Debit account; needed if several accounts use this id. With it, only one shard is asked, which is faster
    #[arg(long, value_name = "ACCOUNT")]
    debit: Option<String>,
    #[command(flatten)]
    address: PublicAddress,
}

/// Routers of one cluster. A command needs the answer of only one of them.
pub struct Routers {
    pub urls: Vec<String>,
    pub client: HttpClient,
}

impl PublicAddress {
    /// Whether the command names a router, which need not belong to the data folder's cluster.
    pub fn is_named(&self) -> bool {
        self.url.is_some()
    }

    pub fn routers(self, context: &Context) -> anyhow::Result<Routers> {
        Routers::new(self.url, context, RouterPlace::url)
    }
}

impl AdminAddress {
    /// The named router, if there is one.
    pub fn named(&self) -> Option<String> {
        self.admin_url.as_ref().map(|url| url.trim_end_matches('/').to_owned())
    }

    /// The map file that the routers of the data folder's cluster watch; `None` if another router is named.
    pub fn map_file(&self, context: &Context) -> Option<PathBuf> {
        let own = || Layout::find(&context.data_dir).ok().map(|layout| layout.shard_map());
        if self.admin_url.is_none() { own() } else { None }
    }

    pub fn routers(&self, context: &Context) -> anyhow::Result<Routers> {
        Routers::new(self.named(), context, RouterPlace::admin_url)
    }
}

impl OwnedId {
    /// Reads the transfer or hold.
    pub async fn get(self, collection: &str, context: &Context) -> anyhow::Result<JsonObject> {
        let path = match &self.debit {
            Some(debit) => format!("{collection}/{}?debit={}", self.id, encoded(debit)),
            None => format!("{collection}/{}", self.id),
        };
        self.address.routers(context)?.get(&path).await
    }
}

impl Routers {
    fn new(named: Option<String>, context: &Context, url: fn(&RouterPlace) -> String) -> anyhow::Result<Self> {
        let urls = match named {
            Some(named) => vec![named.trim_end_matches('/').to_owned()],
            None => {
                let layout = Layout::find(&context.data_dir)?;
                let description = Description::load(&layout)?.context("the cluster's description is missing")?;
                description.routers.iter().map(url).collect()
            }
        };
        Ok(Self { urls, client: HttpClient::new(PATIENCE) })
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.first_that_answers(async |url| self.client.get(&format!("{url}{path}")).await).await
    }

    pub async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.first_that_answers(async |url| self.client.post(&format!("{url}{path}"), "").await).await
    }

    /// Reads the whole list at `path`, which is one answer.
    pub async fn whole_list(&self, path: &str) -> anyhow::Result<ResourceList> {
        let page: ResourcePage = self.get(path).await?;
        Ok(ResourceList { data: page.data, has_more: false })
    }

    /// Reads up to `limit` items of the list at `path`. `query` has the parameters of this list.
    pub async fn list(&self, path: &str, query: Vec<String>, limit: u64) -> anyhow::Result<ResourceList> {
        let mut list = ResourceList { data: Vec::new(), has_more: false };
        let mut cursor = None;
        loop {
            let left = limit.saturating_sub(list.data.len() as u64);
            let mut query = query.clone();
            query.push(format!("limit={}", left.min(PAGE)));
            query.extend(cursor.map(|cursor: String| format!("cursor={}", encoded(&cursor))));
            let page: ResourcePage = self.get(&format!("{path}?{}", query.join("&"))).await?;
            list.data.extend(page.data);
            list.has_more = page.next_cursor.is_some();
            cursor = page.next_cursor;
            if cursor.is_none() || list.data.len() as u64 >= limit {
                return Ok(list);
            }
        }
    }

    /// Returns the first answer. An unreachable router counts as no answer; an error answer counts.
    async fn first_that_answers<T>(&self, ask: impl AsyncFn(&str) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut unreachable = None;
        for url in &self.urls {
            match ask(url).await {
                Err(error) if error.is::<Unreachable>() => unreachable = Some(error),
                answer => return answer,
            }
        }
        Err(unreachable.context("the cluster has no routers")?)
    }
}

/// Parses a router's address.
fn router_url(text: &str) -> Result<String, String> {
    let uri: http::Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    if matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some() {
        Ok(text.to_owned())
    } else {
        Err("a router's address is https://HOST:PORT or http://HOST:PORT".to_owned())
    }
}

/// The first items of a list, up to the requested number.
#[derive(Debug, Serialize)]
pub struct ResourceList {
    data: Vec<JsonObject>,
    /// Whether the list has further items.
    has_more: bool,
}

#[derive(Deserialize)]
struct ResourcePage {
    data: Vec<JsonObject>,
    next_cursor: Option<String>,
}

/// The selection from an account's transfers or holds.
#[derive(clap::Args)]
pub struct HistoryArgs {
    /// The account's id
    #[arg(long, value_name = "ACCOUNT")]
    account: String,
    /// Only items that are in this state now
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only items whose metadata has this name, or this value under the name
    #[arg(long, value_name = "NAME[=VALUE]")]
    metadata: Option<String>,
    /// Entries of the account at this time or later (RFC 3339, such as 2026-01-31T12:00:00Z)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Entries before this time
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// List at most this many items
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    address: PublicAddress,
}

impl HistoryArgs {
    /// Prints the list at `path`.
    pub async fn print<const COLUMNS: usize>(
        self,
        path: &str,
        columns: [&str; COLUMNS],
        context: &Context,
    ) -> anyhow::Result<()> {
        let Self { account, status, metadata, from, to, limit, address } = self;
        let routers = address.routers(context)?;
        let given =
            [("account", Some(account)), ("status", status), ("metadata", metadata), ("from", from), ("to", to)];
        let query = given.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", encoded(&value?))));
        routers.list(path, query.collect(), limit).await?.print(columns, context.json)
    }
}

impl ResourceList {
    /// Prints the list as JSON, or these columns of it as a table.
    pub fn print<const COLUMNS: usize>(&self, columns: [&str; COLUMNS], as_json: bool) -> anyhow::Result<()> {
        if as_json {
            return output::json(self);
        }
        let cell = |item: &JsonObject, column: &str| {
            item.fields()
                .find(|(name, _)| *name == column)
                .map_or_else(|| output::cell(&Value::Null), |(_, value)| output::cell(value))
        };
        let rows: Vec<[String; COLUMNS]> =
            self.data.iter().map(|item| columns.map(|column| cell(item, column))).collect();
        output::table(columns, &rows)?;
        if self.has_more {
            output::note(&format!("there are more items than these {}: raise --limit", self.data.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_with_a_host() {
        assert_eq!(router_url("http://127.0.0.1:8080").as_deref(), Ok("http://127.0.0.1:8080"));
        assert!(router_url("https://ledger:8443").is_ok());
        for wrong in ["", "nonsense", "127.0.0.1:8080", "ftp://ledger:8080", "http://", "https://", "/v1"] {
            assert!(router_url(wrong).is_err(), "{wrong}");
        }
    }
}

//! The routers that a command calls: the named one, or the routers of the data folder's cluster in turn until one
//! answers.

use std::time::Duration;

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::Context;
use crate::{
    cluster::{Description, Layout, description::RouterPlace},
    exit::Unreachable,
    http_client::{HttpClient, encoded},
};

/// Longest wait for one answer. A router answers sooner, even if only with an error.
const PATIENCE: Duration = Duration::from_secs(35);

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
    /// The debit account; needed if several accounts use this id, and faster because only one shard is asked
    #[arg(long, value_name = "ACCOUNT")]
    debit: Option<String>,
}

/// Routers to ask; any of them will do.
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

    pub fn routers(&self, context: &Context) -> anyhow::Result<Routers> {
        Routers::new(self.named(), context, RouterPlace::admin_url)
    }
}

impl OwnedId {
    /// The path of the transfer or hold on a router.
    pub fn path(&self, collection: &str) -> String {
        match &self.debit {
            Some(debit) => format!("{collection}/{}?debit={}", self.id, encoded(debit)),
            None => format!("{collection}/{}", self.id),
        }
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

#[cfg(test)]
mod tests {
    use super::router_url;

    #[test]
    fn an_address_is_a_url_with_a_host() {
        assert_eq!(router_url("http://127.0.0.1:8080").as_deref(), Ok("http://127.0.0.1:8080"));
        assert!(router_url("https://ledger:8443").is_ok());
        for wrong in ["", "nonsense", "127.0.0.1:8080", "ftp://ledger:8080", "http://", "https://", "/v1"] {
            assert!(router_url(wrong).is_err(), "{wrong}");
        }
    }
}

//! A router that declares another scale for an asset than its accounts were opened with.

use anyhow::ensure;
use http::Method;
use serde_json::json;
use testkit::{
    client::{Client, account_path},
    router::Router,
    wait::until,
};

use super::{NOTICED_WITHIN, says, stage::Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_with_another_scale_of_an_asset_in_use_does_not_start() -> anyhow::Result<()> {
    let stage = Stage::with_shards(2).await?;
    let _nodes = stage.found().await?;
    let right = Router::start(&stage.router_config("right", &stage.map, "[assets]\nBTC = 8")?).await?;
    let account = stage.placement()?.account_on("s1", "wallet", 0)?;
    open(right.client(), &account).await?;
    let wrong = stage.router_config("wrong", &stage.map, "[assets]\nBTC = 6")?;
    let said = Router::start_refused(&wrong).await?;
    says(&said, &["scale of BTC: expected 8, found 6", "shard s1", "declare BTC = 8"])?;
    drop(right);
    let again = Router::start(&stage.router_config("again", &stage.map, "[assets]\nBTC = 8")?).await?;
    until("the router knows the account", NOTICED_WITHIN, async || {
        let found = again.client().get(0, &account_path(&account)).await?;
        says(&found.to_string(), &["1.50000000"])?;
        Ok(Some(()))
    })
    .await
}

/// While an asset has no accounts, routers may declare different scales for it. The first account fixes the scale for
/// the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_ran_before_the_asset_came_into_use_is_refused_as_well() -> anyhow::Result<()> {
    let stage = Stage::with_shards(1).await?;
    let _nodes = stage.found().await?;
    let wrong = Router::start(&stage.router_config("wrong", &stage.map, "[assets]\nBTC = 6")?).await?;
    let right = Router::start(&stage.router_config("right", &stage.map, "[assets]\nBTC = 8")?).await?;
    open(right.client(), "wallet").await?;
    until("the router with the wrong scale reads nothing any more", NOTICED_WITHIN, async || {
        let read = wrong.client().call(0, Method::GET, "/v1/accounts/wallet", None).await?;
        ensure!(read.status == 503, "{} {}", read.status, read.text());
        says(&wrong.readiness().await?["degraded"].to_string(), &["scale of BTC: expected 8, found 6"])?;
        Ok(Some(()))
    })
    .await?;
    right.client().get(0, "/v1/accounts/wallet").await?;
    Ok(())
}

async fn open(client: &Client, account: &str) -> anyhow::Result<()> {
    let body = json!({"id": account, "asset": "BTC", "overdraft": "1.50000000"});
    until("the account is open", NOTICED_WITHIN, async || client.post(0, "/v1/accounts", &body).await.map(Some))
        .await?;
    Ok(())
}

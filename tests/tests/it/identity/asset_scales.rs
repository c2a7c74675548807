//! A router that reads and writes amounts by another power of ten than the accounts were opened with.

use serde_json::json;
use testkit::router::Router;
use testkit::wait::until;

use super::{NOTICED_WITHIN, says, stage::Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_with_another_scale_of_an_asset_in_use_does_not_start() -> anyhow::Result<()> {
    let stage = Stage::with_shards(2).await?;
    let _nodes = stage.found().await?;
    let right = Router::start(&stage.router_config("right", &stage.map, "[assets]\nBTC = 8")?).await?;
    let account = stage.placement()?.account_on("s1", "wallet", 0)?;
    let body = json!({"id": account, "asset": "BTC", "overdraft": "1.50000000"});
    until("the account is open", NOTICED_WITHIN, async || {
        right.client().post(0, "/v1/accounts", &body).await.map(Some)
    })
    .await?;
    let wrong = stage.router_config("wrong", &stage.map, "[assets]\nBTC = 6")?;
    let said = Router::start_refused(&wrong).await?;
    says(&said, &["scale of BTC: expected 8, found 6", "shard s1", "declare BTC = 8"])?;
    drop(right);
    let again = Router::start(&stage.router_config("again", &stage.map, "[assets]\nBTC = 8")?).await?;
    until("the router knows the account", NOTICED_WITHIN, async || {
        let path = testkit::client::account_path(&account);
        let found = again.client().get(0, &path).await?;
        says(&found.to_string(), &["1.50000000"])?;
        Ok(Some(()))
    })
    .await
}

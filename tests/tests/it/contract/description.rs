//! The description of the API against a live cluster: every example of it is played, then schemathesis tries whatever the
//! description allows and forbids.

mod examples;
mod python;
mod schemathesis;

use testkit::{cluster::Cluster, seed::Seed};

use super::api::Api;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_description_is_true() -> anyhow::Result<()> {
    let seed = Seed::announce("description");
    let schemathesis = schemathesis::Installed::ensure().await?;

    let cluster = Cluster::start(3, 1).await?;
    let api = Api::connect(cluster.status().routers.iter().map(|router| router.url.clone()).collect()).await?;
    examples::are_answered_as_described(&api).await?;
    schemathesis.finds_nothing(api.url(0), &seed).await?;
    cluster.verify().await?;
    cluster.finish().await
}

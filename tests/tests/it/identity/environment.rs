//! Variables of PostgreSQL's client libraries in a node's environment.

use testkit::node::Node;

use super::{says, stage::Stage};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_postgresql_are_ignored_or_refused_by_name() -> anyhow::Result<()> {
    let mut stage = Stage::with_shards(1).await?;
    drop(stage.found().await?);
    let set = |variables: &[(&str, &str)]| {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    stage.nodes[0].environment = set(&[("PGOPTIONS", "-c synchronous_commit=off")]);
    says(&Node::start_refused(&stage.nodes[0]).await?, &["PGOPTIONS", "unset it"])?;
    stage.nodes[0].environment = set(&[
        ("PGSSLMODE", "require"),
        ("PGHOST", "192.0.2.1"),
        ("PGHOSTADDR", "192.0.2.1"),
        ("PGPORT", "1"),
        ("PGDATABASE", "nope"),
        ("PGUSER", "nobody"),
        ("PGAPPNAME", "nope"),
    ]);
    Node::start(&stage.nodes[0]).await?;
    Ok(())
}

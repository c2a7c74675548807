//! Tests that `docs/operations/metrics.md` lists the metrics that the services serve, and that promtool accepts these metrics.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use testkit::{
    cluster::Cluster,
    node::Folder,
    router::{Router, RouterConfig},
};

use super::{
    Exposition, Family,
    queries::{program, promtool, repository},
    two_accounts,
};

const REFERENCE: &str = "docs/operations/metrics.md";
const BEGIN: &str =
    "<!-- The tables below are checked by tests/tests/it/metrics/reference.rs; RENEW=1 writes them. -->\n";

/// The largest number of series of a router. A histogram has a series for each of its buckets.
const MOST_SERIES_OF_A_ROUTER: usize = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_lists_every_metric_of_a_live_cluster() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    two_accounts(&cluster).await?;
    // This router has keys and a certificate, so that it serves their metrics.
    let folder = Folder::create()?;
    std::fs::write(folder.path().join("keys.toml"), "")?;
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["localhost".to_owned()])?;
    std::fs::write(folder.path().join("tls.crt"), cert.pem())?;
    std::fs::write(folder.path().join("tls.key"), signing_key.serialize_pem())?;
    let settings = "[keys]\npath = \"keys.toml\"\n[http.tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n";
    let config = RouterConfig::write(&folder, "router", &cluster.shard_map_path(), settings)?;
    let with_keys = Router::start(&config).await?;
    let router = Exposition::parse(&with_keys.admin(http::Method::GET, "/metrics").await?.text())?;
    let plain = Exposition::fetch(&cluster.status().routers[0].admin_url).await?;
    let node = Exposition::fetch(&cluster.status().shards[0].node_admin_url).await?;

    for (what, exposition) in [("router", &router), ("router without keys", &plain), ("shard-node", &node)] {
        eprintln!("{what}: {} series of {} metrics", exposition.series(), exposition.families.len());
        for (name, family) in &exposition.families {
            ensure!(!family.help.is_empty() && !family.kind.is_empty(), "{name} of a {what} is not described");
        }
    }
    ensure!(plain.series() <= MOST_SERIES_OF_A_ROUTER, "{} series of a router with two shards", plain.series());
    let unlabelled = node.families.iter().find(|(_, family)| !family.labels.contains("shard"));
    ensure!(unlabelled.is_none(), "a node's metric has no label shard: {unlabelled:?}");

    let path = repository(REFERENCE);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let (head, tables) = text.split_once(BEGIN).with_context(|| format!("{REFERENCE} has no {BEGIN}"))?;
    let wanted = tables_of(&router.families, &node.families);
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{wanted}"))?;
    } else {
        let missing: Vec<_> = wanted.lines().filter(|line| !tables.lines().any(|row| row == *line)).collect();
        let outdated: Vec<_> = tables.lines().filter(|row| !wanted.lines().any(|line| line == *row)).collect();
        ensure!(
            tables == wanted,
            "{REFERENCE} is not what the services serve.\nMissing:\n{}\nOutdated:\n{}",
            missing.join("\n"),
            outdated.join("\n")
        );
    }

    if let Some(program) = program("promtool") {
        for exposition in [&router, &node] {
            promtool(&program, &["check", "metrics"], &exposition.text)?;
        }
    }
    cluster.finish().await
}

fn tables_of(router: &BTreeMap<String, Family>, node: &BTreeMap<String, Family>) -> String {
    let both: BTreeMap<_, _> =
        router.iter().filter(|(name, _)| node.contains_key(*name)).map(|(n, f)| (n.clone(), f.clone())).collect();
    let without = |of: &BTreeMap<String, Family>| {
        of.iter().filter(|(name, _)| !both.contains_key(*name)).map(|(n, f)| (n.clone(), f.clone())).collect()
    };
    let mut text = String::new();
    for (title, families) in
        [("Router", without(router)), ("Shard-node", without(node)), ("Both services", both.clone())]
    {
        text += &format!("\n## {title}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
        for (name, Family { kind, help, labels }) in families {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            text += &format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "));
        }
    }
    text
}

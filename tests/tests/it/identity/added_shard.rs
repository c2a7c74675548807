//! Tests of a shard that is added to a cluster in use. A common first mistake is a map that gives the new shard slots of the others. Only a
//! move changes the shard of a slot.

use anyhow::{Context, ensure};
use http::Method;
use shard_map::{Shard, ShardMap, SlotRange};
use testkit::{
    client::Client,
    cluster::{Cluster, Placement},
    database,
    node::{Folder, Node, NodeConfig},
    router::{Router, RouterConfig},
    wait::until,
};

use super::{NOTICED_WITHIN, Payments, ShardSetup, is_unavailable, node_says, says};

const EXIT_VIOLATION: i32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_that_gives_a_new_shard_slots_of_others_is_refused_everywhere_and_no_id_is_paid_twice()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2, 2).await?;
    let (client, folder) = (cluster.client(), Folder::create()?);
    let old = cluster.placement()?.map().clone();
    let url = database::create(&cluster, "s2").await?;
    let s2 = NodeConfig::write_in(&folder, "s2", old.cluster, "s2", &url)?;
    let greedy = with_third_shard(&old, &s2, &["4096-8191", "12288-16383"], &["0-4095", "8192-12287"])?;
    let mut payments =
        Payments::between(&client, taken(&old, &greedy, "s0", "payer")?, taken(&old, &greedy, "s1", "payee")?)
            .await?;
    payments.make(&client, 3).await?;
    let node = Node::start_waiting(&s2).await?;

    // `shardctl map check` refuses the map.
    let (old_file, greedy_file) = (folder.path().join("old.toml"), folder.path().join("greedy.toml"));
    std::fs::write(&old_file, old.to_toml())?;
    std::fs::write(&greedy_file, greedy.to_toml())?;
    let (old_path, greedy_path) = (old_file.display().to_string(), greedy_file.display().to_string());
    let checked = cluster.shardctl(&["map", "check", &greedy_path, "--replaces", &old_path]).await?;
    expect!(checked.code == Some(EXIT_VIOLATION), "{checked:?}");
    says(&checked.stdout, &["4096-8191", "shard s0", "shard s2", "only a move"])?;

    // `shard-node init` of the new shard refuses the map.
    let said = s2.run(&["init", "--map", &greedy_path, "--wait", "30"])?.refused()?;
    says(&said, &["4096-8191", "belong to shard s0", "belong to shard s1", "Only a move", "slots = []"])?;
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'shardledger'";
    ensure!(database::number(&url, schemas).await? == 0, "a refused init left something behind");
    node_says(&node, &["never initialised"]).await?;

    // Running routers keep the former map.
    std::fs::write(cluster.shard_map_path(), greedy.to_toml())?;
    for router in &cluster.status().routers {
        until("the router says that it refused the map", NOTICED_WITHIN, async || {
            let readiness =
                client.request(Method::GET, &format!("{}/readyz?verbose", router.admin_url), None).await?;
            let refused = readiness.json()?["shard_map"]["refused"].to_string();
            says(&refused, &["shard s0", "shard s2", "only a move"])?;
            Ok(Some(()))
        })
        .await?;
        let reload = format!("{}/admin/shard-map/reload", router.admin_url);
        let answer = client.request(Method::POST, &reload, None).await?;
        answer.expect_status(422)?;
        says(&answer.text(), &["shard s0", "shard s2", "only a move"])?;
    }
    payments.make(&client, 1).await?;
    payments.are_there_once(&client).await?;

    // A router that starts with this map has no other.
    let router = Router::start(&RouterConfig::write(&folder, "greedy-router", &greedy_file, "")?).await?;
    routes_to_the_owners(&payments, router.client()).await?;
    payments.make(router.client(), 1).await?;
    payments.are_there_once(router.client()).await?;
    drop(router);
    payments.are_there_once(&client).await?;
    for shard in &cluster.status().shards {
        let known = database::number(&shard.dsn, "SELECT version FROM known_map").await?;
        ensure!(u64::try_from(known)? == old.version, "{} has taken version {known} of the map", shard.id);
    }
    sums_are_zero(&client).await?;

    // The correct way: the new shard starts without slots.
    let right = with_third_shard(&old, &s2, &[], &["0-8191", "8192-16383"])?;
    let right_file = folder.path().join("right.toml");
    std::fs::write(&right_file, right.to_toml())?;
    let said = s2.run(&["init", "--map", &right_file.display().to_string(), "--wait", "30"])?.successful()?;
    says(&said, &["without slots"])?;
    node.becomes_ready().await?;
    std::fs::write(cluster.shard_map_path(), right.to_toml())?;
    for router in &cluster.status().routers {
        until("the router has the map", NOTICED_WITHIN, async || {
            let map = client.request(Method::GET, &format!("{}/admin/shard-map", router.admin_url), None).await?;
            let map = map.json()?;
            expect!(map["version"] == right.version && map["refused"].is_null(), "{map}");
            Ok(Some(()))
        })
        .await?;
    }
    payments.make(&client, 1).await?;
    payments.are_there_once(&client).await?;
    sums_are_zero(&client).await?;

    // A router's map leads to the new shard, which now serves and owns no slots.
    let router = Router::start(&RouterConfig::write(&folder, "misled-router", &greedy_file, "")?).await?;
    routes_to_the_owners(&payments, router.client()).await?;
    payments.make(router.client(), 1).await?;
    payments.are_there_once(router.client()).await?;
    drop(router);
    payments.are_there_once(&client).await?;
    verify_knows_the_new_shard(&cluster, &s2).await?;
    cluster.finish().await
}

/// The steps of `docs/operations/resharding.md` for a shard on another machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_front_of_an_empty_database_is_added_then_initialised_and_then_serves_without_slots()
-> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let (client, folder) = (cluster.client(), Folder::create()?);
    let old = cluster.placement()?.map().clone();
    let url = database::create(&cluster, "s2").await?;
    let s2 = NodeConfig::write_in(&folder, "s2", old.cluster, "s2", &url)?;
    let node = Node::start_waiting(&s2).await?;
    node_says(&node, &["never initialised"]).await?;
    // This is the operator's own file of the map.
    let file = folder.path().join("shard-map.toml");
    std::fs::write(&file, old.to_toml())?;
    let in_file = || anyhow::Ok(ShardMap::parse(&std::fs::read_to_string(&file)?)?);
    let (file_path, node_url, admin_url) =
        (file.display().to_string(), s2.url(), cluster.status().routers[0].admin_url.clone());
    let add = ["shard", "add", "s2", "--node", &node_url, "--admin-url", &admin_url, "--map", &file_path];

    cluster.shardctl(&[&add[..], &["--dry-run"]].concat()).await?.successful()?;
    ensure!(in_file()?.version == old.version, "a dry run changed the map");
    // An operator may repeat each step.
    for _ in 0..2 {
        let added = cluster.shardctl(&add).await?;
        expect!(added.code == Some(0), "{}{}", added.stdout, added.stderr);
        says(&added.stderr, &["map version 2 names shard s2", "not initialised", "init --map"])?;
        // From then on, the router tells the command about the shard.
        until("the router has the map", NOTICED_WITHIN, async || {
            let map = client.request(Method::GET, &format!("{admin_url}/admin/shard-map"), None).await?.json()?;
            expect!(map["version"] == 2, "{map}");
            Ok(Some(()))
        })
        .await?;
    }
    expect!(in_file()?.shards.iter().any(|shard| shard.id == "s2" && shard.slots.is_empty()), "{:?}", in_file()?);
    s2.run(&["init", "--map", &file_path, "--wait", "30"])?.successful()?;
    node.becomes_ready().await?;
    let added = cluster.shardctl(&add).await?.successful()?;
    says(&added, &["shard s2 serves and owns no slots"])?;
    until("the router sees that the shard serves", NOTICED_WITHIN, async || {
        Ok(cluster.shardctl(&["doctor", "--admin-url", &admin_url]).await?.code.filter(|code| *code == 0))
    })
    .await?;
    cluster.finish().await
}

/// `shardctl verify` of the two shards that `shardctl up` created names the third shard. With all three the result is
/// clean.
async fn verify_knows_the_new_shard(cluster: &Cluster, s2: &NodeConfig) -> anyhow::Result<()> {
    let shards = &cluster.status().shards;
    let mut targets: Vec<String> = shards.iter().map(|shard| format!("--dsn={}={}", shard.id, shard.dsn)).collect();
    let verify = async |targets: &[String]| {
        let arguments: Vec<&str> = ["verify"].into_iter().chain(targets.iter().map(String::as_str)).collect();
        cluster.shardctl(&arguments).await
    };
    let without = verify(&targets).await?;
    expect!(without.code == Some(3), "{}", without.stdout);
    says(&without.stdout, &["INV-2", "s2"])?;
    targets.push(format!("--dsn=s2={}", s2.database_url));
    let with = verify(&targets).await?;
    expect!(with.code == Some(0), "{}{}", with.stdout, with.stderr);
    Ok(())
}

/// The next version of a map, with one more shard.
fn with_third_shard(old: &ShardMap, s2: &NodeConfig, its: &[&str], theirs: &[&str; 2]) -> anyhow::Result<ShardMap> {
    let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse()).collect::<Result<Vec<SlotRange>, _>>();
    let mut shards = old.shards.clone();
    for (shard, slots) in shards.iter_mut().zip(theirs) {
        shard.slots = ranges(&[slots])?;
    }
    shards.push(Shard { id: "s2".to_owned(), number: 2, nodes: vec![s2.url()], slots: ranges(its)? });
    Ok(ShardMap::new(old.cluster, old.version + 1, shards)?)
}

/// Finds an account of this shard that the new map gives to the new shard.
fn taken(old: &ShardMap, greedy: &ShardMap, shard: &str, name: &str) -> anyhow::Result<String> {
    let (old, greedy) = (Placement::new(&old.to_toml())?, Placement::new(&greedy.to_toml())?);
    let id = (0..).map(|n| format!("{name}{n}")).find(|id| old.shard_of(id) == shard && greedy.shard_of(id) == "s2");
    id.context("no account id of this name is on the shard and moves to the new shard")
}

/// Checks that a router with a wrong map, from its start on, either reaches the owners or reports a shard as unreachable.
async fn routes_to_the_owners(payments: &Payments, client: &Client) -> anyhow::Result<()> {
    let mut answers = Vec::new();
    until("the router has found the owners", NOTICED_WITHIN, async || {
        let again = payments.send(client, payments.acknowledged[0]).await?;
        let found = !is_unavailable(&again);
        answers.push(again);
        Ok(found.then_some(()))
    })
    .await?;
    let last = answers.pop().context("no answer")?;
    expect!(last.status == 200 && last.is_replay(), "{} {}", last.status, last.text());
    Ok(())
}

async fn sums_are_zero(client: &Client) -> anyhow::Result<()> {
    for router in 0..client.routers() {
        let sums = client.get(router, "/v1/balances").await?;
        expect!(sums["partial"] == false && sums["data"][0]["posted"] == "0.00", "{sums}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_database_claims_a_slot_of_another_shard_does_not_start() -> anyhow::Result<()> {
    let setup = ShardSetup::with_shards(2).await?;
    let _nodes = setup.found().await?;
    let url = setup.postgres.create_database("s2", "").await?;
    let s2 = NodeConfig::write_in(&setup.folder, "s2", setup.map.cluster, "s2", &url)?;
    setup.init(&s2, &with_third_shard(&setup.map, &s2, &[], &["0-8191", "8192-16383"])?)?;
    drop(Node::start(&s2).await?);
    database::run(&url, "INSERT INTO slot_ownership (slot, state, epoch) VALUES (7, 1, 1), (9000, 1, 1)").await?;
    let said = Node::start_refused(&s2).await?;
    says(&said, &["slot ownership", "shard s0 owns slots 7 ", "shard s1 owns slots 9000 ", "slots = []"])
}

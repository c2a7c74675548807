//! Shards, nodes and routers of a test's own, on one PostgreSQL.

use std::path::PathBuf;

use anyhow::ensure;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};
use testkit::{
    cluster::Placement,
    node::{Folder, Node, NodeConfig},
    postgres::Postgres,
    proxy::TcpProxy,
    router::{Router, RouterConfig},
    seed::Seed,
};

/// Long enough for nodes that were just started to look at their databases.
const INIT_WAITS: &str = "30";

/// Databases `s0`, `s1` and so on, and the configuration of a node for each. Only PostgreSQL runs at first.
pub struct Stage {
    pub nodes: Vec<NodeConfig>,
    pub map: ShardMap,
    /// A proxy between the nodes and PostgreSQL, if the test requests one.
    pub proxy: Option<TcpProxy>,
    pub postgres: Postgres,
    pub folder: Folder,
}

impl Stage {
    pub async fn with_shards(count: u16) -> anyhow::Result<Self> {
        let (folder, postgres) = server().await?;
        Self::assemble(folder, postgres, None, count).await
    }

    /// Builds a stage whose nodes reach their databases through a proxy.
    pub async fn behind_a_proxy(count: u16) -> anyhow::Result<Self> {
        let (folder, postgres) = server().await?;
        let proxy = TcpProxy::start(postgres.address(), Seed::announce("identity").random()).await?;
        Self::assemble(folder, postgres, Some(proxy), count).await
    }

    async fn assemble(
        folder: Folder,
        postgres: Postgres,
        proxy: Option<TcpProxy>,
        count: u16,
    ) -> anyhow::Result<Self> {
        let cluster = ClusterId::generate();
        let (mut nodes, mut shards) = (Vec::new(), Vec::new());
        for (number, slots) in (0..).zip(SlotRange::split_evenly(count)) {
            let id = format!("s{number}");
            let direct = postgres.create_database(&id, "").await?;
            let url = proxy.as_ref().map_or(Ok(direct.clone()), |proxy| proxy.through(&direct))?;
            let node = NodeConfig::write_in(&folder, &id, cluster, &id, &url)?;
            shards.push(Shard { id, number, nodes: vec![node.url()], slots: vec![slots] });
            nodes.push(node);
        }
        let map = ShardMap::new(cluster, 1, shards)?;
        Ok(Self { nodes, map, proxy, postgres, folder })
    }

    /// Starts all nodes and initialises every database. Returns the nodes once they serve.
    pub async fn found(&self) -> anyhow::Result<Vec<Node>> {
        let mut nodes = Vec::new();
        for config in &self.nodes {
            nodes.push(Node::start_waiting(config).await?);
        }
        for config in &self.nodes {
            self.init(config, &self.map)?;
        }
        for node in &nodes {
            node.becomes_ready().await?;
        }
        Ok(nodes)
    }

    /// Keeps the present state of a shard's database as another database. The copy records its own oid, because a
    /// restored backup or volume keeps the oid and [`Postgres::copy`] does not.
    pub async fn snapshot(&self, shard: &str, name: &str) -> anyhow::Result<()> {
        self.postgres.copy(shard, name).await?;
        let own_oid = "(SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = current_database())";
        self.postgres.sql(name, &format!("UPDATE shardledger.shard_identity SET database_oid = {own_oid}")).await
    }

    /// Runs `shard-node init` with this map and returns its output.
    pub fn init(&self, node: &NodeConfig, map: &ShardMap) -> anyhow::Result<String> {
        let path = self.write_map(&format!("init-{}", node.shard), map)?;
        let said = node.run(&["init", "--map", &path.display().to_string(), "--wait", INIT_WAITS])?;
        ensure!(said.succeeded, "init of {}: {}", node.shard, said.text);
        Ok(said.text)
    }

    pub fn write_map(&self, name: &str, map: &ShardMap) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(format!("{name}.map.toml"));
        std::fs::write(&path, map.to_toml())?;
        Ok(path)
    }

    /// A router with the map that the shards were founded with.
    pub async fn router(&self, name: &str) -> anyhow::Result<Router> {
        Router::start(&self.router_config(name, &self.map, "")?).await
    }

    pub fn router_config(&self, name: &str, map: &ShardMap, more: &str) -> anyhow::Result<RouterConfig> {
        RouterConfig::write(&self.folder, name, &self.write_map(name, map)?, more)
    }

    pub fn placement(&self) -> anyhow::Result<Placement> {
        Placement::new(&self.map.to_toml())
    }

    /// A shard's database, not through the proxy.
    pub fn database(&self, shard: &str) -> String {
        self.postgres.url(shard)
    }
}

async fn server() -> anyhow::Result<(Folder, Postgres)> {
    let folder = Folder::create()?;
    let postgres = Postgres::start(&folder, "postgres").await?;
    Ok((folder, postgres))
}

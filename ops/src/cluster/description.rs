//! What a cluster consists of: `cluster.json`, written when it is made and read by every later command.

use std::{fs, path::PathBuf};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use shard_map::ClusterId;

use crate::cluster::{
    durable_file::{self, Audience},
    layout::Layout,
    ports::PortPlan,
    postgres::user::ServiceUser,
};

/// Format of `cluster.json`; a later one is refused by this program.
const FORMAT: u32 = 1;
/// Database role of the services, owner of the database of the same name. No superuser.
pub const ROLE: &str = "shardledger";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    format: u32,
    /// Made with the cluster; its databases, nodes and routers carry it too.
    pub cluster: ClusterId,
    /// Where `router` and `shard-node` are.
    pub bin_dir: PathBuf,
    pub postgres: PostgresPlace,
    pub routers: Vec<RouterPlace>,
    pub shards: Vec<ShardPlace>,
}

/// The PostgreSQL server of the cluster's databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPlace {
    pub bin_dir: PathBuf,
    /// Databases belong to one major version for life.
    pub major: u32,
    /// The folder of the databases: the data folder, or another one where `user` cannot reach that.
    pub home: PathBuf,
    /// Who runs the server: `None` is whoever runs shardctl. PostgreSQL refuses to run as root.
    pub user: Option<ServiceUser>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterPlace {
    pub name: String,
    pub http_port: u16,
    pub admin_port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardPlace {
    pub id: String,
    pub number: u16,
    pub postgres_port: u16,
    pub rpc_port: u16,
    pub admin_port: u16,
}

impl Description {
    pub fn new(bin_dir: PathBuf, postgres: PostgresPlace, ports: &PortPlan) -> Self {
        let routers = (0_u16..).zip(&ports.routers).map(|(i, port)| RouterPlace {
            name: format!("router-{i}"),
            http_port: port.http,
            admin_port: port.admin,
        });
        let shards = (0_u16..).zip(&ports.shards).map(|(number, port)| ShardPlace {
            id: format!("s{number}"),
            number,
            postgres_port: port.postgres,
            rpc_port: port.rpc,
            admin_port: port.admin,
        });
        Self {
            format: FORMAT,
            cluster: ClusterId::generate(),
            bin_dir,
            postgres,
            routers: routers.collect(),
            shards: shards.collect(),
        }
    }

    /// The cluster in this folder, if one was made there.
    pub fn load(layout: &Layout) -> anyhow::Result<Option<Self>> {
        let path = layout.description();
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found: Self = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(
            found.format == FORMAT,
            "{} has format {}, this shardctl knows {FORMAT}",
            path.display(),
            found.format
        );
        Ok(Some(found))
    }

    pub fn save(&self, layout: &Layout) -> anyhow::Result<()> {
        durable_file::replace(&layout.description(), &serde_json::to_string_pretty(self)?, Audience::Everyone)
    }

    pub fn shard(&self, id: &str) -> Option<&ShardPlace> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// Every port of the cluster with the process that listens on it.
    pub fn ports(&self) -> Vec<(u16, String)> {
        let routers =
            self.routers.iter().flat_map(|r| [r.http_port, r.admin_port].map(|port| (port, r.name.clone())));
        let shards = self.shards.iter().flat_map(|s| {
            [(s.postgres_port, s.postgres_name()), (s.rpc_port, s.node_name()), (s.admin_port, s.node_name())]
        });
        routers.chain(shards).collect()
    }
}

impl PostgresPlace {
    pub fn data_folder(&self, shard: &ShardPlace) -> PathBuf {
        self.home.join("pg").join(&shard.id)
    }
}

impl RouterPlace {
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }
}

impl ShardPlace {
    /// Name of the shard's node, and of its configuration and log.
    pub fn node_name(&self) -> String {
        self.id.clone()
    }

    pub fn postgres_name(&self) -> String {
        format!("postgres-{}", self.id)
    }

    pub fn node_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.rpc_port)
    }

    pub fn node_admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin_port)
    }

    /// How the node, `verify` and a curious operator reach the shard's database. Carries the password.
    pub fn dsn(&self, layout: &Layout) -> anyhow::Result<String> {
        let path = layout.password(&self.id, ROLE);
        let password = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(format!("postgres://{ROLE}:{}@127.0.0.1:{}/{ROLE}", password.trim(), self.postgres_port))
    }
}

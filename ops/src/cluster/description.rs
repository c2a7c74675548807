//! `cluster.json`, the description of a cluster: written when the cluster is created and read by every later command.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use shard_map::ClusterId;

use crate::cluster::{
    durable_file::{self, Audience},
    layout::Layout,
    place::Place,
    ports::{NodePorts, PortPlan},
    postgres::{
        home::{HOMES_ELSEWHERE, Home},
        user::ServiceUser,
    },
};

/// The format of `cluster.json`. This program refuses a later format.
const FORMAT: u32 = 2;
/// The previous format: it has no `root`, and the data folder's path in place of [`Home::Here`].
const FORMAT_WITH_PATHS: u32 = 1;
/// The services' database role, which owns the database of the same name and is not a superuser.
pub const ROLE: &str = "shardledger";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    format: u32,
    /// The cluster id, generated with the cluster. Its databases, nodes and routers carry it too.
    pub cluster: ClusterId,
    /// The data folder when `up` last ran. A different folder means that the data was moved or copied.
    #[serde(default)]
    pub root: PathBuf,
    /// The data folder that this folder is a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<PathBuf>,
    /// The folder of `router` and `shard-node`.
    pub bin_dir: PathBuf,
    pub postgres: PostgresPlace,
    pub routers: Vec<RouterPlace>,
    pub shards: Vec<ShardPlace>,
}

/// The PostgreSQL servers of the cluster's databases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresPlace {
    pub bin_dir: PathBuf,
    /// The major version of PostgreSQL; a database folder works with one major version only.
    pub major: u32,
    /// The parent folder of the databases: the data folder, or another folder if `user` cannot reach the data folder.
    pub home: Home,
    /// The user that runs the server; `None` is the user that runs shardctl. PostgreSQL refuses to run as root.
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
    /// The ports of a second node, which follows the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second_node: Option<NodePorts>,
    /// The system identifier of the shard's database, once that was created. A recorded database is never created
    /// again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<u64>,
}

/// A description, and whether its folder was moved or copied.
#[derive(Debug)]
pub struct Found {
    pub description: Description,
    pub place: Place,
}

impl Description {
    pub fn new(layout: &Layout, bin_dir: PathBuf, postgres: PostgresPlace, ports: &PortPlan) -> Self {
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
            second_node: ports.second_nodes.get(usize::from(number)).copied(),
            system_identifier: None,
        });
        Self {
            format: FORMAT,
            cluster: ClusterId::generate(),
            root: layout.root().to_owned(),
            copy_of: None,
            bin_dir,
            postgres,
            routers: routers.collect(),
            shards: shards.collect(),
        }
    }

    /// The cluster in this folder, if there is one. Refuses a copy that was never started, because its addresses are
    /// still those of the original.
    pub fn load(layout: &Layout) -> anyhow::Result<Option<Self>> {
        match Self::find(layout)? {
            Some(Found { place: Place::Copied { of }, .. }) => bail!(
                "{} is a copy of {} and has no addresses of its own yet: run `shardctl up` to assign them",
                layout.root().display(),
                of.display()
            ),
            found => Ok(found.map(|found| found.description)),
        }
    }

    /// The cluster in this folder, even if the folder was moved or copied.
    pub fn find(layout: &Layout) -> anyhow::Result<Option<Found>> {
        let path = layout.description();
        if !path.exists() {
            return Ok(None);
        }
        let mut description = Self::read(&path)?;
        if description.format == FORMAT_WITH_PATHS {
            description.upgrade(layout);
        }
        ensure!(
            description.format == FORMAT,
            "{} has format {}, this shardctl knows {FORMAT}",
            path.display(),
            description.format
        );
        let place = Place::of(layout, &description)?;
        if matches!(place, Place::Copied { .. }) {
            // Every command must find the copy's own processes and files, never those of the original.
            description.postgres.home = Home::of_copy(layout, &description.postgres.home)?;
        }
        Ok(Some(Found { description, place }))
    }

    /// The description in another data folder, if there is one.
    pub fn peek(root: &Path) -> Option<Self> {
        Self::read(&Layout::at(root.to_owned()).description()).ok()
    }

    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Upgrades the previous format. If the databases are elsewhere, the former data folder is unknown; this folder
    /// is assumed.
    fn upgrade(&mut self, layout: &Layout) {
        self.format = FORMAT;
        self.root = layout.root().to_owned();
        if let Home::Elsewhere(home) = &self.postgres.home
            && !home.starts_with(HOMES_ELSEWHERE)
        {
            self.root.clone_from(home);
            self.postgres.home = Home::Here;
        }
    }

    pub fn save(&self, layout: &Layout) -> anyhow::Result<()> {
        durable_file::replace(&layout.description(), &serde_json::to_string_pretty(self)?, Audience::Everyone)
    }

    pub fn shard(&self, id: &str) -> Option<&ShardPlace> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    pub fn set_ports(&mut self, plan: &PortPlan) {
        for (router, ports) in self.routers.iter_mut().zip(&plan.routers) {
            (router.http_port, router.admin_port) = (ports.http, ports.admin);
        }
        for (shard, ports) in self.shards.iter_mut().zip(&plan.shards) {
            (shard.postgres_port, shard.rpc_port, shard.admin_port) = (ports.postgres, ports.rpc, ports.admin);
        }
    }

    /// The database folder of a shard.
    pub fn database_folder(&self, layout: &Layout, shard: &ShardPlace) -> PathBuf {
        self.postgres.home.folder(layout).join("pg").join(&shard.id)
    }

    /// Every port of the cluster with the process that listens on it.
    pub fn ports(&self) -> Vec<(u16, String)> {
        let routers =
            self.routers.iter().flat_map(|r| [r.http_port, r.admin_port].map(|port| (port, r.name.clone())));
        let shards = self.shards.iter().flat_map(|s| {
            [(s.postgres_port, s.postgres_name()), (s.rpc_port, s.node_name()), (s.admin_port, s.node_name())]
        });
        let second_nodes = self.shards.iter().filter_map(|s| Some((s, s.second_node?)));
        let second_nodes =
            second_nodes.flat_map(|(s, ports)| [ports.rpc, ports.admin].map(|port| (port, s.second_node_name())));
        routers.chain(shards).chain(second_nodes).collect()
    }

    #[cfg(test)]
    pub fn for_tests(layout: &Layout) -> Self {
        let postgres = PostgresPlace { bin_dir: "/nonexistent".into(), major: 15, home: Home::Here, user: None };
        Self::new(layout, "/nonexistent".into(), postgres, &PortPlan::usual(1, 2))
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
    /// The name of the shard's node, of its configuration and of its log.
    pub fn node_name(&self) -> String {
        self.id.clone()
    }

    /// The name of the shard's second node.
    pub fn second_node_name(&self) -> String {
        format!("{}-second", self.id)
    }

    pub fn second_node_url(&self) -> Option<String> {
        Some(format!("http://127.0.0.1:{}", self.second_node?.rpc))
    }

    /// The nodes in the order in which routers prefer them.
    pub fn node_urls(&self) -> Vec<String> {
        std::iter::once(self.node_url()).chain(self.second_node_url()).collect()
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

    /// [`ShardPlace::dsn`] without the password.
    pub fn dsn_without_password(&self) -> String {
        format!("postgres://{ROLE}@127.0.0.1:{}/{ROLE}", self.postgres_port)
    }

    /// The URL of the shard's database, for the node, for `verify` and for operators. It contains the password.
    pub fn dsn(&self, layout: &Layout) -> anyhow::Result<String> {
        let path = layout.password(&self.id, ROLE);
        let password = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(format!("postgres://{ROLE}:{}@127.0.0.1:{}/{ROLE}", password.trim(), self.postgres_port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn older(layout: &Layout, home: &str) -> Found {
        let mut json = serde_json::to_value(Description::for_tests(layout)).unwrap();
        json["format"] = 1.into();
        json["postgres"]["home"] = home.into();
        json.as_object_mut().unwrap().remove("root");
        fs::write(layout.description(), json.to_string()).unwrap();
        Description::find(layout).unwrap().unwrap()
    }

    #[test]
    fn a_cluster_of_the_older_format_is_found_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let found = older(&layout, &layout.root().to_string_lossy());
        assert_eq!((found.place, found.description.postgres.home), (Place::Same, Home::Here));
        let found = older(&layout, "/nonexistent/before");
        assert_eq!(found.place, Place::Moved { from: "/nonexistent/before".into() });
        assert_eq!(found.description.postgres.home, Home::Here);
        let elsewhere = format!("{HOMES_ELSEWHERE}/0123456789abcdef");
        let found = older(&layout, &elsewhere);
        assert_eq!((found.place, found.description.postgres.home), (Place::Same, Home::Elsewhere(elsewhere.into())));
    }

    #[test]
    fn a_cluster_of_a_later_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let description = Description { format: FORMAT + 1, ..Description::for_tests(&layout) };
        description.save(&layout).unwrap();
        assert!(Description::find(&layout).unwrap_err().to_string().contains("has format 3"));
    }
}

//! `cluster.json`, the description of a cluster. It is written when the cluster is created and read by every later command.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use shard_map::ClusterId;

use super::{
    failover::FailoverStep,
    files::{self, Audience},
    layout::Layout,
    place::FolderPlace,
    ports::{NodePorts, PortPlan},
    postgres::{
        home::{HOMES_ELSEWHERE, Home},
        server::ServiceUser,
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
    /// Whether the router takes HTTPS. In such a cluster, nodes are called with mutual TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
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
    /// The system identifier of the shard's database. Absent until the database is created. A recorded database is never created again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<u64>,
    /// The second PostgreSQL, in a cluster that was created with stand-bys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<Standby>,
}

/// The second PostgreSQL of a shard. One of the two servers is the primary, and the other one is its stand-by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    pub mode: Replication,
    /// The port of the second server.
    pub port: u16,
    /// Whether the second server is the primary. Each failover changes this.
    #[serde(default)]
    pub leads: bool,
    /// The step with which an interrupted failover or rebuild continues. The stand-by is not started before the last step is done.
    #[serde(
        default,
        alias = "rebuilding",
        deserialize_with = "FailoverStep::from_any_version",
        skip_serializing_if = "Option::is_none"
    )]
    pub pending: Option<FailoverStep>,
}

/// Whether a commit waits for the stand-by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Replication {
    /// A commit waits for the stand-by: no failover loses anything, and without a stand-by nothing is written
    Sync,
    /// A commit does not wait: a failover may lose the last commits
    Async,
}

impl Replication {
    pub fn word(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
        }
    }
}

/// One PostgreSQL of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPlace {
    /// The name of the process and of its log.
    pub name: String,
    pub folder: PathBuf,
    pub port: u16,
}

/// The servers of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Servers {
    pub primary: ServerPlace,
    pub standby: Option<ServerPlace>,
}

/// A description, and whether its folder was moved or copied.
#[derive(Debug)]
pub struct FoundDescription {
    pub description: Description,
    pub place: FolderPlace,
}

impl Description {
    pub fn new(layout: &Layout, bin_dir: PathBuf, postgres: PostgresPlace, ports: &PortPlan) -> Self {
        let routers = (0_u16..).zip(&ports.routers).map(|(i, port)| RouterPlace {
            name: format!("router-{i}"),
            http_port: port.http,
            admin_port: port.admin,
            https: false,
        });
        let shards = (0_u16..).zip(&ports.shards).map(|(number, port)| ShardPlace {
            id: format!("s{number}"),
            number,
            postgres_port: port.postgres,
            rpc_port: port.rpc,
            admin_port: port.admin,
            second_node: ports.second_nodes.get(usize::from(number)).copied(),
            system_identifier: None,
            standby: None,
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
            Some(FoundDescription { place: FolderPlace::Copied { of }, .. }) => bail!(
                "{} is a copy of {} and has no addresses of its own yet: run `shardctl up` to assign them",
                layout.root().display(),
                of.display()
            ),
            found => Ok(found.map(|found| found.description)),
        }
    }

    /// The cluster in this folder, even if the folder was moved or copied.
    pub fn find(layout: &Layout) -> anyhow::Result<Option<FoundDescription>> {
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
        let place = FolderPlace::of(layout, &description)?;
        if matches!(place, FolderPlace::Copied { .. }) {
            // Every command must find the copy's own processes and files, never those of the original.
            description.postgres.home = Home::of_copy(layout, &description.postgres.home)?;
        }
        Ok(Some(FoundDescription { description, place }))
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
        files::replace(&layout.description(), &serde_json::to_string_pretty(self)?, Audience::Everyone)
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

    /// Whether the cluster was made with `up --tls`.
    pub fn has_tls(&self) -> bool {
        self.routers.iter().any(|router| router.https)
    }

    /// Gives a new cluster TLS.
    pub fn use_tls(&mut self) {
        self.routers.iter_mut().for_each(|router| router.https = true);
    }

    /// Gives each shard a second server on one of the ports.
    pub fn add_standbys(&mut self, mode: Replication, ports: &[u16]) {
        for (shard, port) in self.shards.iter_mut().zip(ports) {
            shard.standby = Some(Standby { mode, port: *port, leads: false, pending: None });
        }
    }

    /// The servers of a shard in their present roles.
    pub fn servers(&self, layout: &Layout, shard: &ShardPlace) -> Servers {
        let folder = self.database_folder(layout, shard);
        let second = shard.standby.as_ref().map(|standby| ServerPlace {
            name: format!("{}.second", shard.postgres_name()),
            folder: folder.with_file_name(format!("{}.second", shard.id)),
            port: standby.port,
        });
        let first = ServerPlace { name: shard.postgres_name(), folder, port: shard.postgres_port };
        match second {
            Some(second) if shard.standby.as_ref().is_some_and(|standby| standby.leads) => {
                Servers { primary: second, standby: Some(first) }
            }
            standby => Servers { primary: first, standby },
        }
    }

    /// The folder of a shard's first server. In a cluster with stand-bys, [`Description::servers`] says which server leads.
    pub fn database_folder(&self, layout: &Layout, shard: &ShardPlace) -> PathBuf {
        self.postgres.home.folder(layout).join("pg").join(&shard.id)
    }

    /// Every port of the cluster with the process that listens on it.
    pub fn ports(&self) -> Vec<(u16, String)> {
        let routers =
            self.routers.iter().flat_map(|r| [r.http_port, r.admin_port].map(|port| (port, r.name.clone())));
        let shards = self.shards.iter().flat_map(|s| {
            let second = s.standby.as_ref().map(|standby| (standby.port, format!("{}.second", s.postgres_name())));
            [(s.postgres_port, s.postgres_name()), (s.rpc_port, s.node_name()), (s.admin_port, s.node_name())]
                .into_iter()
                .chain(second)
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
        format!("{}://127.0.0.1:{}", if self.https { "https" } else { "http" }, self.http_port)
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

    /// What an interrupted failover or rebuild of the shard's stand-by has to do next.
    pub fn pending(&self) -> Option<FailoverStep> {
        self.standby.as_ref()?.pending
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
        format!("postgres://{ROLE}@127.0.0.1:{}/{ROLE}", self.primary_port())
    }

    /// The port of the server that is the primary according to the description.
    fn primary_port(&self) -> u16 {
        match &self.standby {
            Some(standby) if standby.leads => standby.port,
            _ => self.postgres_port,
        }
    }

    /// The URL of the shard's database on its primary, for `verify` and for operators. It contains the password.
    pub fn dsn(&self, layout: &Layout) -> anyhow::Result<String> {
        self.url_of(layout, &format!("127.0.0.1:{}", self.primary_port()))
    }

    /// The URL for the node, which names both servers and looks for the primary itself. It contains the password.
    pub fn node_dsn(&self, layout: &Layout) -> anyhow::Result<String> {
        let first = format!("127.0.0.1:{}", self.postgres_port);
        match &self.standby {
            Some(standby) => self.url_of(layout, &format!("{first},127.0.0.1:{}", standby.port)),
            None => self.url_of(layout, &first),
        }
    }

    fn url_of(&self, layout: &Layout, hosts: &str) -> anyhow::Result<String> {
        let path = layout.password(&self.id, ROLE);
        let password = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(format!("postgres://{ROLE}:{}@{hosts}/{ROLE}", password.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn older(layout: &Layout, home: &str) -> FoundDescription {
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
        assert_eq!((found.place, found.description.postgres.home), (FolderPlace::Same, Home::Here));
        let found = older(&layout, "/nonexistent/before");
        assert_eq!(found.place, FolderPlace::Moved { from: "/nonexistent/before".into() });
        assert_eq!(found.description.postgres.home, Home::Here);
        let elsewhere = format!("{HOMES_ELSEWHERE}/0123456789abcdef");
        let found = older(&layout, &elsewhere);
        assert_eq!(
            (found.place, found.description.postgres.home),
            (FolderPlace::Same, Home::Elsewhere(elsewhere.into()))
        );
    }

    #[test]
    fn a_failover_exchanges_the_servers_and_leaves_the_url_of_the_node() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let mut description = Description::for_tests(&layout);
        files::replace(&layout.password("s0", ROLE), "hush", Audience::Owner).unwrap();
        description.add_standbys(Replication::Sync, &[5610, 5611]);
        let ports = |description: &Description| {
            let servers = description.servers(&layout, &description.shards[0]);
            (servers.primary.port, servers.standby.unwrap().port)
        };
        let (dsn, node_dsn) = (description.shards[0].dsn(&layout), description.shards[0].node_dsn(&layout).unwrap());
        assert_eq!(ports(&description), (5510, 5610));
        assert_eq!(node_dsn, "postgres://shardledger:hush@127.0.0.1:5510,127.0.0.1:5610/shardledger");
        assert!(dsn.unwrap().contains("@127.0.0.1:5510/"));
        description.shards[0].standby.as_mut().unwrap().leads = true;
        assert_eq!(ports(&description), (5610, 5510));
        assert_eq!(description.shards[0].node_dsn(&layout).unwrap(), node_dsn);
        assert!(description.shards[0].dsn(&layout).unwrap().contains("@127.0.0.1:5610/"));
        let read: Description = serde_json::from_str(&serde_json::to_string(&description).unwrap()).unwrap();
        assert_eq!(read, description);
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

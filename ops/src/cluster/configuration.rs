//! The configuration files of nodes and routers, and the first shard map. Each file is written once; afterwards the
//! operator edits it.

use std::{
    num::NonZero,
    path::{Path, PathBuf},
};

use serde::Serialize;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};

use super::{
    description::{Description, RouterPlace, ShardPlace},
    files::{self, Audience},
    layout::Layout,
    ports::NodePorts,
};
use crate::authority::{self, AUTHORITY, Purpose};

/// The folder of certificates in configurations, relative to the configuration's folder like the path of the map.
const TLS_FROM_CONFIG: &str = "../tls";

/// The map's path in a router's configuration. It is relative to the configuration's folder, so that the data folder
/// can be moved.
pub const MAP_FROM_CONFIG: &str = "../shard-map.toml";

#[derive(Serialize)]
struct NodeConfig<'a> {
    cluster: ClusterSection,
    shard: ShardSection<'a>,
    database: DatabaseSection,
    rpc: RpcSection,
    admin: ListenSection,
}

#[derive(Serialize)]
struct RouterConfig {
    worker_threads: usize,
    http: HttpSection,
    admin: ListenSection,
    map: MapSection,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<ShardsSection>,
    assets: AssetsSection,
}

#[derive(Serialize)]
struct HttpSection {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsSection>,
}

#[derive(Serialize)]
struct RpcSection {
    listen: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<TlsSection>,
}

#[derive(Serialize)]
struct ShardsSection {
    tls: TlsSection,
}

/// The certificate of one listener, or of calls.
#[derive(Serialize)]
struct TlsSection {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    callers: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<&'static str>,
}

impl TlsSection {
    /// The certificate for this purpose in the cluster's own folder.
    fn of(purpose: Purpose) -> Self {
        let folder = Path::new(TLS_FROM_CONFIG);
        let (callers, nodes) = match purpose {
            Purpose::Node => (vec![authority::ROUTER, authority::NODE, authority::OPERATOR], vec![authority::NODE]),
            Purpose::Router | Purpose::Operator => (Vec::new(), vec![authority::NODE]),
            Purpose::Https => (Vec::new(), Vec::new()),
        };
        Self {
            certificate: authority::certificate_of(folder, purpose.name()),
            key: authority::key_of(folder, purpose.name()),
            authority: (purpose != Purpose::Https).then(|| authority::certificate_of(folder, AUTHORITY)),
            callers,
            nodes,
        }
    }
}

#[derive(Serialize)]
struct ClusterSection {
    id: ClusterId,
}

#[derive(Serialize)]
struct ShardSection<'a> {
    id: &'a str,
}

#[derive(Serialize)]
struct DatabaseSection {
    url: String,
}

#[derive(Serialize)]
struct ListenSection {
    listen: String,
}

#[derive(Serialize)]
struct MapSection {
    path: &'static str,
}

/// The scales of assets that are not built-in currencies.
#[derive(Serialize)]
struct AssetsSection {
    #[serde(rename = "BTC")]
    btc: u8,
}

/// Writes every file that is missing.
pub fn write(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    files::create_once(
        &layout.shard_map(),
        &first_shard_map(description.cluster, &description.shards)?,
        Audience::Everyone,
    )?;
    for shard in &description.shards {
        write_node(layout, description, shard)?;
    }
    for router in &description.routers {
        let text = toml::to_string(&router_config(router, threads_of_a_router(description.routers.len())))?;
        files::create_once(&layout.config(&router.name), &text, Audience::Owner)?;
    }
    Ok(())
}

/// Writes the configurations of a shard's nodes, if they are missing.
pub fn write_node(layout: &Layout, description: &Description, shard: &ShardPlace) -> anyhow::Result<()> {
    let ports = NodePorts { rpc: shard.rpc_port, admin: shard.admin_port };
    let text = toml::to_string(&node_config(layout, description, shard, ports)?)?;
    files::create_once(&layout.config(&shard.node_name()), &text, Audience::Owner)?;
    if let Some(ports) = shard.second_node {
        let text = toml::to_string(&node_config(layout, description, shard, ports)?)?;
        files::create_once(&layout.config(&shard.second_node_name()), &text, Audience::Owner)?;
    }
    Ok(())
}

fn node_config<'a>(
    layout: &Layout,
    description: &Description,
    shard: &'a ShardPlace,
    ports: NodePorts,
) -> anyhow::Result<NodeConfig<'a>> {
    Ok(NodeConfig {
        cluster: ClusterSection { id: description.cluster },
        shard: ShardSection { id: &shard.id },
        database: DatabaseSection { url: shard.node_dsn(layout)? },
        rpc: RpcSection {
            listen: loopback(ports.rpc).listen,
            tls: description.has_tls().then(|| TlsSection::of(Purpose::Node)),
        },
        admin: loopback(ports.admin),
    })
}

fn router_config(router: &RouterPlace, worker_threads: usize) -> RouterConfig {
    RouterConfig {
        worker_threads,
        http: HttpSection {
            listen: loopback(router.http_port).listen,
            tls: router.https.then(|| TlsSection::of(Purpose::Https)),
        },
        admin: loopback(router.admin_port),
        map: MapSection { path: MAP_FROM_CONFIG },
        shards: router.https.then(|| ShardsSection { tls: TlsSection::of(Purpose::Router) }),
        assets: AssetsSection { btc: 8 },
    }
}

/// The routers share the machine with nodes and databases: together they get half of the cores, and at least one thread each.
fn threads_of_a_router(routers: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (cores / 2 / routers.max(1)).max(1)
}

fn loopback(port: u16) -> ListenSection {
    ListenSection { listen: format!("127.0.0.1:{port}") }
}

/// Gives every shard an equal share of the slots.
fn first_shard_map(cluster: ClusterId, shards: &[ShardPlace]) -> anyhow::Result<String> {
    let shares = SlotRange::split_evenly(u16::try_from(shards.len())?);
    let shards = shards.iter().zip(shares).map(|(shard, slots)| Shard {
        id: shard.id.clone(),
        number: shard.number,
        nodes: shard.node_urls(),
        slots: vec![slots],
    });
    Ok(ShardMap::new(cluster, 1, shards.collect())?.to_toml())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(count: u16) -> Vec<ShardPlace> {
        (0..count)
            .map(|number| ShardPlace {
                id: format!("s{number}"),
                number,
                postgres_port: 1,
                rpc_port: 7500 + number,
                admin_port: 2,
                second_node: None,
                system_identifier: None,
                standby: None,
            })
            .collect()
    }

    #[test]
    fn the_first_map_divides_all_slots_among_any_number_of_shards() {
        for count in [1, 2, 3, 4, 7, 64] {
            let map = ShardMap::parse(&first_shard_map(ClusterId::generate(), &shards(count)).unwrap()).unwrap();
            assert_eq!((map.version, map.shards.len()), (1, usize::from(count)));
        }
    }

    #[test]
    fn no_file_that_others_may_read_contains_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap();
        let shard = &shards(1)[0];
        let ports = NodePorts { rpc: 1, admin: 2 };
        let mut description = Description::for_tests(&layout);
        description.use_tls();
        files::replace(&layout.password("s0", "shardledger"), "hush", Audience::Owner).unwrap();
        let text = toml::to_string(&node_config(&layout, &description, shard, ports).unwrap()).unwrap();
        assert!(text.contains("postgres://shardledger:hush@127.0.0.1:1/shardledger"), "{text}");
        assert!(!first_shard_map(ClusterId::generate(), &shards(1)).unwrap().contains("hush"));
    }
}

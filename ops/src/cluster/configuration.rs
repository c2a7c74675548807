//! The configuration files of nodes and routers, and the first shard map. Each file is written once; afterwards the
//! operator edits it.

use std::num::NonZero;

use serde::Serialize;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};

use crate::cluster::{
    description::{Description, RouterPlace, ShardPlace},
    durable_file::{self, Audience},
    layout::Layout,
    ports::NodePorts,
};

/// The map's path in a router's configuration. It is relative to the configuration's folder, so that the data folder
/// can be moved.
pub const MAP_FROM_CONFIG: &str = "../shard-map.toml";

#[derive(Serialize)]
struct NodeConfig<'a> {
    cluster: ClusterSection,
    shard: ShardSection<'a>,
    database: DatabaseSection,
    rpc: ListenSection,
    admin: ListenSection,
}

#[derive(Serialize)]
struct RouterConfig {
    worker_threads: usize,
    http: ListenSection,
    admin: ListenSection,
    map: MapSection,
    assets: AssetsSection,
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

/// Scales of assets other than the built-in currencies.
#[derive(Serialize)]
struct AssetsSection {
    #[serde(rename = "BTC")]
    btc: u8,
}

/// Writes every file that is missing.
pub fn write(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    durable_file::create_once(
        &layout.shard_map(),
        &first_shard_map(description.cluster, &description.shards)?,
        Audience::Everyone,
    )?;
    for shard in &description.shards {
        write_node(layout, description.cluster, shard)?;
    }
    for router in &description.routers {
        let text = toml::to_string(&router_config(router, threads_of_a_router(description.routers.len())))?;
        durable_file::create_once(&layout.config(&router.name), &text, Audience::Owner)?;
    }
    Ok(())
}

/// Writes the configurations of a shard's nodes, if they are missing.
pub fn write_node(layout: &Layout, cluster: ClusterId, shard: &ShardPlace) -> anyhow::Result<()> {
    let ports = NodePorts { rpc: shard.rpc_port, admin: shard.admin_port };
    let text = toml::to_string(&node_config(layout, cluster, shard, ports)?)?;
    durable_file::create_once(&layout.config(&shard.node_name()), &text, Audience::Owner)?;
    if let Some(ports) = shard.second_node {
        let text = toml::to_string(&node_config(layout, cluster, shard, ports)?)?;
        durable_file::create_once(&layout.config(&shard.second_node_name()), &text, Audience::Owner)?;
    }
    Ok(())
}

fn node_config<'a>(
    layout: &Layout,
    cluster: ClusterId,
    shard: &'a ShardPlace,
    ports: NodePorts,
) -> anyhow::Result<NodeConfig<'a>> {
    Ok(NodeConfig {
        cluster: ClusterSection { id: cluster },
        shard: ShardSection { id: &shard.id },
        database: DatabaseSection { url: shard.node_dsn(layout)? },
        rpc: loopback(ports.rpc),
        admin: loopback(ports.admin),
    })
}

fn router_config(router: &RouterPlace, worker_threads: usize) -> RouterConfig {
    RouterConfig {
        worker_threads,
        http: loopback(router.http_port),
        admin: loopback(router.admin_port),
        map: MapSection { path: MAP_FROM_CONFIG },
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
        durable_file::replace(&layout.password("s0", "shardledger"), "hush", Audience::Owner).unwrap();
        let text = toml::to_string(&node_config(&layout, ClusterId::generate(), shard, ports).unwrap()).unwrap();
        assert!(text.contains("postgres://shardledger:hush@127.0.0.1:1/shardledger"), "{text}");
        assert!(!first_shard_map(ClusterId::generate(), &shards(1)).unwrap().contains("hush"));
    }
}

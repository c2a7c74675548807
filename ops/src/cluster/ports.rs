//! The loopback ports on which the processes of a cluster listen.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The default first port of each kind. Each further process of a kind takes the next port.
const ROUTER_HTTP: u16 = 8080;
const ROUTER_ADMIN: u16 = 9080;
const POSTGRES: u16 = 5510;
const POSTGRES_STANDBY: u16 = 5610;
const NODE_RPC: u16 = 7500;
const NODE_ADMIN: u16 = 7600;
const SECOND_NODE_RPC: u16 = 7700;
const SECOND_NODE_ADMIN: u16 = 7800;

/// Free blocks are searched below the kernel's range of outgoing ports (32768 and up), so that no outgoing connection
/// takes the port of a process that is briefly down.
const FREE_BLOCK_FIRST: u16 = 12_000;
const FREE_BLOCK_LAST: u16 = 32_000;
/// The number of blocks that a search examines.
const FREE_BLOCK_TRIES: u32 = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouterPorts {
    pub http: u16,
    pub admin: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardPorts {
    pub postgres: u16,
    pub rpc: u16,
    pub admin: u16,
}

/// The ports of a shard's second node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePorts {
    pub rpc: u16,
    pub admin: u16,
}

/// The ports of a cluster, one entry for each process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    pub routers: Vec<RouterPorts>,
    pub shards: Vec<ShardPorts>,
    /// The ports of the second nodes, one entry for each shard. Empty in a cluster without second nodes.
    pub second_nodes: Vec<NodePorts>,
    /// The ports of the shards' second servers. Empty in a cluster without stand-bys.
    pub standbys: Vec<u16>,
}

impl PortPlan {
    /// Adds a port for the second server of each shard: the documented ports, or the ports after the block that begins at `base`. `base` 0
    /// finds a free block.
    pub fn with_standbys(mut self, base: Option<u16>) -> anyhow::Result<Self> {
        let count = u16::try_from(self.shards.len())?;
        let taken: Vec<u16> = self.ports().collect();
        let first = match base {
            None => POSTGRES_STANDBY,
            Some(0) => {
                let mut found = None;
                for _ in 0..FREE_BLOCK_TRIES {
                    let first = free_block(count)?;
                    found =
                        Some(first).filter(|first| !taken.iter().any(|port| (*first..*first + count).contains(port)));
                    if found.is_some() {
                        break;
                    }
                }
                found.context("found no free ports for the stand-bys")?
            }
            Some(_) => taken.iter().max().and_then(|last| last.checked_add(1)).context("no ports are left")?,
        };
        let last = first.checked_add(count).context("no ports are left for the stand-bys")?;
        self.standbys = (first..last).collect();
        Ok(self)
    }

    /// The documented ports.
    pub fn usual(routers: u16, shards: u16) -> Self {
        Self {
            routers: (0..routers).map(|i| RouterPorts { http: ROUTER_HTTP + i, admin: ROUTER_ADMIN + i }).collect(),
            shards: (0..shards)
                .map(|i| ShardPorts { postgres: POSTGRES + i, rpc: NODE_RPC + i, admin: NODE_ADMIN + i })
                .collect(),
            second_nodes: Vec::new(),
            standbys: Vec::new(),
        }
    }

    /// The documented ports, with a second node for each shard.
    pub fn usual_with_second_nodes(routers: u16, shards: u16) -> Self {
        let second_nodes =
            (0..shards).map(|i| NodePorts { rpc: SECOND_NODE_RPC + i, admin: SECOND_NODE_ADMIN + i }).collect();
        Self { second_nodes, ..Self::usual(routers, shards) }
    }

    /// One block of adjacent ports, routers first. `base` 0 finds a free block.
    pub fn block(base: u16, routers: u16, shards: u16) -> anyhow::Result<Self> {
        Self::block_of(base, routers, shards, 0)
    }

    /// [`PortPlan::block`] with a second node for each shard.
    pub fn block_with_second_nodes(base: u16, routers: u16, shards: u16) -> anyhow::Result<Self> {
        Self::block_of(base, routers, shards, shards)
    }

    fn block_of(base: u16, routers: u16, shards: u16, second_nodes: u16) -> anyhow::Result<Self> {
        let length = 2 * routers + 3 * shards + 2 * second_nodes;
        let base = if base == 0 { free_block(length)? } else { base };
        ensure!(base.checked_add(length).is_some(), "--port-base {base} leaves no room for {length} ports");
        let mut next = base..;
        let mut port = || next.next().context("out of ports");
        let mut plan =
            Self { routers: Vec::new(), shards: Vec::new(), second_nodes: Vec::new(), standbys: Vec::new() };
        for _ in 0..routers {
            plan.routers.push(RouterPorts { http: port()?, admin: port()? });
        }
        for _ in 0..shards {
            plan.shards.push(ShardPorts { postgres: port()?, rpc: port()?, admin: port()? });
        }
        for _ in 0..second_nodes {
            plan.second_nodes.push(NodePorts { rpc: port()?, admin: port()? });
        }
        Ok(plan)
    }
}

impl PortPlan {
    /// A free block without any of the given ports, whose owners may be down.
    pub fn free_block_beside(taken: &[u16], routers: u16, shards: u16) -> anyhow::Result<Self> {
        for _ in 0..FREE_BLOCK_TRIES {
            let plan = Self::block(0, routers, shards)?;
            if !plan.ports().any(|port| taken.contains(&port)) {
                return Ok(plan);
            }
        }
        anyhow::bail!("found no free ports beside those of the original")
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        let routers = self.routers.iter().flat_map(|ports| [ports.http, ports.admin]);
        let shards = self.shards.iter().flat_map(|ports| [ports.postgres, ports.rpc, ports.admin]);
        let second_nodes = self.second_nodes.iter().flat_map(|ports| [ports.rpc, ports.admin]);
        routers.chain(shards).chain(second_nodes)
    }
}

/// Whether this loopback port is free now.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn free_block(length: u16) -> anyhow::Result<u16> {
    let room = FREE_BLOCK_LAST - FREE_BLOCK_FIRST - length;
    for _ in 0..FREE_BLOCK_TRIES {
        // The search starts at a random block, because clusters that start at the same time would otherwise find the
        // same block.
        let [.., high, low] = uuid::Uuid::now_v7().into_bytes();
        let first = FREE_BLOCK_FIRST + u16::from_be_bytes([high, low]) % room;
        if (first..first + length).all(is_free) {
            return Ok(first);
        }
    }
    anyhow::bail!("found no {length} adjacent free ports between {FREE_BLOCK_FIRST} and {FREE_BLOCK_LAST}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_ports_are_the_documented_ones() {
        let plan = PortPlan::usual(2, 4);
        assert_eq!(plan.routers[1], RouterPorts { http: 8081, admin: 9081 });
        assert_eq!(plan.shards[3], ShardPorts { postgres: 5513, rpc: 7503, admin: 7603 });
    }

    #[test]
    fn a_block_uses_each_port_once() {
        let plan = PortPlan::block(20_000, 2, 3).unwrap();
        assert_eq!(plan.routers[0], RouterPorts { http: 20_000, admin: 20_001 });
        assert_eq!(plan.shards[2], ShardPorts { postgres: 20_010, rpc: 20_011, admin: 20_012 });
        assert_eq!(plan.with_standbys(Some(20_000)).unwrap().standbys, [20_013, 20_014, 20_015]);
        let plan = PortPlan::block_with_second_nodes(20_000, 2, 3).unwrap();
        assert_eq!(plan.second_nodes[2], NodePorts { rpc: 20_017, admin: 20_018 });
        assert_eq!(plan.with_standbys(Some(20_000)).unwrap().standbys, [20_019, 20_020, 20_021]);
        assert!(PortPlan::block(65_530, 2, 3).is_err());
        assert_eq!(PortPlan::usual(2, 2).with_standbys(None).unwrap().standbys, [5610, 5611]);
        let free = PortPlan::block(0, 1, 2).unwrap().with_standbys(Some(0)).unwrap();
        assert!(free.standbys.len() == 2 && !free.ports().any(|port| free.standbys.contains(&port)));
    }

    #[test]
    fn a_free_block_is_free() {
        let plan = PortPlan::block(0, 1, 1).unwrap();
        assert!(is_free(plan.routers[0].http) && is_free(plan.shards[0].admin));
    }
}

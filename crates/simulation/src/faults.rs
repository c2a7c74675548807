//! What goes wrong in a run, and when.

use std::time::Duration;

use shard_node::simulation::{Fault, FoldFault};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cluster::{Cluster, NODES},
    network::{Address, Caller, LinkFault, Way},
    random::Random,
    trace,
};

/// A fault that lasts for some time, or hits one of the next messages or statements.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    KillNode(Address),
    FreezeNode(Address),
    KillRouter(usize),
    FreezeRouter(usize),
    CrashDatabase(usize),
    ReadOnlyDatabase(usize),
    /// The same happens to so many of the node's next commits.
    Commit(Address, Fault, usize),
    /// A step of the node's next fold fails.
    Fold(Address, FoldFault),
    CutLink(Way),
    /// The same happens to so many of the next calls that carry operations.
    Message(LinkFault, usize),
    /// The version of the shard's slot ownership changes.
    ChangeOwnership(usize),
}

/// A fault, when it begins, and how long it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    pub at: Duration,
    pub lasts: Duration,
    pub kind: Kind,
}

/// Draws the faults of a run.
pub fn draw(random: &mut Random, count: usize, within: Duration, shards: usize, routers: usize) -> Vec<Planned> {
    let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
    let mut planned: Vec<Planned> = (0..count)
        .map(|_| {
            let at = Duration::from_millis(random.below(within_ms));
            let longest_ms = *random.pick(&[100, 1_000, 6_000]);
            let lasts = Duration::from_millis(random.between(20, longest_ms));
            Planned { at, lasts, kind: kind(random, shards, routers) }
        })
        .collect();
    planned.sort_by_key(|planned| planned.at);
    planned
}

/// The same fault for some commits of the first node of each shard.
pub fn lies(lie: Fault, shards: usize) -> impl Iterator<Item = Planned> {
    (0..shards).map(move |shard| Planned {
        at: Duration::from_millis(300),
        lasts: Duration::ZERO,
        kind: Kind::Commit(Address { shard, node: 0 }, lie, 3),
    })
}

fn kind(random: &mut Random, shards: usize, routers: usize) -> Kind {
    let shard = random.index(shards);
    let router = random.index(routers);
    // The first node of a shard has the traffic, as long as it serves.
    let node = if random.percent(70) { 0 } else { random.index(NODES) };
    let address = Address { shard, node };
    match random.below(20) {
        0 | 1 => Kind::KillNode(address),
        2 => Kind::FreezeNode(address),
        3 => Kind::KillRouter(router),
        4 => Kind::FreezeRouter(router),
        5 => Kind::CrashDatabase(shard),
        6 => Kind::ReadOnlyDatabase(shard),
        7..=10 => Kind::Commit(
            address,
            *random.pick(&[
                Fault::LoseAnswer,
                Fault::LoseAnswer,
                Fault::Swallow,
                Fault::Refuse,
                Fault::Fence,
                Fault::Stall,
                Fault::Crash,
                Fault::CrashAfter,
                Fault::Warn,
            ]),
            1 + random.index(3),
        ),
        11 => Kind::Fold(address, FoldFault { after: random.index(3), is_carried_out: random.percent(50) }),
        12 => Kind::CutLink(Way { from: Caller::Router(router), to: address }),
        13..=18 => {
            let late = Duration::from_millis(random.between(100, 6_000));
            let faults = [LinkFault::LoseRequest, LinkFault::LoseAnswer, LinkFault::Duplicate, LinkFault::Late(late)];
            Kind::Message(*random.pick(&faults), 1 + random.index(3))
        }
        _ => Kind::ChangeOwnership(shard),
    }
}

/// Brings a fault about, and ends it after its time.
pub async fn bring_about(cluster: Cluster, begun: Instant, planned: Planned) {
    let Planned { at, lasts, kind } = planned;
    sleep_until(begun + at).await;
    trace::note("fault", || format!("{kind:?} for {lasts:?}"));
    let network = &cluster.network;
    match kind {
        Kind::KillNode(address) => {
            network.down(address);
            sleep(lasts).await;
            start_node(&cluster, address);
        }
        Kind::FreezeNode(address) => {
            network.freeze(address);
            sleep(lasts).await;
            network.thaw(address);
        }
        Kind::KillRouter(router) => {
            cluster.kill_router(router);
            sleep(lasts).await;
            cluster.start_router(router);
        }
        Kind::FreezeRouter(router) => {
            if let Some(process) = cluster.router(router) {
                process.tasks.process().freeze();
                sleep(lasts).await;
                process.tasks.process().thaw();
            }
        }
        Kind::CrashDatabase(shard) => {
            cluster.database(shard).crash();
            sleep(lasts).await;
            cluster.database(shard).restart();
        }
        Kind::ReadOnlyDatabase(shard) => {
            cluster.database(shard).set_read_only(true);
            sleep(lasts).await;
            cluster.database(shard).set_read_only(false);
        }
        Kind::Commit(address, fault, times) => {
            if let Some(node) = network.node(address) {
                node.order(std::iter::repeat_n(fault, times));
                sleep(lasts).await;
                (0..times).for_each(|_| node.release());
                cluster.database(address.shard).restart();
            }
        }
        Kind::Fold(address, fault) => {
            if let Some(node) = network.node(address) {
                node.order_fold_fault(fault);
            }
        }
        Kind::CutLink(way) => {
            network.cut(way);
            sleep(lasts).await;
            network.mend(way);
        }
        Kind::Message(fault, times) => network.order(std::iter::repeat_n(fault, times)),
        Kind::ChangeOwnership(shard) => cluster.database(shard).change_ownership(),
    }
    trace::note("fault", || format!("{kind:?} is over"));
}

/// Ends every fault, and starts what is down.
pub fn heal(cluster: &Cluster, routers: usize) {
    trace::note("fault", || "everything heals".to_owned());
    cluster.network.calm();
    for database in cluster.databases() {
        database.stay_up();
        database.set_read_only(false);
    }
    for address in cluster.addresses() {
        if let Some(node) = cluster.network.node(address) {
            node.calm();
            node.release();
        }
        start_node(cluster, address);
    }
    for router in 0..routers {
        if let Some(process) = cluster.router(router) {
            process.tasks.process().thaw();
        }
        cluster.start_router(router);
    }
}

fn start_node(cluster: &Cluster, address: Address) {
    let settings = cluster.any_settings();
    cluster.start_node(address, settings).expect("a simulated timer can be made");
}

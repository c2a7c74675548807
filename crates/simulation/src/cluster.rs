//! The processes of a simulated cluster: databases, nodes and routers, and how they die and come back.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ledger::{
    AccountId, AssetCode, Limit, Metadata, TransferId,
    operation::{CreateAccount, Purpose},
};
use router::simulation::{CoreConfig, NewTransfer, Router};
use shard_map::{ClusterId, Shard, ShardMap, SlotRange, slot_of};
use shard_node::simulation::{Node, NodeSettings, ShardDatabase, ShardName, forget_pages};
use telemetry::Tasks;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    network::{Address, Caller, Network, Way, uri},
    random::Random,
    record::Moment,
    trace,
};

/// Nodes of each shard.
pub const NODES: usize = 2;
/// What `alice` and `bob` of each shard have at the beginning, in minor units.
pub const FUNDS: i64 = 100;
/// No account receives more than this, of those that have a limit.
pub const MAX_BALANCE: i64 = 150;

/// A shard's accounts, by what they are for.
#[derive(Debug, Clone)]
pub struct Accounts {
    /// May owe any amount.
    pub bank: AccountId,
    /// May not owe anything.
    pub limited: Vec<AccountId>,
    /// May not owe anything, nor have more than `MAX_BALANCE`.
    pub capped: Vec<AccountId>,
}

impl Accounts {
    pub fn all(&self) -> impl Iterator<Item = AccountId> {
        [&self.bank].into_iter().chain(&self.limited).chain(&self.capped).cloned()
    }
}

/// Databases with accounts and money in them, and the maps of routers: what every run over so many shards begins with.
pub struct Template {
    maps: Arc<Vec<ShardMap>>,
    map_of_nodes: ShardMap,
    shards: Vec<(ShardName, ShardDatabase)>,
    accounts: Arc<Vec<Accounts>>,
}

/// Everything that runs. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    pub network: Network,
    pub accounts: Arc<Vec<Accounts>>,
    maps: Arc<Vec<ShardMap>>,
    shards: Arc<Vec<(ShardName, ShardDatabase)>>,
    routers: Arc<Mutex<BTreeMap<usize, RouterProcess>>>,
    random: Arc<Mutex<Random>>,
    latest: Arc<AtomicU64>,
    /// Slots move in this run.
    moves: bool,
}

/// A router and its tasks.
#[derive(Clone)]
pub struct RouterProcess {
    pub router: Router,
    pub tasks: Tasks,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn asset() -> AssetCode {
    AssetCode::new("USD").expect("a currency code")
}

impl Template {
    /// Empty shards, and maps for so many routers.
    fn empty(shards: usize, routers: usize) -> Self {
        let cluster = ClusterId::try_from(Uuid::from_u128(7)).expect("not nil");
        let parts = u16::try_from(shards).expect("a few shards");
        let ranges: Vec<SlotRange> = SlotRange::split_evenly(parts).collect();
        let numbered = || (0_u16..).zip(&ranges).enumerate();
        let map_of = |from: Caller| {
            let shard = |(shard, (number, range)): (usize, (u16, &SlotRange))| Shard {
                id: format!("s{number}"),
                number,
                nodes: (0..NODES).map(|node| uri(Way { from, to: Address { shard, node } })).collect(),
                slots: vec![*range],
            };
            ShardMap::new(cluster, 1, numbered().map(shard).collect()).expect("a valid map")
        };
        let shard = |(number, range): (u16, &SlotRange)| {
            (ShardName { cluster, id: format!("s{number}"), number }, ShardDatabase::new(number, &[*range]))
        };
        let accounts = |(_, range): (u16, &SlotRange)| {
            let named = |prefix: &str| {
                let names = (0..).map(|number| format!("{prefix}{number}"));
                let mut here = names.filter(|name| range.contains(slot_of(name)));
                let name = here.next().expect("a name for every shard");
                AccountId::client(&name).expect("a valid id")
            };
            Accounts { bank: named("bank"), limited: vec![named("alice")], capped: vec![named("bob"), named("shop")] }
        };
        Self {
            maps: Arc::new((0..routers).map(Caller::Router).map(map_of).collect()),
            map_of_nodes: map_of(Caller::Node),
            shards: numbered().map(|(_, it)| shard(it)).collect(),
            accounts: Arc::new(numbered().map(|(_, it)| accounts(it)).collect()),
        }
    }

    /// Opens the accounts and pays money in, through a router and nodes that nothing disturbs. Call it in a simulation.
    ///
    /// # Errors
    /// If an account cannot be opened or paid.
    pub async fn found(shards: usize, routers: usize) -> io::Result<Self> {
        let template = Self::empty(shards, routers);
        let cluster = Cluster::of(&template, template.shards.clone(), Random::new(1), 0, false);
        let fold_interval = Duration::from_millis(100);
        let settings = NodeSettings { fold_interval, cache_bytes: 1 << 20, pauses: 0, moves: false };
        for shard in 0..shards {
            cluster.start_node(Address { shard, node: 0 }, settings)?;
        }
        cluster.start_router(0);
        let RouterProcess { router, .. } = cluster.router(0).ok_or(io::ErrorKind::NotFound)?;
        let deadline = || Instant::now() + Duration::from_secs(20);
        let mut opened = Vec::new();
        let mut paid = Vec::new();
        for Accounts { bank, limited, capped } in &*template.accounts {
            opened.push(account(bank, Limit::Unlimited, Limit::Unlimited));
            opened.extend(limited.iter().map(|id| account(id, Limit::ZERO, Limit::Unlimited)));
            opened.extend(capped.iter().map(|id| account(id, Limit::ZERO, Limit::AtMost(MAX_BALANCE))));
            paid.extend(limited.iter().chain(capped.first()).map(|id| (bank, id)));
        }
        // The lanes may not have reached their databases yet.
        while router.create_accounts(opened.clone(), deadline()).await.iter().any(Result::is_err) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for (number, (bank, id)) in (1..).zip(paid) {
            let order = NewTransfer {
                ordered_by: None,
                id: TransferId(Uuid::from_u128(number)),
                debit: bank.clone(),
                credit: id.clone(),
                asset: asset(),
                amount: FUNDS,
                metadata: Metadata::empty(),
                purpose: Purpose::Payment,
            };
            router.transfer(order, deadline()).await.map_err(io::Error::other)?;
        }
        while !cluster.databases().all(ShardDatabase::is_folded) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cluster.end();
        Ok(template)
    }
}

fn account(id: &AccountId, overdraft: Limit, max_balance: Limit) -> CreateAccount {
    CreateAccount {
        ordered_by: None,
        id: id.clone(),
        asset: asset(),
        overdraft,
        max_balance,
        metadata: Metadata::empty(),
    }
}

impl Cluster {
    /// A cluster on these databases.
    fn of(
        template: &Template,
        shards: Vec<(ShardName, ShardDatabase)>,
        mut random: Random,
        longest_ms: u64,
        moves: bool,
    ) -> Self {
        let network = Network::new(random.fork(), longest_ms, moves);
        node_client::simulation::install(Some(Arc::new(network.clone())));
        Self {
            network,
            accounts: Arc::clone(&template.accounts),
            maps: Arc::clone(&template.maps),
            shards: Arc::new(shards),
            routers: Arc::default(),
            random: Arc::new(Mutex::new(random)),
            latest: Arc::default(),
            moves,
        }
    }

    /// Now. No two calls of a run return the same moment.
    pub fn moment(&self) -> Moment {
        let now = telemetry::simulation::now_us().map_or(0, trace::since_begin);
        let moment = now.max(self.latest.load(Relaxed) + 1);
        self.latest.store(moment, Relaxed);
        moment
    }

    /// A cluster of its own with what the template holds. `longest_ms` is the longest usual delay of a message.
    /// With `moves`, slots can move, and every shard has a map.
    pub fn new(template: &Template, random: Random, longest_ms: u64, moves: bool) -> Self {
        forget_pages();
        let copy = |(name, database): &(ShardName, ShardDatabase)| (name.clone(), database.copy());
        let cluster = Self::of(template, template.shards.iter().map(copy).collect(), random, longest_ms, moves);
        if moves {
            cluster.databases().for_each(|database| database.remember_map(&template.map_of_nodes));
        }
        cluster
    }

    /// The id of a shard.
    pub fn name(&self, shard: usize) -> &str {
        &self.shards[shard].0.id
    }

    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    pub fn database(&self, shard: usize) -> &ShardDatabase {
        &self.shards[shard].1
    }

    pub fn databases(&self) -> impl Iterator<Item = &ShardDatabase> {
        self.shards.iter().map(|(_, database)| database)
    }

    pub fn addresses(&self) -> impl Iterator<Item = Address> + use<> {
        (0..self.shards.len()).flat_map(|shard| (0..NODES).map(move |node| Address { shard, node }))
    }

    /// Starts a node, unless it runs.
    ///
    /// # Errors
    /// When the node's timer cannot be made.
    pub fn start_node(&self, at: Address, settings: NodeSettings) -> io::Result<()> {
        if self.network.node(at).is_none() {
            let (name, database) = &self.shards[at.shard];
            self.network.up(at, Arc::new(Node::start(name, database, &settings)?));
        }
        Ok(())
    }

    /// Settings that vary from node to node.
    pub fn any_settings(&self) -> NodeSettings {
        let mut random = lock(&self.random);
        NodeSettings {
            fold_interval: Duration::from_millis(*random.pick(&[20, 200, 1_000, 5_000])),
            cache_bytes: *random.pick(&[1, 1 << 20]),
            pauses: random.number().max(1),
            moves: self.moves,
        }
    }

    /// Starts a router, unless it runs.
    pub fn start_router(&self, number: usize) {
        let mut routers = lock(&self.routers);
        routers.entry(number).or_insert_with(|| {
            let config = CoreConfig {
                name: format!("router r{number}"),
                assets: [(asset().to_string(), 2)].into_iter().collect(),
                ..CoreConfig::default()
            };
            let tasks = Tasks::new();
            let router = router::simulation::start(&config, self.maps[number].clone(), tasks.clone());
            RouterProcess { router, tasks }
        });
    }

    pub fn kill_router(&self, number: usize) {
        let router = lock(&self.routers).remove(&number);
        if let Some(RouterProcess { tasks, .. }) = router {
            tasks.process().thaw();
            tasks.process().kill();
        }
    }

    pub fn router(&self, number: usize) -> Option<RouterProcess> {
        lock(&self.routers).get(&number).cloned()
    }

    /// An essential task that has ended by itself.
    pub fn failed(&self) -> Option<String> {
        let nodes = self.addresses().filter_map(|at| self.network.node(at));
        let of_nodes = nodes.filter_map(|node| node.tasks().failed()).next();
        let of_routers = || lock(&self.routers).values().find_map(|process| process.tasks.failed());
        of_nodes.or_else(of_routers).map(str::to_owned)
    }

    /// Kills everything.
    pub fn end(&self) {
        let routers: Vec<usize> = lock(&self.routers).keys().copied().collect();
        routers.into_iter().for_each(|router| self.kill_router(router));
        for address in self.addresses() {
            self.network.down(address);
        }
    }
}

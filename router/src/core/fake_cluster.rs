//! Shards without PostgreSQL, for tests: the real ledger rules behind the real protocol, in memory, with faults on order.

mod rpc;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::TcpListener,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ledger::{
    Account, AccountId, AssetCode, Limit, Metadata, TransferId, TransferKey,
    accounts::Accounts,
    batch::{Batch, Prior, Request},
    booking::{Booking, Role},
    fold::{self, SagaChange},
    history::StoredTransfer,
    in_memory::{Journal, needed},
    operation::{CreateAccount, PlaceHold, Purpose},
    outcome::{NotOwner, Outcome, Reason, Reply, TransferState},
};
use shard_map::{ShardMap, Slot, SlotRange, slot_of};
use telemetry::tasks::Tasks;
use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    time::Instant,
};
use tonic::transport::server::TcpIncoming;
use uuid::Uuid;
use wire::{convert, convert::Submitted, shard_node_server::ShardNodeServer};

use super::{
    Core,
    reply::{AccountReply, NewTransfer},
    routing::Routing,
};
use crate::config::CoreConfig;

/// What happens to one of the next Execute calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// As if it had been lost on the way.
    LoseRequest,
    /// Executed, and the answer lost.
    LoseAnswer,
    /// Every operation refused, not executed.
    Refuse(Reason),
    /// Executed, and the node says that it does not know.
    Unknown,
    /// The first operation is refused, not executed; the others are, and the node says that it does not know.
    RefuseFirst(Reason),
}

/// Who owns each slot, in truth, and since which epoch.
type Truth = Arc<Mutex<Vec<(usize, i64)>>>;

pub struct FakeNode {
    id: String,
    number: usize,
    truth: Truth,
    /// Whether a refusal of the fence names the owner.
    names_owner: bool,
    state: Mutex<NodeState>,
    trouble: Mutex<VecDeque<Trouble>>,
    /// Slots that were given to this node and that it has not taken, each with the shard that gave it, and the version of its ownership.
    arriving: watch::Sender<(BTreeMap<u16, String>, i64)>,
    /// While true, Execute calls and sums wait at the door.
    hung: watch::Sender<bool>,
    pub executions: AtomicUsize,
    /// Calls that came with a trace context, and which operations of a batch it was about.
    pub traced: Mutex<Vec<String>>,
    /// Recovery leaves younger sagas to the router that began them.
    saga_due_after: Mutex<Duration>,
    /// Sagas that recovery was given.
    handed_over: AtomicUsize,
}

struct NodeState {
    accounts: Accounts,
    names: BTreeSet<AccountId>,
    journal: Journal,
    /// Until when each saga that began here is left to its router.
    coordinated_until: HashMap<TransferKey, Instant>,
    now_us: i64,
}

/// Some fake nodes and a router over them.
pub struct Cluster {
    pub router: Arc<Core>,
    pub nodes: Vec<Arc<FakeNode>>,
    pub tasks: Tasks,
    truth: Truth,
    servers: Vec<Server>,
}

/// A node's process: a runtime of its own, so that stopping it cuts its connections as a kill does.
struct Server {
    port: u16,
    runtime: Option<Runtime>,
}

/// Settings with short times, so that tests do not wait.
pub fn quick() -> CoreConfig {
    CoreConfig {
        connect_timeout: Duration::from_millis(200),
        breaker_open: Duration::from_millis(50),
        saga_poll_interval: Duration::from_millis(50),
        ..CoreConfig::default()
    }
}

/// A deadline that no machine is too slow for.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub fn usd() -> AssetCode {
    AssetCode::new("USD").unwrap()
}

pub fn id(name: &str) -> AccountId {
    AccountId::client(name).unwrap()
}

pub fn transfer(number: u128, debit: &str, credit: &str, amount: i64) -> NewTransfer {
    NewTransfer {
        ordered_by: None,
        id: TransferId(Uuid::from_u128(number)),
        debit: id(debit),
        credit: id(credit),
        asset: usd(),
        amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
    }
}

pub fn hold(number: u128, debit: &str, credit: &str, amount: i64) -> PlaceHold {
    let NewTransfer { id, debit, credit, asset, amount, metadata, .. } = transfer(number, debit, credit, amount);
    PlaceHold { ordered_by: None, id, debit, credit, asset, amount, expires_in_s: None, metadata }
}

impl Cluster {
    pub async fn start(shards: usize) -> Self {
        Self::start_with(shards, quick(), true).await
    }

    pub async fn start_with(shards: usize, config: CoreConfig, names_owner: bool) -> Self {
        let tasks = Tasks::new();
        let ranges: Vec<SlotRange> = SlotRange::split_evenly(u16::try_from(shards).unwrap()).collect();
        let owner = |slot: Slot| ranges.iter().position(|range| range.contains(slot)).unwrap();
        let truth: Truth = Arc::new(Mutex::new(Slot::all().map(|slot| (owner(slot), 1)).collect()));
        let (mut nodes, mut servers, mut listed) = (Vec::new(), Vec::new(), Vec::new());
        for (number, range) in ranges.iter().enumerate() {
            let node = Arc::new(FakeNode::new(number, &truth, names_owner));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            servers.push(Server { port, runtime: Some(serve(&node, listener)) });
            listed.push(shard_map::Shard {
                id: node.id.clone(),
                number: u16::try_from(number).unwrap(),
                nodes: vec![format!("http://127.0.0.1:{port}")],
                slots: vec![*range],
            });
            nodes.push(node);
        }
        let routing = Routing::fixed(ShardMap::new(shard_map::ClusterId::generate(), 1, listed).unwrap());
        let router = Core::start(&config, routing, tasks.clone());
        Self { router, nodes, tasks, truth, servers }
    }

    /// As if the process had been killed.
    pub fn stop(&mut self, node: usize) {
        if let Some(runtime) = self.servers[node].runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub async fn restart(&mut self, node: usize) {
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", self.servers[node].port)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.servers[node].runtime = Some(serve(&self.nodes[node], listener));
    }

    /// Which node owns an account.
    pub fn owner(&self, account: &str) -> usize {
        lock(&self.truth)[usize::from(slot_of(account).index())].0
    }

    /// An account id with this prefix on that node.
    pub fn account_on(&self, node: usize, prefix: &str) -> String {
        (0..).map(|n| format!("{prefix}{n}")).find(|name| self.owner(name) == node).unwrap()
    }

    /// Opens accounts with money in them, taken from an account `bank` on the same shard.
    pub async fn fund(&self, accounts: &[(&str, i64)]) {
        let mut opened = Vec::new();
        for (name, _) in accounts {
            opened.push(create(name, Limit::ZERO));
            opened.push(create(&format!("{{{name}}}bank"), Limit::Unlimited));
        }
        for reply in self.router.create_accounts(opened, soon()).await {
            assert!(matches!(reply, Ok(AccountReply::Created(_))), "{reply:?}");
        }
        for (number, (name, amount)) in accounts.iter().enumerate().filter(|(_, (_, amount))| *amount > 0) {
            let order = transfer(u128::MAX - number as u128, &format!("{{{name}}}bank"), name, *amount);
            let reply = self.router.transfer(order, soon()).await;
            assert!(reply.is_ok(), "{reply:?}");
        }
    }

    pub async fn posted(&self, account: &str) -> i64 {
        let found = self.router.account(&id(account), soon()).await.unwrap();
        found.expect("the account was opened").value.posted
    }

    /// Gives an account's slot to another node, which has not taken it yet.
    pub fn release_slot_of(&self, account: &str, to: usize) {
        let (slot, from) = (slot_of(account).index(), format!("s{}", self.owner(account)));
        self.nodes[to].arriving.send_modify(|(arriving, version)| {
            arriving.insert(slot, from);
            *version += 1;
        });
        self.move_slot_of(account, to);
    }

    /// Gives an account's slot, with everything in it, to another node.
    pub fn move_slot_of(&self, account: &str, to: usize) {
        let slot = slot_of(account).index();
        let from = {
            let mut truth = lock(&self.truth);
            let entry = &mut truth[usize::from(slot)];
            let from = entry.0;
            *entry = (to, entry.1 + 1);
            from
        };
        let here = |name: &AccountId| !name.is_system() && slot_of(name.as_str()).index() == slot;
        let (accounts, journal) = {
            let state = lock(&self.nodes[from].state);
            let moved = state.names.iter().filter(|name| here(name));
            let accounts = moved.map(|name| (name.clone(), state.accounts.get(name).cloned()));
            let accounts: Vec<(AccountId, Option<Account>)> = accounts.collect();
            (accounts, state.journal.clone())
        };
        let mut state = lock(&self.nodes[to].state);
        for (name, account) in accounts {
            state.accounts.learn(name.clone(), account);
            state.names.insert(name);
        }
        state.journal.copy_from(&journal, here);
    }
}

pub fn create(name: &str, overdraft: Limit) -> CreateAccount {
    CreateAccount {
        ordered_by: None,
        id: id(name),
        asset: usd(),
        overdraft,
        max_balance: Limit::Unlimited,
        metadata: Metadata::empty(),
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 0..self.servers.len() {
            self.stop(node);
        }
    }
}

fn serve(node: &Arc<FakeNode>, listener: TcpListener) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let service = ShardNodeServer::from_arc(Arc::clone(node));
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener).unwrap());
        let server = tonic::transport::Server::builder().add_service(service);
        server.serve_with_incoming(incoming.with_nodelay(Some(true))).await
    });
    runtime
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl FakeNode {
    fn new(number: usize, truth: &Truth, names_owner: bool) -> Self {
        let state = NodeState {
            accounts: Accounts::with_capacity(1_000_000),
            names: BTreeSet::new(),
            journal: Journal::of_shard(u16::try_from(number).unwrap()),
            coordinated_until: HashMap::new(),
            now_us: 1_000_000,
        };
        Self {
            id: format!("s{number}"),
            number,
            truth: Arc::clone(truth),
            names_owner,
            state: Mutex::new(state),
            trouble: Mutex::default(),
            arriving: watch::Sender::new((BTreeMap::new(), 1)),
            hung: watch::Sender::new(false),
            executions: AtomicUsize::new(0),
            traced: Mutex::default(),
            saga_due_after: Mutex::new(Duration::from_secs(600)),
            handed_over: AtomicUsize::new(0),
        }
    }

    pub fn expect_trouble(&self, trouble: impl IntoIterator<Item = Trouble>) {
        lock(&self.trouble).extend(trouble);
    }

    pub fn hang(&self, hung: bool) {
        self.hung.send_replace(hung);
    }

    /// Takes every slot that was given to this node.
    pub fn take_slots(&self) {
        self.arriving.send_modify(|(arriving, version)| {
            arriving.clear();
            *version += 1;
        });
    }

    /// Hands sagas of this age to a router that asks for some to finish.
    pub fn sagas_are_due_after(&self, age: Duration) {
        *lock(&self.saga_due_after) = age;
    }

    /// How many sagas recovery was given to finish.
    pub fn handed_over(&self) -> usize {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Calls that wait at the door.
    pub fn waiting(&self) -> usize {
        self.hung.receiver_count()
    }

    /// Transfers that have not ended.
    pub fn pending(&self) -> usize {
        lock(&self.state).pending().count()
    }

    fn not_owner(&self, account: &str) -> Option<NotOwner> {
        let slot = slot_of(account).index();
        let (owner, epoch) = lock(&self.truth)[usize::from(slot)];
        let name = if self.names_owner { format!("s{owner}") } else { String::new() };
        if owner == self.number
            && let Some(from) = self.arriving.borrow().0.get(&slot)
        {
            return Some(NotOwner { slot, state: 3, epoch, owner: from.clone() });
        }
        (owner != self.number).then_some(NotOwner { slot, state: 2, epoch, owner: name })
    }

    fn slots_not_owned(&self, slots: &[wire::SlotRange]) -> Vec<wire::NotOwner> {
        let truth = lock(&self.truth);
        let asked = slots.iter().flat_map(|range| range.first..=range.last);
        asked
            .filter_map(|slot| {
                let (owner, epoch) = truth[slot as usize];
                let name = if self.names_owner { format!("s{owner}") } else { String::new() };
                (owner != self.number).then_some(wire::NotOwner { slot, state: 2, epoch, owner: name })
            })
            .collect()
    }

    fn accounts_in(&self, slots: &[wire::SlotRange], prefix: &str) -> Vec<wire::Account> {
        let state = lock(&self.state);
        let asked = |name: &AccountId| {
            let slot = u32::from(slot_of(name.as_str()).index());
            slots.iter().any(|range| (range.first..=range.last).contains(&slot))
        };
        let meant = |name: &&AccountId| !name.is_system() && name.as_str().starts_with(prefix) && asked(name);
        state.names.iter().filter(meant).filter_map(|name| state.accounts.get(name)).map(Into::into).collect()
    }

    fn run(&self, operations: Vec<wire::Operation>) -> Vec<wire::OperationResult> {
        let mut state = lock(&self.state);
        let state = &mut *state;
        state.now_us += 1;
        let fence = |account: &AccountId| match self.not_owner(account.as_str()) {
            Some(not_owner) if !account.is_system() => Err(not_owner),
            _ => Ok(()),
        };
        let submitted: Vec<Submitted> =
            operations.into_iter().map(|operation| operation.try_into().unwrap()).collect();
        for Submitted { operation, .. } in &submitted {
            for account in needed(operation) {
                if !state.accounts.is_known(&account) {
                    state.accounts.learn(account.clone(), None);
                }
                state.names.insert(account);
            }
        }
        let operations = submitted.iter().map(|submitted| &submitted.operation);
        let prior = Prior::Loaded(state.journal.stored(operations.clone()));
        let named = state.journal.named(&state.accounts, operations);
        let next_position = state.journal.next_position();
        let mut batch = Batch::new(&mut state.accounts, prior, named, &fence, state.now_us, next_position);
        let outcomes: Vec<Outcome> = submitted
            .iter()
            .map(|submitted| {
                let order_group = submitted.order_group.into();
                let left_us = i64::from(submitted.timeout_ms) * 1000;
                batch.apply(Request { order_group, deadline_us: state.now_us + left_us }, &submitted.operation)
            })
            .collect();
        let effects = batch.finish();
        state.accounts.finish_batch();
        for booking in &effects.bookings {
            if let Some(SagaChange::Begun(key)) = fold::saga_change(booking) {
                state.coordinated_until.insert(key, coordinated_until(booking, state.now_us));
            }
        }
        state.journal.append(effects);
        outcomes.into_iter().map(|outcome| Reply::Outcome(outcome).into()).collect()
    }
}

/// Until when the router of a saga sees to it. `now_us` is the node's clock, on which the booking names that time.
fn coordinated_until(first: &Booking, now_us: i64) -> Instant {
    let first_attempt_us = first.extra.as_ref().and_then(|extra| extra.first_attempt_us).unwrap_or(now_us);
    Instant::now() + Duration::from_micros(u64::try_from(first_attempt_us - now_us).unwrap_or(0))
}

impl NodeState {
    /// The transfers that have not ended.
    fn pending(&self) -> impl Iterator<Item = (TransferKey, StoredTransfer)> {
        let transfers = self.journal.keys(Role::Transfer).into_iter();
        let transfers = transfers.filter_map(|key| self.journal.transfer(&key).map(|stored| (key, stored)));
        transfers.filter(|(_, stored)| stored.state == TransferState::Pending)
    }

    fn record(&self, key: &TransferKey, stored: &StoredTransfer) -> wire::TransferRecord {
        let refused = match stored.state {
            TransferState::Rejected { refused, .. } => convert::refused_to_wire(refused),
            TransferState::Pending => stored.presumed.map_or((0, 0), convert::refused_to_wire),
            TransferState::Posted { .. } => (0, 0),
        };
        let reversals = || self.journal.reversals(key);
        wire::TransferRecord {
            id: convert::id_to_wire(key.id),
            debit: key.debit.to_string(),
            credit: stored.credit.to_string(),
            asset: stored.asset.to_string(),
            amount: stored.amount,
            cross_shard: stored.cross_shard,
            status: stored.state.code().into(),
            refusal: refused.0,
            side: refused.1,
            created_at_us: stored.created_at_us,
            finished_at_us: stored.state.finished_at_us().unwrap_or(0),
            purpose: convert::purpose_to_wire(stored.purpose),
            reversed: reversals().map(|booking| booking.amount).sum(),
            reversals: reversals().filter_map(|booking| booking.id).map(convert::id_to_wire).collect(),
            ..Default::default()
        }
    }
}

/// Turns a stored transfer's record into how it stands.
pub fn standing(record: &wire::TransferRecord) -> TransferState {
    convert::state_from_wire(record.status, record.refusal, record.side, record.finished_at_us).unwrap()
}

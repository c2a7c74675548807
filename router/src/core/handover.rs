//! Requests for slots that are changing shards wait here until the new owner reports that it has them.
//!
//! While a slot is between two shards, neither executes for it (`docs/adr/0010`). A request that is refused for this reason waits and
//! is sent again. One task for each receiving shard waits for the signal: the shard's node answers `GetOwnership` as soon as the slots
//! that the shard owns have changed. Waiting requests are bounded by their number, their bytes and their time.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use shard_map::{Slot, SlotRange, merge_slots};
use telemetry::tasks::Tasks;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

use super::{metrics, routing::Routing, shard::Shard};

/// Operations that wait at once, and what they take in memory, at most.
const MOST: Load = Load { operations: 100_000, bytes: 64 << 20 };
/// The same bound for one slot.
const MOST_OF_SLOT: Load = Load { operations: 50_000, bytes: 32 << 20 };
/// How long a node waits for news before it answers that there are none.
const NEWS_WITHIN: Duration = Duration::from_millis(400);
/// The limit for that answer.
const ANSWER_WITHIN: Duration = Duration::from_millis(1500);
/// The pause before a shard that did not answer, or had no news, is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Hand-overs that are remembered for `shardctl move report`.
const REMEMBERED: usize = 256;
/// If this long passes without a waiting request, the next one belongs to another move: the copy of a second move takes longer.
const APART: Duration = Duration::from_millis(500);

/// The share of the bounds that a waiting request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub operations: usize,
    /// An estimate of its memory.
    pub bytes: usize,
}

impl Load {
    /// A question about one account.
    pub const READ: Self = Self { operations: 1, bytes: 256 };

    fn is_over(self, most: Self) -> bool {
        self.operations > most.operations || self.bytes > most.bytes
    }

    fn plus(self, other: Self) -> Self {
        Self { operations: self.operations + other.operations, bytes: self.bytes + other.bytes }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            operations: self.operations.saturating_sub(other.operations),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// A slot that a shard waits for.
#[derive(Clone)]
pub struct Arriving {
    pub slot: Slot,
    /// The epoch at which the shard will own the slot.
    pub epoch: i64,
    /// The shard that receives the slot.
    pub shard: Arc<Shard>,
}

/// How the wait for a slot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The shard has reported that it owns the slot.
    Arrived,
    /// The shard had reported the slot before this wait began.
    AlreadyArrived,
    /// Too many requests wait, or the time is over.
    Refused,
}

/// One hand-over, as this router saw it.
#[derive(Debug, Clone)]
pub struct HandoverRecord {
    /// The shard that received the slots.
    pub shard: Arc<str>,
    pub epoch: i64,
    /// The slots for which requests waited.
    pub slots: Vec<SlotRange>,
    /// When the first request began to wait, in microseconds since the epoch.
    pub begun_at_us: i64,
    pub waited: u64,
    /// Operations that were sent again after the shard had reported that it owns the slot.
    pub replayed: u64,
    /// Operations that were refused, because too many waited or they had waited too long.
    pub refused: u64,
    /// How many operations waited for how many microseconds, in ascending order.
    pub waits: Vec<(u64, u64)>,
}

/// The requests that wait for slots.
pub struct Handovers {
    routing: Routing,
    tasks: Tasks,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    total: Load,
    slots: HashMap<Slot, Load>,
    /// By the id of the receiving shard.
    news: HashMap<Arc<str>, watch::Sender<News>>,
    remembered: VecDeque<Remembered>,
}

struct Remembered {
    shard: Arc<str>,
    epoch: i64,
    slots: BTreeSet<Slot>,
    begun_at_us: i64,
    latest: Instant,
    waited: u64,
    replayed: u64,
    refused: u64,
    waits: Histogram<u64>,
}

/// The epochs at which a shard owns slots, or has given them away again. Empty before its first answer.
type News = Arc<[i64]>;

impl Handovers {
    pub fn new(routing: Routing, tasks: Tasks) -> Self {
        Self { routing, tasks, waiting: Mutex::default() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // No code panics while it holds this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the slot has arrived.
    pub async fn wait(self: &Arc<Self>, arriving: &Arriving, load: Load, until: Instant) -> Waited {
        let index = usize::from(arriving.slot.index());
        let has_arrived = |news: &News| news.get(index).is_some_and(|epoch| *epoch >= arriving.epoch);
        let begun = Instant::now();
        let Some(_place) = self.admit(arriving, load) else { return Waited::Refused };
        let mut news = self.subscribe(&arriving.shard);
        if has_arrived(&news.borrow()) {
            self.waiting()
                .remember(arriving, |seen| seen.waited = seen.waited.saturating_sub(load.operations as u64));
            return Waited::AlreadyArrived;
        }
        let arrived = matches!(timeout_at(until, news.wait_for(has_arrived)).await, Ok(Ok(_)));
        self.waiting().remember(arriving, |seen| {
            let operations = load.operations as u64;
            if arrived {
                seen.replayed += operations;
                let waited = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                seen.waits.saturating_record_n(waited, operations);
            } else {
                seen.refused += operations;
            }
        });
        if arrived { Waited::Arrived } else { Waited::Refused }
    }

    fn admit(&self, arriving: &Arriving, load: Load) -> Option<WaitingPlace<'_>> {
        let mut waiting = self.waiting();
        let total = waiting.total.plus(load);
        let of_slot = waiting.slots.get(&arriving.slot).copied().unwrap_or_default().plus(load);
        // One request that is larger than the bound waits when it is alone.
        let is_full = (total.is_over(MOST) && waiting.total != Load::default())
            || (of_slot.is_over(MOST_OF_SLOT) && waiting.slots.contains_key(&arriving.slot));
        let operations = load.operations as u64;
        waiting.remember(arriving, |seen| match is_full {
            true => seen.refused += operations,
            false => seen.waited += operations,
        });
        if is_full {
            drop(waiting);
            metrics::refused_to_wait(load.operations);
            return None;
        }
        waiting.total = total;
        waiting.slots.insert(arriving.slot, of_slot);
        metrics::waiting(total.operations);
        drop(waiting);
        Some(WaitingPlace { handovers: self, slot: arriving.slot, load })
    }

    fn subscribe(self: &Arc<Self>, shard: &Arc<Shard>) -> watch::Receiver<News> {
        let mut waiting = self.waiting();
        if let Some(news) = waiting.news.get(shard.id()) {
            return news.subscribe();
        }
        let (sender, receiver) = watch::channel(News::default());
        waiting.news.insert(Arc::clone(shard.id()), sender.clone());
        drop(waiting);
        self.tasks.spawn("hand-over", Arc::clone(self).follow(Arc::clone(shard), sender));
        receiver
    }

    /// Asks the shard for its slots, again after each change, as long as a request waits for it.
    async fn follow(self: Arc<Self>, shard: Arc<Shard>, news: watch::Sender<News>) {
        let token = self.tasks.token();
        let mut newer_than = 0;
        while !self.is_over(&shard, &news) {
            let request = wire::GetOwnershipRequest { newer_than, wait_ms: NEWS_WITHIN.as_millis() as u32 };
            let ask = shard
                .read(Instant::now() + ANSWER_WITHIN, |mut node| async move { node.get_ownership(request).await });
            let Some(answer) = token.run_until_cancelled(ask).await else {
                // Without a sender, the waits end.
                self.waiting().news.remove(shard.id());
                return;
            };
            match answer {
                Ok(answer) => {
                    let is_news = answer.ownership_version > newer_than;
                    newer_than = answer.ownership_version;
                    let epochs = epochs(&answer);
                    self.routing.hear_one(shard.id(), answer);
                    news.send_replace(epochs);
                    // A node of an earlier version answers at once.
                    if !is_news {
                        sleep(RETRY_PAUSE).await;
                    }
                }
                // The request's own time bounds the wait. A node that is back must answer at once.
                Err(_) => {
                    newer_than = 0;
                    sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Whether no request waits for the shard any more. Its task ends then.
    fn is_over(&self, shard: &Shard, news: &watch::Sender<News>) -> bool {
        let mut waiting = self.waiting();
        let is_over = news.receiver_count() == 0;
        if is_over {
            waiting.news.remove(shard.id());
        }
        is_over
    }

    /// The hand-overs for which requests waited in this router, the latest last.
    pub fn records(&self) -> Vec<HandoverRecord> {
        self.waiting().remembered.iter().map(Remembered::record).collect()
    }
}

/// The epoch at which the shard has each slot, or has given it away again.
fn epochs(answer: &wire::GetOwnershipResponse) -> News {
    const OWNED: u32 = 1;
    const RELEASED: u32 = 2;
    let mut epochs = vec![0; Slot::all().len()];
    for range in answer.ranges.iter().filter(|range| matches!(range.state, OWNED | RELEASED)) {
        for index in range.first..=range.last {
            if let Some(epoch) = usize::try_from(index).ok().and_then(|index| epochs.get_mut(index)) {
                *epoch = range.epoch;
            }
        }
    }
    epochs.into()
}

/// The place of a waiting request. It is given back when the request goes on, or its client has gone.
struct WaitingPlace<'a> {
    handovers: &'a Handovers,
    slot: Slot,
    load: Load,
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        let mut waiting = self.handovers.waiting();
        waiting.total = waiting.total.minus(self.load);
        let left = waiting.slots.get(&self.slot).copied().unwrap_or_default().minus(self.load);
        match left.operations {
            0 => waiting.slots.remove(&self.slot),
            _ => waiting.slots.insert(self.slot, left),
        };
        metrics::waiting(waiting.total.operations);
    }
}

impl Waiting {
    /// Changes the record of a hand-over, the last one to this shard at this epoch. A new one begins after a while without requests.
    fn remember(&mut self, arriving: &Arriving, change: impl FnOnce(&mut Remembered)) {
        let now = Instant::now();
        let is_same = |seen: &Remembered| {
            seen.shard == *arriving.shard.id()
                && seen.epoch == arriving.epoch
                && (self.total != Load::default() || now.duration_since(seen.latest) < APART)
        };
        let place = self.remembered.iter().rposition(is_same).unwrap_or_else(|| {
            if self.remembered.len() == REMEMBERED {
                self.remembered.pop_front();
            }
            self.remembered.push_back(Remembered::new(arriving, now));
            self.remembered.len() - 1
        });
        let seen = &mut self.remembered[place];
        seen.slots.insert(arriving.slot);
        seen.latest = now;
        change(seen);
    }
}

impl Remembered {
    fn new(arriving: &Arriving, now: Instant) -> Self {
        Self {
            shard: Arc::clone(arriving.shard.id()),
            epoch: arriving.epoch,
            slots: BTreeSet::new(),
            begun_at_us: telemetry::clock::now_us(),
            latest: now,
            waited: 0,
            replayed: 0,
            refused: 0,
            // Up to a minute, to 1 %.
            waits: Histogram::new_with_max(60_000_000, 2)
                .unwrap_or_else(|_| unreachable!("the bounds are constants")),
        }
    }

    fn record(&self) -> HandoverRecord {
        HandoverRecord {
            shard: Arc::clone(&self.shard),
            epoch: self.epoch,
            slots: merge_slots(self.slots.iter().copied()),
            begun_at_us: self.begun_at_us,
            waited: self.waited,
            replayed: self.replayed,
            refused: self.refused,
            waits: self
                .waits
                .iter_recorded()
                .map(|it| (it.value_iterated_to(), it.count_since_last_iteration()))
                .collect(),
        }
    }
}

//! Which transfers of a batch may go at the same time, so that all of them take effect as if one after another in request
//! order, on any shard.
//!
//! Pure. A batch runs in waves. Within a wave every shard first runs its local transfers and reserves in request order,
//! then the destinations decide the reserved ones in request order, then the sources settle. A transfer joins a wave
//! unless something earlier that is not finished could change what it finds:
//!
//! * its debit account is credited by an earlier cross-shard transfer of this wave (that money arrives after the
//!   reserves), or by an earlier one that waits;
//! * it debits an account from which an earlier transfer waits to be paid, or credits one: it must not overtake.
//!
//! What a wave cannot know is whether an earlier cross-shard debit of the same account will be refused by its credit side
//! and give the money back. Such a transfer goes along, marked `defer_insufficient`: where the money does not suffice the
//! node puts it off instead of refusing it for good. The first transfer of a wave is never marked and never waits, so
//! every wave finishes something.
//!
//! Two *credits* of the same account may change places when one comes from another shard, which only an account with a
//! `max_balance` can tell, or one that is more than half full. Whether it is such a one the node knows: a credit that something
//! earlier may yet change the limit's outcome for goes along marked `defer_limited`, and the node puts it off where there is a
//! limit. In a batch that is large enough to fill an account from less than half, such a credit waits at once.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::LazyLock,
};

use ledger::AccountId;
use shard_map::ShardIndex;
use twox_hash::XxHash3_64;

/// A hash that stands for an account within one batch. Where two accounts collide, a transfer waits for nothing: slower,
/// never wrong. Seeded per process, so that no client can arrange collisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AccountKey(u64);

static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));

impl AccountKey {
    pub fn of(account: &AccountId) -> Self {
        Self(XxHash3_64::oneshot_with_seed(*SEED, account.as_str().as_bytes()))
    }
}

/// A transfer of the batch that has not ended.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub debit: AccountKey,
    pub credit: AccountKey,
    pub source: ShardIndex,
    pub destination: ShardIndex,
    pub standing: Standing,
    /// Its batch moves enough to fill an account: credits keep their order whether the account has a limit or not.
    pub is_large: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing of it has been executed.
    New,
    /// Reserved, and not yet decided.
    Reserved,
    /// Its outcome is unknown and stays so for this batch.
    Lost,
}

/// What a wave does with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Execute it, or reserve it; after that it may be decided.
    /// For one that crosses shards, `defer_limited` is about its decision.
    Execute { defer_insufficient: bool, defer_limited: bool },
    /// It is reserved already; it may be decided.
    Decide { defer_limited: bool },
    /// Not in this wave.
    Wait,
    /// Never in this batch: it depends on a line whose outcome is unknown. Not executed.
    Abandon,
}

/// Places every line, in request order. At most `max_per_shard` are executed on any one shard, and as many decided.
pub fn plan_wave(lines: &[Line], max_per_shard: usize) -> Vec<Placement> {
    let all_local = lines.iter().all(|line| line.standing == Standing::New && line.source == line.destination);
    if all_local && lines.len() <= max_per_shard {
        // Each shard runs its own in order, and no shard concerns another.
        return vec![Placement::Execute { defer_insufficient: false, defer_limited: false }; lines.len()];
    }
    let mut wave = Wave { room: (lines.len() > max_per_shard).then(|| Room::new(max_per_shard)), ..Wave::default() };
    lines.iter().map(|line| wave.place(line)).collect()
}

/// What became of a line's execution in a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was not executed and will be tried again: put off by the node, refused by the fence, or it waited.
    PutOff,
    /// It is reserved and placed to be decided in this wave.
    Reserved,
    /// Nothing is left to be done in this wave.
    Done,
}

/// Of the reserved lines, those whose decision has to wait: an earlier transfer that was put off has yet to be paid from the
/// account they credit, and must not find their money there; or has yet to credit it, and must be the first to reach its
/// limit. By line; empty: none.
pub fn hold_back(lines: &[Line], fates: &[Fate]) -> Vec<bool> {
    if !fates.contains(&Fate::PutOff) {
        return Vec::new();
    }
    let mut accounts = Accounts::default();
    let held = |(line, fate): (&Line, &Fate)| match fate {
        Fate::PutOff => {
            accounts.mark(line.debit, WAITING_DEBIT);
            accounts.mark(line.credit, WAITING_CREDIT);
            false
        }
        Fate::Reserved => accounts.has(line.credit, WAITING_DEBIT | WAITING_CREDIT),
        Fate::Done => false,
    };
    lines.iter().zip(fates).map(held).collect()
}

/// Credited by a cross-shard transfer of this wave.
const INCOMING: u8 = 1;
/// Debited by a cross-shard transfer that is not yet decided and may give the money back.
const UNDECIDED_DEBIT: u8 = 1 << 1;
/// Debited, or credited, by a transfer that waits.
const WAITING_DEBIT: u8 = 1 << 2;
const WAITING_CREDIT: u8 = 1 << 3;
/// Debited, or credited, by a transfer whose outcome is unknown.
const LOST_DEBIT: u8 = 1 << 4;
const LOST_CREDIT: u8 = 1 << 5;

/// What earlier lines do with each account.
#[derive(Debug, Default)]
struct Accounts(HashMap<AccountKey, u8, BuildHasherDefault<KeyHasher>>);

impl Accounts {
    fn mark(&mut self, account: AccountKey, marks: u8) {
        *self.0.entry(account).or_default() |= marks;
    }

    fn has(&self, account: AccountKey, marks: u8) -> bool {
        self.0.get(&account).is_some_and(|there| there & marks != 0)
    }
}

/// A wave being filled.
#[derive(Debug, Default)]
struct Wave {
    accounts: Accounts,
    /// Absent where everything fits.
    room: Option<Room>,
}

impl Wave {
    fn place(&mut self, line: &Line) -> Placement {
        match line.standing {
            Standing::Lost => {
                self.accounts.mark(line.debit, LOST_DEBIT);
                self.accounts.mark(line.credit, LOST_CREDIT);
                Placement::Abandon
            }
            Standing::Reserved => {
                self.accounts.mark(line.debit, UNDECIDED_DEBIT);
                let defer_limited = self.accounts.has(line.credit, UNDECIDED_DEBIT | WAITING_CREDIT | LOST_CREDIT);
                let must_wait = self.accounts.has(line.credit, WAITING_DEBIT)
                    || (defer_limited && line.is_large)
                    || !self.has_room(None, Some(line.destination));
                if must_wait {
                    self.accounts.mark(line.credit, WAITING_CREDIT);
                    return Placement::Wait;
                }
                self.accounts.mark(line.credit, INCOMING);
                Placement::Decide { defer_limited }
            }
            Standing::New => self.place_new(line),
        }
    }

    fn place_new(&mut self, line: &Line) -> Placement {
        if self.accounts.has(line.debit, LOST_DEBIT | LOST_CREDIT) || self.accounts.has(line.credit, LOST_DEBIT) {
            return Placement::Abandon;
        }
        let crosses = line.source != line.destination;
        // Decisions of one wave keep their order; what is local comes before them.
        let overtaken = if crosses { 0 } else { INCOMING };
        let defer_limited =
            self.accounts.has(line.credit, overtaken | UNDECIDED_DEBIT | WAITING_CREDIT | LOST_CREDIT);
        let must_wait = self.accounts.has(line.debit, INCOMING | WAITING_DEBIT | WAITING_CREDIT)
            || self.accounts.has(line.credit, WAITING_DEBIT)
            || (defer_limited && line.is_large)
            || !self.has_room(Some(line.source), crosses.then_some(line.destination));
        if must_wait {
            self.accounts.mark(line.debit, WAITING_DEBIT);
            self.accounts.mark(line.credit, WAITING_CREDIT);
            return Placement::Wait;
        }
        let defer_insufficient = self.accounts.has(line.debit, UNDECIDED_DEBIT);
        if crosses {
            self.accounts.mark(line.debit, UNDECIDED_DEBIT);
            self.accounts.mark(line.credit, INCOMING);
        }
        Placement::Execute { defer_insufficient, defer_limited }
    }

    fn has_room(&mut self, executes: Option<ShardIndex>, decides: Option<ShardIndex>) -> bool {
        self.room.as_mut().is_none_or(|room| room.take(executes, decides))
    }
}

/// How much more each shard takes in this wave. More than one call's worth would lose its order between the calls.
#[derive(Debug)]
struct Room {
    max_per_shard: usize,
    /// Executions and decisions by shard.
    taken: HashMap<ShardIndex, (usize, usize)>,
}

impl Room {
    fn new(max_per_shard: usize) -> Self {
        assert!(max_per_shard > 0, "a wave without room finishes nothing");
        Self { max_per_shard, taken: HashMap::new() }
    }

    fn take(&mut self, executes: Option<ShardIndex>, decides: Option<ShardIndex>) -> bool {
        let max = self.max_per_shard;
        let taken =
            |shard: Option<ShardIndex>| shard.and_then(|shard| self.taken.get(&shard)).copied().unwrap_or_default();
        if taken(executes).0 >= max || taken(decides).1 >= max {
            return false;
        }
        if let Some(shard) = executes {
            self.taken.entry(shard).or_default().0 += 1;
        }
        if let Some(shard) = decides {
            self.taken.entry(shard).or_default().1 += 1;
        }
        true
    }
}

/// Passes an [`AccountKey`] through: it is a hash already.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not reached: an AccountKey hashes as one u64.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests;

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
//! A wave cannot know whether an earlier cross-shard debit of the same account will be refused by its credit side
//! and give the money back. Such a transfer goes along, marked `defer_insufficient`: where the money does not suffice the
//! node puts it off instead of refusing it for good. The first transfer of a wave is never marked and never waits, so
//! every wave finishes something.
//!
//! Two *credits* of the same account may change places when one comes from another shard, which only an account with a
//! `max_balance` can tell, or one that is more than half full. The node knows whether the account is such a one: a credit
//! whose outcome at the limit may still be changed by an earlier transfer goes along marked `defer_limited`, and the node puts it off where there is a
//! limit. In a batch that is large enough to fill an account from less than half, such a credit waits at once.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    sync::LazyLock,
};

use ledger::AccountId;
use shard_map::ShardIndex;
use twox_hash::XxHash3_64;

/// A hash that stands for an account within one batch. If two accounts collide, a transfer waits without need: the batch is slower and still
/// right. The seed is drawn by each process, so that no client can arrange collisions.
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

/// How the execution of a line ended in a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was not executed and will be tried again: put off by the node, refused by the fence, or it waited.
    PutOff,
    /// It is reserved and placed to be decided in this wave.
    Reserved,
    /// Nothing is left to be done in this wave.
    Done,
}

/// Says of each line whether it is reserved and its decision has to wait: an earlier transfer that was put off has yet to be paid from the
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
                let undecided = UNDECIDED_DEBIT | WAITING_CREDIT | LOST_DEBIT | LOST_CREDIT;
                let defer_limited = self.accounts.has(line.credit, undecided);
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
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn line(debit: u64, credit: u64, source: u16, destination: u16, standing: Standing) -> Line {
        Line {
            debit: AccountKey(debit),
            credit: AccountKey(credit),
            source: ShardIndex(source),
            destination: ShardIndex(destination),
            standing,
            is_large: false,
        }
    }

    /// A new transfer between accounts `a` and `b`; account n lives on shard n / 10.
    fn new(debit: u64, credit: u64) -> Line {
        let shard = |account: u64| u16::try_from(account / 10).unwrap();
        line(debit, credit, shard(debit), shard(credit), Standing::New)
    }

    const GO: Placement = Placement::Execute { defer_insufficient: false, defer_limited: false };
    const GO_UNLESS_SHORT: Placement = Placement::Execute { defer_insufficient: true, defer_limited: false };
    const GO_UNLESS_LIMITED: Placement = Placement::Execute { defer_insufficient: false, defer_limited: true };
    const DECIDE: Placement = Placement::Decide { defer_limited: false };

    #[test]
    fn a_local_batch_is_one_wave() {
        let lines = [new(1, 2), new(2, 3), new(3, 1), new(11, 12), new(12, 11)];
        assert_eq!(plan_wave(&lines, 100), [GO; 5]);
    }

    #[test]
    fn a_debit_waits_for_the_cross_shard_credit_before_it() {
        let lines = [new(1, 11), new(11, 12), new(13, 14), new(12, 2)];
        // The last one is to be paid from what the second brings, so it waits as well.
        assert_eq!(plan_wave(&lines, 100), [GO, Placement::Wait, GO, Placement::Wait]);
    }

    #[test]
    fn nothing_overtakes_a_transfer_that_waits() {
        let lines = [new(1, 11), new(11, 21), new(11, 12), new(13, 11), new(21, 22), new(14, 12)];
        let expected = [
            GO,
            Placement::Wait,
            Placement::Wait,   // debits the account the second waits to debit
            Placement::Wait,   // its money must not be there when the second looks
            Placement::Wait,   // the second brings its money
            GO_UNLESS_LIMITED, // two credits may change places, unless one of them may be too much
        ];
        assert_eq!(plan_wave(&lines, 100), expected);
    }

    #[test]
    fn a_debit_after_an_undecided_debit_goes_along_but_may_be_put_off() {
        let lines = [new(1, 11), new(1, 2), new(1, 12), new(2, 3)];
        assert_eq!(plan_wave(&lines, 100), [GO, GO_UNLESS_SHORT, GO_UNLESS_SHORT, GO]);
    }

    #[test]
    fn reserved_lines_are_decided_unless_they_would_overtake() {
        let reserved = |debit, credit| Line { standing: Standing::Reserved, ..new(debit, credit) };
        let lines = [new(11, 12), reserved(1, 11), new(11, 12), reserved(2, 21), new(1, 3)];
        let expected = [GO, DECIDE, Placement::Wait, DECIDE, GO_UNLESS_SHORT];
        assert_eq!(plan_wave(&lines, 100), expected);

        let lines = [reserved(21, 11), new(11, 12), reserved(1, 11)];
        assert_eq!(plan_wave(&lines, 100), [DECIDE, Placement::Wait, Placement::Wait]);
    }

    #[test]
    fn what_depends_on_an_unknown_outcome_is_abandoned() {
        let lost = Line { standing: Standing::Lost, ..new(1, 11) };
        let lines = [lost, new(1, 2), new(11, 12), new(3, 1), new(3, 11), new(4, 5)];
        let expected = [
            Placement::Abandon,
            Placement::Abandon, // may find the money, or not
            Placement::Abandon,
            Placement::Abandon,
            GO_UNLESS_LIMITED, // only a credit beside a credit
            GO,
        ];
        assert_eq!(plan_wave(&lines, 100), expected);
    }

    #[test]
    fn a_wave_takes_no_more_per_shard_than_one_call_does() {
        let lines = [new(1, 2), new(3, 4), new(5, 6), new(11, 12), new(2, 1)];
        assert_eq!(plan_wave(&lines, 2), [GO, GO, Placement::Wait, GO, Placement::Wait]);
        // Decisions count at the destination.
        let lines = [new(1, 21), new(2, 22), new(11, 23), new(12, 13)];
        assert_eq!(plan_wave(&lines, 2), [GO, GO, Placement::Wait, GO]);
    }

    #[test]
    fn decisions_wait_for_what_was_put_off() {
        let lines = [new(11, 12), new(1, 11), new(2, 21), new(3, 11)];
        let fates = [Fate::PutOff, Fate::Reserved, Fate::Reserved, Fate::Done];
        assert_eq!(hold_back(&lines, &fates), [false, true, false, false]);
        let fates = [Fate::Done, Fate::Reserved, Fate::Reserved, Fate::PutOff];
        assert!(hold_back(&lines, &fates).iter().all(|held| !held), "only earlier ones count");
    }

    // === waves against one after another ===

    const ACCOUNTS: u64 = 7;
    const SHARDS: u64 = 3;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum End {
        Posted,
        Insufficient,
        CreditRefused,
    }

    #[derive(Debug, Clone)]
    struct World {
        balances: Vec<i64>,
        /// Closed for credits.
        closed: Vec<bool>,
        /// What credits may raise a balance to.
        limits: Vec<Option<i64>>,
        transfers: Vec<(u64, u64, i64)>,
        /// Whether the fence refuses the n-th execution (a slot on the move), once each.
        fenced: Vec<bool>,
        max_per_shard: usize,
        /// The lines are large ones: the nodes need not know that there are limits.
        is_large: bool,
    }

    fn world() -> impl Strategy<Value = World> {
        let accounts = ACCOUNTS as usize;
        let transfer = (0..ACCOUNTS, 1..ACCOUNTS, 1..60_i64)
            .prop_map(|(debit, step, amount)| (debit, (debit + step) % ACCOUNTS, amount));
        (
            prop::collection::vec(0..100_i64, accounts),
            prop::collection::vec(prop::bool::weighted(0.2), accounts),
            prop::collection::vec(prop::option::weighted(0.4, 20..150_i64), accounts),
            prop::collection::vec(transfer, 1..24),
            prop::collection::vec(prop::bool::weighted(0.1), 0..60),
            prop_oneof![Just(2_usize), Just(5), Just(1000)],
            any::<bool>(),
        )
            .prop_map(|(balances, closed, limits, transfers, fenced, max_per_shard, is_large)| World {
                balances,
                closed,
                limits,
                transfers,
                fenced,
                max_per_shard,
                is_large,
            })
    }

    impl World {
        fn refuses(&self, balances: &[i64], credit: u64, amount: i64) -> bool {
            let credit = credit as usize;
            self.closed[credit] || self.limits[credit].is_some_and(|limit| balances[credit] + amount > limit)
        }

        fn is_limited(&self, account: u64) -> bool {
            !self.is_large && self.limits[account as usize].is_some()
        }
    }

    fn one_after_another(world: &World) -> (Vec<End>, Vec<i64>) {
        let mut balances = world.balances.clone();
        let ends = world.transfers.iter().map(|&(debit, credit, amount)| {
            if balances[debit as usize] < amount {
                End::Insufficient
            } else if world.refuses(&balances, credit, amount) {
                End::CreditRefused
            } else {
                balances[debit as usize] -= amount;
                balances[credit as usize] += amount;
                End::Posted
            }
        });
        (ends.collect(), balances)
    }

    /// The router and its shards, as far as order goes.
    fn in_waves(world: &World) -> (Vec<End>, Vec<i64>) {
        let shard = |account: u64| ShardIndex(u16::try_from(account % SHARDS).unwrap());
        let mut balances = world.balances.clone();
        let mut fenced = world.fenced.iter().copied();
        let mut ends: Vec<Option<End>> = vec![None; world.transfers.len()];
        let mut reserved = vec![false; world.transfers.len()];
        loop {
            let open: Vec<usize> = (0..ends.len()).filter(|&n| ends[n].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let lines: Vec<Line> = open
                .iter()
                .map(|&n| {
                    let (debit, credit, _) = world.transfers[n];
                    let standing = if reserved[n] { Standing::Reserved } else { Standing::New };
                    Line {
                        is_large: world.is_large,
                        ..line(debit, credit, shard(debit).0, shard(credit).0, standing)
                    }
                })
                .collect();
            let placements = plan_wave(&lines, world.max_per_shard);
            let mut fates = vec![Fate::Done; lines.len()];
            let mut moved = false;
            for source in 0..SHARDS {
                let mut put_off: HashSet<u64> = HashSet::new();
                for (place, &n) in open.iter().enumerate() {
                    let (debit, credit, amount) = world.transfers[n];
                    match placements[place] {
                        Placement::Wait if !reserved[n] => fates[place] = Fate::PutOff,
                        Placement::Decide { .. } => fates[place] = Fate::Reserved,
                        Placement::Execute { defer_insufficient, defer_limited } if debit % SHARDS == source => {
                            let local = shard(debit) == shard(credit);
                            let fenced = !put_off.contains(&debit)
                                && !put_off.contains(&credit)
                                && fenced.next() == Some(true);
                            let short = balances[debit as usize] < amount;
                            if put_off.contains(&debit)
                                || put_off.contains(&credit)
                                || fenced
                                || (short && defer_insufficient)
                                || (local && defer_limited && world.is_limited(credit))
                            {
                                put_off.extend([debit, credit]);
                                fates[place] = Fate::PutOff;
                                moved |= fenced;
                            } else if short {
                                ends[n] = Some(End::Insufficient);
                            } else if !local {
                                balances[debit as usize] -= amount;
                                reserved[n] = true;
                                fates[place] = Fate::Reserved;
                            } else if world.refuses(&balances, credit, amount) {
                                ends[n] = Some(End::CreditRefused);
                            } else {
                                balances[debit as usize] -= amount;
                                balances[credit as usize] += amount;
                                ends[n] = Some(End::Posted);
                            }
                        }
                        _ => {}
                    }
                }
            }
            let held = hold_back(&lines, &fates);
            // All verdicts first: money that comes back does so after the last of them.
            let mut back = Vec::new();
            for (place, &n) in open.iter().enumerate() {
                let (debit, credit, amount) = world.transfers[n];
                let (Placement::Execute { defer_limited, .. } | Placement::Decide { defer_limited }) =
                    placements[place]
                else {
                    continue;
                };
                let put_off =
                    held.get(place).copied().unwrap_or(false) || (defer_limited && world.is_limited(credit));
                if fates[place] != Fate::Reserved || put_off {
                    continue;
                }
                if world.refuses(&balances, credit, amount) {
                    back.push((debit, amount));
                    ends[n] = Some(End::CreditRefused);
                } else {
                    balances[credit as usize] += amount;
                    ends[n] = Some(End::Posted);
                }
            }
            for (debit, amount) in back {
                balances[debit as usize] += amount;
            }
            let still_open = ends.iter().filter(|end| end.is_none()).count();
            assert!(moved || still_open < open.len(), "a wave finished nothing");
        }
        (ends.into_iter().flatten().collect(), balances)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

        #[test]
        fn waves_give_what_one_after_another_gives(world in world()) {
            prop_assert_eq!(in_waves(&world), one_after_another(&world));
        }
    }
}

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
                Line { is_large: world.is_large, ..line(debit, credit, shard(debit).0, shard(credit).0, standing) }
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
                        let fenced =
                            !put_off.contains(&debit) && !put_off.contains(&credit) && fenced.next() == Some(true);
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
            let (Placement::Execute { defer_limited, .. } | Placement::Decide { defer_limited }) = placements[place]
            else {
                continue;
            };
            let put_off = held.get(place).copied().unwrap_or(false) || (defer_limited && world.is_limited(credit));
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

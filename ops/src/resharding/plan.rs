//! Plans of moves: which slots move from which shard to which shard, how long the moves take, and which open moves block them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use shard_map::{ClusterId, Slot, SlotRange, merge_slots};
use uuid::Uuid;

use super::{Nodes, Owners, view::MoveView};

/// The least weight of a slot, as a part of the cluster.
const LEAST_WEIGHT: f64 = 1e-6;

/// A shard whose share is within this distance of the mean stays unchanged, because traffic changes shares by more than that.
const TOLERANCE: f64 = 0.02;

/// Moves to be applied. Those that [`wave`] selects run at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MovePlan {
    pub cluster: ClusterId,
    /// The version of the map that the plan was made with.
    pub map_version: u64,
    #[serde(rename = "move")]
    pub moves: Vec<PlannedMove>,
}

/// One move. Because of its id, a second `apply` continues this move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedMove {
    pub id: Uuid,
    pub from: String,
    pub to: String,
    pub slots: Vec<String>,
    /// The number of accounts when the plan was made.
    pub accounts: i64,
    /// The estimated bytes of tables and indexes.
    pub bytes: i64,
}

/// The goal of a plan.
#[derive(Debug, Clone)]
pub enum Goal {
    /// All shards get equal weights.
    Balance,
    /// These shards become empty.
    Drain(Vec<String>),
    /// These slots move to this shard.
    Slots(Vec<SlotRange>, String),
}

impl Goal {
    fn reached(&self) -> String {
        match self {
            Self::Balance => format!("each shard is within {:.0} % of the mean", TOLERANCE * 100.0),
            Self::Drain(shards) => format!("{} own no slots", shards.join(", ")),
            Self::Slots(_, shard) => format!("shard {shard} owns these slots"),
        }
    }
}

/// The sizes and loads of the cluster's slots.
#[derive(Debug, Clone)]
pub struct Weights {
    weight: BTreeMap<Slot, f64>,
    accounts: BTreeMap<Slot, i64>,
    bytes_per_account: BTreeMap<String, f64>,
}

impl PlannedMove {
    pub fn slot_count(&self) -> u32 {
        self.ranges().unwrap_or_default().iter().map(|range| u32::from(range.len())).sum()
    }

    pub fn ranges(&self) -> anyhow::Result<Vec<SlotRange>> {
        self.slots
            .iter()
            .map(|text| text.parse().with_context(|| format!("slots {text:?} of move {}", self.id)))
            .collect()
    }
}

impl Weights {
    pub fn of(loads: &BTreeMap<String, wire::LoadResponse>) -> Self {
        let all = || loads.values().flat_map(|load| &load.slots);
        let accounts: i64 = all().map(|slot| slot.accounts).sum();
        let legs: i64 = all().map(|slot| slot.legs).sum();
        let mut weights = Self {
            weight: Slot::all().map(|slot| (slot, LEAST_WEIGHT)).collect(),
            accounts: BTreeMap::new(),
            bytes_per_account: BTreeMap::new(),
        };
        for (shard, load) in loads {
            let of_shard: i64 = load.slots.iter().map(|slot| slot.accounts).sum();
            weights.bytes_per_account.insert(shard.clone(), load.bytes as f64 / of_shard.max(1) as f64);
            for of_slot in &load.slots {
                let Ok(slot) = Slot::try_from(of_slot.slot) else { continue };
                let stored = of_slot.accounts as f64 / accounts.max(1) as f64;
                let written = of_slot.legs as f64 / legs.max(1) as f64;
                weights.weight.insert(slot, LEAST_WEIGHT + stored + written);
                weights.accounts.insert(slot, of_slot.accounts);
            }
        }
        weights
    }

    fn of_slot(&self, slot: Slot) -> f64 {
        self.weight.get(&slot).copied().unwrap_or(LEAST_WEIGHT)
    }

    /// The share of the cluster's weight that each shard has.
    pub fn shares(&self, owners: &Owners, shards: &[String]) -> BTreeMap<String, f64> {
        let total: f64 = self.weight.values().sum();
        let of = |shard: &String| {
            owners.slots_of(shard).map(|slot| self.of_slot(slot)).fold(0.0, |sum, weight| sum + weight) / total
        };
        shards.iter().map(|shard| (shard.clone(), of(shard))).collect()
    }

    fn planned(&self, from: &str, to: &str, slots: impl IntoIterator<Item = Slot>) -> PlannedMove {
        let slots: BTreeSet<Slot> = slots.into_iter().collect();
        let accounts: i64 = slots.iter().filter_map(|slot| self.accounts.get(slot)).sum();
        let per_account = self.bytes_per_account.get(from).copied().unwrap_or(0.0);
        PlannedMove {
            id: Uuid::now_v7(),
            from: from.to_owned(),
            to: to.to_owned(),
            slots: merge_slots(slots).iter().map(ToString::to_string).collect(),
            accounts,
            bytes: (accounts as f64 * per_account) as i64,
        }
    }
}

/// Decides what to move.
///
/// # Errors
/// The goal is already reached, or cannot be reached.
pub fn decide(nodes: &Nodes, owners: &Owners, weights: &Weights, goal: &Goal) -> anyhow::Result<MovePlan> {
    let shards: Vec<String> = nodes.map.shards.iter().map(|shard| shard.id.clone()).collect();
    let pairs = match goal {
        Goal::Slots(slots, to) => {
            nodes.shard(to)?;
            wanted(owners, slots, to)?
        }
        Goal::Drain(from) => {
            for shard in from {
                nodes.shard(shard)?;
            }
            let others: Vec<String> = shards.iter().filter(|shard| !from.contains(shard)).cloned().collect();
            ensure!(!others.is_empty(), "no shard would be left to receive the slots");
            drained(owners, weights, from, &others)
        }
        Goal::Balance => balanced(owners, weights, &shards),
    };
    let moves = pairs.into_iter().map(|((from, to), slots)| weights.planned(&from, &to, slots));
    let plan = MovePlan { cluster: nodes.map.cluster, map_version: nodes.map.version, moves: moves.collect() };
    ensure!(!plan.moves.is_empty(), "there is nothing to move: {}", goal.reached());
    Ok(plan)
}

type Pairs = BTreeMap<(String, String), Vec<Slot>>;

fn wanted(owners: &Owners, slots: &[SlotRange], to: &str) -> anyhow::Result<Pairs> {
    let mut pairs = Pairs::new();
    for slot in slots.iter().copied().flat_map(SlotRange::slots) {
        let owner = owners.of(slot).with_context(|| format!("no shard says that it owns slot {slot}"))?;
        if owner != to {
            pairs.entry((owner.to_owned(), to.to_owned())).or_default().push(slot);
        }
    }
    if pairs.is_empty() {
        bail!("shard {to} owns these slots already");
    }
    Ok(pairs)
}

/// Gives each slot, the heaviest first, to the shard with the least weight.
fn drained(owners: &Owners, weights: &Weights, from: &[String], others: &[String]) -> Pairs {
    let mut shares = weights.shares(owners, others);
    let total: f64 = weights.weight.values().sum();
    let mut slots: Vec<(Slot, &String)> =
        from.iter().flat_map(|shard| owners.slots_of(shard).map(move |slot| (slot, shard))).collect();
    slots.sort_by(|(a, _), (b, _)| weights.of_slot(*b).total_cmp(&weights.of_slot(*a)).then(a.cmp(b)));
    let mut pairs = Pairs::new();
    for (slot, from) in slots {
        let Some((to, share)) = shares.iter_mut().min_by(|a, b| a.1.total_cmp(b.1)) else { continue };
        *share += weights.of_slot(slot) / total;
        pairs.entry((from.clone(), to.clone())).or_default().push(slot);
    }
    pairs
}

/// Takes slots from shards above the mean and gives them to shards below the mean. The heaviest slots that fit move first, so that few slots
/// move.
fn balanced(owners: &Owners, weights: &Weights, shards: &[String]) -> Pairs {
    let total: f64 = weights.weight.values().sum();
    let mut shares = weights.shares(owners, shards);
    let mean = 1.0 / shards.len() as f64;
    let mut pairs = Pairs::new();
    let mut sources: Vec<String> =
        shares.iter().filter(|(_, share)| **share > mean * (1.0 + TOLERANCE)).map(|(id, _)| id.clone()).collect();
    sources.sort();
    for from in sources {
        let mut slots: Vec<Slot> = owners.slots_of(&from).collect();
        slots.sort_by(|a, b| weights.of_slot(*b).total_cmp(&weights.of_slot(*a)).then(a.cmp(b)));
        for slot in slots {
            let weight = weights.of_slot(slot) / total;
            let surplus = shares[&from] - mean;
            let Some((to, share)) = shares.iter().min_by(|a, b| a.1.total_cmp(b.1)) else { break };
            let (to, gap) = (to.clone(), mean - share);
            // A slot that is heavier than the surplus or the gap would overshoot the mean.
            if weight > surplus.max(0.0) || weight > gap {
                continue;
            }
            *shares.entry(from.clone()).or_default() -= weight;
            *shares.entry(to.clone()).or_default() += weight;
            pairs.entry((from.clone(), to)).or_default().push(slot);
        }
    }
    pairs
}

/// The next moves that can run at once: a shard gives slots in at most one, and receives slots in at most one.
pub fn wave<'p>(waiting: &[&'p PlannedMove]) -> Vec<&'p PlannedMove> {
    let (mut giving, mut receiving) = (BTreeSet::new(), BTreeSet::new());
    let mut wave = Vec::new();
    for planned in waiting {
        if !giving.contains(&planned.from) && !receiving.contains(&planned.to) {
            giving.insert(&planned.from);
            receiving.insert(&planned.to);
            wave.push(*planned);
        }
    }
    wave
}

/// Parses slots as an operator writes them: ranges, slots, and accounts or `{tags}`, which stand for their slot. `account:` stands before an
/// account whose id begins with a digit.
///
/// # Errors
/// A part is none of these. The error quotes it.
pub fn parse_slots(text: &str) -> anyhow::Result<Vec<SlotRange>> {
    let mut slots: BTreeSet<Slot> = BTreeSet::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if let Some(account) = part.strip_prefix("account:") {
            slots.insert(shard_map::slot_of(account));
        } else if part.starts_with(|c: char| c.is_ascii_digit()) {
            let range: SlotRange = part.parse().with_context(|| format!("slots {part:?}"))?;
            slots.extend(range.slots());
        } else {
            slots.insert(shard_map::slot_of(part));
        }
    }
    ensure!(!slots.is_empty(), "no slots are named");
    Ok(merge_slots(slots))
}

/// The assumed rate of a copy, in bytes a second, if the cluster has made no copy that is large enough. It is the rate of a throttled copy on
/// a small machine.
const ASSUMED_RATE: f64 = 10e6;
/// The least bytes of a move whose rate is used.
const LEAST_BYTES: u64 = 1_000_000;

/// The rate of the cluster's earlier copies, in bytes a second.
pub fn estimated_rate(moves: &[MoveView]) -> f64 {
    let rates: Vec<f64> =
        moves.iter().filter(|it| it.bytes >= LEAST_BYTES && !it.is_open()).map(|it| it.rate).collect();
    if rates.is_empty() { ASSUMED_RATE } else { rates.iter().sum::<f64>() / rates.len() as f64 }
}

/// The estimated seconds of all copies. The moves of one wave run at once.
pub fn estimated_seconds(plan: &MovePlan, rate: f64) -> f64 {
    let mut waiting: Vec<&PlannedMove> = plan.moves.iter().collect();
    let mut seconds = 0.0;
    while !waiting.is_empty() {
        let now = wave(&waiting);
        seconds += now.iter().map(|planned| planned.bytes as f64 / rate.max(1.0)).fold(0.0, f64::max);
        waiting.retain(|planned| !now.iter().any(|started| started.id == planned.id));
    }
    seconds
}

/// The open moves that prevent a planned move from starting.
///
/// # Errors
/// The plan names slots that do not exist.
pub fn blockers(plan: &MovePlan, moves: &[MoveView]) -> anyhow::Result<Vec<String>> {
    let mut blockers = Vec::new();
    for open in moves.iter().filter(|it| it.is_open()) {
        let slots: Vec<shard_map::SlotRange> = open.slots.iter().filter_map(|range| range.parse().ok()).collect();
        for planned in plan.moves.iter().filter(|planned| planned.id != open.id) {
            let is_copying = open.phase != "taken";
            let shares_slots = planned
                .ranges()?
                .iter()
                .any(|one| slots.iter().any(|other| one.first() <= other.last() && other.first() <= one.last()));
            if is_copying && (open.to == planned.to || open.from == planned.from) {
                blockers.push(format!(
                    "move {} from {} to {}, which is {}: wait for it (`shardctl move status --watch`)",
                    open.id, open.from, open.to, open.phase
                ));
            } else if !is_copying && shares_slots {
                blockers.push(format!(
                    "move {}, which moved some of these slots and is not finished; next: shardctl move finish {}",
                    open.id, open.id
                ));
            }
        }
    }
    blockers.sort();
    blockers.dedup();
    Ok(blockers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shard_map::{ClusterId, Shard, ShardMap};
    use uuid::Uuid;

    fn nodes(slots: &[&[&str]]) -> Nodes {
        let shards = (0..).zip(slots).map(|(number, slots): (u16, _)| Shard {
            id: format!("s{number}"),
            number,
            nodes: vec![format!("http://n{number}:1")],
            slots: slots.iter().map(|range| range.parse().unwrap()).collect(),
        });
        Nodes { map: ShardMap::new(ClusterId::generate(), 7, shards.collect()).unwrap() }
    }

    fn loads(of: &[(u32, i64)]) -> BTreeMap<String, wire::LoadResponse> {
        let slots = of.iter().map(|(slot, accounts)| wire::SlotLoad { slot: *slot, accounts: *accounts, legs: 0 });
        let load = wire::LoadResponse { slots: slots.collect(), bytes: 1_000, bookings: 1 };
        BTreeMap::from([("s0".to_owned(), load)])
    }

    #[test]
    fn an_empty_cluster_is_balanced_by_slots() {
        let nodes = nodes(&[&["0-8191"], &["8192-16383"], &[]]);
        let owners = Owners::from_map(&nodes.map);
        let plan = decide(&nodes, &owners, &Weights::of(&BTreeMap::new()), &Goal::Balance).unwrap();
        let moved = |from: &str| {
            let of = plan.moves.iter().find(|planned| planned.from == from).unwrap();
            of.ranges().unwrap().iter().map(|range| u32::from(range.len())).sum::<u32>()
        };
        assert!(plan.moves.iter().all(|planned| planned.to == "s2"));
        assert!((2_729..=2_731).contains(&moved("s0")) && (2_729..=2_731).contains(&moved("s1")), "{plan:?}");
    }

    #[test]
    fn heavy_slots_go_first_and_none_is_moved_in_vain() {
        let nodes = nodes(&[&["0-16383"], &[]]);
        let owners = Owners::from_map(&nodes.map);
        let weights = Weights::of(&loads(&[(5, 40), (6, 30), (7, 20), (8, 10)]));
        let plan = decide(&nodes, &owners, &weights, &Goal::Balance).unwrap();
        let slots = plan.moves[0].ranges().unwrap();
        let has = |slot: u16| slots.iter().any(|range| range.contains(Slot::new(slot).unwrap()));
        assert!(has(5) && has(8) && !has(6) && !has(7), "40 and 10 of 100: {slots:?}");
        assert_eq!((plan.moves.len(), plan.moves[0].accounts, plan.moves[0].bytes), (1, 50, 500));
    }

    #[test]
    fn a_drained_shard_gives_everything_to_the_lightest() {
        let nodes = nodes(&[&["0-9"], &["10-16383"], &[]]);
        let owners = Owners::from_map(&nodes.map);
        let weights = Weights::of(&loads(&[(100, 1_000)]));
        let plan = decide(&nodes, &owners, &weights, &Goal::Drain(vec!["s0".to_owned()])).unwrap();
        assert_eq!(plan.moves.len(), 1);
        assert_eq!((plan.moves[0].to.as_str(), plan.moves[0].slots.as_slice()), ("s2", &["0-9".to_owned()][..]));
        let two = Goal::Drain(vec!["s0".to_owned(), "s1".to_owned()]);
        let plan = decide(&nodes, &owners, &weights, &two).unwrap();
        assert!(plan.moves.len() == 2 && plan.moves.iter().all(|planned| planned.to == "s2"), "{plan:?}");
    }

    #[test]
    fn slots_are_named_by_number_account_or_tag() {
        let tagged = shard_map::slot_of("{user42}");
        assert_eq!(shard_map::slot_of("{user42}:cash"), tagged);
        let slots = parse_slots("100-102, {user42},7").unwrap();
        let has = |slot: Slot| slots.iter().any(|range| range.contains(slot));
        assert!([7, 100, 101, 102].into_iter().all(|slot| has(Slot::new(slot).unwrap())) && has(tagged));
        assert_eq!(parse_slots("account:4711").unwrap(), merge_slots([shard_map::slot_of("4711")]));
        assert!(parse_slots("9-3").is_err() && parse_slots(" , ").is_err());
        let nodes = nodes(&[&["0-16383"], &[]]);
        let owners = Owners::from_map(&nodes.map);
        let goal = Goal::Slots(slots, "s0".to_owned());
        let refused = decide(&nodes, &owners, &Weights::of(&BTreeMap::new()), &goal).unwrap_err();
        assert!(refused.to_string().contains("owns these slots already"), "{refused}");
    }

    #[test]
    fn a_shard_takes_part_in_one_move_each_way_at_a_time() {
        let planned = |from: &str, to: &str| Weights::of(&BTreeMap::new()).planned(from, to, []);
        let (a, b, c) = (planned("s0", "s4"), planned("s1", "s4"), planned("s1", "s5"));
        assert_eq!(wave(&[&a, &b, &c]), [&a, &c]);
        let text =
            toml::to_string(&MovePlan { cluster: ClusterId::generate(), map_version: 3, moves: vec![a] }).unwrap();
        assert_eq!(toml::from_str::<MovePlan>(&text).unwrap().map_version, 3);
    }

    fn planned(from: &str, to: &str, slots: &str, bytes: i64) -> PlannedMove {
        PlannedMove {
            id: Uuid::now_v7(),
            from: from.to_owned(),
            to: to.to_owned(),
            slots: vec![slots.to_owned()],
            accounts: 1,
            bytes,
        }
    }

    fn view(to: &str, from: &str, phase: &str) -> MoveView {
        let status = wire::MoveStatus {
            r#move: Uuid::now_v7().as_bytes().to_vec().into(),
            peer: from.to_owned(),
            phase: phase.to_owned(),
            slots: vec![wire::SlotRange { first: 5, last: 9 }],
            progress: r#"{"bytes": 4000000, "copied_at_us": 2000000}"#.to_owned(),
            ..Default::default()
        };
        MoveView::of(to, &status)
    }

    #[test]
    fn waves_follow_each_other_and_a_wave_takes_as_long_as_its_longest_copy() {
        let moves = vec![planned("s0", "s2", "1", 40), planned("s1", "s2", "2", 20), planned("s1", "s3", "3", 60)];
        let plan = MovePlan { cluster: ClusterId::generate(), map_version: 1, moves };
        assert!((estimated_seconds(&plan, 10.0) - 8.0).abs() < 1e-9);
        assert!((estimated_rate(&[view("s1", "s0", "finished")]) - 2e6).abs() < 1.0);
        assert!((estimated_rate(&[view("s1", "s0", "copying")]) - ASSUMED_RATE).abs() < 1.0);
    }

    #[test]
    fn open_moves_of_the_same_shards_or_slots_are_in_the_way() {
        let plan = |planned| MovePlan { cluster: ClusterId::generate(), map_version: 1, moves: vec![planned] };
        let of = |planned, view: MoveView| blockers(&plan(planned), &[view]).unwrap().len();
        assert_eq!(of(planned("s0", "s3", "100", 0), view("s1", "s0", "copying")), 1);
        assert_eq!(of(planned("s2", "s1", "100", 0), view("s1", "s0", "catching up")), 1);
        assert_eq!(of(planned("s2", "s3", "100", 0), view("s1", "s0", "copying")), 0);
        assert_eq!(of(planned("s1", "s3", "9-10", 0), view("s1", "s0", "taken")), 1);
        assert_eq!(of(planned("s1", "s3", "10-11", 0), view("s1", "s0", "taken")), 0);
        assert_eq!(of(planned("s1", "s3", "9", 0), view("s1", "s0", "finished")), 0);
    }
}

//! How long a plan takes, and what is in its way. Pure: it works on what the nodes said of their moves.

use super::{
    plan::{Plan, PlannedMove, wave},
    view::MoveView,
};

/// Bytes a second of a copy, if no move of the cluster says more: a throttled copy on a small machine.
const ASSUMED_RATE: f64 = 10e6;
/// A move that copied less says nothing about the rate.
const LEAST_BYTES: u64 = 1_000_000;

/// The bytes a second of the cluster's earlier copies.
pub fn rate(moves: &[MoveView]) -> f64 {
    let rates: Vec<f64> =
        moves.iter().filter(|it| it.bytes >= LEAST_BYTES && !it.is_open()).map(|it| it.rate).collect();
    if rates.is_empty() { ASSUMED_RATE } else { rates.iter().sum::<f64>() / rates.len() as f64 }
}

/// The seconds of all copies. Moves of one wave run at once.
pub fn seconds(plan: &Plan, rate: f64) -> f64 {
    let mut waiting: Vec<&PlannedMove> = plan.moves.iter().collect();
    let mut seconds = 0.0;
    while !waiting.is_empty() {
        let now = wave(&waiting);
        seconds += now.iter().map(|planned| planned.bytes as f64 / rate.max(1.0)).fold(0.0, f64::max);
        waiting.retain(|planned| !now.iter().any(|started| started.id == planned.id));
    }
    seconds
}

/// Open moves that keep a planned one from starting.
///
/// # Errors
/// When the plan names slots that do not exist.
pub fn blockers(plan: &Plan, moves: &[MoveView]) -> anyhow::Result<Vec<String>> {
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
    use shard_map::ClusterId;
    use uuid::Uuid;

    use super::*;

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
        let plan = Plan { cluster: ClusterId::generate(), map_version: 1, moves };
        assert!((seconds(&plan, 10.0) - 8.0).abs() < 1e-9);
        assert!((rate(&[view("s1", "s0", "finished")]) - 2e6).abs() < 1.0);
        assert!((rate(&[view("s1", "s0", "copying")]) - ASSUMED_RATE).abs() < 1.0);
    }

    #[test]
    fn open_moves_of_the_same_shards_or_slots_are_in_the_way() {
        let plan = |planned| Plan { cluster: ClusterId::generate(), map_version: 1, moves: vec![planned] };
        let of = |planned, view: MoveView| blockers(&plan(planned), &[view]).unwrap().len();
        assert_eq!(of(planned("s0", "s3", "100", 0), view("s1", "s0", "copying")), 1);
        assert_eq!(of(planned("s2", "s1", "100", 0), view("s1", "s0", "catching up")), 1);
        assert_eq!(of(planned("s2", "s3", "100", 0), view("s1", "s0", "copying")), 0);
        assert_eq!(of(planned("s1", "s3", "9-10", 0), view("s1", "s0", "taken")), 1);
        assert_eq!(of(planned("s1", "s3", "10-11", 0), view("s1", "s0", "taken")), 0);
        assert_eq!(of(planned("s1", "s3", "9", 0), view("s1", "s0", "finished")), 0);
    }
}

//! Compares the slot owners that the shards report with the map. Reports moves that are not over, and rows that a move has left behind.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use identity::Disagreement;
use shard_map::{SLOTS, Slot, merge_slots};
use tokio::time::timeout;

use super::{
    ask::{ClusterSeen, ListedSlots, SlotState},
    finding::{Finding, FindingVerdict},
};
use crate::resharding::{Nodes, view::MoveView};

/// The place of findings about all shards together.
pub const CLUSTER: &str = "cluster";
const OWNERS: &str = "owner of each slot";
const MAPPED: &str = "slots of the map";

/// What all shards together report about one slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct SlotClaims<'a> {
    /// The shards that claim the slot, with the epochs of their claims.
    owners: Vec<(&'a str, i64)>,
    /// The shards at both ends of a move of the slot.
    moved_by: BTreeSet<&'a str>,
}

/// Checks that every slot has one owner, and that the map names that owner.
pub fn compare(seen: &ClusterSeen) -> Vec<Finding> {
    let mut slots: Vec<SlotClaims> = vec![SlotClaims::default(); usize::from(SLOTS)];
    let mut all_answered = true;
    for shard in &seen.map.shards {
        // All nodes of one shard list the slots of one database; `compare` checks that they share it.
        let ownership = seen.answers(&shard.id).find_map(|(_, answer)| {
            let is_itself = answer.identity.as_ref().is_some_and(|identity| identity.shard == shard.id);
            is_itself.then_some(answer.ownership.as_ref().ok()).flatten()
        });
        match ownership {
            Some(ownership) => ownership.ranges.iter().for_each(|listed| hear(&mut slots, &shard.id, listed)),
            None => all_answered = false,
        }
    }
    let mut findings = Vec::new();
    owners(seen, &slots, all_answered, &mut findings);
    mapped(seen, &slots, &mut findings);
    let clean = |fact: &str| !findings.iter().any(|finding: &Finding| finding.fact.starts_with(fact));
    let agree: Vec<(&str, &str)> =
        [(OWNERS, "one shard"), (MAPPED, "as the shards say")].into_iter().filter(|(fact, _)| clean(fact)).collect();
    // Until every shard has answered, an unclaimed slot proves nothing.
    if all_answered {
        findings.extend(agree.into_iter().map(|(fact, value)| Finding::agrees(CLUSTER, fact, value)));
    }
    findings
}

fn hear<'a>(slots: &mut [SlotClaims<'a>], shard: &'a str, listed: &'a ListedSlots) {
    for slot in listed.slots.slots() {
        let said = &mut slots[usize::from(slot.index())];
        if listed.state == SlotState::Owned {
            said.owners.push((shard, listed.epoch));
        } else {
            said.moved_by.insert(shard);
        }
        if !listed.peer.is_empty() {
            said.moved_by.insert(&listed.peer);
        }
    }
}

fn owners(seen: &ClusterSeen, slots: &[SlotClaims], all_answered: bool, findings: &mut Vec<Finding>) {
    for run in runs(slots, |said, _| (said.owners.len() != 1).then(|| said.owners.clone())) {
        let (slots, owners) = run;
        let (found, remedy) = match owners.as_slice() {
            [] if all_answered && !seen.map.shards.is_empty() => (
                "no shard".to_owned(),
                "no request for these slots is served: look for a move that was interrupted, or for a shard that the map lacks",
            ),
            [] => continue,
            several => {
                let names: Vec<String> =
                    several.iter().map(|(shard, epoch)| format!("{shard} at epoch {epoch}")).collect();
                (
                    names.join(" and "),
                    "two shards accept payments for the same accounts: stop the node of the shard that should not own the slots, and \
                     find out what wrote its table slot_ownership",
                )
            }
        };
        let fact = format!("{OWNERS}: {slots}");
        findings.push(Finding::new(
            CLUSTER,
            FindingVerdict::Disagrees,
            Disagreement::new(fact, "one shard", found, remedy),
        ));
    }
}

fn mapped(seen: &ClusterSeen, slots: &[SlotClaims], findings: &mut Vec<Finding>) {
    let differs = |said: &SlotClaims, slot: Slot| {
        let [(owner, _)] = said.owners.as_slice() else { return None };
        let in_map = seen.map.owner_id(slot);
        (*owner != in_map).then(|| (in_map.to_owned(), (*owner).to_owned(), said.moved_by.contains(in_map)))
    };
    for (slots, (in_map, owner, was_moved)) in runs(slots, differs) {
        let (verdict, remedy) = if was_moved {
            (
                FindingVerdict::Warning,
                format!(
                    "the slots were moved, and routers send their requests to {owner}: publish a map that gives them to {owner}"
                ),
            )
        } else {
            let remedy = format!("only a move changes the shard of a slot: leave them with {owner} in the map");
            (FindingVerdict::Disagrees, remedy)
        };
        let fact = format!("{MAPPED}: {slots}");
        let expected = format!("{in_map}, as the map says");
        findings.push(Finding::new(CLUSTER, verdict, Disagreement::new(fact, expected, owner, remedy)));
    }
}

/// Groups the slots for which `of` returns the same value.
fn runs<'a, T: PartialEq>(
    slots: &[SlotClaims<'a>],
    of: impl Fn(&SlotClaims<'a>, Slot) -> Option<T>,
) -> Vec<(String, T)> {
    let mut groups: Vec<(Vec<Slot>, T)> = Vec::new();
    for (slot, said) in Slot::all().zip(slots) {
        let Some(value) = of(said, slot) else { continue };
        match groups.last_mut() {
            Some((group, same)) if *same == value => group.push(slot),
            _ => groups.push((vec![slot], value)),
        }
    }
    let named = groups.into_iter().map(|(group, value)| {
        let ranges: Vec<String> = merge_slots(group).iter().map(ToString::to_string).collect();
        (ranges.join(", "), value)
    });
    named.collect()
}

/// How long a shard may take to count its accounts.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
const MOVES: &str = "moves of slots";
const ORPHANS: &str = "accounts outside the shard's slots";

/// Asks every shard for its moves. A shard that does not answer is skipped here, because the other checks report it.
pub async fn examine_moves(nodes: &Nodes) -> Vec<Finding> {
    let (views, _) = nodes.views().await;
    let counted = join_all(nodes.map.shards.iter().map(async |shard| {
        let remains = timeout(COUNTED_WITHIN, nodes.client_data(&shard.id)).await.ok()?.ok()?;
        Some(orphans(&shard.id, remains.orphaned_accounts))
    }));
    let mut findings = open_moves(&views);
    findings.extend(counted.await.into_iter().flatten());
    findings
}

fn open_moves(views: &[MoveView]) -> Vec<Finding> {
    let open = views.iter().filter(|view| view.is_open());
    let mut findings: Vec<Finding> = open
        .map(|view| {
            let mut found = format!("{} from {} to {}", view.phase, view.from, view.to);
            if let Some(cause) = &view.blocked_by {
                found.push_str(&format!(", blocked by {cause}"));
            }
            let fact = Disagreement::new(format!("move {}", view.id), "over", found, format!("next: {}", view.next));
            Finding::new(CLUSTER, FindingVerdict::Warning, fact)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::agrees(CLUSTER, MOVES, "all are over"));
    }
    findings
}

fn orphans(shard: &str, count: i64) -> Finding {
    if count == 0 {
        return Finding::agrees(shard, ORPHANS, "none");
    }
    let remedy = "No request reaches these accounts, and `shardctl verify` does not count them. Find the move that left them \
                  (`shardctl move status --all`). Do not delete the rows before.";
    Finding::new(shard, FindingVerdict::Disagrees, Disagreement::new(ORPHANS, "none", count, remedy))
}

#[cfg(test)]
mod tests {
    use SlotState::{Incoming, Owned, Released};

    use super::*;
    use crate::doctor::{
        ask::Ownership,
        compare::tests::{answer, seen_of},
    };

    /// The shard, the slots, their state, their epoch and the peer.
    type SlotRow = (&'static str, &'static str, SlotState, i64, &'static str);

    /// The findings for these rows. The map gives slots 0-8191 to s0 and the rest to s1.
    fn found(rows: &[SlotRow]) -> Vec<(FindingVerdict, String, String)> {
        let mut seen = seen_of(&["s0", "s1"]);
        for node in &mut seen.nodes {
            let of_shard = rows.iter().filter(|(shard, ..)| *shard == node.shard);
            let ranges = of_shard.map(|(_, slots, state, epoch, peer)| ListedSlots {
                slots: slots.parse().unwrap(),
                state: *state,
                epoch: *epoch,
                peer: (*peer).to_owned(),
            });
            answer(node).ownership = Ok(Ownership { ranges: ranges.collect(), map_version: 1 });
        }
        compare(&seen).into_iter().map(|finding| (finding.verdict, finding.fact, finding.found)).collect()
    }

    #[test]
    fn each_slot_has_one_owner_and_the_map_names_it() {
        use FindingVerdict::{Agrees, Disagrees, Warning};
        let all =
            |rest: &[SlotRow]| [&[("s0", "0-8191", Owned, 1, ""), ("s1", "8192-16383", Owned, 1, "")], rest].concat();
        type Expected<'a> = (FindingVerdict, &'a str, &'a str);
        let agree: [Expected; 2] =
            [(Agrees, "owner of each slot", "one shard"), (Agrees, "slots of the map", "as the shards say")];
        let cases: [(&str, Vec<SlotRow>, Vec<Expected>); 5] = [
            ("clean", all(&[]), agree.to_vec()),
            (
                "two owners",
                all(&[("s1", "3-5", Owned, 7, "")]),
                vec![(Disagrees, "owner of each slot: 3-5", "s0 at epoch 1 and s1 at epoch 7"), agree[1]],
            ),
            (
                "no owner",
                vec![("s0", "0-8190", Owned, 1, ""), ("s1", "8192-16383", Owned, 1, "")],
                vec![(Disagrees, "owner of each slot: 8191", "no shard"), agree[1]],
            ),
            (
                "a finished move that the map does not have yet",
                vec![
                    ("s0", "1-8191", Owned, 1, ""),
                    ("s0", "0", Released, 2, "s1"),
                    ("s1", "0", Owned, 2, "s0"),
                    ("s1", "8192-16383", Owned, 1, ""),
                ],
                vec![(Warning, "slots of the map: 0", "s1"), agree[0]],
            ),
            (
                "a map that reassigns slots",
                vec![
                    ("s0", "0-8193", Owned, 1, ""),
                    ("s1", "8194-16383", Owned, 1, ""),
                    ("s1", "0", Incoming, 2, "s0"),
                ],
                vec![(Disagrees, "slots of the map: 8192-8193", "s0"), agree[0]],
            ),
        ];
        for (name, rows, expected) in cases {
            let found = found(&rows);
            let found: Vec<Expected> =
                found.iter().map(|(v, fact, found)| (*v, fact.as_str(), found.as_str())).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_shard_that_does_not_answer_does_not_count_as_one_without_slots() {
        let mut seen = seen_of(&["s0", "s1"]);
        seen.nodes[1].answer = Err("connection refused".to_owned());
        assert_eq!(compare(&seen), []);
    }

    #[test]
    fn an_open_move_warns_and_rows_without_a_slot_disagree() {
        let status = |phase: &str| wire::MoveStatus { phase: phase.to_owned(), ..Default::default() };
        let verdicts = |phase: &str| {
            let view = MoveView::of("s1", &status(phase));
            open_moves(&[view]).into_iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts("taken"), [FindingVerdict::Warning]);
        assert_eq!(verdicts("finished"), [FindingVerdict::Agrees]);
        assert_eq!(
            [orphans("s0", 0).verdict, orphans("s0", 2).verdict],
            [FindingVerdict::Agrees, FindingVerdict::Disagrees]
        );
    }
}

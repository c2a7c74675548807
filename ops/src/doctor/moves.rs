//! Moves that are not over, and rows that a move has left behind.

use std::time::Duration;

use futures_util::future::join_all;
use identity::Disagreement;
use tokio::time::timeout;

use super::finding::{Finding, Verdict};
use crate::resharding::{nodes::Nodes, view::MoveView};

/// How long counting the accounts of a shard may take.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);
const MOVES: &str = "moves of slots";
const ORPHANS: &str = "accounts outside the shard's slots";

/// Asks every shard. One that does not answer is a finding of the other checks.
pub async fn examine(nodes: &Nodes) -> Vec<Finding> {
    let (moves, _) = nodes.list().await;
    let views: Vec<MoveView> = moves.iter().map(|(target, status)| MoveView::of(target, status)).collect();
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
            Finding::new(super::slots::CLUSTER, Verdict::Warning, fact)
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::agrees(super::slots::CLUSTER, MOVES, "all are over"));
    }
    findings
}

fn orphans(shard: &str, count: i64) -> Finding {
    if count == 0 {
        return Finding::agrees(shard, ORPHANS, "none");
    }
    let remedy = "No request reaches these accounts, and `shardctl verify` does not count them. Find the move that left them \
                  (`shardctl move status --all`). Do not delete the rows before.";
    Finding::new(shard, Verdict::Disagrees, Disagreement::new(ORPHANS, "none", count, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_move_warns_and_rows_without_a_slot_disagree() {
        let status = |phase: &str| wire::MoveStatus { phase: phase.to_owned(), ..Default::default() };
        let verdicts = |phase: &str| {
            let view = MoveView::of("s1", &status(phase));
            open_moves(&[view]).into_iter().map(|finding| finding.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts("taken"), [Verdict::Warning]);
        assert_eq!(verdicts("finished"), [Verdict::Agrees]);
        assert_eq!([orphans("s0", 0).verdict, orphans("s0", 2).verdict], [Verdict::Agrees, Verdict::Disagrees]);
    }
}

//! Compares the cross-shard transfers of all shards with all verdicts, by id, without I/O.
//!
//! Several databases cannot be read at one instant. They are read up to positions that are fixed in an order that no healthy cluster can
//! contradict. The registers' position is fixed on every shard *before* the transfers' position on any, because a verdict that was seen must
//! have its reserve. For finished transfers without a verdict, the registers are read up to a position that is fixed *after* the transfers'
//! positions, because a finished transfer was decided before it finished.

use std::collections::{HashMap, hash_map::Entry};

use uuid::Uuid;

use super::report::{Invariant, SagaCounts, Violations};

/// Index of a shard in the order given to `verify`.
pub type ShardIndex = usize;

/// The identity of a transfer. The debit account is a hash, because a million keys are in memory at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SagaKey {
    pub id: Uuid,
    pub debit: i64,
}

/// A cross-shard transfer that began, as its source records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    pub key: SagaKey,
    /// Hash of credit account, asset and amount.
    pub content: i64,
    pub state: ReserveState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveState {
    Pending,
    Posted,
    Rejected,
}

/// A register, as the destination records it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SagaVerdict {
    pub key: SagaKey,
    pub content: i64,
    pub credited: bool,
}

/// The state of the comparison: first all early verdicts are added, then the reserves, then the late verdicts.
#[derive(Debug)]
pub struct Comparison {
    shards: Vec<String>,
    verdicts: HashMap<SagaKey, SeenVerdict>,
    /// The shard of each reserve, and whether its transfer is finished.
    reserves: HashMap<SagaKey, (ShardIndex, ReserveState)>,
    /// Finished transfers without an early verdict.
    unresolved: HashMap<SagaKey, (ShardIndex, Reserve)>,
    counts: SagaCounts,
    findings: Violations,
}

#[derive(Debug, Clone, Copy)]
struct SeenVerdict {
    shard: ShardIndex,
    content: i64,
    credited: bool,
}

impl Comparison {
    pub fn new(shards: Vec<String>) -> Self {
        Self {
            shards,
            verdicts: HashMap::new(),
            reserves: HashMap::new(),
            unresolved: HashMap::new(),
            counts: SagaCounts::default(),
            findings: Violations::default(),
        }
    }

    /// Adds a verdict that was read before any transfer.
    pub fn early_verdict(&mut self, shard: ShardIndex, verdict: SagaVerdict) {
        match self.verdicts.entry(verdict.key) {
            Entry::Vacant(vacant) => {
                vacant.insert(SeenVerdict { shard, content: verdict.content, credited: verdict.credited });
            }
            Entry::Occupied(mut there) => {
                let other = *there.get();
                let detail = format!(
                    "decided twice: {} on {}, {} on {}",
                    verdict_name(other.credited),
                    self.shards[other.shard],
                    verdict_name(verdict.credited),
                    self.shards[shard],
                );
                self.findings.add(Invariant::SettledOnce, verdict.key.id, detail);
                there.get_mut().credited |= verdict.credited;
            }
        }
    }

    /// Adds a transfer that was read after every early verdict.
    pub fn reserve(&mut self, shard: ShardIndex, reserve: Reserve) {
        if let Some((other, _)) = self.reserves.insert(reserve.key, (shard, reserve.state)) {
            let detail = format!("reserved twice: on {} and on {}", self.shards[other], self.shards[shard]);
            self.findings.add(Invariant::SettledOnce, reserve.key.id, detail);
        }
        let Some(verdict) = self.verdicts.get(&reserve.key).copied() else {
            match reserve.state {
                ReserveState::Pending => self.counts.undecided += 1,
                ReserveState::Posted | ReserveState::Rejected => {
                    self.unresolved.insert(reserve.key, (shard, reserve));
                }
            }
            return;
        };
        self.judge(shard, reserve, verdict);
    }

    /// Whether every finished transfer has an early verdict.
    pub fn is_resolved(&self) -> bool {
        self.unresolved.is_empty()
    }

    /// Adds a verdict that was read after every transfer.
    pub fn late_verdict(&mut self, shard: ShardIndex, verdict: SagaVerdict) {
        if let Some((source, reserve)) = self.unresolved.remove(&verdict.key) {
            let seen = SeenVerdict { shard, content: verdict.content, credited: verdict.credited };
            self.judge(source, reserve, seen);
        }
    }

    /// Checks what holds between the shards, after every row was added.
    pub fn finish(mut self) -> (SagaCounts, Violations) {
        for (key, (shard, reserve)) in self.unresolved {
            let detail =
                format!("{} on {}, but no register holds a verdict", state_name(reserve.state), self.shards[shard]);
            self.findings.add(Invariant::SettledOnce, key.id, detail);
        }
        for (key, verdict) in &self.verdicts {
            // A refusal without a reserve is harmless: it gives up a saga before the reserve arrives.
            if verdict.credited && !self.reserves.contains_key(key) {
                let detail = format!("credited on {}, but no shard holds its reserve", self.shards[verdict.shard]);
                self.findings.add(Invariant::SagasUnderWay, key.id, detail);
            }
        }
        (self.counts, self.findings)
    }

    fn judge(&mut self, shard: ShardIndex, reserve: Reserve, verdict: SeenVerdict) {
        let id = reserve.key.id;
        let (source, destination) = (&self.shards[shard], &self.shards[verdict.shard]);
        if reserve.content != verdict.content {
            let detail =
                format!("reserved on {source} and decided on {destination} with other accounts, asset or amount");
            self.findings.add(Invariant::SagasUnderWay, id, detail);
        }
        match (reserve.state, verdict.credited) {
            (ReserveState::Posted, true) | (ReserveState::Rejected, false) => self.counts.finished += 1,
            (ReserveState::Pending, true) => self.counts.credited_not_settled += 1,
            (ReserveState::Pending, false) => self.counts.refused_not_compensated += 1,
            (ReserveState::Rejected, true) => {
                let detail = format!("compensated on {source} and credited on {destination}");
                self.findings.add(Invariant::SettledOnce, id, detail);
            }
            (ReserveState::Posted, false) => {
                let detail = format!("posted on {source}, but refused on {destination}");
                self.findings.add(Invariant::SettledOnce, id, detail);
            }
        }
    }
}

fn verdict_name(credited: bool) -> &'static str {
    if credited { "credited" } else { "refused" }
}

fn state_name(state: ReserveState) -> &'static str {
    match state {
        ReserveState::Pending => "pending",
        ReserveState::Posted => "posted",
        ReserveState::Rejected => "rejected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SagaKey = SagaKey { id: Uuid::from_u128(1), debit: 7 };

    /// Compares early verdicts, reserves and late verdicts, each with its shard.
    fn compare(
        early: &[(ShardIndex, SagaVerdict)],
        reserves: &[(ShardIndex, Reserve)],
        late: &[(ShardIndex, SagaVerdict)],
    ) -> (SagaCounts, Vec<Invariant>) {
        let mut comparison = Comparison::new(vec!["s0".to_owned(), "s1".to_owned(), "s2".to_owned()]);
        early.iter().for_each(|&(shard, verdict)| comparison.early_verdict(shard, verdict));
        reserves.iter().for_each(|&(shard, reserve)| comparison.reserve(shard, reserve));
        late.iter().for_each(|&(shard, verdict)| comparison.late_verdict(shard, verdict));
        let (counts, findings) = comparison.finish();
        (counts, findings.invariants())
    }

    fn reserve(state: ReserveState) -> (ShardIndex, Reserve) {
        (0, Reserve { key: KEY, content: 5, state })
    }

    fn verdict(credited: bool) -> (ShardIndex, SagaVerdict) {
        (1, SagaVerdict { key: KEY, content: 5, credited })
    }

    #[test]
    fn the_states_of_a_healthy_cluster_are_counted() {
        use ReserveState::{Pending, Posted, Rejected};
        let none = SagaCounts::default();
        for (early, state, late, expected) in [
            (None, Pending, None, SagaCounts { undecided: 1, ..none }),
            // The saga was decided after the early position, and was settled or not settled before the end.
            (None, Pending, Some(true), SagaCounts { undecided: 1, ..none }),
            (None, Posted, Some(true), SagaCounts { finished: 1, ..none }),
            (None, Rejected, Some(false), SagaCounts { finished: 1, ..none }),
            (Some(true), Pending, Some(true), SagaCounts { credited_not_settled: 1, ..none }),
            (Some(false), Pending, Some(false), SagaCounts { refused_not_compensated: 1, ..none }),
            (Some(true), Posted, Some(true), SagaCounts { finished: 1, ..none }),
            (Some(false), Rejected, Some(false), SagaCounts { finished: 1, ..none }),
        ] {
            let early: Vec<_> = early.map(verdict).into_iter().collect();
            let late: Vec<_> = late.map(verdict).into_iter().collect();
            let (counts, violated) = compare(&early, &[reserve(state)], &late);
            assert_eq!((counts, violated), (expected, vec![]), "{early:?} {state:?} {late:?}");
        }
    }

    #[test]
    fn a_credit_needs_its_reserve_and_a_refusal_does_not() {
        assert_eq!(compare(&[verdict(true)], &[], &[]).1, [Invariant::SagasUnderWay]);
        assert_eq!(compare(&[verdict(false)], &[], &[]).1, []);
    }

    #[test]
    fn a_finished_transfer_needs_its_verdict() {
        assert_eq!(compare(&[], &[reserve(ReserveState::Posted)], &[]).1, [Invariant::SettledOnce]);
        assert_eq!(compare(&[], &[reserve(ReserveState::Rejected)], &[]).1, [Invariant::SettledOnce]);
        assert_eq!(compare(&[], &[reserve(ReserveState::Posted)], &[verdict(false)]).1, [Invariant::SettledOnce]);
    }

    #[test]
    fn credit_and_compensation_exclude_each_other() {
        assert_eq!(compare(&[verdict(true)], &[reserve(ReserveState::Rejected)], &[]).1, [Invariant::SettledOnce]);
        assert_eq!(compare(&[], &[reserve(ReserveState::Rejected)], &[verdict(true)]).1, [Invariant::SettledOnce]);
    }

    #[test]
    fn one_debit_and_one_verdict_for_each_transfer() {
        let twice = [reserve(ReserveState::Posted), (2, reserve(ReserveState::Posted).1)];
        assert_eq!(compare(&[verdict(true)], &twice, &[]).1, [Invariant::SettledOnce]);
        let decided_twice = [verdict(true), (2, verdict(true).1)];
        assert_eq!(compare(&decided_twice, &[reserve(ReserveState::Posted)], &[]).1, [Invariant::SettledOnce]);
    }

    #[test]
    fn both_sides_must_be_about_the_same_money() {
        let other = (1, SagaVerdict { content: 6, ..verdict(true).1 });
        assert_eq!(compare(&[other], &[reserve(ReserveState::Posted)], &[]).1, [Invariant::SagasUnderWay]);
    }

    #[test]
    fn an_id_belongs_to_its_debit_account() {
        let other = (2, Reserve { key: SagaKey { debit: 8, ..KEY }, ..reserve(ReserveState::Pending).1 });
        let (counts, violated) = compare(&[verdict(true)], &[reserve(ReserveState::Posted), other], &[]);
        assert_eq!((counts.finished, counts.undecided, violated), (1, 1, vec![]));
    }
}

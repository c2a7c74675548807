//! The report: the violations that were found.

use std::collections::BTreeMap;

use serde::Serialize;

use super::invariant::Invariant;

/// One violation: the transfer, account, asset or slot, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub subject: String,
    pub detail: String,
}

/// The violations of each invariant. All are counted; the first ones are kept in full.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    by_invariant: BTreeMap<Invariant, Found>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    total: u64,
    examples: Vec<Violation>,
}

impl Findings {
    /// How many violations of each kind are kept in full.
    pub const EXAMPLES: usize = 20;

    pub fn add(&mut self, invariant: Invariant, subject: impl Into<String>, detail: impl Into<String>) {
        let found = self.by_invariant.entry(invariant).or_default();
        found.total += 1;
        if found.examples.len() < Self::EXAMPLES {
            found.examples.push(Violation { subject: subject.into(), detail: detail.into() });
        }
    }

    /// The subjects of all examples.
    #[cfg(test)]
    pub fn subjects(&self) -> Vec<&str> {
        let examples = self.by_invariant.values().flat_map(|found| &found.examples);
        examples.map(|violation| violation.subject.as_str()).collect()
    }

    #[cfg(test)]
    pub fn invariants(&self) -> Vec<Invariant> {
        self.by_invariant.keys().copied().collect()
    }
}

/// The result for a cluster.
#[derive(Debug, Serialize)]
pub struct Report {
    pub verdict: Verdict,
    pub elapsed_ms: u64,
    pub shards: Vec<ShardSize>,
    pub sagas: SagaCounts,
    pub invariants: Vec<InvariantReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Clean,
    Violated,
}

/// How much of a shard was checked.
#[derive(Debug, Clone, Serialize)]
pub struct ShardSize {
    pub id: String,
    pub accounts: i64,
    pub entries: i64,
    pub transfers: i64,
    pub registers: i64,
}

/// The cross-shard transfers that were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SagaCounts {
    pub finished: u64,
    /// In progress: no verdict yet.
    pub undecided: u64,
    /// In progress: credited, but not yet settled at the source.
    pub credited_not_settled: u64,
    /// In progress: refused, but not yet compensated at the source.
    pub refused_not_compensated: u64,
}

impl SagaCounts {
    pub fn under_way(&self) -> u64 {
        self.undecided + self.credited_not_settled + self.refused_not_compensated
    }
}

#[derive(Debug, Serialize)]
pub struct InvariantReport {
    pub id: Invariant,
    pub claim: &'static str,
    pub violations: u64,
    /// The first violations of each shard and check.
    pub examples: Vec<LocatedViolation>,
}

#[derive(Debug, Serialize)]
pub struct LocatedViolation {
    /// The shard's id, or `-` for a violation between shards.
    pub shard: String,
    #[serde(flatten)]
    pub violation: Violation,
}

/// The shard column of violations between shards.
pub const BETWEEN_SHARDS: &str = "-";

impl Report {
    pub fn new(
        elapsed_ms: u64,
        shards: Vec<ShardSize>,
        sagas: SagaCounts,
        findings: Vec<(String, Findings)>,
    ) -> Self {
        let mut invariants: Vec<InvariantReport> = Invariant::ALL
            .into_iter()
            .map(|id| InvariantReport { id, claim: id.claim(), violations: 0, examples: Vec::new() })
            .collect();
        for (shard, findings) in findings {
            for (invariant, found) in findings.by_invariant {
                let Some(report) = invariants.iter_mut().find(|report| report.id == invariant) else { continue };
                report.violations += found.total;
                let located = |violation| LocatedViolation { shard: shard.clone(), violation };
                report.examples.extend(found.examples.into_iter().map(located));
            }
        }
        let violated = invariants.iter().any(|report| report.violations > 0);
        Self {
            verdict: if violated { Verdict::Violated } else { Verdict::Clean },
            elapsed_ms,
            shards,
            sagas,
            invariants,
        }
    }

    pub fn is_clean(&self) -> bool {
        self.verdict == Verdict::Clean
    }
}

//! The invariants, their violations, and the report.

use std::collections::BTreeMap;

use serde::Serialize;
use shard_database::books::Rule;

/// One violation: the transfer, account, asset or slot, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    pub subject: String,
    pub detail: String,
}

/// The violations of each invariant. All are counted; the first ones are kept in full.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Violations {
    by_invariant: BTreeMap<Invariant, CountedViolations>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct CountedViolations {
    total: u64,
    examples: Vec<Violation>,
}

impl Violations {
    /// How many violations of each invariant are kept in full.
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
pub struct VerifyReport {
    pub verdict: LedgerVerdict,
    pub elapsed_ms: u64,
    pub shards: Vec<ShardSize>,
    pub sagas: SagaCounts,
    pub invariants: Vec<InvariantReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LedgerVerdict {
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
    /// Transfers in progress without a verdict.
    pub undecided: u64,
    /// Transfers in progress that are credited but not yet settled at the source.
    pub credited_not_settled: u64,
    /// Transfers in progress that are refused but not yet compensated at the source.
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
    /// The first violations of each shard and invariant.
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

impl VerifyReport {
    pub fn new(
        elapsed_ms: u64,
        shards: Vec<ShardSize>,
        sagas: SagaCounts,
        findings: Vec<(String, Violations)>,
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
            verdict: if violated { LedgerVerdict::Violated } else { LedgerVerdict::Clean },
            elapsed_ms,
            shards,
            sagas,
            invariants,
        }
    }

    pub fn is_clean(&self) -> bool {
        self.verdict == LedgerVerdict::Clean
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Invariant {
    #[serde(rename = "INV-1")]
    Balanced,
    #[serde(rename = "INV-2")]
    Owned,
    #[serde(rename = "INV-3")]
    SagasUnderWay,
    #[serde(rename = "INV-4")]
    SettledOnce,
    #[serde(rename = "INV-9")]
    Chained,
    #[serde(rename = "INV-10")]
    Floor,
    #[serde(rename = "INV-11")]
    Held,
    #[serde(rename = "INV-15")]
    Folded,
}

impl Invariant {
    pub const ALL: [Self; 8] = [
        Self::Balanced,
        Self::Owned,
        Self::SagasUnderWay,
        Self::SettledOnce,
        Self::Chained,
        Self::Floor,
        Self::Held,
        Self::Folded,
    ];

    /// The number of the invariant in ARCHITECTURE.md.
    pub fn number(self) -> &'static str {
        match self {
            Self::Balanced => "INV-1",
            Self::Owned => "INV-2",
            Self::SagasUnderWay => "INV-3",
            Self::SettledOnce => "INV-4",
            Self::Chained => "INV-9",
            Self::Floor => "INV-10",
            Self::Held => "INV-11",
            Self::Folded => "INV-15",
        }
    }

    pub fn claim(self) -> &'static str {
        match self {
            Self::Balanced => "every transfer's entries balance, and each shard's accounts sum to 0 per asset",
            Self::Owned => {
                "every slot has one owner, every account lives with the owner of its slot, and every known shard was checked"
            }
            Self::SagasUnderWay => "what is in transit is a saga in progress, id by id",
            Self::SettledOnce => {
                "at most one debit, one credit and one compensation for each transfer, as its register says, and never credit \
                 and compensation"
            }
            Self::Chained => "account versions have no gaps, and their chain runs unbroken from head to first entry",
            Self::Floor => "no limited account was ever overdrawn",
            Self::Held => {
                "what an account holds is what remains of its holds, and no more is captured or reversed than was held or paid"
            }
            Self::Folded => "an account's row is the fold of its journal",
        }
    }

    /// The invariant that a difference in one shard's books breaks.
    pub fn broken_by(rule: Rule) -> Self {
        match rule {
            Rule::Balance | Rule::Sum => Self::Balanced,
            Rule::Slot => Self::Owned,
            Rule::Saga | Rule::SagaRow => Self::SagasUnderWay,
            Rule::Once => Self::SettledOnce,
            Rule::Chain | Rule::WaypointRow => Self::Chained,
            Rule::Floor => Self::Floor,
            Rule::Hold | Rule::HoldRow | Rule::Reversal => Self::Held,
            Rule::Content | Rule::AccountRow | Rule::FoldState => Self::Folded,
        }
    }
}

impl std::fmt::Display for Invariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_for_machines_have_the_numbers_that_people_read() {
        for invariant in Invariant::ALL {
            assert_eq!(serde_json::to_value(invariant).unwrap(), invariant.to_string());
        }
    }
}

//! The invariants that `shardctl verify` checks, by their numbers in ARCHITECTURE.md. The numbers missing here need the clients' records
//! or hold inside a program.

use serde::Serialize;
use shard_database::books::Rule;

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

    /// The number in ARCHITECTURE.md.
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

//! The invariants that are checked. `I…` are properties of the stored data as seen from outside; `shardctl verify`
//! and the tests' audit share them. The numbers missing here (answers kept, time to heal) require the clients'
//! records. ARCHITECTURE.md pairs these invariants with the rules of the code, `INV-…`.

use serde::Serialize;
use shard_database::books::Rule;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Invariant {
    I1,
    I2,
    I4,
    I8,
    I9,
    I10,
    I11,
    I13,
}

impl Invariant {
    pub const ALL: [Self; 8] = [Self::I1, Self::I2, Self::I4, Self::I8, Self::I9, Self::I10, Self::I11, Self::I13];

    pub fn claim(self) -> &'static str {
        match self {
            Self::I1 => "every transfer's entries balance, and each shard's accounts sum to 0 per asset",
            Self::I2 => "what is in transit is a saga in progress, id by id",
            Self::I4 => {
                "at most one debit, one credit and one compensation for each transfer, never credit and compensation, and no more \
                 reversed than was paid"
            }
            Self::I8 => {
                "finished sagas and holds leave nothing behind: what an account holds is what remains of its holds"
            }
            Self::I9 => "no limited account was ever overdrawn",
            Self::I10 => "account versions have no gaps, and their chain runs unbroken from head to first entry",
            Self::I11 => {
                "every slot has one owner, every account lives with the owner of its slot, and every known shard was checked"
            }
            Self::I13 => "an account's row is the fold of its journal",
        }
    }

    /// The invariant that a difference in one shard's books breaks.
    pub fn broken_by(rule: Rule) -> Self {
        match rule {
            Rule::Balance | Rule::Sum => Self::I1,
            Rule::Saga | Rule::SagaRow => Self::I2,
            Rule::Once | Rule::Reversal => Self::I4,
            Rule::Hold | Rule::HoldRow => Self::I8,
            Rule::Floor => Self::I9,
            Rule::Chain | Rule::WaypointRow => Self::I10,
            Rule::Slot => Self::I11,
            Rule::Content | Rule::AccountRow | Rule::FoldState => Self::I13,
        }
    }
}

impl std::fmt::Display for Invariant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::I1 => "I1",
            Self::I2 => "I2",
            Self::I4 => "I4",
            Self::I8 => "I8",
            Self::I9 => "I9",
            Self::I10 => "I10",
            Self::I11 => "I11",
            Self::I13 => "I13",
        })
    }
}

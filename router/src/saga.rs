//! Transfers between shards. [`state`] says what a saga is and how it may move; [`coordinator`] moves live ones and those
//! that [`recovery`] finds abandoned, by the same code. Nothing about a saga is kept here: the shards hold its state, so
//! any router can finish any saga, and two of them doing so at once do no harm.

mod coordinator;
mod listing;
mod metrics;
mod recovery;
mod state;

use ledger::{
    AccountId, AssetCode, TransferId,
    operation::{Decide, Operation, Settle, Verdict},
};

pub use self::{
    coordinator::{Patience, finish},
    listing::list,
    metrics::describe as describe_metrics,
    recovery::{retry, run as run_recovery},
    state::{Event, SagaState, Step},
};

/// A transfer whose money is in transit, as its steps need it.
#[derive(Debug, Clone)]
pub struct Saga {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    pub amount: i64,
    pub state: SagaState,
    /// Why it was left alone: a shard's answer that makes no sense.
    pub parked: Option<String>,
}

impl Saga {
    /// The next step, the account whose shard takes it, and the operation. `None` for a saga that has ended, is parked, or
    /// was never reserved: the reserve is the transfer's own business, and carries more than a saga knows.
    fn next(&self) -> Option<(Step, &AccountId, Operation)> {
        if self.parked.is_some() {
            return None;
        }
        let step = self.state.next_step()?;
        match step {
            Step::Reserve => None,
            Step::Decide => Some((step, &self.credit, self.decide())),
            Step::Settle | Step::Compensate => Some((step, &self.debit, self.settle(self.state.verdict()?))),
        }
    }

    fn decide(&self) -> Operation {
        Operation::Decide(Decide {
            id: self.id,
            debit: self.debit.clone(),
            credit: self.credit.clone(),
            asset: self.asset,
            amount: self.amount,
            cancel: false,
        })
    }

    fn settle(&self, verdict: Verdict) -> Operation {
        Operation::Settle(Settle {
            id: self.id,
            debit: self.debit.clone(),
            credit: self.credit.clone(),
            asset: self.asset,
            amount: self.amount,
            verdict,
        })
    }
}

//! Transfers between shards. [`state`] says what a saga is and how it may move; [`coordinator`] moves live ones and those
//! that [`recovery`] finds abandoned, by the same code. Nothing about a saga is kept here: the shards hold its state, so
//! any router can finish any saga, and two of them doing so at once do no harm.

mod coordinator;
mod recovery;
mod state;

use ledger::{
    AccountId, AssetCode, KeyName, Refused, TransferId,
    operation::{Decide, Operation, Purpose, Settle, Verdict},
    outcome::DebitAfter,
};

pub use self::{
    coordinator::{Patience, finish},
    recovery::run as run_recovery,
    state::{Event, SagaState, Step},
};

/// A transfer whose money is in transit, or whose refusal is presumed, as its steps need it.
#[derive(Debug, Clone)]
pub struct Saga {
    pub id: TransferId,
    pub debit: AccountId,
    pub credit: AccountId,
    pub asset: AssetCode,
    /// Minor units; 0 where the refusal is presumed and the request named no amount.
    pub amount: i64,
    pub purpose: Purpose,
    /// The refusal of the source, which stands unless the credit side refuses first. Nothing is in transit.
    pub presumed: Option<Refused>,
    pub state: SagaState,
    /// Its decision has to wait where the credit account has a limit (`super::transfers::plan` says why).
    pub defer_limited: bool,
    /// The decide step may be answered `Undetermined`: the router asks again until the client's deadline.
    pub patient: bool,
    /// True if the decide step was answered `Deferred` or `Undetermined`.
    pub put_off: bool,
    /// The debit account where its settlement changed it last (a hold's rest was released).
    pub debit_after: Option<DebitAfter>,
    /// Why the saga was left as it is: the answer of a shard broke the protocol.
    pub parked: Option<String>,
    /// The API key that ordered it, as the source has recorded it.
    pub ordered_by: Option<KeyName>,
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
            purpose: self.purpose,
            presumed: self.presumed,
            defer_limited: self.defer_limited,
            patient: self.patient,
            ordered_by: self.ordered_by.clone(),
        })
    }

    fn settle(&self, verdict: Verdict) -> Operation {
        Operation::Settle(Settle {
            id: self.id,
            debit: self.debit.clone(),
            credit: self.credit.clone(),
            asset: self.asset,
            amount: self.amount,
            purpose: self.purpose,
            reserved: self.presumed.is_none(),
            verdict,
        })
    }
}

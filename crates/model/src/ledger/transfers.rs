//! Transfers: payments, captures of holds, reversals of transfers.

use super::{
    Answer, Cause, Key, Ledger,
    holds::{Hold, HoldState},
};
use crate::{
    Asset, Capture, Id, Metadata, Named, Payment, Reversal,
    posting::{Refusal, credit_allowed, debit_allowed, debit_covered, debit_fits},
    shards::SagaFate,
};

/// A stored transfer. It is posted, or refused, and stays so.
#[derive(Debug, Clone)]
pub struct Transfer {
    pub order: Order,
    pub fate: Fate,
    pub saga: SagaFate,
    /// The amount that reversals have taken back.
    pub reversed: i64,
    pub reversed_by: Vec<Id>,
}

/// The amount to move, the two accounts, and the purpose.
#[derive(Debug, Clone)]
pub struct Order {
    pub id: Id,
    pub debit: String,
    pub credit: String,
    pub asset: Asset,
    pub amount: i64,
    pub metadata: Metadata,
    pub purpose: Purpose,
    /// The amount in the request, if the request names one.
    asked: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    Payment,
    /// A final capture gives the rest of the hold back.
    Capture {
        hold: Id,
        is_final: bool,
    },
    /// A reversal of a transfer that the credit account paid.
    Reversal {
        of: Id,
    },
}

#[derive(Debug, Clone)]
pub enum Fate {
    /// Holds the state of the debit account right after the transfer.
    Posted(After),
    Refused(Refusal),
}

/// An account's balances at one version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct After {
    pub posted: i64,
    pub held: i64,
    pub available: Option<i128>,
    pub version: usize,
}

impl Ledger {
    pub(super) fn pay(&mut self, paid: &Payment) -> Answer {
        if paid.debit == paid.credit {
            return Answer::refused(400, "same_account");
        }
        let order = Order {
            id: paid.id.clone(),
            debit: paid.debit.clone(),
            credit: paid.credit.clone(),
            asset: paid.asset,
            amount: paid.amount,
            metadata: paid.metadata.clone(),
            purpose: Purpose::Payment,
            asked: Some(paid.amount),
        };
        self.execute(order)
    }

    pub(super) fn capture(&mut self, capture: &Capture) -> Answer {
        let hold = match self.find_hold(&self.captured_before(capture)) {
            Ok(Hold { state: HoldState::Refused(_), .. }) => {
                return Answer::refused(404, "hold_not_found").with("hold_id", &*capture.hold.id);
            }
            Ok(hold) => hold,
            Err(answer) => return answer,
        };
        let order = Order {
            id: capture.id.clone(),
            debit: hold.order.debit.clone(),
            credit: hold.order.credit.clone(),
            asset: hold.order.asset,
            amount: capture.amount.unwrap_or(hold.remaining()),
            metadata: hold.order.metadata.clone(),
            purpose: Purpose::Capture { hold: hold.order.id.clone(), is_final: capture.is_final },
            asked: capture.amount,
        };
        self.execute(order)
    }

    pub(super) fn reverse(&mut self, reversal: &Reversal) -> Answer {
        let original = match self.find_transfer(&self.reversed_before(reversal)) {
            Ok(original) => original,
            Err(answer) => return answer,
        };
        let order = Order {
            id: reversal.id.clone(),
            debit: original.order.credit.clone(),
            credit: original.order.debit.clone(),
            asset: original.order.asset,
            amount: reversal.amount.unwrap_or(original.reversible()),
            metadata: Metadata::new(),
            purpose: Purpose::Reversal { of: original.order.id.clone() },
            asked: reversal.amount,
        };
        self.execute(order)
    }

    /// Answers a replay from the stored transfer. Decides, books and stores a new one.
    fn execute(&mut self, order: Order) -> Answer {
        let key = order.key();
        if let Some(stored) = self.transfers.get(&key) {
            return match difference(&stored.order, &order) {
                Some(field) => named(Answer::mismatch(field), &order),
                None => self.first_answer(stored).replay(),
            };
        }
        let (fate, saga) = match self.refuse_debit(&order) {
            Err(refusal) if refusal == Refusal::debit("account_not_found") => {
                // Without a debit account there is no account to store the refusal with.
                return named(Answer::problem(&refusal), &order);
            }
            Err(refusal) => (Fate::Refused(refusal), SagaFate::RefusedAtOnce),
            Ok(()) => match self.refuse_credit(&order).and_then(|()| self.refuse_purpose(&order)) {
                Err(refusal) => (Fate::Refused(refusal), self.compensate(&order)),
                Ok(()) => (Fate::Posted(self.post(&order)), SagaFate::Settled),
            },
        };
        let transfer = Transfer { order, fate, saga, reversed: 0, reversed_by: Vec::new() };
        let answer = self.first_answer(&transfer);
        self.transfers.insert_mut(key, transfer);
        answer
    }

    fn refuse_debit(&self, order: &Order) -> Result<(), Refusal> {
        let account = debit_allowed(self.accounts.get(&order.debit), order.asset)?;
        // A capture takes money that is held for it, so that no money need be available.
        if !matches!(order.purpose, Purpose::Capture { .. }) {
            debit_covered(account, order.amount)?;
        }
        debit_fits(account, order.amount)
    }

    fn refuse_credit(&self, order: &Order) -> Result<(), Refusal> {
        credit_allowed(self.accounts.get(&order.credit), order.asset, order.amount)
    }

    /// Applies the rules of the hold that is captured, or of the transfer that is reversed.
    fn refuse_purpose(&self, order: &Order) -> Result<(), Refusal> {
        match &order.purpose {
            Purpose::Payment => Ok(()),
            Purpose::Capture { hold, .. } => match self.holds.get(&(order.debit.clone(), hold.clone())) {
                Some(hold) => hold.refuse_capture(order.amount),
                None => Err(Refusal::whole(404, "hold_not_found")),
            },
            Purpose::Reversal { of } => {
                let original = self.transfers.get(&(order.credit.clone(), of.clone()));
                let left = original.map_or(0, Transfer::reversible);
                if order.amount == 0 || order.amount > left {
                    Err(Refusal::whole(422, "already_reversed"))
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Moves the money, and returns the debit account after its last new line.
    fn post(&mut self, order: &Order) -> After {
        let (debit, credit) = (order.debit.clone(), order.credit.clone());
        match &order.purpose {
            Purpose::Payment => {
                let kind = self.shards.kind_of_debit(&debit, &credit);
                self.book(&debit, kind, -order.amount, 0, order.cause(&credit));
            }
            Purpose::Reversal { of } => {
                let kind = self.shards.kind_of_debit(&debit, &credit);
                self.book(&debit, kind, -order.amount, 0, order.cause(&credit));
                if let Some(original) = self.transfers.get_mut(&(credit.clone(), of.clone())) {
                    original.reversed += order.amount;
                    original.reversed_by.push(order.id.clone());
                }
            }
            Purpose::Capture { hold, is_final } => {
                self.book(&debit, "captured", -order.amount, -order.amount, order.cause(&credit));
                self.captured(&(debit.clone(), hold.clone()), order.amount, *is_final);
            }
        }
        self.book(&credit, "posted", order.amount, 0, order.cause(&debit));
        self.after(&debit)
    }

    /// Gives back what a refused saga has taken. The source takes nothing if it knows already that the transfer is refused.
    fn compensate(&mut self, order: &Order) -> SagaFate {
        let (kind, held, is_futile) = match &order.purpose {
            Purpose::Payment => ("reserved", 0, false),
            // Only the original's shard knows how much is left to reverse. The source knows only that the request asks for nothing.
            Purpose::Reversal { .. } => ("reserved", 0, order.amount == 0),
            Purpose::Capture { .. } => ("captured", order.amount, self.refuse_purpose(order).is_err()),
        };
        if is_futile {
            return SagaFate::NeverReserved;
        }
        if self.shards.differ(&order.debit, &order.credit) {
            self.book(&order.debit, kind, -order.amount, -held, order.cause(&order.credit));
            self.book(&order.debit, "compensated", order.amount, held, order.cause(&order.credit));
        }
        SagaFate::Compensated
    }

    pub(super) fn after(&self, account: &str) -> After {
        self.accounts.get(account).map_or(After { posted: 0, held: 0, available: None, version: 0 }, |account| {
            After {
                posted: account.posted,
                held: account.held,
                available: account.available(),
                version: account.version(),
            }
        })
    }

    /// The hold that a capture names. A replay means the hold that its first request captured, even if another account has a hold of that
    /// id by now.
    fn captured_before(&self, capture: &Capture) -> Named {
        let is_it = |made: &&Transfer| {
            matches!(&made.order.purpose, Purpose::Capture { hold, .. } if *hold == capture.hold.id)
                && made.order.id == capture.id
        };
        let mut payers = self.transfers.values().filter(is_it).map(|made| made.order.debit.clone());
        meant(&capture.hold, (payers.next(), payers.next()))
    }

    /// The transfer that a reversal names, by the same rule.
    fn reversed_before(&self, reversal: &Reversal) -> Named {
        let is_it = |made: &&Transfer| {
            matches!(&made.order.purpose, Purpose::Reversal { of } if *of == reversal.transfer.id)
                && made.order.id == reversal.id
        };
        let mut payers = self.transfers.values().filter(is_it).map(|made| made.order.credit.clone());
        meant(&reversal.transfer, (payers.next(), payers.next()))
    }

    pub(super) fn find_transfer(&self, named: &Named) -> Result<&Transfer, Answer> {
        let mut found = self.transfers.values().filter(|transfer| {
            transfer.order.id == named.id && named.debit.as_ref().is_none_or(|debit| *debit == transfer.order.debit)
        });
        let not_found = || Answer::refused(404, "transfer_not_found").with("transfer_id", &*named.id);
        let first = found.next().ok_or_else(not_found)?;
        match found.next() {
            Some(_) => Err(Answer::refused(409, "ambiguous_id").with("transfer_id", &*named.id)),
            None => Ok(first),
        }
    }
}

impl Transfer {
    /// The amount that can still be reversed.
    fn reversible(&self) -> i64 {
        match self.fate {
            Fate::Posted(_) => self.order.amount - self.reversed,
            Fate::Refused(_) => 0,
        }
    }
}

impl Order {
    pub fn key(&self) -> Key {
        (self.debit.clone(), self.id.clone())
    }

    fn cause(&self, counterparty: &str) -> Cause {
        Cause { transfer: Some(self.id.clone()), hold: None, counterparty: Some(counterparty.to_owned()) }
    }
}

/// The name in a URL. If it has no debit account, it gets the one that `before` has.
fn meant(named: &Named, before: (Option<String>, Option<String>)) -> Named {
    match (&named.debit, before) {
        (None, (Some(debit), None)) => Named { debit: Some(debit), ..named.clone() },
        _ => named.clone(),
    }
}

/// Adds the ids of the order to a problem.
pub(super) fn named(problem: Answer, order: &Order) -> Answer {
    let problem = problem.with("transfer_id", &*order.id);
    match &order.purpose {
        Purpose::Capture { hold, .. } => problem.with("hold_id", &**hold),
        Purpose::Payment | Purpose::Reversal { .. } => problem,
    }
}

/// The field in which a request differs from the one stored under its id.
fn difference(stored: &Order, new: &Order) -> Option<&'static str> {
    let hold = |order: &Order| match &order.purpose {
        Purpose::Capture { hold, .. } => Some(hold.clone()),
        Purpose::Payment | Purpose::Reversal { .. } => None,
    };
    let reverses = |order: &Order| match &order.purpose {
        Purpose::Reversal { of } => Some(of.clone()),
        Purpose::Payment | Purpose::Capture { .. } => None,
    };
    let is_final = |order: &Order| matches!(order.purpose, Purpose::Capture { is_final: true, .. });
    match () {
        () if hold(stored) != hold(new) => Some("hold"),
        () if reverses(stored) != reverses(new) => Some("reverses"),
        () if stored.credit != new.credit => Some("credit"),
        () if stored.asked != new.asked => Some("amount"),
        () if stored.asset != new.asset => Some("asset"),
        () if is_final(stored) != is_final(new) => Some("final"),
        () if stored.metadata != new.metadata => Some("metadata"),
        () => None,
    }
}

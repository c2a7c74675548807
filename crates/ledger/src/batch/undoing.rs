//! What is decided and then taken back: an atomic group that failed, a dry run, and a refusal that must not be stored.

use std::{collections::HashMap, hash::Hash};

use super::{Batch, HoldKey, KnownHold, Original, Request, holds::outcome_of};
use crate::{
    AccountId, Position, Refusal, Refused, TransferKey,
    accounts::Snapshot,
    booking::Role,
    operation::{Operation, Transfer, Verdict},
    outcome::{AtomicOutcome, Decided, Outcome, TransferAnswer, TransferOutcome, TransferState},
};

/// Where a batch stood before an operation that may be taken back.
struct Checkpoint {
    accounts: Snapshot,
    position: Position,
    bookings: usize,
    /// The hold and the original that the operation is about; it touches no other.
    hold: Option<(HoldKey, Option<KnownHold>)>,
    original: Option<(TransferKey, Option<Original>)>,
}

impl Batch<'_> {
    pub(super) fn atomic(&mut self, items: &[Transfer]) -> Outcome {
        let before = self.checkpoint(items.iter().flat_map(|t| [&t.debit, &t.credit]));
        let mut outcomes = Vec::with_capacity(items.len());
        let mut failure = None;
        for (index, item) in items.iter().enumerate() {
            match self.transfer(Request::UNORDERED, item) {
                Ok(outcome) if took_effect(&outcome) => outcomes.push(outcome),
                Ok(outcome) => {
                    failure = Some(Ok((index, outcome)));
                    break;
                }
                Err(aside) => {
                    failure = Some(Err(aside));
                    break;
                }
            }
        }
        let Some(failure) = failure else {
            return Outcome::Atomic(AtomicOutcome { items: outcomes, culprit: None });
        };
        self.take_back(before);
        // Nothing is stored: no id will collide if the group took effect before.
        self.unsure = true;
        match failure {
            Err(aside) => outcome_of(aside),
            Ok((culprit, outcome)) => {
                let failed = TransferOutcome::NotStored(Refused::whole(Refusal::BatchFailed));
                let mut items = vec![failed; items.len()];
                items[culprit] = match outcome {
                    TransferOutcome::Done(TransferAnswer {
                        state: TransferState::Rejected { refused, .. },
                        replayed: false,
                        ..
                    }) => TransferOutcome::NotStored(refused),
                    // Of an earlier request: its id is not free, and the client must learn that.
                    other => other,
                };
                Outcome::Atomic(AtomicOutcome { items, culprit: Some(culprit) })
            }
        }
    }

    /// What the operation would be answered now. Of operations on money only: those on accounts are simple enough to read.
    pub(super) fn dry_run(&mut self, operation: &Operation) -> Outcome {
        if !matches!(operation, Operation::Transfer(_) | Operation::PlaceHold(_) | Operation::Decide(_)) {
            return Outcome::Illegal("only transfers, holds and verdicts have a dry run".to_owned());
        }
        // Its id may be in use, and only the careful way knows.
        self.unsure = true;
        let before = self.before(operation);
        let outcome = self.apply(Request::UNORDERED, operation);
        self.take_back(before);
        outcome
    }

    /// Executes the operation unless it is refused. A refusal is answered and not stored.
    pub(super) fn or_nothing(&mut self, operation: &Operation) -> Outcome {
        if !matches!(operation, Operation::Transfer(_) | Operation::Decide(_)) {
            return Outcome::Illegal(
                "only transfers and verdicts can be executed without storing a refusal".to_owned(),
            );
        }
        let before = self.before(operation);
        let outcome = self.apply(Request::UNORDERED, operation);
        let refused = match &outcome {
            Outcome::Transfer(TransferOutcome::Done(TransferAnswer {
                state: TransferState::Rejected { refused, .. },
                replayed: false,
                ..
            })) => Some(Outcome::Transfer(TransferOutcome::NotStored(*refused))),
            // Nothing was reserved, and the register would refuse.
            Outcome::Transfer(TransferOutcome::Done(TransferAnswer {
                presumed: Some(refused),
                replayed: false,
                ..
            })) => Some(Outcome::Transfer(TransferOutcome::NotStored(*refused))),
            Outcome::Decided(Decided { verdict: Verdict::Refused(_), replayed: false, .. }) => Some(outcome.clone()),
            _ => None,
        };
        let Some(refused) = refused else { return outcome };
        self.take_back(before);
        // Nothing is stored: no id will collide if the operation took effect before.
        self.unsure = true;
        refused
    }

    /// Where the batch stands before an operation of one transfer, hold or verdict.
    fn before(&mut self, operation: &Operation) -> Checkpoint {
        let mut touched = Vec::new();
        operation.for_each_account(|id| touched.push(id.clone()));
        if let Some(asset) = operation.in_transit_asset() {
            touched.push(self.accounts.in_transit_id(asset));
        }
        let mut before = self.checkpoint(touched.iter());
        before.hold = operation.hold().map(|key| (key.clone(), self.holds.get(&key).cloned()));
        before.original = operation.original().map(|key| (key.clone(), self.originals.get(&key).cloned()));
        before
    }

    fn checkpoint<'i>(&self, touched: impl Iterator<Item = &'i AccountId>) -> Checkpoint {
        Checkpoint {
            accounts: self.accounts.snapshot(touched),
            position: self.effects.next_position,
            bookings: self.effects.bookings.len(),
            // An atomic group holds payments only.
            hold: None,
            original: None,
        }
    }

    fn take_back(&mut self, before: Checkpoint) {
        self.accounts.restore(before.accounts);
        self.effects.next_position = before.position;
        let taken_back = self.effects.bookings.split_off(before.bookings);
        for (booking, key) in taken_back.iter().filter_map(|booking| Some((booking, booking.key()?))) {
            let role = booking.kind.role();
            self.forget_under_way(booking);
            if role == Role::Transfer {
                self.sagas.remove(&key);
            }
            if let Some(known) = self.prior.stored_mut() {
                match role {
                    Role::Transfer => drop(known.transfers.remove(&key)),
                    Role::Register => drop(known.registers.remove(&key)),
                    Role::None | Role::Settlement | Role::Hold | Role::HoldEnd => {}
                }
            }
        }
        if let Some((key, known)) = before.hold {
            put_back(&mut self.holds, key, known);
        }
        if let Some((key, known)) = before.original {
            put_back(&mut self.originals, key, known);
        }
    }
}

fn put_back<K: Eq + Hash, V>(known: &mut HashMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(before) => drop(known.insert(key, before)),
        None => drop(known.remove(&key)),
    }
}

fn took_effect(outcome: &TransferOutcome) -> bool {
    matches!(
        outcome,
        TransferOutcome::Done(TransferAnswer { state: TransferState::Pending | TransferState::Posted { .. }, .. })
    )
}

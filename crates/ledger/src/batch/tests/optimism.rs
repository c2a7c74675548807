//! The optimistic way against the careful one: whatever the database would not object to has to come out the same.
//!
//! Random batches are decided both ways on what a small database in memory holds. Requests come again, with and without
//! having taken effect, in the same batch and in later ones. The database objects as PostgreSQL does: when (id, payer, role)
//! of a booking is in the journal, or in the batch before it.

use std::collections::hash_map::Entry::{Occupied, Vacant};

use super::*;
use crate::in_memory::{Journal, needed};

const RUNS: u64 = 300;
const BATCHES: usize = 60;
const SECOND_US: i64 = 1_000_000;

#[test]
fn what_the_database_does_not_object_to_was_decided_with_care() {
    let mut ends = BTreeMap::new();
    for seed in 0..RUNS {
        let mut world = World::new(seed);
        for batch in 0..BATCHES {
            let operations = world.batch();
            let careful = world.decide(Prior::Loaded(world.journal.stored(operations.iter())), &operations);
            let suspected = world.suspected(&operations);
            for prior in [Prior::Unknown, Prior::Suspected(suspected)] {
                let optimistic = world.decide(prior, &operations);
                let objection = world.objection(&optimistic);
                *ends.entry(objection.clone()).or_insert(0_u32) += 1;
                if objection.is_none() {
                    assert_eq!(optimistic.outcomes, careful.outcomes, "seed {seed}, batch {batch}: {operations:#?}");
                    assert_eq!(optimistic.accounts, careful.accounts, "seed {seed}, batch {batch}: {operations:#?}");
                    let (written, expected) = (&optimistic.effects.bookings, &careful.effects.bookings);
                    assert_eq!(written, expected, "seed {seed}, batch {batch}: {operations:#?}");
                }
            }
            world.check(&operations, &careful.outcomes, seed);
            world.write(careful);
        }
    }
    // A database that always objects, or never does, would prove nothing.
    let answered = [Role::Transfer, Role::Register].map(|role| format!("{role:?} was answered before"));
    let objections = ["not sure", answered[0].as_str(), answered[1].as_str()];
    assert!(objections.iter().all(|objection| ends.contains_key(&Some((*objection).to_owned()))), "{ends:?}");
    assert!(ends[&None] > 1_000, "{ends:?}");
}

/// A batch as it was decided.
struct Decision {
    outcomes: Vec<Outcome>,
    accounts: BTreeMap<AccountId, Account>,
    effects: Effects,
    sure: bool,
}

/// A shard's database, and clients that ask for this and that.
struct World {
    journal: Journal,
    /// The fold of the journal.
    accounts: BTreeMap<AccountId, Account>,
    openings: HashMap<AccountId, CreateAccount>,
    /// Operations, to be asked for again, and by their words the answers they got.
    asked: Vec<Operation>,
    answers: HashMap<String, Outcome>,
    /// Reversals that were reserved elsewhere.
    reserves: u128,
    now_us: i64,
    random: u64,
}

/// Accounts of this shard, and one that lives elsewhere.
const HERE: [&str; 4] = ["bank", "alice", "bob", "shop"];
const ELSEWHERE: &str = "elsewhere";

impl World {
    fn new(seed: u64) -> Self {
        let shard = Shard::with(&HERE);
        let there = || HERE.iter().map(|name| shard.accounts.get(&id(name)).unwrap());
        Self {
            accounts: there().map(|account| (account.id.clone(), account.clone())).collect(),
            openings: there().map(|account| (account.id.clone(), CreateAccount::like(account))).collect(),
            journal: shard.journal,
            asked: Vec::new(),
            answers: HashMap::new(),
            reserves: 0,
            now_us: T0,
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d,
        }
    }

    // === requests ===

    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.random >> 33) % bound as u64).unwrap()
    }

    fn number(&mut self) -> u128 {
        1 + self.below(12) as u128
    }

    fn amount(&mut self) -> i64 {
        1 + i64::try_from(self.below(40)).unwrap()
    }

    fn batch(&mut self) -> Vec<Operation> {
        self.now_us += i64::try_from(self.below(3)).unwrap() * SECOND_US / 2;
        let mut operations: Vec<Operation> = Vec::new();
        for _ in 0..=self.below(5) {
            let again = self.below(100);
            let operation = match again {
                0..20 if !self.asked.is_empty() => {
                    let n = self.below(self.asked.len());
                    self.asked[n].clone()
                }
                20..30 if !operations.is_empty() => {
                    let n = self.below(operations.len());
                    operations[n].clone()
                }
                _ => self.operation(),
            };
            operations.push(operation);
        }
        operations
    }

    /// What the database holds under about half of the ids.
    fn suspected(&mut self, operations: &[Operation]) -> Stored {
        let mut stored = self.journal.stored(operations.iter());
        stored.transfers.retain(|_, _| self.below(2) == 0);
        stored.registers.retain(|_, _| self.below(2) == 0);
        stored
    }

    fn operation(&mut self) -> Operation {
        match self.below(13) {
            0 | 1 => Operation::Transfer(self.payment()),
            2 => self.place(),
            3..=5 => self.capture().map_or_else(|| self.place(), Operation::Transfer),
            6 => self.end_of_hold(),
            7 | 8 => self.settlement().unwrap_or_else(|| Operation::Transfer(self.payment())),
            9 => self.reversal().unwrap_or_else(|| Operation::Transfer(self.payment())),
            10 => self.change_of_account(),
            11 => Operation::CreateAccount(self.creation()),
            _ => match self.operation() {
                it @ (Operation::Transfer(_) | Operation::PlaceHold(_) | Operation::Decide(_)) => {
                    Operation::DryRun(Box::new(it))
                }
                other => other,
            },
        }
    }

    fn payment(&mut self) -> Transfer {
        let debit = HERE[self.below(3)];
        let (number, amount) = (self.number(), self.amount());
        if self.below(2) == 0 {
            return reserve(number, debit, ELSEWHERE, amount);
        }
        let credit = if debit == "alice" { "shop" } else { "alice" };
        transfer(number, debit, credit, amount)
    }

    fn place(&mut self) -> Operation {
        Operation::PlaceHold(PlaceHold {
            ordered_by: None,
            id: TransferId(Uuid::from_u128(1 + self.below(4) as u128)),
            debit: id(["alice", "bob"][self.below(2)]),
            credit: id(["shop", ELSEWHERE][self.below(2)]),
            asset: usd(),
            amount: self.amount(),
            expires_in_s: [None, Some(1), Some(2)][self.below(3)],
            metadata: Metadata::empty(),
        })
    }

    fn some_hold(&mut self) -> Option<(HoldKey, Hold)> {
        let mut keys = self.journal.keys(Role::Hold);
        let key = (!keys.is_empty()).then(|| keys.swap_remove(self.below(keys.len())))?;
        let hold = self.journal.hold(&key)?;
        Some((key, hold))
    }

    /// As a router makes it of a hold it has read.
    fn capture(&mut self) -> Option<Transfer> {
        let (key, hold) = self.some_hold()?;
        let amount = (self.below(3) > 0).then(|| self.amount());
        let finalize = self.below(2) == 0;
        Some(Transfer {
            ordered_by: None,
            id: TransferId(Uuid::from_u128(self.number())),
            debit: key.debit,
            credit: hold.credit.clone(),
            asset: usd(),
            amount: amount.unwrap_or(0),
            metadata: hold.metadata,
            purpose: Purpose::Capture { hold: key.id, whole: amount.is_none(), finalize },
            cross_shard: hold.credit.as_str() == ELSEWHERE,
            defer_insufficient: false,
            defer_limited: false,
        })
    }

    fn end_of_hold(&mut self) -> Operation {
        let key = match self.some_hold() {
            Some((key, _)) => key,
            None => HoldKey { id: TransferId(Uuid::from_u128(1)), debit: id("alice") },
        };
        if self.below(2) == 0 { Operation::ReleaseHold(key.into()) } else { Operation::ExpireHold(key) }
    }

    fn some_transfer(&mut self, wanted: impl Fn(&StoredTransfer) -> bool) -> Option<(TransferKey, StoredTransfer)> {
        let keys = self.journal.keys(Role::Transfer).into_iter();
        let found = keys.filter_map(|key| Some((self.journal.transfer(&key)?, key)));
        let mut found: Vec<_> =
            found.filter(|(stored, _)| wanted(stored)).map(|(stored, key)| (key, stored)).collect();
        (!found.is_empty()).then(|| found.swap_remove(self.below(found.len())))
    }

    /// Of a saga under way or, by a second coordinator, of one that has ended; always with the register's one verdict.
    fn settlement(&mut self) -> Option<Operation> {
        let (key, stored) = self.some_transfer(|stored| stored.cross_shard && stored.state.code() != 3)?;
        let verdict = match stored.presumed {
            Some(refused) => Verdict::Refused(refused),
            None if key.id.0.as_u128().is_multiple_of(2) => Verdict::Credited,
            None => Verdict::Refused(Refused::credit(Refusal::AccountClosed)),
        };
        Some(Operation::Settle(Settle {
            id: key.id,
            debit: key.debit,
            credit: stored.credit,
            asset: usd(),
            amount: stored.amount,
            purpose: stored.purpose,
            reserved: stored.presumed.is_none(),
            verdict,
        }))
    }

    /// Of a transfer from here: where it went elsewhere, the verdict on its reversal is given here.
    fn reversal(&mut self) -> Option<Operation> {
        let (key, original) = self.some_transfer(|stored| stored.state != TransferState::Pending)?;
        let whole = self.below(2) == 0;
        let left = original.amount - self.journal.original(&key)?.reversed;
        let amount = if whole { left } else { self.amount() };
        let purpose = Purpose::Reversal { of: key.id, whole };
        if original.credit.as_str() != ELSEWHERE {
            let number = 100 + self.number();
            return Some(Operation::Transfer(Transfer {
                purpose,
                ..transfer(number, original.credit.as_str(), key.debit.as_str(), amount)
            }));
        }
        if amount == 0 {
            return None;
        }
        // Its reserve fixed its content, so its id stands for one.
        self.reserves += 1;
        Some(Operation::Decide(Decide {
            ordered_by: None,
            id: TransferId(Uuid::from_u128(1_000 + self.reserves)),
            debit: id(ELSEWHERE),
            credit: key.debit,
            asset: usd(),
            amount,
            purpose,
            presumed: None,
            defer_limited: false,
            patient: false,
        }))
    }

    fn change_of_account(&mut self) -> Operation {
        let status = [AccountStatus::Open, AccountStatus::Open, AccountStatus::Frozen, AccountStatus::Closed];
        let changes_limit = self.below(3) == 0;
        Operation::UpdateAccount(UpdateAccount {
            ordered_by: None,
            id: id(["alice", "bob", "shop"][self.below(3)]),
            status: (!changes_limit).then(|| status[self.below(4)]),
            overdraft: None,
            max_balance: changes_limit.then(|| self.max_balance()),
            metadata: None,
        })
    }

    /// Of an account that is there: with what it was opened with, or another limit.
    fn creation(&mut self) -> CreateAccount {
        let account = id(["alice", "bob", "shop"][self.below(3)]);
        let opening = self.openings[&account].clone();
        if self.below(2) == 0 { opening } else { CreateAccount { max_balance: self.max_balance(), ..opening } }
    }

    fn max_balance(&mut self) -> Limit {
        [Limit::Unlimited, Limit::AtMost(1_000), Limit::AtMost(2_000)][self.below(3)]
    }

    // === the lane ===

    fn decide(&self, prior: Prior, operations: &[Operation]) -> Decision {
        let mut accounts = Accounts::with_capacity(1_000);
        for id in operations.iter().flat_map(needed) {
            accounts.learn(id.clone(), self.accounts.get(&id).cloned());
        }
        let named = self.journal.named(&accounts, operations.iter());
        let fence = |_: &AccountId| Ok(());
        let mut batch = Batch::new(&mut accounts, prior, named, &fence, self.now_us, self.journal.next_position());
        let outcomes = operations.iter().map(|operation| batch.apply(Request::UNORDERED, operation)).collect();
        let sure = batch.is_sure();
        let effects = batch.finish();
        let (changed, _) = accounts.finish_batch();
        let accounts = changed.into_iter().map(|changed| (changed.after.id.clone(), changed.after)).collect();
        Decision { outcomes, accounts, effects, sure }
    }

    /// Why the batch is decided again, if it is.
    fn objection(&self, decision: &Decision) -> Option<String> {
        if !decision.sure {
            return Some("not sure".to_owned());
        }
        let answered = self.journal.objects_to(&decision.effects)?;
        Some(format!("{answered:?} was answered before"))
    }

    fn write(&mut self, decision: Decision) {
        self.journal.append(decision.effects);
        let folded = self.journal.fold();
        for (id, account) in &decision.accounts {
            assert_eq!(folded.accounts.get(id), Some(account), "{id} was decided to be other than its fold");
        }
        self.accounts = folded.accounts;
    }

    /// Nothing is illegal, and a repeated operation gets the same answer.
    fn check(&mut self, operations: &[Operation], outcomes: &[Outcome], seed: u64) {
        for (operation, outcome) in operations.iter().zip(outcomes) {
            assert!(!matches!(outcome, Outcome::Illegal(_)), "seed {seed}: {operation:?}: {outcome:?}");
            if let Operation::CreateAccount(create) = operation {
                let replayed = matches!(outcome, Outcome::Account(AccountOutcome::Replayed(_)));
                let as_opened = self.openings[&create.id] == *create;
                assert!(replayed || !as_opened, "seed {seed}: {operation:?}: {outcome:?}");
            }
            if matches!(operation, Operation::DryRun(_) | Operation::UpdateAccount(_)) {
                continue;
            }
            let Some(now) = essence(outcome) else { continue };
            match self.answers.entry(format!("{operation:?}")) {
                Occupied(before) => {
                    let before = before.get();
                    assert_eq!(essence(before), Some(now), "seed {seed}: {operation:?}, first {before:?}");
                }
                Vacant(free) => {
                    free.insert(outcome.clone());
                    self.asked.push(operation.clone());
                }
            }
        }
    }
}

/// The part of an answer that must never change; `None` for an answer that may change.
fn essence(outcome: &Outcome) -> Option<String> {
    Some(match outcome {
        Outcome::Transfer(TransferOutcome::Done(answer)) if answer.state == TransferState::Pending => {
            return None;
        }
        Outcome::Transfer(TransferOutcome::Done(answer)) => {
            format!("{:?}", TransferAnswer { replayed: false, ..answer.clone() })
        }
        Outcome::Hold(HoldOutcome::Placed(answer)) => format!("{:?}", (answer.refused, answer.debit_after)),
        Outcome::Hold(HoldOutcome::Released { hold, .. }) => format!("{hold:?}"),
        Outcome::Hold(HoldOutcome::Refused(refused)) => format!("{refused:?}"),
        Outcome::Decided(decided) => format!("{:?}", decided.verdict),
        // Its balances are the reserve's unless it says otherwise.
        Outcome::Settled(settled) => format!("{:?}", settled.state),
        _ => return None,
    })
}

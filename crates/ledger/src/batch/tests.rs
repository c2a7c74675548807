use uuid::Uuid;

use super::*;
use crate::{
    AccountStatus, Hold, HoldStatus, Side,
    journal::detail,
    operation::{Decide, PlaceHold, Purpose, Settle, UpdateAccount, Verdict},
    outcome::{AccountOutcome, AtomicOutcome, HoldOutcome, TransferAnswer, TransferOutcome, TransferState},
};

mod holds;
mod openings;
mod optimism;
mod reversals;

const T0: i64 = 1_000_000;

/// A shard in memory: what the lane and PostgreSQL are in production.
struct Shard {
    accounts: Accounts,
    stored: Stored,
    holds: HashMap<HoldKey, Hold>,
    reversed: HashMap<TransferKey, i64>,
    now_us: i64,
    next: Position,
    entries: Vec<Entry>,
}

fn usd() -> AssetCode {
    AssetCode::new("USD").unwrap()
}

fn id(text: &str) -> AccountId {
    AccountId::client(text).unwrap()
}

fn transfer(n: u128, debit: &str, credit: &str, amount: i64) -> Transfer {
    Transfer {
        id: TransferId(Uuid::from_u128(n)),
        debit: id(debit),
        credit: id(credit),
        asset: usd(),
        amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
        cross_shard: false,
        defer_insufficient: false,
        defer_limited: false,
    }
}

fn reserve(n: u128, debit: &str, credit: &str, amount: i64) -> Transfer {
    Transfer { cross_shard: true, ..transfer(n, debit, credit, amount) }
}

fn decide(of: &Transfer) -> Operation {
    Operation::Decide(Decide {
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        presumed: None,
        defer_limited: false,
    })
}

fn cancel(of: &Transfer) -> Operation {
    match decide(of) {
        Operation::Decide(decide) => {
            Operation::Decide(Decide { presumed: Some(Refused::whole(Refusal::Cancelled)), ..decide })
        }
        other => other,
    }
}

fn settle(of: &Transfer, verdict: Verdict) -> Operation {
    Operation::Settle(Settle {
        id: of.id,
        debit: of.debit.clone(),
        credit: of.credit.clone(),
        asset: of.asset,
        amount: of.amount,
        purpose: of.purpose,
        reserved: true,
        verdict,
    })
}

impl Shard {
    /// Accounts by name: a leading `bank` may go negative without limit.
    fn with(names: &[&str]) -> Self {
        let mut shard = Self {
            accounts: Accounts::with_capacity(1000),
            stored: Stored::default(),
            holds: HashMap::new(),
            reversed: HashMap::new(),
            now_us: T0,
            next: Position::first_of(0),
            entries: Vec::new(),
        };
        for name in names {
            let overdraft = if name.starts_with("bank") { Limit::Unlimited } else { Limit::ZERO };
            let create = CreateAccount {
                id: id(name),
                asset: usd(),
                overdraft,
                max_balance: Limit::Unlimited,
                metadata: Metadata::empty(),
            };
            shard.run(&[Operation::CreateAccount(create)]);
        }
        shard
    }

    fn run(&mut self, operations: &[Operation]) -> Vec<Outcome> {
        self.run_in_group(0, operations)
    }

    fn run_in_group(&mut self, group: u64, operations: &[Operation]) -> Vec<Outcome> {
        for operation in operations {
            let mut needed = Vec::new();
            operation.for_each_account(|id| needed.push(id.clone()));
            needed.extend(operation.in_transit_asset().map(|asset| self.accounts.in_transit_id(asset)));
            for id in needed {
                if !self.accounts.is_known(&id) {
                    self.accounts.learn(id, None);
                }
            }
        }
        let request = Request { order_group: group, deadline_us: self.now_us + 1 };
        let fence = |_: &AccountId| Ok(());
        let prior = Prior::Loaded(std::mem::take(&mut self.stored));
        let named = self.named(operations, &prior);
        let mut batch = Batch::new(&mut self.accounts, prior, named, &fence, self.now_us, self.next);
        let outcomes = operations.iter().map(|operation| batch.apply(request, operation)).collect();
        if let Prior::Loaded(stored) = std::mem::replace(&mut batch.prior, Prior::Unknown) {
            self.stored = stored;
        }
        let effects = batch.finish();
        effects.check_balanced().unwrap();
        self.holds.extend(effects.holds.into_iter().map(|new| (new.key, new.stored)));
        self.holds.extend(effects.changed_holds);
        for Reversed { original, before, after } in effects.reversed {
            assert_eq!(self.reversed.insert(original, after).unwrap_or(0), before);
        }
        self.next = effects.next_position;
        self.entries.extend(effects.entries);
        self.accounts.committed();
        outcomes
    }

    /// What the lane loads besides accounts and ids.
    fn named(&self, operations: &[Operation], prior: &Prior) -> Named {
        let Prior::Loaded(stored) = prior else { panic!("tests load what is stored") };
        let mut named = Named::default();
        let Openings { known, to_load } = Openings::of(&self.accounts, operations.iter());
        named.openings = known;
        named.openings.extend(to_load.into_iter().filter_map(|account| self.opening(account)));
        for operation in operations {
            if let Some(key) = operation.hold()
                && let Some(hold) = self.holds.get(&key)
            {
                named.holds.insert(key, hold.clone());
            }
            if let Some(key) = operation.original()
                && let Some(StoredTransfer { credit, asset, amount, state, .. }) = stored.transfers.get(&key).cloned()
            {
                let reversed = self.reversed.get(&key).copied().unwrap_or(0);
                named.originals.insert(key, Original { credit, asset, amount, state, reversed });
            }
            if let Some(account) = operation.closes() {
                let pending = |(key, it): (&TransferKey, &StoredTransfer)| {
                    (key.debit == *account && it.state == TransferState::Pending).then(|| account.clone())
                };
                named.in_flight.extend(stored.transfers.iter().filter_map(pending));
            }
        }
        named
    }

    /// From the end of the account's chain.
    fn opening(&self, account: &Account) -> Option<(AccountId, CreateAccount)> {
        let first =
            self.entries.iter().find(|entry| entry.account == account.id && entry.previous == Position::NONE)?;
        let opening = detail::read_opening(&account.id, first.detail.as_ref().unwrap()).unwrap();
        Some((account.id.clone(), opening))
    }

    fn held(&self, name: &str) -> i64 {
        self.accounts.get(&id(name)).unwrap().held
    }

    fn one(&mut self, operation: Operation) -> Outcome {
        self.run(&[operation]).remove(0)
    }

    fn posted(&self, name: &str) -> i64 {
        self.accounts.get(&id(name)).unwrap().posted
    }

    fn in_transit(&self) -> i64 {
        self.accounts.get(&AccountId::in_transit(usd())).map_or(0, |a| a.posted)
    }
}

fn refusal(outcome: &Outcome) -> Option<Refused> {
    match outcome {
        Outcome::Transfer(TransferOutcome::Done(TransferAnswer {
            state: TransferState::Rejected { refused, .. },
            ..
        })) => Some(*refused),
        _ => None,
    }
}

fn is_posted(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Transfer(TransferOutcome::Done(TransferAnswer { state: TransferState::Posted { .. }, .. }))
    )
}

#[test]
fn a_local_transfer_moves_money_and_chains_entries() {
    let mut shard = Shard::with(&["bank", "alice"]);
    let outcome = shard.one(Operation::Transfer(transfer(1, "bank", "alice", 100)));
    assert!(is_posted(&outcome));
    assert_eq!((shard.posted("bank"), shard.posted("alice")), (-100, 100));
    for name in ["bank", "alice"] {
        let account = shard.accounts.get(&id(name)).unwrap();
        let mut at = account.head;
        for version in (1..=account.version).rev() {
            let entry = shard.entries.iter().find(|e| e.position == at).unwrap();
            assert_eq!((entry.account.as_str(), entry.version), (name, version));
            at = entry.previous;
        }
        assert_eq!(at, Position::NONE);
    }
}

#[test]
fn a_replay_repeats_the_answer_and_a_changed_field_is_named() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let first = transfer(1, "bank", "alice", 100);
    let once = shard.one(Operation::Transfer(first.clone()));
    let twice = shard.one(Operation::Transfer(first.clone()));
    let (Outcome::Transfer(TransferOutcome::Done(a)), Outcome::Transfer(TransferOutcome::Done(b))) = (once, twice)
    else {
        panic!("both are answered")
    };
    assert_eq!(TransferAnswer { replayed: true, ..a }, b);
    assert_eq!(shard.posted("alice"), 100);
    let changed = [
        ("credit", Transfer { credit: id("bob"), ..first.clone() }),
        ("amount", Transfer { amount: 101, ..first.clone() }),
        ("asset", Transfer { asset: AssetCode::new("EUR").unwrap(), ..first.clone() }),
        ("metadata", Transfer { metadata: Metadata::from_canonical("{\"a\":\"b\"}"), ..first.clone() }),
    ];
    for (field, changed) in changed {
        let outcome = shard.one(Operation::Transfer(changed));
        assert_eq!(outcome, Outcome::Transfer(TransferOutcome::Mismatch { field }));
    }
    // Another debit account is another transfer.
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(1, "alice", "bob", 1)))));
}

#[test]
fn refusals_are_frozen_and_an_unknown_debit_leaves_the_id_free() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let poor = transfer(1, "alice", "bob", 5);
    let refused = Some(Refused::debit(Refusal::InsufficientFunds));
    assert_eq!(refusal(&shard.one(Operation::Transfer(poor.clone()))), refused);
    shard.one(Operation::Transfer(transfer(2, "bank", "alice", 100)));
    assert_eq!(refusal(&shard.one(Operation::Transfer(poor))), refused);
    let unknown = transfer(3, "carol", "bob", 5);
    let outcome = shard.one(Operation::Transfer(unknown.clone()));
    assert_eq!(outcome, Outcome::Transfer(TransferOutcome::DebitNotFound));
    assert!(!shard.stored.transfers.contains_key(&unknown.key()));
    let outcome = shard.one(Operation::Transfer(transfer(4, "alice", "carol", 5)));
    assert_eq!(refusal(&outcome), Some(Refused::credit(Refusal::AccountNotFound)));
}

#[test]
fn a_saga_is_credited_once_and_a_late_credit_after_cancel_does_nothing() {
    let mut source = Shard::with(&["bank"]);
    let mut destination = Shard::with(&["alice"]);
    let paid = reserve(1, "bank", "alice", 70);
    source.one(Operation::Transfer(paid.clone()));
    assert_eq!((source.posted("bank"), source.in_transit()), (-70, 70));
    for replayed in [false, true] {
        let Outcome::Decided(decided) = destination.one(decide(&paid)) else { panic!("a verdict") };
        assert_eq!((decided.verdict, decided.replayed), (Verdict::Credited, replayed));
    }
    assert_eq!((destination.posted("alice"), destination.in_transit()), (70, -70));
    // Too late to cancel: the verdict stands.
    let Outcome::Decided(decided) = destination.one(cancel(&paid)) else { panic!("a verdict") };
    assert_eq!(decided.verdict, Verdict::Credited);
    for replayed in [false, true] {
        let Outcome::Settled(settled) = source.one(settle(&paid, Verdict::Credited)) else { panic!("settled") };
        assert_eq!((settled.state.as_str(), settled.replayed), ("posted", replayed));
    }
    assert_eq!(source.posted("bank"), -70);

    let given_up = reserve(2, "bank", "alice", 5);
    source.one(Operation::Transfer(given_up.clone()));
    destination.one(cancel(&given_up));
    let Outcome::Decided(late) = destination.one(decide(&given_up)) else { panic!("a verdict") };
    assert_eq!(late.verdict, Verdict::Refused(Refused::whole(Refusal::Cancelled)));
    assert_eq!(destination.posted("alice"), 70);
    for _ in 0..2 {
        source.one(settle(&given_up, late.verdict));
        assert_eq!((source.posted("bank"), source.in_transit()), (-70, 70));
    }
    let opposite = source.one(settle(&given_up, Verdict::Credited));
    assert!(matches!(opposite, Outcome::Illegal(_)), "{opposite:?}");
}

#[test]
fn an_atomic_group_leaves_nothing_behind_when_one_item_fails() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    let entries = shard.entries.len();
    let group =
        vec![transfer(1, "bank", "alice", 10), transfer(2, "alice", "bob", 11), transfer(3, "bank", "bob", 1)];
    let outcome = shard.one(Operation::AtomicTransfers(group.clone()));
    let failed = TransferOutcome::NotStored(Refused::whole(Refusal::BatchFailed));
    let culprit = TransferOutcome::NotStored(Refused::debit(Refusal::InsufficientFunds));
    let items = vec![failed.clone(), culprit, failed];
    assert_eq!(outcome, Outcome::Atomic(AtomicOutcome { items, culprit: Some(1) }));
    assert_eq!((shard.posted("alice"), shard.entries.len()), (0, entries));
    assert!(shard.stored.transfers.is_empty());
    // The ids stayed free, and the accounts as they were.
    let outcome = shard.one(Operation::AtomicTransfers(vec![group[0].clone(), transfer(2, "alice", "bob", 10)]));
    assert!(matches!(outcome, Outcome::Atomic(AtomicOutcome { culprit: None, .. })), "{outcome:?}");
    assert_eq!((shard.posted("alice"), shard.posted("bob")), (0, 10));
}

#[test]
fn within_a_request_what_depends_on_a_deferred_item_is_deferred_too() {
    let mut shard = Shard::with(&["bank", "alice", "bob", "carol"]);
    let waits = Transfer { defer_insufficient: true, ..transfer(1, "alice", "bob", 10) };
    let operations = [
        Operation::Transfer(waits),
        Operation::Transfer(transfer(2, "bank", "alice", 10)),
        Operation::Transfer(transfer(3, "bank", "carol", 10)),
    ];
    let outcomes = shard.run_in_group(7, &operations);
    assert_eq!(outcomes[0], Outcome::Deferred);
    assert_eq!(outcomes[1], Outcome::Deferred, "it would give alice the money that item 1 was to be judged without");
    // bank is now waited for as well, being part of item 2.
    assert_eq!(outcomes[2], Outcome::Deferred);
    assert!(shard.stored.transfers.is_empty());
}

#[test]
fn credits_that_may_be_out_of_turn_wait_only_where_there_is_a_limit() {
    for limit in [Limit::Unlimited, Limit::AtMost(1_000)] {
        let mut shard = Shard::with(&["bank", "alice"]);
        let update = UpdateAccount {
            id: id("alice"),
            status: None,
            overdraft: None,
            max_balance: Some(limit),
            metadata: None,
        };
        shard.one(Operation::UpdateAccount(update));
        let waits = limit != Limit::Unlimited;
        let local = Transfer { defer_limited: true, ..transfer(1, "bank", "alice", 5) };
        let outcome = &shard.run_in_group(7, &[Operation::Transfer(local)])[0];
        assert_eq!(*outcome == Outcome::Deferred, waits, "{outcome:?}");
        let Operation::Decide(ask) = decide(&reserve(2, "bob", "alice", 5)) else { panic!("decide") };
        let outcome = shard.one(Operation::Decide(Decide { defer_limited: true, ..ask }));
        assert_eq!(outcome == Outcome::Deferred, waits, "{outcome:?}");
        assert_eq!(shard.posted("alice"), if waits { 0 } else { 10 });
    }
}

#[test]
fn a_refusal_of_the_credit_side_is_written_to_the_register() {
    let mut destination = Shard::with(&["alice"]);
    let paid = reserve(1, "bank", "nobody", 70);
    let Outcome::Decided(decided) = destination.one(decide(&paid)) else { panic!("a verdict") };
    let Verdict::Refused(refused) = decided.verdict else { panic!("refused") };
    assert_eq!((refused.refusal, refused.side), (Refusal::AccountNotFound, Some(Side::Credit)));
}

#[test]
fn unlimited_accounts_cannot_leave_the_range_of_the_ledger() {
    let mut shard = Shard::with(&["bank", "alice", "bob"]);
    assert!(is_posted(&shard.one(Operation::Transfer(transfer(1, "bank", "alice", i64::MAX)))));
    let over = shard.one(Operation::Transfer(transfer(2, "bank", "bob", i64::MAX)));
    assert_eq!(refusal(&over), Some(Refused::debit(Refusal::BalanceOverflow)));
}

#[test]
fn a_full_in_transit_account_refuses_instead_of_breaking_the_saga() {
    let mut source = Shard::with(&["bank", "alice"]);
    assert!(refusal(&source.one(Operation::Transfer(reserve(1, "bank", "bob", i64::MAX)))).is_none());
    let over = source.one(Operation::Transfer(reserve(2, "alice", "bob", 1)));
    assert_eq!(
        refusal(&over).map(|refused| refused.refusal),
        Some(Refusal::InsufficientFunds),
        "the payer comes first"
    );
    source.run(&[Operation::Transfer(transfer(3, "bank", "alice", 1))]);
    // Presumed: the credit side, which lives elsewhere, may have a refusal that goes first.
    let Outcome::Transfer(TransferOutcome::Done(over)) =
        source.one(Operation::Transfer(reserve(4, "alice", "bob", 1)))
    else {
        panic!("not stored")
    };
    assert_eq!((over.state, over.presumed), (TransferState::Pending, Some(Refused::whole(Refusal::BalanceOverflow))));
    assert_eq!(source.posted("alice"), 1);

    let mut destination = Shard::with(&["bank", "alice"]);
    let verdict = |outcome: &Outcome| match outcome {
        Outcome::Decided(decided) => decided.verdict,
        other => panic!("no verdict: {other:?}"),
    };
    // The least a balance can be is one more than the most.
    for (n, payee, amount) in [(5, "alice", i64::MAX), (6, "bank", 1)] {
        assert_eq!(verdict(&destination.one(decide(&reserve(n, "carol", payee, amount)))), Verdict::Credited);
    }
    let refused = verdict(&destination.one(decide(&reserve(7, "carol", "bank", 1))));
    assert_eq!(refused, Verdict::Refused(Refused::whole(Refusal::BalanceOverflow)));
}

//! Whether a serial order of the clients' orders explains every answer of a run, and what each account has at the end.
//!
//! The order keeps real time. The rules are those of `crates/model`, which shares no code with the ledger. A group is one request. An
//! order whose outcome its client does not know may have taken effect at any time after it was sent, or not at all. The end of a hold's
//! time may take effect at any time from then on.

use std::collections::BTreeMap;

use ledger::{
    Account, AccountId, Refusal, Refused, TransferId,
    operation::{PlaceHold, Purpose},
    outcome::TransferState,
};
use model::{
    Asset, Capture, Ledger, Metadata, Named, NewAccount, NewHold, Payment, Release, Request, Reversal,
    linearizability::{
        Call, End, Verdict, check,
        ledger::{Books, DecisionsAndExpiries, Event, Said, SaidOfItem},
        parts,
    },
};
use router::simulation::NewTransfer;

use crate::{
    cluster::{Accounts, MAX_BALANCE},
    record::{Answer, Failure, Group, Moment, Order, Record, short},
    trace,
};

/// A search ends after so many states, and is undecided then.
const MOST_STATES: usize = 10_000;

type EventCall = Call<Event, Said>;

/// What the search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialOrder {
    Exists,
    /// Some of the calls are too many, or their orders are.
    Undecided,
    Impossible(String),
}

/// The accounts of each shard with what they have before the first order.
pub struct Beginning<'c> {
    pub accounts: &'c [Accounts],
    pub balances: &'c BTreeMap<AccountId, i64>,
}

impl Beginning<'_> {
    fn books(&self) -> Books {
        let ids = |Accounts { bank, limited, capped }: &Accounts| {
            let unlimited = [(bank.clone(), None, None)];
            let limited = limited.iter().map(|id| (id.clone(), Some(0), None));
            let capped = capped.iter().map(|id| (id.clone(), Some(0), Some(MAX_BALANCE)));
            unlimited.into_iter().chain(limited).chain(capped).collect::<Vec<_>>()
        };
        let shards =
            || self.accounts.iter().enumerate().map(|(shard, accounts)| (format!("s{shard}"), ids(accounts)));
        let shard_of = shards().flat_map(|(shard, ids)| {
            ids.into_iter().map(move |(id, ..)| (id.to_string(), shard.clone())).collect::<Vec<_>>()
        });
        let mut ledger = Ledger::new(shard_of.collect());
        for (id, overdraft, max_balance) in shards().flat_map(|(_, ids)| ids) {
            let (id, asset, metadata) = (id.to_string(), Asset::USD, Metadata::new());
            ledger.apply(&Request::OpenAccount(NewAccount { id, asset, overdraft, max_balance, metadata }));
        }
        for Accounts { bank, .. } in self.accounts {
            let paid = self.balances.iter().filter(|(id, amount)| **amount > 0 && self.is_beside(bank, id));
            for (id, amount) in paid {
                ledger.apply(&pay(format!("to {id}"), bank, id, *amount));
            }
        }
        Books::of(ledger)
    }

    fn is_beside(&self, bank: &AccountId, id: &AccountId) -> bool {
        self.accounts.iter().any(|accounts| accounts.bank == *bank && accounts.all().any(|beside| beside == *id))
    }
}

/// Looks for a serial order. `end` is what the accounts have after everything has ended, at `now`.
pub fn find(
    beginning: &Beginning<'_>,
    records: &[Record],
    groups: &[Group],
    end: &[Account],
    now: Moment,
) -> SerialOrder {
    let mut history: Vec<EventCall> = records.iter().filter(|record| !record.is_of_group).filter_map(call).collect();
    history.extend(records.iter().filter_map(expiry));
    history.extend(groups.iter().flat_map(calls_of_group));
    history.sort_by_key(|call| call.invoked);
    history.extend(end.iter().filter(|account| !account.id.is_system()).map(|account| final_read(account, now)));
    let books = beginning.books();
    for part in parts(&history, accounts_of) {
        match check(&DecisionsAndExpiries, &books, &part, MOST_STATES) {
            Verdict::Order(_) => {}
            Verdict::TooManyStates | Verdict::TooLong => return SerialOrder::Undecided,
            Verdict::Impossible { longest } => {
                transcribe(&part, &longest);
                let first_without = part
                    .iter()
                    .enumerate()
                    .find(|(index, call)| !longest.contains(index) && matches!(call.end, End::Answered { .. }));
                let first_without = first_without.map(|(_, call)| line(call)).unwrap_or_default();
                return SerialOrder::Impossible(format!(
                    "no serial order explains the answers to {} calls. The longest beginning of one has {} of them and lacks {first_without}",
                    part.len(),
                    longest.len(),
                ));
            }
        }
    }
    SerialOrder::Exists
}

// === calls ===

fn named(id: TransferId, debit: &AccountId) -> Named {
    Named { id: short(id), debit: Some(debit.to_string()) }
}

fn pay(id: String, debit: &AccountId, credit: &AccountId, amount: i64) -> Request {
    let (debit, credit, metadata) = (debit.to_string(), credit.to_string(), Metadata::new());
    Request::Pay { order: Payment { id, debit, credit, amount, asset: Asset::USD, metadata }, dry_run: false }
}

fn request(order: &Order) -> Request {
    match order {
        Order::Transfer(NewTransfer { id, debit, credit, amount, purpose, .. }) => match *purpose {
            Purpose::Payment => pay(short(*id), debit, credit, *amount),
            Purpose::Capture { hold, whole, finalize } => Request::Capture(Capture {
                hold: named(hold, debit),
                id: short(*id),
                amount: (!whole).then_some(*amount),
                is_final: finalize,
            }),
            // The original's debit account is the credit account of its reversal.
            Purpose::Reversal { of, whole } => Request::Reverse(Reversal {
                transfer: named(of, credit),
                id: short(*id),
                amount: (!whole).then_some(*amount),
            }),
        },
        Order::Hold(PlaceHold { id, debit, credit, amount, expires_in_s, .. }) => {
            let order = NewHold {
                id: short(*id),
                debit: debit.to_string(),
                credit: credit.to_string(),
                amount: *amount,
                asset: Asset::USD,
                expires_in_s: *expires_in_s,
                metadata: Metadata::new(),
            };
            Request::Hold { order, dry_run: false }
        }
        Order::Release(key) => Request::Release(Release { hold: named(key.id, &key.debit) }),
    }
}

/// What a client understood of a good answer.
fn good(word: &str) -> Said {
    Said { status: 200, word: word.to_owned(), side: None, balances: None, items: Vec::new() }
}

fn refusal(Refused { refusal, side }: Refused) -> Said {
    let status = match refusal {
        Refusal::HoldCaptured | Refusal::HoldReleased | Refusal::HoldExpired => 409,
        _ => 422,
    };
    Said { status, side: side.map(|side| side.as_str().to_owned()), ..good(refusal.as_str()) }
}

fn said(answer: &Answer) -> Said {
    match answer {
        Answer::Transfer(answer) => match answer.state {
            TransferState::Rejected { refused, .. } => refusal(refused),
            state => good(state.as_str()),
        },
        Answer::Hold(answer) => answer.refused.map_or_else(|| good("held"), refusal),
        Answer::Released => good("released"),
        Answer::NotReleased(refused) => refusal(*refused),
    }
}

/// The call of an order. `None` if it certainly has no effect.
fn call(record: &Record) -> Option<EventCall> {
    let end = match (&record.answer, record.returned) {
        (Some(answer), Some(returned)) => End::Answered { returned, answer: said(answer) },
        _ if record.is_doubtful => End::Unknown,
        _ => return None,
    };
    let operation = Event::Asked(request(&record.order));
    Some(Call { client: record.client(), operation, invoked: record.sent?, end })
}

/// The end of a hold's time.
fn expiry(record: &Record) -> Option<EventCall> {
    let (Order::Hold(place), Some(Answer::Hold(answer))) = (&record.order, &record.answer) else { return None };
    let (None, Some(expires_at_us)) = (answer.refused, answer.expires_at_us) else { return None };
    let operation = Event::Expired(named(place.id, &place.debit));
    Some(Call { client: record.client(), operation, invoked: trace::since_begin(expires_at_us), end: End::Unknown })
}

/// The call of a group. If it failed in the end and an earlier attempt may have taken effect, that attempt is a call of its own.
fn calls_of_group(Group { members, failed }: &Group) -> Vec<EventCall> {
    let Some(first) = members.first() else { return Vec::new() };
    let payments = members.iter().filter_map(|member| match request(&member.order) {
        Request::Pay { order, .. } => Some(order),
        _ => None,
    });
    let operation = Event::Asked(Request::PayBatch { items: payments.collect(), atomic: true });
    let item = |status: &str, refused: Option<Refused>| SaidOfItem {
        status: status.to_owned(),
        code: refused.map(|refused| refused.refusal.as_str().to_owned()),
        side: refused.and_then(|refused| refused.side).map(|side| side.as_str().to_owned()),
    };
    let answered = |invoked, returned, items: Vec<SaidOfItem>| Call {
        client: first.client(),
        operation: operation.clone(),
        invoked,
        end: End::Answered { returned, answer: Said { items, ..good("") } },
    };
    let mut calls = Vec::new();
    if let (Some(_), Some(sent), Some(returned)) = (&first.answer, first.sent, first.returned) {
        calls.push(answered(sent, returned, members.iter().map(|_| item("posted", None)).collect()));
        return calls;
    }
    if first.is_doubtful {
        let unknown =
            |invoked| Call { client: first.client(), operation: operation.clone(), invoked, end: End::Unknown };
        calls.extend(first.sent.map(unknown));
    }
    if let (Some(Failure { culprit, refused, returned }), Some(sent)) = (failed, first.last_sent) {
        let of_item = |index: usize| match index == *culprit {
            true => item("failed", Some(*refused)),
            false => item("failed", Some(Refused::whole(Refusal::BatchFailed))),
        };
        calls.push(answered(sent, *returned, (0..members.len()).map(of_item).collect()));
    }
    calls
}

fn final_read(account: &Account, now: Moment) -> EventCall {
    let minor = |minor: i64| Asset::USD.write(minor.into());
    let answer = Said { balances: Some((minor(account.posted), minor(account.held))), ..good("open") };
    let operation = Event::Asked(Request::ShowAccount(account.id.to_string()));
    Call { client: 0, operation, invoked: now, end: End::Answered { returned: now, answer } }
}

/// The accounts of an event. A capture and a reversal are about an order that is in the history and names its other account.
fn accounts_of(event: &Event) -> Vec<String> {
    let of_payment = |order: &Payment| [order.debit.clone(), order.credit.clone()];
    let of_other = |named: &Named| named.debit.clone().into_iter().collect();
    match event {
        Event::Asked(Request::Pay { order, .. }) => of_payment(order).into(),
        Event::Asked(Request::PayBatch { items, .. }) => items.iter().flat_map(of_payment).collect(),
        Event::Asked(Request::Hold { order, .. }) => vec![order.debit.clone(), order.credit.clone()],
        Event::Asked(Request::ShowAccount(account)) => vec![account.clone()],
        Event::Asked(Request::Capture(Capture { hold: named, .. }) | Request::Release(Release { hold: named }))
        | Event::Asked(Request::Reverse(Reversal { transfer: named, .. }))
        | Event::Expired(named) => of_other(named),
        Event::Asked(_) => Vec::new(),
    }
}

// === reports ===

/// Notes the calls in the trace. `#` is a call's place in the longest beginning of an order that was found.
fn transcribe(calls: &[EventCall], longest: &[usize]) {
    for (index, call) in calls.iter().enumerate() {
        let place = longest.iter().position(|other| *other == index);
        trace::note("order", || {
            format!("{:>4} {}", place.map_or("-".to_owned(), |place| format!("#{}", place + 1)), line(call))
        });
    }
}

/// A call in one line: client, seconds, what was ordered and what was answered.
fn line(Call { client, operation, invoked, end }: &EventCall) -> String {
    let at = |moment: Moment| format!("{}.{:06}", moment / 1_000_000, moment % 1_000_000);
    let (until, answer) = match end {
        End::Answered { returned, answer } => (at(*returned), describe_answer(answer)),
        End::Failed => ("-".to_owned(), "no effect".to_owned()),
        End::Unknown => ("-".to_owned(), "unknown".to_owned()),
    };
    format!("client {client} {}..{until} {}: {answer}", at(*invoked), describe(operation))
}

fn describe(event: &Event) -> String {
    let payment =
        |Payment { id, debit, credit, amount, .. }: &Payment| format!("{id} {amount} from {debit} to {credit}");
    let amount = |amount: Option<i64>| amount.map_or("the rest".to_owned(), |amount| amount.to_string());
    match event {
        Event::Asked(Request::Pay { order, .. }) => format!("payment {}", payment(order)),
        Event::Asked(Request::PayBatch { items, .. }) => {
            format!("group [{}]", items.iter().map(payment).collect::<Vec<_>>().join(", "))
        }
        Event::Asked(Request::Hold { order: NewHold { id, debit, credit, amount, expires_in_s, .. }, .. }) => {
            let until = if expires_in_s.is_some() { ", expires" } else { "" };
            format!("hold {id} {amount} from {debit} to {credit}{until}")
        }
        Event::Asked(Request::Capture(Capture { hold, id, amount: of, is_final })) => {
            let ending = if *is_final { ", final" } else { "" };
            format!("capture {id} {} of hold {}{ending}", amount(*of), hold.id)
        }
        Event::Asked(Request::Release(Release { hold })) => format!("release of hold {}", hold.id),
        Event::Asked(Request::Reverse(Reversal { transfer, id, amount: of })) => {
            format!("reversal {id} {} of {}", amount(*of), transfer.id)
        }
        Event::Asked(Request::ShowAccount(account)) => format!("{account} at the end"),
        Event::Asked(other) => format!("{other:?}"),
        Event::Expired(hold) => format!("expiry of hold {}", hold.id),
    }
}

fn describe_answer(Said { word, side, balances, items, .. }: &Said) -> String {
    if let Some((posted, held)) = balances {
        return format!("posted {posted}, held {held}");
    }
    if items.is_empty() {
        return [Some(word), side.as_ref()].into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
    }
    let of_item = |SaidOfItem { status, code, side }: &SaidOfItem| {
        [Some(status), code.as_ref(), side.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    };
    items.iter().map(of_item).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use ledger::outcome::{HoldAnswer, TransferAnswer};
    use uuid::Uuid;

    use super::*;
    use crate::cluster::asset;

    fn account(name: &str) -> AccountId {
        AccountId::client(name).expect("a valid id")
    }

    fn id(client: u128, number: u128) -> TransferId {
        TransferId(Uuid::from_u128(((client + 1) << 64) | number))
    }

    fn insufficient() -> Refused {
        Refused::debit(Refusal::InsufficientFunds)
    }

    /// What was ordered by a client from `alice` for `bob`, and answered.
    fn record(order: Order, times: (Moment, Moment), answer: Answer) -> Record {
        let (sent, returned) = (Some(times.0), Some(times.1));
        Record { sent, last_sent: sent, returned, answer: Some(answer), ..Record::new(order) }
    }

    fn payment(client: u128, number: u128, amount: i64) -> NewTransfer {
        NewTransfer {
            ordered_by: None,
            id: id(client, number),
            debit: account("alice"),
            credit: account("bob"),
            asset: asset(),
            amount,
            metadata: ledger::Metadata::empty(),
            purpose: Purpose::Payment,
        }
    }

    fn paid(order: NewTransfer, times: (Moment, Moment), refused: Option<Refused>) -> Record {
        let state = match refused {
            Some(refused) => TransferState::Rejected { refused, at_us: 0 },
            None => TransferState::Posted { at_us: 0 },
        };
        let answer = TransferAnswer {
            ordered_by: None,
            state,
            amount: order.amount,
            cross_shard: true,
            presumed: None,
            debit_after: None,
            created_at_us: 0,
            replayed: false,
        };
        record(Order::Transfer(order), times, Answer::Transfer(answer))
    }

    /// `alice` has 100 and may not owe anything. `shop1` has 100 and may not have more than 150.
    fn order(records: &[Record], groups: &[Group]) -> SerialOrder {
        let of = |bank: &str, name: &str, shop: &str| Accounts {
            bank: account(bank),
            limited: vec![account(name)],
            capped: vec![account(shop)],
        };
        let accounts = [of("bank0", "alice", "shop0"), of("bank1", "bob", "shop1")];
        let balances = [(account("alice"), 100), (account("shop1"), 100)].into();
        find(&Beginning { accounts: &accounts, balances: &balances }, records, groups, &[], 100)
    }

    #[test]
    fn a_refusal_is_explained_by_a_payment_that_was_posted_meanwhile_and_by_no_refused_one() {
        let beside = |credit, refused| {
            let first = paid(NewTransfer { credit: account(credit), ..payment(0, 1, 60) }, (1, 9), refused);
            order(&[first, paid(payment(1, 1, 60), (2, 8), Some(insufficient()))], &[])
        };
        assert_eq!(beside("bob", None), SerialOrder::Exists);
        let no_room = Refused::credit(Refusal::LimitExceeded);
        let SerialOrder::Impossible(why) = beside("shop1", Some(no_room)) else { panic!("an order was found") };
        assert!(why.contains("payment 1/1 60 from alice to bob: insufficient_funds debit"), "{why}");
    }

    #[test]
    fn an_order_keeps_real_time() {
        let small = paid(payment(0, 1, 60), (1, 3), None);
        let later = paid(payment(1, 1, 60), (4, 8), None);
        assert!(matches!(order(&[small, later], &[]), SerialOrder::Impossible(_)));
    }

    #[test]
    fn an_order_of_unknown_outcome_may_explain_a_refusal_and_one_without_effect_does_not() {
        let beside = |is_doubtful| {
            let unknown = Record {
                sent: Some(1),
                is_doubtful,
                is_abandoned: true,
                ..Record::new(Order::Transfer(payment(0, 1, 60)))
            };
            order(&[unknown, paid(payment(1, 1, 60), (20, 30), Some(insufficient()))], &[])
        };
        assert_eq!(beside(true), SerialOrder::Exists);
        assert!(matches!(beside(false), SerialOrder::Impossible(_)));
    }

    #[test]
    fn a_hold_explains_a_refusal_as_long_as_its_time_is_not_over() {
        let after = |at| {
            let NewTransfer { id, debit, credit, asset, metadata, .. } = payment(0, 1, 60);
            let place =
                PlaceHold { ordered_by: None, id, debit, credit, asset, amount: 60, expires_in_s: Some(1), metadata };
            let answer = HoldAnswer {
                ordered_by: None,
                refused: None,
                debit_after: None,
                expires_at_us: Some(trace::BEGIN_US + 50),
                created_at_us: 0,
                replayed: false,
            };
            let hold = record(Order::Hold(place), (1, 9), Answer::Hold(answer));
            order(&[hold, paid(payment(1, 1, 60), (at, at + 5), None)], &[])
        };
        assert!(matches!(after(20), SerialOrder::Impossible(_)));
        assert_eq!(after(48), SerialOrder::Exists);
    }

    #[test]
    fn a_group_that_stored_nothing_must_have_had_a_reason() {
        let failed_at = |culprit| {
            let member = |number| Record {
                sent: Some(1),
                last_sent: Some(1),
                is_of_group: true,
                ..Record::new(Order::Transfer(NewTransfer { credit: account("shop0"), ..payment(0, number, 60) }))
            };
            let failed = Failure { culprit, refused: insufficient(), returned: 9 };
            order(&[], &[Group { members: vec![member(1), member(2)], failed: Some(failed) }])
        };
        assert_eq!(failed_at(1), SerialOrder::Exists);
        assert!(matches!(failed_at(0), SerialOrder::Impossible(_)), "100 suffice for the first payment of 60");
    }
}

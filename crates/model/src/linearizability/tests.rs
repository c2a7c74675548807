//! Histories that have a serial order, and histories with classic faults, which have none.

use serde_json::json;

use super::{
    Call, End, Verdict, check,
    ledger::{Books, Change, Decisions, DecisionsAndExpiries, Event, Reads, Said, Shown},
    parts,
};
use crate::{Asset, Ledger, Metadata, Named, NewAccount, NewHold, Payment, Request, Reversal};

const MOST_STATES: usize = 100_000;

type LedgerCall = Call<Request, Said>;

/// Accounts `bank`, which has no limit, and `a`, which has 100, are on s0. Account `b` is on s1.
fn books() -> Books {
    let shards = [("bank", "s0"), ("a", "s0"), ("b", "s1"), ("c", "s0")];
    let mut ledger = Ledger::new(shards.map(|(account, shard)| (account.to_owned(), shard.to_owned())).into());
    for (id, overdraft) in [("bank", None), ("a", Some(0)), ("b", Some(0)), ("c", Some(0))] {
        let account = NewAccount {
            id: id.to_owned(),
            asset: Asset::USD,
            overdraft,
            max_balance: None,
            metadata: Metadata::new(),
        };
        assert_eq!(ledger.apply(&Request::OpenAccount(account)).status, 201);
    }
    assert_eq!(ledger.apply(&pay("funds", "bank", "a", 100)).status, 201);
    Books::of(ledger)
}

fn pay(id: &str, debit: &str, credit: &str, amount: i64) -> Request {
    let (id, debit, credit) = (id.to_owned(), debit.to_owned(), credit.to_owned());
    let order = Payment { id, debit, credit, amount, asset: Asset::USD, metadata: Metadata::new() };
    Request::Pay { order, dry_run: false }
}

fn reverse(transfer: &str, id: &str) -> Request {
    let transfer = Named { id: transfer.to_owned(), debit: Some("a".to_owned()) };
    Request::Reverse(Reversal { transfer, id: id.to_owned(), amount: Some(1) })
}

fn show(account: &str) -> Request {
    Request::ShowAccount(account.to_owned())
}

fn call(client: usize, operation: Request, times: (u64, u64), answer: Said) -> LedgerCall {
    Call { client, operation, invoked: times.0, end: End::Answered { returned: times.1, answer } }
}

fn posted() -> Said {
    Said::of(201, &json!({"status": "posted"}))
}

fn refused(code: &str, side: Option<&str>) -> Said {
    Said::of(422, &json!({"code": code, "side": side}))
}

fn insufficient() -> Said {
    refused("insufficient_funds", Some("debit"))
}

fn shows(posted: &str) -> Said {
    Said::of(200, &json!({"status": "open", "posted": posted, "held": "0.00"}))
}

fn verdict(history: &[LedgerCall]) -> Verdict {
    check(&Decisions, &books(), history, MOST_STATES)
}

fn is_possible(history: &[LedgerCall]) -> bool {
    match verdict(history) {
        Verdict::Order(_) => true,
        Verdict::Impossible { .. } => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn calls_one_after_another_have_their_own_order() {
    let history = [
        call(0, pay("1", "a", "b", 60), (0, 1), posted()),
        call(0, pay("2", "a", "b", 60), (2, 3), insufficient()),
        call(1, pay("3", "b", "a", 60), (4, 5), posted()),
        call(0, pay("4", "a", "b", 60), (6, 7), posted()),
    ];
    assert_eq!(verdict(&history), Verdict::Order(vec![0, 1, 2, 3]));
}

#[test]
fn concurrent_calls_may_take_effect_in_either_order() {
    let two = |first, second| {
        [call(0, pay("1", "a", "b", 60), (0, 9), first), call(1, pay("2", "a", "b", 60), (1, 8), second)]
    };
    assert!(is_possible(&two(posted(), insufficient())));
    assert!(is_possible(&two(insufficient(), posted())));
    assert!(!is_possible(&two(insufficient(), insufficient())));
    assert!(!is_possible(&two(posted(), posted())));
}

#[test]
fn an_answer_that_came_before_another_call_was_sent_comes_first() {
    let later = |sent| {
        [call(0, pay("1", "b", "a", 1), (0, 5), insufficient()), call(1, pay("2", "a", "b", 1), (sent, 9), posted())]
    };
    assert!(is_possible(&later(6)));
    let earlier =
        [call(1, pay("2", "a", "b", 1), (0, 3), posted()), call(0, pay("1", "b", "a", 1), (4, 5), insufficient())];
    assert!(!is_possible(&earlier));
}

#[test]
fn a_stale_read_has_no_order() {
    let paid = call(0, pay("1", "a", "b", 40), (0, 1), posted());
    assert!(is_possible(&[paid.clone(), call(1, show("b"), (2, 3), shows("0.40"))]));
    assert!(!is_possible(&[paid.clone(), call(1, show("b"), (2, 3), shows("0.00"))]));
    let during = |shown| [paid.clone(), call(1, show("b"), (0, 3), shows(shown))];
    assert!(is_possible(&during("0.00")) && is_possible(&during("0.40")));
}

#[test]
fn a_read_that_goes_back_has_no_order() {
    let reads = |first, second| {
        [
            call(0, pay("1", "a", "b", 40), (0, 9), posted()),
            call(1, show("b"), (1, 2), shows(first)),
            call(2, show("b"), (3, 4), shows(second)),
        ]
    };
    assert!(is_possible(&reads("0.00", "0.40")));
    assert!(!is_possible(&reads("0.40", "0.00")));
}

#[test]
fn a_double_effect_has_no_order() {
    let twice = |shown| {
        [
            call(0, pay("1", "a", "b", 30), (0, 5), posted()),
            call(1, pay("1", "a", "b", 30), (1, 6), posted()),
            call(0, show("a"), (7, 8), shows(shown)),
        ]
    };
    assert!(is_possible(&twice("0.70")));
    assert!(!is_possible(&twice("0.40")));
}

#[test]
fn what_failed_has_no_effect_and_what_is_unknown_may_have_one_at_any_later_time() {
    let ends = |end, shown| {
        let open = Call { client: 0, operation: pay("1", "a", "b", 30), invoked: 0, end };
        [open, call(1, show("a"), (50, 51), shows(shown)), call(1, show("a"), (60, 61), shows("0.70"))]
    };
    assert!(is_possible(&ends(End::Unknown, "1.00")));
    assert!(is_possible(&ends(End::Unknown, "0.70")));
    assert!(!is_possible(&ends(End::Failed, "1.00")));
    let never = Call { client: 0, operation: pay("1", "a", "b", 30), invoked: 0, end: End::Unknown };
    assert!(is_possible(&[never.clone(), call(1, show("a"), (50, 51), shows("1.00"))]));
    let too_early = [call(1, show("a"), (50, 51), shows("0.70")), Call { invoked: 52, ..never }];
    assert!(!is_possible(&too_early));
}

/// A group of two payments between `a` and `c`, of which the second one is refused, and at the same time a payment of 60 from `a`.
fn group(answer: Said, beside: Said) -> bool {
    let items = [("1", "a", "c", 50), ("2", "a", "c", 30)].map(|(id, debit, credit, amount)| {
        let Request::Pay { order, .. } = pay(id, debit, credit, amount) else { panic!("a payment") };
        order
    });
    let batch = Request::PayBatch { items: items.into(), atomic: true };
    is_possible(&[call(0, batch, (0, 9), answer), call(1, pay("3", "a", "c", 60), (1, 8), beside)])
}

#[test]
fn a_group_fails_for_the_item_that_an_order_explains() {
    let item = |status: &str, code: &str| json!({"status": status, "code": code});
    let posted_both = Said::of(200, &json!({"results": [{"status": "posted"}, {"status": "posted"}]}));
    let culprit = json!({"status": "failed", "code": "insufficient_funds", "side": "debit"});
    let failed = |items: [serde_json::Value; 2]| Said::of(200, &json!({"results": items}));
    let by_the_first = failed([culprit.clone(), item("failed", "batch_failed")]);
    let by_the_second = failed([item("failed", "batch_failed"), culprit]);
    assert!(group(posted_both.clone(), insufficient()) && group(by_the_first, posted()));
    assert!(!group(posted_both, posted()), "80 and 60 of 100");
    assert!(!group(by_the_second, posted()), "after 60 of 100 were paid, the first item of 50 is refused already");
}

/// A payment, and a hold of everything that `a` has. The hold may expire from time 10 on.
fn expiry(sent: (u64, u64), answer: Said) -> bool {
    let hold = NewHold {
        id: "h".to_owned(),
        debit: "a".to_owned(),
        credit: "c".to_owned(),
        amount: 100,
        asset: Asset::USD,
        expires_in_s: Some(1),
        metadata: Metadata::new(),
    };
    let order = Event::Asked(Request::Hold { order: hold, dry_run: false });
    let named = Named { id: "h".to_owned(), debit: Some("a".to_owned()) };
    let over = Call { client: 9, operation: Event::Expired(named), invoked: 10, end: End::Unknown };
    let asked = |client, operation, (invoked, returned), answer| {
        let end = End::Answered { returned, answer };
        Call { client, operation, invoked, end }
    };
    let history = [
        asked(0, order, (0, 1), Said::of(201, &json!({"status": "held"}))),
        over,
        asked(0, Event::Asked(pay("1", "a", "c", 1)), sent, answer),
    ];
    matches!(check(&DecisionsAndExpiries, &books(), &history, MOST_STATES), Verdict::Order(_))
}

#[test]
fn a_hold_may_expire_at_any_moment_after_its_time_and_never_before() {
    assert!(expiry((2, 3), insufficient()) && expiry((11, 12), insufficient()));
    assert!(expiry((11, 12), posted()) && expiry((2, 11), posted()));
    assert!(!expiry((2, 3), posted()));
}

/// Payments of 1, then two reversals of each at the same time. The first `posted_reversals` are posted, the next `in_vain` are refused with
/// `insufficient_funds`, and the others with `already_reversed`.
fn reversals(payments: usize, posted_reversals: usize, in_vain: usize) -> Vec<LedgerCall> {
    let mut history: Vec<LedgerCall> =
        (0..payments).map(|n| call(n, pay(&format!("p{n}"), "a", "b", 1), (0, 9), posted())).collect();
    let answer = |n: usize| match n {
        _ if n < posted_reversals => posted(),
        _ if n < posted_reversals + in_vain => insufficient(),
        _ => refused("already_reversed", None),
    };
    let again = |n: usize| reverse(&format!("p{}", n % payments), &format!("r{n}"));
    history.extend((0..2 * payments).map(|n| call(n, again(n), (10, 99), answer(n))));
    history
}

#[test]
fn thirty_payments_are_reversed_once_each_however_the_sixty_reversals_are_refused() {
    // The second reversal of the payment that was reversed last finds nothing on the account.
    assert!(is_possible(&reversals(30, 30, 1)));
    assert!(is_possible(&reversals(30, 30, 30)));
}

#[test]
fn a_refusal_that_only_a_doomed_rival_explains_has_no_order() {
    // A real run of 30 payments and 60 reversals ended in this way: 13 reversals were posted, and 27 were refused and stored.
    assert!(!is_possible(&reversals(6, 3, 5)));
    assert!(!is_possible(&reversals(6, 5, 1)));
}

#[test]
fn a_search_ends_at_its_bound() {
    assert_eq!(check(&Decisions, &books(), &reversals(6, 5, 1), 20), Verdict::TooManyStates);
    let long = vec![call(0, show("a"), (0, 1), shows("1.00")); super::MOST_CALLS + 1];
    assert_eq!(verdict(&long), Verdict::TooLong);
}

#[test]
fn a_history_falls_into_parts_without_a_common_account() {
    let pays = |id, debit, credit| call(0, pay(id, debit, credit, 1), (0, 1), posted());
    let history = [pays("1", "a", "b"), pays("2", "c", "d"), pays("3", "e", "f"), pays("4", "d", "e")];
    let accounts = |request: &Request| match request {
        Request::Pay { order, .. } => vec![order.debit.clone(), order.credit.clone()],
        _ => Vec::new(),
    };
    let found = parts(&history, accounts);
    assert_eq!(found, [vec![history[0].clone()], history[1..].to_vec()]);
}

fn read(times: (u64, u64), posted: i64) -> Call<Change, i64> {
    Call {
        client: 1,
        operation: Change::Read,
        invoked: times.0,
        end: End::Answered { returned: times.1, answer: posted },
    }
}

/// A transfer of 4 from an account with 10, which another shard refuses, and two reads while the transfer is under way.
fn compensated(first: i64, second: i64) -> bool {
    let takes = Call { client: 0, operation: Change::Takes { saga: 7, amount: 4 }, invoked: 0, end: End::Unknown };
    let gives_back = Call {
        operation: Change::GivesBack { saga: 7, amount: 4 },
        end: End::Answered { returned: 9, answer: 0 },
        ..takes.clone()
    };
    let history = [takes, gives_back, read((1, 2), first), read((3, 4), second), read((10, 11), 10)];
    let initial = Shown { posted: 10, ..Shown::default() };
    matches!(check(&Reads, &initial, &history, MOST_STATES), Verdict::Order(_))
}

#[test]
fn reads_may_see_the_money_of_a_transfer_that_is_refused_leave_and_come_back_once() {
    assert!(compensated(10, 10) && compensated(10, 6) && compensated(6, 6) && compensated(6, 10));
    assert!(!compensated(14, 10) && !compensated(6, 2) && !compensated(10, 14));
}

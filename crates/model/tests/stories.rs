//! Tests of the model's own rules, each a sequence of requests.

use std::collections::BTreeMap;

use model::{
    Answer, Asset, Capture, Ledger, Metadata, Named, NewAccount, NewHold, Payment, Release, Request, Reversal,
};

/// A ledger in which `a` has 100.00. Account `b` is on the same shard as `a` or on another one.
fn ledger(shard_of_b: &str) -> Ledger {
    let shards = [("bank", "s0"), ("a", "s0"), ("b", shard_of_b)];
    let mut ledger = Ledger::new(shards.map(|(account, shard)| (account.to_owned(), shard.to_owned())).into());
    for (id, overdraft) in [("bank", None), ("a", Some(0)), ("b", Some(0))] {
        let metadata = Metadata::new();
        let account = NewAccount { id: id.to_owned(), asset: Asset::USD, overdraft, max_balance: None, metadata };
        assert_eq!(ledger.apply(&Request::OpenAccount(account)).status, 201);
    }
    assert_eq!(ledger.apply(&pay("funds", "bank", "a", 10_000)).status, 201);
    ledger
}

fn pay(id: &str, debit: &str, credit: &str, amount: i64) -> Request {
    let (id, debit, credit) = (id.to_owned(), debit.to_owned(), credit.to_owned());
    let order = Payment { id, debit, credit, amount, asset: Asset::USD, metadata: Metadata::new() };
    Request::Pay { order, dry_run: false }
}

fn hold(id: &str, amount: i64) -> Request {
    let (id, debit, credit) = (id.to_owned(), "a".to_owned(), "b".to_owned());
    let order =
        NewHold { id, debit, credit, amount, asset: Asset::USD, expires_in_s: None, metadata: Metadata::new() };
    Request::Hold { order, dry_run: false }
}

fn capture(hold: &str, id: &str, amount: Option<i64>, is_final: bool) -> Request {
    Request::Capture(Capture { hold: named(hold), id: id.to_owned(), amount, is_final })
}

fn reverse(transfer: &str, id: &str, amount: Option<i64>) -> Request {
    Request::Reverse(Reversal { transfer: named(transfer), id: id.to_owned(), amount })
}

fn named(id: &str) -> Named {
    Named { id: id.to_owned(), debit: None }
}

/// The status and the word of an answer, such as `201 posted` or `409 hold_released`.
fn summary(answer: &Answer) -> String {
    let word = answer.body["code"].as_str().or(answer.body["status"].as_str()).unwrap_or_default();
    format!("{} {word}{}", answer.status, if answer.replayed { " replayed" } else { "" })
}

#[test]
fn a_story_is_answered_the_same_on_one_shard_and_on_two() {
    let story = [
        (hold("h", 5_000), "201 held"),
        (pay("p", "a", "b", 5_001), "422 insufficient_funds"),
        (capture("h", "c1", Some(2_000), false), "201 posted"),
        (capture("h", "c2", Some(3_001), true), "422 exceeds_hold"),
        (capture("h", "c3", Some(1_000), true), "201 posted"),
        (capture("h", "c3", Some(1_000), true), "200 posted replayed"),
        (capture("h", "c3", None, true), "422 idempotency_mismatch"),
        (capture("h", "c4", None, true), "409 hold_captured"),
        (hold("h", 5_000), "200 held replayed"),
        (hold("i", 1_000), "201 held"),
        (Request::Release(Release { hold: named("i") }), "200 released"),
        (capture("i", "c5", None, true), "409 hold_released"),
        (pay("q", "a", "b", 7_000), "201 posted"),
        (reverse("q", "r1", Some(3_000)), "201 posted"),
        (reverse("q", "r2", Some(4_001)), "422 already_reversed"),
        (reverse("q", "r3", None), "201 posted"),
        (reverse("q", "r4", None), "422 already_reversed"),
        (Request::ShowTransfer(named("q")), "200 reversed"),
        (reverse("r1", "s", None), "201 posted"),
        (pay("x", "a", "nobody", 1), "422 account_not_found"),
    ];
    let mut together = ledger("s0");
    let mut apart = ledger("s1");
    for (request, expected) in &story {
        for ledger in [&mut together, &mut apart] {
            assert_eq!(summary(&ledger.apply(request)), *expected, "{request:?}");
        }
    }
    let balances = |ledger: &Ledger| -> BTreeMap<String, (i64, i64)> {
        ledger.accounts().map(|account| (account.id.clone(), (account.posted, account.held))).collect()
    };
    assert_eq!(balances(&together), balances(&apart));
    assert_eq!(balances(&together)["a"], (4_000, 0));
}

#[test]
fn a_final_capture_writes_two_lines_and_answers_after_the_second() {
    let mut ledger = ledger("s1");
    ledger.apply(&hold("h", 5_000));
    let answer = ledger.apply(&capture("h", "c", Some(2_000), true));
    assert_eq!(answer.body["debit_account"]["held"], "0.00");
    assert_eq!(answer.body["debit_account"]["available"], "80.00");
    let account = ledger.account("a").unwrap();
    let lines: Vec<_> = account.journal.iter().map(|entry| (entry.kind, entry.amount, entry.held)).collect();
    assert_eq!(lines[2..], [("held", 0, 5_000), ("captured", -2_000, 3_000), ("released", 0, 0)]);
}

#[test]
fn only_between_shards_does_a_refusal_leave_lines() {
    for (shard, lines) in [("s0", 2), ("s1", 4)] {
        let mut ledger = ledger(shard);
        let changes = model::Changes { max_balance: Some(Some(0)), ..model::Changes::default() };
        ledger.apply(&Request::ChangeAccount { account: "b".to_owned(), changes });
        assert_eq!(summary(&ledger.apply(&pay("p", "a", "b", 1))), "422 limit_exceeded");
        assert_eq!(ledger.account("a").unwrap().version(), lines);
    }
}

#[test]
fn an_account_is_opened_once_whatever_was_changed_since() {
    let mut ledger = ledger("s0");
    let with = |overdraft| {
        let metadata = Metadata::new();
        let (id, asset) = ("b".to_owned(), Asset::USD);
        Request::OpenAccount(NewAccount { id, asset, overdraft: Some(overdraft), max_balance: None, metadata })
    };
    for overdraft in [200, 300] {
        let changes = model::Changes { overdraft: Some(Some(overdraft)), ..model::Changes::default() };
        ledger.apply(&Request::ChangeAccount { account: "b".to_owned(), changes });
    }
    for (overdraft, expected) in [(0, "200 open replayed"), (300, "200 open replayed"), (200, "409 account_exists")] {
        let answer = ledger.apply(&with(overdraft));
        assert_eq!(summary(&answer), expected);
        assert_eq!(answer.body["overdraft"].as_str(), (answer.status == 200).then_some("3.00"));
    }
}

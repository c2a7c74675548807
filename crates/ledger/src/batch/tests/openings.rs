//! Creations that come again, as a table. Each row is played in every way that its steps can be spread over batches, and the
//! answers must not differ: nothing depends on what else is in the batch.
//!
//! | step | does |
//! |---|---|
//! | `open …`, `change …` | with `overdraft=5`, `max=9`, `tag=a`, `EUR`; `change` takes `frozen` and `closed`, too |
//! | `pay 1` | from the bank to the account, and `pay -1` back |
//!
//! An answer shows the account's overdraft, so that one sees which state it is of.

use super::*;

type Row = (&'static str, &'static [(&'static str, &'static str)]);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("never changed", &[
        ("open", "created 0"), ("open", "replayed 0"), ("open overdraft=5", "conflict overdraft"), ("open", "replayed 0")]),
    ("as it was opened, and as it is", &[
        ("open overdraft=1", "created 1"), ("change overdraft=5", "updated 5"), ("open overdraft=1", "replayed 5"),
        ("open overdraft=5", "replayed 5"), ("open overdraft=2", "conflict overdraft")]),
    ("not as it was between", &[
        ("open overdraft=1", "created 1"), ("change overdraft=2", "updated 2"), ("change overdraft=3", "updated 3"),
        ("open overdraft=2", "conflict overdraft"), ("open overdraft=1", "replayed 3"), ("open overdraft=3", "replayed 3")]),
    ("not in parts as it was opened and in parts as it is", &[
        ("open max=9 tag=a", "created 0"), ("change overdraft=5 max=8 tag=b", "updated 5"), ("open max=9 tag=b", "conflict overdraft"),
        ("open overdraft=5 max=8 tag=a", "conflict metadata"), ("open max=9 tag=a", "replayed 5")]),
    ("every attribute", &[
        ("open overdraft=unlimited max=9 tag=a", "created unlimited"), ("change overdraft=0", "updated 0"),
        ("open overdraft=unlimited max=9 tag=a", "replayed 0"), ("change max=unlimited", "updated 0"),
        ("open overdraft=unlimited max=9 tag=a", "replayed 0"), ("change tag=b", "updated 0"),
        ("open overdraft=unlimited max=9 tag=a", "replayed 0"), ("open tag=b", "replayed 0"),
        ("open tag=a", "conflict metadata"), ("open max=9 tag=b", "conflict max_balance")]),
    ("the status is nobody's content", &[
        ("open", "created 0"), ("change frozen", "updated 0"), ("open", "replayed 0"), ("change closed", "updated 0"),
        ("open", "replayed 0"), ("change closed overdraft=5", "updated 5"), ("open", "replayed 5")]),
    ("another asset", &[
        ("open", "created 0"), ("change overdraft=5", "updated 5"), ("open EUR", "conflict asset"),
        ("open EUR overdraft=5", "conflict asset"), ("open", "replayed 5")]),
    ("money came and went", &[
        ("open", "created 0"), ("pay 2", ""), ("open", "replayed 0"), ("open overdraft=5", "conflict overdraft"), ("change overdraft=5", "updated 5"),
        ("pay -7", ""), ("open", "replayed 5"), ("open overdraft=5", "replayed 5"), ("open overdraft=6", "conflict overdraft")]),
    ("changed and changed back", &[
        ("open", "created 0"), ("change overdraft=5", "updated 5"), ("change overdraft=0", "updated 0"), ("open", "replayed 0"),
        ("open overdraft=5", "conflict overdraft")]),
    ("a change that changes nothing", &[
        ("open", "created 0"), ("change overdraft=0", "updated 0"), ("open", "replayed 0"), ("open tag=a", "conflict metadata")]),
    ("a change that is refused", &[
        ("open overdraft=5", "created 5"), ("pay -5", ""), ("change overdraft=4", "refused"), ("open overdraft=4", "conflict overdraft"),
        ("open overdraft=5", "replayed 5")]),
    ("changed before it was there", &[
        ("change overdraft=5", "not found"), ("open", "created 0"), ("change overdraft=5", "updated 5"), ("open", "replayed 5")]),
];

#[test]
fn a_creation_is_a_replay_of_what_the_account_was_opened_with_and_of_what_it_is() {
    for (name, steps) in ROWS {
        let expected: Vec<&str> = steps.iter().map(|(_, answer)| *answer).collect();
        for cuts in 0..1_u32 << (steps.len() - 1) {
            assert_eq!(play(steps, cuts), expected, "{name}, batches {cuts:b}");
        }
    }
}

/// Plays the steps; a bit of `cuts` ends the batch after the step of its number.
fn play(steps: &[(&str, &str)], cuts: u32) -> Vec<String> {
    let mut shard = Shard::with(&["bank"]);
    let mut answers = Vec::new();
    let mut batch = Vec::new();
    for (number, (step, _)) in (0_u32..).zip(steps) {
        batch.push(operation(number, step));
        if cuts >> number & 1 == 1 || number as usize + 1 == steps.len() {
            answers.extend(shard.run(&std::mem::take(&mut batch)).iter().map(summary));
        }
    }
    answers
}

fn operation(number: u32, step: &str) -> Operation {
    let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
    let words = || rest.split_whitespace();
    let value = |name: &str| words().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let limit = |name: &str| value(name).map(|text| text.parse().map_or(Limit::Unlimited, Limit::AtMost));
    let metadata = value("tag").map(|tag| Metadata::from_canonical(&format!("{{\"tag\":\"{tag}\"}}")));
    match verb {
        "open" => Operation::CreateAccount(CreateAccount {
            ordered_by: None,
            id: id("alice"),
            asset: if rest.contains("EUR") { AssetCode::new("EUR").unwrap() } else { usd() },
            overdraft: limit("overdraft").unwrap_or(Limit::ZERO),
            max_balance: limit("max").unwrap_or(Limit::Unlimited),
            metadata: metadata.unwrap_or_else(Metadata::empty),
        }),
        "change" => Operation::UpdateAccount(UpdateAccount {
            ordered_by: None,
            id: id("alice"),
            status: words().find_map(AccountStatus::parse),
            overdraft: limit("overdraft"),
            max_balance: limit("max"),
            metadata,
        }),
        "pay" => {
            let amount: i64 = rest.parse().unwrap();
            let (debit, credit) = if amount > 0 { ("bank", "alice") } else { ("alice", "bank") };
            Operation::Transfer(transfer(u128::from(number), debit, credit, amount.abs()))
        }
        other => panic!("{other} is no step"),
    }
}

fn summary(outcome: &Outcome) -> String {
    let shown = |what: &str, account: &Account| match account.overdraft {
        Limit::Unlimited => format!("{what} unlimited"),
        Limit::AtMost(limit) => format!("{what} {limit}"),
    };
    match outcome {
        Outcome::Account(AccountOutcome::Created(account)) => shown("created", account),
        Outcome::Account(AccountOutcome::Replayed(account)) => shown("replayed", account),
        Outcome::Account(AccountOutcome::Updated(account)) => shown("updated", account),
        Outcome::Account(AccountOutcome::Conflict { field }) => format!("conflict {field}"),
        Outcome::Account(AccountOutcome::Refused { .. }) => "refused".to_owned(),
        Outcome::Account(AccountOutcome::NotFound) => "not found".to_owned(),
        posted if is_posted(posted) => String::new(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_opening_is_read_only_where_the_decision_can_depend_on_it() {
    let open = "open overdraft=1";
    for (before, batch, known, to_load) in [
        (&[][..], &[open, open][..], 0, 0),
        (&[open], &[open], 0, 0),
        (&[open], &["change overdraft=5"], 0, 0),
        // At its first version an account is what it was opened with.
        (&[open], &["open", "open"], 1, 0),
        (&[open], &["change overdraft=5", open], 1, 0),
        // It is so now, and stays so.
        (&[open, "pay 1"], &[open, "pay 1", open], 0, 0),
        (&[open, "pay 1"], &["open EUR"], 0, 0),
        (&[open, "pay 1"], &["change overdraft=5", "open EUR"], 0, 0),
        (&[open, "pay 1"], &["open", "open", open], 0, 1),
        (&[open, "pay 1"], &["change overdraft=5", open], 0, 1),
        (&[open, "change overdraft=5"], &[open], 0, 1),
    ] {
        let mut shard = Shard::with(&["bank"]);
        let operations = |steps: &[&str]| -> Vec<Operation> {
            (0_u32..).zip(steps).map(|(number, step)| operation(number, step)).collect()
        };
        shard.accounts.learn(id("alice"), None);
        shard.run(&operations(before));
        let openings = Openings::of(&shard.accounts, operations(batch).iter());
        assert_eq!((openings.known.len(), openings.to_load.len()), (known, to_load), "{before:?} {batch:?}");
    }
}

#[test]
fn without_its_first_entry_an_account_gets_no_verdict() {
    let mut shard = Shard::with(&["bank"]);
    shard.run(&[operation(0, "open"), operation(1, "pay 1")]);
    shard.journal.damage(|bookings| {
        bookings.retain(|booking| booking.kind != BookingKind::Opened || booking.payer != id("alice"));
    });
    let outcome = shard.decide_only(&operation(2, "open overdraft=5"));
    assert!(matches!(outcome, Outcome::Illegal(_)), "{outcome:?}");
    assert_eq!(summary(&shard.decide_only(&operation(2, "open"))), "replayed 0");
}

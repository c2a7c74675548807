//! What has to be equal.

use std::fmt::Write;

use model::{Account, Answer, Entry, TIME};
use serde_json::{Map, Value};

/// Members for people, of the exchange, or of the place: nothing the model knows.
const UNKNOWN: [&str; 11] = [
    "title",
    "detail",
    "type",
    "instance",
    "request_id",
    "retryable",
    "executed",
    "errors",
    "slot",
    "position",
    "at",
];

/// How much of a transfer has to be as the model says.
///
/// The items of one batch have the outcome they would have one after another. But where some of them are sagas, others go
/// on meanwhile, so that what a debit account held right after an item can differ from what the model says. It is then held
/// against the journal instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    Whole,
    /// All but `debit_account`.
    WithoutBalances,
}

/// One line for each difference.
pub fn answers(expected: &Answer, found: &Answer, exactness: Exactness) -> String {
    let mut lines = String::new();
    if (expected.status, expected.replayed) != (found.status, found.replayed) {
        let line = |answer: &Answer| format!("{}{}", answer.status, if answer.replayed { " replayed" } else { "" });
        let _ = writeln!(lines, "  answered {}, the model says {}", line(found), line(expected));
    }
    let (mut expected, mut found) = (faceless(&expected.body), faceless(&found.body));
    if exactness == Exactness::WithoutBalances {
        for body in [&mut expected, &mut found] {
            body.as_object_mut().map(|members| members.remove("debit_account"));
        }
    }
    differences("", &expected, &found, &mut lines);
    lines
}

fn differences(path: &str, expected: &Value, found: &Value, lines: &mut String) {
    match (expected, found) {
        _ if expected == found => {}
        (Value::Object(expected), Value::Object(found)) => {
            let absent = Value::Null;
            let names = expected.keys().chain(found.keys().filter(|name| !expected.contains_key(*name)));
            for name in names {
                let of = |members: &Map<String, Value>| members.get(name).unwrap_or(&absent).clone();
                differences(&format!("{path}/{name}"), &of(expected), &of(found), lines);
            }
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
                differences(&format!("{path}/{index}"), expected, found, lines);
            }
        }
        _ => {
            let _ = writeln!(lines, "  {path} is {found}, the model says {expected}");
        }
    }
}

/// Every time as [`TIME`], and without what the model does not know.
fn faceless(body: &Value) -> Value {
    match body {
        Value::Object(members) => {
            let known = members.iter().filter(|(name, _)| !UNKNOWN.contains(&name.as_str()));
            let plain = |(name, value): (&String, &Value)| match value {
                Value::String(_) if name.ends_with("_at") => (name.clone(), TIME.into()),
                value => (name.clone(), faceless(value)),
            };
            Value::Object(known.map(plain).collect())
        }
        Value::Array(items) => items.iter().map(faceless).collect(),
        other => other.clone(),
    }
}

/// An answer's body without what names the one exchange.
pub fn without_request(body: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().map(|members| members.remove("request_id"));
    body
}

/// Whether something is missing: the steps or the sums of a shard that could not be asked in time. Only a machine that does too
/// much else gives such an answer.
pub fn is_incomplete(expected: &Answer, found: &Answer) -> bool {
    // None at all are less than an empty list: nothing happened that would be a step.
    let steps = |answer: &Answer| answer.body["steps"].as_array().map(Vec::len);
    let lacks = steps(found) < steps(expected) || found.body["partial"] == true;
    found.status == 200 && expected.status == 200 && lacks
}

/// The whole journal of an account, oldest first. The lines of one batch may come in any order, as long as they add up.
pub fn statements(account: &Account, found: &[Value]) -> String {
    let expected = account.statement();
    let mut lines = String::new();
    let mut begin = 0;
    for group in account.journal.chunk_by(|a, b| a.request == b.request) {
        let end = begin + group.len();
        let (expected, found) = (&expected[begin..end], found.get(begin..end.min(found.len())).unwrap_or_default());
        if is_of_one_transfer(group) || expected.len() != found.len() {
            let [expected, found] = [expected, found].map(|entries| faceless(&entries.to_vec().into()));
            differences(&format!("/{begin}.."), &expected, &found, &mut lines);
        } else {
            let [mut expected, mut found] =
                [expected, found].map(|entries| entries.iter().map(movement).collect::<Vec<_>>());
            expected.sort_unstable();
            found.sort_unstable();
            differences(&format!("/{begin}.."), &expected.into(), &found.into(), &mut lines);
        }
        begin = end;
    }
    if found.len() != expected.len() {
        let _ = writeln!(lines, "  {} lines, the model says {}: {found:#?}", found.len(), expected.len());
    }
    lines + &sums(found)
}

fn is_of_one_transfer(group: &[Entry]) -> bool {
    group.iter().all(|entry| entry.transfer == group[0].transfer || entry.transfer.is_none())
}

/// A line without where in the journal it is.
fn movement(entry: &Value) -> String {
    ["kind", "transfer_id", "hold_id", "counterparty", "amount"].map(|member| entry[member].to_string()).join(" ")
}

/// Versions without a gap, and balances that follow from amounts.
fn sums(found: &[Value]) -> String {
    let mut lines = String::new();
    let mut posted = 0_i128;
    for (index, entry) in found.iter().enumerate() {
        posted += minor(&entry["amount"]);
        if minor(&entry["posted"]) != posted || entry["version"] != index + 1 {
            let _ = writeln!(lines, "  line {} does not follow from the ones before: {entry}", index + 1);
        }
    }
    lines
}

fn minor(amount: &Value) -> i128 {
    amount.as_str().unwrap_or_default().replace('.', "").parse().unwrap_or(i128::MAX)
}

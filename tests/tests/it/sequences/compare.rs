//! Compares the answers of the model and of the routers, the statements of accounts, and the state after a sequence.

use std::fmt::Write;

use model::{Account, Answer, Entry, Request, TIME};
use serde_json::{Map, Value};

use super::{
    play::{Play, Stop, Stored},
    wire::Spelling,
};

/// Members that the model does not know. They are texts for people, and values of one exchange or one shard.
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

/// How much of a transfer must be equal.
///
/// The items of one batch have the outcome that they would have one after another. While some of them are sagas, other items go on, so the
/// balances of a debit account right after an item can differ from the model's. They are then compared with the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exactness {
    Whole,
    /// Everything except `debit_account` must be equal.
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

/// The body with every time as [`TIME`], and without members that the model does not know.
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

/// The body of an answer without the values of one exchange.
pub fn without_request(body: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().map(|members| members.remove("request_id"));
    body
}

/// Whether the steps or sums of a shard are missing that did not answer in time. Only a busy machine gives such an answer.
pub fn is_incomplete(expected: &Answer, found: &Answer) -> bool {
    // A transfer without steps has an empty list. A missing list is another case.
    let steps = |answer: &Answer| answer.body["steps"].as_array().map(Vec::len);
    let lacks = steps(found) < steps(expected) || found.body["partial"] == true;
    found.status == 200 && expected.status == 200 && lacks
}

/// Compares the whole journal of an account, oldest entry first. The entries of one batch may come in any order if their balances follow
/// from their amounts.
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

/// The text of an entry without its position in the journal.
fn movement(entry: &Value) -> String {
    ["kind", "transfer_id", "hold_id", "counterparty", "amount"].map(|member| entry[member].to_string()).join(" ")
}

/// Checks that versions have no gap and that balances follow from amounts.
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

/// Members of a transfer or hold that no later event changes.
const LASTING: [&str; 5] = ["created_at", "posted_at", "rejected_at", "expires_at", "debit_account"];

impl Play<'_> {
    pub async fn final_state(&mut self) -> Result<(), Stop> {
        self.transcript.note("final state");
        let accounts: Vec<Account> = self.ledger.accounts().cloned().collect();
        let mut journals = Vec::new();
        let prefix = self.prefix.clone();
        self.exchange(&Request::ListAccounts { prefix: prefix.clone() }, Spelling::Full).await?;
        self.exchange(&Request::SumBalances { prefix }, Spelling::Full).await?;
        for account in &accounts {
            let page = self.get(Self::statement_path(&account.id)).await?;
            journals.push((account.id.clone(), self.check_statement(account, &page)?));
        }
        for named in self.script.transfers().to_vec() {
            let found = self.show(&Request::ShowTransfer(named.clone())).await?;
            self.check_lasting(&found, self.first_answer(Stored::Transfer, &named))?;
            if self.overlapping.contains(&(named.debit.clone().unwrap_or_default(), named.id.clone())) {
                check_balances_by_journal(&found, &journals)?;
            }
        }
        for named in self.script.holds().to_vec() {
            let found = self.show(&Request::ShowHold(named.clone())).await?;
            self.check_lasting(&found, self.first_answer(Stored::Hold, &named))?;
        }
        Ok(())
    }

    async fn show(&mut self, request: &Request) -> Result<Value, Stop> {
        Ok(self.exchange(request, Spelling::Full).await?.body)
    }

    fn check_statement(&self, account: &Account, page: &Value) -> Result<Vec<Value>, Stop> {
        let entries = page["data"].as_array().cloned().unwrap_or_default();
        let differences = statements(account, &entries);
        if differences.is_empty() && page["has_more"] == false {
            return Ok(entries);
        }
        Err(Stop::Differs(format!("the statement of {}:\n{differences}", account.id)))
    }

    /// Checks that the stored transfer or hold has the values of the first answer.
    fn check_lasting(&self, found: &Value, first: Option<&Value>) -> Result<(), Stop> {
        let Some(first) = first else { return Ok(()) };
        for member in LASTING {
            if !first[member].is_null() && first[member] != found[member] {
                return Err(Stop::Differs(format!("  {member} was {}, and is {}\n", first[member], found[member])));
            }
        }
        Ok(())
    }
}

/// Checks that `debit_account` has the balances of the journal at that version. The last entry of a final capture is the release of the
/// rest of its hold. (A batch that is refused as a whole may name an id that a final capture uses later.)
fn check_balances_by_journal(transfer: &Value, journals: &[(String, Vec<Value>)]) -> Result<(), Stop> {
    let after = &transfer["debit_account"];
    if after.is_null() {
        return Ok(());
    }
    let journal = journals.iter().find(|(account, _)| transfer["debit"] == account.as_str());
    let entries = journal.map_or(&[][..], |(_, entries)| entries);
    let entry = entries.iter().find(|entry| entry["version"] == after["version"]);
    let agrees = |entry: &Value| {
        let is_released_rest = entry["kind"] == "released" && entry["hold_id"] == transfer["hold"];
        (entry["transfer_id"] == transfer["id"] || is_released_rest)
            && ["posted", "held"].iter().all(|member| entry[*member] == after[*member])
    };
    if entry.is_some_and(agrees) {
        return Ok(());
    }
    Err(Stop::Differs(format!("  debit_account is {after}, and the journal line of that version {entry:?}\n")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_answer_of_a_final_capture_is_the_release_of_its_own_hold() {
        let after = json!({"posted": "-1.00", "held": "1.00", "version": 5});
        let capture = json!({"id": "c", "debit": "a", "hold": "h", "debit_account": after});
        let journal = |kind: &str, transfer: Option<&str>, hold: Option<&str>| {
            let entry = json!({
                "version": 5, "kind": kind, "transfer_id": transfer, "hold_id": hold, "posted": "-1.00", "held": "1.00"
            });
            [("a".to_owned(), vec![entry])]
        };
        assert!(check_balances_by_journal(&capture, &journal("captured", Some("c"), None)).is_ok());
        assert!(check_balances_by_journal(&capture, &journal("released", None, Some("h"))).is_ok());
        assert!(check_balances_by_journal(&capture, &journal("released", None, Some("other"))).is_err());
        assert!(check_balances_by_journal(&capture, &journal("posted", Some("other"), None)).is_err());
        let payment = json!({"id": "c", "debit": "a", "hold": null, "debit_account": after});
        assert!(check_balances_by_journal(&payment, &journal("released", None, Some("h"))).is_err());
    }
}

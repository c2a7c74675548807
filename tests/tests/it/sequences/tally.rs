//! How often each answer was given: a run that never saw one has not tested it.

use std::{
    collections::BTreeMap,
    fmt, slice,
    sync::{Mutex, PoisonError},
};

use model::{Answer, Ledger, Request};
use serde_json::Value;

use super::wire::Call;

/// A hold had expired when the contract says that it has.
pub const EXPIRED_IN_TIME: &str = "expired in time";
/// A hold had not, and there was no excuse for it; or the machine was too busy to read it quickly, either.
pub const EXPIRED_LATE: &str = "expired late";
pub const EXPIRED_LATE_IN_A_RUSH: &str = "expired late on a busy machine";
/// A creation was a replay of what the account was opened with, and is no longer.
pub const OPENED_SO: &str = "POST accounts with what has been changed since";
/// A transfer or sum was read without the part of a shard that could not be asked.
pub const INCOMPLETE: &str = "incomplete: a shard could not be asked";

/// Counts by kind of request and answer.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, usize>>);

impl Tally {
    pub fn count(&self, call: &Call, answer: &Answer) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kind(call);
        let replayed = if answer.replayed { " replayed" } else { "" };
        *counts.entry(format!("{kind} {} {}{replayed}", answer.status, words(&answer.body))).or_default() += 1;
        for result in answer.body["results"].as_array().into_iter().flatten() {
            let replayed = if result["replayed"] == true { " replayed" } else { "" };
            *counts.entry(format!("{kind} item {}{replayed}", words(result))).or_default() += 1;
        }
    }

    /// Counts creations that are answered by what the account was opened with, and no longer is. `ledger`: after the request.
    pub fn count_openings(&self, request: &Request, ledger: &Ledger) {
        let creations = match request {
            Request::OpenAccount(new) => slice::from_ref(new),
            Request::OpenAccounts(all) => all,
            _ => return,
        };
        for new in creations {
            let there = ledger.account(&new.id);
            if there.is_some_and(|there| there.opening == *new && there.differs_from(new).is_some()) {
                self.note(OPENED_SO);
            }
        }
    }

    /// Counts something else.
    pub fn note(&self, what: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.to_owned()).or_default() += 1;
    }

    pub fn of(&self, answer: &str) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(answer).copied().unwrap_or_default()
    }

    /// Of what has to be seen, what was not.
    pub fn unseen(&self, expected: &[&'static str]) -> Vec<&'static str> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        expected.iter().filter(|answer| !counts.contains_key(**answer)).copied().collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().try_for_each(|(answer, count)| writeln!(f, "  {count:>8} {answer}"))
    }
}

/// `POST /holds/capture`, `POST /transfers dry_run`
fn kind(call: &Call) -> String {
    let (path, query) = call.path.split_once('?').unwrap_or((&call.path, ""));
    let mut words = path.trim_start_matches("/v1/").split('/');
    let (collection, action) = (words.next().unwrap_or_default(), words.nth(1));
    let action = action.map(|action| format!("/{action}")).unwrap_or_default();
    let dry_run = if query.contains("dry_run") { " dry_run" } else { "" };
    format!("{} {collection}{action}{dry_run}", call.method)
}

fn words(body: &Value) -> String {
    let status = body["status"].as_str();
    let code = body["code"].as_str();
    let side = body["side"].as_str();
    let field = body["field"].as_str();
    let words: Vec<&str> = [status, code, side, field].into_iter().flatten().collect();
    words.join(" ")
}

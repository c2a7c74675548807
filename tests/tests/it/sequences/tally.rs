//! Counts how often each answer was given. A run that never saw an answer has not tested it.

use std::{
    collections::BTreeMap,
    fmt, slice,
    sync::{Mutex, PoisonError},
};

use model::{Answer, Asset, HoldState, Ledger, Named, Request};
use serde_json::Value;
use testkit::seed::Seed;

use super::{
    ANSWERS, ANSWERS_OF_SHARDS, Source,
    command::{Command, Sequence},
    script::{SOON_S, Script},
    wire::{HttpRequest, Spelling},
};

/// A hold had expired by the time that the contract promises.
pub const EXPIRED_IN_TIME: &str = "expired in time";
/// A hold had not expired by then. The first name is for a machine that was quick, the second for a busy one.
pub const EXPIRED_LATE: &str = "expired late";
pub const EXPIRED_LATE_IN_A_RUSH: &str = "expired late on a busy machine";
/// A creation repeated the opening of an account after the account was changed, and was answered as a replay.
pub const OPENED_SO: &str = "POST accounts with what has been changed since";
/// A transfer or sum was read without the part of a shard that did not answer.
pub const INCOMPLETE: &str = "incomplete: a shard could not be asked";

/// Counts by kind of request and answer.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<String, usize>>);

impl Tally {
    pub fn count(&self, call: &HttpRequest, answer: &Answer) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = kind(call);
        let replayed = if answer.replayed { " replayed" } else { "" };
        *counts.entry(format!("{kind} {} {}{replayed}", answer.status, words(&answer.body))).or_default() += 1;
        for result in answer.body["results"].as_array().into_iter().flatten() {
            let replayed = if result["replayed"] == true { " replayed" } else { "" };
            *counts.entry(format!("{kind} item {}{replayed}", words(result))).or_default() += 1;
        }
    }

    /// Counts creations that repeat what an account was opened with, after the account was changed. `ledger` is the state after the request.
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

    /// Counts an event that is not an answer.
    pub fn note(&self, what: &'static str) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(what.to_owned()).or_default() += 1;
    }

    pub fn of(&self, answer: &str) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(answer).copied().unwrap_or_default()
    }

    /// The expected answers that were not seen.
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

/// The kind of a request, such as `POST /holds/capture` or `POST /transfers dry_run`.
fn kind(call: &HttpRequest) -> String {
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

/// The number of sequences that the test plays: twice as many as a run plays on each cluster.
const SEQUENCES: usize = 2_000;
/// The test requires each answer this often. An answer that comes ten times in a run on average is missing in one of 20,000 runs.
const OFTEN: usize = 20;

#[test]
fn what_a_run_must_have_seen_is_frequent() {
    let source = Source::new(&Seed::of(0));
    for shards in [1, 3] {
        let tally = Tally::default();
        (0..SEQUENCES).for_each(|number| rehearse(&source.sequence(number), shards, &tally));
        let wanted = ANSWERS.iter().chain(ANSWERS_OF_SHARDS.iter().filter(|_| shards > 1));
        let seldom: Vec<(&str, usize)> =
            wanted.map(|answer| (*answer, tally.of(answer))).filter(|(_, count)| *count < OFTEN).collect();
        assert!(seldom.is_empty(), "of {SEQUENCES} sequences on {shards} shards: {seldom:#?}");
    }
}

/// Plays a sequence as [`super::play::Play`] does, but only to the model.
fn rehearse(sequence: &Sequence, shards: usize, tally: &Tally) {
    let places = [0].into_iter().chain(sequence.accounts.iter().map(|opening| opening.shard)).chain([0]);
    let names: Vec<(String, String)> =
        places.enumerate().map(|(index, shard)| (format!("{{m-{index}}}"), format!("s{}", shard % shards))).collect();
    let mut script = Script::new(names.iter().map(|(name, _)| name.clone()).collect());
    let mut ledger = Ledger::new(names.into_iter().collect::<BTreeMap<_, _>>());
    let mut expiring: Vec<Named> = Vec::new();
    let exchange = |request: &Request, script: &mut Script, ledger: &mut Ledger, expiring: &mut Vec<Named>| {
        script.remember(request, ledger);
        let answer = ledger.apply(request);
        tally.count(&HttpRequest::of(request, Spelling::Full, Asset::USD), &answer);
        tally.count_openings(request, ledger);
        if let Request::Hold { order, dry_run: false } = request
            && order.expires_in_s == Some(SOON_S)
            && answer.status == 201
        {
            expiring.push(Named { id: order.id.clone(), debit: Some(order.debit.clone()) });
        }
    };
    let wait = |ledger: &mut Ledger, expiring: &mut Vec<Named>| {
        for hold in expiring.drain(..) {
            if ledger.hold(&hold).is_some_and(|hold| hold.state == HoldState::Held) {
                ledger.expire(&hold);
                tally.note(EXPIRED_IN_TIME);
            }
        }
    };
    for request in script.set_up(sequence) {
        exchange(&request, &mut script, &mut ledger, &mut expiring);
    }
    for command in &sequence.commands {
        if matches!(command, Command::Wait) {
            wait(&mut ledger, &mut expiring);
        }
        if let Some((request, _)) = script.request(command, &ledger) {
            exchange(&request, &mut script, &mut ledger, &mut expiring);
        }
    }
    wait(&mut ledger, &mut expiring);
    let transfers = script.transfers().to_vec().into_iter().map(Request::ShowTransfer);
    let holds = script.holds().to_vec().into_iter().map(Request::ShowHold);
    for request in transfers.chain(holds) {
        exchange(&request, &mut script, &mut ledger, &mut expiring);
    }
}

//! An API gateway in front of several routers. It sends a request whose connection breaks to the next router, under the same id and within
//! the same deadline. It counts the answers that its clients get.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::Value;

use super::{Answer, NoAnswer};

/// Pause before a request is sent to the next router.
pub(super) const BEFORE_NEXT: Duration = Duration::from_millis(20);
/// The gateway gives a router at least this time, even if less is left of the request's own deadline.
pub(super) const SHORTEST_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Gateway(Mutex<Tally>);

/// The answers that the clients of a gateway got.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    kinds: BTreeMap<Kind, Waits>,
    /// The number of connections that broke or were not made, by reason. Each time the request went to the next router.
    moves: BTreeMap<String, usize>,
    answered_by: Vec<usize>,
}

/// A kind of answer, such as `201` or `503 shard_unavailable`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    is_error: bool,
    name: String,
}

#[derive(Debug, Default, Clone, Copy)]
struct Waits {
    count: usize,
    total: Duration,
    longest: Duration,
}

impl Gateway {
    pub(super) fn tally(&self) -> Tally {
        self.lock().clone()
    }

    pub(super) fn moves_on(&self, lost: &NoAnswer) {
        *self.lock().moves.entry(lost.reason.clone()).or_default() += 1;
    }

    /// Counts a request that was answered, or that got no answer within its deadline.
    pub(super) fn ends(&self, router: usize, answer: &Result<Answer, NoAnswer>, took: Duration) {
        let mut tally = self.lock();
        for kind in kinds(answer) {
            let waits = tally.kinds.entry(kind).or_default();
            waits.count += 1;
            waits.total += took;
            waits.longest = waits.longest.max(took);
        }
        if answer.is_ok() {
            if tally.answered_by.len() <= router {
                tally.answered_by.resize(router + 1, 0);
            }
            tally.answered_by[router] += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kind of an answer. A batch has one more kind for each item without a final answer.
fn kinds(answer: &Result<Answer, NoAnswer>) -> Vec<Kind> {
    let error = |name: String| Kind { is_error: true, name };
    let answer = match answer {
        Ok(answer) => answer,
        Err(NoAnswer { reason, .. }) => return vec![error(format!("no answer: {reason}"))],
    };
    let code = answer.code();
    let name = if code.is_empty() { answer.status.to_string() } else { format!("{} {code}", answer.status) };
    // 409 and 422 are refusals because of the state of accounts and holds. They are no errors.
    let is_error = !matches!(answer.status, 200 | 201 | 409 | 422);
    let mut kinds = vec![Kind { is_error, name }];
    if answer.status == 200 {
        let body = answer.json().unwrap_or_default();
        let items = body["results"].as_array().map(Vec::as_slice).unwrap_or_default();
        kinds.extend(items.iter().filter_map(open_item).map(error));
    }
    kinds
}

/// The kind of an item that is neither posted nor refused.
fn open_item(item: &Value) -> Option<String> {
    let (status, code) = (item["status"].as_str().unwrap_or_default(), item["code"].as_str().unwrap_or_default());
    let is_final = matches!(status, "posted" | "rejected") || code == "undetermined";
    (!is_final).then(|| format!("item {status} {code}").trim_end().to_owned())
}

impl Tally {
    /// The number of requests that have ended.
    pub fn requests(&self) -> usize {
        let items = |kind: &&Kind| !kind.name.starts_with("item ");
        self.kinds.iter().filter(|(kind, _)| items(kind)).map(|(_, waits)| waits.count).sum()
    }

    /// The number of requests that this router has answered.
    pub fn answered_by(&self, router: usize) -> usize {
        self.answered_by.get(router).copied().unwrap_or_default()
    }

    /// The kinds of errors, and how often each was answered. A refusal of an order is no error.
    pub fn errors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.kinds.iter().filter(|(kind, _)| kind.is_error).map(|(kind, waits)| (kind.name.as_str(), waits.count))
    }

    /// The longest time that a client waited for its answer.
    pub fn longest_wait(&self) -> Duration {
        self.kinds.values().map(|waits| waits.longest).max().unwrap_or_default()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, waits) in &self.kinds {
            let mean = waits.total / u32::try_from(waits.count).unwrap_or(u32::MAX).max(1);
            let name = if kind.is_error { format!("{} (error)", kind.name) } else { kind.name.clone() };
            writeln!(f, "  {:6} × {name}: mean {mean:.1?}, longest {:.1?}", waits.count, waits.longest)?;
        }
        for (reason, count) in &self.moves {
            writeln!(f, "  {count:6} × sent to the next router after \"{reason}\"")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Result<Answer, NoAnswer> {
        Ok(Answer { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
    }

    #[test]
    fn an_error_is_what_a_client_would_have_to_deal_with() {
        let gateway = Gateway::default();
        let wait = Duration::from_millis(5);
        for (router, answer) in [
            (0, answer(201, r#"{"status": "posted"}"#)),
            (1, answer(422, r#"{"code": "insufficient_funds"}"#)),
            (1, answer(202, r#"{"status": "pending"}"#)),
            (1, answer(503, r#"{"code": "shard_unavailable"}"#)),
            (0, answer(200, r#"{"results": [{"status": "posted"}, {"status": "failed", "code": "overloaded"}]}"#)),
            (0, Err(NoAnswer { not_sent: false, reason: "nothing".to_owned() })),
        ] {
            gateway.ends(router, &answer, wait);
        }
        let tally = gateway.tally();
        let errors: Vec<(&str, usize)> = tally.errors().collect();
        assert_eq!(
            errors,
            [("202", 1), ("503 shard_unavailable", 1), ("item failed overloaded", 1), ("no answer: nothing", 1)]
        );
        assert_eq!((tally.requests(), tally.answered_by(0), tally.answered_by(1)), (6, 2, 3));
        assert_eq!(tally.longest_wait(), wait);
    }
}

//! Sends batches to routers. A batch is sent again under the same ids until the outcome of every item is certain.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::Instant;

use super::{ItemVerdict, Kind};
use crate::{
    exit::Unreachable,
    http_client::{BatchAnswer, HttpClient, ItemAnswer, problem_of},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Codes that leave the outcome of an item open, because a shard could not be asked or has not answered.
const UNCERTAIN: [&str; 7] = [
    "shard_unavailable",
    "overloaded",
    "shutting_down",
    "rate_limited",
    "undetermined",
    "outcome_unknown",
    "internal",
];

pub struct BatchSender {
    client: HttpClient,
    /// The routers. Each of them can execute any request.
    routers: Vec<String>,
    /// The index of the router in use. It counts up when a router does not answer.
    current: AtomicUsize,
    /// The import ends if no item of a batch became certain for this time.
    patience: Duration,
}

/// The outcome of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemFate {
    Done,
    /// An earlier run or request put the item into the ledger.
    Replayed,
    /// The item is not in the ledger, for this reason.
    Refused(String),
}

/// A problem about the whole request, with the malformed places.
#[derive(Debug, Deserialize)]
struct Malformed {
    errors: Vec<FieldError>,
}

#[derive(Debug, Deserialize)]
struct FieldError {
    code: String,
    pointer: Option<String>,
    detail: Option<String>,
}

/// The result of one attempt.
enum Attempt {
    Results(Vec<ItemAnswer>),
    /// The malformed items by their place in the batch, with the reasons. Nothing was executed.
    Malformed(Vec<(usize, String)>),
    /// No item has a certain outcome.
    Nothing(anyhow::Error),
}

impl ItemAnswer {
    /// The verdict on an item that is not confirmed and whose code the kind of import does not treat in its own way.
    pub fn not_confirmed(&self) -> ItemVerdict {
        match self.code.as_deref() {
            Some(code) if !UNCERTAIN.contains(&code) => {
                let side = self.side.as_deref().map_or(String::new(), |side| format!(" ({side} account)"));
                let detail = self.detail.as_deref().map_or(String::new(), |detail| format!(": {detail}"));
                ItemVerdict::Refused(format!("{code}{side}{detail}"))
            }
            _ => ItemVerdict::Uncertain,
        }
    }
}

impl BatchSender {
    /// Keeps the routers that answer.
    pub async fn connect(client: HttpClient, urls: &[String], patience: Duration) -> anyhow::Result<Self> {
        let routers = client.reachable_routers(urls, "/v1/accounts?limit=1").await?;
        Ok(Self { client, routers, current: AtomicUsize::new(0), patience })
    }

    /// Reads from the router in use, and tries again while no answer arrives.
    pub async fn get(&self, path: &str) -> anyhow::Result<Option<serde_json::Value>> {
        let deadline = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let url = format!("{}{path}", self.router());
            let error = match self.client.send(Method::GET, &url, Bytes::new()).await {
                Ok((status, body)) if status.is_success() => return Ok(Some(serde_json::from_slice(&body)?)),
                Ok((StatusCode::NOT_FOUND, _)) => return Ok(None),
                Ok((status, body)) if is_for_now(status) => self.silent(&problem_of(&url, status, &body)),
                Ok((status, body)) => return Err(problem_of(&url, status, &body)),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            self.turn();
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sends the items until the fate of each item is certain. Returns the fates in the order of the items.
    pub async fn settle<K: Kind>(&self, kind: &K, items: &mut [K::Item]) -> anyhow::Result<Vec<ItemFate>> {
        let mut fates: Vec<Option<ItemFate>> = items.iter().map(|_| None).collect();
        // An item that this run may have executed is no replay when it is sent again.
        let mut own = vec![false; items.len()];
        let (mut since, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let open: Vec<usize> = (0..items.len()).filter(|index| fates[*index].is_none()).collect();
            if open.is_empty() {
                return Ok(fates.into_iter().flatten().collect());
            }
            let body = body::<K>(open.iter().map(|index| &items[*index]))?;
            let mut reason = None;
            let mut is_next = false;
            match self.attempt(K::ROUTE, K::MEMBER, body).await? {
                Attempt::Results(results) => {
                    ensure!(
                        results.len() == open.len(),
                        "{} answered {} results for {} items",
                        K::ROUTE,
                        results.len(),
                        open.len()
                    );
                    for (index, answer) in open.iter().copied().zip(&results) {
                        match kind.verdict(&mut items[index], answer) {
                            ItemVerdict::Confirmed { replayed: true } if !own[index] => {
                                fates[index] = Some(ItemFate::Replayed)
                            }
                            ItemVerdict::Confirmed { .. } => fates[index] = Some(ItemFate::Done),
                            ItemVerdict::Refused(why) => fates[index] = Some(ItemFate::Refused(why)),
                            ItemVerdict::Uncertain => {
                                own[index] = true;
                                reason = Some(anyhow!("{}", answer.code.as_deref().unwrap_or("pending")));
                            }
                            ItemVerdict::Next => is_next = true,
                        }
                    }
                }
                Attempt::Malformed(malformed) => {
                    for (place, why) in malformed {
                        let index = open.get(place).context("the router names an item that was not sent")?;
                        fates[*index] = Some(ItemFate::Refused(why));
                    }
                }
                Attempt::Nothing(error) => {
                    open.iter().for_each(|index| own[*index] = true);
                    reason = Some(error);
                    self.turn();
                }
            }
            let left = fates.iter().filter(|fate| fate.is_none()).count();
            if left < open.len() || is_next {
                (since, pause) = (Instant::now(), FIRST_PAUSE);
            }
            if let Some(reason) = reason {
                if since.elapsed() >= self.patience {
                    return Err(self.silent(&reason));
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    async fn attempt(&self, route: &str, member: &str, body: Bytes) -> anyhow::Result<Attempt> {
        let url = format!("{}{route}", self.router());
        let (status, answer) = match self.client.send(Method::POST, &url, body).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Attempt::Nothing(error)),
        };
        if status.is_success() {
            let answer: BatchAnswer = serde_json::from_slice(&answer).context("the router's answer")?;
            return Ok(Attempt::Results(answer.results));
        }
        if is_for_now(status) {
            return Ok(Attempt::Nothing(problem_of(&url, status, &answer)));
        }
        let malformed = malformed_items(member, &answer);
        if status == StatusCode::BAD_REQUEST && !malformed.is_empty() {
            return Ok(Attempt::Malformed(malformed));
        }
        Err(problem_of(&url, status, &answer))
    }

    fn router(&self) -> &str {
        &self.routers[self.current.load(Relaxed) % self.routers.len()]
    }

    /// Selects the next router.
    fn turn(&self) {
        self.current.fetch_add(1, Relaxed);
    }

    fn silent(&self, reason: &anyhow::Error) -> anyhow::Error {
        Unreachable { what: format!("a shard, through {}", self.router()), reason: format!("{reason:#}") }.into()
    }
}

/// Whether the same request may succeed later.
fn is_for_now(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::REQUEST_TIMEOUT || status.is_server_error()
}

fn body<'a, K: Kind>(items: impl Iterator<Item = &'a K::Item>) -> anyhow::Result<Bytes>
where
    K::Item: 'a,
{
    let items: Vec<&K::Item> = items.collect();
    Ok(serde_json::to_vec(&std::collections::BTreeMap::from([(K::MEMBER, items)]))?.into())
}

/// The malformed items that a problem points to, such as `/accounts/17/overdraft`, each with all its errors.
fn malformed_items(member: &str, problem: &[u8]) -> Vec<(usize, String)> {
    let Ok(Malformed { errors }) = serde_json::from_slice(problem) else { return Vec::new() };
    let mut items: Vec<(usize, String)> = Vec::new();
    for error in &errors {
        let mut steps = error.pointer.as_deref().unwrap_or_default().split('/').skip(1);
        let (Some(first), Some(Ok(index))) = (steps.next(), steps.next().map(str::parse::<usize>)) else { continue };
        if first != member {
            continue;
        }
        let field = steps.next().map_or(String::new(), |field| format!("{field}: "));
        let reason = format!("{field}{}: {}", error.code, error.detail.as_deref().unwrap_or_default());
        match items.iter_mut().find(|(place, _)| *place == index) {
            Some((_, reasons)) => *reasons = format!("{reasons}; {reason}"),
            None => items.push((index, reason)),
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_items_are_found_by_their_pointer_with_all_reasons() {
        let problem = r#"{"code": "invalid_asset", "errors": [
            {"code": "invalid_asset", "pointer": "/accounts/3/asset", "detail": "the asset ZZZ is not known here"},
            {"code": "invalid_amount", "pointer": "/accounts/3/overdraft", "detail": "too precise"},
            {"code": "invalid_id", "pointer": "/accounts/11", "detail": "no id"},
            {"code": "invalid_json", "pointer": "/other/1", "detail": "x"},
            {"code": "invalid_parameter", "parameter": "atomic", "detail": "x"}]}"#;
        assert_eq!(
            malformed_items("accounts", problem.as_bytes()),
            [
                (
                    3,
                    "asset: invalid_asset: the asset ZZZ is not known here; overdraft: invalid_amount: too precise"
                        .to_owned()
                ),
                (11, "invalid_id: no id".to_owned())
            ]
        );
        assert_eq!(malformed_items("accounts", b"<html>"), []);
    }

    #[test]
    fn a_code_that_is_not_known_to_be_uncertain_is_a_refusal() {
        let refused: ItemAnswer =
            serde_json::from_str(r#"{"id":"1","status":"failed","code":"account_not_found","side":"debit"}"#)
                .unwrap();
        assert_eq!(refused.not_confirmed(), ItemVerdict::Refused("account_not_found (debit account)".to_owned()));
        let pending: ItemAnswer = serde_json::from_str(r#"{"id":"1","status":"pending"}"#).unwrap();
        assert_eq!(pending.not_confirmed(), ItemVerdict::Uncertain);
    }
}

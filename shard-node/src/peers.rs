//! Asks the other shards, before this one is served, what they remember of it and which slots they own.
//!
//! The addresses come from the newest map in the database. A shard that does not answer cannot keep this one from
//! serving; it is asked again while this one serves.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use certificates::Mutual;
use identity::{Disagreement, Disagreements, time::OtherClock};
use node_client::{Client, ConnectError, Connection, Introduce, Introduced, NodeClient};
use shard_map::{ClusterId, Shard, ShardMap, Slot, SlotRange, merge_slots};
use sqlx::PgPool;
use wire::convert;

use crate::{
    clock::{NodeClock, steady_us},
    gate::Gate,
    store::{self, StoreError, ownership::SlotState, read::Readable},
};

const SLOT_OWNERSHIP: &str = "slot ownership";
const PATIENCE: Duration = Duration::from_millis(1500);
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// One other shard's answer.
#[derive(Debug)]
pub struct Answer {
    pub shard: String,
    pub identified: wire::IdentifyResponse,
    /// The slots that the shard owns, with their epochs.
    pub owned: Vec<(SlotRange, i64)>,
    /// Measured against [`steady_us`].
    pub clock: OtherClock,
}

/// Why a shard gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("shard {shard} cannot be asked ({url}): {reason}")]
pub struct NoAnswer {
    pub shard: String,
    pub url: String,
    pub reason: String,
}

/// Asks the nodes of a shard, in order of preference, until one answers.
pub async fn ask(shard: &Shard, map: &ShardMap, caller: &str, tls: Option<&Mutual>) -> Result<Answer, NoAnswer> {
    let mut failure = None;
    for url in &shard.nodes {
        match tokio::time::timeout(PATIENCE, ask_node(url, shard, map, caller, tls)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(reason)) => failure = Some((url, reason)),
            Err(_) => failure = Some((url, format!("no answer within {} ms", PATIENCE.as_millis()))),
        }
    }
    // A map has at least one node for each shard.
    let (url, reason) = failure.map_or_else(Default::default, |(url, reason)| (url.clone(), reason));
    Err(NoAnswer { shard: shard.id.clone(), url, reason })
}

async fn ask_node(
    url: &str,
    shard: &Shard,
    map: &ShardMap,
    caller: &str,
    tls: Option<&Mutual>,
) -> Result<Answer, String> {
    let connection = Connection::open(url, 0, 0, PATIENCE, tls).await.map_err(|error| error.to_string())?;
    let mut node = connection.client();
    let (asked_us, asked_steady_us) = (telemetry::clock::now_us(), steady_us());
    let request = wire::IdentifyRequest::expecting(map.cluster, &shard.id, shard.number, caller);
    let identified = match node.identify(request).await {
        Ok(identified) => identified.into_inner(),
        Err(status) => {
            let silent = ConnectError::Silent { uri: url.to_owned(), status: status.message().to_owned() };
            return Err(connection.explain(silent).await.to_string());
        }
    };
    let owner = format!("the node of shard {}", shard.id);
    // The other machine's clock, compared with this machine's clock as first read.
    let answered_us = asked_us + (steady_us() - asked_steady_us);
    let set_by_us = asked_us - asked_steady_us;
    let clock = OtherClock::measured(&owner, asked_us, identified.clock_us, answered_us);
    let clock = OtherClock { ahead_us: clock.ahead_us.saturating_add(set_by_us), ..clock };
    let mut owned = Vec::new();
    // A node that serves nothing owns nothing.
    if identified.identity.is_some() && identified.refused.is_empty() && identified.mark.is_some() {
        let answer = node.get_ownership(wire::GetOwnershipRequest::default()).await;
        let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
        for range in answer.ranges.iter().filter(|range| range.state == SlotState::Owned as u32) {
            let (Ok(first), Ok(last)) = (Slot::try_from(range.first), Slot::try_from(range.last)) else { continue };
            owned.extend(SlotRange::new(first, last).map(|slots| (slots, range.epoch)));
        }
    }
    Ok(Answer { shard: shard.id.clone(), identified, owned, clock })
}

/// A client of another shard's nodes. A node is used only if it serves that shard of this cluster.
pub fn client(shard: &Shard, map: &ShardMap, caller: &str, tls: Option<&Mutual>) -> Client {
    let introduction = Introduction { cluster: map.cluster, shard: shard.clone(), caller: format!("shard {caller}") };
    Client::new(shard.id.as_str().into(), shard.nodes.clone(), PATIENCE, Some(Arc::new(introduction)), tls.cloned())
}

/// This shard's node, calling a node of another shard.
struct Introduction {
    cluster: ClusterId,
    shard: Shard,
    caller: String,
}

#[tonic::async_trait]
impl Introduce for Introduction {
    async fn introduce(&self, mut node: NodeClient, uri: &str) -> Result<Introduced, ConnectError> {
        let request = wire::IdentifyRequest::expecting(self.cluster, &self.shard.id, self.shard.number, &self.caller);
        let answer = node
            .identify(request)
            .await
            .map_err(|status| ConnectError::Silent { uri: uri.to_owned(), status: status.message().to_owned() })?;
        let answer = answer.into_inner();
        let introduced = Introduced::of(&answer);
        if answer.refused.is_empty() && answer.identity.is_none() {
            let status = "it has not reached its database".to_owned();
            return Err(ConnectError::Silent { uri: uri.to_owned(), status });
        }
        Disagreements::check(answer.refused.into_iter().map(Into::into).collect())
            .map_err(|disagreements| ConnectError::Refused { uri: uri.to_owned(), disagreements })?;
        Ok(introduced)
    }

    fn headers(&self, _: &mut http::HeaderMap) {}
}

/// The other shards of the cluster and what they have answered so far.
pub struct Peers {
    pub map: ShardMap,
    pub gate: Gate,
    pub clock: Arc<NodeClock>,
    /// Reads the slots that this shard owns.
    pub pool: PgPool,
    /// The number of this shard.
    pub number: u16,
    /// The certificate with which this node calls the others; `None`: without TLS.
    pub tls: Option<Mutual>,
    /// The shards that have answered without contradicting this one.
    heard: HashSet<String>,
    /// The shards that are known to be initialised.
    initialised: HashSet<String>,
    /// By shard: the answer that forbids serving this one.
    conflicts: BTreeMap<String, Disagreement>,
}

impl Peers {
    pub fn new(
        map: ShardMap,
        gate: Gate,
        clock: Arc<NodeClock>,
        pool: PgPool,
        number: u16,
        tls: Option<Mutual>,
    ) -> Self {
        Self {
            map,
            gate,
            clock,
            pool,
            number,
            tls,
            heard: HashSet::new(),
            initialised: HashSet::new(),
            conflicts: BTreeMap::new(),
        }
    }

    /// Asks every shard that has not answered yet, or that contradicts this one. Passes conflicts to the gate and
    /// returns them.
    pub async fn ask_all(&mut self) -> Result<Result<(), Disagreements>, StoreError> {
        let own = self.gate.expected().shard.clone();
        let caller = format!("shard {own}");
        let waiting: Vec<&Shard> =
            self.map.shards.iter().filter(|shard| shard.id != own && !self.heard.contains(&shard.id)).collect();
        let asked = waiting.iter().map(|shard| ask(shard, &self.map, &caller, self.tls.as_ref()));
        let answers = futures_util::future::join_all(asked).await;
        // Read this after the others have answered: a slot handed over in the meantime then has a higher epoch here,
        // or is gone.
        let owned = store::read::ownership(&Readable::Database(self.pool.clone())).await?.owned_ranges();
        for answer in answers {
            match answer {
                Ok(answer) => self.hear(answer, &owned),
                Err(no_answer) => {
                    // A shard that does not answer makes no claim and cannot keep this one from serving.
                    self.conflicts.remove(&no_answer.shard);
                    tracing::debug!(%no_answer, "asking it again later");
                }
            }
        }
        let conflicts: Vec<Disagreement> = self.conflicts.values().cloned().collect();
        self.gate.set_conflicts(conflicts.clone());
        Ok(Disagreements::check(conflicts))
    }

    /// Whether every other shard has answered.
    pub fn all_heard(&self) -> bool {
        self.heard.len() + 1 >= self.map.shards.len()
    }

    /// Whether at least one other shard has answered.
    pub fn any_heard(&self) -> bool {
        !self.heard.is_empty()
    }

    /// The shards that are not known to be initialised.
    pub fn not_initialised(&self) -> Vec<&str> {
        let own = &self.gate.expected().shard;
        let others = self.map.shards.iter().map(|shard| shard.id.as_str()).filter(|id| id != own);
        others.filter(|id| !self.initialised.contains(*id)).collect()
    }

    /// Asks again until every shard has answered without a contradiction.
    pub async fn run(mut self) {
        while self.heard.len() + 1 < self.map.shards.len() {
            tokio::time::sleep(ASK_AGAIN).await;
            // `ask_all` has already passed its conflicts to the gate.
            if let Err(error) = self.ask_all().await {
                tracing::debug!(%error, "cannot compare with the other shards; trying again");
            }
        }
    }

    fn hear(&mut self, answer: Answer, own: &[(SlotRange, i64)]) {
        let Answer { shard, identified, owned, clock } = answer;
        self.clock.measured(clock);
        if identified.identity.is_none() {
            // The shard is not initialised, or its node has not reached its database: it knows nothing.
            return;
        }
        if !identified.refused.is_empty() {
            let facts: Vec<_> = identified.refused.iter().map(|refused| refused.fact.as_str()).collect();
            tracing::warn!(shard, facts = facts.join(", "), "the node of another shard does not serve");
            // When two shards contradict each other, restarting one of them must not decide in its favour.
            if facts.contains(&SLOT_OWNERSHIP) && !self.gate.is_open() {
                self.conflicts.entry(shard.clone()).or_insert_with(|| refuses_itself(&shard));
            } else {
                self.conflicts.remove(&shard);
            }
            return;
        }
        self.initialised.insert(shard.clone());
        match convert::marks_from_wire(&identified.marks) {
            Ok(marks) => {
                let holder = format!("shard {shard}");
                for (number, mark) in marks.iter() {
                    if number == self.number {
                        self.gate.acknowledge(mark, &holder);
                    } else {
                        self.gate.observe_peer(number, mark);
                    }
                }
            }
            Err(error) => tracing::error!(shard, %error, "another shard's node gave marks that cannot be read"),
        }
        // A node that is still starting refuses itself if it must. It must not shut down a shard that already serves.
        let starts = !identified.reads.as_ref().is_some_and(|reads| reads.works);
        if starts && self.gate.is_open() {
            return;
        }
        match doubly_owned(own, &owned, &shard) {
            Some(conflict) => {
                self.conflicts.insert(shard, conflict);
            }
            None => {
                self.conflicts.remove(&shard);
                self.heard.insert(shard);
            }
        }
    }
}

fn refuses_itself(shard: &str) -> Disagreement {
    let found = format!("shard {shard} does not serve, because another shard owns some of its slots as well");
    let remedy = format!("look at the log of shard {shard}: it names the slots and the other owner");
    Disagreement::new(SLOT_OWNERSHIP, "one owner for each slot", found, remedy)
}

/// INV-2: a slot has one owner at each epoch. The higher epoch wins; with equal epochs both claims are refused.
fn doubly_owned(own: &[(SlotRange, i64)], other: &[(SlotRange, i64)], shard: &str) -> Option<Disagreement> {
    let epoch_of = |owned: &[(SlotRange, i64)], slot: Slot| {
        owned.iter().find(|(range, _)| range.contains(slot)).map(|(_, epoch)| *epoch)
    };
    let taken = |slot: &Slot| match (epoch_of(own, *slot), epoch_of(other, *slot)) {
        (Some(own), Some(other)) => other >= own,
        _ => false,
    };
    let slots = merge_slots(Slot::all().filter(taken));
    if slots.is_empty() {
        return None;
    }
    let slots: Vec<String> = slots.iter().map(ToString::to_string).collect();
    let remedy = format!(
        "a slot has one owner, and this shard is not known to have been given them: if this is a shard that was added, remove its \
         database and initialise it with slots = []; if shard {shard} is the wrong one, stop it"
    );
    let found = format!("shard {shard} owns slots {} as well", slots.join(", "));
    Some(Disagreement::new(SLOT_OWNERSHIP, "one owner for each slot", found, remedy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_with_two_owners_is_named_unless_the_other_epoch_is_lower() {
        let range = |text: &str, epoch: i64| (text.parse().unwrap(), epoch);
        let own = [range("0-99", 1), range("200-299", 3)];
        assert_eq!(doubly_owned(&own, &[range("100-199", 1)], "s1"), None);
        let conflict = doubly_owned(&own, &[range("90-250", 1)], "s1").unwrap();
        assert!(conflict.found.contains("shard s1 owns slots 90-99 as well"), "epoch 3 outdates epoch 1: {conflict}");
        assert!(doubly_owned(&own, &[range("200-210", 4)], "s1").is_some());
    }
}

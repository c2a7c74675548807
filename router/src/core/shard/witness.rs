//! The router's record of how far each shard has come, and how the router introduces itself to nodes.
//!
//! A router remembers the highest mark it was told of each shard and passes it on. The shard itself detects by it
//! that its database went back in time; the other shards store it. The record ends with the process. Marks that must
//! survive are stored by the shards.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, HeaderValue};
use identity::{AssetScales, Disagreement, Disagreements, Expected, Mark, Marks, ShardIdentity, time::OtherClock};
use ledger::operation::Operation;
use node_client::{ConnectError, Introduce, Introduced, NodeClient};
use shard_map::{ShardMap, slot_of};
use telemetry::{
    clock,
    traces::{TRACEPARENT, Traceparent},
};
use wire::convert;

use crate::{core::routing::Routing, trace};

/// Shared by all shards of one router.
pub struct Witness {
    routing: Routing,
    /// The name by which nodes refer to this router in messages.
    caller: String,
    assets: AssetScales,
    assets_digest: u64,
    marks: Mutex<Marks>,
}

/// A shard's id and number, from the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardName {
    pub id: Arc<str>,
    pub number: u16,
}

impl Witness {
    pub fn new(routing: Routing, caller: &str, assets: AssetScales) -> Self {
        let text = assets.iter().map(|(asset, scale)| format!("{asset}={scale}\n")).collect::<String>();
        // Digest 0 is reserved for callers that declare no assets.
        let assets_digest = twox_hash::XxHash3_64::oneshot(text.as_bytes()).max(1);
        Self { routing, caller: caller.to_owned(), assets, assets_digest, marks: Mutex::default() }
    }

    /// The digest of the declared assets; every Execute call carries it.
    pub fn assets_digest(&self) -> u64 {
        self.assets_digest
    }

    /// The highest mark of a shard that this router was told.
    pub fn mark(&self, shard: u16) -> Mark {
        self.marks().of(shard)
    }

    /// Records the mark of an answer.
    pub fn observe(&self, shard: u16, mark: Mark) {
        self.marks().observe(shard, mark);
    }

    /// The mark of the shard at the other end of a saga, for the shard that executes the step.
    pub fn other_end(&self, map: &ShardMap, operation: &Operation) -> Option<(u16, Mark)> {
        let account = match operation {
            Operation::Decide(decide) => &decide.debit,
            Operation::Settle(settle) => &settle.credit,
            _ => return None,
        };
        // The map may lag behind a move. A superfluous mark does no harm, because its position contains the number of
        // its shard.
        let number = map.shard(map.owner(slot_of(account.as_str()))).number;
        let mark = self.mark(number);
        (mark != Mark::default()).then_some((number, mark))
    }

    /// The request that introduces this router to a node. It always contains the assets, because an asset may have
    /// come into use with another scale since the last request.
    pub fn introduce(&self, shard: &ShardName, clock: Option<&OtherClock>) -> wire::IdentifyRequest {
        let cluster = self.routing.load().map().cluster;
        wire::IdentifyRequest {
            marks: convert::marks_to_wire(&self.marks().excerpt(shard.number, clock::now_s())),
            assets: Some(convert::assets_to_wire(self.assets_digest, &self.assets)),
            node_ahead_us: clock.map(|clock| clock.ahead_us),
            uncertainty_us: clock.map_or(0, |clock| clock.uncertainty_us),
            ..wire::IdentifyRequest::expecting(cluster, &shard.id, shard.number, &self.caller)
        }
    }

    /// Compares a node's answer with what this router expects and records its marks. `told` is the shard's mark from
    /// before the question: a commit acknowledged since then may be missing from the answer.
    pub fn hear(
        &self,
        shard: &ShardName,
        url: &str,
        told: Mark,
        answer: &wire::IdentifyResponse,
    ) -> Result<(), Disagreements> {
        if !answer.refused.is_empty() {
            return Disagreements::check(answer.refused.iter().cloned().map(Into::into).collect());
        }
        let Some(identity) = answer.identity.clone() else {
            let (found, remedy) = if answer.uninitialised {
                (
                    "a database that was never initialised",
                    "initialise it if it is new, restore it if it held a ledger",
                )
            } else {
                ("a node that has not reached its database yet", "wait for it, or look at its log")
            };
            return Err(Disagreement::new("database", "a shard", found, remedy).into());
        };
        let bad = |error: &dyn std::fmt::Display| {
            let remedy = "run versions of router and shard-node that fit each other";
            Disagreements::from(Disagreement::new("answer", "an identity", error, remedy))
        };
        let identity = ShardIdentity::try_from(identity).map_err(|error| bad(&error))?;
        let expected = Expected {
            cluster: self.routing.load().map().cluster,
            shard: shard.id.to_string(),
            number: Some(shard.number),
        };
        let mut found = expected.compare(&identity, url);
        let mark: Mark = answer.mark.unwrap_or_default().into();
        if found.is_empty() {
            found.extend(mark.compare(told, &self.caller));
        }
        Disagreements::check(found)?;
        let marks = convert::marks_from_wire(&answer.marks).map_err(|error| bad(&error))?;
        // A node that does not serve may be waiting for a router that remembers its shard. Its own mark, sent back to it,
        // would look like that memory.
        let serves = answer.reads.as_ref().is_some_and(|reads| reads.works);
        let mut known = self.marks();
        for (number, mark) in marks.iter().chain([(shard.number, mark)]) {
            if serves || number != shard.number {
                known.observe(number, mark);
            }
        }
        Ok(())
    }

    /// The clock measurement of one exchange, taken against the node's steady clock.
    pub fn clock(shard: &ShardName, asked_us: i64, answer: &wire::IdentifyResponse) -> OtherClock {
        OtherClock::measured(&shard.id, asked_us, answer.steady_us, clock::now_us())
    }

    fn marks(&self) -> MutexGuard<'_, Marks> {
        // No code panics while it holds the lock.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === what a connection begins with, and what its calls carry ===

/// How the router introduces itself on each new connection: the shard that the node must be, and the router's record of the shards.
pub struct Greeting {
    pub witness: Arc<Witness>,
    pub shard: ShardName,
}

#[tonic::async_trait]
impl Introduce for Greeting {
    async fn introduce(&self, mut node: NodeClient, uri: &str) -> Result<Introduced, ConnectError> {
        let told = self.witness.mark(self.shard.number);
        let answer = node.identify(self.witness.introduce(&self.shard, None)).await;
        let answer = answer
            .map_err(|status| ConnectError::Silent { uri: uri.to_owned(), status: status.message().to_owned() })?
            .into_inner();
        self.witness
            .hear(&self.shard, uri, told, &answer)
            .map_err(|disagreements| ConnectError::Refused { uri: uri.to_owned(), disagreements })?;
        Ok(Introduced::of(&answer))
    }

    /// The router's mark of the shard, which reads must have reached, and the trace of the request.
    fn headers(&self, headers: &mut HeaderMap) {
        // A read runs in its request's task and takes the trace from there. Writes share a call, so each operation
        // carries its own trace.
        if let Some(traceparent) = trace::current_traceparent()
            && let Ok(text) = HeaderValue::from_str(traceparent.encode(&mut Traceparent::buffer()))
        {
            headers.insert(TRACEPARENT, text);
        }
        let mark = self.witness.mark(self.shard.number);
        if let Ok(at_least) = HeaderValue::try_from(wire::at_least_to_header(mark)) {
            headers.insert(wire::AT_LEAST, at_least);
        }
    }
}

#[cfg(test)]
mod tests {
    use identity::shard::RoutingFacts;

    use super::*;
    use crate::core::routing::tests::map_of;

    fn mark(position: i64) -> Mark {
        Mark { incarnation: 1, timeline: 1, position, ..Mark::default() }
    }

    fn answer(witness: &Witness, shard: &str, number: u16, position: i64) -> wire::IdentifyResponse {
        let identity = ShardIdentity {
            cluster: witness.routing.load().map().cluster,
            shard: shard.to_owned(),
            number,
            routing: RoutingFacts::OWN,
        };
        wire::IdentifyResponse {
            identity: Some((&identity).into()),
            mark: Some(mark(position).into()),
            reads: Some(wire::Readiness { works: true, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn a_node_is_accepted_only_if_it_is_the_shard_and_has_every_acknowledged_mark() {
        let witness = Witness::new(Routing::fixed(map_of(1, &["s0", "s1"])), "router r", AssetScales::new());
        let s0 = ShardName { id: "s0".into(), number: 0 };
        let hear = |answer: &wire::IdentifyResponse| {
            let heard = witness.hear(&s0, "http://node:1", witness.mark(0), answer);
            heard.map_err(|refused| refused.list()[0].fact.clone())
        };
        assert_eq!(hear(&answer(&witness, "s0", 0, 100)), Ok(()));
        assert_eq!(witness.mark(0), mark(100));
        assert_eq!(hear(&answer(&witness, "s0", 0, 99)), Err("position".to_owned()));
        assert_eq!(hear(&answer(&witness, "s1", 1, 200)), Err("shard".to_owned()));
        assert_eq!(hear(&wire::IdentifyResponse::default()), Err("database".to_owned()));
        let other =
            wire::ShardIdentity { cluster: vec![7; 16].into(), ..answer(&witness, "s0", 0, 0).identity.unwrap() };
        let foreign = wire::IdentifyResponse { identity: Some(other), ..answer(&witness, "s0", 0, 100) };
        assert_eq!(hear(&foreign), Err("cluster".to_owned()));

        // The router also records what one shard knows of another.
        let position = ledger::Position::first_of(1).0 + 6;
        let knows = vec![convert::shard_mark_to_wire((1, mark(position)))];
        assert_eq!(hear(&wire::IdentifyResponse { marks: knows, ..answer(&witness, "s0", 0, 101) }), Ok(()));
        assert_eq!((witness.mark(0), witness.mark(1)), (mark(101), mark(position)));
    }

    #[test]
    fn the_mark_of_a_node_that_does_not_serve_is_not_remembered() {
        let witness = Witness::new(Routing::fixed(map_of(1, &["s0", "s1"])), "router r", AssetScales::new());
        let s0 = ShardName { id: "s0".into(), number: 0 };
        let other = ledger::Position::first_of(1).0 + 6;
        let marks = [(0, mark(7)), (1, mark(other))].map(convert::shard_mark_to_wire).into();
        let waiting = wire::IdentifyResponse { reads: None, marks, ..answer(&witness, "s0", 0, 7) };
        assert_eq!(witness.hear(&s0, "http://node:1", Mark::default(), &waiting), Ok(()));
        assert_eq!((witness.mark(0), witness.mark(1)), (Mark::default(), mark(other)));
    }

    #[test]
    fn a_mark_acknowledged_during_the_exchange_does_not_refuse_the_node() {
        let witness = Witness::new(Routing::fixed(map_of(1, &["s0"])), "router r", AssetScales::new());
        let s0 = ShardName { id: "s0".into(), number: 0 };
        let told = witness.mark(0);
        witness.observe(0, mark(500));
        assert_eq!(witness.hear(&s0, "http://node:1", told, &answer(&witness, "s0", 0, 400)), Ok(()));
    }
}

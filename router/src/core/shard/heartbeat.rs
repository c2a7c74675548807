//! The heartbeat: once a second the router identifies itself to the node, compares the answer, and passes on the
//! marks it knows.
//!
//! A node that no longer serves the shard (its database was restored or replaced) loses its connection here and is
//! compared again before it gets another one. `/readyz` shows the readiness that the node reported.

use std::sync::PoisonError;

use identity::time::OtherClock;
use telemetry::clock;
use tokio::time::Instant;

use super::{
    Shard,
    witness::{ShardName, Witness},
};

/// What a node reported at its last heartbeat.
#[derive(Debug, Clone)]
pub struct NodeReport {
    /// True if the node answered the heartbeat.
    is_heard: bool,
    pub reads: Result<(), String>,
    pub writes: Result<(), String>,
    clock: Option<OtherClock>,
    sagas_due: bool,
}

/// Whether reads and writes work at a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Working {
    pub reads: bool,
    pub writes: bool,
}

/// The result of a heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Beat {
    /// The node is the shard. `ownership_version` changes with the slots that the shard owns, and `map_version` with the newest map that it
    /// was given.
    Heard { ownership_version: i64, map_version: i64 },
    /// No node of the shard answered or was accepted, with the reason.
    Lost(String),
}

impl Shard {
    /// Goes back to a node that is preferred to the one in use, if it serves again.
    pub async fn return_to_preferred(&self, until: Instant) {
        self.client.return_to_preferred(until).await;
    }

    /// Sends one heartbeat and waits for the answer until `until`.
    pub async fn beat(&self, until: Instant) -> Beat {
        let name = ShardName { id: self.id.clone(), number: self.number };
        let clock_before = self.node_report().and_then(|report| report.clock);
        let told = self.witness.mark(self.number);
        let request = self.witness.introduce(&name, clock_before.as_ref());
        let asked_us = clock::now_us();
        let asked = self
            .call(until, |connection| {
                let request = request.clone();
                async move {
                    let asked = Instant::now();
                    let answer = connection.client().identify(request).await?;
                    connection.clock().heard(asked, Instant::now(), answer.get_ref().steady_us);
                    Ok(answer)
                }
            })
            .await;
        let outcome = match asked {
            Ok(answer) => {
                let clock = Witness::clock(&name, asked_us, &answer);
                self.witness.hear(&name, "the node", told, &answer).map(|()| (clock, answer)).map_err(|refused| {
                    // A refused node is not used until the next heartbeat either.
                    self.client.drop_connection();
                    refused.to_string()
                })
            }
            Err(failure) => Err(failure.to_string()),
        };
        let (report, beat) = match outcome {
            Ok((clock, answer)) => {
                let works = |readiness: Option<wire::Readiness>| match readiness {
                    Some(wire::Readiness { works: true, .. }) => Ok(()),
                    Some(readiness) => Err(readiness.cause),
                    None => Err("the node does not say".to_owned()),
                };
                let report = NodeReport {
                    is_heard: true,
                    reads: works(answer.reads),
                    writes: works(answer.writes),
                    clock: Some(clock),
                    sagas_due: answer.sagas_due,
                };
                let map_version = answer.shard_map_version;
                (report, Beat::Heard { ownership_version: answer.ownership_version, map_version })
            }
            Err(why) => {
                let (reads, writes) = (Err(why.clone()), Err(why.clone()));
                let report = NodeReport { is_heard: false, reads, writes, clock: None, sagas_due: false };
                (report, Beat::Lost(why))
            }
        };
        *self.reported.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        beat
    }

    /// Whether reads and writes worked at the last heartbeat.
    pub fn working(&self) -> Working {
        let report = self.node_report();
        let works = |of: fn(&NodeReport) -> bool| report.as_ref().is_some_and(of);
        Working { reads: works(|report| report.reads.is_ok()), writes: works(|report| report.writes.is_ok()) }
    }

    /// Whether a write cannot succeed: the breaker is open, or waits for the answer of a probe, or the node has reported at the last
    /// heartbeat that its database takes no writes. Work that needs this shard must not begin. An unanswered heartbeat alone does
    /// not cut a shard off, because the node may only be slow.
    pub fn is_cut_off(&self) -> bool {
        !self.breaker().is_closed()
            || self.node_report().is_some_and(|report| report.is_heard && report.writes.is_err())
    }

    /// Whether the node reported at the last heartbeat that a saga's next attempt is due.
    pub fn has_due_sagas(&self) -> bool {
        self.node_report().is_some_and(|report| report.sagas_due)
    }

    fn node_report(&self) -> Option<NodeReport> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

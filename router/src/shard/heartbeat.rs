//! The heartbeat: once a second the router identifies itself to the node, compares the answer, and passes on the
//! marks it knows.
//!
//! A node that no longer serves the shard (its database was restored or replaced) loses its connection here and is
//! compared again before it gets another one. `/readyz` shows the readiness that the node reported.

use std::sync::PoisonError;

use identity::time::OtherClock;
use telemetry::clock;
use tokio::time::Instant;

use super::{Shard, witness::ShardName};

/// What a node said at its last heartbeat.
#[derive(Debug, Clone)]
pub struct Said {
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
        let clock_before = self.said().and_then(|said| said.clock);
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
                let clock = super::witness::Witness::clock(&name, asked_us, &answer);
                self.witness.hear(&name, "the node", told, &answer).map(|()| (clock, answer)).map_err(|refused| {
                    // A refused node is not used until the next heartbeat either.
                    self.client.drop_connection();
                    refused.to_string()
                })
            }
            Err(failure) => Err(failure.to_string()),
        };
        let (said, beat) = match outcome {
            Ok((clock, answer)) => {
                let works = |readiness: Option<wire::Readiness>| match readiness {
                    Some(wire::Readiness { works: true, .. }) => Ok(()),
                    Some(readiness) => Err(readiness.cause),
                    None => Err("the node does not say".to_owned()),
                };
                let said = Said {
                    is_heard: true,
                    reads: works(answer.reads),
                    writes: works(answer.writes),
                    clock: Some(clock),
                    sagas_due: answer.sagas_due,
                };
                let map_version = answer.shard_map_version;
                (said, Beat::Heard { ownership_version: answer.ownership_version, map_version })
            }
            Err(why) => {
                let (reads, writes) = (Err(why.clone()), Err(why.clone()));
                let said = Said { is_heard: false, reads, writes, clock: None, sagas_due: false };
                (said, Beat::Lost(why))
            }
        };
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        beat
    }

    /// Whether reads and writes worked at the last heartbeat.
    pub fn working(&self) -> Working {
        let said = self.said();
        let works = |of: fn(&Said) -> bool| said.as_ref().is_some_and(of);
        Working { reads: works(|said| said.reads.is_ok()), writes: works(|said| said.writes.is_ok()) }
    }

    /// Whether a write has no chance: the breaker is open, or waits for the answer of a probe, or the node has reported at the last
    /// heartbeat that its database takes no writes. Work that needs this shard must not begin. An unanswered heartbeat alone does
    /// not cut a shard off, because the node may only be slow.
    pub fn is_cut_off(&self) -> bool {
        !self.breaker().is_closed() || self.said().is_some_and(|said| said.is_heard && said.writes.is_err())
    }

    /// Whether the node reported at the last heartbeat that a saga's next attempt is due.
    pub fn has_due_sagas(&self) -> bool {
        self.said().is_some_and(|said| said.sagas_due)
    }

    fn said(&self) -> Option<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

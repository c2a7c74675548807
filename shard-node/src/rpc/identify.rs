//! Identify and Examine: who this node is, whether that matches what the caller expects, and every fact that is
//! compared.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use identity::{
    AssetScales, Disagreement, Disagreements, Expected, Mark, ShardIdentity, assets, shard::RoutingFacts,
    time::OtherClock,
};
use shard_database::server::{Purpose, ServerFacts};
use shard_map::{ClusterId, ShardMap};
use tonic::Status;
use wire::{convert, fact::Verdict};

use super::{Service, read_failed};
use crate::{clock::steady_us, role::Role, store};

/// At the latest after this time, a router with few shards asks again.
const HEARTBEAT_US: i64 = 1_000_000;
/// Most declarations kept; a cluster has fewer versions of its routers' configuration.
const MAX_DECLARATIONS: usize = 64;

impl Service {
    pub(super) async fn identified(&self, request: wire::IdentifyRequest) -> Result<wire::IdentifyResponse, Status> {
        let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
        let caller = if request.caller.is_empty() { "a caller" } else { request.caller.as_str() };
        let marks = convert::marks_from_wire(&request.marks).map_err(|error| invalid(&error))?;
        // Only routers declare assets.
        let is_router = request.assets.is_some();
        let expected = Expected {
            cluster: ClusterId::try_from(request.cluster.as_ref()).map_err(|error| invalid(&error))?,
            shard: request.shard,
            number: request
                .shard_number
                .map(u16::try_from)
                .transpose()
                .map_err(|_| Status::invalid_argument("shard_number is beyond 65535"))?,
        };
        let (record, server) = self.gate.last_seen();
        let Some(record) = record else {
            // The identity that the database gets when it is initialised.
            let own = self.gate.expected();
            let identity = ShardIdentity {
                cluster: own.cluster,
                shard: own.shard.clone(),
                number: expected.number.unwrap_or_default(),
                routing: RoutingFacts::OWN,
            };
            return Ok(wire::IdentifyResponse {
                uninitialised: self.gate.is_uninitialised(),
                refused: expected.compare(&identity, "the address").into_iter().map(Into::into).collect(),
                clock_us: telemetry::clock::now_us(),
                steady_us: steady_us(),
                reads: Some(readiness(self.gate.reads())),
                writes: Some(readiness(self.gate.writes())),
                ..Default::default()
            });
        };
        let mut refused = expected.compare(&record.identity, "the address");
        let own_routing = RoutingFacts { slots: request.slots, hash_seed: request.hash_seed };
        if own_routing != RoutingFacts::OWN {
            let remedy = "the caller finds accounts in other slots than this node: run one version of both";
            refused.push(Disagreement::new("routing", "the same slots and hash", format!("{own_routing:?}"), remedy));
        }
        if refused.is_empty() {
            if is_router {
                self.role.use_now();
            }
            refused.extend(self.gate.refusals());
            if let Some(declared) = request.assets {
                refused.extend(self.declare(declared));
            }
            for (number, mark) in marks.iter() {
                if number == record.identity.number {
                    self.gate.acknowledge(mark, caller);
                    self.look_again_for(mark).await;
                    self.gate.set_router_reported_mark();
                } else {
                    self.gate.observe_peer(number, mark);
                }
            }
            if let Some(ahead_us) = request.node_ahead_us {
                // `ahead_us` is the node's lead over the caller; the caller's lead over the node is its negative.
                let (owner, ahead_us) = (caller.to_owned(), ahead_us.saturating_neg());
                self.clock.measured(OtherClock { owner, ahead_us, uncertainty_us: request.uncertainty_us });
            }
        } else {
            let refused = Disagreements::check(refused.clone()).err().map(|refused| refused.to_string());
            tracing::error!(caller, refused, "refused a caller that expects another shard");
        }
        // A caller that is not refused remembers the mark as acknowledged.
        let mark = if refused.is_empty() { self.gate.served() } else { self.gate.found() };
        let lane = self.lane.status();
        let mut known = self.gate.peers();
        // In front of a wrong database, this node knows nothing of that database's shard.
        if self.gate.expected().compare(&record.identity, "").is_empty() {
            known.observe(record.identity.number, self.gate.acknowledged().mark());
        }
        // A router asks every second. A node that starts asks for the mark of its own shard.
        if is_router {
            known = known.excerpt(record.identity.number, telemetry::clock::now_s());
        }
        Ok(wire::IdentifyResponse {
            identity: Some((&record.identity).into()),
            uninitialised: false,
            refused: refused.into_iter().map(Into::into).collect(),
            mark: Some(mark.into()),
            marks: convert::marks_to_wire(&known),
            clock_us: telemetry::clock::now_us(),
            steady_us: steady_us(),
            reads: Some(readiness(self.gate.reads())),
            writes: Some(readiness(self.gate.writes())),
            ownership_version: lane.ownership_version,
            founding_map: record.founding_map,
            fresh: record.is_fresh() && mark.position == record.state.next_position,
            server_started_at_us: server.as_ref().map_or(0, |server| server.started_at_us),
            database_oid: server.map_or(0, |server| server.database_oid),
            sagas_due: self.reads.tail.has_due_saga(self.clock.now_us() + HEARTBEAT_US),
            shard_map_version: self.gate.map_version(),
            role: Some(role(self.role.now())),
        })
    }

    /// Keeps a router's declaration if it agrees with the scales in use.
    fn declare(&self, declared: wire::DeclaredAssets) -> Vec<Disagreement> {
        let (digest, scales) = convert::assets_from_wire(declared);
        let (version, in_use) = self.lane.scales();
        let found = assets::compare(&scales, &in_use, &self.gate.expected().shard);
        if found.is_empty() {
            self.assets.keep(digest, version, scales);
        }
        found
    }

    /// The caller knows a higher mark than this node has seen, for example because another node of the shard
    /// committed it. Reads the mark from the database, so that this answer does not appear to be behind.
    async fn look_again_for(&self, mark: Mark) {
        let look = self.gate.begin_look();
        if self.gate.is_open()
            && self.gate.served().is_behind(mark)
            && let Ok(found) = store::read::mark(&self.reads.from).await
        {
            // If another server was accepted meanwhile, the next heartbeat looks again.
            let _ = self.gate.end_look(look, found);
        }
    }

    /// Refuses a map that moves a slot to another shard without a move.
    pub(super) async fn refuse_map(&self, map: &ShardMap) -> Result<(), Status> {
        let expected = self.gate.expected();
        let (text, version) = store::read::shard_map(&self.reads.from).await.map_err(read_failed)?;
        // A map that is not newer is ignored anyway.
        if i64::try_from(map.version).is_ok_and(|offered| offered <= version) {
            return Ok(());
        }
        let before = ShardMap::parse(&text).ok();
        let refused = if map.cluster == expected.cluster {
            let ownership = store::read::ownership(&self.reads.from).await.map_err(read_failed)?;
            ownership.refuse_map(&expected.shard, before.as_ref(), map)
        } else {
            let remedy = "offer the map of this shard's cluster";
            Some(Disagreement::new("cluster of the map", expected.cluster, map.cluster, remedy))
        };
        match refused {
            None => Ok(()),
            Some(disagreement) => {
                tracing::error!(version = map.version, %disagreement, "a shard map was refused");
                Err(Status::invalid_argument(disagreement.to_string()))
            }
        }
    }

    pub(super) fn shard_number(&self) -> u16 {
        self.gate.last_seen().0.map_or(0, |record| record.identity.number)
    }

    /// Every fact that this node compares, including those that agree.
    pub(super) fn facts(&self) -> Vec<wire::Fact> {
        let refusals = self.gate.refusals();
        let mut facts = Facts::default();
        let (record, server) = self.gate.last_seen();
        let expected = self.gate.expected();
        if let Some(record) = &record {
            facts.agree("cluster", record.identity.cluster, &refusals);
            facts.agree("shard", &record.identity.shard, &refusals);
            facts.agree("schema version", record.state.schema_version, &refusals);
            facts.agree("system identifier", record.system_identifier, &refusals);
            facts.agree("position", self.gate.found(), &refusals);
        } else {
            facts.agree("shard", &expected.shard, &refusals);
        }
        if let Some(server) = &server {
            facts.server(server, &refusals);
        }
        // The refusals that were not listed above.
        for refusal in &refusals {
            facts.add(Verdict::Disagrees, refusal.clone());
        }
        match self.clock.disagreement() {
            Some(disagreement) => facts.add(Verdict::Disagrees, disagreement),
            None => {
                facts.add(Verdict::Agrees, Disagreement::new("clock", "within the bound", "within the bound", ""))
            }
        }
        for other in self.clock.others() {
            facts.add(Verdict::Disagrees, other);
        }
        for (fact, works) in [("reads", self.gate.reads()), ("writes", self.gate.writes())] {
            let verdict = if works.is_ok() { Verdict::Agrees } else { Verdict::Disagrees };
            let (found, remedy) = match works {
                Ok(()) => ("work".to_owned(), ""),
                Err(cause) => (cause, "remove the cause; the node then resumes by itself"),
            };
            facts.add(verdict, Disagreement::new(fact, "work", found, remedy));
        }
        facts.0
    }
}

/// Facts in display order, each once.
#[derive(Default)]
struct Facts(Vec<wire::Fact>);

impl Facts {
    fn add(&mut self, verdict: Verdict, fact: Disagreement) {
        if !self.0.iter().any(|known| known.fact.as_ref().is_some_and(|known| known.fact == fact.fact)) {
            self.0.push(wire::Fact { verdict: verdict.into(), fact: Some(fact.into()) });
        }
    }

    /// Adds a fact as agreeing, unless the refusals contain it.
    fn agree(&mut self, fact: &str, value: impl std::fmt::Display, refusals: &[Disagreement]) {
        match refusals.iter().find(|refusal| refusal.fact == fact) {
            Some(refusal) => self.add(Verdict::Disagrees, refusal.clone()),
            None => self.add(Verdict::Agrees, Disagreement::new(fact, &value, &value, "")),
        }
    }

    fn server(&mut self, server: &ServerFacts, refusals: &[Disagreement]) {
        self.agree("server", if server.is_standby { "a stand-by" } else { "a primary" }, refusals);
        let wrong = server.disagreements(Purpose::Writes, &[]);
        for name in ServerFacts::required() {
            match wrong.iter().find(|wrong| wrong.fact == name) {
                Some(wrong) => self.add(Verdict::Disagrees, wrong.clone()),
                None => self.agree(name, server.setting(name), refusals),
            }
        }
        for warning in server.warnings() {
            self.add(Verdict::Warning, warning);
        }
    }
}

/// Converts the state of reads or writes for the wire.
pub(super) fn readiness(works: Result<(), String>) -> wire::Readiness {
    match works {
        Ok(()) => wire::Readiness { works: true, cause: String::new() },
        Err(cause) => wire::Readiness { works: false, cause },
    }
}

/// Converts the node's role for the wire.
pub(super) fn role(role: Role) -> wire::NodeRole {
    match role {
        Role::Active => wire::NodeRole { active: true, behind: 0 },
        Role::Following { behind } => wire::NodeRole { active: false, behind },
    }
}

/// The asset declarations of routers, by the digest that their calls carry.
#[derive(Debug, Clone, Default)]
pub struct DeclaredAssets(Arc<Mutex<HashMap<u64, Declaration>>>);

#[derive(Debug, Clone)]
struct Declaration {
    /// The version of the scales in use when the declaration was last compared.
    compared_with: u64,
    scales: Arc<AssetScales>,
}

impl DeclaredAssets {
    fn keep(&self, digest: u64, compared_with: u64, scales: AssetScales) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A router whose declaration was dropped declares again.
        if kept.len() >= MAX_DECLARATIONS && !kept.contains_key(&digest) {
            kept.clear();
        }
        kept.insert(digest, Declaration { compared_with, scales: Arc::new(scales) });
    }

    /// The scales declared under a digest, compared again if the scales in use have changed.
    ///
    /// # Errors
    /// `failed_precondition` when the digest is unknown or its declaration no longer agrees. Nothing was executed,
    /// and the caller must identify itself again.
    pub(super) fn of(
        &self,
        digest: u64,
        (version, in_use): (u64, Arc<AssetScales>),
        shard: &str,
    ) -> Result<Arc<AssetScales>, Status> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(declaration) = kept.get_mut(&digest) else {
            return Err(Status::failed_precondition("the caller has not declared its assets (Identify)"));
        };
        if declaration.compared_with != version {
            let found = assets::compare(&declaration.scales, &in_use, shard);
            if let Err(disagreements) = Disagreements::check(found) {
                kept.remove(&digest);
                return Err(Status::failed_precondition(disagreements.to_string()));
            }
            declaration.compared_with = version;
        }
        Ok(Arc::clone(&declaration.scales))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales(pairs: &[(&str, u32)]) -> AssetScales {
        pairs.iter().map(|(asset, scale)| ((*asset).to_owned(), *scale)).collect()
    }

    #[test]
    fn a_declaration_holds_until_an_asset_comes_into_use_with_another_scale() {
        let assets = DeclaredAssets::default();
        let in_use = |version, pairs| (version, Arc::new(scales(pairs)));
        assert!(assets.of(1, in_use(0, &[]), "s0").is_err(), "nothing was declared");
        assets.keep(1, 0, scales(&[("BTC", 8)]));
        assets.keep(2, 0, scales(&[("BTC", 6)]));
        for digest in [1, 2] {
            assert!(assets.of(digest, in_use(0, &[]), "s0").is_ok());
        }
        assert!(assets.of(1, in_use(1, &[("BTC", 8)]), "s0").is_ok());
        let refused = assets.of(2, in_use(1, &[("BTC", 8)]), "s0").unwrap_err();
        assert!(refused.message().contains("BTC = 8"), "{refused}");
        assert!(assets.of(2, in_use(1, &[("BTC", 8)]), "s0").is_err(), "it is forgotten");
    }
}

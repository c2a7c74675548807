//! The gate decides whether the node serves its database (`docs/adr/0008`).
//!
//! The gate checks that the database belongs to the configured shard and contains everything the shard has
//! acknowledged. It checks every session before the session is used, and the monitor's session once a second. While
//! the gate refuses the database, the node executes no writes and answers no reads; `/readyz?verbose` and error
//! answers name the disagreement. The gate opens again as soon as the facts agree.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Instant,
};

use identity::{Disagreement, Disagreements, Expected, Mark, Marks};
use ledger::Position;
use shard_database::{
    Database, ShardState,
    record::{ShardRecord, compare_schema},
    server::{Purpose, ServerFacts, ServerId},
};

/// Shared by every part of the node that connects to the database or answers requests.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    expected: Expected,
    state: Mutex<State>,
    /// The newest version of the shard map that this node has seen in its database.
    map_version: AtomicI64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Why the node still waits for other shards; `None` once all of them have answered.
    waiting: Option<String>,
    /// Whether a router has reported a mark of this shard. A router that does so has seen the shard before.
    router_reported_mark: bool,
    acknowledged: Acknowledged,
    /// The highest mark that the shard is known to have acknowledged and the accepted database to have reached: by a commit of this node,
    /// by a look at a database whose commits wait for no stand-by, or because a participant was told it and a look found it.
    served: Mark,
    /// Whether commits on the server that was accepted last wait for a stand-by.
    waits_for_standby: bool,
    /// The mark that the last look found, on an accepted database or on a refused one.
    found: Mark,
    record: Option<ShardRecord>,
    server: Option<ServerFacts>,
    /// The database server that was accepted last, and when.
    accepted: Option<(ServerId, Instant)>,
    /// The marks of other shards that routers and nodes have reported.
    peers: Marks,
    /// Answers of other shards that forbid serving this shard.
    conflicts: Vec<Disagreement>,
    /// Whether the server accepts writes, by its settings. Failures of the lane are kept in `writes`.
    unwritable: Result<(), Disagreements>,
    /// Why the server cannot be reached, by the last look.
    unreachable: Option<String>,
    reads: Result<(), String>,
    writes: Result<(), String>,
}

/// The highest mark of this shard that any participant was told, and which participant reported it.
#[derive(Debug, Clone, Default)]
pub struct Acknowledged {
    mark: Mark,
    /// The participant that remembers the mark; error messages name it.
    holder: String,
}

impl Acknowledged {
    pub fn mark(&self) -> Mark {
        self.mark
    }
}

/// A look at the accepted database that is under way.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Look {
    /// The server that is accepted when the look begins.
    accepted: Option<(ServerId, Instant)>,
    timeline: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// The database has not been compared yet.
    Starting,
    Uninitialised,
    /// The database is the expected shard, but the other shards have not yet said what they remember of it.
    Compared,
    Open,
    Refused(Disagreements),
}

/// The refusal for an empty database.
const NEVER_INITIALISED: &str = "the database was never initialised as a shard";
const WHAT_TO_DO_WITH_AN_EMPTY_DATABASE: &str = "If it is meant to be a new shard, run `shard-node init --config FILE --map shard-map.toml`; \
     if it held a ledger before, do not: restore or mount it";
const NOT_REACHED: &str = "the shard's database has not been reached yet";
const OTHERS_NOT_ASKED: &str = "the other shards have not been asked yet what they remember of this one";

impl Gate {
    pub fn new(expected: Expected) -> Self {
        let state = State {
            phase: Phase::Starting,
            waiting: Some(OTHERS_NOT_ASKED.to_owned()),
            router_reported_mark: false,
            acknowledged: Acknowledged::default(),
            served: Mark::default(),
            waits_for_standby: true,
            found: Mark::default(),
            record: None,
            server: None,
            accepted: None,
            peers: Marks::default(),
            conflicts: Vec::new(),
            unwritable: Ok(()),
            unreachable: None,
            reads: Err(NOT_REACHED.to_owned()),
            writes: Err(NOT_REACHED.to_owned()),
        };
        Self(Arc::new(Shared { expected, state: Mutex::new(state), map_version: AtomicI64::new(0) }))
    }

    /// The newest version of the shard map that this node has seen in its database; 0: it has not looked.
    pub fn map_version(&self) -> i64 {
        self.0.map_version.load(Relaxed)
    }

    pub fn saw_map_version(&self, version: i64) {
        self.0.map_version.fetch_max(version, Relaxed);
    }

    /// A gate that has accepted the shard `s0` of number 0 in this state, on timeline 1.
    #[cfg(test)]
    pub fn open_for_tests(state: ShardState) -> Self {
        Self::open_to(shard_map::ClusterId::generate(), "s0", 0, state)
    }

    /// A gate that has accepted a shard in this state, on timeline 1.
    #[cfg(any(test, feature = "simulation"))]
    pub fn open_to(cluster: shard_map::ClusterId, shard: &str, number: u16, state: ShardState) -> Self {
        Self::open_on(&ServerFacts::for_tests(7, 1), cluster, shard, number, state)
    }

    /// As [`Gate::open_to`], on a server with these facts.
    #[cfg(any(test, feature = "simulation"))]
    pub fn open_on(
        facts: &ServerFacts,
        cluster: shard_map::ClusterId,
        shard: &str,
        number: u16,
        state: ShardState,
    ) -> Self {
        use identity::{ShardIdentity, shard::RoutingFacts};
        let gate = Self::new(Expected { cluster, shard: shard.to_owned(), number: None });
        gate.set_waiting(None);
        let record = ShardRecord {
            identity: ShardIdentity { cluster, shard: shard.to_owned(), number, routing: RoutingFacts::OWN },
            founding_map: None,
            complete: true,
            system_identifier: 7,
            database_oid: 0,
            timeline: 1,
            timeline_began: 0,
            state,
        };
        let found = Database::Shard(Box::new(record));
        assert_eq!(gate.decide(facts, &found, &[], &gate.acknowledged()), Ok(()));
        gate
    }

    pub fn expected(&self) -> &Expected {
        &self.0.expected
    }

    // === the database ===

    /// Compares what a session found with what this node expects. Read `acknowledged` before the session looks at the
    /// database: a commit that is acknowledged during the look may be missing from its result.
    pub fn judge(
        &self,
        purpose: Purpose,
        facts: &ServerFacts,
        database: &Database,
        asked_for: &[(&str, &str)],
        acknowledged: &Acknowledged,
    ) -> Result<(), Disagreements> {
        let mut found = facts.disagreements(purpose, asked_for);
        match database {
            // For a stand-by or a wrong encoding, those disagreements matter more than the missing ledger.
            Database::Uninitialised if found.is_empty() => found.push(uninitialised()),
            Database::Uninitialised => {}
            Database::Shard(record) => {
                found.extend(record.compare(&self.0.expected));
                // The positions of another shard say nothing about this shard.
                if found.is_empty() {
                    found.extend(compare_server(facts, record));
                    found.extend(mark_of(facts, record).compare(acknowledged.mark, &acknowledged.holder));
                }
            }
        }
        found.extend(self.state().conflicts.iter().cloned());
        Disagreements::check(found)
    }

    /// Runs [`Gate::judge`] on behalf of the whole node and opens or closes the gate. Reads and writes are decided
    /// separately.
    pub fn decide(
        &self,
        facts: &ServerFacts,
        database: &Database,
        asked_for: &[(&str, &str)],
        acknowledged: &Acknowledged,
    ) -> Result<(), Disagreements> {
        let outcome = self.judge(Purpose::Reads, facts, database, asked_for, acknowledged);
        let mut state = self.state();
        let unwritable = Disagreements::check(facts.disagreements(Purpose::Writes, &[]));
        match (&state.unwritable, &unwritable) {
            (Ok(()), Err(cause)) => tracing::error!(%cause, "writes do not work; the node refuses them"),
            (Err(_), Ok(())) => tracing::info!("the database takes writes again"),
            _ => {}
        }
        state.unwritable = unwritable;
        state.server = Some(facts.clone());
        if let Database::Shard(record) = database {
            state.record = Some((**record).clone());
            let mark = mark_of(facts, record);
            state.found = mark;
            if outcome.is_ok() {
                state.waits_for_standby = facts.waits_for_standby();
                let proven = state.proven_by_look(mark);
                state.served = state.served.merged(proven);
                state.accept(facts.id(), proven);
            }
        }
        let agreed = if state.waiting.is_none() { Phase::Open } else { Phase::Compared };
        state.enter(match &outcome {
            Ok(()) => agreed,
            Err(_) if *database == Database::Uninitialised && !facts.is_standby => Phase::Uninitialised,
            Err(refused) => Phase::Refused(refused.clone()),
        });
        outcome
    }

    /// The lane's short form of [`Gate::judge`], for a session that was judged before and whose server is on
    /// `timeline`.
    pub fn judge_state(
        &self,
        found: &ShardState,
        timeline: i64,
        acknowledged: &Acknowledged,
    ) -> Result<(), Disagreements> {
        let (incarnation, position) = (found.incarnation, found.next_position);
        let mark = Mark { incarnation, timeline, position, ..Mark::default() };
        let mut wrong: Vec<Disagreement> = compare_schema(found.schema_version).into_iter().collect();
        wrong.extend(mark.compare(acknowledged.mark, &acknowledged.holder));
        Disagreements::check(wrong)
    }

    /// Whether a session on this server may still be used. It may not once another server was accepted: after a
    /// promotion the former primary may still be running.
    pub fn serves(&self, server: ServerId) -> bool {
        self.state().accepted.is_none_or(|(accepted, _)| accepted == server)
    }

    /// When the current server was accepted. A connection opened earlier may lead to another server.
    pub fn accepted_since(&self) -> Option<Instant> {
        self.state().accepted.map(|(_, since)| since)
    }

    /// Why the node serves nothing; `None` while it serves.
    pub fn closed(&self) -> Option<String> {
        let state = self.state();
        match &state.phase {
            Phase::Open => None,
            Phase::Starting => Some(NOT_REACHED.to_owned()),
            Phase::Compared => Some(state.waiting.clone().unwrap_or_default()),
            Phase::Uninitialised => Some(uninitialised().to_string()),
            Phase::Refused(refused) => Some(refused.to_string()),
        }
    }

    /// Whether other shards may ask what this shard owns. This is true before the gate opens; otherwise nodes that
    /// start at the same time would all wait for each other.
    pub fn may_be_asked(&self) -> bool {
        matches!(self.state().phase, Phase::Compared | Phase::Open)
    }

    pub fn is_open(&self) -> bool {
        self.state().phase == Phase::Open
    }

    /// Sets why the node waits for other shards. After `None`, the next look at the database opens the gate.
    pub fn set_waiting(&self, reason: Option<String>) {
        self.state().waiting = reason;
    }

    pub fn has_reached_database(&self) -> bool {
        self.state().phase != Phase::Starting
    }

    pub fn is_uninitialised(&self) -> bool {
        self.state().phase == Phase::Uninitialised
    }

    /// Every disagreement that keeps the gate closed.
    pub fn refusals(&self) -> Vec<Disagreement> {
        match &self.state().phase {
            Phase::Refused(refused) => refused.list().to_vec(),
            Phase::Uninitialised => vec![uninitialised()],
            Phase::Starting | Phase::Compared | Phase::Open => Vec::new(),
        }
    }

    /// The shard record and the server facts that were read last.
    pub fn last_seen(&self) -> (Option<ShardRecord>, Option<ServerFacts>) {
        let state = self.state();
        (state.record.clone(), state.server.clone())
    }

    // === marks ===

    /// Records that a participant was told this mark. If the last look has not found it, the next look at the database shows whether the
    /// database has reached it.
    pub fn acknowledge(&self, mark: Mark, holder: &str) {
        let mut state = self.state();
        let merged = state.acknowledged.mark.merged(mark);
        if merged == state.acknowledged.mark {
            return;
        }
        state.acknowledged = Acknowledged { mark: merged, holder: holder.to_owned() };
        if state.phase == Phase::Open && !state.found.is_behind(merged) {
            let proven = state.proven_by_look(state.found);
            state.served = state.served.merged(proven);
        }
    }

    /// Records that a router has reported a mark of this shard.
    pub fn set_router_reported_mark(&self) {
        self.state().router_reported_mark = true;
    }

    pub fn has_router_reported_mark(&self) -> bool {
        self.state().router_reported_mark
    }

    /// The highest acknowledged mark so far. Read it before a look at the database.
    pub fn acknowledged(&self) -> Acknowledged {
        self.state().acknowledged.clone()
    }

    /// Records that a commit of the lane was acknowledged at this mark. Answers report the mark.
    pub fn committed(&self, mark: Mark) {
        let mut state = self.state();
        state.served = state.served.merged(mark);
        state.remember(mark);
    }

    /// Begins a look at the accepted database, which another server may replace before the look has its answer.
    pub fn begin_look(&self) -> Look {
        let state = self.state();
        Look { accepted: state.accepted, timeline: state.served.timeline }
    }

    /// Takes in the mark that a look found, and returns it. Timeline 0 stands for that of the server that was accepted when the look began.
    /// `None`: the node serves no database now, or another server was accepted since. The answer may come from the former one, so nothing is
    /// recorded. Neither is a mark that is behind what was acknowledged.
    pub fn end_look(&self, look: Look, found: Mark) -> Option<Mark> {
        let mut state = self.state();
        if state.phase != Phase::Open || state.accepted != look.accepted {
            return None;
        }
        let timeline = if found.timeline == 0 { look.timeline } else { found.timeline };
        let found = Mark { timeline, ..found };
        if !found.is_behind(state.acknowledged.mark) {
            let proven = state.proven_by_look(found);
            state.served = state.served.merged(proven);
            state.remember(proven);
        }
        Some(found)
    }

    /// Whether only a commit of the lane shows that what a look found was acknowledged.
    pub fn needs_commit_as_proof(&self) -> bool {
        self.state().waits_for_standby
    }

    /// The mark that the shard is known to have reached. Callers remember it as acknowledged, so it never has anything of a refused
    /// database: a former primary can hold positions that were never acknowledged, and a caller that remembered them would accuse the
    /// new primary of a loss.
    pub fn served(&self) -> Mark {
        self.state().served
    }

    /// The mark that the last look found, also on a refused database. It is for reports, and is not evidence.
    pub fn found(&self) -> Mark {
        let state = self.state();
        if state.phase == Phase::Open { state.served.merged(state.found) } else { state.found }
    }

    /// Records a mark of another shard. Returns `true` when it is higher than the known one.
    pub fn observe_peer(&self, number: u16, mark: Mark) -> bool {
        self.state().peers.observe(number, mark)
    }

    pub fn peers(&self) -> Marks {
        self.state().peers.clone()
    }

    /// Sets the answers of other shards that forbid serving this one; an empty list clears them.
    pub fn set_conflicts(&self, conflicts: Vec<Disagreement>) {
        self.state().conflicts = conflicts;
    }

    // === readiness ===

    pub fn set_reads(&self, reads: Result<(), String>) {
        let mut state = self.state();
        match (&state.reads, &reads) {
            (Ok(()), Err(cause)) => tracing::error!(cause, "reads do not work"),
            (Err(_), Ok(())) => tracing::info!("reads work"),
            _ => {}
        }
        state.reads = reads;
    }

    /// Records why the last look did not reach the server; `None` if it reached the server.
    pub fn set_unreachable(&self, why: Option<String>) {
        self.state().unreachable = why;
    }

    pub fn set_writes(&self, writes: Result<(), String>) {
        let mut state = self.state();
        match (&state.writes, &writes) {
            (Ok(()), Err(cause)) => tracing::error!(cause, "writes do not work; they are refused until they do"),
            (Err(_), Ok(())) => tracing::info!("writes work"),
            _ => {}
        }
        state.writes = writes;
    }

    /// Whether reads work now; the error says why not.
    pub fn reads(&self) -> Result<(), String> {
        self.closed().map_or_else(|| self.state().reads.clone(), Err)
    }

    /// Whether writes work now; the error says why not.
    pub fn writes(&self) -> Result<(), String> {
        if let Some(why) = self.closed() {
            return Err(why);
        }
        let state = self.state();
        if let Some(why) = &state.unreachable {
            return Err(why.clone());
        }
        state.unwritable.as_ref().map_err(ToString::to_string)?;
        state.writes.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn accept(&mut self, server: ServerId, mark: Mark) {
        if self.accepted.is_none_or(|(accepted, _)| accepted != server) {
            self.accepted = Some((server, Instant::now()));
        }
        // From here on, a session that finds a lower position or an older timeline is on another database.
        self.remember(mark);
    }

    /// The part of a mark which a look at the accepted database found that is known to be acknowledged.
    ///
    /// A primary that crashes while a commit waits for a stand-by shows this commit after its restart. No client was told of it, and the
    /// stand-by may be promoted without it. A look at such a server therefore proves only what some participant was told already. The
    /// lane's next commit proves the rest, because a stand-by that has confirmed it has everything before it.
    fn proven_by_look(&self, found: Mark) -> Mark {
        if !self.waits_for_standby {
            return found;
        }
        let known = self.acknowledged.mark;
        let nothing_booked = Position::first_of(Position(found.position).shard_number()).0;
        let known = if known.incarnation != found.incarnation {
            0
        } else if known.timeline > found.timeline {
            // This is a former primary, which the next look finds out. Positions of the new one say nothing about it.
            known.earlier
        } else {
            known.position
        };
        Mark { position: found.position.min(known.max(nothing_booked)), ..found }
    }

    fn remember(&mut self, mark: Mark) {
        let merged = self.acknowledged.mark.merged(mark);
        if merged != self.acknowledged.mark {
            self.acknowledged = Acknowledged { mark: merged, holder: "this node".to_owned() };
        }
    }

    fn enter(&mut self, phase: Phase) {
        if phase == self.phase {
            return;
        }
        match &phase {
            Phase::Refused(refused) => tracing::error!(%refused, "the database is refused: nothing is served"),
            Phase::Uninitialised => {
                tracing::warn!("{}; waiting for it. {}", NEVER_INITIALISED, WHAT_TO_DO_WITH_AN_EMPTY_DATABASE)
            }
            Phase::Open => tracing::info!(mark = %self.served, "the database is accepted"),
            Phase::Starting | Phase::Compared => {}
        }
        self.phase = phase;
    }
}

fn mark_of(facts: &ServerFacts, record: &ShardRecord) -> Mark {
    record.mark_on(facts.timeline.unwrap_or(record.timeline))
}

fn uninitialised() -> Disagreement {
    Disagreement::new("database", "a shard", NEVER_INITIALISED, WHAT_TO_DO_WITH_AN_EMPTY_DATABASE)
}

/// Compares the server that holds the database with the server recorded in it.
fn compare_server(facts: &ServerFacts, record: &ShardRecord) -> Vec<Disagreement> {
    let mut found = Vec::new();
    if facts.system_identifier != record.system_identifier {
        let remedy = "the database was moved into another PostgreSQL (pg_upgrade, dump and restore): once nothing writes to the \
                      former database, run `shard-node accept --config FILE`";
        found.push(Disagreement::new("system identifier", record.system_identifier, facts.system_identifier, remedy));
    } else if facts.database_oid != record.database_oid {
        let remedy = "the database was copied from another database of this server (CREATE DATABASE ... TEMPLATE), or was restored into a \
                      new one: connect to the original if it exists. Otherwise, once nothing writes to the original, run `shard-node \
                      accept --config FILE`";
        found.push(Disagreement::new("database oid", record.database_oid, facts.database_oid, remedy));
    } else if let Some(timeline) = facts.timeline.filter(|timeline| *timeline < record.timeline) {
        let remedy = "the server is on an older timeline than the shard was: connect to the newest primary";
        found.push(Disagreement::new("timeline", record.timeline, timeline, remedy));
    }
    found
}

#[cfg(test)]
mod tests {
    use identity::{ShardIdentity, shard::RoutingFacts};
    use shard_map::ClusterId;

    use super::*;

    fn record(cluster: ClusterId, next_position: i64) -> ShardRecord {
        ShardRecord {
            identity: ShardIdentity { cluster, shard: "s0".to_owned(), number: 0, routing: RoutingFacts::OWN },
            founding_map: None,
            complete: true,
            system_identifier: 7,
            database_oid: 0,
            timeline: 1,
            timeline_began: 0,
            state: ShardState {
                next_position,
                ownership_version: 1,
                incarnation: 1,
                schema_version: shard_database::schema::VERSION,
            },
        }
    }

    fn decide(gate: &Gate, facts: &ServerFacts, record: ShardRecord) -> Result<(), Vec<String>> {
        let outcome = gate.decide(facts, &Database::Shard(Box::new(record)), &[], &gate.acknowledged());
        outcome.map_err(|refused| refused.list().iter().map(|one| one.fact.clone()).collect())
    }

    #[test]
    fn the_gate_opens_only_for_the_shard_in_its_last_known_state() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        let facts = ServerFacts::for_tests(7, 1);
        assert!(gate.closed().is_some() && gate.reads().is_err() && gate.writes().is_err());

        assert_eq!(decide(&gate, &facts, record(cluster, 100)), Ok(()));
        assert!(gate.may_be_asked() && gate.closed().is_some_and(|why| why.contains("other shards")));
        gate.set_waiting(None);
        assert_eq!(decide(&gate, &facts, record(cluster, 100)), Ok(()));
        assert_eq!(gate.closed(), None);
        gate.committed(Mark { incarnation: 1, timeline: 1, position: 120, ..Mark::default() });
        assert_eq!(decide(&gate, &facts, record(cluster, 120)), Ok(()));
        // An earlier state of the database: this node remembers a higher mark.
        assert_eq!(decide(&gate, &facts, record(cluster, 119)), Err(vec!["position".to_owned()]));
        assert!(gate.closed().is_some_and(|why| why.contains("this node remembers")));
        // The gate opens again when the database has everything.
        assert_eq!(decide(&gate, &facts, record(cluster, 120)), Ok(()));

        gate.acknowledge(Mark { incarnation: 1, timeline: 1, position: 150, ..Mark::default() }, "router r");
        assert_eq!(decide(&gate, &facts, record(cluster, 149)), Err(vec!["position".to_owned()]));
        // After a promotion: accepted if nothing is missing, refused otherwise.
        let promoted = ServerFacts::for_tests(7, 2);
        assert_eq!(decide(&gate, &promoted, record(cluster, 149)), Err(vec!["position".to_owned()]));
        assert_eq!(decide(&gate, &promoted, record(cluster, 150)), Ok(()));

        let other_server = ServerFacts::for_tests(8, 2);
        assert_eq!(decide(&gate, &other_server, record(cluster, 150)), Err(vec!["system identifier".to_owned()]));
        let older = ShardRecord { timeline: 3, ..record(cluster, 150) };
        assert_eq!(decide(&gate, &promoted, older), Err(vec!["timeline".to_owned()]));
        let strange = record(ClusterId::generate(), 1);
        assert_eq!(decide(&gate, &promoted, strange), Err(vec!["cluster".to_owned()]));

        let empty = gate.decide(&promoted, &Database::Uninitialised, &[], &gate.acknowledged());
        assert!(empty.is_err() && gate.is_uninitialised());
    }

    #[test]
    fn sessions_on_a_former_primary_are_dropped() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        let old = ServerFacts::for_tests(7, 1);
        assert!(gate.serves(old.id()), "nothing was accepted yet");
        assert_eq!(decide(&gate, &old, record(cluster, 100)), Ok(()));
        let since = gate.accepted_since();
        assert_eq!(decide(&gate, &old, record(cluster, 110)), Ok(()));
        assert_eq!(gate.accepted_since(), since, "the same server");

        let promoted = ServerFacts::for_tests(7, 2).started_at(5);
        assert_eq!(decide(&gate, &promoted, record(cluster, 110)), Ok(()));
        assert!(gate.serves(promoted.id()) && !gate.serves(old.id()) && gate.accepted_since() > since);
        // A new session on the former primary, which has continued on its own, is refused as well.
        let found = Database::Shard(Box::new(record(cluster, 500)));
        let refused = gate.judge(Purpose::Writes, &old, &found, &[], &gate.acknowledged()).unwrap_err();
        assert_eq!(refused.list()[0].fact, "timeline");
        // It is refused also if it is the only server that answers.
        assert_eq!(decide(&gate, &old, record(cluster, 500)), Err(vec!["timeline".to_owned()]));
        assert!(gate.closed().is_some_and(|why| why.contains("this is a former primary")));
        assert_eq!(gate.found().position, 500, "reports show what the former primary holds");
    }

    #[test]
    fn callers_are_not_told_the_positions_of_a_former_primary() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.set_waiting(None);
        let (old, promoted) = (ServerFacts::for_tests(7, 1), ServerFacts::for_tests(7, 2).started_at(5));
        let new_primary = |position| ShardRecord { timeline: 2, timeline_began: 95, ..record(cluster, position) };
        assert_eq!(decide(&gate, &old, record(cluster, 95)), Ok(()));
        assert_eq!(decide(&gate, &promoted, new_primary(137)), Ok(()));

        // The former primary has two bookings that no stand-by confirmed, so that nothing was acknowledged.
        assert_eq!(decide(&gate, &old, record(cluster, 97)), Err(vec!["timeline".to_owned()]));
        let told = gate.served();
        assert_eq!((told.timeline, told.position), (2, 137));
        gate.acknowledge(told, "router r");
        assert_eq!(decide(&gate, &promoted, new_primary(137)), Ok(()), "the new primary lacks nothing");
        // Had the caller been told the position, it would accuse the new primary of a loss.
        gate.acknowledge(record(cluster, 97).mark(), "router r");
        assert_eq!(decide(&gate, &promoted, new_primary(137)), Err(vec!["position".to_owned()]));
    }

    /// A look at the accepted database that finds this mark.
    fn looks(gate: &Gate, found: Mark) {
        assert!(gate.end_look(gate.begin_look(), found).is_some());
    }

    #[test]
    fn a_position_that_was_read_from_a_former_primary_is_not_one_of_the_new_primary() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.set_waiting(None);
        let (old, promoted) = (ServerFacts::for_tests(7, 1), ServerFacts::for_tests(7, 2).started_at(5));
        let on_promoted = || ShardRecord { timeline: 2, timeline_began: 95, ..record(cluster, 95) };
        assert_eq!(decide(&gate, &old, record(cluster, 95)), Ok(()));
        let look = gate.begin_look();
        assert_eq!(decide(&gate, &promoted, on_promoted()), Ok(()));
        // The former primary is cut off and alive. It answers a query that was sent before the promotion was noticed.
        let found = Mark { incarnation: 1, position: 97, ..Mark::default() };
        assert_eq!(gate.end_look(look, found), None);
        assert_eq!((gate.served().timeline, gate.served().position), (2, 95));
        assert_eq!(decide(&gate, &promoted, on_promoted()), Ok(()), "the new primary lacks nothing");

        let look = gate.begin_look();
        assert_eq!(decide(&gate, &old, record(cluster, 97)), Err(vec!["timeline".to_owned()]));
        assert_eq!(gate.end_look(look, found), None, "the node serves nothing");
        assert_eq!(decide(&gate, &promoted, on_promoted()), Ok(()));
        looks(&gate, Mark { position: 98, ..found });
        assert_eq!(
            (gate.served().timeline, gate.served().position),
            (2, 98),
            "the look is one at the accepted server"
        );
    }

    /// The facts of a primary whose commits wait for a stand-by.
    fn synchronous(facts: ServerFacts) -> ServerFacts {
        facts.with_setting("synchronous_standby_names", "standby")
    }

    #[test]
    fn bookings_that_no_stand_by_has_confirmed_are_not_acknowledged_after_a_restart_of_their_primary() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.set_waiting(None);
        let primary = synchronous(ServerFacts::for_tests(7, 1));
        let promoted = synchronous(ServerFacts::for_tests(7, 2).started_at(9));
        let on_promoted = || ShardRecord { timeline: 2, timeline_began: 95, ..record(cluster, 95) };
        assert_eq!(decide(&gate, &primary, record(cluster, 95)), Ok(()));
        gate.committed(record(cluster, 95).mark());

        // Two bookings wait for the stand-by when the primary crashes. After its restart, they are visible.
        let restarted = primary.started_at(5);
        assert_eq!(decide(&gate, &restarted, record(cluster, 97)), Ok(()));
        looks(&gate, record(cluster, 97).mark());
        assert_eq!((gate.served().position, gate.found().position), (95, 97));
        gate.acknowledge(gate.served(), "router r");
        // The stand-by is promoted. Nothing that was acknowledged is missing.
        assert_eq!(decide(&gate, &promoted, on_promoted()), Ok(()));
        assert_eq!((gate.served().timeline, gate.served().position), (2, 95));

        // Had the stand-by confirmed a commit of the lane after the restart, the bookings would be acknowledged, and their loss noticed.
        gate.committed(record(cluster, 98).mark());
        assert_eq!(decide(&gate, &promoted, on_promoted()), Err(vec!["position".to_owned()]));
    }

    #[test]
    fn a_new_process_takes_as_acknowledged_what_it_was_told_or_a_stand_by_has_confirmed() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.set_waiting(None);
        let primary = synchronous(ServerFacts::for_tests(7, 1));
        assert_eq!(decide(&gate, &primary, record(cluster, 97)), Ok(()));
        assert_eq!((gate.served().incarnation, gate.served().position), (1, 1), "as if nothing had been booked");
        // A router remembers a position that the look has found.
        gate.acknowledge(record(cluster, 96).mark(), "router r");
        assert_eq!(gate.served().position, 96);
        looks(&gate, record(cluster, 97).mark());
        assert_eq!(gate.served().position, 96);
        assert_eq!(decide(&gate, &primary, record(cluster, 95)), Err(vec!["position".to_owned()]));
        assert_eq!(gate.served().position, 96, "a refused database raises nothing");
        gate.committed(record(cluster, 98).mark());
        assert_eq!(decide(&gate, &primary, record(cluster, 97)), Err(vec!["position".to_owned()]));

        // Without a stand-by, a commit is acknowledged as soon as it is visible.
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        assert_eq!(decide(&gate, &ServerFacts::for_tests(7, 1), record(cluster, 97)), Ok(()));
        assert_eq!(gate.served().position, 97);
        assert_eq!(
            decide(&gate, &ServerFacts::for_tests(7, 2), record(cluster, 96)),
            Err(vec!["position".to_owned()])
        );
    }

    #[test]
    fn what_a_router_has_heard_of_a_promotion_proves_nothing_about_the_former_primary() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.set_waiting(None);
        let primary = synchronous(ServerFacts::for_tests(7, 1));
        assert_eq!(decide(&gate, &primary, record(cluster, 97)), Ok(()));
        gate.acknowledge(record(cluster, 96).mark(), "router r");
        // Another node of the shard has followed the promotion, and this one has not noticed it.
        gate.acknowledge(Mark { timeline: 2, ..record(cluster, 300).mark() }, "router r");
        looks(&gate, record(cluster, 97).mark());
        let before = gate.acknowledged();
        assert!(gate.decide(&primary, &Database::Shard(Box::new(record(cluster, 97))), &[], &before).is_err());
        assert_eq!((gate.served().timeline, gate.served().position), (1, 96));
        let promoted = ServerFacts::for_tests(7, 2).started_at(9);
        let on_promoted = ShardRecord { timeline: 2, timeline_began: 96, ..record(cluster, 300) };
        assert_eq!(decide(&gate, &promoted, on_promoted), Ok(()), "97 was not acknowledged");
    }

    #[test]
    fn a_mark_acknowledged_during_a_look_does_not_close_the_gate() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        let before = gate.acknowledged();
        let found = Database::Shard(Box::new(record(cluster, 100)));
        gate.acknowledge(Mark { incarnation: 1, timeline: 1, position: 130, ..Mark::default() }, "router r");
        assert!(gate.decide(&ServerFacts::for_tests(7, 1), &found, &[], &before).is_ok());
    }

    #[test]
    fn the_lane_refuses_another_schema_version_and_an_earlier_position() {
        let cluster = ClusterId::generate();
        let gate = Gate::new(Expected { cluster, shard: "s0".to_owned(), number: None });
        gate.committed(Mark { incarnation: 1, timeline: 1, position: 50, ..Mark::default() });
        let good = record(cluster, 50).state;
        assert!(gate.judge_state(&good, 1, &gate.acknowledged()).is_ok());
        for (bad, fact) in [
            (ShardState { schema_version: good.schema_version + 1, ..good }, "schema version"),
            (ShardState { next_position: 49, ..good }, "position"),
        ] {
            let refused = gate.judge_state(&bad, 1, &gate.acknowledged()).unwrap_err();
            assert_eq!(refused.list()[0].fact, fact);
        }
    }
}

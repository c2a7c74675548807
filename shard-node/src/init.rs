//! `shard-node init` turns an empty database into a shard, once, when an operator orders it.
//!
//! Serving never initialises a database: an empty database where a shard should be may mean that the ledger is lost
//! or not mounted. `init` asks every other shard of the map first and claims slots only where no payment can have
//! been made.

use certificates::Mutual;
use identity::{Disagreement, Disagreements, ShardIdentity, shard::RoutingFacts};
use ledger::Position;
use shard_database::{
    Database, record as database, schema,
    server::{Purpose, ServerFacts},
};
use shard_map::{Shard, ShardMap, SlotRange};
use sqlx::PgConnection;

use crate::{
    gate::Gate,
    peers::{self, Answer, NoAnswer},
    store::{ownership, session::READ_SETTINGS},
};

#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("the shard map has no shard {0:?}")]
    NotInMap(String),
    #[error("the shard map names cluster {map}, but cluster.id is {configured}")]
    OtherCluster { map: String, configured: String },
    /// The database belongs to another shard, or cannot hold a shard.
    #[error("the database cannot be shard {shard}: {disagreements}")]
    Refused { shard: String, disagreements: Disagreements },
    #[error(
        "{0}. `init` asks every other shard of the map before it makes a new one, so their nodes must run. A node in front of an \
         empty database waits for `init`; start all nodes, then initialise them"
    )]
    CannotAsk(NoAnswer),
    #[error("shard {other} does not serve, so it cannot be asked: {reason}")]
    NotServing { other: String, reason: String },
    #[error(
        "the node of shard {other} has not reached its database yet, so it cannot be asked: try again once it has"
    )]
    NotReached { other: String },
    /// Initialising a shard again would let it execute payments a second time.
    #[error(
        "shard {other} remembers that shard {shard} (number {number}) had reached {mark}: its database is lost or not mounted. Restore \
         or mount it. A shard that has been in use is never initialised again"
    )]
    WasInUse { other: String, shard: String, number: u16, mark: String },
    #[error(
        "shard {shard} is one of the first shards of this cluster, and shard {other} has been written to since all of them were \
         initialised: the database of shard {shard} is lost or not mounted. Restore or mount it. A shard that has been in use is never \
         initialised again"
    )]
    WasFounded { other: String, shard: String },
    #[error(
        "the map gives {slots} to shard {shard}, but {owners}. Only a move changes the shard of a slot: write slots = [] for \
         shard {shard} and leave the slots where they are"
    )]
    SlotsTaken { shard: String, slots: String, owners: String },
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

impl InitError {
    /// Whether a retry may succeed: the nodes of the other shards may still come up and answer.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::CannotAsk(_) | Self::NotReached { .. })
    }
}

/// What [`init`] found or did.
#[derive(Debug, PartialEq, Eq)]
pub enum Initialised {
    /// The shard is one of the first shards of a new cluster and owns the slots that the map gives it.
    Founded {
        slots: usize,
    },
    /// The shard was added to a cluster in use and owns no slots.
    Added,
    Already,
}

/// Turns the database into the shard that the gate expects. A refusal leaves the database unchanged.
pub async fn init(
    connection: &mut PgConnection,
    gate: &Gate,
    map: &ShardMap,
    tls: Option<&Mutual>,
) -> Result<Initialised, InitError> {
    let expected = gate.expected();
    let shard = map
        .index_of(&expected.shard)
        .map(|index| map.shard(index))
        .ok_or_else(|| InitError::NotInMap(expected.shard.clone()))?;
    if map.cluster != expected.cluster {
        let (map, configured) = (map.cluster.to_string(), expected.cluster.to_string());
        return Err(InitError::OtherCluster { map, configured });
    }
    let facts = ServerFacts::read(connection, &READ_SETTINGS).await?;
    let refused = |found: Vec<Disagreement>| {
        let shard = shard.id.clone();
        Disagreements::check(found).map_err(|disagreements| InitError::Refused { shard, disagreements })
    };
    refused(facts.disagreements(Purpose::Writes, &READ_SETTINGS))?;
    if let Database::Shard(found) = database::read(connection).await? {
        let mut wrong = found.compare(expected);
        if found.identity.number != shard.number {
            let remedy = "a shard keeps its number: correct the shard map";
            wrong.push(Disagreement::new("shard number", shard.number, found.identity.number, remedy));
        }
        refused(wrong)?;
        return Ok(Initialised::Already);
    }
    let others = ask_others(map, shard, tls).await?;
    let founding = decide(map, shard, &others)?;
    write(connection, map, shard, &facts, founding).await?;
    Ok(match founding {
        Founding::Founds => Initialised::Founded { slots: shard.slot_count().into() },
        Founding::IsAdded => Initialised::Added,
    })
}

async fn ask_others(map: &ShardMap, shard: &Shard, tls: Option<&Mutual>) -> Result<Vec<Answer>, InitError> {
    let caller = format!("init of shard {}", shard.id);
    let others = map.shards.iter().filter(|other| other.id != shard.id);
    let answers = futures_util::future::join_all(others.map(|other| peers::ask(other, map, &caller, tls))).await;
    answers.into_iter().collect::<Result<_, _>>().map_err(InitError::CannotAsk)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Founding {
    /// Every shard of the map is new and empty.
    Founds,
    /// The cluster is in use.
    IsAdded,
}

/// Decides from the other shards' answers whether a new shard may claim its slots.
fn decide(map: &ShardMap, shard: &Shard, others: &[Answer]) -> Result<Founding, InitError> {
    let mut founding = Founding::Founds;
    let mut owners = Vec::new();
    for Answer { shard: other, identified, owned, .. } in others {
        if let Some(refused) = identified.refused.first() {
            let reason = Disagreement::from(refused.clone()).to_string();
            return Err(InitError::NotServing { other: other.clone(), reason });
        }
        if identified.uninitialised {
            continue;
        }
        if identified.identity.is_none() {
            return Err(InitError::NotReached { other: other.clone() });
        }
        let of_shard = |mark: &&wire::ShardMark| mark.shard_number == u32::from(shard.number);
        // A mark at the first position belongs to a shard that existed and was never written to.
        let was_in_use =
            |mark: &wire::Mark| mark.position > Position::first_of(shard.number).0 || mark.incarnation > 1;
        if let Some(mark) = identified.marks.iter().find(of_shard).and_then(|mark| mark.mark).filter(was_in_use) {
            let (shard, number) = (shard.id.clone(), shard.number);
            let mark = identity::Mark::from(mark).to_string();
            return Err(InitError::WasInUse { other: other.clone(), shard, number, mark });
        }
        let together = identified.founding_map == Some(founding_fingerprint(map));
        // The first shards take no writes until all of them are initialised.
        if together && !identified.fresh && !shard.slots.is_empty() {
            let (other, shard) = (other.clone(), shard.id.clone());
            return Err(InitError::WasFounded { other, shard });
        }
        if !together || !identified.fresh {
            founding = Founding::IsAdded;
        }
        for (slots, _) in owned {
            if shard.slots.iter().any(|wanted| overlap(*wanted, *slots)) {
                owners.push(format!("slots {slots} belong to shard {other}"));
            }
        }
    }
    if !owners.is_empty() || (founding == Founding::IsAdded && !shard.slots.is_empty()) {
        if owners.is_empty() {
            owners.push("the cluster is in use".to_owned());
        }
        let slots: Vec<String> = shard.slots.iter().map(ToString::to_string).collect();
        let (shard, slots) = (shard.id.clone(), format!("slots {}", slots.join(", ")));
        return Err(InitError::SlotsTaken { shard, slots, owners: owners.join(", ") });
    }
    Ok(founding)
}

fn overlap(one: SlotRange, other: SlotRange) -> bool {
    one.first() <= other.last() && other.first() <= one.last()
}

/// A fingerprint of the map that is equal for shards founded with the same map. It covers slots, shards and numbers,
/// not addresses.
pub fn founding_fingerprint(map: &ShardMap) -> i64 {
    let mut shards: Vec<(u16, String)> = map
        .shards
        .iter()
        .map(|shard| (shard.number, format!("{} {} {:?}\n", shard.number, shard.id, shard.slots)))
        .collect();
    shards.sort_unstable();
    let text: String = shards.into_iter().map(|(_, text)| text).collect();
    twox_hash::XxHash3_64::oneshot(format!("{}\n{text}", map.cluster).as_bytes()).cast_signed()
}

/// Writes everything in one transaction, so that a crash leaves an empty database.
async fn write(
    connection: &mut PgConnection,
    map: &ShardMap,
    shard: &Shard,
    facts: &ServerFacts,
    founding: Founding,
) -> Result<(), sqlx::Error> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    schema::create(&mut transaction).await?;
    let identity = ShardIdentity {
        cluster: map.cluster,
        shard: shard.id.clone(),
        number: shard.number,
        routing: RoutingFacts::OWN,
    };
    let fingerprint = (founding == Founding::Founds).then(|| founding_fingerprint(map));
    let timeline = facts.timeline.unwrap_or_default();
    database::write(&mut transaction, &identity, fingerprint, facts.id(), timeline).await?;
    ownership::remember_map(&mut transaction, map).await?;
    if founding == Founding::Founds {
        let slots = shard.slots.iter().flat_map(|range| range.slots()).map(|slot| slot.index().into()).collect();
        ownership::claim(&mut transaction, slots).await?;
    }
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use identity::time::OtherClock;

    use super::*;

    const CLUSTER: &str = "0190d7c0-0000-7000-8000-00000000c1a5";

    fn map(slots: [&str; 3]) -> ShardMap {
        let shard = |(number, slots): (u16, &str)| Shard {
            id: format!("s{number}"),
            number,
            nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)],
            slots: slots.split_whitespace().map(|range| range.parse().unwrap()).collect(),
        };
        let shards = (0..).zip(slots).map(shard).collect();
        ShardMap::new(CLUSTER.parse().unwrap(), 1, shards).unwrap()
    }

    fn answer(shard: &str, identified: wire::IdentifyResponse, owned: &[&str]) -> Answer {
        Answer {
            shard: shard.to_owned(),
            identified,
            owned: owned.iter().map(|range| (range.parse().unwrap(), 1)).collect(),
            clock: OtherClock::measured(shard, 0, 0, 0),
        }
    }

    fn uninitialised() -> wire::IdentifyResponse {
        wire::IdentifyResponse { uninitialised: true, ..Default::default() }
    }

    fn shard(map: &ShardMap, founding_map: Option<i64>, fresh: bool) -> wire::IdentifyResponse {
        let cluster = map.cluster.as_bytes().to_vec().into();
        let identity = wire::ShardIdentity { cluster, ..Default::default() };
        wire::IdentifyResponse { identity: Some(identity), founding_map, fresh, ..Default::default() }
    }

    /// The decision for shard s2.
    fn of_s2(map: &ShardMap, others: [Answer; 2]) -> Result<Founding, String> {
        decide(map, &map.shards[2], &others).map_err(|error| error.to_string())
    }

    #[test]
    fn slots_are_claimed_only_while_the_whole_cluster_is_new() {
        let first = map(["0-5000", "5001-10000", "10001-16383"]);
        let print = Some(founding_fingerprint(&first));
        let new = || [answer("s0", uninitialised(), &[]), answer("s1", uninitialised(), &[])];
        assert_eq!(of_s2(&first, new()), Ok(Founding::Founds));
        let together = answer("s0", shard(&first, print, true), &["0-5000"]);
        assert_eq!(of_s2(&first, [together, answer("s1", uninitialised(), &[])]), Ok(Founding::Founds));

        // The cluster is in use: payments may exist for the slots even if no shard owns them.
        let used = || answer("s0", shard(&first, print, false), &["0-5000"]);
        let error = of_s2(&first, [used(), answer("s1", uninitialised(), &[])]).unwrap_err();
        assert!(
            error.contains("shard s2 is one of the first shards") && error.contains("lost or not mounted"),
            "{error}"
        );

        // A common first mistake: adding a third shard and giving it slots of the other two.
        let two = map(["0-8191", "8192-16383", ""]);
        let print = Some(founding_fingerprint(&two));
        let of_two = || {
            [
                answer("s0", shard(&two, print, false), &["0-8191"]),
                answer("s1", shard(&two, print, false), &["8192-16383"]),
            ]
        };
        let error = of_s2(&first, of_two()).unwrap_err();
        for named in ["slots 8192-16383 belong to shard s1", "shard s2", "Only a move", "slots = []"] {
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(of_s2(&two, of_two()), Ok(Founding::IsAdded));
    }

    #[test]
    fn a_shard_that_another_shard_remembers_is_not_initialised_again() {
        let map = map(["0-8191", "8192-16383", ""]);
        let mark = wire::ShardMark {
            shard_number: 2,
            mark: Some(wire::Mark {
                incarnation: 1,
                timeline: 1,
                position: Position::first_of(2).0 + 8,
                ..Default::default()
            }),
        };
        let remembers = wire::IdentifyResponse { marks: vec![mark], ..shard(&map, None, false) };
        let error =
            of_s2(&map, [answer("s0", remembers, &["0-8191"]), answer("s1", uninitialised(), &[])]).unwrap_err();
        assert!(error.contains("shard s0 remembers that shard s2 (number 2) had reached position"), "{error}");
    }

    #[test]
    fn a_shard_that_cannot_answer_for_itself_blocks_init() {
        let map = map(["0-8191", "8192-16383", ""]);
        let starting = wire::IdentifyResponse::default();
        let error = of_s2(&map, [answer("s0", starting, &[]), answer("s1", uninitialised(), &[])]).unwrap_err();
        assert!(error.contains("node of shard s0 has not reached its database"), "{error}");
        let refused = wire::Disagreement { fact: "cluster".to_owned(), ..Default::default() };
        let foreign = wire::IdentifyResponse { refused: vec![refused], ..shard(&map, None, true) };
        let error = of_s2(&map, [answer("s0", foreign, &[]), answer("s1", uninitialised(), &[])]).unwrap_err();
        assert!(error.contains("cluster"), "{error}");
    }
}

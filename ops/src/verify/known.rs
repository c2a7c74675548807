//! Which shards the databases know of. A known shard that was not checked may hold what the checked shards lack, so
//! without it the result is not clean.

use std::collections::{BTreeMap, BTreeSet};

use ledger::Position;
use shard_map::ShardMap;
use sqlx::{PgConnection, Row};

use super::{invariant::Invariant, report::Findings};

const MAP: &str = "SELECT text FROM shardledger.known_map";
const PEERS: &str = "SELECT DISTINCT peer FROM shardledger.slot_ownership WHERE peer <> ''";
const MARKS: &str = "SELECT DISTINCT shard_number FROM shardledger.peer_mark";
/// The shard numbers in the positions of the journal. Accounts that were moved to this shard brought their bookings,
/// whose positions contain the number of the shard that wrote them. Positions begin with the shard number, so each
/// step of the recursion skips all bookings of one shard.
const POSITIONS: &str = "
    WITH RECURSIVE shard AS (
        (SELECT position >> 51 AS number FROM shardledger.journal WHERE position > 0 ORDER BY position LIMIT 1)
        UNION ALL
        SELECT (SELECT j.position >> 51 FROM shardledger.journal j WHERE j.position >= (shard.number + 1) << 51
                ORDER BY j.position LIMIT 1)
        FROM shard WHERE shard.number < 4095
    )
    SELECT number::int FROM shard WHERE number IS NOT NULL";
const _: () = assert!(Position::MAX_SHARDS == 4096, "the statement above has the layout of positions");

/// The other shards that one database knows of.
#[derive(Debug, Default)]
pub struct Known {
    /// The newest map that the shard was given, if any.
    map: Option<Result<ShardMap, String>>,
    /// Shard ids at the other end of moves.
    peers: Vec<String>,
    /// Shard numbers whose marks the database keeps.
    marks: Vec<i32>,
    /// Shard numbers in the positions of the journal.
    positions: Vec<i32>,
}

pub async fn load(connection: &mut PgConnection) -> sqlx::Result<Known> {
    let text: Option<String> = sqlx::query_scalar(MAP).fetch_optional(&mut *connection).await?;
    let map = text.map(|text| ShardMap::parse(&text).map_err(|error| error.to_string()));
    let peers = sqlx::query_scalar(PEERS).fetch_all(&mut *connection).await?;
    let marks = sqlx::query_scalar(MARKS).fetch_all(&mut *connection).await?;
    let positions = sqlx::query(POSITIONS).fetch_all(connection).await?;
    let positions = positions.iter().map(|row| row.try_get("number")).collect::<sqlx::Result<_>>()?;
    Ok(Known { map, peers, marks, positions })
}

/// Checks that every shard known to a checked shard was checked too. `shards` and `numbers` describe the checked
/// shards, in the order of `known`.
pub fn compare(shards: &[String], numbers: &[u16], known: &[Known]) -> Findings {
    let mut findings = Findings::default();
    let maps = || known.iter().filter_map(|known| known.map.as_ref()?.as_ref().ok());
    let ids_by_number: BTreeMap<u16, &str> =
        maps().flat_map(|map| &map.shards).map(|shard| (shard.number, shard.id.as_str())).collect();
    // A removed shard has no client data.
    let removed: Vec<&shard_map::RemovedShard> = maps().flat_map(|map| &map.removed).collect();
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (knower, known) in shards.iter().zip(known) {
        let mut ids: Vec<(&str, String)> = Vec::new();
        match &known.map {
            Some(Ok(map)) => {
                let from_map = |id| (id, format!("map version {}", map.version));
                ids.extend(map.shards.iter().map(|shard| from_map(shard.id.as_str())));
            }
            Some(Err(error)) => {
                findings.add(Invariant::Owned, "shard map", format!("that of {knower} cannot be read: {error}"))
            }
            None => {}
        }
        ids.extend(known.peers.iter().map(|peer| (peer.as_str(), "moved slots".to_owned())));
        let mut add = |subject: String, how: String| {
            let knowers = missing.entry(subject).or_default();
            let begin = format!("{knower} (");
            // Report one source of the knowledge for each knower.
            if !knowers.iter().any(|told| told.starts_with(&begin)) {
                knowers.push(format!("{begin}{how})"));
            }
        };
        let is_removed = |id: &str| removed.iter().any(|gone| gone.id == id);
        let is_checked = |id: &str| shards.iter().any(|shard| shard == id);
        for (id, how) in ids.into_iter().filter(|(id, _)| !is_checked(id) && !is_removed(id)) {
            add(format!("shard {id}"), how);
        }
        let marks = known.marks.iter().map(|number| (*number, "its mark"));
        let positions = known.positions.iter().map(|number| (*number, "positions in the journal"));
        for (number, how) in marks.chain(positions) {
            let Ok(number) = u16::try_from(number) else { continue };
            if numbers.contains(&number) || removed.iter().any(|gone| gone.number == number) {
                continue;
            }
            match ids_by_number.get(&number) {
                Some(id) if shards.iter().any(|shard| shard == id) => {}
                Some(id) => add(format!("shard {id}"), how.to_owned()),
                None => add(format!("shard number {number}"), how.to_owned()),
            }
        }
    }
    for (subject, knowers) in missing {
        let knowers: BTreeSet<String> = knowers.into_iter().collect();
        let knowers = knowers.into_iter().collect::<Vec<_>>().join(" and ");
        let detail = format!("is known to {knowers} and was not checked: give its --dsn");
        findings.add(Invariant::Owned, subject, detail);
    }
    findings
}

#[cfg(test)]
mod tests {
    use shard_map::{ClusterId, Shard, SlotRange};

    use super::*;

    fn map(version: u64, shards: u16) -> ShardMap {
        let shards = SlotRange::split_evenly(shards).zip(0_u16..).map(|(range, number)| Shard {
            id: format!("s{number}"),
            number,
            nodes: vec![format!("http://s{number}:1")],
            slots: vec![range],
        });
        ShardMap::new(ClusterId::generate(), version, shards.collect()).unwrap()
    }

    #[test]
    fn every_shard_that_a_database_knows_must_be_checked() {
        let with_map = |version, shards| Known { map: Some(Ok(map(version, shards))), ..Known::default() };
        let known_by = |s0: Known| vec![s0, with_map(1, 2)];
        /// Subject and detail.
        type Violations = &'static [(&'static str, &'static str)];
        let removed = |shards| {
            let mut without = map(3, shards);
            without.removed = vec![shard_map::RemovedShard { id: "s7".to_owned(), number: 7 }];
            Known { map: Some(Ok(without)), ..Known::default() }
        };
        let cases: [(&str, Vec<Known>, Violations); 8] = [
            (
                "a removed shard",
                vec![
                    removed(2),
                    Known { peers: vec!["s7".to_owned()], marks: vec![7], positions: vec![7], ..with_map(1, 2) },
                ],
                &[],
            ),
            ("both are known and checked", known_by(with_map(1, 2)), &[]),
            ("no map was ever given", known_by(Known::default()), &[]),
            (
                "a newer map",
                known_by(with_map(3, 3)),
                &[("shard s2", "is known to s0 (map version 3) and was not checked: give its --dsn")],
            ),
            (
                "a newer map at both",
                vec![with_map(3, 3), with_map(3, 3)],
                &[(
                    "shard s2",
                    "is known to s0 (map version 3) and s1 (map version 3) and was not checked: give its --dsn",
                )],
            ),
            (
                "a move",
                known_by(Known { peers: vec!["s1".to_owned(), "s7".to_owned()], ..Known::default() }),
                &[("shard s7", "is known to s0 (moved slots) and was not checked: give its --dsn")],
            ),
            (
                "numbers",
                known_by(Known { marks: vec![1, 7], positions: vec![0, 7, 9], ..Known::default() }),
                &[
                    ("shard number 7", "is known to s0 (its mark) and was not checked: give its --dsn"),
                    (
                        "shard number 9",
                        "is known to s0 (positions in the journal) and was not checked: give its --dsn",
                    ),
                ],
            ),
            (
                "a number that the other's map names",
                vec![Known { marks: vec![2], ..Known::default() }, with_map(3, 3)],
                &[(
                    "shard s2",
                    "is known to s0 (its mark) and s1 (map version 3) and was not checked: give its --dsn",
                )],
            ),
        ];
        for (name, known, violations) in cases {
            let mut expected = Findings::default();
            violations.iter().for_each(|(subject, detail)| expected.add(Invariant::Owned, *subject, *detail));
            assert_eq!(compare(&["s0".to_owned(), "s1".to_owned()], &[0, 1], &known), expected, "{name}");
        }
    }
}

//! The invariants between shards besides sagas: every shard that a shard knows is checked, each slot has one owner, and the in-transit
//! accounts cancel out.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ledger::{Account, AccountId, Position};
use shard_map::{SLOTS, ShardMap, SlotRange, merge_slots};
use sqlx::{PgConnection, Row};

use super::{
    report::{Invariant, Violations},
    sagas::ShardIndex,
};

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

/// The other shards that one database knows.
#[derive(Debug, Default)]
pub struct KnownShards {
    /// The newest map that the shard was given, if any.
    map: Option<Result<ShardMap, String>>,
    /// Shard ids at the other end of moves.
    peers: Vec<String>,
    /// Shard numbers whose marks the database keeps.
    marks: Vec<i32>,
    /// Shard numbers in the positions of the journal.
    positions: Vec<i32>,
}

pub async fn read_known(connection: &mut PgConnection) -> sqlx::Result<KnownShards> {
    let text: Option<String> = sqlx::query_scalar(MAP).fetch_optional(&mut *connection).await?;
    let map = text.map(|text| ShardMap::parse(&text).map_err(|error| error.to_string()));
    let peers = sqlx::query_scalar(PEERS).fetch_all(&mut *connection).await?;
    let marks = sqlx::query_scalar(MARKS).fetch_all(&mut *connection).await?;
    let positions = sqlx::query(POSITIONS).fetch_all(connection).await?;
    let positions = positions.iter().map(|row| row.try_get("number")).collect::<sqlx::Result<_>>()?;
    Ok(KnownShards { map, peers, marks, positions })
}

/// Checks that every shard known to a checked shard was checked too. `shards` and `numbers` describe the checked
/// shards, in the order of `known`.
pub fn compare_known(shards: &[String], numbers: &[u16], known: &[KnownShards]) -> Violations {
    let mut findings = Violations::default();
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

const OWNERSHIP: &str = "SELECT slot, state, epoch FROM shardledger.slot_ownership";
const SLOTS_KNOWN: &str = "SELECT slot FROM shardledger.slot_ownership";
const OWNED: i16 = 1;
/// The slot number of in-transit accounts, which belong to no slot and never move.
const NO_SLOT: i32 = -1;

/// The owned slots of one shard, with their epochs.
pub struct Owned {
    slots: Vec<(u16, i64)>,
}

pub async fn read_ownership(connection: &mut PgConnection) -> sqlx::Result<Owned> {
    let rows = sqlx::query(OWNERSHIP).fetch_all(connection).await?;
    let mut slots = Vec::new();
    for row in rows {
        let slot: i32 = row.try_get("slot")?;
        if row.try_get::<i16, _>("state")? == OWNED {
            slots.push((u16::try_from(slot).map_err(|e| sqlx::Error::Decode(e.into()))?, row.try_get("epoch")?));
        }
    }
    Ok(Owned { slots })
}

/// Checks that every slot has exactly one owner.
pub fn compare_ownership(shards: &[String], owned: &[Owned]) -> Violations {
    let mut owners: Vec<Vec<(ShardIndex, i64)>> = vec![Vec::new(); usize::from(SLOTS)];
    for (shard, owned) in owned.iter().enumerate() {
        for &(slot, epoch) in &owned.slots {
            owners[usize::from(slot)].push((shard, epoch));
        }
    }
    let mut findings = Violations::default();
    let mut unowned = Vec::new();
    for (slot, owners) in (0_u16..).zip(&owners) {
        match owners.as_slice() {
            [_] => {}
            [] => unowned.push(slot),
            several => {
                let names: Vec<String> =
                    several.iter().map(|&(shard, epoch)| format!("{} at epoch {epoch}", shards[shard])).collect();
                findings.add(Invariant::Owned, format!("slot {slot}"), format!("owned by {}", names.join(" and ")));
            }
        }
    }
    for range in ranges(&unowned) {
        findings.add(Invariant::Owned, format!("slots {range}"), "owned by no shard");
    }
    findings
}

/// The slots in which a shard stores accounts, each with one of the slot's accounts.
#[derive(Debug, Default)]
pub struct AccountSlots(BTreeMap<i32, AccountId>);

impl AccountSlots {
    /// Takes in a row of `account`, which must be in the slot of its id.
    pub fn take(&mut self, account: &Account, slot: i32, findings: &mut Violations) {
        let id = &account.id;
        let computed = if id.is_system() { NO_SLOT } else { i32::from(shard_map::slot_of(id.as_str()).index()) };
        if computed != slot {
            findings.add(Invariant::Owned, id.as_str(), format!("stored in slot {slot}, its id says {computed}"));
        } else if slot != NO_SLOT {
            self.0.entry(slot).or_insert_with(|| id.clone());
        }
    }

    /// Checks that the shard owns each of the slots, or owned it before a move. `known` has the slots that the shard knows. They are read
    /// after the accounts.
    pub fn compare(&self, known: &HashSet<i32>, findings: &mut Violations) {
        for (slot, id) in self.0.iter().filter(|(slot, _)| !known.contains(slot)) {
            findings.add(
                Invariant::Owned,
                id.as_str(),
                format!("stored here, but slot {slot} was never this shard's"),
            );
        }
    }
}

/// The slots that a shard owns, has owned or is about to own. The rows of this table are never deleted.
pub async fn read_known_slots(connection: &mut PgConnection) -> sqlx::Result<HashSet<i32>> {
    let slots: Vec<i32> = sqlx::query_scalar(SLOTS_KNOWN).fetch_all(connection).await?;
    Ok(slots.into_iter().collect())
}

fn ranges(slots: &[u16]) -> Vec<SlotRange> {
    merge_slots(slots.iter().filter_map(|&slot| shard_map::Slot::new(slot)))
}

/// Minor units in transit, by asset.
pub type InTransit = BTreeMap<String, i128>;

/// Checks that the shards' in-transit accounts cancel out. They cancel out if no saga is in progress and no saga changed its state while the
/// positions were fixed.
pub fn check_quiet(sums: &InTransit) -> Violations {
    let mut findings = Violations::default();
    for (asset, sum) in sums.iter().filter(|(_, sum)| **sum != 0) {
        findings.add(
            Invariant::SagasUnderWay,
            asset,
            format!("no saga is in progress, yet {sum} minor units are in transit"),
        );
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use shard_map::{ClusterId, Shard, SlotRange};

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
        let with_map =
            |version, shards| KnownShards { map: Some(Ok(map(version, shards))), ..KnownShards::default() };
        let known_by = |s0: KnownShards| vec![s0, with_map(1, 2)];
        /// Pairs of subject and detail.
        type SubjectsAndDetails = &'static [(&'static str, &'static str)];
        let removed = |shards| {
            let mut without = map(3, shards);
            without.removed = vec![shard_map::RemovedShard { id: "s7".to_owned(), number: 7 }];
            KnownShards { map: Some(Ok(without)), ..KnownShards::default() }
        };
        let cases: [(&str, Vec<KnownShards>, SubjectsAndDetails); 8] = [
            (
                "a removed shard",
                vec![
                    removed(2),
                    KnownShards {
                        peers: vec!["s7".to_owned()],
                        marks: vec![7],
                        positions: vec![7],
                        ..with_map(1, 2)
                    },
                ],
                &[],
            ),
            ("both are known and checked", known_by(with_map(1, 2)), &[]),
            ("no map was ever given", known_by(KnownShards::default()), &[]),
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
                known_by(KnownShards { peers: vec!["s1".to_owned(), "s7".to_owned()], ..KnownShards::default() }),
                &[("shard s7", "is known to s0 (moved slots) and was not checked: give its --dsn")],
            ),
            (
                "numbers",
                known_by(KnownShards { marks: vec![1, 7], positions: vec![0, 7, 9], ..KnownShards::default() }),
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
                vec![KnownShards { marks: vec![2], ..KnownShards::default() }, with_map(3, 3)],
                &[(
                    "shard s2",
                    "is known to s0 (its mark) and s1 (map version 3) and was not checked: give its --dsn",
                )],
            ),
        ];
        for (name, known, violations) in cases {
            let mut expected = Violations::default();
            violations.iter().for_each(|(subject, detail)| expected.add(Invariant::Owned, *subject, *detail));
            assert_eq!(compare_known(&["s0".to_owned(), "s1".to_owned()], &[0, 1], &known), expected, "{name}");
        }
    }

    fn owned(slots: impl IntoIterator<Item = u16>) -> Owned {
        Owned { slots: slots.into_iter().map(|slot| (slot, 1)).collect() }
    }

    #[test]
    fn one_owner_for_each_slot_is_clean() {
        let shards = ["s0".to_owned(), "s1".to_owned()];
        assert_eq!(compare_ownership(&shards, &[owned(0..100), owned(100..SLOTS)]), Violations::default());
    }

    #[test]
    fn missing_slots_are_named_as_ranges_and_double_owners_by_name() {
        let shards = ["s0".to_owned(), "s1".to_owned()];
        let findings = compare_ownership(&shards, &[owned((0..100).chain([200])), owned(200..SLOTS)]);
        let mut expected = Violations::default();
        expected.add(Invariant::Owned, "slot 200", "owned by s0 at epoch 1 and s1 at epoch 1");
        expected.add(Invariant::Owned, "slots 100-199", "owned by no shard");
        assert_eq!(findings, expected);
    }

    #[test]
    fn accounts_live_in_the_slots_of_their_ids() {
        let account = |name: &str| Account {
            id: AccountId::any(name).unwrap(),
            asset: ledger::AssetCode::new("USD").unwrap(),
            status: ledger::AccountStatus::Open,
            posted: 0,
            held: 0,
            overdraft: ledger::Limit::ZERO,
            max_balance: ledger::Limit::Unlimited,
            version: 1,
            head: ledger::Position(1),
            opened: ledger::Position(1),
            metadata: ledger::Metadata::empty(),
            created_at_us: 0,
            updated_at_us: 0,
        };
        let slot = i32::from(shard_map::slot_of("alice").index());
        for (name, stored, known, expected) in [
            ("alice", slot, slot, &[][..]),
            ("alice", slot + 1, slot, &["alice"]),
            ("alice", slot, slot + 1, &["alice"]),
            ("@in-transit:USD", NO_SLOT, slot, &[]),
            ("@in-transit:USD", 0, slot, &["@in-transit:USD"]),
        ] {
            let (mut slots, mut findings) = (AccountSlots::default(), Violations::default());
            slots.take(&account(name), stored, &mut findings);
            slots.compare(&HashSet::from([known]), &mut findings);
            assert_eq!(findings.subjects(), expected, "{name} in {stored}");
        }
    }

    #[test]
    fn what_is_left_in_transit_is_named_by_asset() {
        let sums = InTransit::from([("CZK".to_owned(), 0), ("USD".to_owned(), -5)]);
        let mut expected = Violations::default();
        expected.add(Invariant::SagasUnderWay, "USD", "no saga is in progress, yet -5 minor units are in transit");
        assert_eq!(check_quiet(&sums), expected);
    }
}

//! Checks that every slot has one owner over all shards, and that every account is stored by the owner of its slot.

use std::collections::{BTreeMap, HashSet};

use ledger::{Account, AccountId};
use shard_map::{SLOTS, SlotRange, merge_slots};
use sqlx::{PgConnection, Row};

use super::{invariant::Invariant, report::Findings, sagas::ShardIndex};

const OWNERSHIP: &str = "SELECT slot, state, epoch FROM shardledger.slot_ownership";
const SLOTS_KNOWN: &str = "SELECT slot FROM shardledger.slot_ownership";
const OWNED: i16 = 1;
/// Of in-transit accounts, which belong to no slot and never move.
const NO_SLOT: i32 = -1;

/// The owned slots of one shard, with their epochs.
pub struct Owned {
    slots: Vec<(u16, i64)>,
}

pub async fn load(connection: &mut PgConnection) -> sqlx::Result<Owned> {
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
pub fn compare(shards: &[String], owned: &[Owned]) -> Findings {
    let mut owners: Vec<Vec<(ShardIndex, i64)>> = vec![Vec::new(); usize::from(SLOTS)];
    for (shard, owned) in owned.iter().enumerate() {
        for &(slot, epoch) in &owned.slots {
            owners[usize::from(slot)].push((shard, epoch));
        }
    }
    let mut findings = Findings::default();
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

/// The slots in which a shard stores accounts, each with one of its accounts.
#[derive(Debug, Default)]
pub struct AccountSlots(BTreeMap<i32, AccountId>);

impl AccountSlots {
    /// Takes in a row of `account`, which must be in the slot of its id.
    pub fn take(&mut self, account: &Account, slot: i32, findings: &mut Findings) {
        let id = &account.id;
        let computed = if id.is_system() { NO_SLOT } else { i32::from(shard_map::slot_of(id.as_str()).index()) };
        if computed != slot {
            findings.add(Invariant::Owned, id.as_str(), format!("stored in slot {slot}, its id says {computed}"));
        } else if slot != NO_SLOT {
            self.0.entry(slot).or_insert_with(|| id.clone());
        }
    }

    /// Checks that the shard owns each of the slots, or owned it before a move. `known`: the slots that the shard knows
    /// of, read after the accounts.
    pub fn compare(&self, known: &HashSet<i32>, findings: &mut Findings) {
        for (slot, id) in self.0.iter().filter(|(slot, _)| !known.contains(slot)) {
            findings.add(
                Invariant::Owned,
                id.as_str(),
                format!("stored here, but slot {slot} was never this shard's"),
            );
        }
    }
}

/// The slots that a shard owns, owned or is about to own. Rows are never deleted.
pub async fn load_known(connection: &mut PgConnection) -> sqlx::Result<HashSet<i32>> {
    let slots: Vec<i32> = sqlx::query_scalar(SLOTS_KNOWN).fetch_all(connection).await?;
    Ok(slots.into_iter().collect())
}

fn ranges(slots: &[u16]) -> Vec<SlotRange> {
    merge_slots(slots.iter().filter_map(|&slot| shard_map::Slot::new(slot)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(slots: impl IntoIterator<Item = u16>) -> Owned {
        Owned { slots: slots.into_iter().map(|slot| (slot, 1)).collect() }
    }

    #[test]
    fn one_owner_for_each_slot_is_clean() {
        let shards = ["s0".to_owned(), "s1".to_owned()];
        assert_eq!(compare(&shards, &[owned(0..100), owned(100..SLOTS)]), Findings::default());
    }

    #[test]
    fn missing_slots_are_named_as_ranges_and_double_owners_by_name() {
        let shards = ["s0".to_owned(), "s1".to_owned()];
        let findings = compare(&shards, &[owned((0..100).chain([200])), owned(200..SLOTS)]);
        let mut expected = Findings::default();
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
            let (mut slots, mut findings) = (AccountSlots::default(), Findings::default());
            slots.take(&account(name), stored, &mut findings);
            slots.compare(&HashSet::from([known]), &mut findings);
            assert_eq!(findings.subjects(), expected, "{name} in {stored}");
        }
    }
}

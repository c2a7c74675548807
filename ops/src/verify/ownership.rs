//! Checks that every slot has one owner over all shards, and that every account is stored by the owner of its slot.

use futures_util::TryStreamExt;
use shard_map::{SLOTS, SlotRange, merge_slots};
use sqlx::{PgConnection, Row};

use super::{invariant::Invariant, report::Findings, sagas::ShardIndex};

const OWNERSHIP: &str = "SELECT slot, state, epoch FROM shardledger.slot_ownership";
/// In-transit accounts have slot -1 and never move.
const ACCOUNT_SLOTS: &str = "
    SELECT a.id, a.slot, s.state
    FROM shardledger.account a LEFT JOIN shardledger.slot_ownership s USING (slot)
    WHERE a.id NOT LIKE '@in-transit:%'";
const OWNED: i16 = 1;

/// The owned slots of one shard, with their epochs.
pub struct Owned {
    slots: Vec<(u16, i64)>,
}

pub async fn load(snapshot: &mut PgConnection) -> sqlx::Result<Owned> {
    let rows = sqlx::query(OWNERSHIP).fetch_all(snapshot).await?;
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
                findings.add(Invariant::I11, format!("slot {slot}"), format!("owned by {}", names.join(" and ")));
            }
        }
    }
    for range in ranges(&unowned) {
        findings.add(Invariant::I11, format!("slots {range}"), "owned by no shard");
    }
    findings
}

/// Checks that every account of a shard is stored in the slot of its id, and that the shard owns the slot or owned it
/// before a move.
pub async fn check_accounts(snapshot: &mut PgConnection) -> sqlx::Result<Findings> {
    let mut findings = Findings::default();
    let mut rows = sqlx::query(ACCOUNT_SLOTS).fetch(snapshot);
    while let Some(row) = rows.try_next().await? {
        let (id, slot, state): (&str, i32, Option<i16>) =
            (row.try_get("id")?, row.try_get("slot")?, row.try_get("state")?);
        let computed = shard_map::slot_of(id).index();
        if i32::from(computed) != slot {
            findings.add(Invariant::I11, id, format!("stored in slot {slot}, its id says {computed}"));
        } else if state.is_none() {
            findings.add(Invariant::I11, id, format!("stored here, but slot {slot} was never this shard's"));
        }
    }
    Ok(findings)
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
        expected.add(Invariant::I11, "slot 200", "owned by s0 at epoch 1 and s1 at epoch 1");
        expected.add(Invariant::I11, "slots 100-199", "owned by no shard");
        assert_eq!(findings, expected);
    }
}

//! Slots get another owner in the databases while every router's map has the former one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use http::Method;
use shard_map::{ShardMap, Slot, merge_slots, slot_of};
use testkit::{
    client::{Verdict, account_path},
    database,
    history::{Attempt, Order, Record},
    wait::until,
    workload::{open_account, try_open_account},
};
use uuid::Uuid;

use super::{Maps, NOTICED_WITHIN};

/// The number of accounts whose slots move before they are opened.
const MOVED: usize = 4;
const FROM: &str = "s0";
const TO: &str = "s1";
/// A router may give up on a slot that has had no owner for this long. Routers wait a little longer.
const WAITED_FOR: Duration = Duration::from_millis(1_500);

/// Hands the slots over in the order of a move's cut-over. The source releases them first, so that no slot ever has two owners. Requests
/// also arrive in between, while the slots have no owner.
pub async fn a_router_with_an_old_map_heals_and_never_misleads(maps: &Maps<'_>) -> anyhow::Result<()> {
    let accounts = moved_accounts(maps)?;
    let slots = sql_list(&accounts);
    let (from, to) = (dsn(maps, FROM), dsn(maps, TO));
    let next = "UPDATE shard_state SET ownership_version = ownership_version + 1";
    database::run(
        &from,
        &format!("BEGIN; UPDATE slot_ownership SET state = 2, epoch = 2, peer = '{TO}' WHERE slot IN ({slots}); {next}; COMMIT"),
    )
    .await?;
    let in_between = try_open_account(&maps.client, &accounts[0], "0.00");
    let hand_over = async {
        let begun = Instant::now();
        // In this time the request meets a shard that has released the slot, and one that has not received it.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let values: Vec<String> =
            accounts.iter().map(|account| format!("({}, 1, 2, '{FROM}')", slot_of(account))).collect();
        let take = format!("INSERT INTO slot_ownership (slot, state, epoch, peer) VALUES {}", values.join(", "));
        database::run(&to, &format!("BEGIN; {take}; {next}; COMMIT")).await?;
        anyhow::Ok(begun.elapsed())
    };
    let (opened, without_owner) = tokio::join!(in_between, hand_over);
    if let Err(refused) = opened {
        // On a slow machine the slots may have been without an owner for longer than routers wait. The same request succeeds now.
        expect!(without_owner? > WAITED_FOR, "{refused:#}");
        open_account(&maps.client, &accounts[0], "0.00").await?;
    }

    for account in &accounts[1..] {
        open_account(&maps.client, account, "0.00").await?;
    }
    // Payments go in both directions, through both routers, within the new shard and across shards.
    for router in 0..maps.client.routers() {
        for other in ["s0", "s1", "s2"] {
            let treasury = maps.cluster.placement()?.account_on(other, "treasury", 0)?;
            for account in &accounts {
                transfer(maps, router, &treasury, account, 500).await?;
                transfer(maps, router, account, &treasury, 200).await?;
            }
        }
    }
    for account in &accounts {
        let path = account_path(account);
        for router in 0..maps.client.routers() {
            let found = maps.client.get(router, &path).await?;
            expect!(found["shard"] == TO, "{found}");
        }
    }
    let stray = format!("SELECT count(*) FROM account WHERE slot IN ({slots})");
    ensure!(database::number(&from, &stray).await? == 0, "the old owner was written to");
    ensure!(database::number(&to, &stray).await? == i64::try_from(MOVED)?);
    for map in maps.ask_routers("/admin/shard-map").await? {
        ensure!(
            !map["overrides"].as_array().is_none_or(Vec::is_empty),
            "the router should report that its map is wrong: {map}"
        );
    }
    Ok(())
}

/// Publishes a map that follows the shards.
pub async fn the_map_catches_up_with_the_shards(maps: &Maps<'_>) -> anyhow::Result<()> {
    let accounts = moved_accounts(maps)?;
    let moved: Vec<Slot> = accounts.iter().map(|account| slot_of(account)).collect();
    let map = maps.current()?;
    let mut shards = map.shards.clone();
    for shard in &mut shards {
        let kept = shard.slots.iter().flat_map(|range| range.slots()).filter(|slot| !moved.contains(slot));
        let gained = moved.iter().copied().filter(|_| shard.id == TO);
        let mut slots: Vec<Slot> = kept.chain(gained).collect();
        slots.sort_unstable();
        shard.slots = merge_slots(slots);
    }
    maps.replace(&ShardMap::new(map.cluster, map.version + 1, shards)?.to_toml())?;
    maps.wait_for_version(map.version + 1).await?;
    until("no router has anything to put right in its map", NOTICED_WITHIN, async || {
        let states = maps.ask_routers("/admin/shard-map").await?;
        Ok(states.iter().all(|map| map["overrides"].as_array().is_some_and(Vec::is_empty)).then_some(()))
    })
    .await
}

/// Ids that version 1 of the map puts on the old owner. None of them is opened before the hand-over.
fn moved_accounts(maps: &Maps<'_>) -> anyhow::Result<Vec<String>> {
    let placement = maps.cluster.placement()?;
    (0..MOVED).map(|n| placement.account_on(FROM, "moved", n)).collect()
}

fn sql_list(accounts: &[String]) -> String {
    accounts.iter().map(|account| slot_of(account).to_string()).collect::<Vec<_>>().join(", ")
}

fn dsn(maps: &Maps<'_>, shard: &str) -> String {
    let shards = &maps.cluster.status().shards;
    shards.iter().find(|found| found.id == shard).map(|found| found.dsn.clone()).unwrap_or_default()
}

async fn transfer(maps: &Maps<'_>, router: usize, debit: &str, credit: &str, amount: i64) -> anyhow::Result<()> {
    let order = Order { id: Uuid::now_v7(), debit: debit.to_owned(), credit: credit.to_owned(), amount };
    let answer = maps.client.call(router, Method::POST, "/v1/transfers", Some(&order.to_json())).await;
    let verdict = Verdict::of_transfer(&answer);
    ensure!(verdict == Verdict::Posted, "{debit} to {credit} through router {router}: {verdict:?}");
    let mut record = Record::new(order);
    let at = Duration::ZERO;
    record.attempts.push(Attempt { invoked: at, returned: at, router, verdict });
    maps.remember(record);
    Ok(())
}

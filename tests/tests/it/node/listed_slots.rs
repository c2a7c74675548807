//! A list or a sum covers all slots that were asked for, at one moment, or is refused.

use anyhow::ensure;
use shard_map::{SLOTS, slot_of};
use testkit::{
    database,
    node::{Node, order, transfer},
};

use super::{Place, open_pair};

/// The slot of one account is given to another shard in the database, and the node is not told. The account's row stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_or_sum_of_a_slot_that_the_shard_lost_is_refused_by_name() -> anyhow::Result<()> {
    let place = Place::new().await?;
    let config = place.shard("listed_slots").await?;
    let node = Node::start(&config).await?;
    open_pair(&node, "treasury", "Payee").await?;
    open_pair(&node, "mover", "payee").await?;
    node.execute_until_definite(&transfer(&order("treasury", "mover", 7), false)?).await?;
    // The money stays in the shard's in-transit account.
    node.execute_until_definite(&transfer(&order("treasury", "elsewhere", 5), true)?).await?;

    let all = vec![range(0, SLOTS - 1)];
    ensure!(
        listed(&node, &all).await? == ["Payee", "mover", "payee", "treasury"],
        "{:?}",
        listed(&node, &all).await?
    );
    ensure!(summed(&node, &all).await? == [("-5".to_owned(), 4)], "{:?}", summed(&node, &all).await?);

    let slot = slot_of("mover").index();
    let epoch = "UPDATE shard_state SET ownership_version = ownership_version + 1";
    let give = format!("UPDATE slot_ownership SET state = 2, epoch = 2, peer = 's9' WHERE slot = {slot}");
    database::run(&config.database_url, &format!("BEGIN; {give}; {epoch}; COMMIT")).await?;

    for slots in [all.clone(), vec![range(slot, slot)]] {
        let page = node.list_accounts(request(&slots)).await?;
        let sums = node.sum_balances(sums_request(&slots)).await?;
        ensure!(
            page.accounts.is_empty() && sums.sums.is_empty(),
            "told of a slot it does not own: {page:?} {sums:?}"
        );
        for not_owner in [page.not_owner, sums.not_owner] {
            ensure!(not_owner.len() == 1, "{not_owner:?}");
            let refused = &not_owner[0];
            ensure!(refused.slot == u32::from(slot) && refused.epoch == 2 && refused.owner == "s9", "{refused:?}");
        }
    }
    // A list of the slots that the shard owns leaves the row of the lost slot out.
    let own: Vec<wire::SlotRange> = [(0, slot.checked_sub(1)), (slot + 1, Some(SLOTS - 1))]
        .into_iter()
        .filter_map(|(first, last)| last.filter(|last| first <= *last).map(|last| range(first, last)))
        .collect();
    ensure!(listed(&node, &own).await? == ["Payee", "payee", "treasury"], "{:?}", listed(&node, &own).await?);
    ensure!(summed(&node, &own).await? == [("-12".to_owned(), 3)], "{:?}", summed(&node, &own).await?);
    Ok(())
}

fn range(first: u16, last: u16) -> wire::SlotRange {
    wire::SlotRange { first: first.into(), last: last.into() }
}

fn request(slots: &[wire::SlotRange]) -> wire::ListAccountsRequest {
    wire::ListAccountsRequest { limit: 10, slots: slots.to_vec(), ..Default::default() }
}

fn sums_request(slots: &[wire::SlotRange]) -> wire::SumBalancesRequest {
    wire::SumBalancesRequest { slots: slots.to_vec(), timeout_ms: 10_000, ..Default::default() }
}

async fn listed(node: &Node, slots: &[wire::SlotRange]) -> anyhow::Result<Vec<String>> {
    let page = node.list_accounts(request(slots)).await?;
    ensure!(page.not_owner.is_empty() && !page.has_more, "{page:?}");
    Ok(page.accounts.into_iter().map(|account| account.id).collect())
}

/// What is posted, and in how many accounts.
async fn summed(node: &Node, slots: &[wire::SlotRange]) -> anyhow::Result<Vec<(String, u64)>> {
    let sums = node.sum_balances(sums_request(slots)).await?;
    ensure!(sums.not_owner.is_empty(), "{sums:?}");
    Ok(sums.sums.into_iter().map(|sum| (sum.posted, sum.accounts)).collect())
}

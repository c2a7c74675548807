//! Reads over many accounts, on shards without PostgreSQL: whole whatever moves, honest about what is missing.

use std::time::Duration;

use ledger::{AccountPrefix, TransferId};
use tokio::time::Instant;
use uuid::Uuid;

use crate::core::{
    call::CallError,
    fake_cluster::{Cluster, hold, id, quick, soon, transfer},
    reply::{AccountPage, BalanceSum},
};

fn prefix(text: &str) -> AccountPrefix {
    AccountPrefix::new(text).unwrap()
}

/// All pages of a list, with the sizes of the pages.
async fn walk(cluster: &Cluster, prefix: &AccountPrefix, limit: u32) -> (Vec<String>, Vec<usize>) {
    let (mut ids, mut sizes) = (Vec::<String>::new(), Vec::new());
    loop {
        let after = ids.last().cloned().unwrap_or_default();
        let AccountPage { accounts, has_more } =
            cluster.router.list_accounts(prefix, &after, limit, soon()).await.unwrap();
        sizes.push(accounts.len());
        ids.extend(accounts.into_iter().map(|account| account.value.id));
        if !has_more {
            return (ids, sizes);
        }
    }
}

async fn funded(shards: usize) -> Cluster {
    let cluster = Cluster::start(shards).await;
    let names: Vec<String> = (0..20).map(|n| format!("{}{n}", if n % 2 == 0 { "u" } else { "U" })).collect();
    let accounts: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 5)).collect();
    cluster.fund(&accounts).await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_in_the_order_of_bytes_over_all_shards() {
    let cluster = funded(3).await;
    let (all, _) = walk(&cluster, &prefix(""), 100).await;
    assert_eq!(all.len(), 40, "each account and its bank");
    assert!(all.is_sorted() && all[0] == "U1", "{all:?}");
    for limit in [1, 7, 40] {
        let (pages, sizes) = walk(&cluster, &prefix(""), limit).await;
        assert_eq!(pages, all);
        assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == limit as usize), "{sizes:?}");
    }
    let (some, _) = walk(&cluster, &prefix("{u"), 3).await;
    let expected: Vec<String> = all.iter().filter(|id| id.starts_with("{u")).cloned().collect();
    assert_eq!(some, expected);
    assert_eq!(walk(&cluster, &prefix("nobody"), 3).await, (Vec::new(), vec![0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_that_have_moved_are_there_once() {
    for names_owner in [true, false] {
        let cluster = Cluster::start_with(3, quick(), names_owner).await;
        let there = cluster.account_on(0, "a");
        let crossing = cluster.account_on(1, "b");
        cluster.fund(&[(&there, 5), (&crossing, 7)]).await;
        let before = walk(&cluster, &prefix(""), 2).await;
        // The router knows nothing of it.
        cluster.move_slot_of(&there, 2);
        cluster.move_slot_of(&crossing, 0);
        assert_eq!(walk(&cluster, &prefix(""), 2).await, before);
        cluster.move_slot_of(&there, 1);
        let sums = cluster.router.sum_balances(&prefix(""), None, soon()).await.unwrap();
        assert_eq!(sums.assets["USD"], BalanceSum { posted: 0, held: 0, accounts: 4 });
        assert!(sums.missing.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_down_fails_a_list_and_is_missing_in_a_sum() {
    let mut cluster = funded(3).await;
    let everything = cluster.router.sum_balances(&prefix("{"), None, soon()).await.unwrap();
    let of_lost = (0..20).filter(|n| {
        let name = format!("{}{n}", if n % 2 == 0 { "u" } else { "U" });
        cluster.owner(&name) == 1
    });
    let lost = of_lost.count() as u64;
    cluster.stop(1);
    let list = cluster.router.list_accounts(&prefix("zz"), "", 10, soon()).await;
    assert_eq!(list.unwrap_err(), CallError::Unavailable { shard: "s1".into() });
    let sums = cluster.router.sum_balances(&prefix("{"), None, soon()).await.unwrap();
    assert_eq!(sums.missing, ["s1".into()]);
    assert_eq!(sums.assets["USD"].accounts, everything.assets["USD"].accounts - lost);
    assert_eq!(sums.assets["USD"].posted, everything.assets["USD"].posted + 5 * i128::from(lost));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_slow_is_missing_before_the_deadline() {
    let cluster = funded(2).await;
    cluster.nodes[1].hang(true);
    // Of this, half a second is left for the answer.
    let deadline = Instant::now() + Duration::from_secs(5);
    let sums = cluster.router.sum_balances(&prefix(""), None, deadline).await.unwrap();
    assert!(Instant::now() < deadline);
    assert_eq!(sums.missing, ["s1".into()]);
    cluster.nodes[1].hang(false);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_transfer_out_of_sight_no_verdict_is_read() {
    let mut cluster = Cluster::start(2).await;
    let (payer, payee) = (cluster.account_on(0, "payer"), cluster.account_on(1, "payee"));
    cluster.fund(&[(&payer, 10), (&payee, 0)]).await;
    cluster.router.transfer(transfer(7, &payer, &payee, 5), soon()).await.unwrap();
    // The verdict is at the shard of the payee. That it cannot be read would tell that the transfer exists.
    cluster.stop(1);
    let (number, payer) = (TransferId(Uuid::from_u128(7)), id(&payer));
    let seen = cluster.router.find_transfer(number, Some(&payer), |_| true, soon()).await.unwrap();
    assert_eq!((seen.found.len(), seen.unreachable.len()), (1, 1));
    let unseen = cluster.router.find_transfer(number, Some(&payer), |_| false, soon()).await.unwrap();
    assert_eq!((unseen.found.len(), unseen.unreachable.len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_a_slot_that_changes_hands_is_found_by_its_id_alone() {
    let cluster = Cluster::start(2).await;
    let (payer, payee) = (cluster.account_on(0, "payer"), cluster.account_on(0, "payee"));
    cluster.fund(&[(&payer, 10), (&payee, 0)]).await;
    cluster.router.transfer(transfer(7, &payer, &payee, 5), soon()).await.unwrap();
    cluster.router.place_hold(hold(8, &payer, &payee, 5), soon()).await.unwrap();
    // For the transfer and the hold: how many are found, and whether a shard could not be read.
    let look = async |within: Duration| {
        let (transfer, hold) = (TransferId(Uuid::from_u128(7)), TransferId(Uuid::from_u128(8)));
        let transfers =
            cluster.router.find_transfer(transfer, None, |_| true, Instant::now() + within).await.unwrap();
        let holds = cluster.router.find_hold(hold, None, |_| true, Instant::now() + within).await.unwrap();
        [
            (transfers.found.len(), !transfers.unreachable.is_empty()),
            (holds.found.len(), !holds.unreachable.is_empty()),
        ]
    };
    cluster.release_slot_of(&payer, 1);
    // Neither shard owns the slot. "Not found" would be wrong.
    assert_eq!(look(Duration::from_millis(300)).await, [(0, true), (0, true)]);
    let (late, ()) = tokio::join!(look(Duration::from_secs(30)), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.nodes[1].take_slots();
    });
    assert_eq!(late, [(1, false), (1, false)]);
}

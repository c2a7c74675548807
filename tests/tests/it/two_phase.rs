//! Holds, captures and reversals in each other's way: whatever races, one wins, everybody is told who, and no money is made,
//! lost or stuck.

mod at_once;
mod closing;
mod coordinators;
mod expiry;
mod races;
mod stage;

use testkit::{audit::sagas_end, cluster::Cluster, section::section, seed::Seed};

use self::stage::Stage;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_that_race_for_a_hold_one_wins() -> anyhow::Result<()> {
    let seed = Seed::announce("two phase");
    let cluster = Cluster::start(2, 2).await?;
    let stage = Stage::set(&cluster).await?;
    section("expiry", expiry::needs_no_client(&stage)).await?;
    section("at once", at_once::one_id_is_one_effect(&stage)).await?;
    section("ends", races::a_hold_ends_once(&stage, &mut seed.random())).await?;
    section("reversals", races::no_more_is_reversed_than_was_paid(&stage)).await?;
    section("closing", closing::no_money_comes_back_to_a_closed_account(&stage, &mut seed.random())).await?;
    section("closed payees", closing::a_hold_survives_its_payee(&stage)).await?;
    sagas_end(&cluster).await?;
    cluster.verify().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_are_finished_by_another_router_wherever_the_first_one_died() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    section("reserved", coordinators::dies_after_the_reserve(&mut cluster)).await?;
    section("decided", coordinators::dies_after_the_verdict(&mut cluster)).await?;
    cluster.verify().await?;
    cluster.finish().await
}

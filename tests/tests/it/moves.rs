//! Tests of moves of slots between shards under load. The clients must notice nothing, and nothing may be lost.

mod crash_matrix;
pub mod support;

use std::time::Duration;

use anyhow::{Context, ensure};
use testkit::{
    audit::audit,
    cluster::{Cluster, Member},
    database,
    seed::{Random, Seed},
    wait::until,
    workload::{Load, Mix, open_account},
};
use wire::MoveWishes;

use support::{Movement, assert_nothing_is_left};

const MIX: Mix = Mix {
    single_clients: 6,
    batch_clients: 2,
    two_phase_clients: 4,
    batch_items: 40,
    gives_up: true,
    request_timeout: Duration::from_secs(10),
};

/// Half of the slots of s0 in a cluster of two shards.
const HALF: (u32, u32) = (0, 4095);

fn finish() -> MoveWishes {
    MoveWishes { finish: Some(true), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_move_under_load_and_come_back() -> anyhow::Result<()> {
    let seed = Seed::announce("moves");
    let cluster = Cluster::start(2, 2).await?;
    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;
    load.goes_on(100).await?;

    // The slots move to s1, s0 is cleaned up, and another move brings them back.
    let there = Movement::start(&cluster, "s0", "s1", HALF).await?;
    there.until("taken").await?;
    load.goes_on(50).await?;
    there.wish(finish()).await?;
    there.until("finished").await?;
    let back = Movement::start(&cluster, "s1", "s0", HALF).await?;
    back.until("taken").await?;
    load.goes_on(50).await?;

    let history = load.finish().await?;
    history.has_no_error()?;
    let summary = audit(&cluster, &history).await?;
    ensure!(summary.cross_shard > 100 && summary.holds >= 10, "the load was too small: {summary:?}");
    for movement in [&there, &back] {
        let progress = movement.progress().await?;
        eprintln!("moves: {progress}");
        expect!(progress["bookings"].as_u64() > Some(100), "{progress}");
    }
    back.wish(finish()).await?;
    back.until("finished").await?;
    audit(&cluster, &history).await?;
    assert_nothing_is_left(&cluster, "s1", HALF).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_is_reversed_twice_under_load() -> anyhow::Result<()> {
    let seed = Seed::announce("reversed moves");
    let cluster = Cluster::start(2, 2).await?;
    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;
    load.goes_on(50).await?;

    let none = MoveWishes::default;
    let first = Movement::start(&cluster, "s0", "s1", HALF).await?;
    first.until("taken").await?;
    let second = Movement::start_as(&cluster, "s1", "s0", HALF, none(), Some(first.id)).await?;
    second.until("taken").await?;
    first.until("reversed").await?;
    let third = Movement::start_as(&cluster, "s0", "s1", HALF, none(), Some(second.id)).await?;
    third.until("taken").await?;
    second.until("reversed").await?;
    third.wish(finish()).await?;
    third.until("finished").await?;

    let history = load.finish().await?;
    history.has_no_error()?;
    audit(&cluster, &history).await?;
    assert_nothing_is_left(&cluster, "s0", HALF).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_is_given_up_leaves_nothing_behind() -> anyhow::Result<()> {
    let seed = Seed::announce("moves given up");
    let cluster = Cluster::start(2, 2).await?;
    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;
    load.goes_on(50).await?;

    let abort = || MoveWishes { abort: Some(true), ..Default::default() };
    let paused = MoveWishes { paused: Some(true), ..Default::default() };
    let held = MoveWishes { hold_cutover: Some(true), ..Default::default() };
    let rehearsed = MoveWishes { rehearse: Some(true), ..Default::default() };
    for (wishes, phase) in [(paused, "copying"), (held, "catching up"), (rehearsed, "aborted")] {
        let movement = Movement::start_as(&cluster, "s0", "s1", HALF, wishes, None).await?;
        movement.until(phase).await?;
        if phase != "aborted" {
            let refused = Movement::start(&cluster, "s0", "s1", (5000, 5000))
                .await
                .err()
                .context("a second move at the same time was not refused")?;
            expect!(refused.to_string().contains(&movement.id.to_string()), "{refused}");
            load.goes_on(20).await?;
            if phase == "copying" {
                // The row of a saga whose first booking was written after the last page of the journal was copied.
                let target = cluster.status().shards.iter().find(|shard| shard.id == "s1").context("no shard s1")?;
                database::run(&target.dsn, "INSERT INTO saga (position) VALUES (2251799813685247)").await?;
            }
            movement.wish(abort()).await?;
            movement.until("aborted").await?;
        }
        assert_nothing_is_left(&cluster, "s1", HALF).await?;
    }
    // One reversal is given up, and another one goes on where it ended.
    let there = Movement::start(&cluster, "s0", "s1", HALF).await?;
    there.until("taken").await?;
    let held = MoveWishes { hold_cutover: Some(true), ..Default::default() };
    let back = Movement::start_as(&cluster, "s1", "s0", HALF, held, Some(there.id)).await?;
    back.until("catching up").await?;
    load.goes_on(20).await?;
    back.wish(abort()).await?;
    back.until("aborted").await?;
    // A reversal that is given up before it has copied anything must not make the next one copy again what the shard has.
    let paused = MoveWishes { paused: Some(true), ..Default::default() };
    let back = Movement::start_as(&cluster, "s1", "s0", HALF, paused, Some(there.id)).await?;
    back.wish(abort()).await?;
    back.until("aborted").await?;
    let back = Movement::start_as(&cluster, "s1", "s0", HALF, MoveWishes::default(), Some(there.id)).await?;
    back.until("taken").await?;
    // The move can no longer be given up.
    ensure!(back.wish(abort()).await.is_err());

    let history = load.finish().await?;
    history.has_no_error()?;
    audit(&cluster, &history).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cent_changed_by_hand_keeps_the_slots_where_they_are() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let client = cluster.client();
    let (alice, slot) = (0..)
        .map(|n| format!("alice{n}"))
        .map(|id| (id.clone(), u32::from(shard_map::slot_of(&id).index())))
        .find(|(_, slot)| *slot <= HALF.1)
        .context("no account in the slots")?;
    open_account(&client, &alice, "unlimited").await?;
    let held = MoveWishes { hold_cutover: Some(true), ..Default::default() };
    let movement = Movement::start_as(&cluster, "s0", "s1", (slot, slot), held, None).await?;
    movement.until("catching up").await?;
    let target = &cluster.status().shards[1].dsn;
    until("the account has come", Duration::from_secs(20), async || {
        let there = database::number(target, &format!("SELECT count(*) FROM account WHERE id = '{alice}'")).await?;
        Ok((there == 1).then_some(()))
    })
    .await?;
    database::run(target, &format!("UPDATE account SET posted = posted + 1 WHERE id = '{alice}'")).await?;
    movement.wish(MoveWishes { hold_cutover: Some(false), ..Default::default() }).await?;
    until("the difference is named", Duration::from_secs(20), async || {
        let progress = movement.progress().await?;
        let blocked_by = progress["blocked_by"].as_str().unwrap_or_default();
        Ok((blocked_by.contains(&format!("account {alice} differs")) && blocked_by.contains("posted 1"))
            .then_some(()))
    })
    .await?;
    ensure!(movement.status().await?.phase == "catching up");
    // The driver must not cut over by itself once the difference is gone.
    movement.wish(MoveWishes { hold_cutover: Some(true), ..Default::default() }).await?;
    let compared = cluster.shardctl(&["move", "verify", "--json"]).await?;
    ensure!(compared.code == Some(3), "a difference is a violation: {compared:?}");
    let said: serde_json::Value = serde_json::from_str(&compared.stdout)?;
    expect!(said["difference"].as_str().is_some_and(|why| why.contains(&alice)), "{said}");
    database::run(target, &format!("UPDATE account SET posted = posted - 1 WHERE id = '{alice}'")).await?;
    until("both sides agree", Duration::from_secs(20), async || {
        let compared = cluster.shardctl(&["move", "verify"]).await?;
        Ok((compared.code == Some(0)).then_some(()))
    })
    .await?;
    ensure!(movement.status().await?.phase == "catching up", "the comparison must not cut over");
    movement.wish(MoveWishes { hold_cutover: Some(false), ..Default::default() }).await?;
    movement.until("taken").await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_a_move_goes_on() -> anyhow::Result<()> {
    let seed = Seed::announce("moves under kills");
    let mut random = seed.random();
    let mut cluster = Cluster::start(2, 2).await?;
    let load = Load::start(&cluster, 12, &mut random, &seed, MIX).await?;
    load.goes_on(50).await?;

    let victims = [Member::Node(0), Member::Node(1), Member::Postgres(0), Member::Postgres(1)];
    let mut direction = ["s0", "s1"];
    for round in 0..2 {
        let [from, to] = direction;
        // The move is so slow that kills meet the copy.
        let slow = MoveWishes { rate: Some(100_000), ..Default::default() };
        let movement = Movement::start_as(&cluster, from, to, HALF, slow, None).await?;
        for victim in shuffled(&victims, &mut random) {
            // The kills meet the move at random moments.
            tokio::time::sleep(Duration::from_millis(random.below(600) as u64)).await;
            eprintln!("round {round}: the move is {}, killing {victim}", movement.phase().await);
            cluster.kill_and_recover(&[victim]).await?;
        }
        movement.until("taken").await?;
        movement.wish(finish()).await?;
        for victim in shuffled(&victims, &mut random).into_iter().take(2) {
            tokio::time::sleep(Duration::from_millis(random.below(600) as u64)).await;
            cluster.kill_and_recover(&[victim]).await?;
        }
        movement.until("finished").await?;
        direction.reverse();
    }

    let history = load.finish().await?;
    eprintln!("the clients were answered\n{}", history.answers());
    audit(&cluster, &history).await?;
    assert_nothing_is_left(&cluster, "s1", HALF).await?;
    cluster.finish().await
}

fn shuffled(members: &[Member], random: &mut Random) -> Vec<Member> {
    let mut members = members.to_vec();
    random.shuffle(&mut members);
    members
}

/// The commands of `docs/operations/resharding.md`: a third shard is added, the slots are balanced, and the shard is emptied again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_adds_a_shard_and_drains_it_again() -> anyhow::Result<()> {
    let seed = Seed::announce("an added shard");
    let mut cluster = Cluster::start(2, 2).await?;
    let load = Load::start(&cluster, 12, &mut seed.random(), &seed, MIX).await?;
    let comment = "# The operator's own remark.\n";
    let map = cluster.shard_map_path();
    std::fs::write(&map, format!("{comment}{}", std::fs::read_to_string(&map)?))?;
    let plan = cluster.data_dir().join("log").join("plan.toml");
    let plan = plan.to_str().context("the path is not UTF-8")?;

    cluster.shardctl(&["shard", "add", "s2"]).await?.successful()?;
    let planned = cluster.shardctl_json(&["move", "plan", "--balance", "-o", plan, "--json"]).await?;
    expect!(planned["plan"]["move"].as_array().is_some_and(|moves| moves.len() == 2), "{planned}");
    let applied = cluster.shardctl_json(&["move", "apply", plan, "--json"]).await?;
    expect!(applied["next"][0].as_str().is_some_and(|next| next.starts_with("shardctl move finish")), "{applied}");
    let again = cluster.shardctl_json(&["move", "apply", plan, "--finish", "--json"]).await?;
    expect!(again["moves"][0]["phase"] == "finished", "{again}");
    let shards = cluster.shardctl_json(&["shard", "list", "--json"]).await?;
    expect!(shards["shards"][2]["slots"].as_u64() > Some(0), "{shards}");
    let text = std::fs::read_to_string(&map)?;
    expect!(text.starts_with(comment) && text.contains("version = 4"), "{text}");
    let report = cluster.shardctl_json(&["move", "report", "--json"]).await?;
    let routers = &report["routers"];
    // The count may be zero, because no operation waits in a router if the source's lane answers only after the target has taken the slots.
    expect!(
        routers["waited"].is_u64() && routers["replayed"] == routers["waited"] && routers["refused"] == 0,
        "{report}"
    );

    let refused = cluster.shardctl(&["shard", "remove", "s2"]).await?;
    expect!(refused.code == Some(3) && refused.stdout.contains("accounts"), "{refused:?}");
    cluster.shardctl(&["shard", "drain", "s2"]).await?.successful()?;
    let shards = cluster.shardctl_json(&["shard", "list", "--json"]).await?;
    expect!(shards["shards"][2]["slots"] == 0 && shards["shards"][2]["accounts"] == 0, "{shards}");

    let history = load.finish().await?;
    history.has_no_error()?;
    cluster.refresh_status().await?;
    audit(&cluster, &history).await?;
    assert_nothing_is_left(&cluster, "s2", (0, 16_383)).await?;

    cluster.shardctl(&["shard", "remove", "s2"]).await?.successful()?;
    let text = std::fs::read_to_string(&map)?;
    expect!(text.starts_with(comment) && text.contains("[[removed]]\nid = \"s2\""), "{text}");
    until("the processes of the shard are stopped", Duration::from_secs(60), async || {
        Ok((cluster.refresh_status().await?.shards.len() == 2 && cluster.status().is_ready()).then_some(()))
    })
    .await?;
    // The routers ask for the map once a second.
    until("the cluster agrees that the shard is gone", Duration::from_secs(20), async || {
        Ok((cluster.shardctl(&["doctor"]).await?.code == Some(0)).then_some(()))
    })
    .await?;
    cluster.verify().await?;
    audit(&cluster, &history).await?;
    cluster.finish().await
}

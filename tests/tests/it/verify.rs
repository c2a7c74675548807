//! Tests that `shardctl verify` notices violations. The test breaks each invariant in the databases, one at a time, and `verify` must name
//! it. After the repair the cluster must be clean again.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{audit::all_folded, cluster::Cluster, database, history::payment_body, workload::open_account};
use uuid::Uuid;

/// A damage to one shard's database, and its repair.
struct Damage {
    what: &'static str,
    shard: usize,
    sql: &'static str,
    mend: &'static str,
    /// The invariants that `verify` must name. It must name no others.
    breaks: &'static [&'static str],
}

/// Each account has taken part in one local or one cross-shard transfer. s0 pays, and s1 is paid. No damage changes the highest position or
/// what a node reads again without traffic. Ids are UUIDs of version 7 and begin with 0.
const DAMAGES: [Damage; 23] = [
    Damage {
        what: "a cent too many in a row",
        shard: 0,
        sql: "UPDATE account SET posted = posted + 1 WHERE id LIKE '%payee'",
        mend: "UPDATE account SET posted = posted - 1 WHERE id LIKE '%payee'",
        breaks: &["INV-15"],
    },
    Damage {
        what: "a row with another limit",
        shard: 0,
        sql: "UPDATE account SET max_balance = 100000 WHERE id LIKE '%payee'",
        mend: "UPDATE account SET max_balance = NULL WHERE id LIKE '%payee'",
        breaks: &["INV-15"],
    },
    Damage {
        what: "a row ahead of the journal",
        shard: 0,
        sql: "UPDATE account SET version = version + 1 WHERE id LIKE '%payee'",
        mend: "UPDATE account SET version = version - 1 WHERE id LIKE '%payee'",
        breaks: &["INV-15"],
    },
    Damage {
        what: "a booking that moves more than its legs say",
        shard: 0,
        sql: "UPDATE journal SET amount = amount + 1 WHERE kind = 11",
        mend: "UPDATE journal SET amount = amount - 1 WHERE kind = 11",
        breaks: &["INV-1"],
    },
    Damage {
        what: "a reserve and its settlement apart",
        shard: 0,
        sql: "UPDATE journal SET id = ('f' || substr(id::text, 2))::uuid WHERE kind = 13",
        mend: "UPDATE journal SET id = ('0' || substr(id::text, 2))::uuid WHERE kind = 13",
        breaks: &["INV-3"],
    },
    Damage {
        what: "a credit of another amount",
        shard: 1,
        sql: "UPDATE journal SET amount = amount + 1 WHERE kind = 31",
        mend: "UPDATE journal SET amount = amount - 1 WHERE kind = 31",
        breaks: &["INV-1", "INV-3", "INV-15"],
    },
    Damage {
        what: "refused though credited",
        shard: 0,
        sql: "UPDATE journal SET kind = 23, refusal = 13 WHERE kind = 21",
        mend: "UPDATE journal SET kind = 21, refusal = NULL WHERE kind = 23",
        breaks: &["INV-3", "INV-4"],
    },
    Damage {
        what: "posted without a verdict",
        shard: 1,
        sql: "UPDATE journal SET id = ('f' || substr(id::text, 2))::uuid WHERE kind = 31",
        mend: "UPDATE journal SET id = ('0' || substr(id::text, 2))::uuid WHERE kind = 31",
        breaks: &["INV-3", "INV-4"],
    },
    Damage {
        what: "a saga that never began",
        shard: 0,
        sql: "INSERT INTO saga VALUES (1)",
        mend: "DELETE FROM saga",
        breaks: &["INV-3"],
    },
    Damage {
        what: "a saga of another shard that never came",
        shard: 1,
        sql: "INSERT INTO saga VALUES (1)",
        mend: "DELETE FROM saga",
        breaks: &["INV-3"],
    },
    // No damage: a move copies the rows of sagas before the bookings that were appended meanwhile.
    Damage {
        what: "a saga whose booking is still to come",
        shard: 1,
        sql: "INSERT INTO saga VALUES (1); INSERT INTO slot_ownership VALUES (0, 3, 7, 's0')",
        mend: "DELETE FROM saga; DELETE FROM slot_ownership WHERE slot = 0",
        breaks: &[],
    },
    Damage {
        what: "a hold that was never placed",
        shard: 0,
        sql: "INSERT INTO hold SELECT gen_random_uuid(), id, slot, 1, 5, 0, NULL, 0, NULL FROM account WHERE id LIKE '%payer'",
        mend: "DELETE FROM hold",
        breaks: &["INV-11"],
    },
    Damage {
        what: "an overdrawn moment",
        shard: 0,
        sql: "ALTER TABLE journal DROP CONSTRAINT journal_payer_available; UPDATE journal SET payer_overdraft = 0 WHERE payer LIKE '%payer' AND payer_version = 2",
        mend: "UPDATE journal SET payer_overdraft = NULL WHERE payer LIKE '%payer' AND payer_version = 2; ALTER TABLE journal ADD CONSTRAINT journal_payer_available CHECK (payer_overdraft IS NULL OR payer_posted - payer_held >= -payer_overdraft)",
        breaks: &["INV-10", "INV-15"],
    },
    Damage {
        what: "a chain that leads nowhere",
        shard: 0,
        sql: "UPDATE journal SET payer_previous = -payer_previous WHERE payer LIKE '%payer' AND payer_version = 2",
        mend: "UPDATE journal SET payer_previous = -payer_previous WHERE payer LIKE '%payer' AND payer_version = 2",
        breaks: &["INV-9"],
    },
    Damage {
        what: "a version skipped",
        shard: 0,
        sql: "UPDATE journal SET payer_version = 9 WHERE payer LIKE '%payer' AND payer_version = 2",
        mend: "UPDATE journal SET payer_version = 2 WHERE payer LIKE '%payer' AND payer_version = 9",
        breaks: &["INV-9"],
    },
    Damage {
        what: "a debit booked twice",
        shard: 0,
        sql: "CREATE TEMPORARY TABLE copy AS SELECT * FROM journal WHERE kind = 11; UPDATE copy SET position = -position, id = gen_random_uuid(); INSERT INTO journal SELECT * FROM copy",
        mend: "DELETE FROM journal WHERE position < 0",
        breaks: &["INV-9", "INV-15"],
    },
    Damage {
        what: "a waypoint that is none",
        shard: 0,
        sql: "INSERT INTO waypoint SELECT payer, 64, position, at_us FROM journal WHERE kind = 11",
        mend: "DELETE FROM waypoint",
        breaks: &["INV-9"],
    },
    Damage {
        what: "a booking in another's slot",
        shard: 0,
        sql: "UPDATE journal SET payer_slot = payer_slot + 1 WHERE kind = 11",
        mend: "UPDATE journal SET payer_slot = payer_slot - 1 WHERE kind = 11",
        breaks: &["INV-2"],
    },
    Damage {
        what: "a slot of two shards",
        shard: 1,
        sql: "INSERT INTO slot_ownership VALUES (0, 1, 7, '')",
        mend: "DELETE FROM slot_ownership WHERE slot = 0",
        breaks: &["INV-2"],
    },
    Damage {
        what: "a mark of a shard that was not checked",
        shard: 0,
        sql: "INSERT INTO peer_mark VALUES (7, 1, 1, 1)",
        mend: "DELETE FROM peer_mark WHERE shard_number = 7",
        breaks: &["INV-2"],
    },
    Damage {
        what: "slots moved from a shard that was not checked",
        shard: 0,
        sql: "UPDATE slot_ownership SET peer = 's7' WHERE slot = 0",
        mend: "UPDATE slot_ownership SET peer = '' WHERE slot = 0",
        breaks: &["INV-2"],
    },
    Damage {
        what: "a map that cannot be read",
        shard: 0,
        sql: "UPDATE known_map SET text = '?' || text",
        mend: "UPDATE known_map SET text = substr(text, 2)",
        breaks: &["INV-2"],
    },
    Damage {
        what: "an account in another's slot",
        shard: 0,
        sql: "UPDATE account SET slot = slot + 1 WHERE id LIKE '%payer'",
        mend: "UPDATE account SET slot = slot - 1 WHERE id LIKE '%payer'",
        breaks: &["INV-2"],
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_names_each_broken_invariant() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let payer = placement.account_on("s0", "payer", 0)?;
    let near = placement.account_on("s0", "payee", 0)?;
    let far = placement.account_on("s1", "far", 0)?;
    open_account(&client, &payer, "unlimited").await?;
    open_account(&client, &near, "0.00").await?;
    open_account(&client, &far, "0.00").await?;
    for credit in [&near, &far] {
        let order = payment_body(Uuid::now_v7(), &payer, credit, "5.00");
        client.post(0, "/v1/transfers", &order).await?;
    }
    cluster.verify().await?;
    all_folded(&cluster).await?;

    for damage in &DAMAGES {
        let dsn = &cluster.status().shards[damage.shard].dsn;
        ensure!(database::run(dsn, damage.sql).await? > 0, "{}: no row was changed", damage.what);
        let named = violated(&cluster).await.context(damage.what)?;
        let expected: BTreeSet<String> = damage.breaks.iter().map(|id| (*id).to_owned()).collect();
        ensure!(named == expected, "{}: verify names {named:?} instead of {expected:?}", damage.what);
        ensure!(database::run(dsn, damage.mend).await? > 0, "{}: nothing was mended", damage.what);
    }
    cluster.verify().await.context("after all damage was mended")?;
    cluster.finish().await
}

/// `verify` must be given every shard of one cluster, and the environment must not change its connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_checks_all_shards_of_one_cluster_and_leaves_no_trace() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let dsn = |shard: usize| cluster.status().shards[shard].dsn.clone();
    let verify = async |variables: &[(&str, &str)], targets: &[(&str, usize)]| {
        let targets: Vec<String> = targets.iter().map(|(id, shard)| format!("{id}={}", dsn(*shard))).collect();
        let mut arguments = vec!["verify"];
        targets.iter().for_each(|target| arguments.extend(["--dsn", target.as_str()]));
        cluster.shardctl_with(variables, &arguments).await
    };
    let both: &[(&str, usize)] = &[("s0", 0), ("s1", 1)];
    ensure!(verify(&[], both).await?.code == Some(0));

    let one = verify(&[], &[("s0", 0)]).await?;
    expect!(one.code == Some(3), "{one:?}");
    let named = "is known to s0 (map version 1) and was not checked: give its --dsn";
    expect!(one.stdout.lines().any(|line| line.contains("shard s1") && line.contains(named)), "{}", one.stdout);

    // `verify` checks nothing if a database belongs to another shard than the one that the argument names.
    let other = uuid::Uuid::now_v7().to_string();
    let is_refused = async |targets: &[(&str, usize)], words: &[&str]| {
        let output = verify(&[], targets).await?;
        expect!(output.code == Some(1) && output.stdout.is_empty(), "{output:?}");
        expect!(words.iter().all(|word| output.stderr.contains(word)), "{words:?}: {}", output.stderr);
        anyhow::Ok(())
    };
    is_refused(&[("s0", 1), ("s1", 0)], &["given for s0 is s1", "given for s1 is s0"]).await?;
    is_refused(&[("s0", 0), ("s1", 0)], &["given for s0 and s1 are one and the same"]).await?;
    let before = "UPDATE shard_identity SET cluster_id = ";
    let own = cluster.placement()?.map().cluster.to_string();
    database::run(&dsn(1), &format!("{before}'{other}'")).await?;
    is_refused(both, &[&own, &other, "s0", "s1"]).await?;
    database::run(&dsn(1), &format!("{before}'{own}'")).await?;

    ensure!(verify(&[("PGSSLMODE", "require"), ("PGHOST", "192.0.2.1")], both).await?.code == Some(0));
    let options = verify(&[("PGOPTIONS", "-c search_path=elsewhere")], both).await?;
    expect!(options.code == Some(1) && options.stderr.contains("PGOPTIONS is set in the environment"), "{options:?}");

    // `verify` ended each of its connections with a termination message. The services keep theirs open.
    for shard in &cluster.status().shards {
        let log = cluster.data_dir().join("log").join(format!("postgres-{}.log", shard.id));
        let log = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let broken_off = log.lines().find(|line| line.contains("unexpected EOF on client connection"));
        expect!(broken_off.is_none(), "{broken_off:?}");
    }
    cluster.finish().await
}

/// The invariants that `verify` found broken. Each must come with an example.
async fn violated(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let Err(found) = cluster.verify().await else { return Ok(BTreeSet::new()) };
    let text = found.to_string();
    let (_, report) = text.split_once('\n').with_context(|| format!("no report: {text}"))?;
    let report: Value = serde_json::from_str(report).with_context(|| format!("no report: {text}"))?;
    let mut named = BTreeSet::new();
    for invariant in report["invariants"].as_array().with_context(|| format!("expected invariants in {report}"))? {
        if invariant["violations"].as_u64().unwrap_or_default() > 0 {
            ensure!(invariant["examples"][0]["subject"].is_string(), "the invariant has no example: {invariant}");
            named.insert(invariant["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(named)
}

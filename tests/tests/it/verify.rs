//! `shardctl verify` is useful only if it notices violations. The test breaks each invariant in the databases, one at
//! a time, and `verify` must name it. After the repair the cluster must be clean again.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use testkit::{cluster::Cluster, database, history::ASSET, workload::open_account};
use uuid::Uuid;

/// Damage to one shard's database, and how to mend it.
struct Damage {
    what: &'static str,
    shard: usize,
    sql: &'static str,
    mend: &'static str,
    /// The invariants that must be named, and no others.
    breaks: &'static [&'static str],
}

/// Every account has taken part in one local and one cross-shard transfer; s0 pays, s1 is paid.
const DAMAGES: [Damage; 16] = [
    Damage {
        what: "a cent too many in a row",
        shard: 0,
        sql: "UPDATE account SET posted = posted + 1 WHERE id LIKE '%payee'",
        mend: "UPDATE account SET posted = posted - 1 WHERE id LIKE '%payee'",
        breaks: &["I1", "I13"],
    },
    Damage {
        what: "an entry that moves money for no transfer",
        shard: 0,
        sql: "UPDATE journal SET amount = 1 WHERE account LIKE '%payee' AND version = 1",
        mend: "UPDATE journal SET amount = 0 WHERE account LIKE '%payee' AND version = 1",
        breaks: &["I1", "I13"],
    },
    Damage {
        what: "a transfer without its row",
        shard: 0,
        sql: "UPDATE transfer SET debit = debit || '?' WHERE NOT cross_shard",
        mend: "UPDATE transfer SET debit = rtrim(debit, '?') WHERE NOT cross_shard",
        breaks: &["I1"],
    },
    Damage {
        what: "a debit booked twice",
        shard: 0,
        sql: "INSERT INTO journal SELECT position + 1000000, previous, account, slot, version, kind, amount, posted, held, \
              overdraft, transfer_id, counterparty, detail, created_at_us FROM journal WHERE kind = 3",
        mend: "DELETE FROM journal WHERE position > 1000000",
        breaks: &["I4", "I10"],
    },
    Damage {
        what: "a credit whose reserve is gone",
        shard: 0,
        sql: "UPDATE transfer SET cross_shard = FALSE WHERE cross_shard",
        mend: "UPDATE transfer SET cross_shard = TRUE WHERE debit_position IN (SELECT position FROM journal WHERE kind = 4)",
        breaks: &["I1", "I2"],
    },
    Damage {
        what: "in transit without a saga",
        shard: 0,
        sql: "UPDATE transfer SET amount = amount + 1 WHERE cross_shard",
        mend: "UPDATE transfer SET amount = amount - 1 WHERE cross_shard",
        breaks: &["I2", "I8"],
    },
    Damage {
        what: "compensated though credited",
        shard: 0,
        sql: "UPDATE transfer SET status = 3, refusal = 13 WHERE cross_shard",
        mend: "UPDATE transfer SET status = 2, refusal = NULL WHERE cross_shard",
        breaks: &["I2", "I4", "I8"],
    },
    Damage {
        what: "posted without a verdict",
        shard: 1,
        sql: "UPDATE register SET debit = debit || '?'",
        mend: "UPDATE register SET debit = rtrim(debit, '?')",
        breaks: &["I1", "I2", "I8"],
    },
    Damage {
        what: "an overdrawn moment",
        shard: 0,
        sql: "UPDATE journal SET overdraft = 0 WHERE account LIKE '%payer' AND version = 2",
        mend: "UPDATE journal SET overdraft = NULL WHERE account LIKE '%payer' AND version = 2",
        breaks: &["I9"],
    },
    Damage {
        what: "a chain that leads nowhere",
        shard: 0,
        sql: "UPDATE journal SET previous = -previous WHERE account LIKE '%payer' AND version = 2",
        mend: "UPDATE journal SET previous = -previous WHERE account LIKE '%payer' AND version = 2",
        breaks: &["I10"],
    },
    Damage {
        what: "a version skipped",
        shard: 0,
        sql: "UPDATE journal SET version = 9 WHERE account LIKE '%payer' AND version = 2",
        mend: "UPDATE journal SET version = 2 WHERE account LIKE '%payer' AND version = 9",
        breaks: &["I10"],
    },
    Damage {
        what: "a slot of two shards",
        shard: 1,
        sql: "INSERT INTO slot_ownership VALUES (0, 1, 7, '')",
        mend: "DELETE FROM slot_ownership WHERE slot = 0",
        breaks: &["I11"],
    },
    Damage {
        what: "a mark of a shard that was not checked",
        shard: 0,
        sql: "INSERT INTO peer_mark VALUES (7, 1, 1, 1)",
        mend: "DELETE FROM peer_mark WHERE shard_number = 7",
        breaks: &["I11"],
    },
    Damage {
        what: "slots moved from a shard that was not checked",
        shard: 0,
        sql: "UPDATE slot_ownership SET peer = 's7' WHERE slot = 0",
        mend: "UPDATE slot_ownership SET peer = '' WHERE slot = 0",
        breaks: &["I11"],
    },
    Damage {
        what: "a map that cannot be read",
        shard: 0,
        sql: "UPDATE known_map SET text = '?' || text",
        mend: "UPDATE known_map SET text = substr(text, 2)",
        breaks: &["I11"],
    },
    Damage {
        what: "an account in another's slot",
        shard: 0,
        sql: "UPDATE account SET slot = slot + 1 WHERE id LIKE '%payer'",
        mend: "UPDATE account SET slot = slot - 1 WHERE id LIKE '%payer'",
        breaks: &["I11"],
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
        let order = json!({"id": Uuid::now_v7(), "debit": payer, "credit": credit, "amount": "5.00", "asset": ASSET});
        client.post(0, "/v1/transfers", &order).await?;
    }
    cluster.verify().await?;

    for damage in &DAMAGES {
        let dsn = &cluster.status().shards[damage.shard].dsn;
        ensure!(database::run(dsn, damage.sql).await? > 0, "{}: no row was changed", damage.what);
        let named = violated(&cluster).await.context(damage.what)?;
        let expected: BTreeSet<String> = damage.breaks.iter().map(|id| (*id).to_owned()).collect();
        ensure!(named == expected, "{}: verify names {named:?} instead of {expected:?}", damage.what);
        ensure!(database::run(dsn, damage.mend).await? > 0, "{}: nothing was mended", damage.what);
    }
    cluster.verify().await.context("all damage was mended")?;
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
    ensure!(one.code == Some(3), "{one:?}");
    let named = "is known to s0 (map version 1) and was not checked: give its --dsn";
    ensure!(one.stdout.lines().any(|line| line.contains("shard s1") && line.contains(named)), "{}", one.stdout);

    // `verify` checks nothing if a database is not the one it was given for.
    let other = uuid::Uuid::now_v7().to_string();
    let is_refused = async |targets: &[(&str, usize)], words: &[&str]| {
        let output = verify(&[], targets).await?;
        ensure!(output.code == Some(1) && output.stdout.is_empty(), "{output:?}");
        ensure!(words.iter().all(|word| output.stderr.contains(word)), "{words:?}: {}", output.stderr);
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
    ensure!(options.code == Some(1) && options.stderr.contains("PGOPTIONS is set in the environment"), "{options:?}");

    // `verify` ended each of its connections with a termination message. The services keep theirs open.
    for shard in &cluster.status().shards {
        let log = cluster.data_dir().join("log").join(format!("postgres-{}.log", shard.id));
        let log = std::fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        let broken_off = log.lines().find(|line| line.contains("unexpected EOF on client connection"));
        ensure!(broken_off.is_none(), "{broken_off:?}");
    }
    cluster.finish().await
}

/// The invariants verify found broken; each must come with an example.
async fn violated(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let Err(found) = cluster.verify().await else { return Ok(BTreeSet::new()) };
    let text = found.to_string();
    let (_, report) = text.split_once('\n').with_context(|| format!("no report: {text}"))?;
    let report: Value = serde_json::from_str(report).with_context(|| format!("no report: {text}"))?;
    let mut named = BTreeSet::new();
    for invariant in report["invariants"].as_array().context("no invariants")? {
        if invariant["violations"].as_u64().unwrap_or_default() > 0 {
            ensure!(invariant["examples"][0]["subject"].is_string(), "nothing is named: {invariant}");
            named.insert(invariant["id"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(named)
}

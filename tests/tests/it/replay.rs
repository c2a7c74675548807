//! `shardctl replay` and `shardctl bench` against a live cluster: a bank of three accounts in the format of the real one,
//! and some seconds of load.

use anyhow::ensure;
use testkit::cluster::Cluster;

/// Account 1 in the order in which it happened, account 2 with its only day the wrong way round and below zero at the
/// bank itself, account 3 with a row missing from its last day.
const BANK: &str = "\
trans_id,account_id,date,type,operation,amount,balance,k_symbol,bank,account
11,1,930101,PRIJEM,VKLAD,1000.00,1000.00,,,
12,1,930105,VYDAJ,PREVOD NA UCET,250.50,749.50,SIPO,YZ,123
13,1,930131,PRIJEM,,3.30,752.80,UROK,,
14,1,930131,VYDAJ,VYBER,14.60,738.20,SLUZBY,,
22,2,930102,VYDAJ,VYBER,900.00,-200.00,,,
21,2,930102,PRIJEM,VKLAD,700.00,700.00,,,
23,2,930131,VYDAJ,VYBER,0.70,-200.80,SANKC. UROK,,
31,3,930103,PRIJEM,PREVOD Z UCTU,5000.00,5000.00,DUCHOD,AB,9
32,3,930131,VYDAJ,VYBER,14.60,5005.40,SLUZBY,,
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bank_is_replayed_once_and_its_balances_are_explained() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let file = cluster.data_dir().join("log").join("bank.csv");
    std::fs::write(&file, BANK)?;
    let replay = ["replay", "--json", "--bank", &file.display().to_string()];

    let first = cluster.shardctl_json(&replay).await?;
    let outcome = &first["replay"];
    ensure!(outcome["transfers_posted"] == 9 && outcome["transfers_replayed"] == 0, "{first}");
    ensure!(
        outcome["accounts"] == 3 && outcome["accounts_complete"] == 2 && outcome["accounts_agree"] == 2,
        "{first}"
    );
    ensure!(outcome["overdrafts"][0]["account"] == "bank:2", "{first}");
    let missing = outcome["differences"][0]["reason"].as_str().unwrap_or_default();
    ensure!(missing.contains("credits of 20.00 on 1993-01-31, before transaction 32"), "{first}");
    ensure!(first["verify"]["verdict"] == "clean", "{first}");

    let second = cluster.shardctl_json(&replay).await?;
    let outcome = &second["replay"];
    ensure!(outcome["transfers_posted"] == 0 && outcome["transfers_replayed"] == 9, "{second}");
    ensure!(second["verify"]["shards"] == first["verify"]["shards"], "the second replay changed something: {second}");

    for load in [
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--batch", "20"][..],
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--rate", "20"],
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--workload", "cross"],
    ] {
        let measured = cluster.shardctl_json(load).await?;
        ensure!(measured["posted"].as_u64() > Some(0) && measured["others"] == serde_json::json!({}), "{measured}");
    }
    cluster.verify().await?;
    cluster.finish().await
}

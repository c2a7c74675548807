//! Commands of `shardctl` that list and pay, that replay the file of a real bank's format, and that measure a load.

use anyhow::{Context, ensure};
use serde_json::Value;
use testkit::{
    client::account_path,
    cluster::{Cluster, Member, Output},
    workload::open_account,
};

use crate::import::{ImportFile, import, printed};

/// The id that a command printed before it sent the request.
fn announced_id(output: &Output) -> anyhow::Result<String> {
    let line = output.stderr.lines().next().context("the command did not print its id")?;
    Ok(line.strip_prefix("--id ").with_context(|| line.to_owned())?.to_owned())
}

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().into_iter().flatten().filter_map(|item| item["id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_is_created_once_however_often_its_id_is_given_and_entries_are_listed() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let (client, placement) = (cluster.client(), cluster.placement()?);
    let (alice, bob) = (placement.account_on("s0", "alice", 0)?, placement.account_on("s1", "bob", 0)?);
    open_account(&client, &alice, "100.00").await?;
    open_account(&client, &bob, "0.00").await?;

    let pay = ["transfer", "create", "--json", "--debit", &alice, "--credit", &bob, "--asset", "USD", "--amount"];
    let dry = cluster.shardctl(&[&pay[..], &["5", "--dry-run"]].concat()).await?;
    expect!(dry.code == Some(0) && dry.stdout.contains("would_post"), "{dry:?}");
    let first = cluster.shardctl(&[&pay[..], &["5", "--metadata", "order=4711"]].concat()).await?;
    let id = announced_id(&first)?;
    let transfer: Value = serde_json::from_str(&first.successful()?)?;
    ensure!(transfer["id"] == id && transfer["amount"] == "5.00" && transfer["metadata"]["order"] == "4711");
    let again = cluster.shardctl(&[&pay[..], &["5", "--metadata", "order=4711", "--id", &id]].concat()).await?;
    expect!(announced_id(&again)? == id && again.code == Some(0), "{again:?}");
    let refused = cluster.shardctl(&[&pay[..], &["500"]].concat()).await?;
    expect!(refused.code == Some(1) && refused.stderr.contains("insufficient_funds"), "{refused:?}");
    let nowhere = cluster.shardctl(&[&pay[..], &["5", "--url", "http://127.0.0.1:1"]].concat()).await?;
    expect!(nowhere.code == Some(4), "{nowhere:?}");

    // The shard does not answer, so the outcome is unknown. The same request, sent again, tells the outcome.
    let node = cluster.process(Member::Node(0))?;
    node.freeze().await?;
    let unknown = cluster.shardctl(&[&pay[..], &["7"]].concat()).await?;
    node.thaw()?;
    let id = announced_id(&unknown)?;
    expect!(unknown.code == Some(5) && unknown.stderr.contains(&format!("again with --id {id}")), "{unknown:?}");
    cluster.wait_until_ready("the node is thawed", &[]).await?;
    cluster.shardctl(&[&pay[..], &["7", "--id", &id]].concat()).await?.successful()?;
    ensure!(client.get(0, &account_path(&bob)).await?["posted"] == "12.00", "expected one payment of 12.00");

    let entries = ["account", "entries", &bob, "--json"];
    let newest = cluster.shardctl_json(&[&entries[..], &["--limit", "2"]].concat()).await?;
    let amounts = |list: &Value| -> Vec<String> {
        list["data"].as_array().into_iter().flatten().map(|entry| entry["amount"].to_string()).collect()
    };
    expect!(amounts(&newest) == [r#""7.00""#, r#""5.00""#] && newest["has_more"] == true, "{newest}");
    let oldest = cluster.shardctl_json(&[&entries[..], &["--order", "asc"]].concat()).await?;
    expect!(amounts(&oldest) == [r#""0.00""#, r#""5.00""#, r#""7.00""#] && oldest["has_more"] == false, "{oldest}");
    let none = cluster.shardctl_json(&[&entries[..], &["--to", "2020-01-01T00:00:00+01:00"]].concat()).await?;
    expect!(amounts(&none).is_empty(), "{none}");
    let table = cluster.shardctl(&entries[..3]).await?.successful()?;
    expect!(table.starts_with("version") && table.lines().count() == 4, "{table}");

    let transfers = ["transfer", "list", "--account", &bob, "--json"];
    let all = cluster.shardctl_json(&transfers).await?;
    expect!(amounts(&all) == [r#""7.00""#, r#""5.00""#] && all["has_more"] == false, "{all}");
    for filter in [&["--metadata", "order=4711"][..], &["--metadata", "order", "--status", "posted"]] {
        let some = cluster.shardctl_json(&[&transfers[..], filter].concat()).await?;
        expect!(amounts(&some) == [r#""5.00""#], "{filter:?}: {some}");
    }
    let holds = cluster.shardctl_json(&["hold", "list", "--account", &alice, "--json"]).await?;
    expect!(amounts(&holds).is_empty() && holds["has_more"] == false, "{holds}");
    let then = cluster.shardctl_json(&["account", "list", "--at", "2020-01-01T00:00:00+01:00", "--json"]).await?;
    expect!(ids(&then).is_empty(), "{then}");
    let now = ["account", "list", "--at", "2100-01-01T00:00:00Z", "--prefix", &bob, "--json"];
    let now = cluster.shardctl_json(&now).await?;
    expect!(ids(&now) == [bob.as_str()] && now["data"][0]["posted"] == "12.00", "{now}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_listed_over_pages_and_no_password_is_shown_unless_asked_for() -> anyhow::Result<()> {
    let cluster = Cluster::start(2, 1).await?;
    let table = ImportFile::write(
        &cluster,
        "many.csv",
        "id,asset",
        &(0..1_100).map(|n| format!("many-{n:04},USD")).collect::<Vec<_>>(),
    )?;
    printed(&import(&cluster, &["accounts", table.path()]).await?, 0)?;
    open_account(&cluster.client(), "other", "0.00").await?;
    let list = ["account", "list", "--json", "--prefix", "many-", "--limit"];
    let some = cluster.shardctl_json(&[&list[..], &["1050"]].concat()).await?;
    let expected: Vec<String> = (0..1_050).map(|n| format!("many-{n:04}")).collect();
    expect!(ids(&some) == expected && some["has_more"] == true, "{}", ids(&some).len());
    let all = cluster.shardctl_json(&[&list[..], &["5000"]].concat()).await?;
    expect!(ids(&all).len() == 1_100 && all["has_more"] == false, "{}", ids(&all).len());
    let table = cluster.shardctl(&["account", "list", "--prefix", "other"]).await?.successful()?;
    expect!(table.starts_with("id") && table.contains("other") && !table.contains("many"), "{table}");

    let passwords: Vec<String> = cluster
        .status()
        .shards
        .iter()
        .filter_map(|shard| Some(shard.dsn.split_once(':')?.1.split_once(':')?.1.split_once('@')?.0.to_owned()))
        .collect();
    expect!(passwords.len() == 2 && passwords.iter().all(|password| password.len() == 32), "{passwords:?}");
    for command in [&["status", "--json"][..], &["status"], &["up", "--json"]] {
        let shown = cluster.shardctl(command).await?.successful()?;
        expect!(!passwords.iter().any(|password| shown.contains(password)), "{command:?}: {shown}");
    }
    let status = cluster.shardctl_json(&["status", "--json"]).await?;
    let port = cluster.status().shards[1].postgres_port;
    let dsn = status["shards"][1]["dsn"].as_str().unwrap_or_default();
    expect!(dsn.contains(&format!("@127.0.0.1:{port}/")), "{status}");
    cluster.finish().await
}

/// The rows of account 1 are in the order in which they happened. The only day of account 2 is in reverse order, and its balance was below zero at
/// the bank itself. A row is missing from the last day of account 3.
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
    expect!(outcome["transfers_posted"] == 9 && outcome["transfers_replayed"] == 0, "{first}");
    expect!(
        outcome["accounts"] == 3 && outcome["accounts_complete"] == 2 && outcome["accounts_agree"] == 2,
        "{first}"
    );
    expect!(outcome["overdrafts"][0]["account"] == "bank:2", "{first}");
    let missing = outcome["differences"][0]["reason"].as_str().unwrap_or_default();
    expect!(missing.contains("credits of 20.00 on 1993-01-31, before transaction 32"), "{first}");
    expect!(first["verify"]["verdict"] == "clean", "{first}");

    let second = cluster.shardctl_json(&replay).await?;
    let outcome = &second["replay"];
    expect!(outcome["transfers_posted"] == 0 && outcome["transfers_replayed"] == 9, "{second}");
    ensure!(second["verify"]["shards"] == first["verify"]["shards"], "the second replay changed something: {second}");

    for load in [
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--batch", "20"][..],
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--rate", "20"],
        &["bench", "--json", "--accounts", "50", "--duration", "3", "--connections", "2", "--workload", "cross"],
    ] {
        let measured = cluster.shardctl_json(load).await?;
        expect!(measured["posted"].as_u64() > Some(0) && measured["others"] == serde_json::json!({}), "{measured}");
    }
    cluster.verify_and_finish().await
}

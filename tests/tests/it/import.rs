//! Tests of `shardctl import` against a live cluster, with thousands of rows and bad ones among them, a `kill -9` in the middle, and runs
//! that repeat what was imported.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use http::Method;
use serde_json::{Value, json};
use testkit::{
    client::account_path,
    cluster::{Cluster, Member, Output},
    wait::until,
    workload::open_account,
};

const ROWS: usize = 5_000;
const PATIENCE: Duration = Duration::from_secs(60);
/// Options for small batches, one after another, so that an import can be stopped in the middle.
const SLOWLY: [&str; 4] = ["--batch", "20", "--in-flight", "1"];

/// A CSV file in a folder that is removed with the cluster.
pub struct ImportFile {
    path: PathBuf,
}

impl ImportFile {
    pub fn write(cluster: &Cluster, name: &str, header: &str, rows: &[String]) -> anyhow::Result<Self> {
        let file = Self { path: cluster.data_dir().join("log").join(name) };
        file.rewrite(header, rows)?;
        Ok(file)
    }

    fn rewrite(&self, header: &str, rows: &[String]) -> anyhow::Result<()> {
        Ok(fs::write(&self.path, format!("{header}\n{}\n", rows.join("\n")))?)
    }

    pub fn path(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    fn rejected(&self) -> PathBuf {
        self.path.with_extension("rejected.csv")
    }

    fn progress(&self) -> PathBuf {
        self.path.with_extension("progress.json")
    }

    /// The line and the reason of each rejected row.
    fn rejects(&self) -> anyhow::Result<Vec<(u64, String)>> {
        let text = fs::read_to_string(self.rejected())?;
        let rows = text.lines().skip(1).map(|line| {
            let (number, rest) = line.split_once(',').with_context(|| line.to_owned())?;
            Ok((number.parse()?, rest.to_owned()))
        });
        rows.collect()
    }

    /// Checks that the rejected rows are these lines, each for this reason.
    fn rejects_are(&self, expected: &[(u64, &str)]) -> anyhow::Result<()> {
        let found = self.rejects()?;
        let agree = found.len() == expected.len()
            && found
                .iter()
                .zip(expected)
                .all(|(found, expected)| found.0 == expected.0 && found.1.contains(expected.1));
        ensure!(agree, "rejected: {found:#?}, expected {expected:?}");
        Ok(())
    }
}

/// The JSON that a command printed before it ended with this code.
pub fn printed(output: &Output, code: i32) -> anyhow::Result<Value> {
    expect!(output.code == Some(code), "{output:?}");
    serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))
}

pub async fn import(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Output> {
    cluster.shardctl(&[&["import", "--json"][..], arguments].concat()).await
}

/// Begins an import, freezes a shard's node in the middle of it, and ends the import with `kill -9`. `meanwhile` runs before
/// that. The node is thawed, and the cluster serves again.
async fn killed_in_the_middle(
    cluster: &mut Cluster,
    file: &ImportFile,
    arguments: &[&str],
    meanwhile: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut import = cluster.spawn_shardctl(&[&["import"][..], arguments, &SLOWLY].concat())?;
    let rows = |path: &Path| -> anyhow::Result<u64> {
        let progress: Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        progress["counts"]["rows"].as_u64().with_context(|| format!("expected rows in {progress}"))
    };
    until("some rows are confirmed", PATIENCE, async || Ok((rows(&file.progress())? > 0).then_some(()))).await?;
    let node = cluster.process(Member::Node(1))?;
    node.freeze().await?;
    meanwhile(&*cluster).await?;
    ensure!(import.try_wait()?.is_none(), "the import ended before it could be killed");
    import.kill().await?;
    let done = rows(&file.progress())?;
    ensure!(done < ROWS as u64, "nothing was left to do");
    node.thaw()?;
    cluster.wait_until_ready("the node is thawed", &[]).await
}

/// The numbers of rows on each shard, which change with every booking.
async fn booked(cluster: &Cluster) -> anyhow::Result<Value> {
    Ok(cluster.shardctl_json(&["verify", "--json"]).await?["shards"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accounts_are_opened_once_although_the_import_is_killed_and_bad_rows_are_listed_by_line() -> anyhow::Result<()>
{
    let mut cluster = Cluster::start(2, 1).await?;
    let mut rows: Vec<String> =
        (0..ROWS).map(|n| format!("USD,customer-{n},{}.50,,\"{{\"\"number\"\": \"\"{n}\"\"}}\"", n % 100)).collect();
    let bad: [(usize, &str, &str); 7] = [
        (10, "USD,two words,,,", "id: an account id consists of"),
        (700, "usd,customer-x,,,", "asset: an asset code"),
        (1500, "USD,customer-x,1.234,,", "overdraft: the amount has more than the 2"),
        (1501, "USD,customer-x,,,{", "metadata is no JSON object"),
        (2600, "ZZZ,customer-x,,,", "asset: invalid_asset"),
        (3700, "EUR,customer-1,,,", "account_exists: the account exists with another asset"),
        (4999, "USD,customer-x", "2 values"),
    ];
    for (row, text, _) in &bad {
        (*text).clone_into(&mut rows[*row]);
    }
    let expected: Vec<(u64, &str)> = bad.iter().map(|(row, _, reason)| (*row as u64 + 2, *reason)).collect();
    let file = ImportFile::write(&cluster, "customers.csv", "asset,id,overdraft,max_balance,metadata", &rows)?;
    let good = (ROWS - bad.len()) as u64;

    // A dry run does not find mistakes that only the ledger knows, such as an undeclared asset or an account that exists.
    let dry = import(&cluster, &["accounts", file.path(), "--dry-run"]).await?;
    let summary = printed(&dry, 3)?;
    expect!(summary["rows"] == ROWS && summary["rejected"] == 5 && summary["dry_run"] == true, "{summary}");
    expect!(dry.stderr.contains("line 12: id: ") && dry.stderr.lines().count() == 5, "{}", dry.stderr);
    ensure!(!file.progress().exists() && !file.rejected().exists(), "a dry run wrote a file");
    let client = cluster.client();
    ensure!(client.get(0, "/v1/balances").await?["data"] == json!([]), "a dry run opened an account");

    killed_in_the_middle(&mut cluster, &file, &["accounts", file.path()], async |_| Ok(())).await?;
    let resumed = import(&cluster, &["accounts", file.path()]).await?;
    let summary = printed(&resumed, 3)?;
    expect!(summary["resumed_at_line"].as_u64() > Some(2), "{summary}");
    let done = summary["done"].as_u64().zip(summary["replayed"].as_u64()).map(|(done, replayed)| done + replayed);
    expect!(summary["rows"] == ROWS && done == Some(good) && summary["rejected"] == bad.len(), "{summary}");
    file.rejects_are(&expected)?;
    let sums = client.get(0, "/v1/balances").await?;
    expect!(sums["data"][0]["accounts"] == good && sums["data"].as_array().map(Vec::len) == Some(1), "{sums}");
    let one = client.get(0, &account_path("customer-4321")).await?;
    expect!(one["overdraft"] == "21.50" && one["metadata"]["number"] == "4321", "{one}");

    let before = booked(&cluster).await?;
    let again = import(&cluster, &["accounts", file.path()]).await?;
    let summary = printed(&again, 3)?;
    expect!(summary["done"] == 0 && summary["replayed"] == good && summary["rejected"] == bad.len(), "{summary}");
    expect!(summary["resumed_at_line"].is_null(), "{summary}");
    file.rejects_are(&expected)?;
    ensure!(booked(&cluster).await? == before, "the second import changed something");

    let nowhere = import(&cluster, &["accounts", file.path(), "--url", "http://127.0.0.1:1"]).await?;
    expect!(nowhere.code == Some(4), "{nowhere:?}");
    cluster.verify_and_finish().await
}

const BALANCES: &str = "account,asset,amount";

/// The listed balances that are not zero.
fn holdings(list: &Value) -> BTreeMap<String, String> {
    let accounts = list["data"].as_array().into_iter().flatten();
    let text = |account: &Value, field: &str| account[field].as_str().unwrap_or_default().to_owned();
    let all = accounts.map(|account| (text(account, "id"), text(account, "posted")));
    all.filter(|(_, posted)| posted != "0.00").collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balances_are_paid_once_although_the_import_is_killed_repeated_and_corrected() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let client = cluster.client();
    let opening = cluster.placement()?.account_on("s0", "opening", 0)?;
    open_account(&client, &opening, "0.00").await?;
    let accounts: Vec<String> = (0..ROWS).map(|n| format!("customer-{n},USD")).collect();
    let customers = ImportFile::write(&cluster, "customers.csv", "id,asset", &accounts)?;
    printed(&import(&cluster, &["accounts", customers.path()]).await?, 0)?;

    let amount = |n: usize| format!("{}.{:02}", n % 1_000 + 1, n % 100);
    let mut rows: Vec<String> = (0..ROWS).map(|n| format!("customer-{n},USD,{}", amount(n))).collect();
    let bad: [(usize, &str, &str); 6] = [
        (20, "customer-9,USD,5.00", "several rows"),
        (500, "customer-500,USD,-1.00", "amount: it is negative"),
        (1500, "customer-1500,USD,1.005", "amount: the amount has more than the 2"),
        (2500, "stranger,USD,7.00", "account_not_found (credit account)"),
        (3500, "customer-3500,EUR,1.00", "asset: no account named by --from holds EUR"),
        (4998, "customer-4998", "1 values"),
    ];
    for (row, text, _) in &bad {
        (*text).clone_into(&mut rows[*row]);
    }
    rows[4000] = "customer-4000,USD,0.00".to_owned();
    let mut expected: Vec<(u64, &str)> = bad.iter().map(|(row, _, reason)| (*row as u64 + 2, *reason)).collect();
    expected.insert(0, (11, "several rows"));
    let file = ImportFile::write(&cluster, "balances.csv", BALANCES, &rows)?;
    let command = ["balances", file.path(), "--from", &opening, "--name", "june"];

    let poor = import(&cluster, &command).await?;
    expect!(poor.code == Some(1) && poor.stderr.contains("with an overdraft of at least"), "{poor:?}");
    let unlimited = json!({"overdraft": "unlimited"});
    let patched = client.call(0, Method::PATCH, &account_path(&opening), Some(&unlimited)).await?;
    patched.expect_status(200)?;
    let dry = printed(&import(&cluster, &[&command[..], &["--dry-run"]].concat()).await?, 3)?;
    expect!(dry["rejected"] == 6 && dry["empty"] == 1 && dry["sums"][0]["posted"] == "0.00", "{dry}");
    ensure!(client.get(0, &account_path(&opening)).await?["posted"] == "0.00", "a dry run paid");

    killed_in_the_middle(&mut cluster, &file, &command, async |cluster| {
        // Payments to the frozen shard are under way. The list shows them although that shard does not answer.
        until("sagas are under way", PATIENCE, async || {
            let listed = cluster.shardctl(&["saga", "list", "--json"]).await?;
            let listed: Value = serde_json::from_str(&listed.stdout)?;
            let Some(saga) = listed["data"].as_array().and_then(|sagas| sagas.first()) else { return Ok(None) };
            expect!(saga["amount"].is_string() && saga["asset"] == "USD" && saga["age_s"].is_u64(), "{listed}");
            let table = cluster.shardctl(&["saga", "list"]).await?;
            let header: Vec<&str> = table.stdout.lines().next().unwrap_or_default().split_whitespace().collect();
            expect!(header.starts_with(&["age", "id", "state", "amount", "asset"]), "{table:?}");
            Ok(Some(()))
        })
        .await
    })
    .await?;
    let resumed = printed(&import(&cluster, &command).await?, 3)?;
    let skipped = expected.len() as u64 + 1;
    let done = resumed["done"].as_u64().zip(resumed["replayed"].as_u64()).map(|(done, replayed)| done + replayed);
    expect!(resumed["resumed_at_line"].as_u64() > Some(2), "{resumed}");
    expect!(resumed["rows"] == ROWS && done == Some(ROWS as u64 - skipped) && resumed["empty"] == 1, "{resumed}");
    file.rejects_are(&expected)?;

    let left_out = |n: usize| n == 9 || n == 4000 || bad.iter().any(|(row, ..)| *row == n);
    let mut owed: BTreeMap<String, String> =
        (0..ROWS).filter(|n| !left_out(*n)).map(|n| (format!("customer-{n}"), amount(n))).collect();
    let list = ["account", "list", "--json", "--prefix", "customer-", "--limit", "10000"];
    ensure!(
        holdings(&cluster.shardctl_json(&list).await?) == owed,
        "an account holds something else than the file says"
    );
    let cents: u64 = (0..ROWS).filter(|n| !left_out(*n)).map(|n| (n as u64 % 1_000 + 1) * 100 + n as u64 % 100).sum();
    let posted = |cents: u64| format!("{}.{:02}", cents / 100, cents % 100);
    expect!(resumed["sums"][0]["posted"] == posted(cents), "{resumed}");
    ensure!(
        client.get(0, &account_path(&opening)).await?["posted"] == format!("-{}", posted(cents)),
        "the payer should have paid each row once"
    );

    let before = booked(&cluster).await?;
    let again = printed(&import(&cluster, &[&command[..], &["--restart"]].concat()).await?, 3)?;
    expect!(again["done"] == 0 && again["replayed"].as_u64() == done, "{again}");
    // The refused payment to an unknown account was tried once more, and nothing else was booked.
    ensure!(
        client.get(0, &account_path(&opening)).await?["posted"] == format!("-{}", posted(cents)),
        "the payer should have paid each row once"
    );

    // In the corrected file, the unknown account is open, a refused row has a valid amount, and a row that was paid has another amount.
    open_account(&client, "stranger", "0.00").await?;
    rows[500] = "customer-500,USD,1.00".to_owned();
    rows[600] = "customer-600,USD,1000000.00".to_owned();
    file.rewrite(BALANCES, &rows)?;
    let unnamed = import(&cluster, &["balances", file.path(), "--from", &opening]).await?;
    expect!(unnamed.code == Some(1) && unnamed.stderr.contains("--name june"), "{unnamed:?}");
    let corrected = printed(&import(&cluster, &command).await?, 3)?;
    expect!(corrected["done"] == 2 && corrected["rejected"] == 6, "{corrected}");
    let lines: Vec<u64> = file.rejects()?.iter().map(|(line, _)| *line).collect();
    expect!(lines == [11, 22, 602, 1502, 3502, 5000], "{lines:?}");
    expect!(file.rejects()?[2].1.contains("has paid with another amount"), "{:?}", file.rejects()?);
    owed.insert("customer-500".to_owned(), "1.00".to_owned());
    ensure!(holdings(&cluster.shardctl_json(&list).await?) == owed, "a corrected file paid something twice");
    let payer = client.get(0, &account_path(&opening)).await?;
    expect!(payer["posted"] == format!("-{}", posted(cents + 800)), "{payer}");
    ensure!(booked(&cluster).await? != before, "the corrected rows were not booked");
    cluster.verify_and_finish().await
}

//! Tests of the data folder of a local cluster as operators treat it: moved, copied, or with an unmounted volume. No payment may be
//! executed twice, and a copy must never touch the original.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::json;
use testkit::{
    client::{Answer, Client, account_path},
    cluster::{Cluster, Member, Output, Placement, RECOVERY, Status},
    history::{ASSET, payment_body},
    process::Process,
    wait::until,
    workload::open_payer_and_payee,
};
use uuid::Uuid;

/// The time within which the supervisor or a router must notice a change.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// Two accounts on two shards, and one payment between them.
struct Payment {
    from: String,
    to: String,
    id: Uuid,
}

impl Payment {
    async fn make(cluster: &Cluster) -> anyhow::Result<Self> {
        let (client, placement): (_, Placement) = (cluster.client(), cluster.placement()?);
        let (from, to) = open_payer_and_payee(&client, &placement, ("s0", "alice"), ("s1", "bob")).await?;
        let payment = Self { from, to, id: Uuid::now_v7() };
        ensure!(payment.send(&client, payment.id, "12.34").await? == 201);
        Ok(payment)
    }

    /// Sends a payment between the same accounts and returns the status of the answer.
    async fn send(&self, client: &Client, id: Uuid, amount: &str) -> anyhow::Result<u16> {
        Ok(self.order(client, id, amount).await?.status)
    }

    async fn order(&self, client: &Client, id: Uuid, amount: &str) -> anyhow::Result<Answer> {
        let order = payment_body(id, &self.from, &self.to, amount);
        Ok(client.call(0, Method::POST, "/v1/transfers", Some(&order)).await?)
    }

    /// Checks that the payment took effect once. It is sent again and must be answered from its stored result.
    async fn is_there_once(&self, client: &Client) -> anyhow::Result<()> {
        let again = self.order(client, self.id, "12.34").await?;
        expect!(again.status == 200 && again.is_replay(), "{} {}", again.status, again.text());
        self.has_received(client, "12.34").await
    }

    async fn has_received(&self, client: &Client, amount: &str) -> anyhow::Result<()> {
        let answer = client.call(0, Method::GET, &account_path(&self.to), None).await?;
        expect!(answer.json()?["posted"] == amount, "{}", answer.text());
        Ok(())
    }
}

/// Checks that the command failed and that its output contains each of the words.
fn refused(output: &Output, words: &[&str]) -> anyhow::Result<()> {
    expect!(output.code == Some(1), "{output:?}");
    says(&output.stderr, words)
}

fn says(text: &str, words: &[&str]) -> anyhow::Result<()> {
    for word in words {
        ensure!(text.contains(word), "{word:?} is missing in: {text}");
    }
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of this test is UTF-8")
}

fn client_of(status: &Status) -> Client {
    Client::new(status.routers.iter().map(|router| router.url.clone()).collect())
}

fn processes(cluster: &Cluster) -> Vec<Process> {
    cluster.status().pids().into_iter().filter_map(Process::of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moved_folder_starts_and_keeps_its_ports_and_balances() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let payment = Payment::make(&cluster).await?;
    let (first, before) = (cluster.data_dir().to_owned(), cluster.status().routers[0].url.clone());
    cluster.down().await?;
    cluster.move_to(&first.with_extension("moved"))?;
    let up = cluster.shardctl(&["up", "--json"]).await?;
    says(&up.stderr, &["moved from", text(&first)])?;
    up.successful()?;
    cluster.refresh_status().await?;
    expect!(cluster.status().is_ready() && cluster.status().routers[0].url == before, "{:?}", cluster.status());
    ensure!(cluster.status().copy_of.is_none() && !first.exists());
    payment.is_there_once(&cluster.client()).await?;

    // The folder is moved while the cluster runs. `up` starts no second cluster, and `down` finds the processes.
    let running = processes(&cluster);
    expect!(running.len() == 6, "{running:?}");
    cluster.move_to(&first)?;
    refused(&cluster.shardctl(&["up"]).await?, &["while its cluster ran", "shardctl down"])?;
    ensure!(running.iter().all(|process| process.is_alive()));
    cluster.shardctl(&["down"]).await?.successful()?;
    expect!(!running.iter().any(|process| process.is_alive()), "{running:?}");
    cluster.up().await?;

    // The same happens without the supervisor. The processes that it left behind have the former paths.
    let running = processes(&cluster);
    let supervisor = cluster.status().supervisor_pid.and_then(Process::of).context("no supervisor")?;
    supervisor.kill().await?;
    cluster.move_to(&first.with_extension("again"))?;
    refused(&cluster.shardctl(&["up"]).await?, &["while its cluster ran", "shardctl down"])?;
    cluster.shardctl(&["down"]).await?.successful()?;
    expect!(!running.iter().any(|process| process.is_alive()), "{running:?}");
    cluster.up().await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_runs_beside_the_original_on_its_own_ports_and_databases_and_says_so() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let payment = Payment::make(&cluster).await?;
    let original = cluster.data_dir().to_owned();

    // This copy is taken while the databases run.
    let torn = cluster.copy().await?;
    let up = torn.shardctl(&["up"]).await?;
    refused(&up, &["postmaster.pid", "torn", "copy it again", text(&original), text(torn.data_dir())])?;
    fs::remove_file(torn.data_dir().join("pg/s0/postmaster.pid"))?;
    fs::remove_file(torn.data_dir().join("pg/s1/postmaster.pid"))?;
    refused(&torn.shardctl(&["up"]).await?, &["pg_control says that its server was not shut down"])?;
    ensure!(torn.status().await?.pids().is_empty());
    let folder = torn.data_dir().to_owned();
    torn.remove()?;
    ensure!(!folder.exists());
    payment.is_there_once(&cluster.client()).await?;

    cluster.down().await?;
    let copy = cluster.copy().await?;
    cluster.up().await?;
    // Until its first start the copy has no addresses of its own, and no command uses those of the original.
    refused(&copy.shardctl(&["verify"]).await?, &["is a copy of", text(&original)])?;
    let status = copy.status().await?;
    expect!(status.copy_of.as_deref() == Some(&original) && status.pids().is_empty(), "{status:?}");
    copy.shardctl(&["down"]).await?.successful()?;

    let config = copy.data_dir().join("config").join("s0.toml");
    let edited = fs::read_to_string(&config)? + "\n# kept\n[lane]\nqueue_operations = 17\n";
    fs::write(&config, edited)?;
    let up = copy.shardctl(&["up"]).await?;
    says(&up.stderr, &["is a copy of", text(&original), "same cluster id"])?;
    up.successful()?;
    says(&fs::read_to_string(&config)?, &["# kept", "queue_operations = 17"])?;
    let shown = copy.shardctl(&["status"]).await?.successful()?;
    says(&shown, &[&format!("copy of {}", text(&original))])?;
    let status = copy.status().await?;
    expect!(status.copy_of.as_deref() == Some(&original) && status.is_ready(), "{status:?}");
    ensure!(status.map_version == cluster.status().map_version + 1);
    for (ours, theirs) in status.shards.iter().zip(&cluster.status().shards) {
        ensure!(ours.postgres_port != theirs.postgres_port && ours.node_url != theirs.node_url);
        let server = ours.postgres_pid.context("no server")?;
        let runs_in = fs::read_link(format!("/proc/{server}/cwd"))?;
        expect!(runs_in == copy.data_dir().join("pg").join(&ours.id), "{}", runs_in.display());
    }

    // Payments from before the copy are in both clusters. A later payment is in one of them.
    let (ours, theirs) = (client_of(&status), cluster.client());
    payment.is_there_once(&ours).await?;
    ensure!(payment.send(&ours, Uuid::now_v7(), "1.00").await? == 201);
    payment.has_received(&ours, "13.34").await?;
    payment.has_received(&theirs, "12.34").await?;
    ensure!(payment.send(&theirs, Uuid::now_v7(), "2.00").await? == 201);
    payment.has_received(&theirs, "14.34").await?;
    payment.has_received(&ours, "13.34").await?;
    copy.shardctl(&["verify"]).await?.successful()?;

    // A copy keeps its ports, and every start reports that it is a copy.
    copy.shardctl(&["down"]).await?.successful()?;
    says(&copy.shardctl(&["up"]).await?.stderr, &["is a copy of"])?;
    ensure!(copy.status().await?.routers[0].url == status.routers[0].url);

    let folder = copy.data_dir().to_owned();
    copy.shardctl(&["down", "--wipe", "--yes"]).await?.successful()?;
    ensure!(!folder.exists());
    ensure!(processes(&cluster).len() == 6);
    payment.has_received(&theirs, "14.34").await?;
    cluster.verify().await?;

    // Links that `cp -a` keeps lead into the original.
    cluster.down().await?;
    let linked = cluster.copy().await?;
    fs::remove_dir_all(linked.data_dir().join("pg/s1"))?;
    std::os::unix::fs::symlink(original.join("pg/s1"), linked.data_dir().join("pg/s1"))?;
    refused(&linked.shardctl(&["up"]).await?, &["pg/s1", "one and the same"])?;
    linked.shardctl(&["down", "--wipe", "--yes"]).await?.successful()?;
    cluster.up().await?;
    payment.has_received(&theirs, "14.34").await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_restored_from_an_older_copy_starts_only_after_its_loss_is_accepted() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let payment = Payment::make(&cluster).await?;
    cluster.down().await?;
    let (folder, backup) = (cluster.data_dir().join("pg/s0"), cluster.data_dir().join("pg/s0.backup"));
    ensure!(Command::new("cp").arg("-a").arg(&folder).arg(&backup).status()?.success());
    cluster.up().await?;
    let missing = Uuid::now_v7();
    ensure!(payment.send(&cluster.client(), missing, "1.00").await? == 201);
    cluster.down().await?;
    fs::remove_dir_all(&folder)?;
    fs::rename(&backup, &folder)?;

    let up = cluster.shardctl(&["up", "--no-restart"]).await?;
    refused(&up, &["s0 does not stay up", "as shard s1 remembers", "`shardctl up --accept-loss SHARD`"])?;
    refused(&cluster.shardctl(&["up", "--accept-loss", "s9"]).await?, &["no shard s9"])?;
    cluster.shardctl(&["up", "--accept-loss", "s0"]).await?.successful()?;
    cluster.refresh_status().await?;
    refused(&cluster.shardctl(&["up", "--accept-loss", "s0"]).await?, &["the cluster is up", "shardctl down"])?;

    // The credit side is in s1. The same id, sent again, restores the debit side and credits nothing.
    let client = cluster.client();
    let again = payment.send(&client, missing, "1.00").await?;
    expect!(again == 201 || again == 200, "{again}");
    payment.has_received(&client, "13.34").await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_folder_that_is_missing_or_foreign_is_refused_and_never_created_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let payment = Payment::make(&cluster).await?;
    let pg = cluster.data_dir().join("pg");
    let [s0, s1, aside] = ["s0", "s1", "aside"].map(|name| pg.join(name));

    // While the cluster runs, the supervisor does not start a server on a missing folder.
    fs::rename(&s1, &aside)?;
    cluster.process(Member::Postgres(1))?.kill().await?;
    until("the supervisor names the missing folder", NOTICED_WITHIN, async || {
        let said = cluster.supervisor_says("postgres-s1")?;
        Ok(said.iter().any(|line| line.contains("is missing or empty") && line.contains(text(&s1))).then_some(()))
    })
    .await?;
    ensure!(!s1.exists());
    fs::rename(&aside, &s1)?;
    cluster.wait_until_ready("the folder is back", &[]).await?;
    // The node may be ready because it has not noticed yet that its database was away.
    until("the payment is there", NOTICED_WITHIN, async || {
        Ok(payment.is_there_once(&cluster.client()).await.is_ok().then_some(()))
    })
    .await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.down().await?;

    // `up` is refused while the volume of one shard is not mounted.
    let missing = ["shard s1", text(&s1), "is missing or empty", "held a ledger", "mount or restore", "down --wipe"];
    fs::rename(&s1, &aside)?;
    refused(&cluster.shardctl(&["up"]).await?, &missing)?;
    ensure!(!s1.exists());
    fs::create_dir(&s1)?;
    refused(&cluster.shardctl(&["up"]).await?, &missing)?;
    ensure!(fs::read_dir(&s1)?.next().is_none());
    fs::write(s1.join("lost+found"), "")?;
    refused(&cluster.shardctl(&["up"]).await?, &["shard s1", text(&s1), "is no database folder"])?;
    ensure!(cluster.refresh_status().await?.pids().is_empty());
    fs::remove_dir_all(&s1)?;
    fs::rename(&aside, &s1)?;
    cluster.up().await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.down().await?;

    // The folders of two shards are exchanged.
    let swap = || -> anyhow::Result<()> {
        fs::rename(&s0, &aside)?;
        fs::rename(&s1, &s0)?;
        Ok(fs::rename(&aside, &s1)?)
    };
    swap()?;
    let foreign = ["shard s0", "shard s1", text(&s0), text(&s1), "holds another database", "system identifier"];
    refused(&cluster.shardctl(&["up"]).await?, &foreign)?;
    swap()?;

    // Without the cluster's description, `up` must not create a new cluster over the databases.
    let description = cluster.data_dir().join("cluster.json");
    let kept = fs::read(&description)?;
    fs::remove_file(&description)?;
    refused(&cluster.shardctl(&["up"]).await?, &["cluster.json is missing", text(&pg), "restore the file"])?;
    ensure!(!description.exists());
    fs::write(&description, kept)?;
    cluster.up().await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.verify_and_finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_postgresql_in_the_shell_change_nothing() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 1).await?;
    let payment = Payment::make(&cluster).await?;
    cluster.down().await?;
    let variables = [
        ("PGSSLMODE", "require"),
        ("PGOPTIONS", "-c synchronous_commit=off"),
        ("PGDATABASE", "nope"),
        ("PGHOST", "192.0.2.1"),
        ("SHARD_NODE_DATABASE_URL", "postgres://nobody@192.0.2.1/nope"),
    ];
    cluster.shardctl_with(&variables, &["up"]).await?.successful()?;
    cluster.refresh_status().await?;
    payment.is_there_once(&cluster.client()).await?;
    for process in processes(&cluster) {
        let environment = fs::read(format!("/proc/{}/environ", process.pid()))?;
        for entry in environment.split(|byte| *byte == 0).map(String::from_utf8_lossy) {
            let (name, _) = entry.split_once('=').unwrap_or((&entry, ""));
            let is_own = name == "PG_OOM_ADJUST_FILE" || name == "PGDATA" || name.starts_with("PG_GRANDPARENT");
            ensure!(is_own || !name.starts_with("PG"), "process {} has {entry}", process.pid());
            ensure!(name != "SHARD_NODE_DATABASE_URL");
        }
    }
    // A restart by the supervisor uses the same environment.
    cluster.kill_and_recover(&[Member::Node(0), Member::Postgres(1)]).await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.finish().await
}

/// The folder to which the link to databases elsewhere leads.
fn home_of(data_dir: &Path) -> anyhow::Result<PathBuf> {
    let databases = fs::read_link(data_dir.join("pg")).context("the databases are not elsewhere")?;
    Ok(databases.parent().context("no folder around the databases")?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_elsewhere_follow_a_moved_folder_and_belong_to_no_copy() -> anyhow::Result<()> {
    // A folder that the user who runs PostgreSQL cannot pass. Only root runs PostgreSQL as another user.
    let private = std::env::temp_dir().join(format!("shardledger-private-{}", Uuid::now_v7().simple()));
    fs::create_dir(&private)?;
    let _leash = testkit::leash::Leash::on_folder(&private)?;
    ensure!(Command::new("chmod").arg("700").arg(&private).status()?.success());
    let mut cluster = Cluster::start_in(&private.join("first"), 2, 1).await?;
    if fs::read_link(cluster.data_dir().join("pg")).is_err() {
        eprintln!("not run as root: the databases are in the data folder");
        return cluster.finish().await;
    }
    let payment = Payment::make(&cluster).await?;
    let home = home_of(cluster.data_dir())?;
    let marker = home.join("owner.json");
    says(&fs::read_to_string(&marker)?, &[text(cluster.data_dir())])?;

    cluster.down().await?;
    cluster.move_to(&private.join("moved"))?;
    cluster.up().await?;
    payment.is_there_once(&cluster.client()).await?;
    ensure!(home_of(cluster.data_dir())? == home);
    says(&fs::read_to_string(&marker)?, &[text(cluster.data_dir())])?;

    // The copy goes to where the first folder was, so that the home's name is already taken.
    let copy = cluster.copy_to(&private.join("first")).await?;
    let up = copy.shardctl(&["up"]).await?;
    refused(&up, &["without databases", text(&home), text(cluster.data_dir()), text(copy.data_dir()), "cp -a"])?;
    ensure!(copy.status().await?.pids().is_empty());
    copy.shardctl(&["down"]).await?.successful()?;
    ensure!(processes(&cluster).len() == 6);
    payment.is_there_once(&cluster.client()).await?;

    // The test runs the commands that the refusal names.
    cluster.down().await?;
    let command = up.stderr.lines().find(|line| line.trim().starts_with("cp -a")).context("no command")?;
    ensure!(Command::new("sh").arg("-c").arg(command).status()?.success());
    cluster.up().await?;
    copy.shardctl(&["up"]).await?.successful()?;
    let own_home = home_of(copy.data_dir())?;
    ensure!(own_home != home);
    let ours = client_of(&copy.status().await?);
    ensure!(payment.send(&ours, Uuid::now_v7(), "1.00").await? == 201);
    payment.has_received(&ours, "13.34").await?;
    payment.has_received(&cluster.client(), "12.34").await?;

    copy.shardctl(&["down", "--wipe", "--yes"]).await?.successful()?;
    ensure!(!own_home.exists() && !copy.data_dir().exists() && home.exists());
    payment.is_there_once(&cluster.client()).await?;
    // Removing a copy that never ran does not remove the databases that its link leads to.
    let copy = cluster.copy_to(&private.join("first")).await?;
    copy.shardctl(&["down", "--wipe", "--yes"]).await?.successful()?;
    ensure!(!copy.data_dir().exists() && home.exists());
    cluster.wait_until_ready("the original is untouched", &[]).await?;
    payment.is_there_once(&cluster.client()).await?;
    cluster.finish().await?;
    until("the home is gone with its cluster", RECOVERY, async || Ok((!home.exists()).then_some(()))).await
}

/// `up` returns once every router can read and write at every shard, and `status` names a shard where that fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_right_after_up_are_served() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2, 2).await?;
    let placement = cluster.placement()?;
    let accounts = [placement.account_on("s0", "first", 0)?, placement.account_on("s1", "first", 0)?];
    for round in 0..4 {
        if round > 0 {
            cluster.down().await?;
            cluster.up().await?;
        }
        let client = cluster.client();
        // Each request is sent once, immediately.
        for router in 0..2 {
            for id in &accounts {
                let body = json!({"id": id, "asset": ASSET, "overdraft": "unlimited"});
                let answer = client.call(router, Method::POST, "/v1/accounts", Some(&body)).await?;
                expect!(answer.status == 201 || answer.status == 200, "{} {}", answer.status, answer.text());
            }
        }
    }

    expect!(cluster.status().is_ready(), "{:?}", cluster.status());
    cluster.process(Member::Node(1))?.freeze().await?;
    let status = until("the routers miss the frozen node", NOTICED_WITHIN, async || {
        let status = Status::parse(&cluster.shardctl(&["status", "--json"]).await?.stdout)?;
        Ok(status.routers.iter().all(|router| router.reads == "some").then_some(status))
    })
    .await?;
    let [served, frozen] = status.shards.as_slice() else { bail!("{status:?}") };
    expect!(served.reads && served.writes && served.cause.is_none(), "{served:?}");
    expect!(!frozen.reads && !frozen.writes && frozen.cause.is_some(), "{frozen:?}");
    ensure!(!status.is_ready() && status.routers.iter().all(|router| router.writes == "some"));
    cluster.process(Member::Node(1))?.thaw()?;
    cluster.wait_until_ready("the node is served again", &[]).await?;
    cluster.finish().await
}

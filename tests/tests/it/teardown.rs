//! Tests that a killed test or runner leaves nothing behind. All other tests rely on that.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use testkit::{
    cluster::Cluster, leash::Leashed, node::Folder, process::Process, programs::program, shared::Fixture, wait::until,
};

const VICTIM: &str = "teardown::holds_a_cluster_until_it_is_killed";
const GONE_WITHIN: Duration = Duration::from_secs(60);
const STARTED_WITHIN: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_killed_with_its_cluster_up_leaves_no_process_and_no_folder() -> anyhow::Result<()> {
    let mut victim = Command::new(std::env::current_exe()?);
    victim.args([VICTIM, "--exact", "--ignored", "--nocapture"]).stdin(Stdio::null()).stdout(Stdio::null());
    let (mut victim, said) = Leashed::spawn_listening(victim)?;
    // The cluster's folder and processes, which the victim prints when the cluster is up.
    let words = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(said).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("up: ").map(str::to_owned)).next()
    });
    let words = words.await?.context("the victim ended before its cluster was up")?;
    let mut words = words.split(' ');
    let folder = PathBuf::from(words.next().context("the victim did not print its folder")?);
    let processes: Vec<Process> = words.filter_map(|pid| Process::of(pid.parse().ok()?)).collect();
    expect!(folder.is_dir() && processes.len() == 4, "{folder:?} {processes:?}");

    victim.process().kill().await?;
    all_gone(&folder, &processes).await?;
    ensure!(victim.ended()?.is_some_and(|status| !status.success()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the victim of the test above"]
async fn holds_a_cluster_until_it_is_killed() -> anyhow::Result<()> {
    let cluster = Cluster::start(1, 1).await?;
    let pids: Vec<String> = cluster.status().pids().iter().map(ToString::to_string).collect();
    eprintln!("up: {} {}", cluster.data_dir().display(), pids.join(" "));
    std::future::pending().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_runner_leaves_no_cluster_that_its_tests_shared() -> anyhow::Result<()> {
    ends_with_its_runner(Fixture::Cluster, async |data| {
        let cluster = Cluster::running_in(data).await?;
        Ok(cluster.status().pids())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_runner_leaves_no_postgresql_server_that_its_tests_shared() -> anyhow::Result<()> {
    ends_with_its_runner(Fixture::Postgresql, async |data| {
        let text = fs::read_to_string(data.join("postmaster.pid"))?;
        Ok(vec![text.lines().next().context("the PostgreSQL has no process id")?.parse()?])
    })
    .await
}

/// Lets a shell run the setup script as the runner does, and kills the shell.
async fn ends_with_its_runner(
    fixture: Fixture,
    pids: impl AsyncFnOnce(&Path) -> anyhow::Result<Vec<i32>>,
) -> anyhow::Result<()> {
    let folder = Folder::create()?;
    let variables = folder.path().join("variables");
    let mut runner = Command::new("sh");
    runner
        .args(["-c", "\"$0\" \"$1\" && exec sleep infinity"])
        .arg(program("shared-fixture")?)
        .arg(fixture.to_string());
    runner.env("NEXTEST_ENV", &variables).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut runner = Leashed::spawn(runner)?;
    let begin = format!("{}=", fixture.variable());
    let data = until("the setup script has written the variable", STARTED_WITHIN, async || {
        if let Some(status) = runner.ended()? {
            return Ok(Some(Err(anyhow::anyhow!("the setup script failed ({status})"))));
        }
        let text = fs::read_to_string(&variables)?;
        let data = text.strip_prefix(&begin).and_then(|line| line.strip_suffix('\n')).map(PathBuf::from);
        Ok(data.map(Ok))
    })
    .await??;
    let processes: Vec<Process> = pids(&data).await?.into_iter().filter_map(Process::of).collect();
    expect!(data.is_dir() && !processes.is_empty(), "{data:?} {processes:?}");

    runner.process().kill().await?;
    all_gone(&data, &processes).await
}

async fn all_gone(folder: &Path, processes: &[Process]) -> anyhow::Result<()> {
    until("the folder is gone", GONE_WITHIN, async || Ok((!folder.exists()).then_some(()))).await?;
    let left: Vec<&Process> = processes.iter().filter(|process| process.is_alive()).collect();
    ensure!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

//! A test that is killed leaves nothing behind: the promise every other test here relies on.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use testkit::{cluster::Cluster, leash::Leashed, process::Process, wait::until};

const VICTIM: &str = "teardown::holds_a_cluster_until_it_is_killed";
const GONE_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_killed_with_its_cluster_up_leaves_no_process_and_no_folder() -> anyhow::Result<()> {
    let mut victim = Command::new(std::env::current_exe()?);
    victim.args([VICTIM, "--exact", "--ignored", "--nocapture"]).stdin(Stdio::null()).stdout(Stdio::null());
    let (mut victim, said) = Leashed::spawn_listening(victim)?;
    // The cluster's folder and processes, as the victim says when it is up.
    let words = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(said).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("up: ").map(str::to_owned)).next()
    });
    let words = words.await?.context("the victim ended before its cluster was up")?;
    let mut words = words.split(' ');
    let folder = PathBuf::from(words.next().context("no folder")?);
    let processes: Vec<Process> = words.filter_map(|pid| Process::of(pid.parse().ok()?)).collect();
    ensure!(folder.is_dir() && processes.len() == 4, "{folder:?} {processes:?}");

    victim.process().kill().await?;
    until("the folder is gone", GONE_WITHIN, async || Ok((!folder.exists()).then_some(()))).await?;
    let left: Vec<&Process> = processes.iter().filter(|process| process.is_alive()).collect();
    ensure!(left.is_empty(), "processes are left: {left:?}");
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

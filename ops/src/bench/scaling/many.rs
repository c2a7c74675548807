//! Measures the processor time that a router spends on a transfer with few and with many shards, at the same number of transfers for each
//! call of a node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::Method;
use serde::Serialize;
use shard_map::{ClusterId, Shard, ShardMap, SlotRange};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep},
};

use super::mock::{self, CallCounts};
use crate::{
    bench::{
        connection::Address,
        driver::Load,
        load::{WARM_UP, measure as measure_load},
        machine::process_us,
        request::Ids,
        subject,
        tally::Latency,
        workload::{Locality, Picker, Workload},
    },
    cluster::{ports::PortPlan, process},
    http_client::HttpClient,
};

/// The number of shards in each request.
const SHARDS_PER_REQUEST: usize = 4;
const BATCH: usize = 1_000;
/// The most operations that the router puts into one call. Without the bound, it would combine several requests in one call if the shards are
/// few.
const OPERATIONS_PER_CALL: usize = BATCH / SHARDS_PER_REQUEST;
const CONNECTIONS: usize = 8;
const ACCOUNTS: usize = 100_000;
/// How long the router is measured without load. It then only calls its nodes once a second.
const IDLE: Duration = Duration::from_secs(4);
const READY_WITHIN: Duration = Duration::from_secs(60);
const READY_ASKED_EVERY: Duration = Duration::from_millis(100);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// One number of shards with mock nodes.
#[derive(Debug, Clone, Serialize)]
pub struct ManyShards {
    pub shards: u16,
    pub transfers_per_s: f64,
    pub router_us_per_transfer: f64,
    pub mock_nodes_us_per_transfer: f64,
    pub transfers_per_call: f64,
    /// Processor time that the router spends without load, in µs a second: heartbeats and questions for sagas.
    pub router_idle_us_per_s: f64,
    pub latency_us: Latency,
}

pub async fn measure(shards: u16, seconds: u32, seed: u64, folder: &Path) -> anyhow::Result<ManyShards> {
    let folder = folder.join(format!("mock-{shards}"));
    fs::create_dir(&folder)?;
    let mut nodes = MockNodes::start(shards).await?;
    let (router, address) = start_router(&folder, shards, nodes.port).await?;
    let router_pid = pid_of(&router)?;

    let idle_before = process_us(router_pid)?;
    sleep(IDLE).await;
    let router_idle_us_per_s = (process_us(router_pid)? - idle_before) / IDLE.as_secs_f64();

    let slot_owners: Vec<u16> = owners(shards);
    let homes = subject::homes(&slot_owners, ACCOUNTS);
    let picker = Picker::new(Workload::Uniform, Locality::Local, homes)?.with_shards_per_request(SHARDS_PER_REQUEST);
    let load = Load {
        routers: vec![address],
        connections: CONNECTIONS,
        threads: 1,
        batch: BATCH,
        rate: None,
        ids: Ids::TimeOrdered,
        replays: 0.0,
        retries: 0,
        leaves_out_late: false,
        warm_up: WARM_UP,
        duration: Duration::from_secs(u64::from(seconds)),
        window: None,
        seed,
        stop: Default::default(),
    };
    let before = (process_us(router_pid)?, process_us(nodes.pid()?)?, nodes.counts().await?);
    let measured = measure_load(&load, picker).await?;
    let after = (process_us(router_pid)?, process_us(nodes.pid()?)?, nodes.counts().await?);
    let transfers = measured.transfers_in_all as f64;
    ensure!(transfers > 0.0, "the mock nodes executed nothing: {:?}", measured.others);
    let calls = (after.2.calls - before.2.calls).max(1) as f64;
    Ok(ManyShards {
        shards,
        transfers_per_s: measured.transfers_per_s,
        router_us_per_transfer: (after.0 - before.0) / transfers,
        mock_nodes_us_per_transfer: (after.1 - before.1) / transfers,
        transfers_per_call: (after.2.operations - before.2.operations) as f64 / calls,
        router_idle_us_per_s,
        latency_us: measured.latency_us,
    })
}

/// The shard of each slot.
fn owners(shards: u16) -> Vec<u16> {
    let ranges = (0..shards).zip(SlotRange::split_evenly(shards));
    ranges.flat_map(|(number, slots)| (slots.first().index()..=slots.last().index()).map(move |_| number)).collect()
}

/// The child process that serves the mock nodes. It ends when this value is dropped.
struct MockNodes {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    port: u16,
}

impl MockNodes {
    async fn start(shards: u16) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "mock-nodes", "--shards", &shards.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the mock nodes")?;
        let input = child.stdin.take().context("the mock nodes have no input")?;
        let mut output = BufReader::new(child.stdout.take().context("the mock nodes have no output")?).lines();
        let port = output.next_line().await?.context("the mock nodes ended")?.parse()?;
        Ok(Self { child, input, output, port })
    }

    async fn counts(&mut self) -> anyhow::Result<CallCounts> {
        self.input.write_all(b"\n").await?;
        let line = self.output.next_line().await?.context("the mock nodes ended")?;
        Ok(serde_json::from_str(&line)?)
    }

    fn pid(&self) -> anyhow::Result<i32> {
        pid_of(&self.child)
    }
}

fn pid_of(child: &Child) -> anyhow::Result<i32> {
    Ok(child.id().context("a process of the measurement has ended")?.try_into()?)
}

/// Starts a router for the mock nodes and waits until it is ready. The router ends when the child is dropped.
async fn start_router(folder: &Path, shards: u16, node_port: u16) -> anyhow::Result<(Child, Address)> {
    let listed = (0..shards).zip(SlotRange::split_evenly(shards)).map(|(number, slots)| Shard {
        id: format!("s{number}"),
        number,
        nodes: vec![format!("http://{}", mock::address(number, node_port))],
        slots: vec![slots],
    });
    let map = ShardMap::new(ClusterId::generate(), 1, listed.collect())?;
    fs::write(folder.join("shard-map.toml"), map.to_toml())?;
    let plan = PortPlan::block(0, 1, 0)?;
    let ports = plan.routers.first().context("no ports")?;
    let config = format!(
        "http.listen = \"127.0.0.1:{}\"\nadmin.listen = \"127.0.0.1:{}\"\nmap.path = \"shard-map.toml\"\n\
         shards.max_batch_operations = {OPERATIONS_PER_CALL}\n",
        ports.http, ports.admin
    );
    let file = folder.join("router.toml");
    fs::write(&file, config)?;
    let program = program("router")?;
    let log = fs::File::create(folder.join("router.log"))?;
    let mut command = std::process::Command::new(program);
    command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    process::clean_environment(&mut command);
    let child = Command::from(command).kill_on_drop(true).spawn().context("cannot start the router")?;
    let ready = format!("http://127.0.0.1:{}/readyz", ports.admin);
    let (client, overdue) = (HttpClient::new(ANSWER_TIMEOUT), Instant::now() + READY_WITHIN);
    while !client.send(Method::GET, &ready, Bytes::new()).await.is_ok_and(|(status, _)| status.is_success()) {
        ensure!(Instant::now() < overdue, "the router is not ready: {}", excerpt(&folder.join("router.log")));
        sleep(READY_ASKED_EVERY).await;
    }
    Ok((child, Address::parse(&format!("http://127.0.0.1:{}", ports.http))?))
}

/// The path of a program in the folder of this program.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.parent().context("shardctl has no folder")?.join(name))
}

fn excerpt(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_an_owner() {
        for shards in [1, 4, 1_024] {
            let owners = owners(shards);
            assert_eq!(owners.len(), usize::from(shard_map::SLOTS));
            assert_eq!(owners.last(), Some(&(shards - 1)));
        }
    }
}

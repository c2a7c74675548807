//! The state of a cluster as seen from outside: from the process table, the routers' readiness and the nodes'
//! reports.

use std::{collections::HashMap, fs, path::PathBuf, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::join_all;
use http::Method;
use serde::{Deserialize, Serialize};
use shard_map::ShardMap;
use tonic::transport::Endpoint;
use wire::{NodeRole, Readiness, StatusRequest, StatusResponse, shard_node_client::ShardNodeClient};

use crate::{
    cluster::{
        description::{Description, RouterPlace, ServerPlace, ShardPlace, Standby},
        failover::FailoverStep,
        layout::Layout,
        member::Member,
        postgres::standby,
        process::ProcessTable,
    },
    http_client::HttpClient,
    output, trust,
};

/// A process that has not answered within this time is not ready.
const PATIENCE: Duration = Duration::from_secs(2);
/// The state of a stand-by that receives the log of its primary.
const STREAMING: &str = "streaming";
/// The state that a node reports while it takes requests.
const SERVING: &str = "serving";

/// The output of `shardctl status --json`. The names are part of the contract.
#[derive(Debug, Serialize)]
pub struct ClusterStatus {
    pub data_dir: PathBuf,
    /// The data folder that this one is a copy of; absent for an original.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<PathBuf>,
    pub map_version: u64,
    pub supervisor_pid: Option<i32>,
    pub routers: Vec<RouterStatus>,
    pub shards: Vec<ShardStatus>,
}

#[derive(Debug, Serialize)]
pub struct RouterStatus {
    pub url: String,
    pub admin_url: String,
    pub pid: Option<i32>,
    pub state: State,
    /// The number of shards at which this router's reads work. `writes` has the number for writes.
    pub reads: Share,
    pub writes: Share,
}

#[derive(Debug, Serialize)]
pub struct ShardStatus {
    pub id: String,
    pub slots: u32,
    pub epoch: i64,
    pub node_url: String,
    pub node_admin_url: String,
    pub node_pid: Option<i32>,
    /// The role of the node: `active`, or `following, N bookings behind`.
    pub node_role: Option<String>,
    /// The shard's second node. Absent if the shard has one node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_node: Option<SecondNodeStatus>,
    /// The process id of the primary.
    pub postgres_pid: Option<i32>,
    pub postgres_port: u16,
    /// The second PostgreSQL. Absent in a cluster without stand-bys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyStatus>,
    /// The URL of the primary's database. It has no password until [`ClusterStatus::show_passwords`] is called.
    pub dsn: String,
    pub state: State,
    /// Whether the node reports that its reads and writes work.
    pub reads: bool,
    pub writes: bool,
    /// The reason why reads or writes do not work.
    pub cause: Option<String>,
}

/// A node that may take over from the first node of its shard.
#[derive(Debug, Serialize)]
pub struct SecondNodeStatus {
    pub url: String,
    pub admin_url: String,
    pub pid: Option<i32>,
    pub state: State,
    pub role: Option<String>,
}

/// The stand-by of a shard's PostgreSQL.
#[derive(Debug, Serialize)]
pub struct StandbyStatus {
    /// `sync` or `async`.
    pub mode: &'static str,
    pub port: u16,
    pub pid: Option<i32>,
    /// `streaming`, `not streaming`, `a primary`, `failing over`, `rebuilding` or `down`.
    pub state: &'static str,
}

/// A number of shards out of all shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Share {
    All,
    Some,
    #[default]
    None,
}

impl Share {
    pub fn word(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Some => "some",
            Self::None => "none",
        }
    }
}

/// The part of a router's `/readyz` that is used here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RouterReadiness {
    reads: Share,
    writes: Share,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Ready,
    /// The process runs, but does not take requests.
    Unready,
    /// One of its processes is not running.
    Down,
}

impl State {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Down => "down",
        }
    }

    fn of(running: bool, answers: bool) -> Self {
        match (running, answers) {
            (false, _) => Self::Down,
            (true, true) => Self::Ready,
            (true, false) => Self::Unready,
        }
    }
}

impl RouterStatus {
    /// A router is ready when its reads and writes work at every shard. Until the router's first heartbeat reaches a shard, the router
    /// refuses requests for that shard.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready && self.reads == Share::All && self.writes == Share::All
    }
}

impl ShardStatus {
    /// Whether the stand-by receives the log. True for a shard without a stand-by.
    pub fn standby_streams(&self) -> bool {
        self.standby.as_ref().is_none_or(|standby| standby.state == STREAMING)
    }

    pub fn is_ready(&self) -> bool {
        let second_node = self.second_node.as_ref().is_none_or(|node| node.state == State::Ready);
        self.state == State::Ready && self.reads && self.writes && second_node
    }
}

impl ClusterStatus {
    /// Whether every router can read and write at every shard.
    pub fn is_ready(&self) -> bool {
        self.routers.iter().all(RouterStatus::is_ready) && self.shards.iter().all(ShardStatus::is_ready)
    }

    /// Puts the passwords into the URLs of the databases.
    pub fn show_passwords(&mut self, layout: &Layout, description: &Description) -> anyhow::Result<()> {
        for status in &mut self.shards {
            if let Some(shard) = description.shards.iter().find(|shard| shard.id == status.id) {
                status.dsn = shard.dsn(layout)?;
            }
        }
        Ok(())
    }

    /// Whether no process of the cluster runs.
    pub fn is_down(&self) -> bool {
        self.routers.iter().all(|r| r.pid.is_none())
            && self.shards.iter().all(|s| {
                let second_node = s.second_node.as_ref().and_then(|node| node.pid);
                let standby = s.standby.as_ref().and_then(|standby| standby.pid);
                [s.node_pid, second_node, s.postgres_pid, standby].iter().all(Option::is_none)
            })
    }

    /// Asks all running processes at the same time.
    pub async fn gather(layout: &Layout, description: &Description) -> anyhow::Result<Self> {
        let table = ProcessTable::read()?;
        let members = Member::all(layout, description).into_iter().chain(Member::unstarted(layout, description));
        let pids: HashMap<String, i32> = members
            .filter_map(|member| Some((member.running(&table)?.pid(), member.name)))
            .map(|(pid, name)| (name, pid))
            .collect();
        let client = HttpClient::new(PATIENCE);
        // The file may be invalid. Routers then refuse it and keep the map in use.
        let map = read_map(layout).ok();
        let routers = description.routers.iter().map(|router| router_status(router, &pids, &client));
        let shards =
            description.shards.iter().map(|shard| shard_status(layout, description, shard, &pids, map.as_ref()));
        let (routers, shards) = tokio::join!(join_all(routers), join_all(shards));
        let map_version = match map {
            Some(map) => map.version,
            None => version_in_use(&routers, &client).await,
        };
        Ok(Self {
            data_dir: layout.root().to_owned(),
            copy_of: description.copy_of.clone(),
            map_version,
            supervisor_pid: super::files::lock_holder(&layout.supervisor_lock())?,
            routers,
            shards,
        })
    }
}

async fn router_status(router: &RouterPlace, pids: &HashMap<String, i32>, client: &HttpClient) -> RouterStatus {
    let pid = pids.get(&router.name).copied();
    let answer = match pid {
        Some(_) => client.send(Method::GET, &format!("{}/readyz", router.admin_url()), Bytes::new()).await.ok(),
        // If the router is not running, another program may listen on its port.
        None => None,
    };
    let is_ready = answer.as_ref().is_some_and(|(status, _)| status.is_success());
    let RouterReadiness { reads, writes } =
        answer.and_then(|(_, body)| serde_json::from_slice(&body).ok()).unwrap_or_default();
    let state = State::of(pid.is_some(), is_ready);
    RouterStatus { url: router.url(), admin_url: router.admin_url(), pid, state, reads, writes }
}

async fn shard_status(
    layout: &Layout,
    description: &Description,
    shard: &ShardPlace,
    pids: &HashMap<String, i32>,
    map: Option<&ShardMap>,
) -> ShardStatus {
    let servers = description.servers(layout, shard);
    let (node_pid, postgres_pid) = (pids.get(&shard.node_name()).copied(), pids.get(&servers.primary.name).copied());
    let standby = match (&shard.standby, &servers.standby) {
        (Some(place), Some(server)) => {
            let pid = pids.get(&server.name).copied();
            let state = standby_state(layout, shard, place, server, pid).await;
            Some(StandbyStatus { mode: place.mode.word(), port: server.port, pid, state })
        }
        _ => None,
    };
    let word_of = async |pid: Option<i32>, url: String| match pid {
        Some(_) => node_word(url).await.ok().filter(|word| word.shard == shard.id),
        None => None,
    };
    let second_pid = pids.get(&shard.second_node_name()).copied();
    let second_url = shard.second_node_url();
    let (word, second_word) =
        tokio::join!(word_of(node_pid, shard.node_url()), async { word_of(second_pid, second_url.clone()?).await });
    let is_serving = |word: &Option<StatusResponse>| word.as_ref().is_some_and(|word| word.state == SERVING);
    let serving = is_serving(&word);
    let second_node = shard.second_node.zip(second_url).map(|(ports, url)| SecondNodeStatus {
        url,
        admin_url: format!("http://127.0.0.1:{}", ports.admin),
        pid: second_pid,
        state: State::of(second_pid.is_some(), is_serving(&second_word)),
        role: second_word.as_ref().and_then(role),
    });
    // For a node that does not answer, the map's slots are the best estimate.
    let mapped = map.and_then(|map| Some(map.shard(map.index_of(&shard.id)?).slot_count()));
    let readiness = |of: fn(&StatusResponse) -> Option<&Readiness>| match word.as_ref().and_then(of) {
        Some(Readiness { works: true, .. }) => Ok(()),
        Some(Readiness { cause, .. }) => Err(cause.clone()),
        None => Err("the node does not answer".to_owned()),
    };
    let (reads, writes) = (readiness(|word| word.reads.as_ref()), readiness(|word| word.writes.as_ref()));
    ShardStatus {
        id: shard.id.clone(),
        slots: word.as_ref().map_or(mapped.unwrap_or(0).into(), |word| word.slots_owned),
        epoch: word.as_ref().map_or(0, |word| word.highest_epoch),
        node_url: shard.node_url(),
        node_admin_url: shard.node_admin_url(),
        node_pid,
        node_role: word.as_ref().and_then(role),
        second_node,
        postgres_pid,
        postgres_port: servers.primary.port,
        standby,
        dsn: shard.dsn_without_password(),
        state: State::of(node_pid.is_some() && postgres_pid.is_some(), serving),
        reads: reads.is_ok(),
        writes: writes.is_ok(),
        // Whatever prevents reads also prevents writes.
        cause: reads.err().or(writes.err()),
    }
}

/// The role that a node reports. `None` for a node of an earlier version.
fn role(word: &StatusResponse) -> Option<String> {
    Some(match word.role? {
        NodeRole { active: true, .. } => "active".to_owned(),
        NodeRole { behind, .. } => {
            format!("following, {} behind", output::count(usize::try_from(behind).unwrap_or(0), "booking"))
        }
    })
}

async fn standby_state(
    layout: &Layout,
    shard: &ShardPlace,
    place: &Standby,
    server: &ServerPlace,
    pid: Option<i32>,
) -> &'static str {
    match place.pending {
        Some(FailoverStep::Rebuild) => return "rebuilding",
        Some(_) => return "failing over",
        None => {}
    }
    if pid.is_none() {
        return "down";
    }
    match standby::ask(layout, shard, server).await {
        Ok(role) if !role.is_standby => "a primary",
        Ok(role) if role.is_streaming => STREAMING,
        _ => "not streaming",
    }
}

async fn node_word(url: String) -> anyhow::Result<StatusResponse> {
    let endpoint = Endpoint::from_shared(url)?.connect_timeout(PATIENCE).timeout(PATIENCE);
    let mut node = ShardNodeClient::new(trust::connect(endpoint).await.map_err(anyhow::Error::msg)?);
    Ok(node.status(StatusRequest {}).await?.into_inner())
}

/// The version of the map that the first ready router uses; 0 if no router is ready.
async fn version_in_use(routers: &[RouterStatus], client: &HttpClient) -> u64 {
    let Some(router) = routers.iter().find(|router| router.state == State::Ready) else { return 0 };
    let map = client.get::<serde_json::Value>(&format!("{}/admin/shard-map", router.admin_url)).await;
    map.ok().and_then(|map| map["version"].as_u64()).unwrap_or(0)
}

fn read_map(layout: &Layout) -> anyhow::Result<ShardMap> {
    let path = layout.shard_map();
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ShardMap::parse(&text).with_context(|| path.display().to_string())
}

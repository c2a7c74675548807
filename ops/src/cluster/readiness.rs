//! Waits until a cluster takes requests, and gives up early if it cannot.

use std::{
    collections::BTreeSet,
    fs, io,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    description::{Description, ServerPlace},
    failover,
    layout::Layout,
    member::Member,
    status::{ClusterStatus, ShardStatus},
    supervisor::{ProcessReport, RestartPolicy, SupervisorReport},
};
use crate::output::note;

/// A database that recovers from a crash may take this long.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long `up` waits for the stand-bys of a cluster that is ready otherwise.
const STANDBY_PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A process that has died this many times soon after its start is not expected to stay up.
const HOPELESS_AFTER_DEATHS: u32 = 6;
/// Lines of a log that an error message quotes.
const LOG_TAIL: usize = 12;

/// What to watch besides the processes.
#[derive(Debug)]
pub struct Watch {
    supervisor: Option<Child>,
    deaths_allowed: u32,
}

impl Watch {
    /// Watches a supervisor that was just started.
    pub fn new(policy: RestartPolicy, supervisor: Child) -> Self {
        let deaths_allowed = if policy == RestartPolicy::LeaveDead { 0 } else { HOPELESS_AFTER_DEATHS };
        Self { supervisor: Some(supervisor), deaths_allowed }
    }

    /// Watches a supervisor that ran before, or this process.
    pub fn any() -> Self {
        Self { supervisor: None, deaths_allowed: HOPELESS_AFTER_DEATHS }
    }

    fn supervisor_ended(&mut self) -> io::Result<bool> {
        self.supervisor.as_mut().map_or(Ok(false), |child| Ok(child.try_wait()?.is_some()))
    }
}

/// Removes the report of an earlier supervisor, which would otherwise be mistaken for the report of the new one.
pub fn forget_old_report(layout: &Layout) -> anyhow::Result<()> {
    match fs::remove_file(layout.report()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", layout.report().display()))
        }
        _ => Ok(()),
    }
}

/// Finishes interrupted failovers, and waits until every router can read and write at every shard. A stand-by that does not stay up is
/// rebuilt. A stand-by that does not follow its primary in time is only reported.
pub async fn wait(layout: &Layout, mut watch: Watch) -> anyhow::Result<ClusterStatus> {
    failover::finish_all(layout).await?;
    let begun = Instant::now();
    let deadline = begun + PATIENCE;
    let mut replaced = BTreeSet::new();
    loop {
        let description = &Description::load(layout)?.context("the cluster's description is missing")?;
        let status = ClusterStatus::gather(layout, description).await?;
        if status.is_ready() {
            let late: Vec<&ShardStatus> = status.shards.iter().filter(|shard| !shard.standby_streams()).collect();
            if late.is_empty() || begun.elapsed() >= STANDBY_PATIENCE {
                late.into_iter().for_each(|shard| report_standby(layout, description, shard));
                return Ok(status);
            }
        }
        for shard in hopeless_standbys(layout, description, watch.deaths_allowed) {
            if replaced.insert(shard.clone()) {
                note(&format!("the stand-by of shard {shard} does not stay up: it is rebuilt"));
                if let Err(error) = failover::replace_standby(layout, &shard).await {
                    note(&format!(
                        "the stand-by of shard {shard} was not rebuilt: {error:#}. `shardctl up` tries again"
                    ));
                }
            }
        }
        if watch.supervisor_ended()? {
            bail!("the supervisor ended: {}", tail(&layout.log("supervisor")));
        }
        refuse_the_hopeless(layout, description, watch.deaths_allowed)?;
        if Instant::now() >= deadline {
            bail!("not ready after {} s: {}", PATIENCE.as_secs(), what_is_missing(layout, &status));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The shards whose stand-by dies repeatedly.
fn hopeless_standbys(layout: &Layout, description: &Description, deaths_allowed: u32) -> Vec<String> {
    let report = SupervisorReport::read(layout);
    let dies =
        |server: &ServerPlace| report.0.get(&server.name).is_some_and(|process| is_hopeless(process, deaths_allowed));
    let with_standby = description.shards.iter().filter(|shard| shard.pending().is_none());
    let hopeless = with_standby.filter(|shard| description.servers(layout, shard).standby.as_ref().is_some_and(dies));
    hopeless.map(|shard| shard.id.clone()).collect()
}

/// A process that is not restarted dies once, however late.
fn is_hopeless(process: &ProcessReport, deaths_allowed: u32) -> bool {
    let deaths = if deaths_allowed == 0 { process.deaths } else { process.early_deaths };
    deaths > deaths_allowed
}

fn report_standby(layout: &Layout, description: &Description, shard: &ShardStatus) {
    let (Some(place), Some(standby)) = (description.shard(&shard.id), &shard.standby) else { return };
    let Some(server) = description.servers(layout, place).standby else { return };
    note(&format!(
        "the stand-by of shard {} is {}; {} says why. To rebuild it: `shardctl down`, remove {}, and `shardctl up`",
        shard.id,
        standby.state,
        layout.log(&server.name).display(),
        server.folder.display()
    ));
}

fn refuse_the_hopeless(layout: &Layout, description: &Description, deaths_allowed: u32) -> anyhow::Result<()> {
    let report = SupervisorReport::read(layout);
    let standbys: Vec<String> = description
        .shards
        .iter()
        .filter_map(|shard| Some(description.servers(layout, shard).standby?.name))
        .collect();
    // The stand-bys are left out, because the cluster works without them.
    for member in Member::all(layout, description).into_iter().filter(|member| !standbys.contains(&member.name)) {
        let Some(process) = report.0.get(&member.name) else { continue };
        if is_hopeless(process, deaths_allowed) {
            let how = process.last_end.as_deref().unwrap_or_default();
            bail!("{} does not stay up ({how}): {}", member.name, tail(member.log()));
        }
    }
    Ok(())
}

fn what_is_missing(layout: &Layout, status: &ClusterStatus) -> String {
    let routers = status.routers.iter().filter(|router| !router.is_ready()).map(|router| {
        let [state, reads, writes] = [router.state.word(), router.reads.word(), router.writes.word()];
        format!("{} is {state} (reads work at {reads} of the shards, writes at {writes})", router.url)
    });
    let shards = status.shards.iter().filter(|shard| !shard.is_ready()).map(|shard| {
        let cause = shard.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
        format!("shard {} is {}{cause}", shard.id, shard.state.word())
    });
    let missing: Vec<String> = routers.chain(shards).collect();
    format!("{}; logs in {}", missing.join(", "), layout.root().join("log").display())
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.len().saturating_sub(LOG_TAIL);
    format!("{} ends with\n{}", log.display(), lines[start..].join("\n"))
}

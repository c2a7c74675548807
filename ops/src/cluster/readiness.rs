//! Waits until a cluster takes requests, and gives up early if it cannot.

use std::{
    fs, io,
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use crate::cluster::{
    description::Description,
    layout::Layout,
    member::Member,
    status::ClusterStatus,
    supervisor::{RestartPolicy, report::Report},
};

/// A database that recovers from a crash may take this long.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A process that ended this often soon after its start is not expected to stay up.
const HOPELESS_AFTER_DEATHS: u32 = 6;
/// Lines of a log that an error message quotes.
const LOG_TAIL: usize = 12;

/// What to watch besides the processes themselves.
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

/// Removes an earlier supervisor's report, which would otherwise be mistaken for the new one's.
pub fn forget_old_report(layout: &Layout) -> anyhow::Result<()> {
    match fs::remove_file(layout.report()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", layout.report().display()))
        }
        _ => Ok(()),
    }
}

/// Waits until every router can read and write at every shard.
pub async fn wait(layout: &Layout, description: &Description, mut watch: Watch) -> anyhow::Result<ClusterStatus> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = ClusterStatus::gather(layout, description).await?;
        if status.is_ready() {
            return Ok(status);
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

fn refuse_the_hopeless(layout: &Layout, description: &Description, deaths_allowed: u32) -> anyhow::Result<()> {
    let report = Report::read(layout);
    for member in Member::all(layout, description) {
        let Some(process) = report.0.get(&member.name) else { continue };
        // A process that is not restarted dies once, however late.
        let deaths = if deaths_allowed == 0 { process.deaths } else { process.early_deaths };
        if deaths > deaths_allowed {
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

//! Exchanges the two servers of a shard: the stand-by becomes the primary, and the former primary is rebuilt as its stand-by.
//!
//! A failover is a list of [steps](FailoverStep). `cluster.json` records the new roles and the first step before anything else happens. The
//! supervisor then stops the former primary and does not start it again. `cluster.json` records each later step when the previous step is
//! done. Every step can be repeated. `shardctl shard failover` and `shardctl up` therefore continue from any step. `up` undoes a failover
//! that has not yet compared the servers. No server is promoted before the former primary has ended and its folder is put aside, because a
//! node could otherwise commit on a server that is about to be replaced.
//!
//! A stand-by that is missing or damaged is rebuilt by the last steps of the same list.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures_util::future::join_all;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    description::{Description, FoundDescription, Replication, ServerPlace, ShardPlace, Standby},
    files,
    layout::Layout,
    member::{self, Member, ProcessRole},
    place::FolderPlace,
    postgres::{standby, stopped_server},
    process::ProcessTable,
    status::{ClusterStatus, ShardStatus},
    supervisor::SupervisorReport,
};
use crate::output::note;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longer than the supervisor waits for a server to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// How long a stand-by that was just started may take until it answers.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long the node may take until it serves the new primary.
const READY_PATIENCE: Duration = Duration::from_secs(60);
/// The environment variable that makes a debug build abort at a step. `<step>.before` aborts before the step, and `<step>.after` before the
/// end of the step is recorded.
const ABORT: &str = "SHARDLEDGER_FAILOVER_ABORT";

/// The next step of an interrupted failover or rebuild. The order of the variants is the order of the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailoverStep {
    /// Wait until the former primary has ended, and compare its log with what the stand-by has received. Until this is done, the
    /// failover can be undone.
    Stop,
    /// Rename the folder of the former primary.
    SetAside,
    /// Promote the stand-by.
    Promote,
    /// Copy the new primary to the place of the former one.
    Rebuild,
}

impl FailoverStep {
    /// The step after this one; `None` after the last one.
    fn next(self) -> Option<Self> {
        match self {
            Self::Stop => Some(Self::SetAside),
            Self::SetAside => Some(Self::Promote),
            Self::Promote => Some(Self::Rebuild),
            Self::Rebuild => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::SetAside => "set_aside",
            Self::Promote => "promote",
            Self::Rebuild => "rebuild",
        }
    }

    /// Reads the step. An earlier version recorded a flag instead, from the exchange of the roles until the end of the rebuild.
    pub fn from_any_version<'de, D: Deserializer<'de>>(recorded: D) -> Result<Option<Self>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Recorded {
            IsBegun(bool),
            Step(Option<FailoverStep>),
        }
        Ok(match Recorded::deserialize(recorded)? {
            Recorded::IsBegun(is_begun) => is_begun.then_some(Self::SetAside),
            Recorded::Step(step) => step,
        })
    }
}

/// The plan of a failover that would begin, or that an earlier failover has left unfinished.
#[derive(Debug)]
pub struct FailoverPlan {
    /// The primary after the failover.
    pub new_primary: ServerPlace,
    /// The server that becomes the stand-by.
    pub former: ServerPlace,
    /// Whether an earlier failover was interrupted.
    pub is_begun: bool,
    /// Whether the present primary answers. Its stand-by then receives the rest of the log while the primary shuts down.
    pub primary_answers: bool,
    /// The bytes of log that the primary has and the stand-by has not received. `None` if the primary does not answer, and its folder cannot
    /// be read or is in use.
    pub bytes_behind: Option<u64>,
}

/// The result of a failover.
#[derive(Debug)]
pub struct FailoverResult {
    /// The folder to which the files of the former primary were moved, if they were.
    pub aside: Option<PathBuf>,
    /// The state of the shard after the failover. The node may refuse the new primary.
    pub status: ShardStatus,
}

/// Looks at both servers.
///
/// # Errors
/// The shard has no stand-by; the stand-by does not answer or is a primary; or an asynchronous stand-by lacks log of the stopped primary and
/// `accept_loss` is not given.
pub async fn plan(
    layout: &Layout,
    description: &Description,
    shard: &ShardPlace,
    accept_loss: bool,
) -> anyhow::Result<FailoverPlan> {
    let servers = description.servers(layout, shard);
    let (Some(place), Some(standby)) = (&shard.standby, servers.standby) else {
        bail!(
            "shard {} has no stand-by: a cluster gets stand-bys when `shardctl up --standby sync` or `async` creates it",
            shard.id
        );
    };
    standby::can_rebuild(description)?;
    if place.pending.is_some() {
        let (new_primary, former) = (servers.primary, standby);
        return Ok(FailoverPlan { new_primary, former, is_begun: true, primary_answers: false, bytes_behind: None });
    }
    let follower = standby::ask(layout, shard, &standby).await;
    let follower = follower.with_context(|| format!("the stand-by of shard {} cannot be promoted", shard.id))?;
    ensure!(
        follower.is_standby,
        "{} at port {} is no stand-by: it was promoted by something else, and `shardctl` does not know which server is right",
        standby.name,
        standby.port
    );
    let leader = standby::ask(layout, shard, &servers.primary).await.ok();
    ensure!(
        leader.is_none() || follower.is_streaming,
        "{} at port {} does not receive the primary's log, so a promotion would lose commits; the primary works. Look at {}",
        standby.name,
        standby.port,
        layout.log(&standby.name).display()
    );
    let primary_answers = leader.is_some();
    let runs = Member::server(layout, description, shard, &servers.primary).running(&ProcessTable::read()?).is_some();
    let bytes_behind = match leader {
        Some(leader) => Some(leader.at_byte.saturating_sub(follower.at_byte)),
        // The primary may only be slow. Its log is compared once it has ended.
        None if runs => None,
        None => {
            let lacks = stopped_server::bytes_beyond(description, &servers.primary.folder, follower.at_byte);
            if place.mode == Replication::Async && !accept_loss {
                refuse_loss(&shard.id, &servers.primary, &lacks, "Nothing was changed")?;
            }
            lacks.ok()
        }
    };
    Ok(FailoverPlan { new_primary: standby, former: servers.primary, is_begun: false, primary_answers, bytes_behind })
}

/// Refuses an asynchronous stand-by that lacks, or may lack, log of the former primary.
fn refuse_loss(
    id: &str,
    former: &ServerPlace,
    lacks: &anyhow::Result<u64>,
    what_happened: &str,
) -> anyhow::Result<()> {
    let cause = match lacks {
        Ok(0) => return Ok(()),
        Ok(bytes) => format!(
            "the stand-by of shard {id} lacks {bytes} bytes of the log in {}, so that a promotion may lose acknowledged payments",
            former.folder.display()
        ),
        Err(error) => format!(
            "the stand-by of shard {id} may lack acknowledged payments, because the log of the former primary cannot be compared: {error:#}"
        ),
    };
    bail!(
        "{cause}. {what_happened}. Run the failover again when {} works and the stand-by has received the rest, or give up what is missing \
         with `shardctl shard failover {id} --accept-loss`",
        former.name
    )
}

/// Carries the plan out.
///
/// # Errors
/// A step fails. Running the failover again continues with this step. If an asynchronous stand-by lacks log of the former primary and
/// `accept_loss` is not given, the failover is undone.
pub async fn carry_out(
    layout: &Layout,
    id: &str,
    plan: &FailoverPlan,
    accept_loss: bool,
) -> anyhow::Result<FailoverResult> {
    if !plan.is_begun {
        record(layout, id, |standby| {
            standby.leads = !standby.leads;
            standby.pending = Some(FailoverStep::Stop);
        })?;
    }
    let aside = finish(layout, id, accept_loss).await?;
    let status = becomes_ready(layout, id).await?;
    Ok(FailoverResult { aside, status })
}

/// Called before the cluster starts. Undoes failovers that have not compared their servers. Ends the servers and the copying programs that a
/// killed `shardctl` and its supervisor left running.
pub async fn prepare_start(layout: &Layout) -> anyhow::Result<()> {
    let Some(FoundDescription { description, place }) = Description::find(layout)? else { return Ok(()) };
    if matches!(place, FolderPlace::Copied { .. }) {
        return Ok(());
    }
    undo_unstopped(layout, &description)?;
    let Some(FoundDescription { description, .. }) = Description::find(layout)? else { return Ok(()) };
    member::stop_unstarted(layout, &description).await?;
    Ok(())
}

/// Finishes the interrupted failovers and rebuilds of all shards, while the supervisor runs. A failed rebuild is only reported, because the
/// primary works without its stand-by.
///
/// # Errors
/// A stand-by could not be promoted.
pub async fn finish_all(layout: &Layout) -> anyhow::Result<()> {
    undo_unstopped(layout, &load(layout)?)?;
    let pending = load(layout)?.shards.into_iter().filter(|shard| shard.pending().is_some());
    let finished = pending.map(async |shard| {
        note(&format!("finishing the replacement of a server of shard {}", shard.id));
        let Err(error) = finish(layout, &shard.id, false).await else { return Ok(()) };
        let reached = load(layout)?.shard(&shard.id).and_then(ShardPlace::pending);
        if reached != Some(FailoverStep::Rebuild) {
            return Err(error);
        }
        note(&format!(
            "shard {} has no stand-by, because its rebuild failed: {error:#}. `shardctl up` tries again",
            shard.id
        ));
        Ok(())
    });
    join_all(finished).await.into_iter().collect()
}

/// Replaces a stand-by that does not work, while its primary runs. Its folder is put aside.
///
/// # Errors
/// A step fails. `shardctl up` continues with this step.
pub async fn replace_standby(layout: &Layout, id: &str) -> anyhow::Result<()> {
    record(layout, id, |standby| standby.pending = Some(FailoverStep::SetAside))?;
    finish(layout, id, false).await?;
    Ok(())
}

fn undo_unstopped(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    for shard in description.shards.iter().filter(|shard| shard.pending() == Some(FailoverStep::Stop)) {
        record(layout, &shard.id, undo)?;
        note(&format!(
            "the failover of shard {} was interrupted before its servers were compared: it is undone. Run it again if it is still wanted",
            shard.id
        ));
    }
    Ok(())
}

fn undo(standby: &mut Standby) {
    standby.leads = !standby.leads;
    standby.pending = None;
}

/// Carries out the remaining steps. Returns the folder of the former primary's files if this call put them aside.
async fn finish(layout: &Layout, id: &str, accept_loss: bool) -> anyhow::Result<Option<PathBuf>> {
    let mut aside = None;
    loop {
        let description = load(layout)?;
        let shard = description.shard(id).context("the shard is gone")?;
        let servers = description.servers(layout, shard);
        let (Some(step), Some(former)) = (shard.pending(), servers.standby) else { return Ok(aside) };
        let primary = servers.primary;
        abort_if_told(step, "before");
        if step == FailoverStep::Stop {
            note(&format!("stopping the former primary ({})", former.name));
        }
        // Later steps check this again, because the supervisor may have started the server again or may have been killed.
        has_ended(layout, &Member::server(layout, &description, shard, &former)).await?;
        match step {
            FailoverStep::Stop => {
                let is_async = shard.standby.as_ref().is_some_and(|standby| standby.mode == Replication::Async);
                if is_async && !accept_loss {
                    let received = answers(layout, shard, &primary).await?;
                    let lacks = stopped_server::bytes_beyond(&description, &former.folder, received.at_byte);
                    if let Err(refusal) =
                        refuse_loss(id, &former, &lacks, "Nothing was promoted, and the former primary starts again")
                    {
                        record(layout, id, undo)?;
                        return Err(refusal);
                    }
                }
            }
            FailoverStep::SetAside => aside = put_aside(&former)?,
            FailoverStep::Promote => {
                answers(layout, shard, &primary).await?;
                note(&format!("promoting {}", primary.name));
                standby::promote(layout, shard, &primary).await?;
            }
            FailoverStep::Rebuild => {
                answers(layout, shard, &primary).await?;
                note(&format!("copying {} to {}, which becomes its stand-by", primary.name, former.name));
                member::end_copies(&former.folder).await?;
                let (layout, description, shard) = (layout.clone(), description.clone(), shard.clone());
                let copied = move || standby::rebuild(&layout, &description, &shard, &primary, &former);
                tokio::task::spawn_blocking(copied).await??;
            }
        }
        abort_if_told(step, "after");
        record(layout, id, |standby| standby.pending = step.next())?;
    }
}

/// Aborts this process if a test asks for it. Release builds ignore the variable.
fn abort_if_told(step: FailoverStep, when: &str) {
    if cfg!(debug_assertions) && std::env::var(ABORT).is_ok_and(|point| point == format!("{}.{when}", step.word())) {
        std::process::abort();
    }
}

fn load(layout: &Layout) -> anyhow::Result<Description> {
    Ok(Description::find(layout)?.context("the cluster's description is missing")?.description)
}

fn record(layout: &Layout, id: &str, change: impl FnOnce(&mut Standby)) -> anyhow::Result<()> {
    let mut description = load(layout)?;
    let shard = description.shards.iter_mut().find(|shard| shard.id == id).context("the shard is gone")?;
    change(shard.standby.as_mut().context("the shard has no stand-by")?);
    description.save(layout)
}

/// Waits until the supervisor has stopped the server and does not start it again. Stops the server itself if no supervisor runs it.
async fn has_ended(layout: &Layout, server: &Member) -> anyhow::Result<()> {
    let latest = Instant::now() + STOP_PATIENCE;
    while files::lock_holder(&layout.supervisor_lock())?.is_some()
        && SupervisorReport::read(layout).0.contains_key(&server.name)
    {
        ensure!(
            Instant::now() < latest,
            "the supervisor does not stop {}: see {}. Run the failover again afterwards",
            server.name,
            layout.log("supervisor").display()
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    match server.running(&ProcessTable::read()?) {
        Some(process) => member::stop(process, ProcessRole::Postgres).await,
        None => Ok(()),
    }
}

/// Waits until a server that was just started answers.
async fn answers(
    layout: &Layout,
    shard: &ShardPlace,
    server: &ServerPlace,
) -> anyhow::Result<standby::ReplicationRole> {
    let latest = Instant::now() + START_PATIENCE;
    loop {
        match standby::ask(layout, shard, server).await {
            Err(error) if Instant::now() >= latest => {
                let log = layout.log(&server.name);
                return Err(error).with_context(|| format!("{} does not answer: see {}", server.name, log.display()));
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            answered => return answered,
        }
    }
}

/// Renames the folder. The folder may contain commits that the new primary lacks, so it is not deleted.
fn put_aside(server: &ServerPlace) -> anyhow::Result<Option<PathBuf>> {
    if !server.folder.exists() {
        return Ok(None);
    }
    let mut names = (1_u32..).map(|number| server.folder.with_added_extension(format!("former-{number}")));
    let aside = names.find(|path| !path.exists()).context("no name is left")?;
    fs::rename(&server.folder, &aside).with_context(|| format!("cannot rename {}", server.folder.display()))?;
    Ok(Some(aside))
}

/// Waits until the node serves. Returns the last state of the shard, even if the node does not serve in time.
async fn becomes_ready(layout: &Layout, id: &str) -> anyhow::Result<ShardStatus> {
    let latest = Instant::now() + READY_PATIENCE;
    loop {
        let status = ClusterStatus::gather(layout, &load(layout)?).await?;
        let shard = status.shards.into_iter().find(|shard| shard.id == id).context("the shard is gone")?;
        if (shard.is_ready() && shard.standby_streams()) || Instant::now() >= latest {
            return Ok(shard);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(folder: PathBuf) -> ServerPlace {
        ServerPlace { name: "postgres-s0".to_owned(), folder, port: 1 }
    }

    #[test]
    fn the_files_of_a_former_primary_are_kept_under_a_new_name_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let server = server(folder.path().join("s0"));
        assert_eq!(put_aside(&server).unwrap(), None, "an interrupted failover has done it already");
        for number in 1..=2 {
            fs::create_dir(&server.folder).unwrap();
            fs::write(server.folder.join("PG_VERSION"), number.to_string()).unwrap();
            let aside = put_aside(&server).unwrap().unwrap();
            assert_eq!(aside, folder.path().join(format!("s0.former-{number}")));
            assert!(!server.folder.exists() && aside.join("PG_VERSION").exists());
        }
    }

    #[test]
    fn the_steps_lead_from_the_first_to_the_last_and_are_recorded_by_name() {
        let steps: Vec<FailoverStep> = std::iter::successors(Some(FailoverStep::Stop), |step| step.next()).collect();
        assert_eq!(steps, [FailoverStep::Stop, FailoverStep::SetAside, FailoverStep::Promote, FailoverStep::Rebuild]);
        for step in steps {
            assert_eq!(serde_json::to_value(step).unwrap(), step.word());
        }
    }

    #[test]
    fn a_failover_that_an_earlier_version_began_goes_on_with_the_folder_of_the_former_primary() {
        let read = |rest: &str| {
            serde_json::from_str::<Standby>(&format!(r#"{{"mode": "sync", "port": 1, "leads": true{rest}}}"#))
                .unwrap()
        };
        assert_eq!(read(r#", "rebuilding": true"#).pending, Some(FailoverStep::SetAside));
        assert_eq!(read(r#", "rebuilding": false"#).pending, None);
        assert_eq!(read(r#", "pending": "promote""#).pending, Some(FailoverStep::Promote));
        assert_eq!(read("").pending, None);
    }

    #[test]
    fn a_failover_that_is_undone_leaves_the_former_roles() {
        let before = Standby { mode: Replication::Async, port: 1, leads: true, pending: None };
        let mut standby = Standby { leads: false, pending: Some(FailoverStep::Stop), ..before.clone() };
        undo(&mut standby);
        assert_eq!(standby, before);
    }

    #[test]
    fn a_loss_is_refused_with_its_size_and_what_to_do() {
        let former = server("/pg/s0".into());
        let refused = |lacks| refuse_loss("s0", &former, &lacks, "Nothing was promoted").unwrap_err().to_string();
        assert!(refuse_loss("s0", &former, &Ok(0), "").is_ok());
        let lacks = refused(Ok(7));
        for part in ["lacks 7 bytes", "/pg/s0", "Nothing was promoted", "shardctl shard failover s0 --accept-loss"] {
            assert!(lacks.contains(part), "{lacks}");
        }
        let unknown = refused(Err(anyhow::anyhow!("/pg/s0 has no global/pg_control")));
        assert!(unknown.contains("cannot be compared: /pg/s0 has no global/pg_control"), "{unknown}");
    }
}

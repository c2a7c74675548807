//! Exchanges the two servers of a shard: the stand-by becomes the primary, and the former primary is rebuilt as its stand-by.
//!
//! Each step can be repeated, so that an interrupted failover goes on where it ended. `cluster.json` records the new roles first:
//! the supervisor then stops the former primary and does not start it again. Nothing is promoted before the former primary has
//! ended and its folder was put aside, because a node could otherwise commit on a server that is about to be replaced.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

use super::{
    description::{Description, ServerPlace, ShardPlace},
    layout::Layout,
    member::Member,
    postgres::standby,
    process::ProcessTable,
    status::{ClusterStatus, ShardStatus},
};
use crate::output::note;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longer than the supervisor waits for a server to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(120);
/// How long the node may take until it serves the new primary.
const READY_PATIENCE: Duration = Duration::from_secs(60);

/// What a failover of a shard would do, or has to finish.
#[derive(Debug)]
pub struct Plan {
    /// The primary after the failover.
    pub new_primary: ServerPlace,
    /// The server that becomes its stand-by.
    pub former: ServerPlace,
    /// Whether an earlier failover was interrupted.
    pub is_begun: bool,
    /// What the former primary has and the stand-by has not received; `None` if the former primary does not answer.
    pub bytes_behind: Option<i64>,
}

/// What a failover did.
#[derive(Debug)]
pub struct Done {
    /// Where the files of the former primary are now.
    pub aside: Option<PathBuf>,
    /// The shard at the end. The node may refuse the new primary.
    pub status: ShardStatus,
}

/// Looks at both servers.
///
/// # Errors
/// The shard has no stand-by, or the stand-by does not answer or is none.
pub async fn plan(layout: &Layout, description: &Description, shard: &ShardPlace) -> anyhow::Result<Plan> {
    let servers = description.servers(layout, shard);
    let (Some(place), Some(standby)) = (&shard.standby, servers.standby) else {
        bail!(
            "shard {} has no stand-by: a cluster gets stand-bys when `shardctl up --standby sync` or `async` creates it",
            shard.id
        );
    };
    standby::can_rebuild(description)?;
    if place.rebuilding {
        return Ok(Plan { new_primary: servers.primary, former: standby, is_begun: true, bytes_behind: None });
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
        "{} at port {} does not receive the primary's log, so that it would lose what it lacks; the primary works. Look at {}",
        standby.name,
        standby.port,
        layout.log(&standby.name).display()
    );
    let bytes_behind = leader.map(|leader| (leader.at_byte - follower.at_byte).max(0));
    Ok(Plan { new_primary: standby, former: servers.primary, is_begun: false, bytes_behind })
}

/// Carries the plan out.
///
/// # Errors
/// A step fails; running the failover again goes on from there.
pub async fn carry_out(layout: &Layout, id: &str, plan: &Plan) -> anyhow::Result<Done> {
    if !plan.is_begun {
        change(layout, id, |standby| {
            standby.leads = !standby.leads;
            standby.rebuilding = true;
        })?;
    }
    let description = load(layout)?;
    let shard = description.shard(id).context("the shard is gone")?;
    note(&format!("stopping the former primary ({})", plan.former.name));
    let former = Member::server(layout, &description, shard, &plan.former);
    has_ended(&former).await?;
    let aside = put_aside(&plan.former)?;
    // The supervisor may have started it once more before it read the new roles. Without its folder it does not start.
    has_ended(&former).await?;
    note(&format!("promoting {}", plan.new_primary.name));
    standby::promote(layout, shard, &plan.new_primary).await?;
    note(&format!("copying it to {}, which becomes its stand-by", plan.former.name));
    standby::rebuild(layout, &description, shard, &plan.new_primary, &plan.former)?;
    change(layout, id, |standby| standby.rebuilding = false)?;
    let status = becomes_ready(layout, id).await?;
    Ok(Done { aside, status })
}

fn load(layout: &Layout) -> anyhow::Result<Description> {
    Description::load(layout)?.context("the cluster's description is missing")
}

fn change(layout: &Layout, id: &str, change: impl FnOnce(&mut super::description::Standby)) -> anyhow::Result<()> {
    let mut description = load(layout)?;
    let shard = description.shards.iter_mut().find(|shard| shard.id == id).context("the shard is gone")?;
    change(shard.standby.as_mut().context("the shard has no stand-by")?);
    description.save(layout)
}

async fn has_ended(server: &Member) -> anyhow::Result<()> {
    let latest = Instant::now() + STOP_PATIENCE;
    while server.running(&ProcessTable::read()?).is_some() {
        ensure!(
            Instant::now() < latest,
            "{} does not end: does the supervisor run? Run the failover again afterwards",
            server.name
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Renames the folder. It may have commits that the new primary lacks, so it is not deleted.
fn put_aside(server: &ServerPlace) -> anyhow::Result<Option<PathBuf>> {
    if !server.folder.exists() {
        return Ok(None);
    }
    let mut names = (1_u32..).map(|number| server.folder.with_added_extension(format!("former-{number}")));
    let aside = names.find(|path| !path.exists()).context("no name is left")?;
    fs::rename(&server.folder, &aside).with_context(|| format!("cannot rename {}", server.folder.display()))?;
    Ok(Some(aside))
}

/// Waits until the node serves, and returns the shard's last state in any case.
async fn becomes_ready(layout: &Layout, id: &str) -> anyhow::Result<ShardStatus> {
    let latest = Instant::now() + READY_PATIENCE;
    loop {
        let status = ClusterStatus::gather(layout, &load(layout)?).await?;
        let shard = status.shards.into_iter().find(|shard| shard.id == id).context("the shard is gone")?;
        let streams = shard.standby.as_ref().is_some_and(|standby| standby.state == "streaming");
        if (shard.is_ready() && streams) || Instant::now() >= latest {
            return Ok(shard);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_former_primary_are_kept_under_a_new_name_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let server = ServerPlace { name: "postgres-s0".to_owned(), folder: folder.path().join("s0"), port: 1 };
        assert_eq!(put_aside(&server).unwrap(), None, "an interrupted failover has done it already");
        for number in 1..=2 {
            fs::create_dir(&server.folder).unwrap();
            fs::write(server.folder.join("PG_VERSION"), number.to_string()).unwrap();
            let aside = put_aside(&server).unwrap().unwrap();
            assert_eq!(aside, folder.path().join(format!("s0.former-{number}")));
            assert!(!server.folder.exists() && aside.join("PG_VERSION").exists());
        }
    }
}

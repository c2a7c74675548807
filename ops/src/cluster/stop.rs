//! Stopping processes: politely, then less so; routers first, databases last.

use std::{path::Path, time::Duration};

use anyhow::ensure;
use futures_util::future::join_all;
use rustix::process::Signal;

use crate::cluster::{
    description::Description,
    layout::Layout,
    member::{Member, Role},
    postgres::standby,
    process::{Process, ProcessTable},
};

/// How long a killed program may take until it is gone.
const COPY_PATIENCE: Duration = Duration::from_secs(5);

/// Stops one process and waits for its end.
pub async fn stop(process: Process, role: Role) -> anyhow::Result<()> {
    for (signal, patience) in role.ways_to_stop() {
        process.signal(*signal)?;
        if process.ended_within(*patience).await {
            return Ok(());
        }
    }
    anyhow::bail!("process {} does not end, not even when killed", process.pid())
}

/// Stops whatever runs of this cluster, and tells how many processes that were.
pub async fn stop_all(layout: &Layout, description: &Description) -> anyhow::Result<usize> {
    let mut members = Member::all(layout, description);
    members.extend(Member::unstarted(layout, description));
    let mut stopped = 0;
    let mut outcome = Ok(());
    for role in Role::STOP_ORDER {
        // Read again for each role: it takes a while until one is down.
        let table = ProcessTable::read()?;
        let running = members.iter().filter(|member| member.role == role).filter_map(|member| member.running(&table));
        // One that will not end must not keep the others from an orderly end.
        for ended in join_all(running.map(|process| stop(process, role))).await {
            stopped += 1;
            outcome = outcome.and(ended);
        }
    }
    outcome?;
    end_all_copies(layout, description).await?;
    Ok(stopped)
}

/// Stops the servers that must not run ([`Member::unstarted`]), and the programs that copy a server's folder.
pub async fn stop_unstarted(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    let table = ProcessTable::read()?;
    for server in Member::unstarted(layout, description) {
        if let Some(process) = server.running(&table) {
            stop(process, Role::Postgres).await?;
        }
    }
    end_all_copies(layout, description).await
}

async fn end_all_copies(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    for shard in &description.shards {
        if let Some(second) = description.servers(layout, shard).standby {
            end_copies(&second.folder).await?;
        }
    }
    Ok(())
}

/// Ends the programs that a killed `shardctl` left copying a primary to this folder. Two of them would write to the same files.
pub async fn end_copies(standby_folder: &Path) -> anyhow::Result<()> {
    let draft = standby::draft_of(standby_folder);
    let table = ProcessTable::read()?;
    for process in standby::COPYING_PROGRAMS.iter().flat_map(|program| table.naming(program, &draft)) {
        process.signal(Signal::KILL)?;
        let has_ended = process.ended_within(COPY_PATIENCE).await;
        ensure!(has_ended, "process {}, which writes to {}, does not end", process.pid(), draft.display());
    }
    Ok(())
}

//! Stopping processes: politely, then less so; routers first, databases last.

use futures_util::future::join_all;

use crate::cluster::{
    description::Description,
    layout::Layout,
    member::{Member, Role},
    process::{Process, ProcessTable},
};

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
    let members = Member::all(layout, description);
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
    outcome.map(|()| stopped)
}

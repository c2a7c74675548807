//! `shardctl status`. The exit code is 0 if everything is ready, 1 if something is not ready, and 4 if nothing runs.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{
    cluster::{Description, Layout, description::FoundDescription, place::FolderPlace, status::ClusterStatus},
    context::Context,
    exit, output,
};

#[derive(clap::Args)]
pub struct StatusArgs {
    /// With --json: print the databases' URLs with their passwords
    #[arg(long)]
    show_passwords: bool,
}

pub async fn run(args: StatusArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let layout = Layout::find(&context.data_dir)?;
    let FoundDescription { mut description, place } =
        Description::find(&layout)?.context("the cluster's description is missing")?;
    match place {
        FolderPlace::Same => {}
        FolderPlace::Moved { from } => output::note(&format!(
            "the data folder was moved from {}: run `shardctl down` if the cluster still runs, then `shardctl up`",
            from.display()
        )),
        FolderPlace::Copied { of } => description.copy_of = Some(of),
    }
    let mut status = ClusterStatus::gather(&layout, &description).await?;
    if args.show_passwords {
        status.show_passwords(&layout, &description)?;
    }
    if context.json {
        output::json(&status)?;
    } else {
        print(&status)?;
    }
    Ok(match (status.is_ready(), status.is_down()) {
        (true, _) => ExitCode::SUCCESS,
        (false, false) => exit::failure(),
        (false, true) => exit::unreachable(),
    })
}

fn print(status: &ClusterStatus) -> anyhow::Result<()> {
    let supervisor = match status.supervisor_pid {
        Some(pid) => format!("supervisor {pid}"),
        None => "no supervisor".to_owned(),
    };
    output::data(&format!("{}  map version {}  {supervisor}", status.data_dir.display(), status.map_version))?;
    if let Some(of) = &status.copy_of {
        output::data(&format!("copy of {}; payments in it are not payments in the original", of.display()))?;
    }
    output::data("")?;
    let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let routers: Vec<[String; 6]> = status
        .routers
        .iter()
        .map(|r| {
            [
                r.url.clone(),
                r.state.word().to_owned(),
                r.reads.word().to_owned(),
                r.writes.word().to_owned(),
                pid(r.pid),
                r.admin_url.clone(),
            ]
        })
        .collect();
    output::table(["router", "state", "reads", "writes", "pid", "admin"], &routers)?;
    output::data("")?;
    let works = |works: bool| if works { "work" } else { "fail" }.to_owned();
    let shards: Vec<[String; 10]> = status
        .shards
        .iter()
        .map(|s| {
            [
                s.id.clone(),
                s.state.word().to_owned(),
                works(s.reads),
                works(s.writes),
                s.slots.to_string(),
                s.epoch.to_string(),
                s.node_url.clone(),
                pid(s.node_pid),
                format!("127.0.0.1:{}", s.postgres_port),
                pid(s.postgres_pid),
            ]
        })
        .collect();
    output::table(
        ["shard", "state", "reads", "writes", "slots", "epoch", "node", "pid", "postgres", "pid"],
        &shards,
    )?;
    print_second_nodes(status)?;
    let standbys: Vec<[String; 5]> = status
        .shards
        .iter()
        .filter_map(|shard| Some((shard, shard.standby.as_ref()?)))
        .map(|(shard, standby)| {
            let address = format!("127.0.0.1:{}", standby.port);
            [shard.id.clone(), standby.mode.to_owned(), standby.state.to_owned(), address, pid(standby.pid)]
        })
        .collect();
    if !standbys.is_empty() {
        output::data("")?;
        output::table(["shard", "stand-by", "state", "postgres", "pid"], &standbys)?;
    }
    for shard in status.shards.iter().filter(|shard| shard.node_pid.is_some()) {
        if let Some(cause) = &shard.cause {
            output::data(&format!("\n{}: {cause}", shard.id))?;
        }
    }
    Ok(())
}

/// Prints which node of each shard is active, if shards have two nodes.
fn print_second_nodes(status: &ClusterStatus) -> anyhow::Result<()> {
    let pid = |pid: Option<i32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
    let role = |role: &Option<String>| role.clone().unwrap_or_else(|| "-".to_owned());
    let mut nodes: Vec<[String; 6]> = Vec::new();
    for shard in &status.shards {
        let Some(second) = &shard.second_node else { continue };
        let (state, first_admin) = (shard.state.word().to_owned(), shard.node_admin_url.clone());
        let id = shard.id.clone();
        nodes.push([
            id.clone(),
            shard.node_url.clone(),
            state,
            role(&shard.node_role),
            pid(shard.node_pid),
            first_admin,
        ]);
        let state = second.state.word().to_owned();
        nodes.push([id, second.url.clone(), state, role(&second.role), pid(second.pid), second.admin_url.clone()]);
    }
    if nodes.is_empty() {
        return Ok(());
    }
    output::data("")?;
    output::table(["shard", "node", "state", "role", "pid", "admin"], &nodes)
}

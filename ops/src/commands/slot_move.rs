//! `shardctl move …`

pub mod apply;
mod orders;
mod status;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use serde_json::json;
use uuid::Uuid;

use crate::{
    context::{AdminAddress, Context},
    output,
    resharding::{
        Nodes,
        plan::{self, Goal, MovePlan, Weights},
        view::MoveView,
    },
};

#[derive(clap::Subcommand)]
pub enum MoveCommand {
    /// Decide which slots to move, and write the plan to a file
    Plan(PlanArgs),
    /// Carry out a plan. Ctrl-C detaches: moves that have begun continue, and no further moves are started
    Apply(apply::MoveApplyArgs),
    /// Show the moves
    Status(status::MoveStatusArgs),
    /// Pause the copy of a move; a move that is catching up only delays its cut-over
    Pause(orders::MoveOrderArgs),
    /// Continue a paused move
    Resume(orders::MoveOrderArgs),
    /// Limit the rate of the copy
    Throttle(orders::ThrottleArgs),
    /// Compare both sides of a move when its copy is complete, before its cut-over
    Verify(orders::MoveOrderArgs),
    /// Cut over a move that was started with --hold-cutover
    Cutover(orders::MoveOrderArgs),
    /// Move the slots back, with everything that was booked since the cut-over
    Reverse(orders::MoveOrderArgs),
    /// Abandon a move before its cut-over, and delete the copy
    Abort(orders::MoveOrderArgs),
    /// Delete the moved data at the source; the move cannot be reversed afterwards
    Finish(orders::MoveOrderArgs),
    /// Show what the moves did: pauses, rows, money
    Report(status::ReportArgs),
}

pub async fn run(command: MoveCommand, context: &Context) -> anyhow::Result<ExitCode> {
    match command {
        MoveCommand::Plan(args) => plan(args, context).await,
        MoveCommand::Apply(args) => apply::run(args, context).await,
        MoveCommand::Status(args) => status::run(args, context).await,
        MoveCommand::Pause(args) => orders::pause(args, context).await,
        MoveCommand::Resume(args) => orders::resume(args, context).await,
        MoveCommand::Throttle(args) => orders::throttle(args, context).await,
        MoveCommand::Verify(args) => orders::verify(args, context).await,
        MoveCommand::Cutover(args) => orders::cut_over(args, context).await,
        MoveCommand::Reverse(args) => orders::reverse(args, context).await,
        MoveCommand::Abort(args) => orders::abort(args, context).await,
        MoveCommand::Finish(args) => orders::finish(args, context).await,
        MoveCommand::Report(args) => status::report(args, context).await,
    }
}

/// A router of the cluster, and the map file to keep up to date.
#[derive(clap::Args)]
pub struct ClusterAddress {
    /// The map file that the routers watch, to be kept up to date [default: that of the cluster in --data-dir; none with --admin-url]
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    #[command(flatten)]
    pub address: AdminAddress,
}

impl ClusterAddress {
    pub fn map_file(&self, context: &Context) -> Option<PathBuf> {
        self.map.clone().or_else(|| self.address.map_file(context))
    }
}

/// Finds the named move, or the only open move if none is named.
pub async fn find(nodes: &Nodes, named: Option<Uuid>) -> anyhow::Result<(String, wire::MoveStatus, MoveView)> {
    let (moves, failures) = nodes.list().await;
    let views = moves.into_iter().map(|(target, status)| {
        let view = MoveView::of(&target, &status);
        (target, status, view)
    });
    let mut meant: Vec<_> = views
        .filter(|(_, _, view)| match named {
            Some(id) => view.id == id,
            None => view.is_open(),
        })
        .collect();
    if meant.is_empty()
        && let Some(failure) = failures.into_iter().next()
    {
        return Err(failure.context("no shard that answers knows of the move"));
    }
    match (meant.pop(), meant.is_empty(), named) {
        (Some(found), true, _) => Ok(found),
        (Some(_), false, _) => bail!("several moves are open: name one (`shardctl move status` lists them)"),
        (None, _, Some(id)) => bail!("no shard knows of a move {id} (`shardctl move status --all` lists the moves)"),
        (None, _, None) => bail!("no move is open (`shardctl move status --all` lists those that are over)"),
    }
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("goal").required(true))]
pub struct PlanArgs {
    /// Even out the shards by accounts and bookings
    #[arg(long, group = "goal")]
    balance: bool,
    /// Move everything away from these shards, separated by commas
    #[arg(long, group = "goal", value_name = "SHARD", value_delimiter = ',')]
    drain: Vec<String>,
    /// Move these slots: numbers, ranges, account ids or {tags}, separated by commas. An id that begins with a digit needs account: before it
    #[arg(long, group = "goal", value_name = "SLOTS", requires = "to")]
    slots: Option<String>,
    /// The shard that receives the slots of --slots
    #[arg(long, value_name = "SHARD", requires = "slots", conflicts_with_all = ["balance", "drain"])]
    to: Option<String>,
    /// Write the plan to this file
    #[arg(short, long, value_name = "FILE", default_value = "plan.toml")]
    out: PathBuf,
    /// Print the plan and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    address: AdminAddress,
}

async fn plan(args: PlanArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let goal = match (&args.slots, &args.to) {
        (Some(slots), Some(to)) => Goal::Slots(plan::parse_slots(slots)?, to.clone()),
        _ if !args.drain.is_empty() => Goal::Drain(args.drain.clone()),
        _ => Goal::Balance,
    };
    let nodes = Nodes::of_routers(&args.address, context).await?;
    let owners = nodes.owners().await?;
    let weights = Weights::of(&nodes.loads().await?);
    let plan = plan::decide(&nodes, &owners, &weights, &goal)?;
    let shards: Vec<String> = nodes.map.shards.iter().map(|shard| shard.id.clone()).collect();
    let before = weights.shares(&owners, &shards);
    let after = weights.shares(&owners.after(&plan)?, &shards);
    if !args.dry_run {
        fs::write(&args.out, as_file(&plan)?).with_context(|| format!("cannot write {}", args.out.display()))?;
    }
    let next = format!("shardctl move apply {}", args.out.display());
    let (views, _) = nodes.views().await;
    let seconds = plan::estimated_seconds(&plan, plan::estimated_rate(&views));
    let mut blockers = plan::blockers(&plan, &views)?;
    blockers.extend(nodes.not_writing(plan.moves.iter().flat_map(|it| [it.from.as_str(), it.to.as_str()])).await);
    if context.json {
        output::json(&json!({
            "plan": plan, "shares_before": before, "shares_after": after, "seconds": seconds, "blockers": blockers, "next": next,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print_plan(&plan)?;
    output::data(&format!("\nthe copies take about {seconds:.0} s"))?;
    for blocker in &blockers {
        output::data(&format!("BLOCKED BY {blocker}"))?;
    }
    let percent = |share: Option<&f64>| format!("{:.1} %", share.copied().unwrap_or(0.0) * 100.0);
    let shares: Vec<[String; 3]> =
        shards.iter().map(|shard| [shard.clone(), percent(before.get(shard)), percent(after.get(shard))]).collect();
    output::data("\nshare of accounts and bookings:")?;
    output::table(["shard", "now", "after"], &shares)?;
    output::note(&if args.dry_run { "\nnothing was written".to_owned() } else { format!("\nnext: {next}") });
    Ok(ExitCode::SUCCESS)
}

/// One line for each move.
pub fn print_plan(plan: &MovePlan) -> anyhow::Result<()> {
    let rows: Vec<[String; 6]> = plan
        .moves
        .iter()
        .map(|planned| {
            [
                planned.from.clone(),
                planned.to.clone(),
                planned.slot_count().to_string(),
                shortened(&planned.slots),
                planned.accounts.to_string(),
                format!("{:.1}", planned.bytes as f64 / 1e6),
            ]
        })
        .collect();
    output::table(["from", "to", "slots", "which", "accounts", "about MB"], &rows)
}

fn as_file(plan: &MovePlan) -> anyhow::Result<String> {
    let text = toml::to_string(plan)?;
    Ok(format!("# A plan of `shardctl move plan`. `shardctl move apply` carries it out.\n{text}"))
}

/// Shortens a long list of ranges to the first ones.
fn shortened(slots: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = slots.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    if slots.len() > SHOWN { format!("{shown},… ({} ranges)", slots.len()) } else { shown }
}

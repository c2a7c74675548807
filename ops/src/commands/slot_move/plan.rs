//! `shardctl move plan`

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use serde_json::json;

use crate::{
    commands::{Context, router_address::AdminAddress},
    output,
    resharding::{
        estimate,
        plan::{self, Goal, Plan, Weights},
        view::MoveView,
    },
};

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("goal").required(true))]
pub struct Args {
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

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let goal = match (&args.slots, &args.to) {
        (Some(slots), Some(to)) => Goal::Slots(plan::parse_slots(slots)?, to.clone()),
        _ if !args.drain.is_empty() => Goal::Drain(args.drain.clone()),
        _ => Goal::Balance,
    };
    let nodes = super::nodes(&args.address, context).await?;
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
    let (moves, _) = nodes.list().await;
    let views: Vec<MoveView> = moves.iter().map(|(target, status)| MoveView::of(target, status)).collect();
    let seconds = estimate::seconds(&plan, estimate::rate(&views));
    let mut blockers = estimate::blockers(&plan, &views)?;
    blockers.extend(nodes.not_writing(plan.moves.iter().flat_map(|it| [it.from.as_str(), it.to.as_str()])).await);
    if context.json {
        output::json(&json!({
            "plan": plan, "shares_before": before, "shares_after": after, "seconds": seconds, "blockers": blockers, "next": next,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&plan)?;
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
pub fn print(plan: &Plan) -> anyhow::Result<()> {
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

fn as_file(plan: &Plan) -> anyhow::Result<String> {
    let text = toml::to_string(plan)?;
    Ok(format!("# A plan of `shardctl move plan`. `shardctl move apply` carries it out.\n{text}"))
}

/// The first ranges of many.
fn shortened(slots: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = slots.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    if slots.len() > SHOWN { format!("{shown},… ({} ranges)", slots.len()) } else { shown }
}

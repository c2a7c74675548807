//! `shardctl shard drain`

use std::process::ExitCode;

use anyhow::ensure;
use serde_json::json;
use wire::MoveWishes;

use crate::{
    commands::{
        Context,
        slot_move::{self, apply},
    },
    output, progress,
    resharding::{
        estimate,
        plan::{self, Goal, Weights},
        view::MoveView,
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// The shard to empty
    id: String,
    /// Print what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: slot_move::ClusterAddress,
}

/// Moves every slot away, and deletes what was moved.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = slot_move::nodes(&args.cluster.address, context).await?;
    let owners = nodes.owners().await?;
    nodes.shard(&args.id)?;
    let (moves, _) = nodes.list().await;
    let views: Vec<MoveView> = moves.iter().map(|(target, status)| MoveView::of(target, status)).collect();
    if owners.slots_of(&args.id).next().is_none() {
        // An earlier drain may have ended before its moves were finished.
        for view in views.iter().filter(|view| view.from == args.id && view.phase == "taken" && !args.dry_run) {
            let stack = progress::Stack::new();
            let bar = stack.percent(&view.to);
            nodes.control(&view.to, view.id, MoveWishes { finish: Some(true), ..Default::default() }).await?;
            apply::watch(&nodes, &view.to, view.id, &bar, |view| view.phase == "finished").await?;
            output::note(&format!("move {} to {} is finished", view.id, view.to));
        }
        output::data(&format!("shard {} owns no slots", args.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let weights = Weights::of(&nodes.loads().await?);
    let plan = plan::decide(&nodes, &owners, &weights, &Goal::Drain(vec![args.id.clone()]))?;
    let blockers = estimate::blockers(&plan, &views)?;
    ensure!(args.dry_run || blockers.is_empty(), "the drain is blocked by {}", blockers.join(", and by "));
    if args.dry_run && context.json {
        output::json(&json!({"id": args.id, "dry_run": true, "plan": plan, "blockers": blockers}))?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.dry_run {
        for blocker in &blockers {
            output::data(&format!("BLOCKED BY {blocker}"))?;
        }
        for planned in &plan.moves {
            output::data(&format!(
                "would move {} slots with {} accounts from {} to {}",
                planned.slot_count(),
                planned.accounts,
                planned.from,
                planned.to
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.cluster.map_file(context);
    let resume = format!("`shardctl shard drain {}` goes on", args.id);
    apply::carry_out_and_show(&nodes, &plan, &apply::Options::finishing(), file.as_deref(), &resume, context).await
}

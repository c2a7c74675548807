//! `shardctl shard drain`

use std::{path::PathBuf, process::ExitCode};

use crate::{
    commands::{
        Context,
        router_address::AdminAddress,
        slot_move::{self, apply},
    },
    output,
    resharding::plan::{self, Goal, Weights},
};

#[derive(clap::Args)]
pub struct Args {
    /// The shard that is to be empty
    id: String,
    /// Print what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// The map file that the routers watch, to be kept up to date [default: that of the cluster in --data-dir]
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    #[command(flatten)]
    address: AdminAddress,
}

/// Moves every slot away, and deletes what was moved.
pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = slot_move::nodes(&args.address, context).await?;
    let owners = nodes.owners().await?;
    nodes.shard(&args.id)?;
    if owners.slots_of(&args.id).next().is_none() {
        output::data(&format!("shard {} owns no slots", args.id))?;
        return Ok(ExitCode::SUCCESS);
    }
    let weights = Weights::of(&nodes.loads().await?);
    let plan = plan::decide(&nodes, &owners, &weights, &Goal::Drain(vec![args.id.clone()]))?;
    if args.dry_run {
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
    let file = slot_move::map_file(args.map, &args.address, context);
    apply::carry_out_and_show(&nodes, &plan, &apply::Options::finishing(), file.as_deref(), context).await
}

//! Orders to a move that has begun: pause, resume, throttle, verify, cutover, reverse, abort, finish.

use std::process::ExitCode;

use anyhow::ensure;
use serde_json::json;
use uuid::Uuid;
use wire::MoveWishes;

use super::apply;
use crate::{
    context::Context,
    exit, output,
    resharding::{Nodes, view::MoveView},
};

#[derive(clap::Args)]
pub struct MoveOrderArgs {
    /// Id of the move [default: the only open move]
    id: Option<Uuid>,
    /// Print what would be ordered, and order nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: super::ClusterAddress,
}

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("how").required(true))]
pub struct ThrottleArgs {
    /// Copy at most this many bytes a second. The copy still rests while the source's commits are slow
    #[arg(long, group = "how", value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Copy as fast as the source's commits allow
    #[arg(long, group = "how")]
    auto: bool,
    /// Copy as fast as possible, even if the source's clients become slower
    #[arg(long, alias = "off", group = "how")]
    unthrottled: bool,
    #[command(flatten)]
    args: MoveOrderArgs,
}

pub async fn pause(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    order(args, context, MoveWishes { paused: Some(true), ..Default::default() }, "paused").await
}

pub async fn resume(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    order(args, context, MoveWishes { paused: Some(false), ..Default::default() }, "resumed").await
}

pub async fn throttle(args: ThrottleArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let wishes =
        MoveWishes { rate: Some(args.rate.unwrap_or(0)), unthrottled: Some(args.unthrottled), ..Default::default() };
    order(args.args, context, wishes, "throttle changed").await
}

/// Waits until both sides have been compared, or differ. A move without --hold-cutover compares them by itself before its cut-over.
pub async fn verify(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    let (target, _, before) = super::find(&nodes, args.id).await?;
    if args.dry_run {
        let sentence = format!("move {} is {}; both sides would be compared", before.id, before.phase);
        output::would(context.json, &sentence, json!({"id": before.id, "phase": before.phase}))?;
        return Ok(ExitCode::SUCCESS);
    }
    nodes.control(&target, before.id, MoveWishes { verify: Some(true), ..Default::default() }).await?;
    let wanted = before.verifications_asked + 1;
    let stack = output::Bars::new();
    let bar = stack.percent(&target);
    let has_answer = |view: &MoveView| view.verifications_done >= wanted || !is_before_cut_over(view);
    let view = tokio::select! {
        view = apply::watch(&nodes, &target, before.id, &bar, has_answer) => view?,
        _ = tokio::signal::ctrl_c() => {
            output::note("\ndetached; the comparison continues. `shardctl move status` shows a difference as BLOCKED BY");
            return Ok(ExitCode::SUCCESS);
        }
    };
    bar.finish_and_clear();
    if context.json {
        output::json(&view)?;
    }
    // The driver compares both sides before a cut-over in any case.
    let is_done = view.verifications_done >= wanted || view.pause_ms.is_some();
    ensure!(is_done, "move {} is {}: its sides were not compared", view.id, view.phase);
    match view.difference.as_ref().filter(|_| is_before_cut_over(&view)) {
        Some(difference) => {
            if !context.json {
                output::data(&format!("move {}: {difference}", view.id))?;
            }
            Ok(exit::violation())
        }
        None => {
            if !context.json {
                let position = view.verified_position.unwrap_or_default();
                output::data(&format!("move {}: {} and {target} agree at position {position}", view.id, view.from))?;
                view.print_next();
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Whether both sides can still be compared.
fn is_before_cut_over(view: &MoveView) -> bool {
    matches!(view.phase.as_str(), "copying" | "catching up")
}

pub async fn cut_over(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let wishes = MoveWishes { hold_cutover: Some(false), paused: Some(false), ..Default::default() };
    order_and_wait(args, context, wishes, &["taken", "finished"]).await
}

pub async fn abort(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    // After the release the move can only be completed.
    order_and_wait(args, context, MoveWishes { abort: Some(true), ..Default::default() }, &["aborted", "taken"]).await
}

pub async fn finish(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    order_and_wait(args, context, MoveWishes { finish: Some(true), ..Default::default() }, &["finished"]).await
}

/// Starts a move in the other direction, which copies only what was booked since the cut-over.
pub async fn reverse(args: MoveOrderArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    let (target, status, view) = super::find(&nodes, args.id).await?;
    ensure!(
        view.phase == "taken",
        "move {} is {}: a move can be reversed between its cut-over and its end",
        view.id,
        view.phase
    );
    let slots = wire::convert::slots_from_wire(&status.slots)?;
    if args.dry_run {
        let sentence = format!("would move {} slots back from {target} to {}", view.slot_count, view.from);
        let fields = json!({"id": view.id, "from": target, "to": view.from, "slots": view.slot_count});
        output::would(context.json, &sentence, fields)?;
        return Ok(ExitCode::SUCCESS);
    }
    let id = Uuid::now_v7();
    nodes.start(&view.from, id, &target, &slots, Some(view.id), MoveWishes::default()).await?;
    wait(&nodes, &view.from, id, &["taken"], &args, context).await
}

async fn order(args: MoveOrderArgs, context: &Context, wishes: MoveWishes, done: &str) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    let (target, _, view) = super::find(&nodes, args.id).await?;
    if args.dry_run {
        let sentence = format!("move {} is {}; it would be ordered: {done}", view.id, view.phase);
        output::would(context.json, &sentence, json!({"id": view.id, "phase": view.phase}))?;
        return Ok(ExitCode::SUCCESS);
    }
    nodes.control(&target, view.id, wishes).await?;
    if context.json {
        output::json(&json!({"id": view.id, "next": "shardctl move status"}))?;
    } else {
        output::data(&format!("move {}: {done}", view.id))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn order_and_wait(
    args: MoveOrderArgs,
    context: &Context,
    wishes: MoveWishes,
    wanted: &[&str],
) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    let (target, _, view) = super::find(&nodes, args.id).await?;
    if args.dry_run {
        let sentence = format!("move {} is {}; it would become: {}", view.id, view.phase, wanted.join(" or "));
        output::would(context.json, &sentence, json!({"id": view.id, "phase": view.phase, "becomes": wanted}))?;
        return Ok(ExitCode::SUCCESS);
    }
    nodes.control(&target, view.id, wishes).await?;
    wait(&nodes, &target, view.id, wanted, &args, context).await
}

async fn wait(
    nodes: &Nodes,
    target: &str,
    id: Uuid,
    wanted: &[&str],
    args: &MoveOrderArgs,
    context: &Context,
) -> anyhow::Result<ExitCode> {
    let stack = output::Bars::new();
    let bar = stack.percent(target);
    let is_done = |view: &MoveView| {
        wanted.contains(&view.phase.as_str()) && (view.phase != "taken" || view.map_version.is_some())
    };
    let view = tokio::select! {
        view = apply::watch(nodes, target, id, &bar, is_done) => view?,
        _ = tokio::signal::ctrl_c() => {
            output::note("\ndetached; the order stands. Watch it with `shardctl move status --watch`");
            return Ok(ExitCode::SUCCESS);
        }
    };
    bar.finish_and_clear();
    ensure!(
        view.phase == wanted[0] || wanted[0] != "aborted",
        "it was too late: the slots had been released, and shard {target} has taken them. next: shardctl move reverse {id}"
    );
    if let Some(file) = args.cluster.map_file(context)
        && view.phase == "taken"
    {
        nodes.update_file(&file).await?;
    }
    if context.json {
        output::json(&view)?;
    } else {
        super::status::print_report(std::slice::from_ref(&view))?;
        view.print_next();
    }
    Ok(ExitCode::SUCCESS)
}

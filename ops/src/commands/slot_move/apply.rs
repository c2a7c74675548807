//! `shardctl move apply`: starts the moves of a plan and watches them. The nodes carry out the moves, even after the command has ended.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use indicatif::ProgressBar;
use serde_json::json;
use uuid::Uuid;

use crate::{
    context::Context,
    output,
    resharding::{
        Nodes,
        plan::{MovePlan, PlannedMove, wave},
        view::MoveView,
    },
};

const LOOK: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub struct MoveApplyArgs {
    /// The plan that `shardctl move plan` wrote
    plan: PathBuf,
    #[command(flatten)]
    options: MoveApplyOptions,
    /// Print what would be started, and start nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: super::ClusterAddress,
}

/// The options for carrying out the moves of a plan.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MoveApplyOptions {
    /// Copy and verify, then delete the copy: the slots stay where they are
    #[arg(long, conflicts_with_all = ["hold_cutover", "finish"])]
    rehearse: bool,
    /// Copy and follow, and cut over only at `shardctl move cutover`
    #[arg(long, conflicts_with = "finish")]
    hold_cutover: bool,
    /// Delete the moved data at the source right after the cut-over. The move cannot be reversed then
    #[arg(long)]
    finish: bool,
    /// Cut over only if the estimated pause of the slots is at most this, for example 200ms [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    max_pause: Option<u64>,
    /// Carry out at most N moves at once [default: as many as have different shards at both ends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    parallel: Option<u16>,
    /// Copy at most this many bytes a second, for example 20000000. The copy still rests while the source's commits are slow
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
    /// Copy as fast as possible, even if the source's clients become slower
    #[arg(long, conflicts_with = "rate")]
    unthrottled: bool,
}

impl MoveApplyOptions {
    /// Options that delete the data at the source right after each cut-over.
    pub fn finishing() -> Self {
        Self { finish: true, ..Self::default() }
    }
}

/// Parses `200ms` or `1s`.
fn milliseconds(text: &str) -> Result<u64, String> {
    let (number, factor) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1),
        (None, Some(number)) => (number, 1000),
        (None, None) => return Err("a time is a number with ms or s: 200ms, 1s".to_owned()),
    };
    let number: u64 = number.trim().parse().map_err(|_| format!("{number:?} is not a whole number"))?;
    number.checked_mul(factor).filter(|ms| *ms > 0).ok_or_else(|| "a time is more than 0".to_owned())
}

pub async fn run(args: MoveApplyArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let text = fs::read_to_string(&args.plan).with_context(|| format!("cannot read {}", args.plan.display()))?;
    let plan: MovePlan = toml::from_str(&text).with_context(|| args.plan.display().to_string())?;
    let nodes = Nodes::of_routers(&args.cluster.address, context).await?;
    ensure!(
        plan.cluster == nodes.map.cluster,
        "the plan is of cluster {}, not of {}",
        plan.cluster,
        nodes.map.cluster
    );
    refuse_stale(&nodes, &plan).await?;
    if args.dry_run {
        if context.json {
            output::json(&json!({"plan": plan, "dry_run": true}))?;
        } else {
            super::print_plan(&plan)?;
            output::note("\nnothing was started");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let file = args.cluster.map_file(context);
    let resume = "`shardctl move apply` with the same plan and the same options continues";
    carry_out_and_show(&nodes, &plan, &args.options, file.as_deref(), resume, context).await
}

/// Carries a plan out and prints what was done. Ctrl-C detaches. `resume` then tells the operator how to continue.
pub async fn carry_out_and_show(
    nodes: &Nodes,
    plan: &MovePlan,
    options: &MoveApplyOptions,
    file: Option<&std::path::Path>,
    resume: &str,
    context: &Context,
) -> anyhow::Result<ExitCode> {
    let views = tokio::select! {
        done = carry_out(nodes, plan, options, file) => done?,
        _ = tokio::signal::ctrl_c() => {
            output::note(&format!(
                "\ndetached; the moves that have begun continue until they are taken. Watch them with `shardctl move status --watch`. The other \
                 moves are not started, --finish is not ordered, and the map file is not written: {resume}"
            ));
            return Ok(ExitCode::SUCCESS);
        }
    };
    if file.is_none() {
        output::note("no map file was written: name it with --map");
    }
    if context.json {
        let next: Vec<&str> = views.iter().map(|view| view.next.as_str()).filter(|next| !next.is_empty()).collect();
        output::json(&json!({"moves": views, "next": next}))?;
    } else {
        super::status::print_report(&views)?;
        for view in &views {
            view.print_next();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Refuses a plan as a whole if its slots have moved since it was made.
async fn refuse_stale(nodes: &Nodes, plan: &MovePlan) -> anyhow::Result<()> {
    let owners = nodes.owners().await?;
    for planned in &plan.moves {
        if let Some(status) = nodes.status(&planned.to, planned.id).await? {
            let view = MoveView::of(&planned.to, &status);
            ensure!(
                !matches!(view.phase.as_str(), "aborting" | "aborted" | "reversed"),
                "move {} of this plan is {}. Make a new plan with `shardctl move plan`",
                view.id,
                view.phase
            );
            // The move has begun. Applying the plan again continues to watch it.
            continue;
        }
        for slot in planned.ranges()?.into_iter().flat_map(shard_map::SlotRange::slots) {
            let owner = owners.of(slot);
            if owner != Some(planned.from.as_str()) {
                bail!(
                    "the plan is stale: slot {slot} belongs to shard {}, not to shard {}. Make a new one with `shardctl move plan`",
                    owner.unwrap_or("none"),
                    planned.from
                );
            }
        }
    }
    Ok(())
}

async fn carry_out(
    nodes: &Nodes,
    plan: &MovePlan,
    options: &MoveApplyOptions,
    file: Option<&std::path::Path>,
) -> anyhow::Result<Vec<MoveView>> {
    let stack = output::Bars::new();
    let mut done: BTreeMap<Uuid, MoveView> = BTreeMap::new();
    loop {
        let waiting: Vec<&PlannedMove> =
            plan.moves.iter().filter(|planned| !done.contains_key(&planned.id)).collect();
        if waiting.is_empty() {
            break;
        }
        let at_once = options.parallel.map_or(usize::MAX, usize::from);
        let each = wave(&waiting).into_iter().take(at_once).map(|planned| {
            let bar = stack.percent(&format!("{} to {}", planned.from, planned.to));
            async move { anyhow::Ok((planned.id, carry_out_one(nodes, planned, options, &bar).await?)) }
        });
        for (planned, view) in try_join_all(each).await? {
            if let Some(file) = file
                && view.map_version.is_some()
            {
                nodes.update_file(file).await?;
            }
            done.insert(planned, view);
        }
        let waits_for_cut_over = done.values().any(|view| view.phase == "catching up");
        if waits_for_cut_over && done.len() < plan.moves.len() {
            // A shard receives slots in one move at a time.
            output::note(&format!(
                "{} of {} moves were started. Cut over those that wait, then apply the plan again with the same options",
                done.len(),
                plan.moves.len()
            ));
            break;
        }
    }
    Ok(plan.moves.iter().filter_map(|planned| done.remove(&planned.id)).collect())
}

async fn carry_out_one(
    nodes: &Nodes,
    planned: &PlannedMove,
    options: &MoveApplyOptions,
    bar: &ProgressBar,
) -> anyhow::Result<MoveView> {
    // A rehearsal uses another id, so that the real move can use the id of the plan.
    let id = if options.rehearse { Uuid::now_v7() } else { planned.id };
    let wishes = wire::MoveWishes {
        rehearse: Some(options.rehearse),
        hold_cutover: Some(options.hold_cutover),
        rate: options.rate,
        unthrottled: Some(options.unthrottled),
        max_pause_ms: options.max_pause,
        ..Default::default()
    };
    nodes.start(&planned.to, id, &planned.from, &planned.ranges()?, None, wishes).await?;
    let wanted: &[&str] = match (options.rehearse, options.hold_cutover, options.finish) {
        (true, ..) => &["rehearsed"],
        (false, true, _) => &["catching up", "taken"],
        (false, false, true) => &["finished"],
        _ => &["taken", "finished"],
    };
    let view = watch(nodes, &planned.to, id, bar, |view| {
        wanted.contains(&view.phase.as_str()) && (view.phase != "taken" || view.map_version.is_some())
            || (options.finish && view.phase == "taken")
            // An earlier command has started the move with --hold-cutover.
            || (view.phase == "catching up" && view.holds_cutover)
    })
    .await?;
    if options.finish && view.phase == "taken" {
        nodes.control(&planned.to, id, wire::MoveWishes { finish: Some(true), ..Default::default() }).await?;
        return watch(nodes, &planned.to, id, bar, |view| view.phase == "finished").await;
    }
    bar.finish_with_message(view.line());
    Ok(view)
}

/// Shows a move until `is_done` returns true: as a bar on a terminal, or as a line for each phase elsewhere. Fails if the move ends in
/// another way.
pub async fn watch(
    nodes: &Nodes,
    target: &str,
    id: Uuid,
    bar: &ProgressBar,
    is_done: impl Fn(&MoveView) -> bool,
) -> anyhow::Result<MoveView> {
    let mut shown = String::new();
    loop {
        // A node that was down for a moment continues the move.
        match nodes.status(target, id).await {
            Ok(Some(status)) => {
                let view = MoveView::of(target, &status);
                bar.set_position(view.percent as u64);
                bar.set_message(view.line());
                if bar.is_hidden() && shown != view.phase {
                    output::note(&view.line());
                    shown.clone_from(&view.phase);
                }
                if is_done(&view) {
                    return Ok(view);
                }
                if !view.is_open() {
                    bail!("move {id} is {}", view.phase);
                }
            }
            Ok(None) => bail!("shard {target} does not know of move {id}"),
            Err(error) => bar.set_message(format!("{error:#}; waiting")),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn times_have_a_unit() {
        assert_eq!([milliseconds("200ms"), milliseconds("2s")], [Ok(200), Ok(2000)]);
        assert!(["200", "ms", "0ms", "1.5s", "-1s"].iter().all(|text| milliseconds(text).is_err()));
    }
}

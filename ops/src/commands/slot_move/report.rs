//! `shardctl move report`

use std::process::ExitCode;

use serde_json::json;

use crate::{
    commands::{Context, router_address::AdminAddress},
    exit, output,
    resharding::view::MoveView,
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = super::nodes(&args.address, context).await?;
    let (moves, failures) = nodes.list().await;
    let views: Vec<MoveView> = moves.iter().map(|(target, status)| MoveView::of(target, status)).collect();
    let mut pauses: Vec<f64> = views.iter().filter_map(|view| view.pause_ms).collect();
    pauses.sort_by(f64::total_cmp);
    let at = |share: f64| pauses.get(((pauses.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
    if context.json {
        let pause = json!({"p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": pauses.last()});
        output::json(&json!({"moves": views, "pause": pause}))?;
    } else {
        print(&views)?;
        if let (Some(p50), Some(max)) = (at(0.5), pauses.last()) {
            output::data(&format!("\ncut-overs: {}, pause p50 {p50:.1} ms, max {max:.1} ms", pauses.len()))?;
        }
    }
    for error in &failures {
        output::note(&format!("{error:#}"));
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}

/// One line for each move, and the money that moved.
pub fn print(views: &[MoveView]) -> anyhow::Result<()> {
    let milliseconds = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
    let rows: Vec<[String; 10]> = views
        .iter()
        .map(|view| {
            [
                view.id.to_string(),
                view.from.clone(),
                view.to.clone(),
                view.slot_count.to_string(),
                view.phase.clone(),
                view.bookings.to_string(),
                view.accounts.to_string(),
                format!("{:.1}", view.bytes as f64 / 1e6),
                milliseconds(view.pause_ms),
                milliseconds(view.source_locked_ms),
            ]
        })
        .collect();
    let header =
        ["move", "from", "to", "slots", "phase", "bookings", "accounts", "MB", "pause ms", "source locked ms"];
    output::table(header, &rows)?;
    for view in views {
        if view.phase == "rehearsed" {
            output::data(&format!("{} to {}: the copy agreed with the source, and was deleted", view.from, view.to))?;
        }
        // Both sides have compared the sums before the target took the slots.
        let has_moved = matches!(view.phase.as_str(), "taken" | "finished" | "reversed");
        for asset in view.assets.as_array().into_iter().flatten().filter(|_| has_moved) {
            output::data(&format!(
                "{} to {}: the balances sum to {} minor units of {} on both sides",
                view.from,
                view.to,
                output::cell(&asset["posted"]),
                output::cell(&asset["asset"]),
            ))?;
        }
    }
    Ok(())
}

//! `shardctl move status`

use std::{process::ExitCode, time::Duration};

use serde_json::json;

use crate::{
    commands::{Context, router_address::AdminAddress},
    exit, output, progress,
    resharding::{nodes::Nodes, view::MoveView},
};

const LOOK: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub struct Args {
    /// Go on showing the open moves until each is taken, paused, or waits for its cut-over
    #[arg(long)]
    watch: bool,
    /// Show moves that are over as well
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = super::nodes(&args.address, context).await?;
    if args.watch && !context.json {
        watch(&nodes).await?;
    }
    let (moves, failures) = nodes.list().await;
    let views: Vec<MoveView> = moves
        .iter()
        .map(|(target, status)| MoveView::of(target, status))
        .filter(|view| args.all || view.is_open())
        .collect();
    if context.json {
        let next: Vec<&str> = views.iter().map(|view| view.next.as_str()).filter(|next| !next.is_empty()).collect();
        output::json(&json!({"moves": views, "next": next}))?;
    } else if failures.is_empty() || !views.is_empty() {
        print(&views, args.all)?;
    }
    for error in &failures {
        output::note(&format!("{error:#}"));
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}

/// Bars for the open moves, until each waits for an order or is over. Ctrl-C ends the watching and nothing else.
async fn watch(nodes: &Nodes) -> anyhow::Result<()> {
    let stack = progress::Stack::new();
    let mut bars = std::collections::BTreeMap::new();
    loop {
        let (moves, _) = nodes.list().await;
        let views: Vec<MoveView> =
            moves.iter().map(|(target, status)| MoveView::of(target, status)).filter(MoveView::is_open).collect();
        for view in &views {
            let bar = bars.entry(view.id).or_insert_with(|| stack.percent(&format!("{} to {}", view.from, view.to)));
            bar.set_position(view.percent as u64);
            bar.set_message(view.line());
        }
        let waits = |view: &MoveView| {
            view.phase == "taken" || view.paused || (view.holds_cutover && view.phase == "catching up")
        };
        if views.iter().all(waits) {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
    }
}

fn print(views: &[MoveView], all: bool) -> anyhow::Result<()> {
    if views.is_empty() {
        return output::data(if all {
            "there are no moves"
        } else {
            "no move is open (--all shows those that are over)"
        });
    }
    let rows: Vec<[String; 10]> = views
        .iter()
        .map(|view| {
            [
                view.id.to_string(),
                view.from.clone(),
                view.to.clone(),
                view.slot_count.to_string(),
                if view.paused { format!("{} (paused)", view.phase) } else { view.phase.clone() },
                format!("{:.0} %", view.percent),
                view.bookings.to_string(),
                view.accounts.to_string(),
                format!("{:.1} MB/s", view.rate / 1e6),
                view.seconds_left.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.0} s")),
            ]
        })
        .collect();
    output::table(["move", "from", "to", "slots", "phase", "copied", "bookings", "accounts", "rate", "left"], &rows)?;
    for view in views {
        if let Some(reason) = &view.throttle_reason {
            output::data(&format!("{}: {reason}", view.id))?;
        }
        if let (Some(entries), Some(ms)) = (view.lag_entries, view.lag_ms) {
            output::data(&format!(
                "{}: the driver has not read the last {entries} entries of the source's journal; it was up to date {ms:.0} ms ago",
                view.id
            ))?;
        }
        if let Some(cause) = &view.blocked_by {
            output::data(&format!("{}: BLOCKED BY {cause}", view.id))?;
        }
        view.print_next();
    }
    Ok(())
}

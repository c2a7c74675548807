//! `shardctl move status` and `shardctl move report` show what moves do and what they did.

use std::{process::ExitCode, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use shard_map::SlotRange;

use crate::{
    context::{AdminAddress, Context},
    exit, output,
    resharding::{
        Nodes,
        plan::Weights,
        view::{MoveView, wait_ms},
    },
};

const LOOK: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub struct MoveStatusArgs {
    /// Watch the open moves until each is taken, is paused, or waits for its cut-over
    #[arg(long)]
    watch: bool,
    /// Show moves that are over as well
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn run(args: MoveStatusArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.address, context).await?;
    if args.watch && !context.json {
        watch(&nodes).await?;
    }
    let (mut views, failures) = nodes.views().await;
    views.retain(|view| args.all || view.is_open());
    if context.json {
        let next: Vec<&str> = views.iter().map(|view| view.next.as_str()).filter(|next| !next.is_empty()).collect();
        output::json(&json!({"moves": views, "next": next}))?;
    } else if failures.is_empty() || !views.is_empty() {
        print_status(&views, args.all)?;
    }
    for error in &failures {
        output::note(&format!("{error:#}"));
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}

/// Shows a bar for each open move, until each one waits for an order or is over. Ctrl-C ends only the watching.
async fn watch(nodes: &Nodes) -> anyhow::Result<()> {
    let stack = output::Bars::new();
    let mut bars = std::collections::BTreeMap::new();
    loop {
        let (mut views, _) = nodes.views().await;
        views.retain(MoveView::is_open);
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

fn print_status(views: &[MoveView], all: bool) -> anyhow::Result<()> {
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

#[derive(clap::Args)]
pub struct ReportArgs {
    #[command(flatten)]
    address: AdminAddress,
}

pub async fn report(args: ReportArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let nodes = Nodes::of_routers(&args.address, context).await?;
    let (views, failures) = nodes.views().await;
    let shares = match nodes.loads().await {
        Ok(loads) => {
            let shards: Vec<String> = nodes.map.shards.iter().map(|shard| shard.id.clone()).collect();
            Some(Weights::of(&loads).shares(&nodes.owners().await?, &shards))
        }
        Err(_) => None,
    };
    let (held, silent) = waited_in_routers(&args.address, context).await?;
    let of_moves: Vec<Waited> = views.iter().map(|view| Waited::of_move(view, &held)).collect();
    let all = of_moves.iter().fold(Waited::default(), |all, one| all.merged(one));
    if context.json {
        let moves: Vec<Value> = views
            .iter()
            .zip(&of_moves)
            .map(|(view, held)| {
                let mut json = serde_json::to_value(view).unwrap_or_default();
                json["routers"] = held.json();
                json
            })
            .collect();
        output::json(&json!({"moves": moves, "routers": all.json(), "shares": shares, "next": ""}))?;
    } else {
        print_report(&views)?;
        print_waited(&views, &of_moves, &all)?;
        for (shard, share) in shares.iter().flatten() {
            output::data(&format!("{shard} has {:.1} % of the accounts and bookings", share * 100.0))?;
        }
    }
    for error in failures.iter().chain(&silent) {
        output::note(&format!("{error:#}"));
    }
    Ok(if failures.is_empty() && silent.is_empty() { ExitCode::SUCCESS } else { exit::unreachable() })
}

/// A hand-over, as `GET /admin/handovers` reports it.
#[derive(Debug, Clone, Deserialize)]
struct Handover {
    shard: String,
    epoch: i64,
    slots: Vec<String>,
    begun_at_us: i64,
    waited: u64,
    replayed: u64,
    refused: u64,
    /// Pairs of a wait in microseconds and the number of operations that waited for this time.
    waits: Vec<(u64, u64)>,
}

#[derive(Debug, Deserialize)]
struct Handovers {
    data: Vec<Handover>,
}

/// Reads the operations that waited in each router. Names routers that do not answer.
async fn waited_in_routers(
    address: &AdminAddress,
    context: &Context,
) -> anyhow::Result<(Vec<Handover>, Vec<anyhow::Error>)> {
    let routers = address.routers(context)?;
    let (mut held, mut silent) = (Vec::new(), Vec::new());
    for url in &routers.urls {
        match routers.client.get::<Handovers>(&format!("{url}/admin/handovers")).await {
            Ok(answer) => held.extend(answer.data),
            Err(error) => silent.push(error),
        }
    }
    Ok((held, silent))
}

/// The operations that waited in routers for slots between two shards, and for how long.
#[derive(Debug, Clone, Default, PartialEq)]
struct Waited {
    waited: u64,
    replayed: u64,
    refused: u64,
    /// Pairs of a wait in microseconds and the number of operations that waited for this time, in ascending order.
    waits: Vec<(u64, u64)>,
}

impl Waited {
    /// The operations that waited for one move.
    fn of_move(view: &MoveView, handovers: &[Handover]) -> Self {
        /// The clocks of routers and nodes may differ by some seconds, and a request waits up to 10 s.
        const AROUND_US: i64 = 15_000_000;
        let slots: Vec<SlotRange> = view.slots.iter().filter_map(|range| range.parse().ok()).collect();
        let is_of_move = |handover: &&Handover| {
            let touches = |range: &SlotRange| slots.iter().any(|own| own.contains(range.first()));
            handover.shard == view.to
                && handover.epoch == view.slot_epoch
                && (handover.begun_at_us - view.released_at_us).abs() < AROUND_US
                && handover.slots.iter().filter_map(|range| range.parse().ok()).any(|range| touches(&range))
        };
        let of_move = handovers.iter().filter(is_of_move).map(|handover| Self {
            waited: handover.waited,
            replayed: handover.replayed,
            refused: handover.refused,
            waits: handover.waits.clone(),
        });
        of_move.fold(Self::default(), |all, one| all.merged(&one))
    }

    fn merged(mut self, other: &Self) -> Self {
        self.waited += other.waited;
        self.replayed += other.replayed;
        self.refused += other.refused;
        self.waits.extend(&other.waits);
        self.waits.sort_unstable();
        self
    }

    fn wait_ms(&self, share: f64) -> Option<f64> {
        wait_ms(&self.waits, share)
    }

    fn json(&self) -> Value {
        json!({
            "waited": self.waited, "replayed": self.replayed, "refused": self.refused,
            "wait_p50_ms": self.wait_ms(0.5), "wait_p99_ms": self.wait_ms(0.99), "wait_max_ms": self.wait_ms(1.0),
        })
    }
}

fn print_waited(views: &[MoveView], of_moves: &[Waited], all: &Waited) -> anyhow::Result<()> {
    if views.is_empty() {
        return Ok(());
    }
    let row = |name: String, held: &Waited| {
        [
            name,
            held.waited.to_string(),
            held.replayed.to_string(),
            held.refused.to_string(),
            milliseconds(held.wait_ms(0.5)),
            milliseconds(held.wait_ms(0.99)),
            milliseconds(held.wait_ms(1.0)),
        ]
    };
    let mut rows: Vec<[String; 7]> =
        views.iter().zip(of_moves).map(|(view, held)| row(view.id.to_string(), held)).collect();
    rows.push(row("all".to_owned(), all));
    output::data("\noperations that waited in the routers for a slot (since the routers started):")?;
    output::table(["move", "waited", "sent again", "refused", "wait p50 ms", "wait p99 ms", "wait max ms"], &rows)
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"))
}

/// One line for each move, and the money that moved.
pub fn print_report(views: &[MoveView]) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_routers_held_belongs_to_the_move_with_the_shard_the_epoch_and_the_slots() {
        let status = wire::MoveStatus {
            slots: vec![wire::SlotRange { first: 10, last: 20 }],
            progress: r#"{"slot_epoch": 3, "released_at_us": 50000000}"#.to_owned(),
            ..Default::default()
        };
        let view = MoveView::of("s1", &status);
        let handover = |shard: &str, epoch, slot: &str| Handover {
            shard: shard.to_owned(),
            epoch,
            slots: vec![slot.to_owned()],
            begun_at_us: 50_100_000,
            waited: 4,
            replayed: 3,
            refused: 1,
            waits: vec![(30_000, 2), (90_000, 1)],
        };
        let of_move = [handover("s1", 3, "12"), handover("s1", 3, "10-11")];
        let others = [handover("s2", 3, "12"), handover("s1", 2, "12"), handover("s1", 3, "9")];
        let late = Handover { begun_at_us: 90_000_000, ..handover("s1", 3, "12") };
        let all: Vec<Handover> = of_move.into_iter().chain(others).chain([late]).collect();
        let held = Waited::of_move(&view, &all);
        assert_eq!((held.waited, held.replayed, held.refused), (8, 6, 2));
        assert_eq!([0.5, 0.99].map(|share| held.wait_ms(share)), [Some(30.0), Some(90.0)]);
        assert_eq!(Waited::default().wait_ms(0.5), None);
    }
}

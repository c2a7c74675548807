//! `shardctl reconcile`: lists what shards lost when their databases were accepted without something that was acknowledged, and
//! repairs transfers between shards.

use std::process::ExitCode;

use anyhow::ensure;

use super::{Context, verify};
use crate::{
    exit, output,
    reconcile::{
        self, Loss, LostTransfer, Report,
        repair::{self, Repair},
    },
    verify::Target,
};

const HELP: &str = "\
Run it after `shard-node accept --accept-loss` or `shardctl up --accept-loss`. Without --repair, it reads the databases of all shards and \
changes nothing. Transfers between shards are found by the evidence of the other shard; transfers within one shard leave no evidence, and \
are reported as a range of positions and times.

--repair books the missing side of each transfer between shards under the transfer's own id, through the nodes of the newest shard map. A \
side that the shard would refuse now is not booked, and is reported with the reason. A repetition is harmless. Metadata that were lost \
are not restored.

Exit codes: 0 nothing was lost, 3 something was lost, 4 a database or a node does not answer. With --repair: 0 no transfer between shards \
lacks a side, or with --dry-run would lack one; 3 some could not be repaired";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Report only what this shard lost
    #[arg(long, value_name = "SHARD")]
    shard: Option<String>,
    /// Book the missing sides of transfers between shards again
    #[arg(long)]
    repair: bool,
    /// Ask the shards what --repair would do, and book nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// A shard's database, instead of those of the cluster in --data-dir; give every shard of the cluster
    #[arg(long = "dsn", value_name = "SHARD=URL", value_parser = verify::parse_target)]
    targets: Vec<Target>,
}

pub async fn run(args: Args, context: &Context) -> anyhow::Result<ExitCode> {
    let targets = if args.targets.is_empty() { verify::cluster_targets(context)? } else { args.targets };
    if let Some(shard) = &args.shard {
        ensure!(targets.iter().any(|target| target.shard == *shard), "there is no shard {shard}");
    }
    let report = reconcile::reconcile(&targets).await?;
    let mut report = match &args.shard {
        Some(shard) => report.of_shard(shard),
        None => report,
    };
    if args.repair {
        repair::repair(&targets, &mut report, args.dry_run).await?;
    }
    if context.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    let is_whole = if args.repair { report.is_repaired() } else { !report.has_findings() };
    Ok(if is_whole { ExitCode::SUCCESS } else { exit::violation() })
}

fn print(report: &Report) -> anyhow::Result<()> {
    if !report.has_findings() {
        return output::data("no shard was accepted with a loss");
    }
    for loss in &report.losses {
        output::data(&sentence(loss))?;
    }
    if report.transfers.is_empty() {
        return output::data("\nno transfer between shards lacks one of its sides");
    }
    output::data("")?;
    let rows: Vec<[String; 9]> = report.transfers.iter().map(row).collect();
    output::table(["transfer", "lost on", "side", "evidence", "payer", "payee", "amount", "at", "repair"], &rows)?;
    let open = report.transfers.iter().filter(|transfer| transfer.repair.is_none());
    let mut remedies: Vec<(&str, &str)> = open.map(|transfer| (transfer.lost.name(), transfer.remedy)).collect();
    remedies.sort_unstable();
    remedies.dedup();
    output::data("")?;
    remedies.into_iter().try_for_each(|(side, remedy)| output::data(&format!("{side}: {remedy}")))
}

fn sentence(loss: &Loss) -> String {
    let positions = match (&loss.to_position, loss.bookings) {
        (Some(to), Some(bookings)) => {
            format!(
                "positions {} up to and not including {to} are missing, {bookings} bookings at most",
                loss.from_position
            )
        }
        _ => format!("positions from {} on are missing; no shard remembered how many", loss.from_position),
    };
    format!(
        "shard {}, incarnation {}: {positions}. They were booked after {} and before {}. Have clients send what they sent in this time again, \
         with the same ids",
        loss.shard, loss.incarnation, loss.last_left_at, loss.accepted_at
    )
}

fn row(transfer: &LostTransfer) -> [String; 9] {
    let repair = match &transfer.repair {
        None => String::new(),
        Some(Repair::WouldBeRepaired) => "would be repaired".to_owned(),
        Some(Repair::Repaired) => "repaired".to_owned(),
        Some(Repair::NotRepaired(reason)) => format!("not repaired: {reason}"),
    };
    [
        transfer.id.to_string(),
        transfer.lost_on.clone(),
        transfer.lost.name().to_owned(),
        transfer.evidence.clone(),
        transfer.payer.clone(),
        transfer.payee.clone(),
        format!("{} {}", transfer.amount, transfer.asset),
        transfer.at.clone(),
        repair,
    ]
}

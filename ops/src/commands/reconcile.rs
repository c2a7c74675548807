//! `shardctl reconcile`: lists what shards lost when their databases were accepted without something that was acknowledged.

use std::process::ExitCode;

use anyhow::ensure;

use super::{Context, verify};
use crate::{
    exit, output,
    reconcile::{self, Loss, LostTransfer, Report},
    verify::Target,
};

const HELP: &str = "\
Run it after `shard-node accept --accept-loss` or `shardctl up --accept-loss`. It reads the databases of all shards and changes nothing. \
Transfers between shards are found by the evidence of the other shard; transfers within one shard leave no evidence, and are reported as a \
range of positions and times.

Exit codes: 0 nothing was lost, 3 something was lost, 4 a database does not answer";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct Args {
    /// Report only what this shard lost
    #[arg(long, value_name = "SHARD")]
    shard: Option<String>,
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
    let report = match &args.shard {
        Some(shard) => report.of_shard(shard),
        None => report,
    };
    if context.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    Ok(if report.has_findings() { exit::violation() } else { ExitCode::SUCCESS })
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
    let rows: Vec<[String; 8]> = report.transfers.iter().map(row).collect();
    output::table(["transfer", "lost on", "side", "evidence", "payer", "payee", "amount", "at"], &rows)?;
    let mut remedies: Vec<(String, &str)> =
        report.transfers.iter().map(|transfer| (side(transfer), transfer.remedy)).collect();
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

fn side(transfer: &LostTransfer) -> String {
    match transfer.lost {
        reconcile::Side::Debit => "debit",
        reconcile::Side::Credit => "credit",
    }
    .to_owned()
}

fn row(transfer: &LostTransfer) -> [String; 8] {
    [
        transfer.id.to_string(),
        transfer.lost_on.clone(),
        side(transfer),
        transfer.evidence.clone(),
        transfer.payer.clone(),
        transfer.payee.clone(),
        format!("{} {}", transfer.amount, transfer.asset),
        transfer.at.clone(),
    ]
}

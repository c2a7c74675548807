//! `shardctl reconcile` lists what a shard lost when its database was accepted without acknowledged bookings, and repairs transfers between
//! shards.
//!
//! [`evidence`] reads the databases of all shards and changes nothing. A transfer between shards left evidence at the other shard, and is
//! reported by its id. A transfer within one shard left no evidence. [`Loss`] has the range of positions and times in which such transfers
//! were booked. [`repair`] books the missing side again if the evidence proves it. `docs/adr/0013` and `docs/adr/0016` explain all three.

mod evidence;
mod repair;

use std::process::ExitCode;

use anyhow::ensure;
use ledger::{AccountId, AssetCode, Refused, operation::Purpose};
use serde::Serialize;
use shard_database::record::Acceptance;
use telemetry::clock::format_rfc3339;
use uuid::Uuid;

use self::repair::Repair;
use crate::{
    context::Context,
    exit, output,
    verify::{self, Target},
};

const HELP: &str = "\
Run it after `shard-node accept --accept-loss` or `shardctl up --accept-loss`. Without --repair, it reads the databases of all shards and \
changes nothing. Transfers between shards are found by the evidence of the other shard; transfers within one shard leave no evidence, and \
are reported as a range of positions and times.

--repair books the missing side of each transfer between shards under the transfer's own id, through the nodes of the newest shard map. A \
side that the shard would refuse now is not booked, and is reported with the reason. A repetition is harmless. Lost metadata is not restored.

Exit codes: 0 nothing was lost, 3 something was lost, 4 a database or a node does not answer. With --repair: 0 no transfer between shards \
lacks a side, or with --dry-run would lack one; 3 some could not be repaired";

#[derive(clap::Args)]
#[command(after_help = HELP)]
pub struct ReconcileArgs {
    /// Report only what this shard lost
    #[arg(long, value_name = "SHARD")]
    shard: Option<String>,
    /// Book the missing sides of transfers between shards again
    #[arg(long)]
    repair: bool,
    /// Ask the shards what --repair would do, and book nothing
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Database of a shard, instead of the databases of the cluster in --data-dir; give every shard of the cluster
    #[arg(long = "dsn", value_name = "SHARD=URL", value_parser = verify::parse_target)]
    targets: Vec<Target>,
}

pub async fn run(args: ReconcileArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let targets = if args.targets.is_empty() { verify::cluster_targets(context)? } else { args.targets };
    if let Some(shard) = &args.shard {
        ensure!(targets.iter().any(|target| target.shard == *shard), "there is no shard {shard}");
    }
    let report = evidence::reconcile(&targets).await?;
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

/// The output of `shardctl reconcile --json`. The names are part of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReconcileReport {
    /// Every acceptance that gave up bookings, oldest first.
    pub losses: Vec<Loss>,
    /// Transfers between shards of which one side is missing.
    pub transfers: Vec<LostTransfer>,
}

/// One acceptance of a database that lacked acknowledged bookings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    pub shard: String,
    /// The incarnation that began.
    pub incarnation: i64,
    /// The first position that is missing.
    pub from_position: String,
    /// The position after the last one that is known to be missing; absent if no shard remembered how far the shard had come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_position: Option<String>,
    /// How many bookings of the shard are missing, at most; absent like `to_position`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bookings: Option<i64>,
    /// The time of the last remaining booking. The missing bookings were made after it, and before `accepted_at`.
    pub last_left_at: String,
    pub accepted_at: String,
    #[serde(skip)]
    last_left_us: i64,
}

/// A transfer of which one side is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostTransfer {
    pub id: Uuid,
    /// The shard that lost its side. Its slot may have moved to another shard since.
    pub lost_on: String,
    pub lost: Side,
    /// The shard that has the other side, and what that side shows.
    pub evidence: String,
    /// `payment`, `capture` or `reversal`. `payment_or_capture` if the evidence does not distinguish them.
    pub purpose: &'static str,
    pub payer: String,
    pub payee: String,
    pub asset: String,
    pub amount: String,
    /// The time of the evidence.
    pub at: String,
    pub remedy: &'static str,
    /// What [`repair::repair`] did. Absent before the repair.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    #[serde(skip)]
    terms: Terms,
}

/// The terms of a transfer that a repair needs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    payer: AccountId,
    payee: AccountId,
    asset: AssetCode,
    /// Minor units.
    amount: i64,
    purpose: Purpose,
    /// Why the transfer was refused, if the register of a refusal is missing.
    refused: Option<Refused>,
    /// The shard that answers for the missing side now.
    owner: String,
    /// The shard that has the evidence.
    evidence_on: String,
    /// Whether the missing side was decided again in another way, so that nothing can be booked under the id.
    is_taken: bool,
}

/// The side of a transfer that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The debit is missing: the payee has the money, and the payer still has it as well.
    Debit,
    /// The credit is missing: the payer has paid, and the payee has nothing.
    Credit,
    /// The register of a refusal is missing: the payer has its money back, and no register says why. No money is missing.
    Refusal,
}

impl Side {
    /// The role number of the booking that has this side: 1 for a transfer's first answer, 3 for its register.
    fn role(self) -> i16 {
        match self {
            Self::Debit => 1,
            Self::Credit | Self::Refusal => 3,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Debit => "debit",
            Self::Credit => "credit",
            Self::Refusal => "refusal",
        }
    }

    /// What the other shard shows.
    fn evidence(self) -> &'static str {
        match self {
            Self::Debit => "credited",
            Self::Credit => "posted",
            Self::Refusal => "rejected",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Debit => {
                "run `shardctl reconcile --repair`, or have the client send the transfer again with the same id: the payer is debited, and \
                 the payee is not credited twice"
            }
            Self::Credit => {
                "run `shardctl reconcile --repair`: the payer has paid, and the payee is credited under the transfer's id"
            }
            Self::Refusal => "run `shardctl reconcile --repair`: the refusal is recorded again, and no money moves",
        }
    }

    /// The judgement that follows from the booking that the shard has in place of the missing side.
    fn judge(self, kind: Option<i16>) -> Judgement {
        match (self, kind) {
            (_, None) => Judgement::Missing,
            (Self::Debit, Some(RESERVED)) | (Self::Credit, Some(CREDITED_KIND)) | (Self::Refusal, Some(_)) => {
                Judgement::There
            }
            (Self::Debit, Some(POSTED_KIND)) => Judgement::Taken(
                "the transfer was sent again after both accounts had come to one shard, and was posted a second time: the payee has the \
                 amount twice. Reverse one of the two, or settle it with the payee",
            ),
            (Self::Debit, Some(_)) => Judgement::Taken(
                "the transfer was sent again and refused: the payee has the money, and the payer was not debited. Settle it between the two \
                 under a new id",
            ),
            (Self::Credit, Some(_)) => Judgement::Taken(
                "the register was written again and refuses the credit: the payer has paid, and the payee has nothing. Pay the payee under a \
                 new id",
            ),
        }
    }
}

/// Whether the missing side is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Judgement {
    There,
    Missing,
    /// Another booking has taken its place. The text is the remedy.
    Taken(&'static str),
}

impl ReconcileReport {
    pub fn has_findings(&self) -> bool {
        !self.losses.is_empty() || !self.transfers.is_empty()
    }

    /// Whether every transfer between shards was repaired, or would be repaired after a dry run.
    pub fn is_repaired(&self) -> bool {
        self.transfers
            .iter()
            .all(|transfer| matches!(transfer.repair, Some(Repair::Repaired | Repair::WouldBeRepaired)))
    }

    /// The report without the losses of other shards.
    #[must_use]
    pub fn of_shard(mut self, shard: &str) -> Self {
        self.losses.retain(|loss| loss.shard == shard);
        self.transfers.retain(|transfer| transfer.lost_on == shard);
        self
    }
}

impl Loss {
    /// `None` if the acceptance gave up nothing, because the database was moved and complete. `last_left_us` is the time of the last booking
    /// before the acceptance.
    fn of(shard: &str, acceptance: &Acceptance, last_left_us: i64) -> Option<Self> {
        let Acceptance { incarnation, lost_from, began_at_us, .. } = *acceptance;
        let to = acceptance.acknowledged().filter(|to| *to > lost_from);
        if to.is_none() && !acceptance.admits_loss() {
            return None;
        }
        Some(Self {
            shard: shard.to_owned(),
            incarnation,
            from_position: lost_from.to_string(),
            to_position: to.map(|to| to.to_string()),
            bookings: to.map(|to| to - lost_from),
            last_left_at: format_rfc3339(last_left_us),
            accepted_at: format_rfc3339(began_at_us),
            last_left_us,
        })
    }
}

const POSTED_KIND: i16 = 11;
const RESERVED: i16 = 13;
const SETTLED: i16 = 21;
const CREDITED_KIND: i16 = 31;

fn print(report: &ReconcileReport) -> anyhow::Result<()> {
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

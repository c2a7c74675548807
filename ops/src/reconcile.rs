//! What a shard lost when its database was accepted without something that was acknowledged.
//!
//! [`reconcile`] reads the databases of all shards and changes nothing. A transfer between shards left evidence at the other
//! shard, and is reported by its id: [`missing`]. A transfer within one shard left none; [`Loss`] has the range of positions and
//! times in which it was booked. `docs/adr/0013` explains both.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ledger::{AccountId, Position, amount::format_minor};
use serde::Serialize;
use shard_database::{
    OwnedSlots,
    record::{self, Acceptance},
};
use sqlx::PgConnection;
use telemetry::clock::format_rfc3339;
use uuid::Uuid;

use crate::verify::{Target, connection, identities};

/// How much earlier than the last booking that is left, by the clocks of other shards, evidence may be dated. Nodes date their
/// entries within one second of the median of all clocks; ten times that costs nothing.
const CLOCK_MARGIN_US: i64 = 10_000_000;
/// Ids that one statement looks up.
const LOOKED_UP: usize = 5_000;

/// The output of `shardctl reconcile --json`. The names are part of the contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every acceptance that gave something up, oldest first.
    pub losses: Vec<Loss>,
    /// Transfers between shards of which one side is missing.
    pub transfers: Vec<LostTransfer>,
}

/// One acceptance of a database that lacked something.
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
    /// The time of the last booking that is left. What is missing was booked after it, and before `accepted_at`.
    pub last_left_at: String,
    pub accepted_at: String,
    #[serde(skip)]
    last_left_us: i64,
}

/// A transfer of which one side is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostTransfer {
    pub id: Uuid,
    /// The shard that lost its side.
    pub lost_on: String,
    pub lost: Side,
    /// The shard that has the other side, and what it says.
    pub evidence: String,
    pub payer: String,
    pub payee: String,
    pub asset: String,
    pub amount: String,
    /// The time of the evidence.
    pub at: String,
    pub remedy: &'static str,
}

/// The side of a transfer that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The payee has the money, and the payer has it, too.
    Debit,
    /// The payer has paid, and the payee has nothing.
    Credit,
}

impl Side {
    /// What a booking answers that has this side: 1 a transfer's first answer, 3 its register.
    fn role(self) -> i16 {
        match self {
            Self::Debit => 1,
            Self::Credit => 3,
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Self::Debit => {
                "have the client send the transfer again with the same id: the payer is debited, and the payee is not credited twice"
            }
            Self::Credit => {
                "the payer has paid and the payee was not credited: pay the payee the amount under a new id"
            }
        }
    }
}

impl Report {
    pub fn has_findings(&self) -> bool {
        !self.losses.is_empty() || !self.transfers.is_empty()
    }

    /// The same report without what other shards lost.
    #[must_use]
    pub fn of_shard(mut self, shard: &str) -> Self {
        self.losses.retain(|loss| loss.shard == shard);
        self.transfers.retain(|transfer| transfer.lost_on == shard);
        self
    }
}

impl Loss {
    /// `None` if the acceptance gave nothing up: the database was moved and complete. `last_left_us` is the time of the last booking
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

/// One side of a transfer between shards that a journal has, which implies the other side.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
struct Evidence {
    id: Uuid,
    payer: String,
    payee: String,
    asset: String,
    amount: i64,
    at_us: i64,
}

/// The sides that the evidence of one shard implies at one other shard, and which of them that shard has.
#[derive(Debug)]
struct Implied<'e> {
    side: Side,
    evidence_on: &'e str,
    other: &'e str,
    evidence: Vec<&'e Evidence>,
    /// The ids and payers of the sides that are there.
    there: HashSet<(Uuid, String)>,
}

/// The transfers whose implied side is not there, by id.
fn missing(implied: &[Implied<'_>], scales: &BTreeMap<String, u32>) -> Vec<LostTransfer> {
    let mut lost: BTreeMap<(Uuid, String, Side), LostTransfer> = BTreeMap::new();
    for Implied { side, evidence_on, other, evidence, there } in implied {
        for found in evidence.iter().filter(|found| !there.contains(&(found.id, found.payer.clone()))) {
            let says = match side {
                Side::Debit => "credited",
                Side::Credit => "posted",
            };
            let transfer = LostTransfer {
                id: found.id,
                lost_on: (*other).to_owned(),
                lost: *side,
                evidence: format!("{says} on {evidence_on}"),
                payer: found.payer.clone(),
                payee: found.payee.clone(),
                asset: found.asset.clone(),
                amount: format_minor(found.amount, scales.get(&found.asset).copied().unwrap_or_default()),
                at: format_rfc3339(found.at_us),
                remedy: side.remedy(),
            };
            lost.insert((found.id, found.payer.clone(), *side), transfer);
        }
    }
    lost.into_values().collect()
}

/// Compares all shards. `targets` must name every shard of the cluster.
///
/// # Errors
/// A database does not answer or is not the one of its shard, or slots move meanwhile.
pub async fn reconcile(targets: &[Target]) -> anyhow::Result<Report> {
    let numbers = identities::check(targets).await?;
    let mut connections = connection::connect_all(targets).await?;
    let compared = compare(targets, &numbers, &mut connections).await;
    connection::close_all(connections).await;
    compared
}

async fn compare(targets: &[Target], numbers: &[u16], connections: &mut [PgConnection]) -> anyhow::Result<Report> {
    let owned = connection::on_each(targets, connections, OwnedSlots::load).await?;
    let mut losses = Vec::new();
    for ((target, number), connection) in targets.iter().zip(numbers).zip(&mut *connections) {
        let read = read_losses(&target.shard, *number, connection).await;
        losses.extend(read.map_err(|error| connection::broken(&target.shard, error))?);
    }
    losses.sort_by(|one, other| one.accepted_at.cmp(&other.accepted_at));
    // Without a loss, no evidence is looked for: that is what `verify` does.
    let Some(since_us) = losses.iter().map(|loss| loss.last_left_us - CLOCK_MARGIN_US).min() else {
        return Ok(Report { losses, transfers: Vec::new() });
    };
    let lossy: BTreeSet<&str> = losses.iter().map(|loss| loss.shard.as_str()).collect();
    let credits =
        connection::on_each(targets, connections, async |connection| evidence(connection, CREDITED, since_us).await)
            .await?;
    let debits =
        connection::on_each(targets, connections, async |connection| evidence(connection, POSTED, since_us).await)
            .await?;
    let scales = connection::on_each(targets, connections, record::asset_scales).await?;
    let scales: BTreeMap<String, u32> = scales.into_iter().flatten().collect();

    let mut implied = Vec::new();
    for (other, other_target) in
        targets.iter().enumerate().filter(|(_, target)| lossy.contains(target.shard.as_str()))
    {
        for (index, target) in targets.iter().enumerate().filter(|(index, _)| *index != other) {
            for (side, found) in [(Side::Debit, &credits[index]), (Side::Credit, &debits[index])] {
                let here = |found: &&Evidence| is_evidence(found, side, &owned[index], &owned[other]);
                let evidence: Vec<&Evidence> = found.iter().filter(here).collect();
                let there = look_up(&mut connections[other], side, &evidence).await;
                let there = there.map_err(|error| connection::broken(&other_target.shard, error))?;
                implied.push(Implied {
                    side,
                    evidence_on: &target.shard,
                    other: &other_target.shard,
                    evidence,
                    there,
                });
            }
        }
    }
    let transfers = missing(&implied, &scales);
    let after = connection::on_each(targets, connections, OwnedSlots::load).await?;
    anyhow::ensure!(owned == after, "slots moved while the shards were read: run it again when no move cuts over");
    Ok(Report { losses, transfers })
}

/// Whether the shard of the evidence answers for it, and the other shard for the other side. A move leaves copies of bookings behind,
/// which are no evidence.
fn is_evidence(found: &Evidence, side: Side, own: &OwnedSlots, other: &OwnedSlots) -> bool {
    let (Ok(payer), Ok(payee)) = (AccountId::client(&found.payer), AccountId::client(&found.payee)) else {
        return false;
    };
    match side {
        Side::Debit => own.has(&payee) && other.has(&payer),
        Side::Credit => own.has(&payer) && other.has(&payee),
    }
}

/// Registers that say *credited* (kind 31).
const CREDITED: &str =
    "SELECT id, payer, payee, asset, amount, at_us FROM shardledger.journal WHERE kind = 31 AND at_us >= $1";
/// Transfers between shards that were settled as posted (kind 21).
const POSTED: &str =
    "SELECT id, payer, payee, asset, amount, at_us FROM shardledger.journal WHERE kind = 21 AND at_us >= $1";

async fn evidence(connection: &mut PgConnection, of: &'static str, since_us: i64) -> sqlx::Result<Vec<Evidence>> {
    sqlx::query_as(of).bind(since_us).fetch_all(connection).await
}

/// Which of the sides the shard has.
async fn look_up(
    connection: &mut PgConnection,
    side: Side,
    evidence: &[&Evidence],
) -> sqlx::Result<HashSet<(Uuid, String)>> {
    const THERE: &str = "SELECT j.id, j.payer FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::text[])) AS asked (id, payer) \
         JOIN shardledger.journal j ON j.id = asked.id AND j.payer = asked.payer COLLATE \"C\" AND j.role = $3";
    let mut there = HashSet::new();
    for asked in evidence.chunks(LOOKED_UP) {
        let (ids, payers): (Vec<Uuid>, Vec<&str>) = asked.iter().map(|one| (one.id, one.payer.as_str())).unzip();
        let found: Vec<(Uuid, String)> =
            sqlx::query_as(THERE).bind(ids).bind(payers).bind(side.role()).fetch_all(&mut *connection).await?;
        there.extend(found);
    }
    Ok(there)
}

async fn read_losses(shard: &str, number: u16, connection: &mut PgConnection) -> sqlx::Result<Vec<Loss>> {
    // The last booking of the shard itself before a position. Moved bookings have the positions of other shards.
    const LAST_LEFT: &str =
        "SELECT at_us FROM shardledger.journal WHERE position >= $1 AND position < $2 ORDER BY position DESC LIMIT 1";
    let mut losses = Vec::new();
    for acceptance in record::acceptances(connection).await? {
        let first = Position::first_of(number).0;
        let last_left: Option<i64> = sqlx::query_scalar(LAST_LEFT)
            .bind(first)
            .bind(acceptance.lost_from)
            .fetch_optional(&mut *connection)
            .await?;
        losses.extend(Loss::of(shard, &acceptance, last_left.unwrap_or_default()));
    }
    Ok(losses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptance(lost_from: i64, acknowledged: i64, reason: &str) -> Acceptance {
        Acceptance {
            incarnation: 2,
            lost_from,
            first: lost_from.max(acknowledged) + record::POSITIONS_SKIPPED,
            reason: reason.to_owned(),
            began_at_us: 5_000_000,
        }
    }

    #[test]
    fn a_loss_is_a_range_of_positions_and_times() {
        let loss = Loss::of("s0", &acceptance(100, 130, "accepted with a loss"), 1_000_000).unwrap();
        assert_eq!(
            (loss.from_position.as_str(), loss.to_position.as_deref(), loss.bookings),
            ("100", Some("130"), Some(30))
        );
        assert_eq!(loss.last_left_at, "1970-01-01T00:00:01.000000Z");
        assert_eq!(loss.accepted_at, "1970-01-01T00:00:05.000000Z");
    }

    #[test]
    fn a_loss_that_no_shard_remembered_has_no_end_and_a_move_is_no_loss() {
        let unknown = Loss::of("s0", &acceptance(100, 0, "accepted with a loss"), 0).unwrap();
        assert_eq!((unknown.from_position.as_str(), unknown.to_position, unknown.bookings), ("100", None, None));
        assert_eq!(Loss::of("s0", &acceptance(100, 100, "moved into another database"), 0), None);
        assert!(Loss::of("s0", &acceptance(100, 101, "moved into another database, with a loss"), 0).is_some());
    }

    fn found(id: u128) -> Evidence {
        Evidence {
            id: Uuid::from_u128(id),
            payer: "payer".to_owned(),
            payee: "payee".to_owned(),
            asset: "USD".to_owned(),
            amount: 1234,
            at_us: 7_000_000,
        }
    }

    #[test]
    fn a_transfer_is_lost_if_the_other_side_is_not_there() {
        let (first, second) = (found(1), found(2));
        let there = HashSet::from([(Uuid::from_u128(1), "payer".to_owned())]);
        let implied = |side, there: &HashSet<(Uuid, String)>| Implied {
            side,
            evidence_on: "s1",
            other: "s0",
            evidence: vec![&first, &second],
            there: there.clone(),
        };
        let scales = BTreeMap::from([("USD".to_owned(), 2)]);
        let lost = missing(&[implied(Side::Debit, &there)], &scales);
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].id, lost[0].lost, lost[0].lost_on.as_str()), (Uuid::from_u128(2), Side::Debit, "s0"));
        assert_eq!((lost[0].evidence.as_str(), lost[0].amount.as_str()), ("credited on s1", "12.34"));
        let both = missing(&[implied(Side::Credit, &HashSet::new()), implied(Side::Credit, &there)], &scales);
        assert_eq!(both.iter().map(|lost| lost.id.as_u128()).collect::<Vec<_>>(), [1, 2], "each id once");
        assert!(both.iter().all(|lost| lost.evidence == "posted on s1" && lost.remedy.contains("new id")));
        // The same id of another payer is another transfer.
        let other_payer =
            HashSet::from([(Uuid::from_u128(1), "other".to_owned()), (Uuid::from_u128(2), "payer".to_owned())]);
        assert_eq!(missing(&[implied(Side::Debit, &other_payer)], &scales)[0].id, Uuid::from_u128(1));
    }

    #[test]
    fn a_copy_that_a_move_left_behind_is_no_evidence() {
        let slots = |ids: &[&str]| OwnedSlots::new(1, ids.iter().map(|id| shard_map::slot_of(id).index()));
        let (payer, payee, none) = (slots(&["payer"]), slots(&["payee"]), slots(&[]));
        for (side, own, other, expected) in [
            (Side::Debit, &payee, &payer, true),
            (Side::Credit, &payer, &payee, true),
            (Side::Debit, &none, &payer, false),
            (Side::Credit, &none, &payee, false),
            (Side::Debit, &payee, &none, false),
            (Side::Credit, &payer, &none, false),
        ] {
            assert_eq!(is_evidence(&found(1), side, own, other), expected, "{side:?}");
        }
    }

    #[test]
    fn a_report_can_be_limited_to_one_shard() {
        let loss = Loss::of("s0", &acceptance(100, 130, "accepted with a loss"), 0).unwrap();
        let report = Report { losses: vec![loss], transfers: Vec::new() };
        assert!(report.has_findings() && report.clone().of_shard("s0").has_findings());
        assert!(!report.of_shard("s1").has_findings());
    }
}

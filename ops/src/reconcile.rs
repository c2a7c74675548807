//! What a shard lost when its database was accepted without something that was acknowledged.
//!
//! [`reconcile`] reads the databases of all shards and changes nothing. A transfer between shards left evidence at the other
//! shard, and is reported by its id: [`missing`]. A transfer within one shard left none; [`Loss`] has the range of positions and
//! times in which it was booked. [`repair`] books the missing side again where the evidence proves it. `docs/adr/0013` and
//! `docs/adr/0016` explain all three.

pub mod repair;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ledger::{
    AccountId, AssetCode, Position, Refusal, Refused, TransferId, amount::format_minor, operation::Purpose,
};
use serde::Serialize;
use shard_database::{
    OwnedSlots,
    journal::slot_column,
    record::{self, Acceptance},
};
use sqlx::PgConnection;
use telemetry::clock::format_rfc3339;
use uuid::Uuid;

use self::repair::Repair;
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
    /// The shard that lost its side. Its slot may have moved to another shard since.
    pub lost_on: String,
    pub lost: Side,
    /// The shard that has the other side, and what it says.
    pub evidence: String,
    /// `payment`, `capture` or `reversal`; `payment_or_capture` where the evidence does not tell them apart.
    pub purpose: &'static str,
    pub payer: String,
    pub payee: String,
    pub asset: String,
    pub amount: String,
    /// The time of the evidence.
    pub at: String,
    pub remedy: &'static str,
    /// What [`repair::repair`] did; absent before.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub repair: Option<Repair>,
    #[serde(skip)]
    terms: Terms,
}

/// What a repair needs to know of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    payer: AccountId,
    payee: AccountId,
    asset: AssetCode,
    /// Minor units.
    amount: i64,
    purpose: Purpose,
    /// Why the transfer was refused, where the register of a refusal is missing.
    refused: Option<Refused>,
    /// The shard that answers for the missing side now.
    owner: String,
    /// The shard that has the evidence.
    evidence_on: String,
    /// The missing side was decided again in another way, so that nothing can be booked under the id.
    is_taken: bool,
}

/// The side of a transfer that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The payee has the money, and the payer has it, too.
    Debit,
    /// The payer has paid, and the payee has nothing.
    Credit,
    /// The payer has its money back, and no register says why. No money is missing.
    Refusal,
}

impl Side {
    /// What a booking answers that has this side: 1 a transfer's first answer, 3 its register.
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

    /// What the other shard says.
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

    /// What follows from the booking that the shard has in place of the missing side.
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
    /// Another booking has taken its place; with the remedy.
    Taken(&'static str),
}

impl Report {
    pub fn has_findings(&self) -> bool {
        !self.losses.is_empty() || !self.transfers.is_empty()
    }

    /// Whether every transfer between shards was repaired, or would be by a dry run.
    pub fn is_repaired(&self) -> bool {
        self.transfers
            .iter()
            .all(|transfer| matches!(transfer.repair, Some(Repair::Repaired | Repair::WouldBeRepaired)))
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
    kind: i16,
    refusal: Option<i16>,
    side: Option<i16>,
    hold: Option<Uuid>,
    reverses: Option<Uuid>,
    whole: Option<bool>,
}

impl Evidence {
    /// The side that is implied.
    fn implies(&self) -> Side {
        match self.kind {
            CREDITED_KIND => Side::Debit,
            SETTLED => Side::Credit,
            _ => Side::Refusal,
        }
    }

    fn purpose_name(&self) -> &'static str {
        match (self.hold, self.reverses, self.kind) {
            (Some(_), ..) => "capture",
            (None, Some(_), _) => "reversal",
            // A register does not record that the transfer is a capture.
            (None, None, CREDITED_KIND) => "payment_or_capture",
            (None, None, _) => "payment",
        }
    }

    /// The purpose as far as the missing side needs it: a register has no use for the hold of a capture.
    fn purpose(&self) -> Purpose {
        let whole = self.whole.unwrap_or(false);
        self.reverses.map_or(Purpose::Payment, |of| Purpose::Reversal { of: TransferId(of), whole })
    }

    fn refused(&self) -> Option<Refused> {
        let refusal = Refusal::from_code(u8::try_from(self.refusal?).ok()?)?;
        let side = self.side.and_then(|side| ledger::Side::from_code(u8::try_from(side).ok()?));
        Some(Refused { refusal, side })
    }
}

/// The sides that the evidence of one shard implies at one other shard, and the bookings that this shard has in their place.
#[derive(Debug)]
struct Implied<'e> {
    side: Side,
    evidence_on: &'e str,
    /// The shard that answers for the implied side.
    other: &'e str,
    /// With the shard that lost the side, if it did.
    evidence: Vec<(&'e Evidence, &'e str)>,
    /// The kinds of the bookings that are there, by id and payer.
    there: HashMap<(Uuid, String), i16>,
}

/// The transfers whose implied side is not there, by id.
fn missing(implied: &[Implied<'_>], scales: &BTreeMap<String, u32>) -> anyhow::Result<Vec<LostTransfer>> {
    let mut lost: BTreeMap<(Uuid, String, Side), LostTransfer> = BTreeMap::new();
    for Implied { side, evidence_on, other, evidence, there } in implied {
        for (found, lost_on) in evidence {
            let key = (found.id, found.payer.clone());
            let (remedy, is_taken) = match side.judge(there.get(&key).copied()) {
                Judgement::There => continue,
                Judgement::Missing => (side.remedy(), false),
                Judgement::Taken(remedy) => (remedy, true),
            };
            let terms = Terms {
                payer: AccountId::client(&found.payer)?,
                payee: AccountId::client(&found.payee)?,
                asset: AssetCode::new(&found.asset)?,
                amount: found.amount,
                purpose: found.purpose(),
                refused: found.refused(),
                owner: (*other).to_owned(),
                evidence_on: (*evidence_on).to_owned(),
                is_taken,
            };
            let transfer = LostTransfer {
                id: found.id,
                lost_on: (*lost_on).to_owned(),
                lost: *side,
                evidence: format!("{} on {evidence_on}", side.evidence()),
                purpose: found.purpose_name(),
                payer: found.payer.clone(),
                payee: found.payee.clone(),
                asset: found.asset.clone(),
                amount: format_minor(found.amount, scales.get(&found.asset).copied().unwrap_or_default()),
                at: format_rfc3339(found.at_us),
                remedy,
                repair: None,
                terms,
            };
            lost.insert((found.id, found.payer.clone(), *side), transfer);
        }
    }
    Ok(lost.into_values().collect())
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
    let evidence =
        connection::on_each(targets, connections, async |connection| read_evidence(connection, since_us).await)
            .await?;
    let released = connection::on_each(targets, connections, released_slots).await?;
    let scales = connection::on_each(targets, connections, record::asset_scales).await?;
    let scales: BTreeMap<String, u32> = scales.into_iter().flatten().collect();

    // The slot of the missing side may have moved since the loss, also to the shard of the evidence: the shard that owns it now answers for
    // the side.
    let mut implied = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        for (side, other) in SIDES.into_iter().flat_map(|side| (0..targets.len()).map(move |other| (side, other))) {
            let of_pair =
                |found: &&Evidence| found.implies() == side && is_evidence(found, side, &owned[index], &owned[other]);
            let evidence: Vec<&Evidence> = evidence[index].iter().filter(of_pair).collect();
            if evidence.is_empty() {
                continue;
            }
            let other_shard = targets[other].shard.as_str();
            let there = look_up(&mut connections[other], side, &evidence).await;
            let there = there.map_err(|error| connection::broken(other_shard, error))?;
            let lost_on = |found: &Evidence| {
                let had_slot = |(candidate, released): (&Target, &BTreeSet<i32>)| {
                    let account = if side == Side::Debit { &found.payer } else { &found.payee };
                    let slot = AccountId::client(account).map_or(-1, |id| i32::from(slot_column(&id)));
                    lossy.contains(candidate.shard.as_str()) && released.contains(&slot)
                };
                if lossy.contains(other_shard) {
                    return other_shard;
                }
                let former = targets.iter().zip(&released).find(|pair| had_slot((pair.0, pair.1)));
                former.map_or(other_shard, |(former, _)| former.shard.as_str())
            };
            let evidence = evidence.into_iter().map(|found| (found, lost_on(found))).collect();
            implied.push(Implied { side, evidence_on: &target.shard, other: other_shard, evidence, there });
        }
    }
    let transfers = missing(&implied, &scales)?;
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
        Side::Credit | Side::Refusal => own.has(&payer) && other.has(&payee),
    }
}

const SIDES: [Side; 3] = [Side::Debit, Side::Credit, Side::Refusal];

// Kinds of bookings, as `ledger::BookingKind` numbers them.
const POSTED_KIND: i16 = 11;
const RESERVED: i16 = 13;
const SETTLED: i16 = 21;
const CREDITED_KIND: i16 = 31;

/// Registers that say *credited*, and settlements of transfers between shards with what their reserve says besides.
const EVIDENCE: &str = "SELECT id, payer, payee, asset, amount, at_us, kind, refusal, side, hold, reverses, whole \
       FROM shardledger.journal WHERE kind = 31 AND at_us >= $1 \
     UNION ALL SELECT s.id, s.payer, s.payee, s.asset, s.amount, s.at_us, s.kind, s.refusal, s.side, r.hold, r.reverses, r.whole \
       FROM shardledger.journal s LEFT JOIN shardledger.journal r ON r.id = s.id AND r.payer = s.payer AND r.role = 1 \
       WHERE s.kind IN (21, 22, 23) AND s.at_us >= $1";

async fn read_evidence(connection: &mut PgConnection, since_us: i64) -> sqlx::Result<Vec<Evidence>> {
    sqlx::query_as(EVIDENCE).bind(since_us).fetch_all(connection).await
}

/// The slots that a shard has given away.
async fn released_slots(connection: &mut PgConnection) -> sqlx::Result<BTreeSet<i32>> {
    const RELEASED: &str = "SELECT slot FROM shardledger.slot_ownership WHERE state = 2";
    let slots: Vec<i32> = sqlx::query_scalar(RELEASED).fetch_all(connection).await?;
    Ok(slots.into_iter().collect())
}

/// The kinds of the bookings that the shard has in place of the sides.
async fn look_up(
    connection: &mut PgConnection,
    side: Side,
    evidence: &[&Evidence],
) -> sqlx::Result<HashMap<(Uuid, String), i16>> {
    const THERE: &str = "SELECT j.id, j.payer, j.kind FROM ROWS FROM (pg_catalog.unnest($1::uuid[]), pg_catalog.unnest($2::text[])) AS asked (id, payer) \
         JOIN shardledger.journal j ON j.id = asked.id AND j.payer = asked.payer COLLATE \"C\" AND j.role = $3";
    let mut there = HashMap::new();
    for asked in evidence.chunks(LOOKED_UP) {
        let (ids, payers): (Vec<Uuid>, Vec<&str>) = asked.iter().map(|one| (one.id, one.payer.as_str())).unzip();
        let found: Vec<(Uuid, String, i16)> =
            sqlx::query_as(THERE).bind(ids).bind(payers).bind(side.role()).fetch_all(&mut *connection).await?;
        there.extend(found.into_iter().map(|(id, payer, kind)| ((id, payer), kind)));
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

    fn found(id: u128, kind: i16) -> Evidence {
        Evidence {
            id: Uuid::from_u128(id),
            payer: "payer".to_owned(),
            payee: "payee".to_owned(),
            asset: "USD".to_owned(),
            amount: 1234,
            at_us: 7_000_000,
            kind,
            refusal: None,
            side: None,
            hold: None,
            reverses: None,
            whole: None,
        }
    }

    #[test]
    fn a_transfer_is_lost_if_the_other_side_is_not_there() {
        let (first, second) = (found(1, CREDITED_KIND), found(2, CREDITED_KIND));
        let key = |id, payer: &str| (Uuid::from_u128(id), payer.to_owned());
        let there = HashMap::from([(key(1, "payer"), RESERVED)]);
        let implied = |side, there: &HashMap<(Uuid, String), i16>| Implied {
            side,
            evidence_on: "s1",
            other: "s0",
            evidence: vec![(&first, "s0"), (&second, "s2")],
            there: there.clone(),
        };
        let missing = |implied: &[Implied<'_>]| missing(implied, &BTreeMap::from([("USD".to_owned(), 2)])).unwrap();
        let lost = missing(&[implied(Side::Debit, &there)]);
        assert_eq!(lost.len(), 1);
        assert_eq!((lost[0].id, lost[0].lost, lost[0].lost_on.as_str()), (Uuid::from_u128(2), Side::Debit, "s2"));
        assert_eq!((lost[0].evidence.as_str(), lost[0].amount.as_str()), ("credited on s1", "12.34"));
        let none = HashMap::new();
        let both = missing(&[implied(Side::Credit, &none), implied(Side::Credit, &none)]);
        assert_eq!(both.iter().map(|lost| lost.id.as_u128()).collect::<Vec<_>>(), [1, 2], "each id once");
        assert!(both.iter().all(|lost| lost.evidence == "posted on s1" && lost.remedy.contains("--repair")));
        // The same id of another payer is another transfer.
        let other_payer = HashMap::from([(key(1, "other"), RESERVED), (key(2, "payer"), RESERVED)]);
        assert_eq!(missing(&[implied(Side::Debit, &other_payer)])[0].id, Uuid::from_u128(1));
    }

    #[test]
    fn a_side_whose_place_is_taken_is_reported_and_not_repaired() {
        for (side, kind, expected) in [
            (Side::Debit, Some(RESERVED), Some(false)),
            (Side::Debit, None, None),
            (Side::Debit, Some(12), Some(true)),
            (Side::Debit, Some(POSTED_KIND), Some(true)),
            (Side::Credit, Some(CREDITED_KIND), Some(false)),
            (Side::Credit, Some(32), Some(true)),
            (Side::Refusal, Some(32), Some(false)),
            (Side::Refusal, None, None),
        ] {
            let is_taken = match side.judge(kind) {
                Judgement::There => Some(false),
                Judgement::Missing => None,
                Judgement::Taken(_) => Some(true),
            };
            assert_eq!(is_taken, expected, "{side:?} {kind:?}");
        }
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
            assert_eq!(is_evidence(&found(1, SETTLED), side, own, other), expected, "{side:?}");
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

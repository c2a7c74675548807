//! Finds the missing sides of transfers on a shard by the evidence on the other shards.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ledger::{
    AccountId, AssetCode, Position, Refusal, Refused, TransferId, amount::format_minor, operation::Purpose,
};
use shard_database::{OwnedSlots, journal::slot_column, record};
use sqlx::PgConnection;
use telemetry::clock::format_rfc3339;
use uuid::Uuid;

use super::{CREDITED_KIND, Judgement, Loss, LostTransfer, ReconcileReport, SETTLED, Side, Terms};
use crate::verify::{Target, databases};

/// How much earlier than the last remaining booking evidence may be dated by the clocks of other shards. Nodes date their entries within one
/// second of the median of all clocks. Ten times that margin costs nothing.
const CLOCK_MARGIN_US: i64 = 10_000_000;
/// The most ids that one statement looks up.
const LOOKED_UP: usize = 5_000;

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

    /// The purpose as far as the missing side needs it. A register does not need the hold of a capture.
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
    /// The evidence, each with the shard that lost the side if the side is missing.
    evidence: Vec<(&'e Evidence, &'e str)>,
    /// The kinds of the bookings that exist on the other shard, by id and payer.
    there: HashMap<(Uuid, String), i16>,
}

/// The transfers whose implied side is missing, in the order of their ids.
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
/// A database does not answer or belongs to another shard, or slots move meanwhile.
pub async fn reconcile(targets: &[Target]) -> anyhow::Result<ReconcileReport> {
    let numbers = databases::check_identities(targets).await?;
    let mut connections = databases::connect_all(targets).await?;
    let compared = compare(targets, &numbers, &mut connections).await;
    databases::close_all(connections).await;
    compared
}

async fn compare(
    targets: &[Target],
    numbers: &[u16],
    connections: &mut [PgConnection],
) -> anyhow::Result<ReconcileReport> {
    let owned = databases::on_each(targets, connections, OwnedSlots::load).await?;
    let mut losses = Vec::new();
    for ((target, number), connection) in targets.iter().zip(numbers).zip(&mut *connections) {
        let read = read_losses(&target.shard, *number, connection).await;
        losses.extend(read.map_err(|error| databases::broken(&target.shard, error))?);
    }
    losses.sort_by(|one, other| one.accepted_at.cmp(&other.accepted_at));
    // Without a loss, no evidence is read, because `verify` compares all transfers.
    let Some(since_us) = losses.iter().map(|loss| loss.last_left_us - CLOCK_MARGIN_US).min() else {
        return Ok(ReconcileReport { losses, transfers: Vec::new() });
    };
    let lossy: BTreeSet<&str> = losses.iter().map(|loss| loss.shard.as_str()).collect();
    let evidence =
        databases::on_each(targets, connections, async |connection| read_evidence(connection, since_us).await)
            .await?;
    let released = databases::on_each(targets, connections, released_slots).await?;
    let scales = databases::on_each(targets, connections, record::asset_scales).await?;
    let scales: BTreeMap<String, u32> = scales.into_iter().flatten().collect();

    // The slot of the missing side may have moved since the loss, even to the shard of the evidence. The shard that owns the slot now answers
    // for the side.
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
            let there = there.map_err(|error| databases::broken(other_shard, error))?;
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
    let after = databases::on_each(targets, connections, OwnedSlots::load).await?;
    anyhow::ensure!(owned == after, "slots moved while the shards were read: run it again when no move cuts over");
    Ok(ReconcileReport { losses, transfers })
}

/// Whether the shard of the evidence owns the evidence, and the other shard owns the implied side. A move leaves copies of bookings behind,
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

// The kinds of bookings, numbered as in `ledger::BookingKind`.

/// The registers that say *credited*, and the settlements of transfers between shards with the additional columns of their reserves.
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
    // The last booking that the shard itself made before a position. Moved bookings have the positions of other shards.
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
    use shard_database::record::Acceptance;

    use super::*;
    use crate::reconcile::{POSTED_KIND, RESERVED};

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
        // The same id with another payer is another transfer.
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
        let report = ReconcileReport { losses: vec![loss], transfers: Vec::new() };
        assert!(report.has_findings() && report.clone().of_shard("s0").has_findings());
        assert!(!report.of_shard("s1").has_findings());
    }
}

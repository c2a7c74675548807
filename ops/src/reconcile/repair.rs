//! Books the missing sides of transfers between shards again, through the lanes of the shards.
//!
//! The evidence has all terms of the missing side, and every step is idempotent under the transfer's own id. A side that the shard would
//! refuse now is not booked, and nothing is stored ([`Operation::OrNothing`]).

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Context;
use identity::AssetScales;
use ledger::{
    Metadata, Refused, TransferId,
    operation::{Decide, Operation, Purpose, Settle, Transfer, Verdict},
    outcome::{Decided, Outcome, Reply, Settled, TransferAnswer, TransferOutcome, TransferState},
};
use serde::Serialize;
use shard_database::record;
use shard_map::ShardMap;
use sqlx::PgConnection;
use tonic::transport::Channel;
use uuid::Uuid;
use wire::{
    convert::{assets_to_wire, operation_to_wire},
    shard_node_client::ShardNodeClient,
};

use super::{LostTransfer, ReconcileReport, Side, Terms};
use crate::{
    exit::Unreachable,
    resharding,
    verify::{Target, databases},
};

/// The most operations of one call.
const AT_ONCE: usize = 500;
/// How long an operation may wait in a lane, in milliseconds.
const TIMEOUT_MS: u32 = 10_000;
/// How many times an operation without a definite answer is sent, and the pause before each time.
const ATTEMPTS: usize = 40;
const PAUSE: Duration = Duration::from_millis(250);
/// The digest under which the asset scales are declared to nodes.
const ASSETS: u64 = u64::MAX;

/// The outcome for a transfer. The names are part of `shardctl reconcile --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "repair", content = "reason", rename_all = "snake_case")]
pub enum Repair {
    /// The shard would accept the missing side. Only a dry run has this outcome.
    WouldBeRepaired,
    Repaired,
    /// Nothing was booked for this reason.
    NotRepaired(String),
}

/// Repairs the transfers of the report, and records the outcome for each transfer in the report. A dry run asks the shards and books nothing.
///
/// # Errors
/// A database or the node of a shard cannot be reached. Some transfers may have been repaired by then. A repetition finds them complete.
pub async fn repair(targets: &[Target], report: &mut ReconcileReport, dry_run: bool) -> anyhow::Result<()> {
    if report.transfers.is_empty() {
        return Ok(());
    }
    let mut connections = databases::connect_all(targets).await?;
    let facts = read_facts(targets, &mut connections, &report.transfers).await;
    databases::close_all(connections).await;
    let Facts { map, scales, held } = facts?;
    let mut lanes = Lanes { map, scales, open: BTreeMap::new() };

    let mut open = Vec::new();
    for (index, transfer) in report.transfers.iter_mut().enumerate() {
        let obstacle = match held.get(&index) {
            _ if transfer.terms.is_taken => Some(transfer.remedy.to_owned()),
            Some(hold) => Some(format!(
                "it may be a capture of hold {hold}, which is open: have the client send the capture again, or release the hold first"
            )),
            None => None,
        };
        match obstacle {
            Some(reason) => transfer.repair = Some(Repair::NotRepaired(reason)),
            None => open.push(index),
        }
    }
    let transfers = &mut report.transfers;
    let dry = |operation| Operation::DryRun(Box::new(operation));
    open = step(&mut lanes, transfers, open, |it| (&it.terms.owner, dry(first_step(it)))).await?;
    if dry_run {
        open.into_iter().for_each(|index| transfers[index].repair = Some(Repair::WouldBeRepaired));
        return Ok(());
    }
    open = step(&mut lanes, transfers, open, |it| (&it.terms.owner, executed(it))).await?;
    let (debits, done): (Vec<_>, Vec<_>) = open.into_iter().partition(|index| transfers[*index].lost == Side::Debit);
    done.into_iter().for_each(|index| transfers[index].repair = Some(Repair::Repaired));
    // The saga continues as usual: the register repeats its verdict, and the reserve is settled.
    let decided = step(&mut lanes, transfers, debits, |it| (&it.terms.evidence_on, decide(it))).await?;
    let settled = step(&mut lanes, transfers, decided, |it| (&it.terms.owner, settle(it))).await?;
    settled.into_iter().for_each(|index| transfers[index].repair = Some(Repair::Repaired));
    Ok(())
}

/// Takes one step of each of these transfers. Returns the transfers that can continue, and records why the others cannot.
async fn step(
    lanes: &mut Lanes,
    transfers: &mut [LostTransfer],
    open: Vec<usize>,
    of: impl Fn(&LostTransfer) -> (&String, Operation),
) -> anyhow::Result<Vec<usize>> {
    let mut by_shard: BTreeMap<String, Vec<(usize, Operation)>> = BTreeMap::new();
    for index in open {
        let (shard, operation) = of(&transfers[index]);
        by_shard.entry(shard.clone()).or_default().push((index, operation));
    }
    let mut on = Vec::new();
    for (shard, steps) in by_shard {
        for chunk in steps.chunks(AT_ONCE) {
            let operations: Vec<Operation> = chunk.iter().map(|(_, operation)| operation.clone()).collect();
            let judged = lanes.execute(&shard, &operations).await?;
            for ((index, _), judged) in chunk.iter().zip(judged) {
                match judged {
                    Ok(()) => on.push(*index),
                    Err(reason) => transfers[*index].repair = Some(Repair::NotRepaired(reason)),
                }
            }
        }
    }
    Ok(on)
}

// === operations ===

/// The operation that books the missing side.
fn first_step(lost: &LostTransfer) -> Operation {
    let Terms { payer, payee, asset, amount, purpose, .. } = &lost.terms;
    match lost.lost {
        // The metadata was lost with the reserve.
        Side::Debit => Operation::Transfer(Transfer {
            ordered_by: None,
            id: TransferId(lost.id),
            debit: payer.clone(),
            credit: payee.clone(),
            asset: *asset,
            amount: *amount,
            metadata: Metadata::empty(),
            purpose: *purpose,
            cross_shard: true,
            defer_insufficient: false,
            defer_limited: false,
        }),
        Side::Credit | Side::Refusal => decide(lost),
    }
}

/// The first step, executed only if the shard does not refuse it. The register of a refusal is executed in any case.
fn executed(lost: &LostTransfer) -> Operation {
    match lost.lost {
        Side::Debit | Side::Credit => Operation::OrNothing(Box::new(first_step(lost))),
        Side::Refusal => first_step(lost),
    }
}

fn decide(lost: &LostTransfer) -> Operation {
    let Terms { payer, payee, asset, amount, purpose, refused, .. } = &lost.terms;
    Operation::Decide(Decide {
        ordered_by: None,
        id: TransferId(lost.id),
        debit: payer.clone(),
        credit: payee.clone(),
        asset: *asset,
        amount: *amount,
        purpose: *purpose,
        presumed: *refused,
        defer_limited: false,
        patient: false,
    })
}

fn settle(lost: &LostTransfer) -> Operation {
    let Terms { payer, payee, asset, amount, purpose, .. } = &lost.terms;
    Operation::Settle(Settle {
        id: TransferId(lost.id),
        debit: payer.clone(),
        credit: payee.clone(),
        asset: *asset,
        amount: *amount,
        purpose: *purpose,
        reserved: true,
        verdict: Verdict::Credited,
    })
}

/// The meaning of an answer for a step.
#[derive(Debug, PartialEq, Eq)]
enum StepResult {
    Done,
    /// The answer is not definite, and the operation is sent again.
    Again(String),
    Refused(String),
}

fn read(operation: &Operation, reply: Reply) -> StepResult {
    let refused = |Refused { refusal, side }: Refused| {
        let side = match side {
            Some(ledger::Side::Debit) => " of the payer",
            Some(ledger::Side::Credit) => " of the payee",
            None => "",
        };
        StepResult::Refused(format!("{}{side}", refusal.as_str()))
    };
    let presumes = matches!(peeled(operation), Operation::Decide(Decide { presumed: Some(_), .. }));
    match reply {
        Reply::Outcome(Outcome::Transfer(outcome)) => match outcome {
            TransferOutcome::Done(TransferAnswer { state: TransferState::Rejected { refused: why, .. }, .. })
            | TransferOutcome::Done(TransferAnswer { presumed: Some(why), .. })
            | TransferOutcome::NotStored(why) => refused(why),
            TransferOutcome::Done(_) => StepResult::Done,
            // The client has sent the transfer again meanwhile, with the lost metadata.
            TransferOutcome::Mismatch { field: "metadata" } => StepResult::Done,
            TransferOutcome::Mismatch { field } => {
                StepResult::Refused(format!("the id was used again, for a transfer with another {field}"))
            }
            TransferOutcome::DebitNotFound => StepResult::Refused("account_not_found of the payer".to_owned()),
            TransferOutcome::HoldNotFound => StepResult::Refused("hold_not_found".to_owned()),
        },
        Reply::Outcome(Outcome::Decided(Decided { verdict: Verdict::Refused(_), .. })) if presumes => {
            StepResult::Done
        }
        Reply::Outcome(Outcome::Decided(Decided { verdict: Verdict::Refused(why), .. })) => refused(why),
        Reply::Outcome(
            Outcome::Decided(Decided { verdict: Verdict::Credited, .. })
            | Outcome::Settled(Settled { state: TransferState::Posted { .. }, .. }),
        ) => StepResult::Done,
        Reply::Outcome(Outcome::Deferred) => StepResult::Again("another step of it is under way".to_owned()),
        Reply::Outcome(Outcome::Undetermined(credits)) => {
            let credits: Vec<String> = credits.iter().map(ToString::to_string).collect();
            StepResult::Again(format!("it depends on transfers to {} that are under way", credits.join(", ")))
        }
        Reply::Outcome(Outcome::NotOwner(_)) => {
            StepResult::Refused("its slot has moved: run reconcile again".to_owned())
        }
        Reply::Outcome(Outcome::Illegal(why)) => StepResult::Refused(why),
        Reply::Outcome(other) => StepResult::Refused(format!("an unexpected answer: {other:?}")),
        Reply::NotExecuted { detail, .. } => StepResult::Again(detail),
        Reply::Unknown => StepResult::Again("the outcome of its commit is unknown: run reconcile again".to_owned()),
    }
}

fn peeled(operation: &Operation) -> &Operation {
    match operation {
        Operation::DryRun(inner) | Operation::OrNothing(inner) => peeled(inner),
        other => other,
    }
}

// === shards ===

/// The facts that the repair reads from the databases.
struct Facts {
    map: ShardMap,
    scales: AssetScales,
    /// An open hold that the lost side may capture, by the index of the transfer.
    held: HashMap<usize, Uuid>,
}

async fn read_facts(
    targets: &[Target],
    connections: &mut [PgConnection],
    transfers: &[LostTransfer],
) -> anyhow::Result<Facts> {
    const MAP: &str = "SELECT text FROM shardledger.known_map";
    let maps: Vec<String> = databases::on_each(targets, connections, async |connection| {
        sqlx::query_scalar(MAP).fetch_one(connection).await
    })
    .await?;
    let maps = maps.iter().map(|text| ShardMap::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let map = maps.into_iter().max_by_key(|map| map.version).context("no shard")?;
    let scales = databases::on_each(targets, connections, record::asset_scales).await?;
    let mut held = HashMap::new();
    for (target, connection) in targets.iter().zip(connections) {
        let asked: Vec<(usize, &LostTransfer)> = transfers
            .iter()
            .enumerate()
            .filter(|(_, it)| it.lost == Side::Debit && it.terms.owner == target.shard)
            .filter(|(_, it)| it.terms.purpose == Purpose::Payment)
            .collect();
        let found = open_holds(connection, &asked).await;
        held.extend(found.map_err(|error| databases::broken(&target.shard, error))?);
    }
    Ok(Facts { map, scales: scales.into_iter().flatten().collect(), held })
}

/// Finds open holds between the same accounts that are large enough, by the index of the transfer.
async fn open_holds(
    connection: &mut PgConnection,
    asked: &[(usize, &LostTransfer)],
) -> sqlx::Result<Vec<(usize, Uuid)>> {
    const HOLDS: &str = "SELECT DISTINCT ON (asked.place) asked.place, h.id \
         FROM ROWS FROM (pg_catalog.unnest($1::int8[]), pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]), \
           pg_catalog.unnest($4::text[]), pg_catalog.unnest($5::int8[])) AS asked (place, payer, payee, asset, amount) \
         JOIN shardledger.hold h ON h.payer = asked.payer COLLATE \"C\" AND h.amount - h.captured - h.capture_amount >= asked.amount \
         JOIN shardledger.journal j ON j.position = h.position AND j.payee = asked.payee COLLATE \"C\" AND j.asset = asked.asset COLLATE \"C\" \
         ORDER BY asked.place, h.position";
    let (mut places, mut payers, mut payees, mut assets, mut amounts) = (vec![], vec![], vec![], vec![], vec![]);
    for (place, transfer) in asked {
        places.push(i64::try_from(*place).unwrap_or(i64::MAX));
        payers.push(transfer.payer.as_str());
        payees.push(transfer.payee.as_str());
        assets.push(transfer.asset.as_str());
        amounts.push(transfer.terms.amount);
    }
    let query = sqlx::query_as(HOLDS).bind(places).bind(payers).bind(payees).bind(assets).bind(amounts);
    let found: Vec<(i64, Uuid)> = query.fetch_all(connection).await?;
    Ok(found.into_iter().filter_map(|(place, id)| Some((usize::try_from(place).ok()?, id))).collect())
}

/// The nodes that write for the shards. Each is connected when it is first needed.
struct Lanes {
    map: ShardMap,
    scales: AssetScales,
    open: BTreeMap<String, ShardNodeClient<Channel>>,
}

impl Lanes {
    /// Executes operations, and sends operations without a definite answer again. Returns for each operation the reason if it was not executed.
    async fn execute(&mut self, shard: &str, operations: &[Operation]) -> anyhow::Result<Vec<Result<(), String>>> {
        let mut judged: Vec<Option<StepResult>> = operations.iter().map(|_| None).collect();
        for attempt in 0..ATTEMPTS {
            let open: Vec<usize> = (0..judged.len())
                .filter(|index| matches!(judged[*index], None | Some(StepResult::Again(_))))
                .collect();
            if open.is_empty() {
                break;
            }
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let sent = open.iter().map(|index| operation_to_wire(&operations[*index], 0, TIMEOUT_MS)).collect();
            let replies = self.send(shard, sent).await?;
            for (index, reply) in open.into_iter().zip(replies) {
                judged[index] = Some(read(&operations[index], reply));
            }
        }
        let results = judged.into_iter().map(|read| match read {
            Some(StepResult::Done) => Ok(()),
            Some(StepResult::Again(reason) | StepResult::Refused(reason)) => Err(reason),
            None => Err("the shard gave no answer".to_owned()),
        });
        Ok(results.collect())
    }

    async fn send(&mut self, shard: &str, operations: Vec<wire::Operation>) -> anyhow::Result<Vec<Reply>> {
        let unreachable = |status: tonic::Status| Unreachable {
            what: format!("shard {shard}"),
            reason: format!("{}. Transfers may have been repaired: run it again", status.message()),
        };
        let mut node = match self.open.get(shard) {
            Some(node) => node.clone(),
            None => self.connect(shard).await?,
        };
        self.open.insert(shard.to_owned(), node.clone());
        let request = wire::ExecuteRequest { operations, traces: Vec::new(), assets_digest: ASSETS, sent_at_us: 0 };
        let answer = node.execute(request).await.map_err(unreachable)?.into_inner();
        answer.results.into_iter().map(|result| Ok(Reply::try_from(result)?)).collect()
    }

    /// Connects to the first node of the shard that writes.
    async fn connect(&self, shard: &str) -> anyhow::Result<ShardNodeClient<Channel>> {
        let found = self.map.shards.iter().find(|found| found.id == shard);
        let found = found.with_context(|| format!("the newest map has no shard {shard}"))?;
        let mut reasons = Vec::new();
        for url in &found.nodes {
            let asked = async {
                let mut node = ShardNodeClient::new(resharding::connect(url).await?)
                    .max_decoding_message_size(wire::MAX_MESSAGE_BYTES);
                let request = wire::IdentifyRequest {
                    assets: Some(assets_to_wire(ASSETS, &self.scales)),
                    ..wire::IdentifyRequest::expecting(self.map.cluster, shard, found.number, "shardctl reconcile")
                };
                let answer = node.identify(request).await?.into_inner();
                anyhow::Ok((node, answer))
            };
            match asked.await {
                Ok((node, answer))
                    if answer.refused.is_empty() && answer.writes.as_ref().is_some_and(|it| it.works) =>
                {
                    return Ok(node);
                }
                Ok((_, answer)) => {
                    let refused = answer.refused.into_iter().map(|it| identity::Disagreement::from(it).to_string());
                    let writes = answer.writes.into_iter().filter(|it| !it.works).map(|it| it.cause);
                    reasons.extend(refused.chain(writes));
                }
                Err(error) => reasons.push(format!("{error:#}")),
            }
        }
        Err(Unreachable { what: format!("the node of shard {shard}"), reason: reasons.join("; ") }.into())
    }
}

#[cfg(test)]
mod tests {
    use ledger::{AccountId, AssetCode, Refusal};

    use super::*;

    fn lost(side: Side) -> LostTransfer {
        LostTransfer {
            id: Uuid::from_u128(1),
            lost_on: "s0".to_owned(),
            lost: side,
            evidence: String::new(),
            purpose: "payment",
            payer: "payer".to_owned(),
            payee: "payee".to_owned(),
            asset: "USD".to_owned(),
            amount: "0.05".to_owned(),
            at: String::new(),
            remedy: "",
            repair: None,
            terms: Terms {
                payer: AccountId::client("payer").unwrap(),
                payee: AccountId::client("payee").unwrap(),
                asset: AssetCode::new("USD").unwrap(),
                amount: 5,
                purpose: Purpose::Payment,
                refused: (side == Side::Refusal).then(|| Refused::credit(Refusal::AccountClosed)),
                owner: "s0".to_owned(),
                evidence_on: "s1".to_owned(),
                is_taken: false,
            },
        }
    }

    fn decided(verdict: Verdict) -> Reply {
        Reply::Outcome(Outcome::Decided(Decided { verdict, at_us: 1, replayed: false }))
    }

    #[test]
    fn a_verdict_repairs_the_side_that_it_is_the_evidence_for() {
        let refused = || decided(Verdict::Refused(Refused::credit(Refusal::AccountClosed)));
        let credit = executed(&lost(Side::Credit));
        assert_eq!(read(&credit, decided(Verdict::Credited)), StepResult::Done);
        assert_eq!(read(&credit, refused()), StepResult::Refused("account_closed of the payee".to_owned()));
        assert_eq!(read(&executed(&lost(Side::Refusal)), refused()), StepResult::Done);
    }

    #[test]
    fn a_refused_reserve_is_named_and_one_that_the_client_has_sent_again_is_done() {
        let debit = executed(&lost(Side::Debit));
        let reply = |outcome| Reply::Outcome(Outcome::Transfer(outcome));
        let short = TransferOutcome::NotStored(Refused::debit(Refusal::InsufficientFunds));
        assert_eq!(read(&debit, reply(short)), StepResult::Refused("insufficient_funds of the payer".to_owned()));
        assert_eq!(read(&debit, reply(TransferOutcome::Mismatch { field: "metadata" })), StepResult::Done);
        let other = read(&debit, reply(TransferOutcome::Mismatch { field: "amount" }));
        assert!(matches!(other, StepResult::Refused(why) if why.contains("another amount")));
        assert!(matches!(read(&debit, Reply::Unknown), StepResult::Again(_)));
    }

    #[test]
    fn what_became_of_a_transfer_is_a_field_of_its_json() {
        let mut transfer = lost(Side::Debit);
        assert!(serde_json::to_value(&transfer).unwrap().get("repair").is_none());
        transfer.repair = Some(Repair::Repaired);
        assert_eq!(serde_json::to_value(&transfer).unwrap()["repair"], "repaired");
        transfer.repair = Some(Repair::NotRepaired("insufficient_funds".to_owned()));
        let json = serde_json::to_value(&transfer).unwrap();
        assert_eq!(
            (json["repair"].as_str(), json["reason"].as_str()),
            (Some("not_repaired"), Some("insufficient_funds"))
        );
    }
}

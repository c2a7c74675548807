//! Reversing a transfer, or part of it.

use axum::{extract::State, response::Response};
use ledger::{AssetRegistry, KeyName, Metadata, operation::Purpose, outcome::TransferState};
use utoipa::ToSchema;
use wire::convert::{account_id, asset, id_from_wire};

use super::{carry_out, view::TransferView};
use crate::{
    core::reply::NewTransfer,
    http::{
        Edge,
        access::Access,
        answer::{Scale, nonsense},
        body::Sent,
        context::RequestDeadline,
        parameters::{DebitParameter, IdPath},
        problem::Problem,
        schemas,
        stored::{self, FollowUp},
    },
};

/// What to reverse of a transfer.
#[derive(ToSchema)]
#[schema(as = NewReversal)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct ReversalBody {
    /// The reversal's own, as a transfer of the original's credit account. `Idempotency-Key` may stand for it.
    id: Option<schemas::TransferId>,
    /// All that is left to reverse, unless given.
    amount: Option<schemas::PositiveAmount>,
}

const REVERSAL_FIELDS: &[&str] = &["id", "amount"];

/// Reads a reversal. Without an id of its own it takes the one derived from `key`.
pub fn read_reversal(text: &str, assets: &AssetRegistry, key: Option<&str>) -> Result<FollowUp, Problem> {
    FollowUp::read(text, assets, REVERSAL_FIELDS, key, false)
}

/// Reverse a transfer: a new one in the opposite direction, up to what was not reversed yet.
///
/// The reversal is a transfer of the original's credit account, and its id belongs to that account. Without `amount`, it is
/// for what is left when the request comes in.
#[utoipa::path(
    post, path = "/v1/transfers/{id}/reverse", operation_id = "reverseTransfer", tag = "transfers",
    params(
        ("id" = schemas::TransferId, Path, description = "The transfer to reverse."),
        DebitParameter,
    ),
    request_body = Option<ReversalBody>,
    responses(
        (status = 201, description = "reversed", body = TransferView),
        (status = 200, description = "reversed by an earlier request with this id", body = TransferView),
        (status = 202, description = "the deadline passed while the reversal is under way; `Location` tells where to look", body = TransferView),
    ),
)]
pub async fn reverse(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
    sent: Sent,
) -> Result<Response, Problem> {
    let wanted = sent.follow_up(&edge, deadline, read_reversal).await?;
    let debit_given = debit.is_some();
    // A transfer that the key may not see is neither driven nor waited for, and does not make the id ambiguous.
    let sight = access.clone();
    let found = edge
        .detached_call("transfer to reverse", deadline, |core| async move {
            core.find_ended_transfer(id, debit.as_ref(), |found| sight.has_in_sight(found), deadline.0).await
        })
        .await
        .map_err(|problem| problem.with_transfer(id.0))?;
    let found = stored::begun_before(&edge, &wanted, found, deadline).await?;
    let original = stored::to_act_on(id, debit_given, found)?;
    let order = order(&edge, &original.record, &wanted, access.ordered_by())?;
    access.check_follow_up(id, &original, (&order).into())?;
    carry_out(&edge, &access, order, deadline).await
}

fn order(
    edge: &Edge,
    original: &wire::TransferRecord,
    wanted: &FollowUp,
    ordered_by: Option<KeyName>,
) -> Result<NewTransfer, Problem> {
    let debit = account_id(&original.credit, "transfer.credit").map_err(nonsense)?;
    let asset = asset(&original.asset).map_err(nonsense)?;
    let amount = wanted.amount(Scale::of(asset, &edge.assets)?.digits())?;
    Ok(NewTransfer {
        id: wanted.id(&debit),
        credit: account_id(&original.debit, "transfer.debit").map_err(nonsense)?,
        asset,
        amount: amount.unwrap_or_else(|| left_to_reverse(original)),
        metadata: Metadata::empty(),
        purpose: Purpose::Reversal { of: id_from_wire(&original.id).map_err(nonsense)?, whole: amount.is_none() },
        ordered_by,
        debit,
    })
}

/// Minor units; 0 where nothing was posted.
fn left_to_reverse(original: &wire::TransferRecord) -> i64 {
    if original.status == u32::from(TransferState::POSTED) { original.amount - original.reversed } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_posted_is_left_to_reverse() {
        for (status, reversed, left) in [
            (TransferState::POSTED, 0, 100),
            (TransferState::POSTED, 30, 70),
            (TransferState::POSTED, 100, 0),
            (TransferState::REJECTED, 0, 0),
        ] {
            let record = wire::TransferRecord { status: status.into(), amount: 100, reversed, ..Default::default() };
            assert_eq!(left_to_reverse(&record), left);
        }
    }
}

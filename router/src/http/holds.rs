//! `/v1/holds`: placing, reading, capturing and releasing a hold. [`view`] is how a hold is shown.

pub mod view;

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{
    AccountId, AssetRegistry, HoldStatus, KeyName, Metadata, Refusal, Refused, TransferId,
    operation::{PlaceHold, Purpose, ReleaseHold},
    outcome::HoldAnswer,
};
use utoipa::ToSchema;

use self::view::HoldView;
use super::{
    Edge,
    access::Access,
    answer::{Scale, json, made, path_of_hold, replay},
    body::Sent,
    context::RequestDeadline,
    effect,
    json::{Pointer, read_body, values::IdSource},
    parameters::{DebitParameter, DryRunParameter, IdPath},
    problem::Problem,
    schemas,
    stored::{self, FollowUp},
    transfers::{self, view::TransferView},
};
use crate::{
    core::reply::{FoundHold, HoldReply, NewTransfer, ReleaseReply},
    trace,
};

// === bodies ===

/// A hold to place.
#[derive(ToSchema)]
#[schema(as = NewHold)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct HoldBody {
    /// The header `Idempotency-Key` may stand for it.
    id: Option<schemas::TransferId>,
    debit: schemas::AccountId,
    /// Whom captures pay. Nothing of this account is looked at before.
    credit: schemas::AccountId,
    amount: schemas::PositiveAmount,
    asset: schemas::Asset,
    /// Without it the hold stays until it is captured or released.
    #[schema(minimum = 1, maximum = 31_622_400)]
    expires_in_s: Option<u32>,
    /// Captures of the hold carry it too.
    metadata: Option<schemas::Metadata>,
}

const HOLD_FIELDS: &[&str] = &["id", "debit", "credit", "amount", "asset", "expires_in_s", "metadata"];

/// What to capture of a hold.
#[derive(ToSchema)]
#[schema(as = NewCapture)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "it describes a body, which the reader takes member by member")]
pub struct CaptureBody {
    /// The capture's own, as a transfer of the hold's debit account. `Idempotency-Key` may stand for it.
    id: Option<schemas::TransferId>,
    /// All that remains, unless given.
    amount: Option<schemas::PositiveAmount>,
    /// Whether what then remains of the hold is released, which it is unless this is `false`: then it stays held for further captures.
    // No `default` in the description: some generators of clients make a member with a default mandatory.
    #[serde(rename = "final")]
    #[schema(required = false)]
    finalize: bool,
}

const CAPTURE_FIELDS: &[&str] = &["id", "amount", "final"];

/// Reads a hold to place. Without an id of its own it takes the one derived from `key`.
pub fn read_hold(text: &str, assets: &AssetRegistry, key: Option<&str>) -> Result<PlaceHold, Problem> {
    read_body(text, assets, |reader, node| {
        let object = reader.object(node, Pointer::Root, HOLD_FIELDS)?;
        let (_, terms) = reader.terms(object, IdSource::BodyOrKey(key));
        let expires_in_s = reader.expires_in_s(object);
        let metadata = reader.metadata(object);
        let terms = terms?;
        Some(PlaceHold {
            ordered_by: None,
            id: terms.id,
            debit: terms.debit,
            credit: terms.credit,
            asset: terms.asset,
            amount: terms.amount,
            expires_in_s: expires_in_s?,
            metadata: metadata?.unwrap_or_else(Metadata::empty),
        })
    })
}

/// Reads a capture. Without an id of its own it takes the one derived from `key`.
pub fn read_capture(text: &str, assets: &AssetRegistry, key: Option<&str>) -> Result<FollowUp, Problem> {
    FollowUp::read(text, assets, CAPTURE_FIELDS, key, true)
}

/// Checks the body of a release, which has no members.
pub fn read_release(text: &str, assets: &AssetRegistry) -> Result<(), Problem> {
    read_body(text, assets, |reader, node| reader.object(node, Pointer::Root, &[]).map(|_| ()))
}

// === requests ===

/// Place a hold: reserve an amount of the debit account for captures to come.
///
/// The credit side sees nothing of it. Without `id`, the header `Idempotency-Key` names it: the id is then derived from the
/// debit account and the key. With `dry_run=true` it answers what would become of the hold, and nothing is stored.
#[utoipa::path(
    post, path = "/v1/holds", operation_id = "createHold", tag = "holds",
    params(DryRunParameter),
    request_body = HoldBody,
    responses(
        (status = 201, description = "held", body = HoldView),
        (status = 200, description = "held by an earlier request with this id, and shown as it was then; or, in a dry run, to be held", body = HoldView),
    ),
)]
pub async fn place(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    DryRunParameter { dry_run }: DryRunParameter,
    sent: Sent,
) -> Result<Response, Problem> {
    let mut order = sent.order(&edge, deadline, read_hold).await?;
    order.ordered_by = access.ordered_by();
    access.check_order(&order)?;
    let marked = |problem: Problem| problem.with_hold(order.id.0);
    let reply = if dry_run {
        edge.core.dry_run_hold(&order, deadline.0).await.map_err(Problem::from)
    } else {
        let sent = order.clone();
        trace::names_hold(order.id);
        edge.detached_call("hold", deadline, |core| async move {
            let reply = core.place_hold(sent, deadline.0).await;
            effect::hold(&reply);
            reply
        })
        .await
    };
    let answer = reply.and_then(granted).map_err(marked)?;
    if dry_run && !answer.replayed {
        return Ok(json(StatusCode::OK, &HoldView::tried(&order, &answer, &edge.assets)?.shown_to(&access)));
    }
    let view = HoldView::placed(&order, &answer, &edge.assets)?.shown_to(&access);
    Ok(match answer.replayed {
        true => replay(&view),
        false => made(StatusCode::CREATED, &view, &path_of_hold(order.id, &order.debit)),
    })
}

/// The answer to a hold that was not refused.
fn granted(reply: HoldReply) -> Result<HoldAnswer, Problem> {
    match reply {
        HoldReply::Placed(HoldAnswer { refused: Some(refused), replayed, .. }) => {
            Err(Problem::refused(refused).replayed(replayed))
        }
        HoldReply::Placed(answer) => Ok(answer),
        HoldReply::Mismatch { field } => Err(Problem::mismatch("hold", field)),
        HoldReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
    }
}

/// Read a hold.
///
/// An id belongs to its debit account. With `debit` only that account's shard is asked; without it all are, and two holds
/// under one id are `ambiguous_id`.
#[utoipa::path(
    get, path = "/v1/holds/{id}", operation_id = "getHold", tag = "holds",
    params(
        ("id" = schemas::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "the hold", body = HoldView),
    ),
)]
pub async fn show(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
) -> Result<Response, Problem> {
    let found = edge
        .core
        .find_hold(id, debit.as_ref(), |debit| access.may_read_text(debit), deadline.0)
        .await
        .map_err(|error| Problem::from(error).with_hold(id.0))?;
    let found = stored::to_show(id, access.readable(found))?;
    Ok(json(StatusCode::OK, &HoldView::stored(&found.key, &found.hold, &edge.assets)?))
}

/// Capture a hold: post a transfer of what it holds, or of part of it.
///
/// The capture is a transfer of the hold's debit account, with an id of its own. Without `amount` it takes all that remains.
/// `final: false` keeps the rest held for further captures. A refused capture leaves the hold as it was.
#[utoipa::path(
    post, path = "/v1/holds/{id}/capture", operation_id = "captureHold", tag = "holds",
    params(
        ("id" = schemas::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    request_body = Option<CaptureBody>,
    responses(
        (status = 201, description = "captured", body = TransferView),
        (status = 200, description = "captured by an earlier request with this id", body = TransferView),
        (status = 202, description = "the deadline passed while the capture is under way; `Location` tells where to look", body = TransferView),
    ),
)]
pub async fn capture(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
    sent: Sent,
) -> Result<Response, Problem> {
    let wanted = sent.follow_up(&edge, deadline, read_capture).await?;
    let hold = to_act_on(&edge, &access, id, debit.as_ref(), Some(&wanted), deadline).await?;
    // A rejected hold is kept only for replays of its placing.
    if matches!(hold.hold.status, HoldStatus::Rejected(_)) {
        return Err(stored::not_found::<FoundHold>(id));
    }
    let order = order_of_capture(&edge, &hold, &wanted, access.ordered_by())?;
    trace::names_hold(id);
    access.check_follow_up(id, &hold, (&order).into())?;
    transfers::carry_out(&edge, &access, order, deadline).await.map_err(|problem| problem.with_hold(id.0))
}

fn order_of_capture(
    edge: &Edge,
    FoundHold { key, hold }: &FoundHold,
    wanted: &FollowUp,
    ordered_by: Option<KeyName>,
) -> Result<NewTransfer, Problem> {
    let amount = wanted.amount(Scale::of(hold.asset, &edge.assets)?.digits())?;
    Ok(NewTransfer {
        id: wanted.id(&key.debit),
        debit: key.debit.clone(),
        credit: hold.credit.clone(),
        asset: hold.asset,
        // The ledger knows at the moment of the capture what remains.
        amount: amount.unwrap_or(0),
        metadata: hold.metadata.clone(),
        purpose: Purpose::Capture { hold: key.id, whole: amount.is_none(), finalize: wanted.finalize },
        ordered_by,
    })
}

/// Release a hold: what remains of it is available again.
///
/// Sent again it answers the same and `Idempotent-Replayed: true`. It waits for a capture in flight. It needs no body; an empty JSON
/// object is accepted.
#[utoipa::path(
    post, path = "/v1/holds/{id}/release", operation_id = "releaseHold", tag = "holds",
    params(
        ("id" = schemas::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "released, now or by an earlier request", body = HoldView),
    ),
)]
pub async fn release(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
    Sent { headers, body }: Sent,
) -> Result<Response, Problem> {
    {
        let payload = edge.bodies.read_optional(&headers, body, deadline).await?;
        read_release(payload.text()?, &edge.assets)?;
    }
    let found = to_act_on(&edge, &access, id, debit.as_ref(), None, deadline).await?;
    access.check_release(id, &found)?;
    let release = ReleaseHold { key: found.key, ordered_by: access.ordered_by() };
    trace::names_hold(id);
    let marked = |problem: Problem| problem.with_hold(id.0);
    let reply = edge
        .detached_call("release", deadline, |core| async move {
            let reply = core.release_hold(release, deadline.0).await;
            effect::release(&reply);
            reply
        })
        .await
        .map_err(marked)?;
    match reply {
        ReleaseReply::Released { key, hold, replayed } => {
            let view = HoldView::stored(&key, &hold, &edge.assets)?.shown_to(&access);
            Ok(if replayed { replay(&view) } else { json(StatusCode::OK, &view) })
        }
        ReleaseReply::NotFound => Err(stored::not_found::<FoundHold>(id)),
        ReleaseReply::Refused(refused) => Err(marked(Problem::refused(refused))),
    }
}

/// The hold that a request captures or releases. `capture`: the capture as ordered.
async fn to_act_on(
    edge: &Edge,
    access: &Access,
    id: TransferId,
    debit: Option<&AccountId>,
    capture: Option<&FollowUp>,
    deadline: RequestDeadline,
) -> Result<FoundHold, Problem> {
    let sees = |debit: &str| AccountId::any(debit).is_ok_and(|debit| access.has_hold_in_sight(&debit));
    let found = edge.core.find_hold(id, debit, sees, deadline.0);
    let found = found.await.map_err(|error| Problem::from(error).with_hold(id.0))?;
    let found = access.in_sight(found);
    let found = match capture {
        Some(wanted) => stored::begun_before(edge, wanted, found, deadline).await?,
        None => found,
    };
    stored::to_act_on(id, debit.is_some(), found)
}

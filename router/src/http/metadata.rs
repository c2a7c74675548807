//! Erasing metadata: of an account, a transfer, a hold.
//!
//! Metadata may name a person. An erasure leaves amounts, balances and statements as they are (ADR 21).

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::{
    AccountId, Metadata, TransferKey,
    operation::{Erased, UpdateAccount},
    outcome::MetadataErased,
};
use wire::convert::account_id;

use super::{
    Edge,
    access::Access,
    accounts::{self, AccountView},
    answer::{json, nonsense},
    context::RequestDeadline,
    effect,
    holds::view::HoldView,
    parameters::{AccountPath, DebitParameter, IdPath, NoParameters},
    problem::Problem,
    schemas,
    stored::{self, Stored},
    transfers::view::TransferView,
};
use crate::{
    core::reply::{FoundHold, FoundTransfer},
    trace,
};

/// Erase the metadata of an account, present and past.
///
/// The request can be repeated. `PATCH` can set new metadata afterwards. The erasure is an `updated` entry of the account.
#[utoipa::path(
    delete, path = "/v1/accounts/{id}/metadata", operation_id = "eraseAccountMetadata", tag = "accounts",
    params(("id" = schemas::AccountId, Path, description = "The account.")),
    responses(
        (status = 200, description = "the account without its metadata", body = AccountView),
    ),
)]
pub async fn of_account(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    AccountPath(id): AccountPath,
    _: NoParameters,
) -> Result<Response, Problem> {
    access.check_change(&id, accounts::no_such_account)?;
    let update = UpdateAccount {
        id,
        status: None,
        overdraft: None,
        max_balance: None,
        metadata: Some(Metadata::erased()),
        ordered_by: access.ordered_by(),
    };
    accounts::change::carry_out(&edge, update, effect::account_erasure, deadline).await
}

/// Erase the metadata of a transfer.
///
/// The request can be repeated. The transfer stays. A later request with the transfer's id is a replay, whatever its metadata is.
#[utoipa::path(
    delete, path = "/v1/transfers/{id}/metadata", operation_id = "eraseTransferMetadata", tag = "transfers",
    params(
        ("id" = schemas::TransferId, Path, description = "The transfer."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "the transfer without its metadata", body = TransferView),
    ),
)]
pub async fn of_transfer(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
) -> Result<Response, Problem> {
    let marked = |problem: Problem| problem.with_transfer(id.0);
    let found = edge
        .core
        .find_transfer(id, debit.as_ref(), |found| access.may_read_transfer(found), deadline.0)
        .await
        .map_err(|error| marked(error.into()))?;
    let mut found = stored::to_act_on(id, debit.is_some(), found)?;
    let of_record = |text: &str| account_id(text, "transfer").map_err(nonsense);
    let key = TransferKey { id, debit: of_record(&found.record.debit)? };
    access.check_erasure::<FoundTransfer>(id, &key.debit)?;
    // A transfer between two shards has its metadata in one booking. A transfer within one shard may have a second copy of its booking, at the
    // shard of the credit account, since slots moved.
    let credit = if found.record.cross_shard { None } else { Some(of_record(&found.record.credit)?) };
    trace::names_transfer(id);
    if carry_out(&edge, &access, Erased::Transfer, key, credit, deadline).await.map_err(marked)?
        == MetadataErased::NotFound
    {
        return Err(stored::not_found::<FoundTransfer>(id));
    }
    found.record.metadata = String::new();
    Ok(json(StatusCode::OK, &TransferView::stored(found, &edge.assets)?.shown_to(&access)))
}

/// Erase the metadata of a hold.
///
/// The request can be repeated. A capture of the hold has a copy of the metadata: erase it as that of a transfer, by the capture's id.
#[utoipa::path(
    delete, path = "/v1/holds/{id}/metadata", operation_id = "eraseHoldMetadata", tag = "holds",
    params(
        ("id" = schemas::TransferId, Path, description = "The hold."),
        DebitParameter,
    ),
    responses(
        (status = 200, description = "the hold without its metadata", body = HoldView),
    ),
)]
pub async fn of_hold(
    State(edge): State<Edge>,
    access: Access,
    deadline: RequestDeadline,
    IdPath(id): IdPath,
    DebitParameter { debit }: DebitParameter,
) -> Result<Response, Problem> {
    let marked = |problem: Problem| problem.with_hold(id.0);
    let found = edge
        .core
        .find_hold(id, debit.as_ref(), |debit| access.may_read_text(debit), deadline.0)
        .await
        .map_err(|error| marked(error.into()))?;
    let mut found = stored::to_act_on(id, debit.is_some(), access.readable(found))?;
    access.check_erasure::<FoundHold>(id, &found.key.debit)?;
    trace::names_hold(id);
    let key = TransferKey { id, debit: found.key.debit.clone() };
    if carry_out(&edge, &access, Erased::Hold, key, None, deadline).await.map_err(marked)? == MetadataErased::NotFound
    {
        return Err(stored::not_found::<FoundHold>(id));
    }
    found.hold.metadata = Metadata::empty();
    Ok(json(StatusCode::OK, &HoldView::stored(&found.key, &found.hold, &edge.assets)?.shown_to(&access)))
}

async fn carry_out(
    edge: &Edge,
    access: &Access,
    of: Erased,
    key: TransferKey,
    credit: Option<AccountId>,
    deadline: RequestDeadline,
) -> Result<MetadataErased, Problem> {
    let ordered_by = access.ordered_by();
    edge.detached_call("erase metadata", deadline, |core| async move {
        let reply = core.erase_metadata(of, &key, credit.as_ref(), ordered_by, deadline.0).await;
        effect::erasure(&reply);
        reply
    })
    .await
}

impl Access {
    /// Checks whether the key may erase the metadata of a transfer or hold. The caller has checked that the key may read it.
    ///
    /// # Errors
    /// 403 unless the key may debit the debit account.
    fn check_erasure<T: Stored>(&self, id: ledger::TransferId, debit: &AccountId) -> Result<(), Problem> {
        match self.key() {
            Some(key) if !self.may_debit(debit) => {
                let detail = format!("the key {} may not erase metadata of transfers and holds of {debit}", key.name);
                Err(T::mark(Problem::new(super::problem::Code::NotPermitted, detail), id))
            }
            _ => Ok(()),
        }
    }
}

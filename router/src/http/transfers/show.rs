//! Reading a transfer by its id.

use axum::{extract::State, response::Response};
use http::StatusCode;
use ledger::AccountId;

use crate::{
    http::{
        Edge,
        context::RequestDeadline,
        path::TransferPath,
        problem::{Code, Problem, ProblemBody},
        query::Parameters,
        view::{self, transfer::TransferView},
    },
    service::FoundTransfers,
};

/// Read a transfer, with its steps where it crosses shards.
///
/// An id belongs to its debit account. With `debit` only that account's shard is asked; without it all are, and two
/// transfers under one id are `ambiguous_id`.
#[utoipa::path(
    get, path = "/v1/transfers/{id}", tag = "transfers",
    params(
        ("id" = uuid::Uuid, Path, description = "transfer id"),
        ("debit" = Option<String>, Query, description = "its debit account"),
    ),
    responses(
        (status = 200, description = "the transfer", body = TransferView),
        (status = 404, description = "`transfer_not_found`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 409, description = "`ambiguous_id`: say which `debit`", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "a shard that may hold it is out of reach", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn show(
    State(edge): State<Edge>,
    deadline: RequestDeadline,
    TransferPath(id): TransferPath,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let debit = match parameters.take("debit").map(|text| AccountId::client(&text)) {
        None => None,
        Some(Ok(debit)) => Some(debit),
        Some(Err(reason)) => {
            parameters.refuse(Code::InvalidId, "debit", &reason.to_string());
            None
        }
    };
    parameters.finish()?;
    let FoundTransfers { mut found, unreachable } = edge.router.find_transfer(id, debit.as_ref(), deadline.0).await?;
    if found.len() > 1 {
        let debits: Vec<_> = found.iter().map(|found| found.record.debit.as_str()).collect();
        let detail =
            format!("transfers of several accounts have this id; say which with ?debit=: {}", debits.join(", "));
        return Err(Problem::new(Code::AmbiguousId, detail).with_transfer(id.0));
    }
    match (found.pop(), unreachable.first()) {
        (Some(found), _) => Ok(view::json(StatusCode::OK, &TransferView::stored(found, &edge.rulebook.assets)?)),
        (None, None) => {
            Err(Problem::new(Code::TransferNotFound, format!("there is no transfer {}", id.0)).with_transfer(id.0))
        }
        (None, Some(shard)) => Err(Problem::new(
            Code::ShardUnavailable,
            "not found on the shards that answered, and not every shard did",
        )
        .with_shard(&**shard)
        .with_transfer(id.0)),
    }
}

//! The description of the API, generated from the handlers and the types they read and write.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use utoipa::OpenApi;

use super::{accounts, balances, holds, problem::Problem, transfers};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Shardledger",
        description = "A horizontally sharded ledger. Amounts are decimal strings, times RFC 3339, errors RFC 9457 problems \
            with a stable `code`, `retryable` and `executed`."
    ),
    paths(
        accounts::open,
        accounts::list,
        accounts::open_batch,
        accounts::show,
        accounts::change,
        accounts::entries,
        accounts::balance,
        balances::sum,
        transfers::order,
        transfers::order_batch,
        transfers::show,
        transfers::reverse,
        holds::place,
        holds::show,
        holds::capture,
        holds::release,
    )
)]
pub struct ApiDescription;

/// `GET /openapi.json`
pub async fn serve(_: super::NoParameters) -> Result<Response, Problem> {
    static TEXT: std::sync::LazyLock<Option<Bytes>> =
        std::sync::LazyLock::new(|| ApiDescription::openapi().to_json().ok().map(Bytes::from));
    let text = TEXT.as_ref().cloned().ok_or_else(Problem::internal)?;
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((headers, Body::from(text)).into_response())
}

//! Ordering one transfer.

use axum::{body::Body, extract::State, response::Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use ledger::{
    Refusal, Refused,
    outcome::{TransferAnswer, TransferState},
};

use crate::{
    http::{
        Edge,
        body::require_json,
        context::RequestDeadline,
        parse,
        path::escaped,
        problem::{Code, IDEMPOTENT_REPLAYED, Problem, ProblemBody},
        query::NoParameters,
        view::{self, transfer::TransferView},
    },
    service::{NewTransfer, TransferReply},
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_KEY_LEN: usize = 255;

/// Order a transfer.
///
/// Without `id`, the header `Idempotency-Key` names it: the id is then derived from the debit account and the key.
#[utoipa::path(
    post, path = "/v1/transfers", tag = "transfers",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable ASCII characters; unused where the body has an id"),
        ("X-Request-Timeout-Ms" = Option<u32>, Header, description = "deadline of the whole request, 5000 unless given, at most 30000"),
    ),
    request_body = parse::TransferBody,
    responses(
        (status = 201, description = "posted", body = TransferView),
        (status = 200, description = "posted by an earlier request with this id", body = TransferView),
        (status = 202, description = "the deadline passed while the transfer is under way; `Location` tells where to look", body = TransferView),
        (status = 400, description = "malformed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 422, description = "refused; the code says why, and it is the same for every replay", body = ProblemBody, content_type = "application/problem+json"),
        (status = 503, description = "not executed", body = ProblemBody, content_type = "application/problem+json"),
        (status = 504, description = "`outcome_unknown`: resend the same id", body = ProblemBody, content_type = "application/problem+json"),
    ),
)]
pub async fn order(
    State(edge): State<Edge>,
    deadline: RequestDeadline,
    _: NoParameters,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    require_json(&headers)?;
    let key = idempotency_key(&headers)?;
    let transfer = {
        let payload = edge.bodies.read_single(body, deadline).await?;
        parse::transfer(payload.text()?, &edge.rulebook, key)?
    };
    let order = transfer.clone();
    let reply = edge
        .detached("transfer", deadline, |router| async move { router.transfer(order, deadline.0).await })
        .await?
        .map_err(|error| Problem::from(error).with_transfer(transfer.id.0))?;
    answer(&edge, &transfer, reply).map_err(|problem| problem.with_transfer(transfer.id.0))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        // Whichever is taken, a proxy on the next attempt may take the other one and with it pay twice.
        return Err(Problem::header("Idempotency-Key", "Idempotency-Key is given twice"));
    }
    let printable =
        |text: &&str| (1..=MAX_KEY_LEN).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b));
    match value.to_str().ok().filter(printable) {
        Some(key) => Ok(Some(key)),
        None => Err(Problem::header("Idempotency-Key", "Idempotency-Key has 1 to 255 printable ASCII characters")),
    }
}

fn answer(edge: &Edge, order: &NewTransfer, reply: TransferReply) -> Result<Response, Problem> {
    match reply {
        TransferReply::Done(answer) | TransferReply::Pending(answer) => match answer.state {
            TransferState::Rejected { refused, .. } => Err(Problem::refused(refused).replayed(answer.replayed)),
            TransferState::Posted { .. } if answer.replayed => show(edge, order, &answer, StatusCode::OK),
            TransferState::Posted { .. } => show(edge, order, &answer, StatusCode::CREATED),
            TransferState::Pending => show(edge, order, &answer, StatusCode::ACCEPTED),
        },
        TransferReply::Mismatch { field } => {
            let detail = format!("the id belongs to a transfer with another {field}");
            Err(Problem::new(Code::IdempotencyMismatch, detail).with_field(field))
        }
        TransferReply::DebitNotFound => Err(Problem::refused(Refused::debit(Refusal::AccountNotFound))),
        TransferReply::HoldNotFound => Err(Problem::new(Code::HoldNotFound, "no shard holds this id")),
        TransferReply::NotStored(refused) => Err(Problem::refused(refused)),
    }
}

fn show(edge: &Edge, order: &NewTransfer, answer: &TransferAnswer, status: StatusCode) -> Result<Response, Problem> {
    let mut response = view::json(status, &TransferView::ordered(order, answer, &edge.rulebook.assets)?);
    let headers = response.headers_mut();
    if answer.replayed {
        headers.insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
    }
    if status != StatusCode::OK
        && let Ok(location) = HeaderValue::from_str(&location(order))
    {
        headers.insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The transfer's URL. With the debit account, so that it goes straight to its shard and is never ambiguous.
fn location(order: &NewTransfer) -> String {
    format!("/v1/transfers/{}?debit={}", order.id.0, escaped(&order.debit))
}

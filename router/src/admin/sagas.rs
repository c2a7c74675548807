//! `/admin/sagas`: cross-shard transfers in progress.

use std::time::Duration;

use axum::{
    extract::{Path, State},
    response::Response,
};
use http::StatusCode;
use ledger::{AssetCode, AssetRegistry, format_minor};
use serde::Serialize;
use telemetry::clock;
use tokio::time::Instant;
use uuid::Uuid;

use super::Admin;
use crate::{
    core::reply::{SagaFilter, SagaView},
    http::{
        answer::json,
        parameters::{NoParameters, Parameters, transfer_id},
        problem::{Code, Problem},
    },
};

const DEFAULT_LIMIT: u32 = 100;
const MAX_LIMIT: u32 = 1000;
/// Limit for all shards to answer, and for a saga to be driven to its end.
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct SagaRow {
    id: Uuid,
    /// `pending`, or `retried` once recovery has attempted it.
    state: &'static str,
    debit: String,
    credit: String,
    asset: String,
    /// `null` for an asset that this router's configuration does not declare.
    amount: Option<String>,
    source: String,
    destination: String,
    attempts: u32,
    created_at: String,
    age_s: i64,
    next_attempt_at: String,
}

#[derive(Serialize)]
struct Sagas {
    /// Oldest first.
    data: Vec<SagaRow>,
    /// True if some shard did not answer.
    partial: bool,
    unreachable: Vec<String>,
}

#[derive(Serialize)]
struct Retried {
    id: Uuid,
    /// One for each debit account that has a pending transfer under this id.
    sagas: usize,
}

/// `GET /admin/sagas?state&older_than_s&limit`
pub async fn list(State(admin): State<Admin>, mut parameters: Parameters) -> Result<Response, Problem> {
    let state = parameters.take_as("state", "pending or retried", |text| match text {
        PENDING => Some(PENDING),
        RETRIED => Some(RETRIED),
        _ => None,
    });
    let older_than_s = parameters.take_as("older_than_s", "a number of seconds", |text| text.parse::<u32>().ok());
    let limit = parameters.take_as("limit", "a number from 1 to 1000", |text| {
        text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit))
    });
    parameters.finish()?;

    let filter = SagaFilter {
        older_than: Duration::from_secs(older_than_s.unwrap_or(0).into()),
        limit: limit.unwrap_or(DEFAULT_LIMIT),
    };
    let (sagas, unreachable) = admin.core.sagas(filter, Instant::now() + TIMEOUT).await;
    let now_us = clock::now_us();
    let rows = sagas.into_iter().map(|saga| SagaRow::new(saga, now_us, &admin.assets));
    let data = rows.filter(|row| state.is_none_or(|state| row.state == state)).collect();
    let unreachable: Vec<_> = unreachable.iter().map(ToString::to_string).collect();
    Ok(json(StatusCode::OK, &Sagas { data, partial: !unreachable.is_empty(), unreachable }))
}

/// `POST /admin/sagas/{id}/retry`: retries the transfer now, regardless of its next attempt.
pub async fn retry(State(admin): State<Admin>, Path(id): Path<String>, _: NoParameters) -> Result<Response, Problem> {
    let id = transfer_id(&id)?;
    match admin.core.retry_saga(id, Instant::now() + TIMEOUT).await? {
        0 => Err(Problem::new(Code::SagaNotFound, "no transfer of this id is pending").with_transfer(id.0)),
        sagas => Ok(json(StatusCode::OK, &Retried { id: id.0, sagas })),
    }
}

const PENDING: &str = "pending";
const RETRIED: &str = "retried";

impl SagaRow {
    fn new(saga: SagaView, now_us: i64, assets: &AssetRegistry) -> Self {
        let SagaView { record, source, destination } = saga;
        let scale = AssetCode::new(&record.asset).ok().and_then(|asset| assets.scale(asset));
        let amount = scale.map(|scale| format_minor(record.amount, scale));
        Self {
            // Show even an invalid id: operators look here for what is broken.
            id: Uuid::from_slice(&record.id).unwrap_or_default(),
            state: if record.attempts == 0 { PENDING } else { RETRIED },
            debit: record.debit,
            credit: record.credit,
            asset: record.asset,
            amount,
            source: source.to_string(),
            destination: destination.to_string(),
            attempts: record.attempts,
            created_at: clock::format_rfc3339(record.created_at_us),
            age_s: (now_us - record.created_at_us).max(0) / 1_000_000,
            next_attempt_at: clock::format_rfc3339(record.next_attempt_us),
        }
    }
}

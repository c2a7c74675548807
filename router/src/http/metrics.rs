//! Names, labels and units of the edge's metrics, and the layer that records them.

use std::{future::Future, time::Duration};

use axum::{
    extract::{MatchedPath, Request},
    response::Response,
};
use http::{Method, StatusCode};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

/// Counter; labels `route` (the template), `method`, `status` (class).
pub const REQUESTS: &str = "shardledger_http_requests_total";
/// Histogram; the same labels.
pub const DURATION: &str = "shardledger_http_request_duration_seconds";
/// Gauge.
pub const IN_FLIGHT: &str = "shardledger_http_requests_in_flight";
/// Counter; label `reason`.
pub const REFUSED: &str = "shardledger_http_requests_refused_total";
/// Gauge; label `listener`.
pub const CONNECTIONS: &str = "shardledger_http_connections";
/// Counter; labels `listener`, `reason`.
pub const CONNECTIONS_CLOSED: &str = "shardledger_http_connections_closed_total";
/// Histogram: items in one batch request.
pub const BATCH_ITEMS: &str = "shardledger_http_batch_items";

/// Why the edge itself refused a request. Refusals of the core are counted there.
#[derive(Debug, Clone, Copy)]
pub enum RefusalReason {
    RateLimit,
    InFlight,
    BodyTooLarge,
    BodyTimeout,
    BodyMemory,
}

impl RefusalReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => "rate_limit",
            Self::InFlight => "in_flight",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyMemory => "body_memory",
        }
    }
}

pub fn describe() {
    describe_counter!(REQUESTS, "Requests answered.");
    describe_histogram!(DURATION, Unit::Seconds, "From the end of a request's head to the beginning of its answer.");
    describe_gauge!(IN_FLIGHT, "Requests being worked on.");
    describe_counter!(REFUSED, "Requests that the edge refused because a bound was hit.");
    describe_gauge!(CONNECTIONS, "Open connections.");
    describe_counter!(CONNECTIONS_CLOSED, "Connections that this side closed because a bound was hit.");
    describe_histogram!(BATCH_ITEMS, "Items in one batch request.");
}

pub fn count_refused(reason: RefusalReason) {
    counter!(REFUSED, "reason" => reason.as_str()).increment(1);
}

pub fn record_batch(items: usize) {
    // A batch has 10,000 items at most, which a float holds exactly.
    histogram!(BATCH_ITEMS).record(items as f64);
}

/// Counts and times requests. Within the routes, so that the template of the path is known.
pub async fn around<F: Future<Output = Response>>(request: Request, answer: impl FnOnce(Request) -> F) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = method_label(request.method());
    let _in_flight = InFlight::enter();
    let begun = Instant::now();
    let response = answer(request).await;
    // The templates are few and the methods known, so the labels are bounded.
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    record(route, method, response.status(), begun.elapsed());
    response
}

fn record(route: String, method: &'static str, status: StatusCode, elapsed: Duration) {
    let labels = [
        metrics::Label::new("route", route),
        metrics::Label::new("method", method),
        metrics::Label::new("status", status_class(status)),
    ];
    counter!(REQUESTS, labels.iter()).increment(1);
    histogram!(DURATION, labels.iter()).record(elapsed);
}

fn status_class(status: StatusCode) -> &'static str {
    match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Counted for as long as it lives, so that a request whose client hung up is counted out too.
struct InFlight(metrics::Gauge);

impl InFlight {
    fn enter() -> Self {
        let gauge = gauge!(IN_FLIGHT);
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

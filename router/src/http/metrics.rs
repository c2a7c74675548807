//! Names, labels and units of the edge's metrics, and the layer that records them.

use std::{future::Future, sync::OnceLock};

use axum::{
    extract::{MatchedPath, Request},
    response::Response,
};
use http::{Method, StatusCode};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
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
    Unauthenticated,
    /// The rate of one key.
    KeyRateLimit,
    RateLimit,
    InFlight,
    BodyTooLarge,
    BodyTimeout,
    BodyMemory,
}

impl RefusalReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::KeyRateLimit => "key_rate_limit",
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

/// The metrics of requests. The handles of a combination of labels are looked up at its first request.
#[derive(Debug)]
pub struct RequestMetrics {
    in_flight: Gauge,
    /// By the template of the path.
    routes: Vec<(&'static str, RouteMetrics)>,
    unmatched: RouteMetrics,
}

/// By method and status.
type RouteMetrics = [[OnceLock<(Counter, Histogram)>; STATUS_CLASSES.len()]; METHODS.len()];

const METHODS: [&str; 8] = ["GET", "POST", "PATCH", "HEAD", "PUT", "DELETE", "OPTIONS", "other"];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl RequestMetrics {
    /// `routes` are the templates of all paths, so the labels are bounded.
    pub fn new(routes: impl IntoIterator<Item = &'static str>) -> Self {
        Self {
            in_flight: gauge!(IN_FLIGHT),
            routes: routes.into_iter().map(|route| (route, RouteMetrics::default())).collect(),
            unmatched: RouteMetrics::default(),
        }
    }

    /// Counts and times requests. Within the routes, so that the template of the path is known.
    pub async fn around<F: Future<Output = Response>>(
        &self,
        request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Response {
        let (route, metrics) = self.of_route(request.extensions().get::<MatchedPath>());
        let method = method_index(request.method());
        let _in_flight = InFlight::enter(&self.in_flight);
        let begun = Instant::now();
        let response = answer(request).await;
        let status = status_class(response.status());
        let (requests, duration) = metrics[method][status].get_or_init(|| {
            let labels = [("route", route), ("method", METHODS[method]), ("status", STATUS_CLASSES[status])];
            (counter!(REQUESTS, &labels), histogram!(DURATION, &labels))
        });
        requests.increment(1);
        duration.record(begun.elapsed());
        response
    }

    fn of_route(&self, matched: Option<&MatchedPath>) -> (&'static str, &RouteMetrics) {
        let known = matched.and_then(|matched| self.routes.iter().find(|(route, _)| *route == matched.as_str()));
        known.map_or(("unmatched", &self.unmatched), |(route, metrics)| (*route, metrics))
    }
}

fn status_class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, STATUS_CLASSES.len()) - 1
}

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

/// Counted for as long as it lives, so that a request whose client hung up is counted out too.
struct InFlight<'a>(&'a Gauge);

impl<'a> InFlight<'a> {
    fn enter(gauge: &'a Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

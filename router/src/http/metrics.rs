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
/// Histogram; label `class`: `read`, `write` or `batch`.
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

/// Why this side closes connections.
pub const CLOSING_REASONS: [&str; 8] = [
    "plaintext",
    "tls_handshake",
    "gave_way",
    "idle_timeout",
    "header_timeout",
    "stalled",
    "max_connections",
    "network_share",
];

/// Why the edge itself refused a request. Refusals of the core are counted there.
#[derive(Debug, Clone, Copy)]
pub enum RefusalReason {
    Unauthenticated,
    /// The rate of one key.
    KeyRateLimit,
    /// Whole lists that are being sent to one caller.
    CallerStreams,
    /// Sums as of a time of one caller.
    CallerSums,
    RateLimit,
    InFlight,
    BodyTooLarge,
    BodyTimeout,
    BodyMemory,
    /// The memory for the bodies of one key.
    KeyBodyMemory,
}

impl RefusalReason {
    const ALL: [Self; 10] = [
        Self::Unauthenticated,
        Self::KeyRateLimit,
        Self::CallerStreams,
        Self::CallerSums,
        Self::RateLimit,
        Self::InFlight,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::BodyMemory,
        Self::KeyBodyMemory,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::KeyRateLimit => "key_rate_limit",
            Self::CallerStreams => "caller_streams",
            Self::CallerSums => "caller_sums",
            Self::RateLimit => "rate_limit",
            Self::InFlight => "in_flight",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyTimeout => "body_timeout",
            Self::BodyMemory => "body_memory",
            Self::KeyBodyMemory => "key_body_memory",
        }
    }
}

pub fn describe() {
    describe_counter!(REQUESTS, "Requests answered, by the template of the path, method, and class of the status.");
    describe_histogram!(
        DURATION,
        Unit::Seconds,
        "From the end of a request's head to the beginning of its answer, by class: read (GET), batch (a path that ends in :batch), write \
         (any other)."
    );
    describe_gauge!(IN_FLIGHT, "Requests being worked on.");
    describe_counter!(REFUSED, "Requests that the edge refused because a bound was hit.");
    describe_gauge!(CONNECTIONS, "Open connections.");
    describe_counter!(CONNECTIONS_CLOSED, "Connections that this side closed because a bound was hit.");
    describe_histogram!(BATCH_ITEMS, "Items in one batch request.");
    for reason in RefusalReason::ALL {
        counter!(REFUSED, "reason" => reason.as_str()).absolute(0);
    }
    for listener in ["http", "admin"] {
        gauge!(CONNECTIONS, "listener" => listener).set(0.0);
        for reason in CLOSING_REASONS {
            counter!(CONNECTIONS_CLOSED, "listener" => listener, "reason" => reason).absolute(0);
        }
    }
    gauge!(IN_FLIGHT).set(0.0);
    let _ = histogram!(BATCH_ITEMS);
}

pub fn count_refused(reason: RefusalReason) {
    counter!(REFUSED, "reason" => reason.as_str()).increment(1);
}

pub fn record_batch(items: usize) {
    // A batch has 10,000 items at most, which a float holds exactly.
    histogram!(BATCH_ITEMS).record(items as f64);
}

/// The metrics of requests.
#[derive(Debug)]
pub struct RequestMetrics {
    in_flight: Gauge,
    /// By the template of the path.
    routes: Vec<(&'static str, RouteMetrics)>,
    unmatched: RouteMetrics,
    /// By [`Class`].
    durations: [Histogram; CLASSES.len()],
}

/// By method and status. A handle is looked up when it is first needed.
type RouteMetrics = [[OnceLock<Counter>; STATUS_CLASSES.len()]; METHODS.len()];

const METHODS: [&str; 8] = ["GET", "POST", "PATCH", "HEAD", "PUT", "DELETE", "OPTIONS", "other"];
const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
/// The classes of status that this API answers.
const ANSWERED: [usize; 3] = [1, 3, 4];

/// Requests that take about the same time.
#[derive(Debug, Clone, Copy)]
enum Class {
    Read,
    Write,
    Batch,
}

const CLASSES: [(Class, &str); 3] = [(Class::Read, "read"), (Class::Write, "write"), (Class::Batch, "batch")];

impl Class {
    fn of(route: &str, method: &Method) -> Self {
        match *method {
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Read,
            _ if route.ends_with(":batch") => Self::Batch,
            _ => Self::Write,
        }
    }
}

impl RequestMetrics {
    /// `routes` are the templates of all paths, so the labels are bounded; `operations` are the methods that paths have.
    pub fn new<'o>(
        routes: impl IntoIterator<Item = &'static str>,
        operations: impl IntoIterator<Item = (&'o str, &'o str)>,
    ) -> Self {
        let metrics = Self {
            in_flight: gauge!(IN_FLIGHT),
            routes: routes.into_iter().map(|route| (route, RouteMetrics::default())).collect(),
            unmatched: RouteMetrics::default(),
            durations: CLASSES.map(|(_, class)| histogram!(DURATION, "class" => class)),
        };
        for (path, method) in operations {
            let method = METHODS.iter().position(|known| *known == method);
            let route = metrics.routes.iter().find(|(route, _)| *route == path);
            if let (Some(method), Some((route, of_route))) = (method, route) {
                for status in ANSWERED {
                    requests(of_route, route, method, status);
                }
            }
        }
        metrics
    }

    /// Counts and times requests. Within the routes, so that the template of the path is known.
    pub async fn around<F: Future<Output = Response>>(
        &self,
        request: Request,
        answer: impl FnOnce(Request) -> F,
    ) -> Response {
        let (route, metrics) = self.of_route(request.extensions().get::<MatchedPath>());
        let method = method_index(request.method());
        let class = Class::of(route, request.method());
        let _in_flight = Counted::enter(self.in_flight.clone());
        let begun = Instant::now();
        let response = answer(request).await;
        requests(metrics, route, method, status_class(response.status())).increment(1);
        self.durations[class as usize].record(begun.elapsed());
        response
    }

    fn of_route(&self, matched: Option<&MatchedPath>) -> (&'static str, &RouteMetrics) {
        let known = matched.and_then(|matched| self.routes.iter().find(|(route, _)| *route == matched.as_str()));
        known.map_or(("unmatched", &self.unmatched), |(route, metrics)| (*route, metrics))
    }
}

fn requests<'m>(of_route: &'m RouteMetrics, route: &'static str, method: usize, status: usize) -> &'m Counter {
    of_route[method][status].get_or_init(
        || counter!(REQUESTS, "route" => route, "method" => METHODS[method], "status" => STATUS_CLASSES[status]),
    )
}

fn status_class(status: StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(1, STATUS_CLASSES.len()) - 1
}

/// The method, if it is one of those that have a name in metrics and traces. Others are made up by clients, and have any length.
pub fn known_method(method: &Method) -> Option<&'static str> {
    METHODS[..METHODS.len() - 1].iter().copied().find(|known| *known == method.as_str())
}

fn method_index(method: &Method) -> usize {
    METHODS.iter().position(|known| *known == method.as_str()).unwrap_or(METHODS.len() - 1)
}

/// Counts a request or connection in a gauge for as long as this lives, so that a request whose client has hung up is counted out too.
pub struct Counted(Gauge);

impl Counted {
    pub fn enter(gauge: Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_a_client_made_up_has_no_name() {
        assert_eq!(known_method(&Method::PATCH), Some("PATCH"));
        for made_up in ["other", "_OTHER", "get", &"A".repeat(64_000)] {
            assert_eq!(known_method(&Method::from_bytes(made_up.as_bytes()).unwrap()), None);
        }
    }
}

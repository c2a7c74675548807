//! The HTTP edge: what API gateways talk to.
//!
//! The edge turns requests into the words of the ledger, and answers of the core into those of the contract. It decides nothing about money or
//! routing, and keeps no state of either. Start at [`routes`]: every route, and every layer around them.
//!
//! Each resource has its bodies, handlers and answers in one place: [`accounts`], [`balances`], [`entries`], [`transfers`], [`holds`],
//! [`history`], which lists transfers and holds of an account, and [`metadata`], which erases that of each of them. [`json`] reads bodies, [`parameters`] the rest of a request, [`answer`] writes
//! answers, and every error of every layer is a [`problem`].

mod access;
mod accounts;
mod admission;
pub mod answer;
mod balances;
mod body;
mod context;
mod effect;
mod entries;
mod history;
mod holds;
mod json;
mod metadata;
pub mod metrics;
mod openapi;
pub mod parameters;
pub mod problem;
mod schemas;
pub mod server;
mod stored;
mod streamed;
#[cfg(test)]
mod tests;
mod transfers;

use std::{future::Future, ops::Deref, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post},
};
use futures_util::FutureExt;
use ledger::AssetRegistry;
use telemetry::{Tasks, tasks::Panicked, traces};

use self::{
    admission::{Admission, Shares},
    body::BodyLimits,
    context::RequestDeadline,
    metrics::RequestMetrics,
    problem::{Code, Problem},
};
use crate::{
    config::Config,
    core::{Core, call::CallError},
    keyring::Keyring,
    trace,
};

pub use self::{
    context::{method_not_allowed, not_found},
    openapi::document as description,
};

/// What every handler works with. axum clones it several times for each request, so that a clone is one reference count.
#[derive(Clone)]
pub struct Edge(Arc<EdgeParts>);

pub struct EdgeParts {
    core: Arc<Core>,
    /// `None`: requests need no key.
    keyring: Option<Keyring>,
    assets: AssetRegistry,
    bodies: BodyLimits,
    admission: Admission,
    /// Whole lists that are being sent.
    streams: Shares,
    /// Sums as of a time that are read or wait for their turn.
    sums_at: Shares,
    tasks: Tasks,
}

/// The core answers by the deadline. If it has not answered by this much later, it has lost the request.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

impl Deref for Edge {
    type Target = EdgeParts;

    fn deref(&self) -> &EdgeParts {
        &self.0
    }
}

impl Edge {
    /// `tasks` are the requests, which a drain waits for. Without `keyring`, requests need no key.
    pub fn new(config: &Config, core: Arc<Core>, keyring: Option<Keyring>, tasks: Tasks) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(EdgeParts {
            core,
            keyring,
            assets: config.assets()?,
            bodies: BodyLimits::new(
                config.http.max_body_bytes,
                config.http.max_buffered_bytes,
                Duration::from_millis(config.http.body_timeout_ms),
            ),
            admission: Admission::new(config.http.max_requests_in_flight, &config.limits),
            streams: Shares::new(streamed::AT_ONCE),
            sums_at: Shares::new(balances::SUMS_AT_ONCE),
            tasks,
        })))
    }

    /// Runs one call of the core as [`Edge::detached`] does.
    async fn detached_call<F, T>(
        &self,
        name: &'static str,
        deadline: RequestDeadline,
        work: impl FnOnce(Arc<Core>) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, CallError>> + Send + 'static,
        T: Send + 'static,
    {
        Ok(self.detached(name, deadline, work).await??)
    }

    /// Runs work that moves money to its end. A client that hangs up drops the future of the handler, which must not cut the work off half-way:
    /// the work then continues as a task. No other place does this.
    async fn detached<F>(
        &self,
        name: &'static str,
        deadline: RequestDeadline,
        work: impl FnOnce(Arc<Core>) -> F,
    ) -> Result<F::Output, Problem>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let work = trace::within(trace::current(), work(Arc::clone(&self.core)));
        match tokio::time::timeout_at(deadline.0 + ANSWER_GRACE, self.tasks.run_to_end(name, work)).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(Panicked)) => Err(Problem::internal()),
            Err(_) => {
                tracing::error!(task = name, "the core did not answer by the deadline");
                Err(Problem::new(Code::OutcomeUnknown, "resend the same id to learn whether it took effect"))
            }
        }
    }
}

// === routes ===

/// The routes; [`openapi`] describes the same ones, which a test holds them to.
fn routes() -> [(&'static str, MethodRouter<Edge>); 18] {
    [
        ("/v1/accounts", post(accounts::open).get(accounts::list::list)),
        ("/v1/accounts:batch", post(accounts::open_batch)),
        ("/v1/accounts/{id}", get(accounts::show).patch(accounts::change::change)),
        ("/v1/accounts/{id}/metadata", delete(metadata::of_account)),
        ("/v1/accounts/{id}/entries", get(entries::list)),
        ("/v1/accounts/{id}/balance", get(balances::balance)),
        ("/v1/balances", get(balances::sum)),
        ("/v1/transfers", post(transfers::order).get(history::transfers)),
        ("/v1/transfers:batch", post(transfers::batch::order_batch)),
        ("/v1/transfers/{id}", get(transfers::show)),
        ("/v1/transfers/{id}/reverse", post(transfers::reversal::reverse)),
        ("/v1/transfers/{id}/metadata", delete(metadata::of_transfer)),
        ("/v1/holds", post(holds::place).get(history::holds)),
        ("/v1/holds/{id}", get(holds::show)),
        ("/v1/holds/{id}/capture", post(holds::capture)),
        ("/v1/holds/{id}/release", post(holds::release)),
        ("/v1/holds/{id}/metadata", delete(metadata::of_hold)),
        ("/openapi.json", get(openapi::serve)),
    ]
}

/// The public API.
pub fn api(edge: Edge) -> Router {
    let routes = routes();
    // The description has the methods of each path. It is a constant of the program, and a test reads it.
    let description = openapi::document().unwrap_or_default();
    let methods = |(path, of_path): (&String, &serde_json::Value)| {
        let methods = of_path.as_object().into_iter().flatten().map(|(method, _)| method.to_uppercase());
        methods.map(|method| (path.clone(), method)).collect::<Vec<_>>()
    };
    let operations: Vec<_> = description["paths"].as_object().into_iter().flatten().flat_map(methods).collect();
    let metrics = RequestMetrics::new(
        routes.iter().map(|(path, _)| *path),
        operations.iter().map(|(path, method)| (path.as_str(), method.as_str())),
    );
    let around = Arc::new(Layers { admission: edge.admission.clone(), keyring: edge.keyring.clone(), metrics });
    routes
        .into_iter()
        .fold(Router::new(), |router, (path, methods)| router.route(path, methods))
        .fallback(context::not_found)
        .method_not_allowed_fallback(context::method_not_allowed)
        .layer(from_fn_with_state(around, layers))
        .with_state(edge)
}

/// What the layers of all routes share.
struct Layers {
    admission: Admission,
    keyring: Option<Keyring>,
    metrics: RequestMetrics,
}

/// The layers around every route, outermost first. One function and not a stack of services, because axum clones and boxes
/// all that is below each layer for each request, which cost more than the handlers.
async fn layers(State(around): State<Arc<Layers>>, request: Request, next: Next) -> Response {
    // Outermost: it alone knows the request's id, which every answer and every problem carries.
    context::around(request, traces::recorder(), |request| {
        // Around everything that answers, refusals and panics included, so that all of them are counted.
        around.metrics.around(request, |mut request| async {
            // Before admission, so that requests that are refused for their key use up nothing that others need.
            if let Err(problem) = access::authenticate(around.keyring.as_ref(), &mut request) {
                return problem.into_response();
            }
            // What needs no key must not use it up, either. The description costs next to nothing.
            if access::is_public(&request) {
                return panics_answered(next.run(request)).await;
            }
            // Admission before parsing: a refusal must cost next to nothing.
            match around.admission.admit() {
                // A panic in a handler is answered 500, and affects no other request.
                Ok(_admitted) => panics_answered(next.run(request)).await,
                Err(problem) => problem.into_response(),
            }
        })
    })
    .await
}

/// The layers of the operators' listener: the same shape of errors, and nothing that could keep an operator out.
pub async fn operator_layers(request: Request, next: Next) -> Response {
    // Probes and scrapes would fill the traces.
    context::around(request, None, |request| panics_answered(next.run(request))).await
}

/// Answers a panic. The panic hook has logged it with its place. The client learns that there was an error and that money may have moved.
async fn panics_answered(answer: impl Future<Output = Response>) -> Response {
    // A handler shares nothing with other requests but what is made for it: locks, which do not poison what they guard, and
    // atomics.
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| Problem::internal().into_response())
}

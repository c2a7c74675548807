//! The HTTP edge: what API gateways talk to.
//!
//! It turns requests into the ledger's words and the core's answers into the contract's; it decides nothing about money or
//! routing, and keeps no state of either. Start at [`routes`]: every route, and every layer around them. Errors of all
//! layers are [`problem`]s; request bodies are read in [`parse`].

mod access;
mod accounts;
mod admission;
mod balances;
mod body;
mod context;
mod csv_table;
mod effect;
mod failure;
mod found;
mod history;
mod holds;
mod idempotency;
pub mod metrics;
mod openapi;
mod page;
mod parse;
mod path;
pub mod problem;
mod query;
mod routes;
pub mod server;
mod shares;
mod streamed;
#[cfg(test)]
mod tests;
mod transfers;
mod view;

use std::{future::Future, ops::Deref, sync::Arc, time::Duration};

use telemetry::{Tasks, tasks::Panicked};

use self::{
    admission::Admission,
    body::BodyLimits,
    context::RequestDeadline,
    parse::Rulebook,
    problem::{Code, Problem},
    shares::Shares,
};
use crate::{
    config::Config,
    keyring::Keyring,
    service::{CallError, Router},
    trace,
};

pub use context::{method_not_allowed, not_found};
pub use openapi::document as description;
pub use path::transfer_id;
pub use query::{NoParameters, Parameters};
pub use routes::{api, operator_layers};
pub use view::{json, position};

/// What every handler works with. axum clones it several times for each request, so a clone is one reference count.
#[derive(Clone)]
pub struct Edge(Arc<EdgeParts>);

pub struct EdgeParts {
    router: Router,
    /// `None`: requests need no key.
    keyring: Option<Keyring>,
    rulebook: Rulebook,
    bodies: BodyLimits,
    admission: Admission,
    /// Whole lists that are being sent.
    streams: Shares,
    /// Sums as of a time that are read or wait for their turn.
    sums_at: Shares,
    tasks: Tasks,
}

/// The core answers by the deadline. One that has not by this much later has lost the request.
const ANSWER_GRACE: Duration = Duration::from_secs(2);

impl Deref for Edge {
    type Target = EdgeParts;

    fn deref(&self) -> &EdgeParts {
        &self.0
    }
}

impl Edge {
    /// `tasks` are the requests, which a drain waits for. Without `keyring`, requests need no key.
    pub fn new(config: &Config, router: Router, keyring: Option<Keyring>, tasks: Tasks) -> anyhow::Result<Self> {
        Ok(Self(Arc::new(EdgeParts {
            router,
            keyring,
            rulebook: Rulebook::new(config.assets()?),
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

    /// Does what one call of the core does, as [`Edge::detached`].
    async fn detached_call<F, T>(
        &self,
        name: &'static str,
        deadline: RequestDeadline,
        work: impl FnOnce(Router) -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, CallError>> + Send + 'static,
        T: Send + 'static,
    {
        Ok(self.detached(name, deadline, work).await??)
    }

    /// Runs money work to its end, the only place where that is done: a client that hangs up drops the handler's future,
    /// which must not cut the work off half-way. The work then continues as a task.
    async fn detached<F>(
        &self,
        name: &'static str,
        deadline: RequestDeadline,
        work: impl FnOnce(Router) -> F,
    ) -> Result<F::Output, Problem>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let work = trace::within(trace::current(), work(self.router.clone()));
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

//! Every route of the public listener, and the layers around them.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use futures_util::FutureExt;
use telemetry::traces;

use super::{
    Edge, access, accounts, admission::Admission, balances, context, history, holds, metrics::RequestMetrics,
    openapi, problem::Problem, transfers,
};
use crate::keyring::Keyring;

/// The routes; [`openapi`] describes the same ones, which a test holds them to.
fn routes() -> [(&'static str, MethodRouter<Edge>); 15] {
    [
        ("/v1/accounts", post(accounts::open).get(accounts::list)),
        ("/v1/accounts:batch", post(accounts::open_batch)),
        ("/v1/accounts/{id}", get(accounts::show).patch(accounts::change)),
        ("/v1/accounts/{id}/entries", get(accounts::entries)),
        ("/v1/accounts/{id}/balance", get(accounts::balance)),
        ("/v1/balances", get(balances::sum)),
        ("/v1/transfers", post(transfers::order).get(history::transfers)),
        ("/v1/transfers:batch", post(transfers::order_batch)),
        ("/v1/transfers/{id}", get(transfers::show)),
        ("/v1/transfers/{id}/reverse", post(transfers::reverse)),
        ("/v1/holds", post(holds::place).get(history::holds)),
        ("/v1/holds/{id}", get(holds::show)),
        ("/v1/holds/{id}/capture", post(holds::capture)),
        ("/v1/holds/{id}/release", post(holds::release)),
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

/// The panic hook has logged it, with its place; the client learns that something broke and that money may have moved.
async fn panics_answered(answer: impl Future<Output = Response>) -> Response {
    // A handler shares nothing with other requests but what is made for it: locks, which do not poison what they guard, and
    // atomics.
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| Problem::internal().into_response())
}

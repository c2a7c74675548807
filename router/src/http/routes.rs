//! Every route of the public listener, and the layers around them.

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower_http::catch_panic::CatchPanicLayer;

use super::{Edge, accounts, admission, context, metrics, openapi, problem::Problem, transfers};

/// The routes; [`openapi`] describes the same ones, which a test holds them to.
fn routes() -> Router<Edge> {
    Router::new()
        .route("/v1/accounts", post(accounts::open))
        .route("/v1/accounts:batch", post(accounts::open_batch))
        .route("/v1/accounts/{id}", get(accounts::show).patch(accounts::change))
        .route("/v1/accounts/{id}/entries", get(accounts::entries))
        .route("/v1/accounts/{id}/balance", get(accounts::balance))
        .route("/v1/transfers", post(transfers::order))
        .route("/v1/transfers:batch", post(transfers::order_batch))
        .route("/v1/transfers/{id}", get(transfers::show))
        .route("/openapi.json", get(openapi::serve))
}

/// The public API.
pub fn api(edge: Edge) -> Router {
    let admission = edge.admission.clone();
    let routes = routes()
        .fallback(context::not_found)
        .method_not_allowed_fallback(context::method_not_allowed)
        .with_state(edge)
        // Admission before parsing: a refusal must cost next to nothing.
        .layer(from_fn_with_state(admission, admission::layer));
    let routes = guarded(routes);
    routes
        // Around everything that answers, refusals and panics included, so that all of them are counted.
        .layer(from_fn(metrics::layer))
        // Outermost: it alone knows the request's id, which every answer and every problem carries.
        .layer(from_fn(context::layer))
}

/// A panic in a handler is that request's 500 and nobody else's. Who may have moved money says so.
pub fn guarded(routes: Router) -> Router {
    routes.layer(CatchPanicLayer::custom(answer_panic))
}

fn answer_panic(_: Box<dyn std::any::Any + Send>) -> Response {
    // The panic hook has logged it, with its place.
    Problem::internal().into_response()
}

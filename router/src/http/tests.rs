//! The public listener, mostly without a shard behind it: everything that is answered before one is needed, and what a client
//! sees when none can be reached.

use std::path::Path;

use axum::{Router as Routes, body::Body, response::Response};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;
use shard_map::{Shard, ShardMap, SlotRange};
use tower::ServiceExt;

use super::*;
use crate::core::{fake_cluster::Cluster, routing::Routing};

const TRANSFER: &str = r#"{"id": "01890a5d-ac96-774b-bcce-b302099a8057", "debit": "alice", "credit": "bob",
    "amount": "12.34", "asset": "USD"}"#;

const HOLD: &str = r#"{"id": "01890a5d-ac96-774b-bcce-b302099a8057", "debit": "alice", "credit": "shop",
    "amount": "25.00", "asset": "USD", "expires_in_s": 3600}"#;
const CAPTURE: &str = "/v1/holds/01890a5d-ac96-774b-bcce-b302099a8057/capture";
const RELEASE: &str = "/v1/holds/01890a5d-ac96-774b-bcce-b302099a8057/release";
const REVERSE: &str = "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057/reverse";

/// Without a shard that could be reached.
fn api_with(settings: &str) -> Routes {
    // Port 1 of this machine refuses connections.
    let shard = Shard {
        id: "s0".to_owned(),
        number: 0,
        nodes: vec!["http://127.0.0.1:1".to_owned()],
        slots: vec![SlotRange::ALL],
    };
    let routing = Routing::fixed(ShardMap::new(shard_map::ClusterId::generate(), 1, vec![shard]).unwrap());
    let config = config(settings);
    let tasks = Tasks::new();
    let router = Core::start(&config.core(), routing, tasks.clone());
    api(Edge::new(&config, router, None, tasks).unwrap())
}

fn config(settings: &str) -> Config {
    let text = format!(
        "[http]\nlisten = \"127.0.0.1:0\"\n{settings}\n[admin]\nlisten = \"127.0.0.1:0\"\n[map]\npath = \"unused.toml\""
    );
    Config::parse(Path::new("router.toml"), &text).unwrap()
}

fn request(method: &str, path: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "x");
    let request = request.header(header::CONTENT_TYPE, "application/json");
    request.body(body.into()).unwrap()
}

async fn send(api: &Routes, request: Request<Body>) -> Response {
    api.clone().oneshot(request).await.unwrap()
}

async fn json_of(response: Response) -> Value {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

/// The problem in an answer, once its form is checked.
async fn problem_of(response: Response) -> Value {
    let status = response.status();
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let problem = json_of(response).await;
    assert_eq!(problem["status"], status.as_u16());
    assert_eq!(problem["request_id"], request_id);
    for member in ["type", "title", "detail", "instance", "code", "retryable", "executed"] {
        assert!(!problem[member].is_null(), "{member} in {problem}");
    }
    problem
}

async fn assert_problem(api: &Routes, request: Request<Body>, status: u16, code: &str) -> Value {
    let shown = format!("{} {}", request.method(), request.uri());
    let response = send(api, request).await;
    assert_eq!(response.status(), status, "{shown}");
    let problem = problem_of(response).await;
    assert_eq!(problem["code"], code, "{shown}: {problem}");
    problem
}

#[tokio::test]
async fn every_layer_answers_with_problems() {
    let api = api_with("max_body_bytes = 100000\nmax_buffered_bytes = 1000000");
    let long = "x".repeat(100_001);
    let slots_of_json = |count: usize| format!("{{\"transfers\": [{}]}}", vec!["{}"; count].join(","));
    for (request, status, code) in [
        (request("GET", "/", ""), 404, "not_found"),
        (request("GET", "/v1/holds/x/capture", ""), 405, "method_not_allowed"),
        (request("POST", "/v1/transfers/x/reverse", ""), 400, "invalid_id"),
        (request("DELETE", "/v1/accounts/alice", ""), 405, "method_not_allowed"),
        (request("DELETE", "/v1/accounts", ""), 405, "method_not_allowed"),
        (request("POST", "/v1/balances", ""), 405, "method_not_allowed"),
        (request("GET", "/v1/transfers:batch", ""), 405, "method_not_allowed"),
        (request("DELETE", "/v1/holds", ""), 405, "method_not_allowed"),
        (request("POST", "/v1/transfers", long.clone()), 413, "body_too_large"),
        (request("POST", "/v1/transfers", "x".repeat(65_537)), 413, "body_too_large"),
        (request("POST", "/v1/transfers:batch", long), 413, "body_too_large"),
        (request("POST", "/v1/transfers:batch", slots_of_json(10_001)), 413, "batch_too_large"),
        (request("POST", "/v1/transfers", "{"), 400, "invalid_json"),
        (request("POST", "/v1/transfers", Body::from(vec![0xff])), 400, "invalid_json"),
        (request("POST", "/v1/transfers?dry_run=maybe", TRANSFER), 400, "invalid_parameter"),
        (request("POST", "/v1/transfers:batch?dry_run=true", TRANSFER), 400, "unknown_parameter"),
        (request("POST", "/v1/holds?dry_run=", HOLD), 400, "invalid_parameter"),
        (request("POST", "/v1/holds", HOLD.replace("3600", "0")), 400, "invalid_expiry"),
        (request("POST", "/v1/holds", HOLD.replace("\"id\"", "\"memo\"")), 400, "unknown_field"),
        (request("GET", "/v1/holds/7", ""), 400, "invalid_id"),
        (request("GET", "/v1/holds/01890a5d-ac96-774b-bcce-b302099a8057?credit=shop", ""), 400, "unknown_parameter"),
        (request("POST", CAPTURE, ""), 400, "idempotency_required"),
        (request("POST", CAPTURE, "{"), 400, "invalid_json"),
        (request("POST", CAPTURE, "[]"), 400, "invalid_json"),
        (request("POST", CAPTURE, r#"{"amount": "0"}"#), 400, "invalid_amount"),
        (request("POST", RELEASE, r#"{"id": null}"#), 400, "unknown_field"),
        (request("POST", REVERSE, r#"{"final": true}"#), 400, "unknown_field"),
        (request("POST", &format!("{REVERSE}?debit=@x"), "{}"), 400, "invalid_id"),
        (request("POST", "/v1/transfers:batch?atomic=true", TRANSFER), 400, "unknown_parameter"),
        (request("GET", "/v1/accounts/a%20b", ""), 400, "invalid_id"),
        (request("GET", "/v1/accounts/%ff", ""), 400, "invalid_id"),
        (request("GET", "/v1/accounts/@in-transit:USD", ""), 400, "invalid_id"),
        (request("GET", "/v1/accounts/alice?x=1", ""), 400, "unknown_parameter"),
        (request("GET", "/v1/accounts/alice/entries?limit=0", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts/alice/entries?limit=501", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts/alice/entries?order=up", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts/alice/entries?cursor=x", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts/alice/entries?from=yesterday", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts/alice/balance?at=0", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts?limit=501", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts?prefix=a/b", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/accounts?cursor=x", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/balances?prefix=a%20b", ""), 400, "invalid_parameter"),
        (request("GET", "/v1/balances?limit=1", ""), 400, "unknown_parameter"),
        (request("GET", "/v1/transfers/7", ""), 400, "invalid_id"),
        (request("GET", "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057?debit=a/b", ""), 400, "invalid_id"),
        (request("PATCH", "/v1/accounts/alice", "{}"), 400, "invalid_json"),
    ] {
        assert_problem(&api, request, status, code).await;
    }
}

#[tokio::test]
async fn a_405_says_what_is_allowed() {
    let api = api_with("");
    let response = send(&api, request("DELETE", "/v1/accounts/alice", "")).await;
    let allowed = response.headers()[header::ALLOW].to_str().unwrap();
    assert!(allowed.contains("GET") && allowed.contains("PATCH"), "{allowed}");
    problem_of(response).await;
}

#[tokio::test]
async fn media_types_are_required() {
    let api = api_with("");
    for (path, media_type) in [
        ("/v1/transfers", "text/plain"),
        ("/v1/transfers", "application/x-ndjson"),
        ("/v1/accounts", "application/x-www-form-urlencoded"),
        ("/v1/accounts:batch", "application/x-ndjson"),
        ("/v1/transfers:batch", "text/csv"),
        ("/v1/holds", "text/plain"),
        (CAPTURE, "text/plain"),
        (RELEASE, "text/plain"),
        (REVERSE, "application/x-ndjson"),
    ] {
        let mut request = request("POST", path, TRANSFER);
        request.headers_mut().insert(header::CONTENT_TYPE, media_type.parse().unwrap());
        assert_problem(&api, request, 415, "unsupported_media_type").await;
    }
}

#[tokio::test]
async fn headers_are_checked_and_returned() {
    let api = api_with("");
    let with = |name: &'static str, value: &str| {
        let mut request = request("POST", "/v1/transfers", TRANSFER.replace("\"id\"", "\"memo\""));
        request.headers_mut().insert(name, value.parse().unwrap());
        request
    };
    let problem = assert_problem(&api, with("x-request-timeout-ms", "soon"), 400, "invalid_parameter").await;
    assert_eq!(problem["errors"][0]["header"], "X-Request-Timeout-Ms");
    let problem = assert_problem(&api, with("idempotency-key", &"k".repeat(256)), 400, "invalid_parameter").await;
    assert_eq!(problem["errors"][0]["header"], "Idempotency-Key");

    let problem = assert_problem(&api, with("x-request-id", "mine-1"), 400, "unknown_field").await;
    assert_eq!(problem["request_id"], "mine-1");
    assert_eq!(problem["instance"], "/v1/transfers");
    assert_eq!(problem["executed"], false);
    let pointers: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|e| &e["pointer"]).collect();
    assert!(pointers.contains(&&Value::from("/memo")) && pointers.contains(&&Value::from("/id")), "{pointers:?}");
}

#[tokio::test]
async fn a_shard_out_of_reach_is_told_and_nothing_was_executed() {
    let api = api_with("");
    for request in [
        request("POST", "/v1/transfers", TRANSFER),
        request("POST", "/v1/accounts", r#"{"id": "alice", "asset": "USD"}"#),
        request("PATCH", "/v1/accounts/alice", r#"{"status": "frozen"}"#),
        request("GET", "/v1/accounts/alice", ""),
        request("GET", "/v1/accounts/alice/entries?limit=5&order=asc&from=2026-01-01T00:00:00Z", ""),
        request("GET", "/v1/accounts/alice/balance", ""),
        request("GET", "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057", ""),
        request("GET", "/v1/transfers/01890a5d-ac96-774b-bcce-b302099a8057?debit=alice", ""),
        request("POST", "/v1/transfers?dry_run=true", TRANSFER),
        request("POST", REVERSE, r#"{"id": "01890a5d-ac96-774b-bcce-b302099a8058"}"#),
        request("POST", "/v1/holds", HOLD),
        request("POST", "/v1/holds?dry_run=true", HOLD),
        request("GET", "/v1/holds/01890a5d-ac96-774b-bcce-b302099a8057", ""),
        request("POST", CAPTURE, r#"{"id": "01890a5d-ac96-774b-bcce-b302099a8058"}"#),
        request("POST", &format!("{CAPTURE}?debit=alice"), r#"{"id": "01890a5d-ac96-774b-bcce-b302099a8058"}"#),
        request("POST", RELEASE, ""),
    ] {
        let mut request = request;
        request.headers_mut().insert("x-request-timeout-ms", "30000".parse().unwrap());
        let shown = format!("{} {}", request.method(), request.uri());
        let response = send(&api, request).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{shown}");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
        let problem = problem_of(response).await;
        assert_eq!(
            (&problem["code"], &problem["executed"]),
            (&"shard_unavailable".into(), &false.into()),
            "{problem}"
        );
        assert_eq!(problem["retryable"], true);
    }
}

#[tokio::test]
async fn a_batch_says_of_each_item_what_became_of_it() {
    let api = api_with("");
    let mut ndjson = request("POST", "/v1/transfers:batch?atomic=false", TRANSFER.replace('\n', ""));
    ndjson.headers_mut().insert(header::CONTENT_TYPE, "application/x-ndjson".parse().unwrap());
    let json = request("POST", "/v1/transfers:batch", format!("{{\"transfers\": [{TRANSFER}]}}"));
    for mut request in [json, ndjson] {
        request.headers_mut().insert("x-request-timeout-ms", "30000".parse().unwrap());
        let response = send(&api, request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let result = json_of(response).await["results"][0].clone();
        assert_eq!(result["id"], "01890a5d-ac96-774b-bcce-b302099a8057");
        assert_eq!((&result["status"], &result["code"]), (&"failed".into(), &"shard_unavailable".into()));
    }
}

#[tokio::test]
async fn rates_are_limited_before_anything_is_parsed() {
    let api = api_with("\n[limits]\nrequests_per_second = 1\nburst = 2\n");
    for _ in 0..2 {
        assert_problem(&api, request("POST", "/v1/transfers", "{"), 400, "invalid_json").await;
    }
    // On a slow machine a second may go by meanwhile, which lets one more in; but not every time.
    let mut response = send(&api, request("POST", "/v1/transfers", "{")).await;
    for _ in 0..20 {
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            break;
        }
        response = send(&api, request("POST", "/v1/transfers", "{")).await;
    }
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert_eq!(problem_of(response).await["code"], "rate_limited");
}

#[tokio::test]
async fn the_description_lists_exactly_the_routes_there_are() {
    let api = api_with("");
    let description = json_of(send(&api, request("GET", "/openapi.json", "")).await).await;
    let paths = description["paths"].as_object().unwrap();
    let mut operations = 0;
    for (path, methods) in paths {
        let path = path.replace("{id}", "x");
        for method in methods.as_object().unwrap().keys() {
            operations += 1;
            let response = send(&api, request(&method.to_uppercase(), &path, "")).await;
            assert!(!matches!(response.status().as_u16(), 404 | 405), "{method} {path}: {}", response.status());
        }
        let allowed =
            send(&api, request("TRACE", &path, "")).await.headers()[header::ALLOW].to_str().unwrap().to_owned();
        for method in allowed.split(',').filter(|method| *method != "HEAD") {
            assert!(methods.get(method.to_lowercase()).is_some(), "{method} {path} is not described");
        }
    }
    assert_eq!((paths.len(), operations), (17, 21));
    // Every reference leads somewhere.
    let text = description.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(description.pointer(pointer).is_some(), "{pointer}");
    }
}

#[tokio::test]
async fn a_panic_is_one_requests_500() {
    let routes = Routes::new().route("/", axum::routing::get(async || -> &str { panic!("on purpose") }));
    let routes = routes.layer(axum::middleware::from_fn(operator_layers));
    let problem = assert_problem(&routes, request("GET", "/", ""), 500, "internal").await;
    assert!(!problem.to_string().contains("on purpose"));
    assert_eq!(problem["executed"], "unknown");
}

#[tokio::test]
async fn the_balance_now_does_not_depend_on_two_clocks() {
    // The shard's is ahead of this router's.
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 100)]).await;
    let edge = Edge::new(&config(""), cluster.router.clone(), None, cluster.tasks.clone()).unwrap();
    let api = api(edge);
    let now = json_of(send(&api, request("GET", "/v1/accounts/alice/balance", "")).await).await;
    assert_eq!((&now["posted"], &now["version"]), (&"1.00".into(), &2.into()), "{now}");
    // Asked for a time, it answers for that time and says so, however long ago.
    let then =
        json_of(send(&api, request("GET", "/v1/accounts/alice/balance?at=0004-02-29T12:00:00Z", "")).await).await;
    assert_eq!((&then["version"], &then["at"]), (&0.into(), &"0004-02-29T12:00:00.000000Z".into()), "{then}");
}

#[tokio::test]
async fn a_transfer_whose_client_hangs_up_is_carried_to_its_end() {
    let cluster = Cluster::start(2).await;
    let (payer, payee) = (cluster.account_on(0, "payer"), cluster.account_on(1, "payee"));
    cluster.fund(&[(&payer, 2_000), (&payee, 0)]).await;
    let edge = Edge::new(&config(""), cluster.router.clone(), None, cluster.tasks.clone()).unwrap();
    let api = api(edge);
    // Recovery would finish the transfer as well, and must not be what the test sees.
    cluster.nodes[0].sagas_are_due_after(std::time::Duration::from_secs(3_600));
    // The register's node hangs, so that the client hangs up between the reserve and the verdict.
    cluster.nodes[1].hang(true);
    let body = TRANSFER.replace("alice", &payer).replace("bob", &payee);
    let mut answer = Box::pin(send(&api, request("POST", "/v1/transfers", body)));
    until(async || {
        assert!(futures_util::poll!(&mut answer).is_pending());
        cluster.nodes[1].waiting() > 0
    })
    .await;
    drop(answer);
    cluster.nodes[1].hang(false);
    until(async || cluster.posted(&payee).await == 1_234).await;
    until(async || cluster.nodes[0].pending() == 0).await;
    assert_eq!(cluster.posted(&payer).await, 2_000 - 1_234);
}

/// Waits for a condition, for at most ten seconds.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while !holds().await {
        assert!(tokio::time::Instant::now() < give_up, "the condition never held");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_trace_context_reaches_the_nodes() {
    const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let cluster = Cluster::start(1).await;
    cluster.fund(&[("alice", 2_000), ("bob", 0)]).await;
    let edge = Edge::new(&config(""), cluster.router.clone(), None, cluster.tasks.clone()).unwrap();
    let api = api(edge);
    let traced = |mut request: Request<Body>, traceparent: &str| {
        request.headers_mut().insert("traceparent", traceparent.parse().unwrap());
        request
    };
    for (method, path, body, seen) in [
        ("POST", "/v1/transfers", TRANSFER, format!("{TRACEPARENT}: 1 from 0")),
        ("GET", "/v1/accounts/alice", "", TRACEPARENT.to_owned()),
    ] {
        let untraced = [request(method, path, body), traced(request(method, path, body), "no such thing")];
        for request in untraced {
            assert!(send(&api, request).await.status().is_success());
            assert!(cluster.nodes[0].traced.lock().unwrap().is_empty());
        }
        assert!(send(&api, traced(request(method, path, body), TRACEPARENT)).await.status().is_success());
        assert_eq!(std::mem::take(&mut *cluster.nodes[0].traced.lock().unwrap()), [seen]);
    }
}

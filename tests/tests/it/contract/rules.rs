//! What holds for every answer, whatever was asked.

use anyhow::ensure;
use serde_json::{Value, json};

use super::api::{Call, Reply};

/// What every problem says.
const PROBLEM_MEMBERS: [&str; 9] =
    ["type", "title", "status", "detail", "instance", "code", "retryable", "executed", "request_id"];
/// Statuses of which the same request sent again may fare better.
const RETRYABLE: [u16; 5] = [408, 429, 500, 503, 504];
/// Statuses after which a write may have happened.
const UNKNOWN: [u16; 2] = [500, 504];

pub fn check(call: &Call, reply: &Reply) -> anyhow::Result<()> {
    ensure!(!reply.header("x-request-id").is_empty(), "no X-Request-Id");
    if reply.status < 400 {
        ensure!(reply.header("content-type") == "application/json", "{:?}", reply.headers);
        return Ok(());
    }
    problem(call, reply).map_err(|reason| reason.context(reply.body.to_string()))
}

fn problem(call: &Call, reply: &Reply) -> anyhow::Result<()> {
    let (status, body) = (reply.status, &reply.body);
    ensure!(reply.header("content-type") == "application/problem+json", "{:?}", reply.headers);
    for member in PROBLEM_MEMBERS {
        ensure!(!body[member].is_null(), "no {member}");
    }
    let code = body["code"].as_str().unwrap_or_default();
    ensure!(body["type"].as_str().is_some_and(|kind| kind.ends_with(&format!(":{code}"))), "type without the code");
    ensure!(body["status"] == status, "another status than the line's {status}");
    ensure!(body["request_id"] == reply.header("x-request-id"), "another request id than the header's");
    let (path, _) = call.path.split_once('?').unwrap_or((&call.path, ""));
    ensure!(body["instance"] == path, "another instance than the request's path");
    ensure!(body["retryable"] == RETRYABLE.contains(&status), "retryable");
    let executed = if UNKNOWN.contains(&status) { json!("unknown") } else { json!(false) };
    ensure!(body["executed"] == executed, "executed");
    ensure!([429, 503].contains(&status) == reply.headers.contains_key("retry-after"), "Retry-After");
    ensure!(status != 500, "an internal error");
    if status == 400 {
        let errors = body["errors"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(!errors.is_empty(), "a malformed request without its errors");
        for error in errors {
            let places = ["pointer", "parameter", "header"].into_iter().filter(|place| error[*place].is_string());
            ensure!(places.count() == 1, "an error that is not in one place: {error}");
            ensure!(error["code"].is_string() && error["detail"].is_string(), "an error that says nothing: {error}");
            ensure!(is_pointer(&error["pointer"]), "no JSON pointer (RFC 6901): {error}");
        }
    }
    Ok(())
}

fn is_pointer(place: &Value) -> bool {
    place.as_str().is_none_or(|pointer| pointer.is_empty() || pointer.starts_with('/'))
}

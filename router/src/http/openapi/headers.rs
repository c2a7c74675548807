//! Headers, of requests and of answers.

use serde_json::{Value, json};

use super::{members, operations};
use crate::http::context::{DEFAULT_TIMEOUT_MS, MAX_REQUEST_ID_LEN, MAX_TIMEOUT_MS};

/// Operations whose id may come from the header `Idempotency-Key`.
const KEYED: &[&str] = &["createTransfer", "createHold", "captureHold", "reverseTransfer"];
/// The key of a request header in the components, for all operations.
const OF_EVERY_REQUEST: [&str; 3] = ["XRequestId", "XRequestTimeoutMs", "Traceparent"];

/// Gives every operation and every answer its headers.
pub fn add(document: &mut Value) {
    for (id, mut operation) in operations(document) {
        for name in OF_EVERY_REQUEST {
            operation.add_parameter(json!({"$ref": format!("#/components/parameters/{name}")}));
        }
        if KEYED.contains(&id.as_str()) {
            operation.add_parameter(idempotency_key());
        }
        let creates = operation.responses().contains_key("201");
        let replays = creates || id == "releaseHold";
        for response in operation.responses().values_mut() {
            refer(response, "X-Request-Id", "XRequestId");
        }
        for response in operation.responses_of(&["429", "503"]) {
            refer(response, "Retry-After", "RetryAfter");
        }
        for response in operation.responses_of(if creates { &["201", "202"] } else { &[] }) {
            refer(response, "Location", "Location");
        }
        for response in operation.responses_of(if replays { &["200", "409", "422"] } else { &[] }) {
            refer(response, "Idempotent-Replayed", "IdempotentReplayed");
        }
    }
    let components = members(&mut document["components"]);
    components.insert("parameters".to_owned(), parameters());
    components.insert("headers".to_owned(), headers());
}

fn refer(response: &mut Value, header: &str, component: &str) {
    members(&mut response["headers"])
        .insert(header.to_owned(), json!({"$ref": format!("#/components/headers/{component}")}));
}

fn parameters() -> Value {
    json!({
        "XRequestId": {
            "name": "X-Request-Id",
            "in": "header",
            "description": format!(
                "Comes back with the answer and is logged. One that has not 1 to {MAX_REQUEST_ID_LEN} printable ASCII \
                 characters is replaced by a new one."
            ),
            "schema": {"type": "string"},
            "example": "0199f7c5-6a1e-7000-8000-5d1f0f8c2a11",
        },
        "XRequestTimeoutMs": {
            "name": "X-Request-Timeout-Ms",
            "in": "header",
            "description": "By when the whole request must be answered, in milliseconds from its arrival.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TIMEOUT_MS, "default": DEFAULT_TIMEOUT_MS},
            "example": 5000,
        },
        "Traceparent": {
            "name": "traceparent",
            "in": "header",
            "description": "W3C trace context. Logged, and passed on to the shards; one that is malformed is ignored.",
            "schema": {"type": "string"},
            "example": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    })
}

fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Names what is ordered where the body has no `id`: the id is then derived from the debit account and \
                        this key. 1 to 255 printable ASCII characters, once.",
        // A blank at either end is no part of a header's value.
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
    })
}

fn headers() -> Value {
    json!({
        "XRequestId": {
            "description": "The request's id: the client's, or a new one.",
            "required": true,
            "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": MAX_REQUEST_ID_LEN},
        },
        "RetryAfter": {
            "description": "Seconds after which to try again.",
            "required": true,
            "schema": {"type": "integer", "minimum": 1},
        },
        "Location": {
            "description": "Where to read what was made, or what is under way.",
            "required": true,
            "schema": {"type": "string", "pattern": "^/v1/"},
        },
        "IdempotentReplayed": {
            "description": "The answer is the stored one of an earlier request.",
            "required": false,
            "schema": {"type": "string", "enum": ["true"]},
        },
    })
}

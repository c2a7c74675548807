//! The description of the API: generated from the handlers and the types of bodies and answers, and completed with what no handler describes.
//!
//! A handler describes its own parameters, bodies and successes in its `#[utoipa::path]`. What is the same everywhere, or belongs together over
//! all operations, is added here: the errors ([`problems`], one table), the headers, the links from one answer to the next request, and the
//! examples, one story that a test plays against a live cluster. `docs/openapi.json` is the committed copy; a test compares it with this code.

mod problems;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

use super::{
    accounts, balances,
    context::{DEFAULT_TIMEOUT_MS, MAX_REQUEST_ID_LEN, MAX_TIMEOUT_MS},
    entries, history, holds, metadata,
    parameters::NoParameters,
    problem::Problem,
    transfers,
};

#[derive(OpenApi)]
#[openapi(
    servers((url = "/", description = "The router that serves this description.")),
    security((), ("key" = [])),
    modifiers(&SecuritySchemes),
    info(
        title = "Shardledger",
        contact(name = "The operator of this ledger"),
        description = "A horizontally sharded ledger. Amounts are decimal strings, times are RFC 3339 in UTC, errors are RFC \
            9457 problems with a stable `code`, `retryable` and `executed`.\n\n\
            **Ids make requests safe to repeat.** The same id with the same content is answered with the first result, for \
            ever; refusals are kept too. What was answered with 429, 503 or 504 was not, or may not have been, executed: send \
            the same id again.\n\n\
            Unknown fields and query parameters are refused. Answers may get new fields.\n\n\
            `x-walkthrough` lists the examples in an order in which they work on an empty ledger."
    ),
    paths(
        accounts::open,
        accounts::list::list,
        accounts::open_batch,
        accounts::show,
        accounts::change::change,
        metadata::of_account,
        entries::list,
        balances::balance,
        balances::sum,
        transfers::order,
        transfers::batch::order_batch,
        history::transfers,
        transfers::show,
        transfers::reversal::reverse,
        metadata::of_transfer,
        history::holds,
        holds::place,
        holds::show,
        holds::capture,
        holds::release,
        metadata::of_hold,
    ),
    components(schemas(super::problem::ProblemBody)),
    tags(
        (name = "accounts", description = "Accounts, their journals and their balances."),
        (name = "transfers", description = "Money from one account to another, and back."),
        (name = "holds", description = "Money reserved on one account for captures to come."),
    ),
)]
struct ApiDescription;

/// How a request carries its key.
struct SecuritySchemes;

impl Modify for SecuritySchemes {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let mut bearer = Http::new(HttpAuthScheme::Bearer);
        bearer.description = Some(
            "The key that the operator gave you: `Authorization: Bearer slk_…`. A router without keys needs none."
                .to_owned(),
        );
        description.components.get_or_insert_default().add_security_scheme("key", SecurityScheme::Http(bearer));
    }
}

/// `GET /openapi.json`
pub async fn serve(_: NoParameters) -> Result<Response, Problem> {
    static TEXT: LazyLock<Option<Bytes>> = LazyLock::new(|| {
        let described = document().inspect_err(|reason| tracing::error!(%reason, "the API cannot be described"));
        Some(described.ok()?.to_string().into())
    });
    let text = TEXT.as_ref().cloned().ok_or_else(Problem::internal)?;
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((headers, Body::from(text)).into_response())
}

/// The whole description.
pub fn document() -> Result<Value, serde_json::Error> {
    let mut document = serde_json::to_value(ApiDescription::openapi())?;
    correct(&mut document);
    problems::add(&mut document)?;
    add_headers(&mut document);
    add_links(&mut document);
    add_examples(&mut document)?;
    Ok(document)
}

/// Corrects what the derives cannot express.
fn correct(document: &mut Value) {
    // A change changes something.
    document["components"]["schemas"]["AccountChanges"]["minProperties"] = 1.into();
    for (id, mut operation) in operations(document) {
        // Beside the answer that generators can make a type of.
        if ["listAccounts", "listEntries", "sumBalances"].contains(&id.as_str()) {
            operation.responses_of(&["200"]).for_each(|response| {
                response["x-content"]["text/csv"] =
                    json!({"description": "With `Accept: text/csv`: a header line, then a line each."});
            });
        }
        // An `Option` would also take null, which no query can have.
        let lists_history = ["listTransfers", "listHolds"].contains(&id.as_str());
        operation.parameters_in("query").for_each(|parameter| {
            parameter["required"] = (lists_history && parameter["name"] == "account").into();
        });
        // A body that may be left out is not one that may be null.
        let optional = operation.0.pointer_mut("/requestBody/content/application~1json/schema");
        if let Some(schema) = optional
            && let Some(there) = schema.pointer("/oneOf/1").cloned()
        {
            *schema = there;
            operation.0["requestBody"]["required"] = false.into();
        }
    }
}

/// An operation of the description. Indexing its value creates members that are absent.
struct Operation<'a>(&'a mut Value);

impl Operation<'_> {
    fn responses(&mut self) -> &mut Map<String, Value> {
        members(&mut self.0["responses"])
    }

    /// The responses of these statuses, those that there are.
    fn responses_of<'s>(&'s mut self, statuses: &'s [&'s str]) -> impl Iterator<Item = &'s mut Value> {
        self.responses().iter_mut().filter(|(status, _)| statuses.contains(&status.as_str())).map(|(_, value)| value)
    }

    fn parameters_in<'s>(&'s mut self, place: &'s str) -> impl Iterator<Item = &'s mut Value> {
        let parameters = self.0["parameters"].as_array_mut();
        parameters.into_iter().flatten().filter(move |parameter| parameter["in"] == place)
    }

    fn add_parameter(&mut self, parameter: Value) {
        match &mut self.0["parameters"] {
            Value::Array(parameters) => parameters.push(parameter),
            none => *none = Value::Array(vec![parameter]),
        }
    }
}

/// All operations, by their ids.
fn operations(document: &mut Value) -> impl Iterator<Item = (String, Operation<'_>)> {
    members(&mut document["paths"]).values_mut().flat_map(|path| members(path).values_mut()).map(|operation| {
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        (id, Operation(operation))
    })
}

/// The members of an object. Any other value is replaced by an empty object.
fn members(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(members) => members,
        _ => unreachable!("it was made an object just now"),
    }
}

// === headers, of requests and of answers ===

/// Operations whose id may come from the header `Idempotency-Key`.
const KEYED: &[&str] = &["createTransfer", "createHold", "captureHold", "reverseTransfer"];
/// The key of a request header in the components, for all operations.
const OF_EVERY_REQUEST: [&str; 3] = ["XRequestId", "XRequestTimeoutMs", "Traceparent"];

/// Gives every operation and every answer its headers.
fn add_headers(document: &mut Value) {
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
    components.insert("parameters".to_owned(), header_parameters());
    components.insert("headers".to_owned(), answer_headers());
}

fn refer(response: &mut Value, header: &str, component: &str) {
    members(&mut response["headers"])
        .insert(header.to_owned(), json!({"$ref": format!("#/components/headers/{component}")}));
}

fn header_parameters() -> Value {
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

fn answer_headers() -> Value {
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

// === links: which operation takes what of an answer ===

struct Link {
    from: &'static str,
    statuses: &'static [&'static str],
    to: &'static str,
    /// Each parameter, and where in the answer its value is.
    parameters: &'static [(&'static str, &'static str)],
}

const ACCOUNT: &[(&str, &str)] = &[("path.id", "/id")];
/// The parameters of a transfer or hold, whose id belongs to its debit account.
const OWNED: &[(&str, &str)] = &[("path.id", "/id"), ("query.debit", "/debit")];
const MADE: &[&str] = &["201"];
const STORED: &[&str] = &["201", "202"];

#[rustfmt::skip]
const LINKS: &[Link] = &[
    Link { from: "openAccount", statuses: MADE, to: "getAccount", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "updateAccount", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "listEntries", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "getBalance", parameters: ACCOUNT },
    Link { from: "createTransfer", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "createTransfer", statuses: MADE, to: "reverseTransfer", parameters: OWNED },
    Link { from: "createTransfer", statuses: MADE, to: "getAccount", parameters: &[("path.id", "/credit")] },
    Link { from: "reverseTransfer", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "getHold", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "captureHold", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "releaseHold", parameters: OWNED },
    Link { from: "captureHold", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "captureHold", statuses: MADE, to: "reverseTransfer", parameters: OWNED },
];

/// Adds the links to the responses.
fn add_links(document: &mut Value) {
    for (id, mut operation) in operations(document) {
        for link in LINKS.iter().filter(|link| link.from == id) {
            let parameters: Map<_, _> = link
                .parameters
                .iter()
                .map(|(name, place)| ((*name).to_owned(), json!(format!("$response.body#{place}"))))
                .collect();
            for response in operation.responses_of(link.statuses) {
                members(&mut response["links"])
                    .insert(link.to.to_owned(), json!({"operationId": link.to, "parameters": parameters.clone()}));
            }
        }
    }
}

/// How many links there are, each from each of its answers.
#[cfg(test)]
fn link_count() -> usize {
    LINKS.iter().map(|link| link.statuses.len()).sum()
}

// === examples ===

/// One story, told in an order that works on an empty ledger. A test plays it against a live cluster and compares every answer, so that no
/// example can be wrong.
const STORY: &str = include_str!("openapi/examples.json");

/// One request and its answer. It goes to its operation under one name: its parameters, its body, and the answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoryStep {
    name: String,
    operation: String,
    summary: String,
    /// Parameters of the path and the query, and headers, by their names.
    #[serde(default)]
    parameters: Map<String, Value>,
    /// Of [`StoryStep::body`]; JSON unless given.
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    body: Option<Value>,
    status: u16,
    answer: Value,
}

/// Gives each operation its examples.
fn add_examples(document: &mut Value) -> Result<(), serde_json::Error> {
    let story: Vec<StoryStep> = serde_json::from_str(STORY)?;
    for (id, mut operation) in operations(document) {
        for step in story.iter().filter(|step| step.operation == id) {
            step.add_to(&mut operation);
        }
    }
    let order: Vec<_> = story
        .iter()
        .map(|step| json!({"example": step.name, "operation": step.operation, "status": step.status}))
        .collect();
    document["x-walkthrough"] = Value::Array(order);
    Ok(())
}

impl StoryStep {
    fn add_to(&self, operation: &mut Operation<'_>) {
        for parameter in operation.0["parameters"].as_array_mut().into_iter().flatten() {
            if let Some(value) = parameter["name"].as_str().and_then(|name| self.parameters.get(name)) {
                self.note(parameter, value);
            }
        }
        if let Some(body) = &self.body {
            // A media type that OpenAPI cannot describe stands beside the others: generators would send one JSON text of it.
            let (contents, media_type) = match self.media_type.as_deref() {
                None => ("content", "application/json"),
                Some(other) => ("x-content", other),
            };
            self.note(&mut operation.0["requestBody"][contents][media_type], body);
        }
        for response in operation.responses_of(&[self.status.to_string().as_str()]) {
            for content in members(&mut response["content"]).values_mut() {
                self.note(content, &self.answer);
            }
        }
    }

    fn note(&self, place: &mut Value, value: &Value) {
        members(&mut place["examples"]).insert(self.name.clone(), json!({"summary": self.summary, "value": value}));
    }
}

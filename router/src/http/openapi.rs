//! The description of the API: generated from the handlers and the types they read and write, and completed with what no
//! handler says for itself.
//!
//! A handler describes its own parameters, bodies and successes in its `#[utoipa::path]`. The rest is the same everywhere, or
//! belongs together over all operations, and is added here: the errors ([`problems`], one table), the headers ([`headers`]),
//! the links from one answer to the next request ([`links`]), and the examples ([`examples`], one story that a test plays
//! against a live cluster). `docs/openapi.json` is the committed copy; a test compares it with this code.

mod examples;
mod headers;
mod links;
mod problems;
#[cfg(test)]
mod tests;
pub mod values;

use std::sync::LazyLock;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, header};
use serde_json::{Map, Value, json};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

use super::{accounts, balances, history, holds, problem::Problem, transfers};

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
        accounts::list,
        accounts::open_batch,
        accounts::show,
        accounts::change,
        accounts::entries,
        accounts::balance,
        balances::sum,
        transfers::order,
        transfers::order_batch,
        history::transfers,
        transfers::show,
        transfers::reverse,
        history::holds,
        holds::place,
        holds::show,
        holds::capture,
        holds::release,
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
pub async fn serve(_: super::NoParameters) -> Result<Response, Problem> {
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
    headers::add(&mut document);
    links::add(&mut document);
    examples::add(&mut document)?;
    Ok(document)
}

/// What the derives cannot say.
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

/// An operation of the description. Indexing the value beneath makes what is not there.
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

/// The members of an object, which what is anything else becomes.
fn members(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(members) => members,
        _ => unreachable!("it was made an object just now"),
    }
}

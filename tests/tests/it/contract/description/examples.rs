//! Plays the examples of the description in the order that it names, and compares each answer with the one described.

use std::fmt::Write;

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::Value;

use super::super::{
    api::{Api, Call, NDJSON},
    stage::Findings,
};

/// Members whose values are this run's own: only their types are compared.
const OWN: [&str; 4] = ["shard", "position", "request_id", "at"];
/// As [`OWN`], by the end of the name: times.
const OWN_ENDING: &str = "_at";

/// The header that an example may give.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

pub async fn are_answered_as_described(api: &Api) -> anyhow::Result<()> {
    let document = api.description().document();
    let story = document["x-walkthrough"].as_array().context("the description names no examples")?;
    let mut findings = Findings::default();
    for step in story {
        let name = step["example"].as_str().unwrap_or_default();
        findings.note(name, play(api, document, step, name).await);
    }
    ensure!(!story.is_empty(), "there are no examples");
    findings.conclude()
}

async fn play(api: &Api, document: &Value, step: &Value, name: &str) -> anyhow::Result<()> {
    let (method, path, operation) = operation(document, &step["operation"])?;
    let reply = api.send(call(method, path, operation, name)?).await?;
    ensure!(step["status"] == reply.status, "answered {}: {}", reply.status, reply.body);
    let media_type = reply.header("content-type");
    let described = &operation["responses"][reply.status.to_string()]["content"][media_type]["examples"][name];
    compare(&described["value"], &reply.body, "")
}

/// Method, path and the rest of the operation with this id.
fn operation<'a>(document: &'a Value, id: &Value) -> anyhow::Result<(Method, &'a str, &'a Value)> {
    for (path, item) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in item.as_object().into_iter().flatten() {
            if operation["operationId"] == *id {
                return Ok((Method::from_bytes(method.to_uppercase().as_bytes())?, path, operation));
            }
        }
    }
    bail!("there is no operation {id}")
}

/// The request of an example.
fn call(method: Method, path: &str, operation: &Value, name: &str) -> anyhow::Result<Call> {
    let mut path = path.to_owned();
    let mut key = None;
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let example = &parameter["examples"][name]["value"];
        let value = match example {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let parameter_name = parameter["name"].as_str().unwrap_or_default();
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{parameter_name}}}"), &value),
            Some("query") => {
                let separator = if path.contains('?') { '&' } else { '?' };
                write!(path, "{separator}{parameter_name}={value}")?;
            }
            Some("header") if parameter_name == IDEMPOTENCY_KEY => key = Some(value),
            place => bail!("an example gives {parameter_name} in {place:?}"),
        }
    }
    ensure!(!path.contains('{'), "the example leaves out a part of {path}");
    let mut call = match body(operation, name) {
        None => Call::bare(method, &path, ""),
        Some((media_type, body)) if media_type == NDJSON => {
            Call::bare(method, &path, lines(body)).header("content-type", NDJSON)
        }
        Some((_, body)) => Call::new(method, &path, body.to_string()),
    };
    if let Some(key) = key {
        call = call.header("idempotency-key", key);
    }
    Ok(call)
}

/// The body of an example, with its media type.
fn body<'a>(operation: &'a Value, name: &str) -> Option<(&'a str, &'a Value)> {
    let request = &operation["requestBody"];
    let contents = [&request["content"], &request["x-content"]].into_iter().filter_map(Value::as_object);
    contents
        .flatten()
        .find_map(|(media_type, content)| Some((media_type.as_str(), content["examples"].get(name)?.get("value")?)))
}

fn lines(body: &Value) -> String {
    body.as_array().into_iter().flatten().map(|line| format!("{line}\n")).collect()
}

/// Everything is as described, but for what is this run's own.
fn compare(described: &Value, found: &Value, place: &str) -> anyhow::Result<()> {
    match (described, found) {
        (Value::Object(described), Value::Object(found)) => {
            for name in described.keys() {
                ensure!(found.contains_key(name), "{place}/{name} is missing");
            }
            for (name, found) in found {
                let described =
                    described.get(name).with_context(|| format!("{place}/{name} is not in the example"))?;
                let place = format!("{place}/{name}");
                if OWN.contains(&name.as_str()) || name.ends_with(OWN_ENDING) {
                    ensure!(kind(described) == kind(found), "{place} is {found}, in the example {described}");
                } else {
                    compare(described, found, &place)?;
                }
            }
            Ok(())
        }
        (Value::Array(described), Value::Array(found)) if described.len() == found.len() => {
            let pairs = described.iter().zip(found).enumerate();
            pairs
                .into_iter()
                .try_for_each(|(index, (described, found))| compare(described, found, &format!("{place}/{index}")))
        }
        (described, found) => {
            ensure!(described == found, "{place} is {found}, in the example {described}");
            Ok(())
        }
    }
}

fn kind(value: &Value) -> std::mem::Discriminant<Value> {
    std::mem::discriminant(value)
}

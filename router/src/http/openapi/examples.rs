//! The examples: one story, told in `examples.json` in an order that works on an empty ledger.
//!
//! Each step goes to its operation, under one name: its parameters, its body, and the answer. A test plays the story against
//! a live cluster and compares every answer, so that no example can be wrong.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Operation, members, operations};

const STORY: &str = include_str!("examples.json");

/// One request and its answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    operation: String,
    summary: String,
    /// Of the path, of the query and headers, by their names.
    #[serde(default)]
    parameters: Map<String, Value>,
    /// With [`Step::body`]; JSON unless said.
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    body: Option<Value>,
    status: u16,
    answer: Value,
}

/// Tells each operation its part of the story.
pub fn add(document: &mut Value) -> Result<(), serde_json::Error> {
    let story: Vec<Step> = serde_json::from_str(STORY)?;
    for (id, mut operation) in operations(document) {
        for step in story.iter().filter(|step| step.operation == id) {
            step.tell(&mut operation);
        }
    }
    let order: Vec<_> = story
        .iter()
        .map(|step| json!({"example": step.name, "operation": step.operation, "status": step.status}))
        .collect();
    document["x-walkthrough"] = Value::Array(order);
    Ok(())
}

impl Step {
    fn tell(&self, operation: &mut Operation<'_>) {
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

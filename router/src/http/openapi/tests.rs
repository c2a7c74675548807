//! The description is complete: no operation lacks an example, a description or an answer that it may give.

use std::collections::{BTreeSet, HashSet};

use super::*;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");

/// What any request may be answered with, whatever it asks for.
const ANY_TIME: [&str; 4] = ["400", "429", "500", "503"];

/// Collects what is missing, so that one run names all of it.
#[derive(Default)]
struct Missing(Vec<String>);

impl Missing {
    fn unless(&mut self, there: bool, what: impl FnOnce() -> String) {
        if !there {
            self.0.push(what());
        }
    }

    fn text(&mut self, value: &Value, what: impl FnOnce() -> String) {
        self.unless(value.as_str().is_some_and(|text| !text.trim().is_empty()), what);
    }

    #[track_caller]
    fn none(self) {
        assert!(self.0.is_empty(), "{}", self.0.join("\n"));
    }
}

/// Follows a reference, where it is one.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value["$ref"].as_str() else { return value };
    document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

fn each(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Path, method and operation.
fn described(document: &Value) -> impl Iterator<Item = (String, &Value)> {
    each(&document["paths"]).flat_map(|(path, item)| {
        each(item).map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
    })
}

fn has_examples(value: &Value) -> bool {
    value["example"] != Value::Null || each(&value["examples"]).next().is_some()
}

#[test]
fn the_committed_copy_is_what_the_code_says() {
    let committed = std::fs::read_to_string(COMMITTED).expect("docs/openapi.json is there");
    let committed: Value = serde_json::from_str(&committed).unwrap();
    assert!(committed == document().unwrap(), "docs/openapi.json is not what the code says: run `make openapi`");
}

#[test]
fn every_operation_says_what_it_takes_and_answers() {
    let document = document().unwrap();
    let tags: HashSet<_> = document["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let mut missing = Missing::default();
    let mut ids = BTreeSet::new();
    for (name, operation) in described(&document) {
        let id = operation["operationId"].as_str().unwrap_or_default();
        missing.unless(!id.is_empty() && ids.insert(id), || format!("{name}: an operationId of its own"));
        missing.text(&operation["summary"], || format!("{name}: a summary"));
        let tagged = operation["tags"].as_array().is_some_and(|own| own.iter().all(|tag| tags.contains(tag)));
        missing.unless(tagged, || format!("{name}: a tag that the document describes"));
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = resolve(&document, parameter);
            missing.text(&parameter["description"], || format!("{name}: a description of {}", parameter["name"]));
            missing.unless(parameter["schema"].is_object(), || format!("{name}: a schema of {}", parameter["name"]));
        }
        for (media_type, content) in each(&operation["requestBody"]["content"]) {
            missing.unless(has_examples(content), || format!("{name}: an example of a request in {media_type}"));
        }
        for status in ANY_TIME {
            missing.unless(operation["responses"][status].is_object(), || format!("{name}: the answer {status}"));
        }
        for (status, response) in each(&operation["responses"]) {
            missing.text(&response["description"], || format!("{name}: a description of {status}"));
            missing
                .unless(response["headers"]["X-Request-Id"].is_object(), || format!("{name}: headers of {status}"));
            for (media_type, content) in each(&response["content"]) {
                // Nothing can be pending at will, so that no example of it could be played.
                let told = has_examples(content) || status == "202";
                missing.unless(told, || format!("{name}: an example of {status} in {media_type}"));
            }
        }
    }
    missing.none();
}

#[test]
fn every_example_is_told_where_it_belongs() {
    let document = document().unwrap();
    let mut missing = Missing::default();
    let mut told = 0;
    for step in document["x-walkthrough"].as_array().unwrap() {
        let (name, status) = (step["example"].as_str().unwrap(), step["status"].to_string());
        let operation = described(&document).map(|(_, op)| op).find(|op| op["operationId"] == step["operation"]);
        let answers = operation.map(|operation| each(&operation["responses"][&status]["content"]));
        let there = answers.is_some_and(|mut all| all.all(|(_, content)| content["examples"][name].is_object()));
        missing.unless(there, || format!("the answer of {name}, {status} to {}", step["operation"]));
        told += 1;
    }
    missing.none();
    assert!(told > 0);
}

#[test]
fn every_link_leads_to_an_operation() {
    let document = document().unwrap();
    let operations: HashSet<_> = described(&document).map(|(_, operation)| &operation["operationId"]).collect();
    let mut links = 0;
    for (name, operation) in described(&document) {
        for (_, response) in each(&operation["responses"]) {
            for (_, link) in each(&response["links"]) {
                assert!(operations.contains(&link["operationId"]), "{name}: {link}");
                links += 1;
            }
        }
    }
    assert_eq!(links, link_count(), "a link has no answer to start from");
}

#[test]
fn schemas_say_what_their_members_are() {
    let document = document().unwrap();
    let mut missing = Missing::default();
    for (name, schema) in each(&document["components"]["schemas"]) {
        missing.text(&schema["description"], || format!("{name}: a description"));
        for (member, shape) in each(&schema["properties"]) {
            let said = ["$ref", "type", "oneOf", "allOf"].iter().any(|key| !shape[key].is_null());
            missing.unless(said, || format!("{name}.{member}: what it is"));
        }
    }
    missing.none();
}

//! The description that routers serve. It must be complete, and every answer that a test gets must fit it.

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::{Map, Value};

use super::{
    api::{Call, Reply},
    stage::Stage,
};

/// The routes that the description must have.
const ROUTES: [(&str, &str); 11] = [
    ("post", "/v1/accounts"),
    ("get", "/v1/accounts"),
    ("post", "/v1/accounts:batch"),
    ("get", "/v1/accounts/{id}"),
    ("patch", "/v1/accounts/{id}"),
    ("get", "/v1/accounts/{id}/entries"),
    ("get", "/v1/accounts/{id}/balance"),
    ("get", "/v1/balances"),
    ("post", "/v1/transfers"),
    ("post", "/v1/transfers:batch"),
    ("get", "/v1/transfers/{id}"),
];
/// The schema of errors, for a status that an operation does not list.
const PROBLEM: &str = "#/components/schemas/Problem";

/// The content of `/openapi.json`.
#[derive(Debug, Default)]
pub struct Description(Value);

/// Everything routed is described, and everything described is routed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_described_and_every_described_route_is_there() -> anyhow::Result<()> {
    let stage = Stage::shared().await?;
    let description = stage.api.description();
    ensure!(description.0["openapi"].as_str().is_some_and(|version| version.starts_with("3.")), "expected OpenAPI 3");
    let mut described: Vec<(&str, &str)> = description
        .paths()?
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().into_iter().flatten().map(|(method, _)| (method.as_str(), path.as_str()))
        })
        .collect();
    for route in ROUTES {
        ensure!(described.contains(&route), "{route:?} is not described");
    }
    described.retain(|route| !ROUTES.contains(route));
    for (method, path) in described {
        let path = path.replace("{id}", "01890a5d-ac96-774b-bcce-b302099a8057");
        let call = Call::new(Method::from_bytes(method.to_uppercase().as_bytes())?, &path, "{}");
        let reply = stage.api.send(call).await?;
        let code = reply.body["code"].as_str().unwrap_or_default();
        ensure!(!["not_found", "method_not_allowed"].contains(&code), "{method} {path} is described, but not routed");
    }
    stage.finish().await
}

impl Description {
    pub fn new(document: Value) -> Self {
        Self(document)
    }

    pub fn document(&self) -> &Value {
        &self.0
    }

    fn paths(&self) -> anyhow::Result<&Map<String, Value>> {
        self.0["paths"].as_object().context("the description has no paths")
    }

    /// The answer has only properties of its schema, and all that the schema requires.
    pub fn check(&self, call: &Call, reply: &Reply) -> anyhow::Result<()> {
        let schema = match self.response(call, reply.status) {
            Some(response) => {
                if let Some(codes) = response["x-problem-codes"].as_array() {
                    ensure!(
                        codes.contains(&reply.body["code"]),
                        "{} {} is not described",
                        reply.status,
                        reply.body["code"]
                    );
                    ensure!(reply.body["status"] == reply.status, "the problem says {}", reply.body["status"]);
                }
                let media_type = reply.header("content-type");
                let content =
                    response["content"].as_object().with_context(|| format!("expected content in {response}"))?;
                &content.get(media_type).with_context(|| format!("{media_type} is not described"))?["schema"]
            }
            None if reply.status >= 400 => self.0.pointer(&PROBLEM[1..]).context("Problem is not described")?,
            None if call.path == "/openapi.json" => return Ok(()),
            None => bail!("{} is not described", reply.status),
        };
        self.fits(schema, &reply.body, "").with_context(|| format!("the answer {}", reply.summary()))
    }

    fn response(&self, call: &Call, status: u16) -> Option<&Value> {
        let (path, _) = call.path.split_once('?').unwrap_or((&call.path, ""));
        let (_, item) = self.paths().ok()?.iter().find(|(template, _)| matches(template, path))?;
        let responses = &item[call.method.as_str().to_lowercase()]["responses"];
        responses.get(status.to_string())
    }

    fn fits(&self, schema: &Value, value: &Value, place: &str) -> anyhow::Result<()> {
        let resolved = self.resolve(schema)?;
        // In a choice between whole objects, one of the objects must fit. A choice next to properties adds to the properties.
        if let Some(choices) = resolved["oneOf"].as_array()
            && resolved["properties"].is_null()
            && (value.is_object() || value.is_array())
        {
            let misfits: Vec<_> = choices.iter().map_while(|choice| self.fits(choice, value, place).err()).collect();
            expect!(
                misfits.len() < choices.len(),
                "{}",
                misfits.iter().map(|e| format!("{e:#}")).collect::<Vec<_>>().join("; or ")
            );
            return Ok(());
        }
        match value {
            Value::Object(members) => {
                let mut shape = Shape::default();
                self.collect(schema, &mut shape)?;
                for required in &shape.required {
                    ensure!(members.contains_key(*required), "{place}/{required} is missing");
                }
                for (name, member) in members {
                    let place = format!("{place}/{name}");
                    let mut described = shape.properties.iter().filter(|(known, _)| *known == name).peekable();
                    if described.peek().is_none() {
                        let schema = shape.additional.with_context(|| format!("{place} is not described"))?;
                        self.fits(schema, member, &place)?;
                    }
                    // A schema that narrows another one describes the property again. The member must fit all descriptions.
                    described.try_for_each(|(_, schema)| self.fits(schema, member, &place))?;
                }
                Ok(())
            }
            Value::Array(items) => {
                let described = self.resolve(schema)?["items"].is_object();
                ensure!(described, "{place} is not described as an array");
                let schema = &self.resolve(schema)?["items"];
                items
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, item)| self.fits(schema, item, &format!("{place}/{index}")))
            }
            scalar => {
                let kind = match scalar {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(_) => "integer",
                    _ => "string",
                };
                ensure!(self.allows(schema, scalar, kind)?, "{place} is {scalar}, which is not described");
                Ok(())
            }
        }
    }

    /// Whether the schema allows this scalar of this type.
    fn allows(&self, schema: &Value, scalar: &Value, kind: &str) -> anyhow::Result<bool> {
        let schema = self.resolve(schema)?;
        for choice in ["oneOf", "anyOf", "allOf"].iter().filter_map(|name| schema[name].as_array()).flatten() {
            if self.allows(choice, scalar, kind)? {
                return Ok(true);
            }
        }
        let listed = match (&schema["enum"], &schema["const"]) {
            (Value::Array(values), _) => Some(values.contains(scalar)),
            (_, Value::Null) => None,
            (_, only) => Some(only == scalar),
        };
        let typed = match &schema["type"] {
            Value::String(one) => Some(one == kind),
            Value::Array(several) => Some(several.iter().any(|one| one == kind)),
            _ => None,
        };
        // A schema without values and without a type allows nothing.
        Ok((listed.is_some() || typed.is_some()) && listed.unwrap_or(true) && typed.unwrap_or(true))
    }

    fn collect<'a>(&'a self, schema: &'a Value, shape: &mut Shape<'a>) -> anyhow::Result<()> {
        let schema = self.resolve(schema)?;
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.collect(part, shape)?;
        }
        // No member of an alternative is required, because another alternative may fit.
        for choice in ["oneOf", "anyOf"].iter().filter_map(|name| schema[name].as_array()).flatten() {
            let required = shape.required.len();
            self.collect(choice, shape)?;
            shape.required.truncate(required);
        }
        shape.properties.extend(schema["properties"].as_object().into_iter().flatten());
        shape.required.extend(schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str));
        if schema["additionalProperties"].is_object() {
            shape.additional = Some(&schema["additionalProperties"]);
        }
        Ok(())
    }

    fn resolve<'a>(&'a self, schema: &'a Value) -> anyhow::Result<&'a Value> {
        match schema["$ref"].as_str() {
            None => Ok(schema),
            Some(reference) => {
                let pointer =
                    reference.strip_prefix('#').with_context(|| format!("{reference} leaves the document"))?;
                self.0.pointer(pointer).with_context(|| format!("{reference} names nothing in the document"))
            }
        }
    }
}

/// The members that an object may have, and those that it must have.
#[derive(Default)]
struct Shape<'a> {
    properties: Vec<(&'a String, &'a Value)>,
    required: Vec<&'a str>,
    additional: Option<&'a Value>,
}

fn matches(template: &str, path: &str) -> bool {
    let (mut wanted, mut there) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), there.next()) {
            (None, None) => return true,
            (Some(wanted), Some(there)) if wanted == there || (wanted.starts_with('{') && !there.is_empty()) => {}
            _ => return false,
        }
    }
}

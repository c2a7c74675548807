//! What was asked and answered, for people: accounts are letters, ids are numbers.

use std::fmt;

use model::Answer;
use serde_json::Value;

use super::wire::Call;

/// The lines so far.
#[derive(Debug, Default)]
pub struct Transcript {
    lines: Vec<String>,
    /// What stands for what.
    names: Vec<(String, String)>,
    ids: usize,
    last: Value,
}

impl Transcript {
    /// From now on `name` is written as `short`.
    pub fn call(&mut self, name: &str, short: &str) {
        self.names.push((name.replace('{', "%7B").replace('}', "%7D"), short.to_owned()));
        self.names.push((name.to_owned(), short.to_owned()));
    }

    pub fn note(&mut self, text: &str) {
        self.lines.push(format!("-- {text}"));
    }

    pub fn exchange(&mut self, call: &Call, expected: &Answer, found: &Answer) {
        self.name_id(call);
        self.read(call);
        self.lines.push(format!("    model:  {}", in_short(expected)));
        self.lines.push(format!("    router: {}", in_short(found)));
        self.last = found.body.clone();
    }

    pub fn read(&mut self, call: &Call) {
        let body = call.body.as_ref().map(Value::to_string).unwrap_or_default();
        self.lines.push(format!("{} {} {body}", call.method, call.path));
    }

    /// The newest answer.
    pub fn last_found(&self) -> &Value {
        &self.last
    }

    fn name_id(&mut self, call: &Call) {
        let Some(body) = &call.body else { return };
        let items = body["transfers"].as_array().into_iter().flatten();
        let ids: Vec<String> =
            items.chain([body]).filter_map(|item| item["id"].as_str()).map(str::to_owned).collect();
        for id in ids {
            if uuid::Uuid::parse_str(&id).is_ok() && !self.names.iter().any(|(name, _)| *name == id) {
                self.ids += 1;
                self.names.push((id, format!("#{}", self.ids)));
            }
        }
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            let short = self.names.iter().fold(line.clone(), |line, (name, short)| line.replace(name, short));
            writeln!(f, "{short}")?;
        }
        Ok(())
    }
}

/// Status, and of the body what decides.
fn in_short(answer: &Answer) -> String {
    let mut line = answer.status.to_string();
    for member in ["code", "status", "side", "field", "amount", "posted", "held", "version"] {
        if let Some(value) = answer.body.get(member).filter(|value| **value != answer.status) {
            line += &format!(" {member}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
    for result in answer.body["results"].as_array().into_iter().flatten() {
        let words = ["status", "code", "side", "field"].iter().filter_map(|member| result[*member].as_str());
        line += &format!(" [{}]", words.collect::<Vec<_>>().join(" "));
    }
    if let Some(after) = answer.body.get("debit_account") {
        line += &format!(" debit_account={after}");
    }
    if answer.replayed { line + " replayed" } else { line }
}

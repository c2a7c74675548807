//! What was asked and answered, for people: accounts are letters, ids are numbers.

use std::fmt;

use model::Answer;
use testkit::client::escaped;

use super::wire::Call;

/// What happened so far. Written only when somebody wants to read it.
#[derive(Debug, Default)]
pub struct Transcript {
    events: Vec<Event>,
    /// What stands for what.
    names: Vec<(String, String)>,
    ids: usize,
}

#[derive(Debug)]
enum Event {
    Note(String),
    Read(Call),
    Exchange { call: Call, expected: Answer, found: Answer },
}

impl Transcript {
    /// From now on `name` is written as `short`.
    pub fn call(&mut self, name: &str, short: &str) {
        self.names.push((escaped(name), short.to_owned()));
        self.names.push((name.to_owned(), short.to_owned()));
    }

    pub fn note(&mut self, text: &str) {
        self.events.push(Event::Note(text.to_owned()));
    }

    pub fn exchange(&mut self, call: Call, expected: &Answer, found: &Answer) {
        self.name_ids(&call);
        self.events.push(Event::Exchange { call, expected: expected.clone(), found: found.clone() });
    }

    pub fn read(&mut self, call: Call) {
        self.events.push(Event::Read(call));
    }

    fn name_ids(&mut self, call: &Call) {
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
        for event in &self.events {
            let long = event.to_string();
            let short = self.names.iter().fold(long, |text, (name, short)| text.replace(name, short));
            writeln!(f, "{short}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Note(text) => write!(f, "-- {text}"),
            Self::Read(call) => write!(f, "{call}"),
            Self::Exchange { call, expected, found } => {
                write!(f, "{call}\n    model:  {}\n    router: {}", in_short(expected), in_short(found))
            }
        }
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

//! Malformed requests: each is answered with its code and the place of the mistake, and none leaves a row.

mod accounts;
mod bodies;
mod orders;
mod requests;

use anyhow::ensure;

use super::{
    api::Call,
    stage::{Findings, Stage},
};

/// A cluster with two accounts, whose rows are counted before and after the requests. Both accounts exist, so that an order is refused for its
/// mistake only.
struct Tried {
    stage: Stage,
    debit: String,
    credit: String,
    rows: i64,
    findings: Findings,
}

impl Tried {
    async fn new() -> anyhow::Result<Self> {
        let stage = Stage::quiet().await?;
        let debit = stage.account(0, "USD posted=100").await?;
        let credit = stage.account(1, "USD").await?;
        let rows = stage.rows().await?;
        Ok(Self { stage, debit, credit, rows, findings: Findings::default() })
    }

    /// Sends a request and compares the summary of its answer.
    async fn call(&mut self, what: &str, call: Call, expected: &str) {
        let sent = match self.stage.api.send(call).await {
            Ok(reply) => reply.expect(expected),
            Err(error) => Err(error),
        };
        self.findings.note(shortened(what), sent);
    }

    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        self.findings.note(shortened(what), result);
    }

    async fn finish(self) -> anyhow::Result<()> {
        self.findings.conclude()?;
        let rows = self.stage.rows().await? - self.rows;
        ensure!(rows == 0, "bad requests left {rows} rows");
        self.stage.finish().await
    }
}

/// Some bodies are megabytes.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 160;
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

/// An object whose members are raw JSON: `replace` and `add` make it wrong in one place.
#[derive(Debug, Clone)]
pub struct Members(Vec<(String, String)>);

impl Members {
    pub fn of(members: &[(&str, String)]) -> Self {
        Self(members.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect())
    }

    pub fn replace(mut self, name: &str, value: &str) -> Self {
        self.0.retain(|(there, _)| there != name);
        self.add(name, value)
    }

    /// Also where the name is taken.
    pub fn add(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(there, _)| there != name);
        self
    }

    pub fn text(&self) -> String {
        let members: Vec<String> = self.0.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        format!("{{{}}}", members.join(", "))
    }
}

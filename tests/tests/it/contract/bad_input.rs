//! Requests that are no good: each has its code and its place, none leaves a row.

mod accounts;
mod bodies;
mod orders;
mod requests;

use super::{
    api::Call,
    stage::{Findings, Stage},
};

/// Tries everything bad and counts rows before and after.
pub async fn is_refused_and_leaves_no_row(stage: &Stage) -> anyhow::Result<()> {
    // What orders name exists, so that only what is wrong with them stands in their way.
    let debit = stage.account(0, "USD posted=100").await?;
    let credit = stage.account(1, "USD").await?;
    let before = stage.rows().await?;
    let mut tried = Tried { stage, findings: Findings::default() };
    orders::are_refused(&mut tried, &debit, &credit).await;
    accounts::are_refused(&mut tried, &debit).await;
    bodies::are_refused(&mut tried, &debit, &credit).await;
    requests::are_refused(&mut tried, &debit).await;
    tried.findings.conclude()?;
    let rows = stage.rows().await? - before;
    anyhow::ensure!(rows == 0, "bad requests left {rows} rows");
    Ok(())
}

/// Keeps what went otherwise than expected.
pub struct Tried<'a> {
    stage: &'a Stage,
    findings: Findings,
}

impl Tried<'_> {
    /// Sends it and holds the answer's summary against what is expected.
    pub async fn call(&mut self, what: &str, call: Call, expected: &str) {
        let sent = match self.stage.api.send(call).await {
            Ok(reply) => reply.expect(expected),
            Err(error) => Err(error),
        };
        self.findings.note(shortened(what), sent);
    }

    pub fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        self.findings.note(shortened(what), result);
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

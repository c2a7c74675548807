//! A batch of transfers as NDJSON: one JSON object a line. Blank lines are skipped; pointers begin with the item's
//! index, as if the lines were an array.

use std::collections::HashSet;

use ledger::Metadata;

use super::{
    MAX_BATCH_ITEMS, Rulebook,
    explain::{Explanation, batch_too_large, read_tree},
    transfer::TransferBody,
    transfer_batch::{examine_item, ids_differ},
    typed,
};
use crate::{
    core::reply::NewTransfer,
    http::problem::{Code, Problem},
};

/// Reads a batch of lines.
pub fn transfer_lines(text: &str, rulebook: &Rulebook) -> Result<Vec<NewTransfer>, Problem> {
    if items(text).nth(MAX_BATCH_ITEMS).is_some() {
        return Err(batch_too_large());
    }
    match fast_lines(text, rulebook) {
        Some(transfers) => Ok(transfers),
        None => Err(explain_lines(text, rulebook)),
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').map(str::trim_ascii).filter(|line| !line.is_empty())
}

fn fast_lines(text: &str, rulebook: &Rulebook) -> Option<Vec<NewTransfer>> {
    let no_metadata = Metadata::empty();
    let mut transfers = Vec::new();
    for line in items(text) {
        let fields: TransferBody<'_> = typed(line)?;
        transfers.push(fields.order(rulebook, None, &no_metadata)?);
    }
    (!transfers.is_empty() && ids_differ(&transfers)).then_some(transfers)
}

fn explain_lines(text: &str, rulebook: &Rulebook) -> Problem {
    let mut explanation = Explanation::new(rulebook);
    let mut ids = HashSet::new();
    let mut count = 0;
    for (index, line) in items(text).enumerate() {
        count += 1;
        let pointer = format!("/{index}");
        match read_tree(line, &pointer) {
            Ok(node) => examine_item(&mut explanation, &node, &pointer, &mut ids),
            Err(problem) => explanation.absorb(&problem, &pointer),
        }
    }
    if count == 0 {
        explanation.add(Code::InvalidJson, String::new(), "a batch has at least one item");
    }
    explanation.into_problem()
}

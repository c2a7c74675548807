//! Where an answer leads: which operation takes what of it.

use serde_json::{Map, Value, json};

use super::{members, operations};

struct Link {
    from: &'static str,
    statuses: &'static [&'static str],
    to: &'static str,
    /// Parameter, and where in the answer its value is.
    parameters: &'static [(&'static str, &'static str)],
}

const ACCOUNT: &[(&str, &str)] = &[("path.id", "/id")];
/// Of a transfer or hold: an id belongs to its debit account.
const OWNED: &[(&str, &str)] = &[("path.id", "/id"), ("query.debit", "/debit")];
const MADE: &[&str] = &["201"];
const STORED: &[&str] = &["201", "202"];

#[rustfmt::skip]
const LINKS: &[Link] = &[
    Link { from: "openAccount", statuses: MADE, to: "getAccount", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "updateAccount", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "listEntries", parameters: ACCOUNT },
    Link { from: "openAccount", statuses: MADE, to: "getBalance", parameters: ACCOUNT },
    Link { from: "createTransfer", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "createTransfer", statuses: MADE, to: "reverseTransfer", parameters: OWNED },
    Link { from: "createTransfer", statuses: MADE, to: "getAccount", parameters: &[("path.id", "/credit")] },
    Link { from: "reverseTransfer", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "getHold", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "captureHold", parameters: OWNED },
    Link { from: "createHold", statuses: MADE, to: "releaseHold", parameters: OWNED },
    Link { from: "captureHold", statuses: STORED, to: "getTransfer", parameters: OWNED },
    Link { from: "captureHold", statuses: MADE, to: "reverseTransfer", parameters: OWNED },
];

/// Adds them to the responses.
pub fn add(document: &mut Value) {
    for (id, mut operation) in operations(document) {
        for link in LINKS.iter().filter(|link| link.from == id) {
            let parameters: Map<_, _> = link
                .parameters
                .iter()
                .map(|(name, place)| ((*name).to_owned(), json!(format!("$response.body#{place}"))))
                .collect();
            for response in operation.responses_of(link.statuses) {
                members(&mut response["links"])
                    .insert(link.to.to_owned(), json!({"operationId": link.to, "parameters": parameters.clone()}));
            }
        }
    }
}

/// How many links there are, each from each of its answers.
#[cfg(test)]
pub fn count() -> usize {
    LINKS.iter().map(|link| link.statuses.len()).sum()
}

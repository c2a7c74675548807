//! Batches: payments one after another, or all or none.

use serde_json::{Value, json};

use super::{Answer, Ledger};
use crate::Payment;

impl Ledger {
    pub(super) fn pay_each(&mut self, items: &[Payment]) -> Answer {
        if let Some(answer) = malformed(items) {
            return answer;
        }
        let results: Vec<Value> = items.iter().map(|item| result(item, &self.pay(item))).collect();
        Answer::ok(200, json!({"results": results}))
    }

    pub(super) fn pay_all_or_none(&mut self, items: &[Payment]) -> Answer {
        if let Some(answer) = malformed(items) {
            return answer;
        }
        let first = &items[0].debit;
        if items.iter().any(|item| self.shards.differ(first, &item.debit) || self.shards.differ(first, &item.credit))
        {
            return Answer::refused(422, "atomic_cross_shard");
        }
        let before = self.clone();
        let answers: Vec<Answer> = items.iter().map(|item| self.pay(item)).collect();
        let posted = |answer: &Answer| matches!(answer.status, 200 | 201);
        let results: Vec<Value> = match answers.iter().position(|answer| !posted(answer)) {
            None => items.iter().zip(&answers).map(|(item, answer)| result(item, answer)).collect(),
            Some(culprit) => {
                *self = before;
                // Nothing is stored.
                let failed = |mut result: Value| {
                    result["status"] = "failed".into();
                    result
                };
                let one = |(index, item): (usize, &Payment)| match index == culprit {
                    // Refused by an earlier request, its id stays what it is.
                    true if answers[culprit].replayed => result(item, &answers[culprit]),
                    true => failed(result(item, &answers[culprit])),
                    false => failed(result(item, &Answer::refused(422, "batch_failed"))),
                };
                items.iter().enumerate().map(one).collect()
            }
        };
        Answer::ok(200, json!({"results": results}))
    }
}

fn malformed(items: &[Payment]) -> Option<Answer> {
    if items.iter().any(|item| item.debit == item.credit) {
        return Some(Answer::refused(400, "same_account"));
    }
    let twice = |(index, item): (usize, &Payment)| items[..index].iter().any(|earlier| earlier.id == item.id);
    items.iter().enumerate().any(twice).then(|| Answer::refused(400, "duplicate_id"))
}

/// An item's result, from the answer the same transfer alone would get.
fn result(item: &Payment, answer: &Answer) -> Value {
    let code = answer.body["code"].as_str();
    let side = answer.body["side"].as_str();
    let status = match (code, side) {
        (None, _) => "posted",
        // Nothing is stored.
        (Some("idempotency_mismatch"), _) | (Some("account_not_found"), Some("debit")) => "failed",
        (Some(_), _) => "rejected",
    };
    let mut result = json!({"id": item.id, "status": status, "replayed": answer.replayed});
    for member in ["code", "side", "field"] {
        if let Some(value) = answer.body.get(member) {
            result[member] = value.clone();
        }
    }
    result
}

//! What an answer says about a transfer. A checked history has three classes of answers: definite (posted or rejected), not executed, and
//! unknown.

use serde_json::Value;

use super::{Answer, NoAnswer};

/// The meaning of an answer. Jepsen calls the classes `ok` (posted, rejected), `fail` (not executed) and `info` (unknown).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Posted,
    /// A rule of the ledger refused the order. The refusal is stored under this id and never changes.
    Rejected {
        code: String,
    },
    /// This request certainly had no effect. An earlier request with the same id may have had one.
    NotExecuted {
        code: String,
    },
    Unknown {
        why: String,
    },
    /// The contract does not allow this answer to this request.
    Nonsense {
        answer: String,
    },
}

/// Whether a refusal with this code, which names a transfer or hold, was stored under its id.
fn is_kept(code: &str) -> bool {
    !matches!(code, "idempotency_mismatch" | "undetermined")
}

impl Verdict {
    /// The meaning of an answer to `POST /v1/transfers`, a capture, or a reversal.
    pub fn of_transfer(answer: &Result<Answer, NoAnswer>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return Self::of_silence(lost),
        };
        let body = answer.json().unwrap_or_default();
        match (answer.status, body["status"].as_str()) {
            (200 | 201, Some("posted")) => Self::Posted,
            (202, Some("pending")) => Self::Unknown { why: "pending".to_owned() },
            // A stored refusal names the transfer. A mismatch says that the id belongs to another transfer.
            (409 | 422, _) if body["transfer_id"].is_string() && is_kept(&answer.code()) => {
                Self::Rejected { code: answer.code() }
            }
            _ => Self::of_problem(answer, &body),
        }
    }

    /// The meaning of an answer to `POST /v1/holds`. `Posted` means that the hold was placed.
    pub fn of_hold(answer: &Result<Answer, NoAnswer>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return Self::of_silence(lost),
        };
        let body = answer.json().unwrap_or_default();
        match (answer.status, body["status"].as_str()) {
            (200 | 201, Some("held")) => Self::Posted,
            (422, _) if body["hold_id"].is_string() && is_kept(&answer.code()) => {
                Self::Rejected { code: answer.code() }
            }
            _ => Self::of_problem(answer, &body),
        }
    }

    /// The meaning of an answer to the release of a hold. `Posted` means released. A hold that has ended in another way never changes
    /// again.
    pub fn of_release(answer: &Result<Answer, NoAnswer>) -> Self {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return Self::of_silence(lost),
        };
        let body = answer.json().unwrap_or_default();
        match (answer.status, body["status"].as_str(), answer.code().as_str()) {
            (200, Some("released"), _) => Self::Posted,
            (409, _, "hold_captured" | "hold_expired") => Self::Rejected { code: answer.code() },
            _ => Self::of_problem(answer, &body),
        }
    }

    /// The meaning of an answer to `POST /v1/transfers:batch`, for each item.
    pub fn of_batch(answer: &Result<Answer, NoAnswer>, items: usize) -> Vec<Self> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(lost) => return vec![Self::of_silence(lost); items],
        };
        let body = answer.json().unwrap_or_default();
        match (answer.status, body["results"].as_array()) {
            (200, Some(results)) if results.len() == items => results.iter().map(Self::of_item).collect(),
            _ => vec![Self::of_problem(answer, &body); items],
        }
    }

    fn of_item(item: &Value) -> Self {
        let code = item["code"].as_str().unwrap_or_default().to_owned();
        match item["status"].as_str() {
            Some("posted") => Self::Posted,
            Some("rejected") => Self::Rejected { code },
            Some("failed") if code != "idempotency_mismatch" => Self::NotExecuted { code },
            Some(open @ ("pending" | "unknown")) => Self::Unknown { why: open.to_owned() },
            _ => Self::Nonsense { answer: item.to_string() },
        }
    }

    fn of_problem(answer: &Answer, body: &Value) -> Self {
        match (answer.status, &body["executed"]) {
            (409 | 429 | 503, Value::Bool(false)) if body["retryable"] == true => {
                Self::NotExecuted { code: answer.code() }
            }
            (500.., Value::String(unknown)) if unknown == "unknown" => Self::Unknown { why: answer.code() },
            _ => Self::Nonsense { answer: format!("{} {}", answer.status, answer.text()) },
        }
    }

    fn of_silence(lost: &NoAnswer) -> Self {
        match lost {
            NoAnswer { not_sent: true, reason } => Self::NotExecuted { code: reason.clone() },
            NoAnswer { not_sent: false, reason } => Self::Unknown { why: reason.clone() },
        }
    }

    /// A short name of the verdict, under which it is counted.
    pub fn kind(&self) -> String {
        match self {
            Self::Posted => "posted".to_owned(),
            Self::Rejected { code } => format!("rejected {code}"),
            Self::NotExecuted { code } => format!("not executed {code}"),
            Self::Unknown { why } => format!("unknown {why}"),
            Self::Nonsense { .. } => "nonsense".to_owned(),
        }
    }

    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Posted | Self::Rejected { .. })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderMap;

    use super::*;

    fn answer(status: u16, body: &'static str) -> Result<Answer, NoAnswer> {
        Ok(Answer { status, headers: HeaderMap::new(), body: Bytes::from_static(body.as_bytes()) })
    }

    #[test]
    fn only_what_says_so_is_certain() {
        let posted = answer(201, r#"{"status": "posted"}"#);
        assert_eq!(Verdict::of_transfer(&posted), Verdict::Posted);
        let refused = answer(422, r#"{"code": "insufficient_funds", "transfer_id": "x", "executed": false}"#);
        assert_eq!(Verdict::of_transfer(&refused), Verdict::Rejected { code: "insufficient_funds".to_owned() });
        let unavailable = answer(503, r#"{"code": "shard_unavailable", "retryable": true, "executed": false}"#);
        assert_eq!(Verdict::of_transfer(&unavailable), Verdict::NotExecuted { code: "shard_unavailable".to_owned() });
        let body =
            r#"{"code": "undetermined", "retryable": true, "transfer_id": "x", "hold_id": "x", "executed": false}"#;
        let undetermined = answer(409, body);
        for verdict in [Verdict::of_transfer(&undetermined), Verdict::of_hold(&undetermined)] {
            assert_eq!(verdict, Verdict::NotExecuted { code: "undetermined".to_owned() });
        }
        for open in [
            answer(202, r#"{"status": "pending"}"#),
            answer(504, r#"{"code": "outcome_unknown", "executed": "unknown"}"#),
            Err(NoAnswer { not_sent: false, reason: "reset".to_owned() }),
        ] {
            assert!(matches!(Verdict::of_transfer(&open), Verdict::Unknown { .. }), "{open:?}");
        }
        for nonsense in [
            answer(422, r#"{"code": "idempotency_mismatch", "transfer_id": "x", "executed": false}"#),
            answer(503, r#"{"code": "shard_unavailable"}"#),
            answer(200, "{}"),
        ] {
            assert!(matches!(Verdict::of_transfer(&nonsense), Verdict::Nonsense { .. }), "{nonsense:?}");
        }
    }

    #[test]
    fn each_item_of_a_batch_is_judged_by_itself() {
        let batch = answer(
            200,
            r#"{"results": [{"status": "posted"}, {"status": "failed", "code": "overloaded"}, {"status": "unknown"}]}"#,
        );
        let verdicts = Verdict::of_batch(&batch, 3);
        assert_eq!(verdicts[0], Verdict::Posted);
        assert_eq!(verdicts[1], Verdict::NotExecuted { code: "overloaded".to_owned() });
        assert!(matches!(verdicts[2], Verdict::Unknown { .. }));
        assert!(matches!(Verdict::of_batch(&batch, 4)[0], Verdict::Nonsense { .. }));
    }
}

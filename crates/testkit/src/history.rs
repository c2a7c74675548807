//! What clients asked and were answered: the side of the story that the databases are held against.

mod life;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

pub use life::{Capture, Life, Reversal};

use crate::client::Verdict;

/// One transfer as its client ordered it, in minor units of USD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub id: Uuid,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
}

/// The asset all test transfers are in, and how many minor units make one of it.
pub const ASSET: &str = "USD";
const MINOR_UNITS: i64 = 100;

impl Order {
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id, "debit": self.debit, "credit": self.credit, "amount": decimal(self.amount), "asset": ASSET,
        })
    }
}

/// Minor units as the API writes them.
pub fn decimal(minor: i64) -> String {
    let (sign, minor) = if minor < 0 { ("-", -minor) } else { ("", minor) };
    format!("{sign}{}.{:02}", minor / MINOR_UNITS, minor % MINOR_UNITS)
}

/// One request for an order and how it ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Monotonic, since the history began.
    pub invoked: Duration,
    pub returned: Duration,
    pub router: usize,
    pub verdict: Verdict,
}

/// An order, everything it was answered, and what that comes to.
#[derive(Debug, Clone)]
pub struct Record {
    pub order: Order,
    pub attempts: Vec<Attempt>,
}

/// What all answers to an order come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Posted,
    Rejected {
        code: String,
    },
    /// Every attempt was answered "not executed", and none is made any more: it must never be there.
    Absent,
    /// No definite answer was ever got. A run with one of these proves nothing.
    Open,
    /// Answers that contradict each other or the contract.
    Contradiction(String),
}

impl Record {
    pub fn new(order: Order) -> Self {
        Self { order, attempts: Vec::new() }
    }

    pub fn fate(&self) -> Fate {
        let mut definite: Option<&Verdict> = None;
        let mut all_without_effect = true;
        for attempt in &self.attempts {
            match &attempt.verdict {
                Verdict::Nonsense { answer } => return Fate::Contradiction(answer.clone()),
                Verdict::NotExecuted { .. } => {}
                Verdict::Unknown { .. } => all_without_effect = false,
                verdict @ (Verdict::Posted | Verdict::Rejected { .. }) => match definite {
                    Some(before) if before != verdict => {
                        return Fate::Contradiction(format!("first {before:?}, then {verdict:?}"));
                    }
                    _ => definite = Some(verdict),
                },
            }
        }
        match definite {
            Some(Verdict::Rejected { code }) => Fate::Rejected { code: code.clone() },
            Some(_) => Fate::Posted,
            None if all_without_effect => Fate::Absent,
            None => Fate::Open,
        }
    }
}

/// The clock of a run.
#[derive(Debug, Clone, Copy)]
pub struct RunClock {
    began: Instant,
}

impl Default for RunClock {
    fn default() -> Self {
        Self { began: Instant::now() }
    }
}

impl RunClock {
    pub fn now(self) -> Duration {
        self.began.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(verdicts: &[Verdict]) -> Record {
        let order = Order { id: Uuid::nil(), debit: "a".to_owned(), credit: "b".to_owned(), amount: 1 };
        let attempt = |verdict: &Verdict| Attempt {
            invoked: Duration::ZERO,
            returned: Duration::ZERO,
            router: 0,
            verdict: verdict.clone(),
        };
        Record { order, attempts: verdicts.iter().map(attempt).collect() }
    }

    #[test]
    fn one_unknown_answer_is_enough_to_doubt_that_nothing_happened() {
        let no = Verdict::NotExecuted { code: "overloaded".to_owned() };
        let unknown = Verdict::Unknown { why: "reset".to_owned() };
        let refused = Verdict::Rejected { code: "insufficient_funds".to_owned() };
        assert_eq!(record(&[no.clone(), no.clone()]).fate(), Fate::Absent);
        assert_eq!(record(&[no.clone(), unknown.clone(), no.clone()]).fate(), Fate::Open);
        assert_eq!(record(&[unknown, Verdict::Posted, no]).fate(), Fate::Posted);
        assert!(matches!(record(&[Verdict::Posted, refused]).fate(), Fate::Contradiction(_)));
    }

    #[test]
    fn amounts_are_written_in_full() {
        assert_eq!([decimal(5), decimal(1_234), decimal(-250)], ["0.05", "12.34", "-2.50"]);
    }
}

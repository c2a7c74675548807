//! The requests of clients and their answers. The audit compares them with the databases.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::Verdict;

/// A client's order for one transfer, in minor units of USD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub id: Uuid,
    pub debit: String,
    pub credit: String,
    pub amount: i64,
}

/// The asset of all test transfers, and its number of minor units in a major unit.
pub const ASSET: &str = "USD";
const MINOR_UNITS: i64 = 100;

impl Order {
    pub fn to_json(&self) -> Value {
        payment_body(self.id, &self.debit, &self.credit, &decimal(self.amount))
    }
}

/// The body of a request for a payment. The amount is in USD, as the API writes it.
pub fn payment_body(id: Uuid, debit: &str, credit: &str, amount: &str) -> Value {
    json!({"id": id, "debit": debit, "credit": credit, "amount": amount, "asset": ASSET})
}

/// The body of a request for a hold. Without a number of seconds the hold does not expire.
pub fn hold_body(id: Uuid, debit: &str, credit: &str, amount: &str, expires_in_s: Option<u32>) -> Value {
    let mut body = payment_body(id, debit, credit, amount);
    body["expires_in_s"] = json!(expires_in_s);
    body
}

/// Writes minor units as the API does.
pub fn decimal(minor: i64) -> String {
    let (sign, minor) = if minor < 0 { ("-", -minor) } else { ("", minor) };
    format!("{sign}{}.{:02}", minor / MINOR_UNITS, minor % MINOR_UNITS)
}

/// One request for an order and how it ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The time since the history began, from a monotonic clock.
    pub invoked: Duration,
    pub returned: Duration,
    pub router: usize,
    pub verdict: Verdict,
}

/// An order with all its attempts.
#[derive(Debug, Clone)]
pub struct Record {
    pub order: Order,
    pub attempts: Vec<Attempt>,
}

/// The outcome of an order according to all its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    Posted,
    Rejected {
        code: String,
    },
    /// Every attempt was answered "not executed", and no more attempts are made. The order must never take effect.
    Absent,
    /// No attempt has a definite answer. A run with such an order proves nothing.
    Open,
    /// The answers contradict each other or the contract.
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

/// A hold from its placing to its end. In the record of the hold, `Posted` means that it was placed.
#[derive(Debug, Clone)]
pub struct Life {
    pub hold: Record,
    pub captures: Vec<Capture>,
    /// Requests for the release of the hold. In these records, `Posted` means released.
    pub releases: Vec<Record>,
    pub reversals: Vec<Reversal>,
}

#[derive(Debug, Clone)]
pub struct Capture {
    pub record: Record,
    pub finalizes: bool,
}

#[derive(Debug, Clone)]
pub struct Reversal {
    pub record: Record,
    /// The id of the capture that is reversed.
    pub of: Uuid,
}

impl Life {
    pub fn new(hold: Record) -> Self {
        Self { hold, captures: Vec::new(), releases: Vec::new(), reversals: Vec::new() }
    }

    /// The records of the captures and reversals, which are transfers.
    pub fn transfers(&self) -> impl Iterator<Item = &Record> {
        let captures = self.captures.iter().map(|capture| &capture.record);
        captures.chain(self.reversals.iter().map(|reversal| &reversal.record))
    }

    /// The sum of the captures that were answered as posted, in minor units.
    pub fn captured(&self) -> i64 {
        let posted = self.captures.iter().filter(|capture| capture.record.fate() == Fate::Posted);
        posted.map(|capture| capture.record.order.amount).sum()
    }

    /// The sum of the posted reversals of a capture in minor units, and their number.
    pub fn reversed(&self, capture: Uuid) -> (i64, usize) {
        let of_it = self.reversals.iter().filter(|it| it.of == capture && it.record.fate() == Fate::Posted);
        of_it.fold((0, 0), |(sum, count), it| (sum + it.record.order.amount, count + 1))
    }

    /// The final status of the hold, or the reason why the answers contradict each other. A client or the expiry ends every hold.
    pub fn status(&self) -> Result<&'static str, String> {
        match self.hold.fate() {
            Fate::Posted => {}
            Fate::Rejected { .. } => return Ok("rejected"),
            other => return Err(format!("placing it was answered {other:?}")),
        }
        let is_final = |it: &&Capture| it.finalizes && it.record.fate() == Fate::Posted;
        let captures = self.captures.iter().filter(is_final).count();
        let all = self.captured() == self.hold.order.amount;
        let released = self.releases.iter().any(|release| release.fate() == Fate::Posted);
        let status = match (captures, released) {
            (0, false) if all => "captured",
            (1, false) => "captured",
            (0, true) if !all => "released",
            (0, false) => "expired",
            _ => return Err(format!("it ended more than once: {captures} final captures, released: {released}")),
        };
        if self.captured() > self.hold.order.amount {
            return Err(format!("{} of {} were captured", self.captured(), self.hold.order.amount));
        }
        let losers = self.captures.iter().map(|it| &it.record).chain(&self.releases);
        for loser in losers {
            if let Fate::Rejected { code } = loser.fate()
                && code.starts_with("hold_")
                && code != format!("hold_{status}")
            {
                return Err(format!("it is {status}, and a client was told {code}"));
            }
        }
        Ok(status)
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

    fn placed(amount: i64, verdict: Verdict) -> Record {
        let order = Order { id: Uuid::now_v7(), debit: "a".to_owned(), credit: "b".to_owned(), amount };
        let attempt = Attempt { invoked: Duration::ZERO, returned: Duration::ZERO, router: 0, verdict };
        Record { order, attempts: vec![attempt] }
    }

    fn refused(code: &str) -> Verdict {
        Verdict::Rejected { code: code.to_owned() }
    }

    fn life(captures: &[(i64, bool, Verdict)], release: Option<Verdict>) -> Life {
        let mut life = Life::new(placed(10, Verdict::Posted));
        life.captures = captures
            .iter()
            .map(|(amount, finalizes, verdict)| Capture {
                record: placed(*amount, verdict.clone()),
                finalizes: *finalizes,
            })
            .collect();
        life.releases = release.into_iter().map(|verdict| placed(10, verdict)).collect();
        life
    }

    #[test]
    fn a_hold_has_one_end() {
        let posted = Verdict::Posted;
        assert_eq!(life(&[], None).status(), Ok("expired"));
        assert_eq!(life(&[(4, true, posted.clone())], Some(refused("hold_captured"))).status(), Ok("captured"));
        assert_eq!(
            life(&[(4, false, posted.clone()), (6, false, posted.clone())], None).status(),
            Ok("captured"),
            "nothing remains"
        );
        assert_eq!(
            life(&[(4, false, posted.clone()), (9, true, refused("exceeds_hold"))], Some(posted.clone())).status(),
            Ok("released")
        );
        for impossible in [
            life(&[(4, true, posted.clone())], Some(posted.clone())),
            life(&[(4, true, posted.clone()), (4, true, posted.clone())], None),
            life(&[(4, true, refused("hold_captured"))], Some(posted.clone())),
            life(&[(6, false, posted.clone()), (6, false, posted)], None),
        ] {
            assert!(impossible.status().is_err(), "{impossible:?}");
        }
    }
}

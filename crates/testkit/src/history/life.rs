//! What was done with one hold, and what must have become of it by what its clients were told.

use uuid::Uuid;

use super::{Fate, Record};

/// A hold from its placing to its end. Its own record is of an order as well: posted means placed.
#[derive(Debug, Clone)]
pub struct Life {
    pub hold: Record,
    pub captures: Vec<Capture>,
    /// Under the hold's order; posted means released.
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
    /// The capture.
    pub of: Uuid,
}

impl Life {
    pub fn new(hold: Record) -> Self {
        Self { hold, captures: Vec::new(), releases: Vec::new(), reversals: Vec::new() }
    }

    /// The transfers it consists of.
    pub fn transfers(&self) -> impl Iterator<Item = &Record> {
        let captures = self.captures.iter().map(|capture| &capture.record);
        captures.chain(self.reversals.iter().map(|reversal| &reversal.record))
    }

    /// Minor units that captures were told they took.
    pub fn captured(&self) -> i64 {
        let posted = self.captures.iter().filter(|capture| capture.record.fate() == Fate::Posted);
        posted.map(|capture| capture.record.order.amount).sum()
    }

    /// Minor units that were told to be paid back of one capture, and by how many reversals.
    pub fn reversed(&self, capture: Uuid) -> (i64, usize) {
        let of_it = self.reversals.iter().filter(|it| it.of == capture && it.record.fate() == Fate::Posted);
        of_it.fold((0, 0), |(sum, count), it| (sum + it.record.order.amount, count + 1))
    }

    /// The status that the hold must have in the end, or why the answers cannot all be true. Every hold is ended by a client
    /// or by its time.
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
                return Err(format!("it is {status}, and somebody was told {code}"));
            }
        }
        Ok(status)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        client::Verdict,
        history::{Attempt, Order},
    };

    fn record(amount: i64, verdict: Verdict) -> Record {
        let order = Order { id: Uuid::now_v7(), debit: "a".to_owned(), credit: "b".to_owned(), amount };
        let attempt = Attempt { invoked: Duration::ZERO, returned: Duration::ZERO, router: 0, verdict };
        Record { order, attempts: vec![attempt] }
    }

    fn refused(code: &str) -> Verdict {
        Verdict::Rejected { code: code.to_owned() }
    }

    fn life(captures: &[(i64, bool, Verdict)], release: Option<Verdict>) -> Life {
        let mut life = Life::new(record(10, Verdict::Posted));
        life.captures = captures
            .iter()
            .map(|(amount, finalizes, verdict)| Capture {
                record: record(*amount, verdict.clone()),
                finalizes: *finalizes,
            })
            .collect();
        life.releases = release.into_iter().map(|verdict| record(10, verdict)).collect();
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

//! What the clients of a load have seen so far: how a test knows that it has gone on for long enough, however fast the
//! machine is.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::{
    client::Verdict,
    history::{Fate, Life, Record},
};

/// Something that a run has to see, or it proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A transfer of which at least one answer was unknown.
    InDoubt,
    Rejected,
    /// Posted, between two shards.
    CrossShard,
    /// Holds, by how they ended.
    Captured,
    Released,
    Expired,
}

/// Counts, shared by the clients.
#[derive(Debug, Default)]
pub struct Progress(Mutex<BTreeMap<Seen, usize>>);

impl Progress {
    pub fn of(&self, what: Seen) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&what).copied().unwrap_or_default()
    }

    /// An order that is done with.
    pub(super) fn note(&self, record: &Record, crosses: bool) {
        if record.attempts.iter().any(|attempt| matches!(attempt.verdict, Verdict::Unknown { .. })) {
            self.add(Seen::InDoubt);
        }
        match record.fate() {
            Fate::Posted if crosses => self.add(Seen::CrossShard),
            Fate::Rejected { .. } => self.add(Seen::Rejected),
            _ => {}
        }
    }

    /// A hold that is done with.
    pub(super) fn note_life(&self, life: &Life) {
        match life.status() {
            Ok("captured") => self.add(Seen::Captured),
            Ok("released") => self.add(Seen::Released),
            Ok("expired") => self.add(Seen::Expired),
            // Refused, or not to be true: for the audit.
            _ => {}
        }
    }

    fn add(&self, what: Seen) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }
}

//! How long to wait before a process that died is started again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// A process that lived this long was well: its death is a new event and no crash loop.
pub const WELL_AFTER: Duration = Duration::from_secs(2);

/// Doubles with each early death, up to a bound short enough for a cluster to heal by itself in half a minute.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a life of this length.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL_AFTER {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_deaths_wait_longer_and_a_long_life_forgives() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(WELL_AFTER).as_millis(), 100);
    }
}

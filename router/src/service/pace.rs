//! Pauses between attempts: longer each time, with jitter, never beyond a deadline.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::{Instant, sleep};

use super::Deadline;

/// The pauses of one piece of work that is tried again and again.
#[derive(Debug)]
pub struct Pace {
    delays: ExponentialBackoff,
}

impl Pace {
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let delays = ExponentialBuilder::new()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        Self { delays }
    }

    /// Waits for the next attempt's turn. False, at once, when the deadline comes first.
    pub async fn pause(&mut self, deadline: Deadline) -> bool {
        let Some(delay) = self.delays.next() else { return false };
        if Instant::now() + delay >= deadline {
            return false;
        }
        sleep(delay).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_a_cap_and_stop_at_the_deadline() {
        let begun = Instant::now();
        let deadline = begun + Duration::from_secs(5);
        let mut pace = Pace::new(Duration::from_millis(10), Duration::from_millis(100));
        let mut pauses = 0;
        while pace.pause(deadline).await {
            pauses += 1;
            assert!(pauses < 200, "the cap is 100 ms");
        }
        assert!(pauses >= 5 * 1000 / 200, "jitter at most doubles a pause: {pauses}");
        assert!(Instant::now() < deadline);
    }
}

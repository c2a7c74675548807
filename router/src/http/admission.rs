//! Admission: what is refused before anything of the request is parsed. A refusal costs next to nothing.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    metrics::{RefusalReason, count_refused},
    problem::{Code, Problem},
};
use crate::config::LimitsConfig;

/// Bounds on requests, shared by all connections.
#[derive(Debug, Clone)]
pub struct Admission {
    in_flight: Arc<Semaphore>,
    rate: Option<Arc<DefaultDirectRateLimiter>>,
    clock: DefaultClock,
}

impl Admission {
    pub fn new(max_requests_in_flight: usize, limits: &LimitsConfig) -> Self {
        let quota = NonZeroU32::new(limits.requests_per_second).map(|rate| {
            let burst = NonZeroU32::new(limits.burst).unwrap_or(rate);
            Quota::per_second(rate).allow_burst(burst)
        });
        Self {
            in_flight: Arc::new(Semaphore::new(max_requests_in_flight)),
            rate: quota.map(|quota| Arc::new(RateLimiter::direct(quota))),
            clock: DefaultClock::default(),
        }
    }

    /// Lets a request in for as long as the permit lives.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.check_rate()?;
        Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| {
            count_refused(RefusalReason::InFlight);
            Problem::new(Code::Overloaded, "too many requests are in flight")
        })
    }

    fn check_rate(&self) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        rate.check().map_err(|refused| {
            count_refused(RefusalReason::RateLimit);
            let wait = refused.wait_time_from(self.clock.now());
            Problem::new(Code::RateLimited, "more requests than the configured rate")
                .with_retry_after(whole_seconds(wait))
        })
    }
}

/// Rounded up: a client that comes back after it is let in.
pub fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_off_unless_configured() {
        let off = Admission::new(1, &LimitsConfig::default());
        assert!((0..10_000).all(|_| off.check_rate().is_ok()));

        let on = Admission::new(1, &LimitsConfig { requests_per_second: 1, burst: 3 });
        assert!((0..3).all(|_| on.check_rate().is_ok()));
        // A machine that stands still for a second lets one more in; but not every time.
        let refused = (0..20).find_map(|_| on.check_rate().err()).expect("a rate that is met");
        assert_eq!(refused.code(), Code::RateLimited);
    }

    #[test]
    fn a_permit_is_given_back() {
        let one = Admission::new(1, &LimitsConfig::default());
        let permit = one.admit().unwrap();
        assert_eq!(one.admit().unwrap_err().code(), Code::Overloaded);
        drop(permit);
        assert!(one.admit().is_ok());
    }

    #[test]
    fn waits_are_rounded_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1000)), 1);
        assert_eq!(whole_seconds(Duration::from_millis(1001)), 2);
    }
}

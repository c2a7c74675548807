//! Bounds that requests share: their rate, how many are in flight, and what one caller may hold of what all of them share.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::IpAddr,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::extract::FromRequestParts;
use certificates::network_of;
use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use http::{Extensions, request::Parts};
use ledger::KeyName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    access::Access,
    metrics::{RefusalReason, count_refused},
    problem::{Code, Problem},
};
use crate::config::LimitsConfig;

/// Bounds on requests, shared by all connections. They are checked before anything of the request is parsed, so that a refusal costs next to
/// nothing.
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
            Problem::new(Code::RateLimited, "more requests than the configured rate").with_retry_after(wait)
        })
    }
}

// === shares: what one caller holds leaves room for the others ===

/// The address that a request came from, in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

/// Whose share a request takes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    Key(KeyName),
    /// The request needs no key. With IPv6, the network of the address. `None`: the request did not come over a connection.
    Address(Option<IpAddr>),
}

impl Caller {
    /// The caller of a request with these extensions.
    pub fn of(extensions: &Extensions) -> Self {
        match extensions.get::<Access>().and_then(Access::ordered_by) {
            Some(key) => Self::Key(key),
            None => Self::Address(extensions.get::<PeerAddress>().map(|address| network_of(address.0))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    fn from_request_parts(parts: &mut Parts, _: &S) -> impl Future<Output = Result<Self, Infallible>> + Send {
        std::future::ready(Ok(Self::of(&parts.extensions)))
    }
}

/// A bound on something that requests hold, counted by caller. Clones share it.
#[derive(Debug, Clone)]
pub struct Shares(Arc<Bound>);

#[derive(Debug)]
struct Bound {
    bound: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    sum: usize,
    by_caller: HashMap<Caller, usize>,
}

/// Why there is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The caller has its share.
    Share,
    /// All callers together have everything.
    All,
}

/// What a caller holds, for as long as this lives.
#[derive(Debug)]
pub struct Taken {
    shares: Shares,
    caller: Caller,
    share: usize,
    amount: usize,
}

impl Shares {
    pub fn new(bound: usize) -> Self {
        Self(Arc::new(Bound { bound, held: Mutex::default() }))
    }

    /// Takes an amount for a caller that may hold `share` at once.
    ///
    /// # Errors
    /// The amount does not fit into what is left of the share, or of the whole. Nothing is taken then.
    pub fn take(&self, caller: Caller, share: usize, amount: usize) -> Result<Taken, Exhausted> {
        let mut taken = Taken { shares: self.clone(), caller, share, amount: 0 };
        taken.more(amount)?;
        Ok(taken)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // No code panics while it holds the lock.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes more for the same caller.
    ///
    /// # Errors
    /// As [`Shares::take`].
    pub fn more(&mut self, amount: usize) -> Result<(), Exhausted> {
        let mut held = self.shares.held();
        let of_caller = held.by_caller.get(&self.caller).copied().unwrap_or_default();
        if of_caller.saturating_add(amount) > self.share {
            return Err(Exhausted::Share);
        }
        if held.sum.saturating_add(amount) > self.shares.0.bound {
            return Err(Exhausted::All);
        }
        if amount > 0 {
            held.sum += amount;
            held.by_caller.insert(self.caller.clone(), of_caller + amount);
        }
        drop(held);
        self.amount += amount;
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut held = self.shares.held();
        held.sum -= self.amount;
        if let Some(of_caller) = held.by_caller.get_mut(&self.caller) {
            *of_caller -= self.amount;
            if *of_caller == 0 {
                held.by_caller.remove(&self.caller);
            }
        }
    }
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

    fn key(name: &str) -> Caller {
        Caller::Key(KeyName::new(name).unwrap())
    }

    #[test]
    fn one_caller_has_its_share_and_all_callers_have_the_whole() {
        let shares = Shares::new(5);
        let first = shares.take(key("one"), 2, 2).unwrap();
        assert_eq!(shares.take(key("one"), 2, 1).unwrap_err(), Exhausted::Share);
        let second = shares.take(key("two"), 2, 2).unwrap();
        let third = shares.take(key("three"), 2, 1).unwrap();
        assert_eq!(shares.take(key("three"), 2, 1).unwrap_err(), Exhausted::All);
        drop(first);
        let mut fourth = shares.take(key("one"), 2, 1).unwrap();
        fourth.more(1).unwrap();
        assert_eq!(fourth.more(1).unwrap_err(), Exhausted::Share);
        drop((second, third, fourth));
        let held = shares.held();
        assert!(held.sum == 0 && held.by_caller.is_empty(), "what is given back leaves nothing");
    }

    #[test]
    fn callers_without_keys_are_told_apart_by_their_address() {
        let of = |address: Option<&str>| {
            let mut extensions = Extensions::new();
            extensions.insert(Access::Everything);
            if let Some(address) = address {
                extensions.insert(PeerAddress(address.parse().unwrap()));
            }
            Caller::of(&extensions)
        };
        assert_eq!(of(Some("10.0.0.1")), of(Some("::ffff:10.0.0.1")));
        assert_ne!(of(Some("10.0.0.1")), of(Some("10.0.0.2")));
        assert_eq!(of(None), Caller::Address(None));
    }
}

//! Bounds that all requests share, of which one caller gets a share: what one key holds leaves room for the others.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::extract::FromRequestParts;
use certificates::network_of;
use http::{Extensions, request::Parts};
use ledger::KeyName;

use super::access::Access;

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
pub struct Shares(Arc<Shared>);

#[derive(Debug)]
struct Shared {
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
        Self(Arc::new(Shared { bound, held: Mutex::default() }))
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

//! Checks whether a concurrent history has a serial order that explains each answer and keeps real time: an operation that was answered
//! before another one was sent comes first.
//!
//! The search is the one of Wing and Gong with Lowe's memoisation, as in Porcupine. It tries orders depth first, and continues only once
//! from each pair of a state and the operations done. [`ledger`] has the rules for the answers of a ledger.

pub mod ledger;

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

/// The largest number of calls in one history.
pub const MOST_CALLS: usize = 128;

/// The rules by which operations change a state, one after another.
pub trait Rules {
    type State: Clone + Eq + Hash;
    type Operation;
    type Answer;

    /// The state after an operation. `None` if the operation cannot be answered like this. `answer` is `None` if the answer was lost.
    fn apply(
        &self,
        state: &Self::State,
        operation: &Self::Operation,
        answer: Option<&Self::Answer>,
    ) -> Option<Self::State>;
}

/// An operation of a client. All times come from one clock, in any unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<O, A> {
    pub client: usize,
    pub operation: O,
    pub invoked: u64,
    pub end: End<A>,
}

/// How a call ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End<A> {
    Answered {
        returned: u64,
        answer: A,
    },
    /// The operation certainly has no effect.
    Failed,
    /// The operation may take effect at any later time, or never.
    Unknown,
}

/// The result of the search. The numbers are the indexes of calls in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An order that explains each answer. It leaves out calls without an effect.
    Order(Vec<usize>),
    /// No order explains the answers. `longest` is the longest beginning of an order that the search found.
    Impossible { longest: Vec<usize> },
    /// The search reached its bound.
    TooManyStates,
    /// The history has more than [`MOST_CALLS`] calls.
    TooLong,
}

/// Looks for a serial order. It visits at most `most_states` pairs of a state and the calls done.
pub fn check<R: Rules>(
    rules: &R,
    initial: &R::State,
    history: &[Call<R::Operation, R::Answer>],
    most_states: usize,
) -> Verdict {
    if history.len() > MOST_CALLS {
        return Verdict::TooLong;
    }
    let mut search =
        Search { rules, history, seen: HashSet::new(), order: Vec::new(), longest: Vec::new(), most_states };
    match search.run(initial) {
        Some(true) => Verdict::Order(search.order),
        Some(false) => Verdict::Impossible { longest: search.longest },
        None => Verdict::TooManyStates,
    }
}

struct Search<'h, R: Rules> {
    rules: &'h R,
    history: &'h [Call<R::Operation, R::Answer>],
    /// Pairs from which no order continues.
    seen: HashSet<(u128, R::State)>,
    order: Vec<usize>,
    longest: Vec<usize>,
    most_states: usize,
}

/// One place in the order.
struct Place<S> {
    /// The state before the call of this place.
    state: S,
    done: u128,
    /// The calls that were not tried at this place yet. The last one is tried next.
    left: Vec<usize>,
}

impl<R: Rules> Search<'_, R> {
    /// Whether there is an order. `None` if the search reaches its bound.
    fn run(&mut self, initial: &R::State) -> Option<bool> {
        let mut places = vec![Place { state: initial.clone(), done: 0, left: self.next(0) }];
        if self.is_complete(0) {
            return Some(true);
        }
        while let Some(place) = places.last_mut() {
            let Some(call) = place.left.pop() else {
                places.pop();
                self.order.pop();
                continue;
            };
            let answer = match &self.history[call].end {
                End::Answered { answer, .. } => Some(answer),
                End::Failed | End::Unknown => None,
            };
            let Some(state) = self.rules.apply(&place.state, &self.history[call].operation, answer) else { continue };
            let done = place.done | (1 << call);
            if !self.seen.insert((done, state.clone())) {
                continue;
            }
            if self.seen.len() > self.most_states {
                return None;
            }
            self.order.push(call);
            if self.order.len() > self.longest.len() {
                self.longest.clone_from(&self.order);
            }
            if self.is_complete(done) {
                return Some(true);
            }
            let left = self.next(done);
            places.push(Place { state, done, left });
        }
        Some(false)
    }

    /// The calls that may come next. Each was sent before any other call that is not done was answered.
    fn next(&self, done: u128) -> Vec<usize> {
        let open = |call: &usize| done & (1 << call) == 0;
        let first_return = (0..self.history.len()).filter(open).filter_map(|call| self.returned(call)).min();
        let first_return = first_return.unwrap_or(u64::MAX);
        let may = |call: &usize| {
            let Call { invoked, end, .. } = &self.history[*call];
            !matches!(end, End::Failed) && *invoked <= first_return
        };
        let mut next: Vec<usize> = (0..self.history.len()).filter(open).filter(may).collect();
        // The search tries calls in the order of their answers, and calls of unknown outcome last.
        next.sort_by_key(|call| std::cmp::Reverse(self.returned(*call).unwrap_or(u64::MAX)));
        next
    }

    fn returned(&self, call: usize) -> Option<u64> {
        match self.history[call].end {
            End::Answered { returned, .. } => Some(returned),
            End::Failed | End::Unknown => None,
        }
    }

    fn is_complete(&self, done: u128) -> bool {
        (0..self.history.len()).all(|call| done & (1 << call) != 0 || self.returned(call).is_none())
    }
}

/// Splits a history into parts that have no account in common. A caller checks each part by itself: an order of the whole exists if each
/// part has one, because linearizability is local.
pub fn parts<O: Clone, A: Clone>(
    history: &[Call<O, A>],
    accounts: impl Fn(&O) -> Vec<String>,
) -> Vec<Vec<Call<O, A>>> {
    let mut part_of: HashMap<String, usize> = HashMap::new();
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for (index, call) in history.iter().enumerate() {
        let named = accounts(&call.operation);
        let mut met: Vec<usize> = named.iter().filter_map(|account| part_of.get(account).copied()).collect();
        met.sort_unstable();
        met.dedup();
        let part = met.first().copied().unwrap_or_else(|| {
            parts.push(Vec::new());
            parts.len() - 1
        });
        parts[part].push(index);
        for other in met.into_iter().skip(1) {
            let moved = std::mem::take(&mut parts[other]);
            parts[part].extend(moved);
            part_of.values_mut().filter(|of| **of == other).for_each(|of| *of = part);
        }
        part_of.extend(named.into_iter().map(|account| (account, part)));
    }
    let filled = parts.into_iter().filter(|part| !part.is_empty()).map(|mut part| {
        part.sort_unstable();
        part.into_iter().map(|index| history[index].clone()).collect()
    });
    filled.collect()
}

#[cfg(test)]
mod tests;

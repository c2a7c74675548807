//! The retry budget: resending is allowed in proportion to what goes through, so that a shard in trouble does not get
//! twice the load on top.

use std::sync::atomic::{AtomicU32, Ordering};

/// Tokens in tenths: a resend costs ten, a call that went through earns one.
#[derive(Debug)]
pub struct RetryBudget {
    tenths: AtomicU32,
}

impl RetryBudget {
    /// Resends allowed in one burst. A node that is killed loses at most the calls in flight, so this covers a restart.
    const BURST: u32 = 32;
    const COST: u32 = 10;
    const EARNED: u32 = 1;

    pub fn new() -> Self {
        Self { tenths: AtomicU32::new(Self::BURST * Self::COST) }
    }

    pub fn earn(&self) {
        let add = |tenths: u32| Some((tenths + Self::EARNED).min(Self::BURST * Self::COST));
        // Relaxed: the number guards nothing but itself.
        let _ = self.tenths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes the price of one resend, if it is there.
    pub fn spend(&self) -> bool {
        self.tenths
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| tenths.checked_sub(Self::COST))
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_in_ten() {
        let budget = RetryBudget::new();
        for _ in 0..RetryBudget::BURST {
            assert!(budget.spend());
        }
        assert!(!budget.spend());
        for _ in 0..9 {
            budget.earn();
        }
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }

    #[test]
    fn savings_are_bounded() {
        let budget = RetryBudget::new();
        for _ in 0..10_000 {
            budget.earn();
        }
        let spent = (0..10_000).filter(|_| budget.spend()).count();
        assert_eq!(spent, RetryBudget::BURST as usize);
    }
}

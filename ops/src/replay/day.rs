//! The order in which one account's transactions of one day happened.
//!
//! The file gives the days in order, but the rows of a day in any. Each row carries the balance after it, so the order is
//! the one in which the balances chain: balance before ± amount = balance after, within the bank's rounding. Where rows
//! are missing from the file (its last day is cut off) the chain has a gap, and what is missing shows in its size.

use super::bank::Transaction;

/// The bank rounds recorded balances to 0.10, so two of them in a row may differ by that much from the amount between.
const STEP_TOLERANCE: i64 = 10;
/// The longest day of the bank's file has 7 rows. A day whose search takes more steps than this is treated as broken.
const MAX_SEARCH_STEPS: usize = 100_000;

/// The rows of a day in the order in which they happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Day {
    /// Indexes into the rows given.
    pub order: Vec<usize>,
    /// Rows missing from the file.
    pub gap: Option<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Missing before the row with this transaction id: together they change the balance by `net`, within the rounding.
    Before { transaction: u64, net: i64 },
    /// Missing in more than one place.
    Several,
}

/// Orders one account's rows of one day, given the bank's balance at the end of the day before.
pub fn order(opening: i64, rows: &[Transaction]) -> Day {
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut order = longest_chain(opening, rows, &all);
    if order.len() == rows.len() {
        return Day { order, gap: None };
    }
    let rest: Vec<usize> = all.into_iter().filter(|index| !order.contains(index)).collect();
    let before = order.last().map_or(opening, |&last| rows[last].balance);
    // One gap: some row starts a chain of all that is left.
    for &first in &rest {
        let opening_after_gap = rows[first].balance - rows[first].change;
        let chain = longest_chain(opening_after_gap, rows, &rest);
        if chain.len() == rest.len() {
            let gap = Gap::Before { transaction: rows[chain[0]].id, net: opening_after_gap - before };
            order.extend(chain);
            return Day { order, gap: Some(gap) };
        }
    }
    // Money in before money out, so that nothing is refused that the bank let through.
    let mut rest = rest;
    rest.sort_by_key(|&index| (rows[index].change < 0, rows[index].id));
    order.extend(rest);
    Day { order, gap: Some(Gap::Several) }
}

/// The longest order of `candidates` whose balances chain from `opening`.
fn longest_chain(opening: i64, rows: &[Transaction], candidates: &[usize]) -> Vec<usize> {
    let mut search = Search { rows, left: candidates.to_vec(), path: Vec::new(), longest: Vec::new(), steps: 0 };
    search.extend(opening);
    search.longest
}

struct Search<'a> {
    rows: &'a [Transaction],
    left: Vec<usize>,
    path: Vec<usize>,
    longest: Vec<usize>,
    steps: usize,
}

impl Search<'_> {
    /// Depth first; true once every row has its place.
    fn extend(&mut self, balance: i64) -> bool {
        self.steps += 1;
        if self.path.len() > self.longest.len() {
            self.longest.clone_from(&self.path);
        }
        if self.left.is_empty() || self.steps > MAX_SEARCH_STEPS {
            return true;
        }
        let rows = self.rows;
        let off = |index: usize| (balance + rows[index].change - rows[index].balance).abs();
        // The best fit first: two rows of one amount fit the same place when the rounding hides the difference.
        let mut next: Vec<usize> = self.left.iter().copied().filter(|&index| off(index) <= STEP_TOLERANCE).collect();
        next.sort_by_key(|&index| (off(index), rows[index].id));
        for index in next {
            self.left.retain(|&other| other != index);
            self.path.push(index);
            if self.extend(rows[index].balance) {
                return true;
            }
            self.path.pop();
            self.left.push(index);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::bank::Partner;

    fn row(id: u64, change: i64, balance: i64) -> Transaction {
        Transaction {
            id,
            account: 1,
            date: Default::default(),
            change,
            balance,
            partner: Partner::Cash,
            operation: String::new(),
            symbol: String::new(),
        }
    }

    #[test]
    fn balances_give_the_order_and_rounding_is_forgiven() {
        let rows = [row(1, -1_460, 2_046_880), row(2, 9_000, 2_048_340), row(3, 12_064, 2_039_340)];
        assert_eq!(order(2_027_280, &rows), Day { order: vec![2, 1, 0], gap: None });
    }

    #[test]
    fn a_dead_end_is_left_again() {
        // Row 1 fits first as well, but then nothing fits behind it.
        let rows = [row(1, 100, 1_100), row(2, 200, 1_200), row(3, -200, 1_000)];
        assert_eq!(order(1_000, &rows), Day { order: vec![1, 2, 0], gap: None });
    }

    #[test]
    fn a_missing_row_shows_with_its_amount() {
        let rows = [row(846_252, -1_460, 2_513_380)];
        let gap = Gap::Before { transaction: 846_252, net: 9_500 };
        assert_eq!(order(2_505_340, &rows), Day { order: vec![0], gap: Some(gap) });
        let rows = [row(1, -500, 900), row(2, -100, 700), row(3, -100, 500)];
        assert_eq!(order(1_400, &rows), Day { order: vec![0, 1, 2], gap: Some(Gap::Several) });
    }

    #[test]
    fn where_nothing_chains_credits_come_first() {
        let rows = [row(1, -500, 9_000), row(2, -100, 700), row(3, 100, 500)];
        assert_eq!(order(0, &rows), Day { order: vec![2, 0, 1], gap: Some(Gap::Several) });
    }
}

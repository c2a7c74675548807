//! The plan of a replay, which is complete before anything is sent: the accounts to open, their overdrafts with the reasons, and all
//! transfers in an order in which the ledger refuses no transaction that the bank allowed.
//!
//! The file has the days in order, but the rows of a day in any order. Each row has the balance after the transaction, so [`order`] finds the
//! order in which the balances chain: balance before ± amount = balance after, within the bank's rounding. If rows are missing from the file
//! (its last day is incomplete), the chain has a gap, and the size of the gap is the sum of the missing amounts.

use std::collections::BTreeMap;

use super::bank::{Date, Partner, Transaction};

#[derive(Debug)]
pub struct ReplayPlan {
    /// The accounts on the other side of the transactions. They may go negative without limit.
    pub partners: Vec<Partner>,
    pub customers: Vec<Customer>,
    /// The transactions by date. Those of one account are in the order of its balances.
    pub transactions: Vec<Transaction>,
}

/// One account of the bank, and what the bank's records say about it.
#[derive(Debug, Default)]
pub struct Customer {
    pub account: u64,
    /// The sum of the file's amounts.
    pub sum: i64,
    /// The bank's balance after the account's last transaction in the file.
    pub recorded: i64,
    /// The sum of the bank's rounding of recorded balances, and the number of rounded rows.
    pub rounding: Rounding,
    pub gaps: Vec<(Date, Gap)>,
    /// The lowest balance, if it is below zero.
    pub dip: Option<Dip>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rounding {
    pub rows: usize,
    /// The sum of the amounts minus the change of the recorded balances.
    pub total: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dip {
    pub date: Date,
    /// The sum of the amounts up to this point. It is below zero, and is the overdraft that the account needs.
    pub balance: i64,
    /// The balance that the bank recorded at this point.
    pub recorded: i64,
}

impl Customer {
    pub fn id(&self) -> String {
        account_id(self.account)
    }

    /// How far below zero the account may go, which is as far as the bank allowed.
    pub fn overdraft(&self) -> i64 {
        self.dip.map_or(0, |dip| -dip.balance)
    }
}

/// The ledger's id of one of the bank's accounts.
pub fn account_id(account: u64) -> String {
    format!("bank:{account}")
}

/// Makes the plan from the file's rows.
pub fn plan(rows: Vec<Transaction>) -> ReplayPlan {
    let mut by_account: BTreeMap<u64, BTreeMap<Date, Vec<Transaction>>> = BTreeMap::new();
    let mut partners: Vec<Partner> = rows.iter().map(|row| row.partner.clone()).collect();
    partners.sort_unstable();
    partners.dedup();
    for row in rows {
        by_account.entry(row.account).or_default().entry(row.date).or_default().push(row);
    }
    let mut customers = Vec::with_capacity(by_account.len());
    // The key (date, place within the account's day) orders all transactions. Accounts take turns within a day.
    let mut placed: Vec<((Date, usize), Transaction)> = Vec::new();
    for (account, days) in by_account {
        let mut customer = Customer { account, ..Customer::default() };
        for (date, rows) in days {
            let ordered = customer.take_day(date, &rows);
            placed.extend(ordered.into_iter().enumerate().map(|(place, row)| ((date, place), row)));
        }
        customers.push(customer);
    }
    placed.sort_by_key(|(place, row)| (*place, row.id));
    ReplayPlan { partners, customers, transactions: placed.into_iter().map(|(_, row)| row).collect() }
}

impl Customer {
    /// Orders the rows of a day and follows the balances through the day.
    fn take_day(&mut self, date: Date, rows: &[Transaction]) -> Vec<Transaction> {
        let day = order(self.recorded, rows);
        self.gaps.extend(day.gap.map(|gap| (date, gap)));
        let ordered: Vec<Transaction> = day.order.iter().map(|&index| rows[index].clone()).collect();
        for row in &ordered {
            let off = self.recorded + row.change - row.balance;
            if day.gap.is_none() && off != 0 {
                self.rounding.rows += 1;
                self.rounding.total += off;
            }
            self.sum += row.change;
            self.recorded = row.balance;
            if self.sum < self.dip.map_or(0, |dip| dip.balance) {
                self.dip = Some(Dip { date, balance: self.sum, recorded: row.balance });
            }
        }
        ordered
    }
}

/// Cuts the transactions into batches of at most `size`, each ordered so that few of its transfers wait for another.
///
/// A transfer waits if an earlier transfer of its batch credits the account that it debits. The rows of one account keep their order. Within
/// this order, deposits come first. Otherwise every deposit, which debits the one cash account, would wait for the withdrawals before it,
/// which credit that account.
pub fn batches(transactions: &[Transaction], size: usize) -> Vec<Vec<&Transaction>> {
    transactions
        .chunks(size.max(1))
        .map(|chunk| {
            let mut turns: BTreeMap<u64, usize> = BTreeMap::new();
            let mut batch: Vec<(usize, bool, &Transaction)> = chunk
                .iter()
                .map(|row| {
                    let turn = turns.entry(row.account).or_default();
                    *turn += 1;
                    (*turn, row.change < 0, row)
                })
                .collect();
            batch.sort_by_key(|&(turn, is_debit, _)| (turn, is_debit));
            batch.into_iter().map(|(_, _, row)| row).collect()
        })
        .collect()
}

/// The bank rounds recorded balances to 0.10, so the difference of two consecutive balances may deviate from the amount by this much, in
/// minor units.
const STEP_TOLERANCE: i64 = 10;
/// The longest day of the bank's file has 7 rows. A day whose search takes more steps than this is treated as broken.
const MAX_SEARCH_STEPS: usize = 100_000;

/// The rows of a day in the order in which they happened.
#[derive(Debug, PartialEq, Eq)]
pub struct Day {
    /// Indexes into the given rows.
    pub order: Vec<usize>,
    /// Rows missing from the file.
    pub gap: Option<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gap {
    /// Rows are missing before the row with this transaction id. Together they change the balance by `net`, within the rounding.
    Before { transaction: u64, net: i64 },
    /// Rows are missing in more than one place.
    Several,
}

/// Orders one account's rows of one day. `opening` is the bank's balance at the end of the previous day.
pub fn order(opening: i64, rows: &[Transaction]) -> Day {
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut order = longest_chain(opening, rows, &all);
    if order.len() == rows.len() {
        return Day { order, gap: None };
    }
    let rest: Vec<usize> = all.into_iter().filter(|index| !order.contains(index)).collect();
    let before = order.last().map_or(opening, |&last| rows[last].balance);
    // If there is one gap, some row starts a chain of all remaining rows.
    for &first in &rest {
        let opening_after_gap = rows[first].balance - rows[first].change;
        let chain = longest_chain(opening_after_gap, rows, &rest);
        if chain.len() == rest.len() {
            let gap = Gap::Before { transaction: rows[chain[0]].id, net: opening_after_gap - before };
            order.extend(chain);
            return Day { order, gap: Some(gap) };
        }
    }
    // Credits come before debits, so that the ledger refuses nothing that the bank allowed.
    let mut rest = rest;
    rest.sort_by_key(|&index| (rows[index].change < 0, rows[index].id));
    order.extend(rest);
    Day { order, gap: Some(Gap::Several) }
}

/// The longest order of `candidates` whose balances chain from `opening`.
fn longest_chain(opening: i64, rows: &[Transaction], candidates: &[usize]) -> Vec<usize> {
    let mut search = ChainSearch { rows, left: candidates.to_vec(), path: Vec::new(), longest: Vec::new(), steps: 0 };
    search.extend(opening);
    search.longest
}

struct ChainSearch<'a> {
    rows: &'a [Transaction],
    left: Vec<usize>,
    path: Vec<usize>,
    longest: Vec<usize>,
    steps: usize,
}

impl ChainSearch<'_> {
    /// Searches depth first. Returns true once every row has its place.
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
        // The best fit is tried first, because two rows of one amount fit the same place if the rounding hides the difference.
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

    fn row(id: u64, account: u64, change: i64, balance: i64) -> Transaction {
        Transaction {
            id,
            account,
            date: Date::default(),
            change,
            balance,
            partner: if change < 0 { Partner::Fees } else { Partner::Cash },
            operation: String::new(),
            symbol: String::new(),
        }
    }

    #[test]
    fn a_plan_follows_the_balances_of_every_account() {
        let plan =
            plan(vec![row(1, 7, -300, 700), row(2, 7, 1_000, 1_000), row(3, 9, -250, -250), row(4, 9, 100, -140)]);
        let ids: Vec<u64> = plan.transactions.iter().map(|t| t.id).collect();
        assert_eq!(ids, [2, 3, 1, 4]);
        assert_eq!(plan.partners, [Partner::Cash, Partner::Fees]);
        let [seven, nine] = plan.customers.as_slice() else { panic!("two accounts") };
        assert_eq!((seven.sum, seven.recorded, seven.overdraft()), (700, 700, 0));
        assert_eq!((nine.sum, nine.recorded, nine.overdraft()), (-150, -140, 250));
        assert_eq!(nine.rounding, Rounding { rows: 1, total: -10 });
        assert_eq!(nine.dip.map(|dip| dip.recorded), Some(-250));
    }

    #[test]
    fn batches_keep_each_accounts_order_and_put_deposits_first() {
        let rows = [row(1, 1, -5, 0), row(2, 2, 5, 0), row(3, 1, 5, 0), row(4, 3, 5, 0), row(5, 1, 5, 0)];
        let ids: Vec<Vec<u64>> =
            batches(&rows, 4).iter().map(|batch| batch.iter().map(|row| row.id).collect()).collect();
        assert_eq!(ids, [vec![2, 4, 1, 3], vec![5]]);
    }

    fn row_of_a_day(id: u64, change: i64, balance: i64) -> Transaction {
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
        let rows = [
            row_of_a_day(1, -1_460, 2_046_880),
            row_of_a_day(2, 9_000, 2_048_340),
            row_of_a_day(3, 12_064, 2_039_340),
        ];
        assert_eq!(order(2_027_280, &rows), Day { order: vec![2, 1, 0], gap: None });
    }

    #[test]
    fn a_dead_end_is_left_again() {
        // Row 1 also fits first, but then no row fits after it.
        let rows = [row_of_a_day(1, 100, 1_100), row_of_a_day(2, 200, 1_200), row_of_a_day(3, -200, 1_000)];
        assert_eq!(order(1_000, &rows), Day { order: vec![1, 2, 0], gap: None });
    }

    #[test]
    fn a_missing_row_shows_with_its_amount() {
        let rows = [row_of_a_day(846_252, -1_460, 2_513_380)];
        let gap = Gap::Before { transaction: 846_252, net: 9_500 };
        assert_eq!(order(2_505_340, &rows), Day { order: vec![0], gap: Some(gap) });
        let rows = [row_of_a_day(1, -500, 900), row_of_a_day(2, -100, 700), row_of_a_day(3, -100, 500)];
        assert_eq!(order(1_400, &rows), Day { order: vec![0, 1, 2], gap: Some(Gap::Several) });
    }

    #[test]
    fn where_nothing_chains_credits_come_first() {
        let rows = [row_of_a_day(1, -500, 9_000), row_of_a_day(2, -100, 700), row_of_a_day(3, 100, 500)];
        assert_eq!(order(0, &rows), Day { order: vec![2, 0, 1], gap: Some(Gap::Several) });
    }
}

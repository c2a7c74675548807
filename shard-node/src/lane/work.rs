//! One batch on its way through the lane: its operations in order, and a reply for each.

use std::{collections::VecDeque, ops::Range};

use identity::{AssetScales, Mark, Marks};
use ledger::{
    AssetCode,
    batch::Request,
    operation::Operation,
    outcome::{Outcome, Reason, Reply},
};
use tokio::{sync::oneshot, time::Instant};

use crate::store::StoreError;

/// One instant on two clocks: the monotonic clock for deadlines, and the node's clock for rows.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub now: Instant,
    pub now_us: i64,
}

impl Clocks {
    /// Converts a deadline to microseconds since the epoch. A deadline that has passed becomes the present.
    fn wall_us(self, deadline: Instant) -> i64 {
        let left_us = deadline.saturating_duration_since(self.now).as_micros();
        self.now_us.saturating_add(i64::try_from(left_us).unwrap_or(i64::MAX))
    }
}

/// The operations of one call of [`super::LaneHandle::execute`].
#[derive(Debug)]
pub struct Submission {
    operations: Vec<Queued>,
    weight: usize,
    reply: oneshot::Sender<Replies>,
    is_traced: bool,
}

/// What became of a submission.
#[derive(Debug)]
pub struct Replies {
    /// One for each operation, in order.
    pub replies: Vec<Reply>,
    /// The attempts to carry operations of the submission out, if it is traced; the first [`MAX_ATTEMPTS`] of them.
    pub attempts: Vec<Attempt>,
    /// The COMMIT of an earlier attempt was not answered. A replay among the replies may be the effect of that attempt.
    pub after_doubt: bool,
}

/// When a group was decided and committed.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    pub begun: Instant,
    pub decided: Instant,
    pub sent: Instant,
    pub ended: Instant,
    /// In one commit with the submission.
    pub operations: usize,
    /// Why it was not committed, or not certainly.
    pub failed: Option<&'static str>,
}

/// Most attempts that are noted for one submission.
const MAX_ATTEMPTS: usize = 16;

/// An operation that waits for the lane, with what the lane has to know about its request.
#[derive(Debug, Clone)]
pub struct Queued {
    pub operation: Operation,
    /// For a step of a saga: the mark of the shard at the saga's other end.
    pub peer: Option<(u16, Mark)>,
    /// For an account that is opened: the scale of its asset, as the caller declared it.
    pub scale: Option<u32>,
    /// Within one submission, later operations of a group wait for earlier ones that were deferred. 0: no group.
    pub order_group: u64,
    /// The lane refuses to decide it later than this.
    pub deadline: Option<Instant>,
}

impl Queued {
    /// An operation without deadline, group, mark and scale.
    pub fn new(operation: Operation) -> Self {
        Self { operation, peer: None, scale: None, order_group: 0, deadline: None }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

impl Submission {
    pub fn new(operations: Vec<Queued>, reply: oneshot::Sender<Replies>) -> Self {
        let weight = operations.iter().map(|queued| queued.operation.weight()).sum();
        Self { operations, weight, reply, is_traced: false }
    }

    /// The same, whose replies say when it was carried out.
    pub fn traced(self) -> Self {
        Self { is_traced: true, ..self }
    }

    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// A batch: the operations of several submissions, the groups that form the next transactions, and the replies so
/// far.
#[derive(Debug)]
pub struct Work {
    operations: Vec<Queued>,
    replies: Vec<Option<Reply>>,
    /// INV-5: the operation was part of a COMMIT whose answer never came. It is never answered "not executed".
    in_doubt: Vec<bool>,
    submissions: Vec<Caller>,
    /// Operations that share a transaction, by index. There is one group unless a fault had to be isolated.
    groups: VecDeque<Vec<usize>>,
    weight: usize,
    /// A submission of the batch is traced.
    is_traced: bool,
}

/// The replies to one submission.
#[derive(Debug)]
struct Caller {
    reply: oneshot::Sender<Replies>,
    /// Its operations, by index.
    range: Range<usize>,
    /// `None`: it is not traced.
    attempts: Option<Vec<Attempt>>,
}

impl Caller {
    /// Whether the group, which is sorted, has an operation of the submission.
    fn is_in(&self, group: &[usize]) -> bool {
        let first = group.partition_point(|index| *index < self.range.start);
        group.get(first).is_some_and(|index| *index < self.range.end)
    }
}

impl Work {
    pub fn new(first: Submission) -> Self {
        let mut work = Self {
            operations: Vec::with_capacity(first.operations.len()),
            replies: Vec::new(),
            in_doubt: Vec::new(),
            submissions: Vec::new(),
            groups: VecDeque::new(),
            weight: 0,
            is_traced: false,
        };
        work.add(first);
        work
    }

    pub fn add(&mut self, submission: Submission) {
        let begin = self.operations.len();
        // The order groups of a submission are unique within its RPC only.
        let scope = (self.submissions.len() as u64 + 1) << 32;
        self.operations.extend(submission.operations.into_iter().map(|mut queued| {
            if queued.order_group != 0 {
                queued.order_group |= scope;
            }
            queued
        }));
        let range = begin..self.operations.len();
        self.replies.resize(range.end, None);
        self.in_doubt.resize(range.end, false);
        match self.groups.front_mut() {
            Some(group) => group.extend(range.clone()),
            None => self.groups.push_back(range.clone().collect()),
        }
        self.is_traced |= submission.is_traced;
        let attempts = submission.is_traced.then(Vec::new);
        self.submissions.push(Caller { reply: submission.reply, range, attempts });
        self.weight += submission.weight;
    }

    pub fn weight(&self) -> usize {
        self.weight
    }

    pub fn operation(&self, index: usize) -> &Operation {
        &self.operations[index].operation
    }

    pub fn request(&self, index: usize, clocks: Clocks) -> Request {
        let Queued { order_group, deadline, .. } = self.operations[index];
        Request { order_group, deadline_us: deadline.map_or(0, |deadline| clocks.wall_us(deadline)) }
    }

    /// The marks of other shards in a group's saga steps that are higher than `known`.
    pub fn marks_beyond(&self, group: &[usize], known: &Marks) -> Marks {
        let news = |(number, mark): &(u16, Mark)| known.of(*number).merged(*mark) != known.of(*number);
        group.iter().filter_map(|index| self.operations[*index].peer).filter(news).collect()
    }

    /// The scales of assets that the group opens accounts in and that this shard had no account of.
    ///
    /// # Errors
    /// When an account would be opened with another scale than its asset has on this shard, because a router declares
    /// another scale.
    pub fn new_scales(
        &self,
        group: &[usize],
        outcomes: &[Outcome],
        known: &AssetScales,
    ) -> Result<Vec<(AssetCode, u32)>, StoreError> {
        let mut new: Vec<(AssetCode, u32)> = Vec::new();
        for (index, outcome) in group.iter().zip(outcomes) {
            let Queued { operation: Operation::CreateAccount(create), scale: Some(scale), .. } =
                &self.operations[*index]
            else {
                continue;
            };
            let stored = known.get(create.asset.as_str()).copied();
            let in_use =
                stored.or_else(|| new.iter().find(|(asset, _)| *asset == create.asset).map(|(_, scale)| *scale));
            match in_use {
                Some(in_use) if in_use != *scale => {
                    let asset = create.asset;
                    let what =
                        format!("an account of {asset} with scale {scale}, which has scale {in_use} on this shard");
                    return Err(StoreError::Corrupt(what));
                }
                Some(_) => {}
                None if matches!(outcome, Outcome::Account(_)) => new.push((create.asset, *scale)),
                None => {}
            }
        }
        Ok(new)
    }

    /// Leaves out the operations whose deadline has passed.
    pub fn retain_timely(&self, group: &mut Vec<usize>) {
        let now = Instant::now();
        group.retain(|index| !self.operations[*index].is_late(now));
    }

    /// The operations to execute next. Operations whose deadline has passed are answered instead.
    pub fn next_group(&mut self) -> Option<Vec<usize>> {
        let now = Instant::now();
        loop {
            let group = self.groups.front_mut()?;
            let (replies, in_doubt, operations) = (&mut self.replies, &self.in_doubt, &self.operations);
            group.retain(|index| {
                if replies[*index].is_some() {
                    return false;
                }
                let is_late = operations[*index].is_late(now);
                if is_late {
                    let detail = "the deadline passed while waiting for the lane";
                    replies[*index] = Some(without_effect(in_doubt[*index], Reason::Deadline, detail));
                }
                !is_late
            });
            if group.is_empty() {
                self.groups.pop_front();
                continue;
            }
            return Some(group.clone());
        }
    }

    /// INV-5: the COMMIT of an operation in doubt may have taken effect. If its slot has left the shard, its booking cannot be looked up here, so the
    /// operation is unknown.
    ///
    /// # Panics
    /// When there is not one outcome for each operation: each client would get the answer of another.
    pub fn answer(&mut self, group: &[usize], outcomes: Vec<Outcome>) {
        assert_eq!(group.len(), outcomes.len(), "one outcome for each operation");
        for (index, outcome) in group.iter().zip(outcomes) {
            let is_unknown = self.in_doubt[*index] && matches!(outcome, Outcome::NotOwner(_));
            self.replies[*index] = Some(if is_unknown { Reply::Unknown } else { Reply::Outcome(outcome) });
        }
    }

    /// Notes when a group was decided and committed, for the submissions that are traced.
    pub fn note(&mut self, group: &[usize], attempt: impl FnOnce() -> Attempt) {
        if !self.is_traced {
            return;
        }
        let attempt = attempt();
        for caller in &mut self.submissions {
            if caller.attempts.as_ref().is_some_and(|attempts| attempts.len() < MAX_ATTEMPTS) && caller.is_in(group) {
                caller.attempts.get_or_insert_default().push(attempt);
            }
        }
    }

    /// Halves the group. Repeated halving isolates one operation that cannot be executed at the cost of a few
    /// transactions instead of one for each operation. Returns `false` for a group of one.
    pub fn isolate(&mut self, group: &[usize]) -> bool {
        if group.len() < 2 {
            return false;
        }
        self.groups.pop_front();
        let (first, second) = group.split_at(group.len() / 2);
        self.groups.push_front(second.to_vec());
        self.groups.push_front(first.to_vec());
        true
    }

    /// Records that a COMMIT of these operations was sent and not answered.
    pub fn doubt(&mut self, group: &[usize]) {
        for index in group {
            self.in_doubt[*index] = true;
        }
    }

    /// Answers operations that no retry can execute.
    pub fn give_up(&mut self, group: &[usize], detail: &str) {
        for index in group {
            self.replies[*index] = Some(without_effect(self.in_doubt[*index], Reason::Internal, detail));
        }
    }

    /// Refuses every operation that certainly had no effect. Operations in doubt stay. Returns `true` when none is
    /// left.
    pub fn refuse_certain(&mut self, reason: Reason, detail: &str) -> bool {
        for (reply, in_doubt) in self.replies.iter_mut().zip(&self.in_doubt) {
            if reply.is_none() && !in_doubt {
                *reply = Some(without_effect(false, reason, detail));
            }
        }
        self.replies.iter().all(Option::is_some)
    }

    pub fn send_replies(self) {
        let mut replies = self.replies.into_iter().map(|reply| reply.unwrap_or(Reply::Unknown));
        for Caller { reply, range, attempts } in self.submissions {
            let after_doubt = self.in_doubt[range.clone()].contains(&true);
            let replies = replies.by_ref().take(range.len()).collect();
            // The caller may have gone; the operations took effect anyway.
            let _ = reply.send(Replies { replies, attempts: attempts.unwrap_or_default(), after_doubt });
        }
    }
}

fn without_effect(in_doubt: bool, reason: Reason, detail: &str) -> Reply {
    if in_doubt { Reply::Unknown } else { Reply::NotExecuted { reason, detail: detail.to_owned() } }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ledger::{AccountId, operation::UpdateAccount, outcome::NotOwner};

    use super::*;

    #[test]
    fn a_deadline_is_converted_to_the_clock_of_rows() {
        let clocks = Clocks { now: Instant::now() + Duration::from_secs(10), now_us: 1_000 };
        assert_eq!(clocks.wall_us(clocks.now + Duration::from_millis(2)), 3_000);
        assert_eq!(clocks.wall_us(clocks.now.checked_sub(Duration::from_millis(2)).unwrap()), 1_000);
    }

    /// Operations with these time limits; 0: none.
    fn submission(timeouts_ms: &[u64]) -> (Submission, oneshot::Receiver<Replies>) {
        let (reply, answer) = oneshot::channel();
        let operation = Operation::UpdateAccount(UpdateAccount {
            ordered_by: None,
            id: AccountId::client("a").unwrap(),
            status: None,
            overdraft: None,
            max_balance: None,
            metadata: None,
        });
        let operations = timeouts_ms
            .iter()
            .map(|timeout_ms| Queued {
                order_group: 1,
                deadline: (*timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(*timeout_ms)),
                ..Queued::new(operation.clone())
            })
            .collect();
        (Submission::new(operations, reply), answer)
    }

    fn is_not_executed(reply: &Reply) -> bool {
        matches!(reply, Reply::NotExecuted { .. })
    }

    #[tokio::test]
    async fn an_operation_in_doubt_whose_slot_has_left_is_unknown() {
        let not_owner = || Outcome::NotOwner(NotOwner { slot: 1, state: 2, epoch: 1, owner: "s1".to_owned() });
        let (submission, answer) = submission(&[100, 100]);
        let mut work = Work::new(submission);
        let group = work.next_group().unwrap();
        work.doubt(&[0]);
        work.answer(&group, vec![not_owner(), not_owner()]);
        work.send_replies();
        assert_eq!(answer.await.unwrap().replies, [Reply::Unknown, Reply::Outcome(not_owner())]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_operation_in_doubt_is_unknown_and_never_not_executed() {
        let (submission, answer) = submission(&[100, 100, 0]);
        let mut work = Work::new(submission);
        assert_eq!(work.next_group(), Some(vec![0, 1, 2]));
        work.doubt(&[0]);
        tokio::time::advance(Duration::from_millis(101)).await;
        assert_eq!(work.next_group(), Some(vec![2]));
        assert!(work.refuse_certain(Reason::Unavailable, "gone"));
        assert_eq!(work.next_group(), None);
        work.send_replies();
        let replies = answer.await.unwrap().replies;
        assert_eq!(replies[0], Reply::Unknown);
        assert!(is_not_executed(&replies[1]) && is_not_executed(&replies[2]));
    }

    #[tokio::test]
    async fn a_fault_is_isolated_in_order_and_submissions_get_their_own_replies() {
        let (first, first_answer) = submission(&[0, 0]);
        let (second, second_answer) = submission(&[0]);
        let mut work = Work::new(first);
        work.add(second);
        assert_ne!(
            work.operations[0].order_group, work.operations[2].order_group,
            "order groups are scoped to their submission"
        );
        let group = work.next_group().unwrap();
        assert!(work.isolate(&group));
        for index in 0..3 {
            let mut group = work.next_group().unwrap();
            if work.isolate(&group) {
                assert_eq!(group, [1, 2], "the second half, whole until it fails as well");
                group = work.next_group().unwrap();
            }
            assert_eq!(group, [index]);
            assert!(!work.isolate(&group));
            if index == 1 {
                work.give_up(&group, "broken");
            } else {
                work.answer(&group, vec![Outcome::Deferred]);
            }
        }
        work.send_replies();
        let replies = first_answer.await.unwrap().replies;
        assert_eq!(replies[0], Reply::Outcome(Outcome::Deferred));
        assert!(is_not_executed(&replies[1]));
        assert_eq!(second_answer.await.unwrap().replies, [Reply::Outcome(Outcome::Deferred)]);
    }

    #[tokio::test]
    async fn only_traced_submissions_learn_when_their_operations_were_carried_out() {
        let (first, first_answer) = submission(&[0]);
        let (second, second_answer) = submission(&[0, 0]);
        let (third, third_answer) = submission(&[0]);
        let mut work = Work::new(first);
        work.add(second.traced());
        work.add(third.traced());
        let now = Instant::now();
        let attempt = || Attempt { begun: now, decided: now, sent: now, ended: now, operations: 2, failed: None };
        work.note(&[0, 2], attempt);
        (0..2 * MAX_ATTEMPTS).for_each(|_| work.note(&[3], attempt));
        work.send_replies();
        let attempts =
            [first_answer, second_answer, third_answer].map(|answer| async { answer.await.unwrap().attempts.len() });
        assert_eq!(futures_util::future::join_all(attempts).await, [0, 1, MAX_ATTEMPTS]);
    }
}

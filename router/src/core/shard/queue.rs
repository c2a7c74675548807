//! The queue of one shard: submissions in order, those that finish sagas before new work, with a bound for each of both.
//!
//! Finishing work goes first. If a call had no room for new work, the next call begins with new work. A submission that is too heavy to
//! share a call therefore waits for at most one call once it is at the front.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use ledger::operation::Operation;
use telemetry::traces::{Span, Traceparent};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::submission::{Answer, Answers};

/// Whether work finishes a saga or begins something. Finishing work goes first, because it frees money that is in transit, and because an
/// overloaded router that only began work would finish none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    Finishing,
    New,
}

/// Operations that travel together, in order, and the waiter for their answers.
#[derive(Debug)]
pub struct Submission {
    pub operations: Vec<Operation>,
    pub weight: usize,
    /// An upper bound on their size on the wire.
    pub bytes: usize,
    /// Later operations wait for earlier ones that touch the same accounts.
    pub ordered: bool,
    pub deadline: Instant,
    /// What the call carries for the client's request behind it.
    pub traceparent: Option<Traceparent>,
    /// If the request is recorded: from now on until the answer.
    pub span: Option<Box<Span>>,
    pub claim: Claim,
    pub reply: oneshot::Sender<Answers>,
    /// What has been learnt so far, once it was sent.
    pub answers: Vec<Answer>,
    pub resent: bool,
    /// As in [`Answers`].
    pub after_doubt: bool,
}

/// Decides between the sender that takes a submission out of the queue and the waiter that gives it up: the first to claim it has it.
/// "The deadline passed in the queue" therefore says for certain that nothing was sent.
#[derive(Debug, Clone, Default)]
pub struct Claim(Arc<AtomicBool>);

impl Claim {
    /// True for the first caller.
    pub fn take(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }
}

/// Why a submission was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotQueued {
    Full,
    Closed,
}

/// The most that goes into one call. A message over the wire's bound would be refused again and again, and its waiters would learn
/// only that the outcome is unknown. Half of the bound leaves room for a rough count.
const CALL_BYTES: usize = wire::MAX_MESSAGE_BYTES / 2;

/// The queue of one shard.
#[derive(Debug)]
pub struct Queue {
    /// Operations each of the two lines may hold.
    bound: usize,
    lines: Mutex<Lines>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    finishing: Submissions,
    new: Submissions,
    /// True if the last call had no room for new work that was waiting.
    owes_new: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Submissions {
    submissions: VecDeque<Submission>,
    operations: usize,
}

/// A call that is being made up.
#[derive(Default)]
struct Call {
    taken: Vec<Submission>,
    operations: usize,
    bytes: usize,
    max_operations: usize,
}

impl Call {
    fn fill_from(&mut self, line: &mut Submissions) {
        while let Some(next) = line.submissions.front() {
            let too_much =
                self.operations + next.weight > self.max_operations || self.bytes + next.bytes > CALL_BYTES;
            if self.operations > 0 && too_much {
                return;
            }
            let Some(next) = line.submissions.pop_front() else { return };
            line.operations -= next.weight;
            if next.claim.take() {
                self.operations += next.weight;
                self.bytes += next.bytes;
                self.taken.push(next);
            }
        }
    }
}

impl Queue {
    pub fn new(bound: usize) -> Self {
        Self { bound, lines: Mutex::default(), wake: Notify::new() }
    }

    pub fn push(&self, urgency: Urgency, submission: Submission) -> Result<(), NotQueued> {
        let mut lines = self.lock();
        if lines.closed {
            return Err(NotQueued::Closed);
        }
        let line = match urgency {
            Urgency::Finishing => &mut lines.finishing,
            Urgency::New => &mut lines.new,
        };
        // Into an empty line goes anything, or a group heavier than the bound could never be served.
        if line.operations > 0 && line.operations + submission.weight > self.bound {
            return Err(NotQueued::Full);
        }
        line.operations += submission.weight;
        line.submissions.push_back(submission);
        drop(lines);
        self.wake.notify_one();
        Ok(())
    }

    /// Waits until there is something to take. False: closed and empty, nothing will ever come.
    pub async fn ready(&self) -> bool {
        loop {
            // Registered before looking, so that a push between the look and the wait is not missed.
            let woken = self.wake.notified();
            {
                let lines = self.lock();
                if !(lines.finishing.submissions.is_empty() && lines.new.submissions.is_empty()) {
                    return true;
                }
                if lines.closed {
                    return false;
                }
            }
            woken.await;
        }
    }

    /// Takes whole submissions, the finishing ones first unless new ones are owed a turn, up to `max_operations` and [`CALL_BYTES`] in all
    /// (one that is heavier goes alone). Those whose waiter gave up are dropped on the way.
    pub fn take(&self, max_operations: usize) -> Vec<Submission> {
        let mut lines = self.lock();
        let Lines { finishing, new, owes_new, .. } = &mut *lines;
        let mut call = Call { max_operations, ..Call::default() };
        if *owes_new {
            call.fill_from(new);
            call.fill_from(finishing);
        } else {
            call.fill_from(finishing);
            call.fill_from(new);
        }
        // New work that had its turn just now is not owed another.
        *owes_new = !*owes_new && !new.submissions.is_empty();
        call.taken
    }

    /// Refuses what comes from now on. What is queued is still served.
    pub fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Operations waiting.
    pub fn operations(&self) -> usize {
        let lines = self.lock();
        lines.finishing.operations + lines.new.operations
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        // No code panics while it holds the lock.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ledger::{AccountId, operation::UpdateAccount};

    use super::*;

    fn operation(name: &str) -> Operation {
        Operation::UpdateAccount(UpdateAccount {
            ordered_by: None,
            id: AccountId::client(name).unwrap(),
            status: None,
            overdraft: None,
            max_balance: None,
            metadata: None,
        })
    }

    fn submission(name: &str, weight: usize) -> Submission {
        let operations = (0..weight).map(|_| operation(name)).collect();
        let deadline = Instant::now() + Duration::from_secs(1);
        let (reply, _) = oneshot::channel();
        Submission {
            operations,
            weight,
            bytes: 100 * weight,
            ordered: false,
            deadline,
            traceparent: None,
            span: None,
            claim: Claim::default(),
            reply,
            answers: Vec::new(),
            resent: false,
            after_doubt: false,
        }
    }

    fn names(taken: &[Submission]) -> Vec<String> {
        let name = |s: &Submission| match &s.operations[0] {
            Operation::UpdateAccount(update) => update.id.to_string(),
            other => format!("{other:?}"),
        };
        taken.iter().map(name).collect()
    }

    #[test]
    fn finishing_work_goes_first_and_order_is_kept() {
        let queue = Queue::new(100);
        for (urgency, name) in
            [(Urgency::New, "n1"), (Urgency::Finishing, "f1"), (Urgency::New, "n2"), (Urgency::Finishing, "f2")]
        {
            queue.push(urgency, submission(name, 2)).unwrap();
        }
        assert_eq!(queue.operations(), 8);
        assert_eq!(names(&queue.take(6)), ["f1", "f2", "n1"]);
        assert_eq!(names(&queue.take(6)), ["n2"]);
        assert_eq!(queue.operations(), 0);
        assert!(queue.take(6).is_empty());
    }

    #[test]
    fn new_work_has_its_turn_beside_finishing_work_without_end() {
        let queue = Queue::new(1_000);
        let finish = || queue.push(Urgency::Finishing, submission("f", 5)).unwrap();
        (0..3).for_each(|_| finish());
        for (name, weight) in [("heavy", 10), ("behind", 1)] {
            queue.push(Urgency::New, submission(name, weight)).unwrap();
        }
        assert_eq!(names(&queue.take(10)), ["f", "f"]);
        (0..2).for_each(|_| finish());
        assert_eq!(names(&queue.take(10)), ["heavy"], "the call before had no room for it");
        (0..2).for_each(|_| finish());
        assert_eq!(names(&queue.take(10)), ["f", "f"], "then finishing work again");
        (0..2).for_each(|_| finish());
        assert_eq!(names(&queue.take(10)), ["behind", "f"]);
    }

    #[test]
    fn a_submission_is_never_split() {
        let queue = Queue::new(100);
        for (name, weight) in [("a", 3), ("b", 3), ("heavy", 9)] {
            queue.push(Urgency::New, submission(name, weight)).unwrap();
        }
        assert_eq!(names(&queue.take(5)), ["a"]);
        assert_eq!(names(&queue.take(5)), ["b"]);
        assert_eq!(names(&queue.take(5)), ["heavy"], "alone, or it would wait for ever");
    }

    #[test]
    fn what_is_taken_together_fits_one_message() {
        let queue = Queue::new(100);
        for (name, bytes) in [("a", CALL_BYTES / 2), ("b", CALL_BYTES / 2), ("c", 1), ("huge", 2 * CALL_BYTES)] {
            queue.push(Urgency::New, Submission { bytes, ..submission(name, 1) }).unwrap();
        }
        assert_eq!(names(&queue.take(100)), ["a", "b"]);
        assert_eq!(names(&queue.take(100)), ["c"]);
        assert_eq!(names(&queue.take(100)), ["huge"]);
    }

    #[test]
    fn each_line_has_its_bound() {
        let queue = Queue::new(4);
        queue.push(Urgency::New, submission("a", 3)).unwrap();
        assert_eq!(queue.push(Urgency::New, submission("b", 2)), Err(NotQueued::Full));
        queue.push(Urgency::New, submission("c", 1)).unwrap();
        queue.push(Urgency::Finishing, submission("f", 9)).unwrap();
        assert_eq!(queue.push(Urgency::Finishing, submission("g", 1)), Err(NotQueued::Full));
    }

    #[test]
    fn what_its_waiter_gave_up_is_not_taken() {
        let queue = Queue::new(100);
        let given_up = submission("gone", 1);
        let claim = given_up.claim.clone();
        queue.push(Urgency::New, given_up).unwrap();
        queue.push(Urgency::New, submission("here", 1)).unwrap();
        assert!(claim.take(), "still queued, so the waiter may call it not executed");
        let taken = queue.take(10);
        assert_eq!(names(&taken), ["here"]);
        assert!(!taken[0].claim.take(), "taken, so the waiter may not");
        assert_eq!(queue.operations(), 0);
    }

    #[tokio::test]
    async fn closing_lets_the_rest_out() {
        let queue = Queue::new(100);
        queue.push(Urgency::New, submission("a", 1)).unwrap();
        queue.close();
        assert_eq!(queue.push(Urgency::New, submission("b", 1)), Err(NotQueued::Closed));
        assert!(queue.ready().await);
        assert_eq!(queue.take(10).len(), 1);
        assert!(!queue.ready().await);
    }

    #[tokio::test]
    async fn a_push_wakes_the_sender() {
        let queue = Queue::new(100);
        let (ready, ()) = tokio::join!(queue.ready(), async {
            tokio::task::yield_now().await;
            queue.push(Urgency::New, submission("a", 1)).unwrap();
        });
        assert!(ready);
    }
}

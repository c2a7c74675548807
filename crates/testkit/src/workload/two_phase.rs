//! One client that places holds and ends them in every way there is, some ways at once, and takes back what it captured.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{AGAIN_FIRST, AGAIN_LONGEST, Accounts, History, Progress};
use crate::{
    client::{Answer, Client, NoAnswer, Verdict, escaped},
    history::{ASSET, Attempt, Capture, Fate, Life, Order, Record, Reversal, RunClock, decimal},
    seed::Random,
};

/// In a hundred lives: so many begin with a capture of a part.
const IN_PARTS: usize = 50;
/// In a hundred captures: so many are reversed, and in a hundred reversals so many meet another one.
const REVERSED: usize = 50;
const TWICE: usize = 50;
const EXPIRES_IN_S: u64 = 1;

type Judge = fn(&Result<Answer, NoAnswer>) -> Verdict;

pub struct TwoPhaseTask {
    http: Arc<Client>,
    accounts: Arc<Accounts>,
    random: Random,
    clock: RunClock,
    progress: Arc<Progress>,
    history: History,
    /// Of requests that run at once.
    anomalies: Mutex<Vec<String>>,
}

/// How a hold is to end.
#[derive(Debug, Clone, Copy)]
enum Plan {
    Captured,
    Released,
    Expired,
    /// Captured and released at once.
    Raced,
    /// Captured twice at once.
    CapturedTwice,
    /// More is asked for than there is; then it is released.
    Exceeded,
}

const PLANS: [Plan; 6] =
    [Plan::Captured, Plan::Released, Plan::Expired, Plan::Raced, Plan::CapturedTwice, Plan::Exceeded];

impl TwoPhaseTask {
    pub fn new(
        http: Arc<Client>,
        accounts: Arc<Accounts>,
        random: Random,
        clock: RunClock,
        progress: Arc<Progress>,
    ) -> Self {
        let (history, anomalies) = (History::default(), Mutex::default());
        Self { http, accounts, random, clock, progress, history, anomalies }
    }

    pub async fn live(mut self, stop: CancellationToken) -> History {
        while !stop.is_cancelled() {
            let life = self.one_life().await;
            life.transfers().for_each(|record| self.progress.note(record, self.accounts.crosses(&record.order)));
            self.progress.note_life(&life);
            self.history.records.extend(life.transfers().cloned());
            self.history.lives.push(life);
        }
        self.history.anomalies = self.anomalies.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.history
    }

    async fn one_life(&mut self) -> Life {
        let plan = *self.random.choose(&PLANS);
        let order = self.accounts.order(&mut self.random);
        let seconds = matches!(plan, Plan::Expired).then_some(EXPIRES_IN_S);
        let body = json!({
            "id": order.id, "debit": order.debit, "credit": order.credit, "amount": decimal(order.amount), "asset": ASSET,
            "expires_in_s": seconds,
        });
        let mut hold = Record::new(order.clone());
        let placed = self.ask(&mut hold, "/v1/holds", &body, Verdict::of_hold).await;
        let mut life = Life::new(hold);
        if life.hold.fate() == Fate::Posted {
            let mut left = order.amount;
            if self.random.percent(IN_PARTS) {
                let part = 1 + i64::try_from(self.random.below(100)).unwrap_or(0) * left / 200;
                let capture = self.capture(&order, Some(part), false).await;
                if capture.record.fate() == Fate::Posted {
                    left -= part;
                }
                life.captures.push(capture);
            }
            self.end(&mut life, plan, left).await;
            for index in 0..life.captures.len() {
                let capture = life.captures[index].record.clone();
                if capture.fate() == Fate::Posted && self.random.percent(REVERSED) {
                    life.reversals.extend(self.reverse(&capture.order).await);
                }
            }
        }
        // Whatever has become of it, the first answer stands.
        if let Some(first) = placed {
            self.again(&mut life.hold, "/v1/holds", &body, Verdict::of_hold, &first).await;
        }
        life
    }

    async fn end(&mut self, life: &mut Life, plan: Plan, left: i64) {
        let order = life.hold.order.clone();
        let part = Some(1 + left / 3).filter(|_| self.random.percent(50) && left > 1);
        match plan {
            // It may have been captured to the last, or have expired: then that is what is answered.
            Plan::Captured => life.captures.push(self.capture(&order, part, true).await),
            Plan::Released => life.releases.push(self.release(&order).await),
            // By then it has expired, or is just about to.
            Plan::Expired if self.random.percent(50) => {
                tokio::time::sleep(Duration::from_secs(EXPIRES_IN_S)).await;
                life.releases.push(self.release(&order).await);
            }
            Plan::Expired => {}
            Plan::Raced => {
                let (capture, release) = tokio::join!(self.capture(&order, part, true), self.release(&order));
                life.captures.push(capture);
                life.releases.push(release);
            }
            Plan::CapturedTwice => {
                // A hold of one cent may have nothing left, and nothing cannot be asked for.
                let rest = Some(left.max(1));
                let (one, two) = tokio::join!(self.capture(&order, part, true), self.capture(&order, rest, true));
                life.captures.extend([one, two]);
            }
            Plan::Exceeded => {
                life.captures.push(self.capture(&order, Some(left + 1), true).await);
                life.releases.push(self.release(&order).await);
            }
        }
    }

    /// Without an amount: of all that remains.
    async fn capture(&self, hold: &Order, amount: Option<i64>, finalizes: bool) -> Capture {
        let order = Order { id: Uuid::now_v7(), amount: amount.unwrap_or(0), ..hold.clone() };
        let path = format!("/v1/holds/{}/capture?debit={}", hold.id, escaped(&hold.debit));
        let body = json!({"id": order.id, "amount": amount.map(decimal), "final": finalizes});
        Capture { record: self.follow_up(order, amount, &path, &body).await, finalizes }
    }

    /// Once, or twice at once.
    async fn reverse(&mut self, capture: &Order) -> Vec<Reversal> {
        let twice = self.random.percent(TWICE);
        let path = format!("/v1/transfers/{}/reverse?debit={}", capture.id, escaped(&capture.debit));
        let this = &*self;
        let one = async |amount: Option<i64>| {
            let (debit, credit) = (capture.credit.clone(), capture.debit.clone());
            let order = Order { id: Uuid::now_v7(), debit, credit, amount: amount.unwrap_or(0) };
            let body = json!({"id": order.id, "amount": amount.map(decimal)});
            Reversal { record: this.follow_up(order, amount, &path, &body).await, of: capture.id }
        };
        let part = Some(1 + capture.amount / 2).filter(|part| *part < capture.amount);
        if twice {
            let (one, two) = tokio::join!(one(part), one(None));
            vec![one, two]
        } else {
            vec![one(None).await]
        }
    }

    async fn release(&self, hold: &Order) -> Record {
        let path = format!("/v1/holds/{}/release?debit={}", hold.id, escaped(&hold.debit));
        let mut record = Record::new(hold.clone());
        self.ask(&mut record, &path, &json!({}), Verdict::of_release).await;
        record
    }

    /// A capture or reversal. One without an amount learns it from what is stored.
    async fn follow_up(&self, order: Order, amount: Option<i64>, path: &str, body: &Value) -> Record {
        let mut record = Record::new(order);
        let Some(first) = self.ask(&mut record, path, body, Verdict::of_transfer).await else { return record };
        if amount.is_none() {
            record.order.amount = self.stored_amount(&record.order).await;
        }
        self.again(&mut record, path, body, Verdict::of_transfer, &first).await;
        record
    }

    async fn stored_amount(&self, order: &Order) -> i64 {
        let path = format!("/v1/transfers/{}?debit={}", order.id, escaped(&order.debit));
        loop {
            if let Ok(found) = self.http.get(self.http.next_router(), &path).await {
                let amount = found["amount"].as_str().unwrap_or_default().replace('.', "");
                return amount.parse().unwrap_or(-1);
            }
            tokio::time::sleep(AGAIN_LONGEST).await;
        }
    }

    /// Asks until the answer is definite, or no answer to such a question.
    async fn ask(&self, record: &mut Record, path: &str, body: &Value, judge: Judge) -> Option<Answer> {
        let mut pause = AGAIN_FIRST;
        loop {
            let answer = self.send(record, path, body, judge).await;
            match record.attempts.last().map(|attempt| &attempt.verdict) {
                Some(verdict) if verdict.is_definite() => return answer.ok(),
                Some(Verdict::Nonsense { .. }) => return None,
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_LONGEST);
        }
    }

    async fn send(&self, record: &mut Record, path: &str, body: &Value, judge: Judge) -> Result<Answer, NoAnswer> {
        let (router, invoked) = (self.http.next_router(), self.clock.now());
        let answer = self.http.call(router, Method::POST, path, Some(body)).await;
        record.attempts.push(Attempt { invoked, returned: self.clock.now(), router, verdict: judge(&answer) });
        answer
    }

    /// INV-6, as far as there is an answer.
    async fn again(&self, record: &mut Record, path: &str, body: &Value, judge: Judge, first: &Answer) {
        let Ok(again) = self.send(record, path, body, judge).await else { return };
        if !record.attempts.last().is_some_and(|attempt| attempt.verdict.is_definite()) {
            return;
        }
        let same = if first.status >= 400 { first.code() == again.code() } else { first.body == again.body };
        if !same || !again.is_replay() {
            let (first, again) = (first.text(), again.text());
            let anomaly = format!("INV-6: {path} was answered {first}, its replay {again}");
            self.anomalies.lock().unwrap_or_else(PoisonError::into_inner).push(anomaly);
        }
    }
}

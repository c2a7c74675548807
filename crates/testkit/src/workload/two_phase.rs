//! A client that places holds, ends them in every possible way, some of these at the same time, and reverses what it captured.

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
    client::{Answer, Client, NoAnswer, Verdict, hold_path, transfer_path},
    history::{Attempt, Capture, Fate, Life, Order, Record, Reversal, RunClock, decimal, hold_body},
    seed::Random,
};

/// Of a hundred holds, the number that begin with a capture of a part.
const IN_PARTS: usize = 50;
/// Of a hundred captures, the number that are reversed. Of a hundred reversals, the number that compete with another one.
const REVERSED: usize = 50;
const TWICE: usize = 50;
const EXPIRES_IN_S: u32 = 1;

type Judge = fn(&Result<Answer, NoAnswer>) -> Verdict;

pub struct TwoPhaseTask {
    http: Arc<Client>,
    accounts: Arc<Accounts>,
    random: Random,
    clock: RunClock,
    progress: Arc<Progress>,
    history: History,
    /// Wrong answers. The mutex is for requests that run at the same time.
    anomalies: Mutex<Vec<String>>,
}

/// The way in which the client ends a hold.
#[derive(Debug, Clone, Copy)]
enum Plan {
    Captured,
    Released,
    Expired,
    /// A capture and a release run at the same time.
    Raced,
    /// Two captures run at the same time.
    CapturedTwice,
    /// A capture asks for more than the hold has. Then the hold is released.
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
        let body = hold_body(order.id, &order.debit, &order.credit, &decimal(order.amount), seconds);
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
        // The first answer stays the same, in whatever way the hold ended.
        if let Some(first) = placed {
            self.again(&mut life.hold, "/v1/holds", &body, Verdict::of_hold, &first).await;
        }
        life
    }

    async fn end(&mut self, life: &mut Life, plan: Plan, left: i64) {
        let order = life.hold.order.clone();
        let part = Some(1 + left / 3).filter(|_| self.random.percent(50) && left > 1);
        match plan {
            // The hold may have been captured completely or have expired. The answer then says so.
            Plan::Captured => life.captures.push(self.capture(&order, part, true).await),
            Plan::Released => life.releases.push(self.release(&order).await),
            // By then the hold has expired or is about to expire.
            Plan::Expired if self.random.percent(50) => {
                tokio::time::sleep(Duration::from_secs(EXPIRES_IN_S.into())).await;
                life.releases.push(self.release(&order).await);
            }
            Plan::Expired => {}
            Plan::Raced => {
                let (capture, release) = tokio::join!(self.capture(&order, part, true), self.release(&order));
                life.captures.push(capture);
                life.releases.push(release);
            }
            Plan::CapturedTwice => {
                // A hold of one cent may have nothing left, and a capture of nothing is malformed.
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

    /// Captures this amount, or all that remains if there is no amount.
    async fn capture(&self, hold: &Order, amount: Option<i64>, finalizes: bool) -> Capture {
        let order = Order { id: Uuid::now_v7(), amount: amount.unwrap_or(0), ..hold.clone() };
        let path = hold_path(hold.id, &hold.debit, "/capture");
        let body = json!({"id": order.id, "amount": amount.map(decimal), "final": finalizes});
        Capture { record: self.follow_up(order, amount, &path, &body).await, finalizes }
    }

    /// Reverses a capture, either once or with two requests at the same time.
    async fn reverse(&mut self, capture: &Order) -> Vec<Reversal> {
        let twice = self.random.percent(TWICE);
        let path = transfer_path(capture.id, &capture.debit, "/reverse");
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
        let path = hold_path(hold.id, &hold.debit, "/release");
        let mut record = Record::new(hold.clone());
        self.ask(&mut record, &path, &json!({}), Verdict::of_release).await;
        record
    }

    /// Sends a capture or reversal until its answer is definite. If the request has no amount, the record gets the stored amount.
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
        let path = transfer_path(order.id, &order.debit, "");
        loop {
            if let Ok(found) = self.http.get(self.http.next_router(), &path).await {
                let amount = found["amount"].as_str().unwrap_or_default().replace('.', "");
                return amount.parse().unwrap_or(-1);
            }
            tokio::time::sleep(AGAIN_LONGEST).await;
        }
    }

    /// Repeats the request until the answer is definite, or until the answer is one that the contract forbids.
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

    /// INV-6: the replay of an answered request has the same answer. The check needs a definite answer to the replay.
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

//! A client of single transfers or batches. It records each request and its answer, and repeats the request until the outcome is certain.

use std::sync::Arc;

use http::Method;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{AGAIN_FIRST, AGAIN_LONGEST, Accounts, History, Mix, Progress};
use crate::{
    client::{Answer, Client, NoAnswer, Verdict, account_path},
    history::{Attempt, Order, Record, RunClock},
    seed::Random,
};

/// Of a hundred single transfers, the number that are replayed, and the number that are read back through another router.
const REPLAYED: usize = 10;
const READ_BACK: usize = 10;
/// Of a hundred answers "not executed", the number after which the client gives the order up.
const GIVEN_UP: usize = 40;

pub struct ClientTask {
    http: Arc<Client>,
    accounts: Arc<Accounts>,
    random: Random,
    clock: RunClock,
    mix: Mix,
    progress: Arc<Progress>,
    history: History,
}

impl ClientTask {
    pub fn new(
        http: Arc<Client>,
        accounts: Arc<Accounts>,
        random: Random,
        clock: RunClock,
        mix: Mix,
        progress: Arc<Progress>,
    ) -> Self {
        Self { http, accounts, random, clock, mix, progress, history: History::default() }
    }

    pub async fn send_singles(mut self, stop: CancellationToken) -> History {
        while !stop.is_cancelled() {
            let order = self.accounts.order(&mut self.random);
            let (mut record, answer) = self.send_until_definite(order).await;
            if let Some(answer) = answer {
                if self.random.percent(REPLAYED) {
                    self.replay(&mut record, &answer).await;
                }
                if self.random.percent(READ_BACK) {
                    self.read_back(&record, &answer).await;
                }
            }
            self.done_with(record);
        }
        self.history
    }

    fn done_with(&mut self, record: Record) {
        self.progress.note(&record, self.accounts.crosses(&record.order));
        self.history.records.push(record);
    }

    pub async fn send_batches(mut self, stop: CancellationToken) -> History {
        while !stop.is_cancelled() {
            let items = 1 + self.random.below(self.mix.batch_items);
            let mut open: Vec<Record> =
                (0..items).map(|_| Record::new(self.accounts.order(&mut self.random))).collect();
            let mut pause = AGAIN_FIRST;
            while !open.is_empty() {
                self.send_batch(&mut open).await;
                let (done, left): (Vec<_>, _) = open.into_iter().partition(|record| self.is_done(record));
                done.into_iter().for_each(|record| self.done_with(record));
                open = left;
                if !open.is_empty() {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AGAIN_LONGEST);
                }
            }
        }
        self.history
    }

    /// Returns the record, and the first definite answer unless the client gave the order up.
    async fn send_until_definite(&mut self, order: Order) -> (Record, Option<Answer>) {
        let mut record = Record::new(order);
        let mut pause = AGAIN_FIRST;
        loop {
            let answer = self.send(&mut record).await;
            let definite = record.attempts.last().is_some_and(|attempt| attempt.verdict.is_definite());
            if definite || self.is_done(&record) {
                return (record, answer.ok().filter(|_| definite));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(AGAIN_LONGEST);
        }
    }

    async fn send(&self, record: &mut Record) -> Result<Answer, NoAnswer> {
        let (router, invoked) = (self.http.next_router(), self.clock.now());
        let answer = self.http.call(router, Method::POST, "/v1/transfers", Some(&record.order.to_json())).await;
        let verdict = Verdict::of_transfer(&answer);
        record.attempts.push(Attempt { invoked, returned: self.clock.now(), router, verdict });
        answer
    }

    async fn send_batch(&self, open: &mut [Record]) {
        let (router, invoked) = (self.http.next_router(), self.clock.now());
        let transfers: Vec<_> = open.iter().map(|record| record.order.to_json()).collect();
        let body = json!({"transfers": transfers});
        let answer = self.http.call(router, Method::POST, "/v1/transfers:batch", Some(&body)).await;
        let returned = self.clock.now();
        for (record, verdict) in open.iter_mut().zip(Verdict::of_batch(&answer, transfers.len())) {
            record.attempts.push(Attempt { invoked, returned, router, verdict });
        }
    }

    /// Whether the client sends nothing more for this order.
    fn is_done(&mut self, record: &Record) -> bool {
        match record.attempts.last().map(|attempt| &attempt.verdict) {
            Some(Verdict::Posted | Verdict::Rejected { .. } | Verdict::Nonsense { .. }) => true,
            Some(Verdict::NotExecuted { .. }) => {
                let never_sent = record.attempts.iter().all(|a| matches!(a.verdict, Verdict::NotExecuted { .. }));
                self.mix.gives_up && never_sent && self.random.percent(GIVEN_UP)
            }
            Some(Verdict::Unknown { .. }) | None => false,
        }
    }

    /// INV-6: a replay gives the same answer byte for byte. Problems differ only in their request id.
    async fn replay(&mut self, record: &mut Record, first: &Answer) {
        let Ok(again) = self.send(record).await else { return };
        if !record.attempts.last().is_some_and(|attempt| attempt.verdict.is_definite()) {
            return;
        }
        let same = if first.status == 422 { first.code() == again.code() } else { first.body == again.body };
        if !same || !again.is_replay() {
            let (id, first, again) = (record.order.id, first.text(), again.text());
            self.history.anomalies.push(format!("INV-6: {id} was answered {first}, its replay {again}"));
        }
    }

    /// INV-12: a read after an answered write sees the write, through any router.
    async fn read_back(&mut self, record: &Record, answer: &Answer) {
        let Some(written) = answer.json().ok().and_then(|body| body["debit_account"]["version"].as_i64()) else {
            return;
        };
        let path = account_path(&record.order.debit);
        // The account cannot be reached at the moment, so there is nothing to compare.
        let Ok(account) = self.http.get(self.http.next_router(), &path).await else { return };
        let read = account["version"].as_i64().unwrap_or_default();
        if read < written {
            let (id, debit) = (record.order.id, &record.order.debit);
            self.history
                .anomalies
                .push(format!("INV-12: {id} left {debit} at version {written}, a later read says {read}"));
        }
    }
}

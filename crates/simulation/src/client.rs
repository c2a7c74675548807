//! Clients: each orders one thing after another, sends what has no answer again under the same id, and remembers what it was told.

use std::{future::Future, time::Duration};

use ledger::{
    AccountId, HoldKey, Metadata, TransferId,
    operation::{PlaceHold, Purpose},
};
use router::simulation::{AtomicReply, CallError, NewTransfer, Router, TransferReply};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::{
    cluster::{Accounts, Cluster, FUNDS, RouterProcess, asset},
    random::Random,
    reader::Ordered,
    record::{Answer, Failure, Group, Moment, Order, Proof, Record, hear_group, short},
    trace,
};

/// Most members of a batch or a group.
const MOST_ITEMS: u64 = 4;

/// A client and what it remembers.
pub struct Client {
    number: u64,
    name: String,
    cluster: Cluster,
    routers: usize,
    random: Random,
    /// The number of ids used so far.
    ids: u64,
    /// Until when every order must have got its answer.
    until: Instant,
    ordered: Ordered,
    /// When the last attempt was sent and its deadline, if a router has read it.
    limits: Option<(Moment, Moment)>,
    pub records: Vec<Record>,
    /// Atomic groups. Their members are among the records, too.
    pub groups: Vec<Group>,
}

/// What came of an attempt: an answer, a refused connection, or nothing.
enum Attempt<T> {
    Replied(T),
    NotSent,
    Lost,
}

impl Client {
    /// What it sends is noted in `ordered`.
    pub fn new(
        number: u64,
        cluster: Cluster,
        routers: usize,
        random: Random,
        until: Instant,
        ordered: Ordered,
    ) -> Self {
        let name = format!("client {number}");
        let (records, groups) = (Vec::new(), Vec::new());
        Self { number, name, cluster, routers, random, ids: 0, until, ordered, limits: None, records, groups }
    }

    /// Orders so many things.
    ///
    /// # Errors
    /// The first answer that no ledger may give, or an order without an answer.
    pub async fn run(&mut self, orders: usize) -> Result<(), String> {
        for _ in 0..orders {
            let pause = self.random.between(0, 250);
            sleep(Duration::from_millis(pause)).await;
            match self.random.below(20) {
                0..8 => self.transfer(Purpose::Payment).await?,
                8..10 => self.batch().await?,
                10 => self.group().await?,
                11..13 => self.hold().await?,
                13..16 => self.capture().await?,
                16 => self.release().await?,
                17 | 18 => self.reverse().await?,
                _ => self.other_content().await?,
            }
        }
        Ok(())
    }

    // === orders ===

    fn id(&mut self) -> TransferId {
        self.ids += 1;
        TransferId(Uuid::from_u128((u128::from(self.number + 1) << 64) | u128::from(self.ids)))
    }

    fn amount(&mut self) -> i64 {
        let share = self.random.between(1, 70);
        i64::try_from(share).unwrap_or(FUNDS)
    }

    fn account(&mut self) -> AccountId {
        let Accounts { bank, limited, capped } = self.random.pick(&self.cluster.accounts).clone();
        match self.random.below(8) {
            0 => bank,
            1..5 => self.random.pick(&capped).clone(),
            _ => self.random.pick(&limited).clone(),
        }
    }

    fn payment(&mut self) -> NewTransfer {
        let debit = self.account();
        let credit = loop {
            let credit = self.account();
            if credit != debit {
                break credit;
            }
        };
        let (id, amount) = (self.id(), self.amount());
        let (metadata, purpose) = (Metadata::empty(), Purpose::Payment);
        NewTransfer { ordered_by: None, id, debit, credit, asset: asset(), amount, metadata, purpose }
    }

    async fn transfer(&mut self, purpose: Purpose) -> Result<(), String> {
        let order = NewTransfer { purpose, ..self.payment() };
        self.finish(Record::new(Order::Transfer(order))).await
    }

    async fn batch(&mut self) -> Result<(), String> {
        let items: Vec<NewTransfer> = (0..self.random.between(2, MOST_ITEMS)).map(|_| self.payment()).collect();
        let mut records: Vec<Record> = items.iter().map(|item| Record::new(Order::Transfer(item.clone()))).collect();
        self.note_sent(&mut records);
        let replies =
            self.ask("a batch", |router, deadline| async move { router.transfer_batch(items, deadline).await });
        match replies.await {
            Attempt::Replied(replies) => {
                for (record, reply) in records.iter_mut().zip(&replies) {
                    trace::note(&self.name, || format!("{}: {}", short(record.id()), shown(reply)));
                    record.hear_transfer(reply)?;
                }
            }
            Attempt::NotSent => {}
            Attempt::Lost => {
                for record in &mut records {
                    record.lost();
                }
            }
        }
        self.note_heard(&mut records);
        for record in records {
            if record.answer.is_some() {
                self.records.push(record);
            } else {
                self.finish(record).await?;
            }
        }
        Ok(())
    }

    /// Payments between accounts of one shard, all or none.
    async fn group(&mut self) -> Result<(), String> {
        let Accounts { limited, capped, .. } = self.random.pick(&self.cluster.accounts).clone();
        let names = [limited, capped].concat();
        let count = self.random.between(2, MOST_ITEMS);
        let items: Vec<NewTransfer> = (0..count)
            .map(|_| {
                let debit = self.random.index(names.len());
                let credit = (debit + 1 + self.random.index(names.len() - 1)) % names.len();
                let (debit, credit) = (names[debit].clone(), names[credit].clone());
                NewTransfer { debit, credit, ..self.payment() }
            })
            .collect();
        let of_group =
            |item: &NewTransfer| Record { is_of_group: true, ..Record::new(Order::Transfer(item.clone())) };
        let mut group: Vec<Record> = items.iter().map(of_group).collect();
        loop {
            let order = items.clone();
            self.note_sent(&mut group);
            let attempt =
                self.ask("a group", |router, deadline| async move { router.transfer_atomic(order, deadline).await });
            let mut failed = None;
            let proof = match attempt.await {
                Attempt::Replied(reply) => {
                    trace::note(&self.name, || format!("{} and others: {}", short(group[0].id()), shown(&reply)));
                    failed = self.failure(&reply);
                    hear_group(&mut group, &reply)?
                }
                Attempt::NotSent => Proof::NotExecuted,
                Attempt::Lost => group.iter_mut().fold(Proof::Unknown, |_, record| record.lost()),
            };
            self.note_heard(&mut group);
            if self.is_the_end(proof, &mut group) {
                self.groups.push(Group { members: group.clone(), failed });
                self.records.extend(group);
                return Ok(());
            }
            self.pause_before_retry(&group[0]).await?;
        }
    }

    /// Why a group stored nothing, if it was answered so now.
    fn failure(&self, reply: &Result<AtomicReply, CallError>) -> Option<Failure> {
        let Ok(AtomicReply::Failed { culprit, items }) = reply else { return None };
        let TransferReply::NotStored(refused) = items.get(*culprit)? else { return None };
        Some(Failure { culprit: *culprit, refused: *refused, returned: self.cluster.moment() })
    }

    async fn hold(&mut self) -> Result<(), String> {
        let NewTransfer { id, debit, credit, asset, amount, metadata, .. } = self.payment();
        let expires_in_s = if self.random.percent(30) { Some(1) } else { None };
        let place = PlaceHold { ordered_by: None, id, debit, credit, asset, amount, expires_in_s, metadata };
        self.finish(Record::new(Order::Hold(place))).await
    }

    /// A hold of this client that was placed.
    fn placed(&mut self) -> Option<PlaceHold> {
        let placed = self.records.iter().filter_map(|record| match (&record.order, &record.answer) {
            (Order::Hold(place), Some(Answer::Hold(answer))) if answer.refused.is_none() => Some(place.clone()),
            _ => None,
        });
        let placed: Vec<PlaceHold> = placed.collect();
        (!placed.is_empty()).then(|| self.random.pick(&placed).clone())
    }

    async fn capture(&mut self) -> Result<(), String> {
        let Some(PlaceHold { id: hold, debit, credit, amount: held, .. }) = self.placed() else {
            return self.hold().await;
        };
        let whole = self.random.percent(30);
        let finalize = self.random.percent(30);
        let part = self.random.between(1, u64::try_from(held).unwrap_or(1));
        let amount = if whole { 0 } else { i64::try_from(part).unwrap_or(held) };
        let purpose = Purpose::Capture { hold, whole, finalize };
        let order = NewTransfer { debit, credit, amount, purpose, ..self.payment() };
        self.finish(Record::new(Order::Transfer(order))).await
    }

    async fn release(&mut self) -> Result<(), String> {
        let Some(place) = self.placed() else { return self.hold().await };
        let key = HoldKey { id: place.id, debit: place.debit };
        self.finish(Record::new(Order::Release(key))).await
    }

    async fn reverse(&mut self) -> Result<(), String> {
        let payments: Vec<(NewTransfer, i64)> = self
            .records
            .iter()
            .filter_map(Record::posted)
            .filter(|(order, _)| order.purpose == Purpose::Payment)
            .map(|(order, amount)| (order.clone(), amount))
            .collect();
        if payments.is_empty() {
            return self.transfer(Purpose::Payment).await;
        }
        let (original, amount) = self.random.pick(&payments).clone();
        let part = self.random.between(1, u64::try_from(amount).unwrap_or(1));
        let amount = i64::try_from(part).unwrap_or(amount);
        let purpose = Purpose::Reversal { of: original.id, whole: false };
        let order = NewTransfer { debit: original.credit, credit: original.debit, amount, purpose, ..self.payment() };
        self.finish(Record::new(Order::Transfer(order))).await
    }

    /// Sends an id that has its answer with another amount.
    async fn other_content(&mut self) -> Result<(), String> {
        let payments: Vec<NewTransfer> = self
            .records
            .iter()
            .filter_map(|record| match (&record.order, &record.answer) {
                (Order::Transfer(order), Some(_)) if order.purpose == Purpose::Payment && !record.is_of_group => {
                    Some(order.clone())
                }
                _ => None,
            })
            .collect();
        if payments.is_empty() {
            return self.transfer(Purpose::Payment).await;
        }
        let mut order = self.random.pick(&payments).clone();
        order.amount += 1;
        let asked = order.clone();
        let reply = self
            .ask("another amount", |router, deadline| async move { router.transfer(asked, deadline).await })
            .await;
        match reply {
            Attempt::NotSent | Attempt::Lost => Ok(()),
            Attempt::Replied(Ok(TransferReply::Mismatch { field: "amount" }) | Err(_)) => Ok(()),
            Attempt::Replied(reply) => {
                Err(format!("an id that was used for another amount is answered {reply:?}: {order:?}"))
            }
        }
    }

    // === attempts ===

    /// Sends an order until it has its answer, or the client leaves it.
    async fn finish(&mut self, mut record: Record) -> Result<(), String> {
        loop {
            let proof = self.attempt(&mut record).await?;
            if self.is_the_end(proof, std::slice::from_mut(&mut record)) {
                self.records.push(record);
                return Ok(());
            }
            self.pause_before_retry(&record).await?;
        }
    }

    /// Sends an order once more.
    ///
    /// # Errors
    /// If no ledger may answer so.
    pub async fn attempt(&mut self, record: &mut Record) -> Result<Proof, String> {
        self.note_sent(std::slice::from_mut(record));
        macro_rules! attempt {
            ($what:literal, $record:ident, $hear:ident, |$router:ident, $deadline:ident| $call:expr) => {
                match self.ask($what, |$router, $deadline| async move { $call.await }).await {
                    Attempt::Replied(reply) => {
                        trace::note(&self.name, || format!("{}: {}", short($record.id()), shown(&reply)));
                        $record.$hear(&reply)
                    }
                    Attempt::NotSent => Ok(Proof::NotExecuted),
                    Attempt::Lost => Ok($record.lost()),
                }
            };
        }
        trace::note(&self.name, || format!("{} {:?}", short(record.id()), record.order));
        let proof = match record.order.clone() {
            Order::Transfer(order) => {
                attempt!("a transfer", record, hear_transfer, |router, deadline| router.transfer(order, deadline))
            }
            Order::Hold(place) => {
                attempt!("a hold", record, hear_hold, |router, deadline| router.place_hold(place, deadline))
            }
            Order::Release(key) => {
                attempt!("a release", record, hear_release, |router, deadline| router
                    .release_hold(key.into(), deadline))
            }
        };
        self.note_heard(std::slice::from_mut(record));
        proof
    }

    fn note_sent(&self, records: &mut [Record]) {
        let now = self.cluster.moment();
        for record in records {
            record.sends(now);
            if record.attempts == 1 {
                self.ordered.note(record);
            }
        }
    }

    fn note_heard(&self, records: &mut [Record]) {
        let now = self.cluster.moment();
        for record in records {
            record.hears(now);
            record.limits.extend(self.limits);
        }
    }

    /// Whether the client is done with an order after this attempt.
    fn is_the_end(&mut self, proof: Proof, records: &mut [Record]) -> bool {
        let is_certain = records.iter().all(|record| !record.is_doubtful);
        let ends = match proof {
            Proof::Answered => return true,
            Proof::NothingStored => true,
            Proof::NotExecuted => is_certain && self.random.percent(30),
            Proof::Unknown => false,
        };
        records.iter_mut().for_each(|record| record.is_abandoned = ends);
        ends
    }

    async fn pause_before_retry(&mut self, record: &Record) -> Result<(), String> {
        if Instant::now() >= self.until {
            return Err(format!("liveness: no answer after {} attempts: {:?}", record.attempts, record.order));
        }
        let pause = self.random.between(20, 500);
        sleep(Duration::from_millis(pause)).await;
        Ok(())
    }

    /// Sends a request to one of the routers. The client hangs up some time after the deadline.
    async fn ask<T, Call>(&mut self, what: &str, call: impl FnOnce(Router, Instant) -> Call) -> Attempt<T>
    where
        T: Send + 'static,
        Call: Future<Output = T> + Send + 'static,
    {
        let number = self.random.index(self.routers);
        let patience = Duration::from_millis(*self.random.pick(&[300, 1_500, 5_000]));
        let Some(RouterProcess { router, tasks }) = self.cluster.router(number) else {
            self.limits = None;
            trace::note(&self.name, || format!("{what}: router r{number} is down"));
            return Attempt::NotSent;
        };
        trace::note(&self.name, || format!("{what} to r{number}, within {patience:?}"));
        let sent = self.cluster.moment();
        self.limits = Some((sent, sent + u64::try_from(patience.as_micros()).unwrap_or(u64::MAX)));
        let request = tasks.spawn("request", call(router, Instant::now() + patience));
        match timeout(patience + Duration::from_millis(500), request).await {
            Ok(Ok(reply)) => Attempt::Replied(reply),
            Ok(Err(_)) | Err(_) => {
                trace::note(&self.name, || format!("{what}: no answer"));
                Attempt::Lost
            }
        }
    }
}

fn shown<T: std::fmt::Debug>(reply: &Result<T, CallError>) -> String {
    match reply {
        Ok(reply) => format!("{reply:?}"),
        Err(error) if error.is_not_executed() => format!("not executed: {error}"),
        Err(error) => format!("unknown: {error}"),
    }
}

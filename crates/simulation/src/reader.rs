//! Readers: clients that look at accounts, transfers and holds while others order something and things go wrong.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ledger::{AccountId, Hold, TransferId};
use router::simulation::{CallError, Router};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    cluster::{Accounts, Cluster, RouterProcess},
    random::Random,
    record::{Moment, Order, Record, short},
    trace,
};

/// What clients have sent so far, in that order. Clones share it.
#[derive(Clone, Default)]
pub struct Ordered(Arc<Mutex<Vec<Named>>>);

/// A transfer or hold that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub id: TransferId,
    pub debit: AccountId,
    pub is_hold: bool,
}

impl Ordered {
    /// Takes note of an order. The release of a hold has no id of its own.
    pub fn note(&self, record: &Record) {
        let (id, debit, is_hold) = match &record.order {
            Order::Transfer(transfer) => (transfer.id, transfer.debit.clone(), false),
            Order::Hold(place) => (place.id, place.debit.clone(), true),
            Order::Release(_) => return,
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Named { id, debit, is_hold });
    }

    fn any(&self, random: &mut Random) -> Option<Named> {
        let sent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (!sent.is_empty()).then(|| random.pick(&sent).clone())
    }
}

/// What a read was answered.
#[derive(Debug, Clone)]
pub struct Read {
    /// When it was sent, and when its answer came.
    pub invoked: Moment,
    pub returned: Moment,
    pub shown: Shown,
}

#[derive(Debug, Clone)]
pub enum Shown {
    Account(AccountId, ShownAccount),
    /// `None`: there is no such transfer.
    Transfer(Named, Option<ShownTransfer>),
    /// `None`: there is no such hold.
    Hold(Named, Option<Hold>),
}

/// Balances in minor units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownAccount {
    pub version: i64,
    pub posted: i64,
    pub held: i64,
}

/// Amounts in minor units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownTransfer {
    /// A code of [`ledger::outcome::TransferState`].
    pub status: u32,
    /// The code of the refusal, if it is rejected.
    pub refusal: u32,
    pub amount: i64,
    pub reversed: i64,
}

/// A client that reads.
pub struct Reader {
    name: String,
    cluster: Cluster,
    routers: usize,
    random: Random,
    ordered: Ordered,
    pub reads: Vec<Read>,
    /// Reads without an answer.
    pub failed: usize,
}

impl Reader {
    pub fn new(number: u64, cluster: Cluster, routers: usize, random: Random, ordered: Ordered) -> Self {
        let name = format!("reader {number}");
        Self { name, cluster, routers, random, ordered, reads: Vec::new(), failed: 0 }
    }

    /// Reads so many times.
    ///
    /// # Errors
    /// The first answer that no ledger may give.
    pub async fn run(&mut self, reads: usize) -> Result<(), String> {
        for _ in 0..reads {
            let pause = self.random.between(0, 300);
            sleep(Duration::from_millis(pause)).await;
            let what = match self.ordered.any(&mut self.random) {
                Some(named) if self.random.percent(50) => What::Ordered(named),
                _ => What::Account(self.account()),
            };
            self.read(&what).await?;
        }
        Ok(())
    }

    /// Reads each of these once more, until each has its answer.
    ///
    /// # Errors
    /// The first answer that no ledger may give, or a read without an answer at that time.
    pub async fn read_all(&mut self, until: Instant) -> Result<(), String> {
        let accounts = self.cluster.accounts.iter().flat_map(Accounts::all).map(What::Account);
        let ordered = self.ordered.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<What> = accounts.chain(ordered.into_iter().map(What::Ordered)).collect();
        for what in all {
            while !self.read(&what).await? {
                if Instant::now() >= until {
                    return Err(format!("liveness: a read has no answer: {what:?}"));
                }
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(())
    }

    fn account(&mut self) -> AccountId {
        let of_shard: Vec<AccountId> = self.random.pick(&self.cluster.accounts).all().collect();
        self.random.pick(&of_shard).clone()
    }

    /// Sends one read. Returns whether there is an answer.
    async fn read(&mut self, what: &What) -> Result<bool, String> {
        let invoked = self.cluster.moment();
        // Without the debit account, every shard is asked.
        let names_debit = self.random.percent(80);
        let shown = match what.clone() {
            What::Account(id) => {
                let account = id.clone();
                let found = self.ask(|router, until| async move { router.account(&account, until).await }).await;
                match found {
                    None => None,
                    Some(None) => return Err(format!("{id} does not exist any more")),
                    Some(Some(found)) => {
                        let (version, posted, held) = (found.value.version, found.value.posted, found.value.held);
                        Some(Shown::Account(id, ShownAccount { version, posted, held }))
                    }
                }
            }
            What::Ordered(named @ Named { is_hold: false, .. }) => {
                let Named { id, debit, .. } = named.clone();
                let found = self.ask(|router, until| async move {
                    router.find_transfer(id, names_debit.then_some(&debit), |_| true, until).await
                });
                found.await.and_then(|found| {
                    let it =
                        found.found.iter().map(|found| &found.record).find(|it| it.debit == named.debit.as_str());
                    let shown = it.map(|record| ShownTransfer {
                        status: record.status,
                        refusal: record.refusal,
                        amount: record.amount,
                        reversed: record.reversed,
                    });
                    // A shard that did not answer may have it.
                    let is_told = shown.is_some() || found.unreachable.is_empty();
                    is_told.then_some(Shown::Transfer(named, shown))
                })
            }
            What::Ordered(named) => {
                let Named { id, debit, .. } = named.clone();
                let found = self.ask(|router, until| async move {
                    router.find_hold(id, names_debit.then_some(&debit), |_| true, until).await
                });
                found.await.and_then(|found| {
                    let it = found.found.into_iter().find(|it| it.key.debit == named.debit).map(|it| it.hold);
                    let is_told = it.is_some() || found.unreachable.is_empty();
                    is_told.then_some(Shown::Hold(named, it))
                })
            }
        };
        let returned = self.cluster.moment();
        let Some(shown) = shown else {
            self.failed += 1;
            return Ok(false);
        };
        trace::note(&self.name, || describe(&shown));
        self.reads.push(Read { invoked, returned, shown });
        Ok(true)
    }

    /// Asks one of the routers. `None`: it has no answer.
    async fn ask<T, Call>(&mut self, call: impl FnOnce(Router, Instant) -> Call) -> Option<T>
    where
        T: Send + 'static,
        Call: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let number = self.random.index(self.routers);
        let patience = Duration::from_millis(*self.random.pick(&[300, 1_500]));
        let RouterProcess { router, tasks } = self.cluster.router(number)?;
        let request = tasks.spawn("request", call(router, Instant::now() + patience));
        match timeout(patience + Duration::from_millis(500), request).await {
            Ok(Ok(Ok(answer))) => Some(answer),
            Ok(Ok(Err(error))) => {
                trace::note(&self.name, || format!("a read by r{number}: {error}"));
                None
            }
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// What a read asks for.
#[derive(Debug, Clone)]
enum What {
    Account(AccountId),
    Ordered(Named),
}

/// A read's answer in one line.
pub fn describe(shown: &Shown) -> String {
    match shown {
        Shown::Account(id, shown) => format!("{id}: {shown:?}"),
        Shown::Transfer(Named { id, debit, .. }, shown) => format!("transfer {} of {debit}: {shown:?}", short(*id)),
        Shown::Hold(Named { id, debit, .. }, None) => format!("hold {} of {debit}: None", short(*id)),
        Shown::Hold(Named { id, debit, .. }, Some(hold)) => {
            format!(
                "hold {} of {debit}: {:?}, {} of {} captured",
                short(*id),
                hold.status,
                hold.captured,
                hold.amount
            )
        }
    }
}

//! Pages of accounts and sums of balances.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use ledger::AccountPrefix;
use sqlx::PgPool;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{MAX_PAGE, Service, read_failed};
use crate::{
    reads::account_list::{self, AllOwned, Selection},
    store::StoreError,
};

/// Largest page of accounts as of a time. Many pages make one answer, and each is a round trip to every shard.
const MAX_PAGE_AT: u32 = 2_000;
/// No client waits longer, whatever a router says.
const LONGEST_SUM: Duration = Duration::from_secs(30);
/// How long a slice of a sum as of a time may take. It keeps its turn so long at most, and is tried again with fewer accounts.
const LONGEST_SLICE: Duration = Duration::from_secs(2);
/// A slice that takes less time is followed by a larger one, a slice that takes more than `LONG_SLICE` by a smaller one.
const SHORT_SLICE: Duration = Duration::from_millis(250);
const LONG_SLICE: Duration = Duration::from_secs(1);
/// The part of the time of a call that is reserved for its answer.
const ANSWER_SHARE: u32 = 10;
const ANSWER_TIME_MAX: Duration = Duration::from_millis(250);

impl Service {
    pub(super) async fn page_of_accounts(
        &self,
        request: wire::ListAccountsRequest,
    ) -> Result<wire::ListAccountsResponse, Status> {
        let selection = selection(&request.prefix, &request.slots)?;
        let (reads, known) = (&self.reads, &self.ownership);
        let page = match request.at_us {
            None => {
                let limit = request.limit.clamp(1, MAX_PAGE).into();
                account_list::page(reads, known, &selection, &request.after, limit).await
            }
            Some(at_us) => {
                let limit = request.limit.clamp(1, MAX_PAGE_AT).into();
                account_list::page_at(reads, known, &selection, &request.after, limit, at_us).await
            }
        };
        Ok(match page.map_err(read_failed)? {
            AllOwned::Here(page) => page,
            AllOwned::NotHere(not_owner) => wire::ListAccountsResponse {
                not_owner: not_owner.into_iter().map(Into::into).collect(),
                ..Default::default()
            },
        })
    }

    pub(super) async fn sums_of_balances(
        &self,
        request: wire::SumBalancesRequest,
    ) -> Result<wire::SumBalancesResponse, Status> {
        let selection = selection(&request.prefix, &request.slots)?;
        let given = Duration::from_millis(request.timeout_ms.into()).min(LONGEST_SUM);
        // A sum that does not end says so before the router stops waiting.
        let deadline = Instant::now() + given - (given / ANSWER_SHARE).min(ANSWER_TIME_MAX);
        let sums = match request.at_us {
            None => self.sums_now(selection, deadline).await?,
            Some(at_us) => self.sums_at(&Arc::new(selection), at_us, deadline).await?,
        };
        Ok(match sums {
            AllOwned::Here(sums) => wire::SumBalancesResponse { sums, not_owner: Vec::new() },
            AllOwned::NotHere(not_owner) => wire::SumBalancesResponse {
                sums: Vec::new(),
                not_owner: not_owner.into_iter().map(Into::into).collect(),
            },
        })
    }

    /// One statement, because the sums of now are of one snapshot.
    async fn sums_now(
        &self,
        selection: Selection,
        deadline: Instant,
    ) -> Result<AllOwned<Vec<wire::AssetSum>>, Status> {
        let ownership = self.ownership.clone();
        let work = move |pool: PgPool, timeout| async move {
            account_list::sums(&pool, &ownership, &selection, timeout).await
        };
        self.in_turn(deadline, LONGEST_SUM, work).await?.map_err(sum_failed)
    }

    /// Slice by slice. The history of many accounts may take long to walk, and other sums get their turns between the slices.
    async fn sums_at(
        &self,
        selection: &Arc<Selection>,
        at_us: i64,
        deadline: Instant,
    ) -> Result<AllOwned<Vec<wire::AssetSum>>, Status> {
        let (mut sums, mut after, mut size) = (Sums::default(), String::new(), SliceSize::FIRST);
        loop {
            let (ownership, selection, from, limit) =
                (self.ownership.clone(), Arc::clone(selection), after.clone(), i64::from(size.accounts));
            let work = move |pool: PgPool, timeout| async move {
                let begun = Instant::now();
                let read = account_list::sums_at(&pool, &ownership, &selection, at_us, &from, limit, timeout).await;
                read.map(|read| (read, begun.elapsed()))
            };
            match self.in_turn(deadline, LONGEST_SLICE, work).await? {
                Ok((AllOwned::Here(slice), took)) => {
                    sums.add(slice.sums)?;
                    match slice.next {
                        Some(next) => after = next,
                        None => return Ok(AllOwned::Here(sums.into_wire())),
                    }
                    size = size.after(took);
                }
                Ok((AllOwned::NotHere(not_owner), _)) => return Ok(AllOwned::NotHere(not_owner)),
                Err(error) if error.is_out_of_time() => size = size.after_timeout(),
                Err(error) => return Err(sum_failed(error)),
            }
        }
    }

    /// Does a part of a sum when it is its turn, in at most `longest`.
    ///
    /// # Errors
    /// When the deadline passes before it begins, the gate has closed, or the node is closing.
    async fn in_turn<T: Send + 'static, F: Future<Output = Result<T, StoreError>> + Send + 'static>(
        &self,
        deadline: Instant,
        longest: Duration,
        work: impl FnOnce(PgPool, Duration) -> F,
    ) -> Result<Result<T, StoreError>, Status> {
        let turns = async { Ok::<_, Status>((owned_turn(&self.sums).await?, owned_turn(&self.turns).await?)) };
        let turns = timeout_at(deadline, turns).await.map_err(|_| out_of_time())??;
        let timeout = deadline.saturating_duration_since(Instant::now()).min(longest);
        if timeout < Duration::from_millis(1) {
            return Err(out_of_time());
        }
        // A long sum has many turns, and the database may have been refused since the first one.
        if let Some(why) = self.gate.closed() {
            return Err(Status::unavailable(why));
        }
        let pool = self.reads.from.pool().map_err(read_failed)?.clone();
        let work = work(pool, timeout);
        // In a task of its own: a router that hangs up does not end the statement, and its turns must last as long as it does.
        let task = self.tasks.spawn("sum of balances", async move {
            let _turns = turns;
            work.await
        });
        task.await.map_err(|_| Status::internal("the sum failed"))
    }
}

fn out_of_time() -> Status {
    Status::deadline_exceeded("the sum did not end in time")
}

fn sum_failed(error: StoreError) -> Status {
    if error.is_out_of_time() { out_of_time() } else { read_failed(error) }
}

/// How many accounts a slice of a sum as of a time has. The history of an account may have nothing to walk, or 64 bookings. A slice also has
/// a part of its time that does not depend on its accounts: it passes over the bookings that are not folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SliceSize {
    accounts: u32,
    /// The last slice of another size, and how long it took.
    other: Option<(u32, Duration)>,
}

impl SliceSize {
    const FIRST: Self = Self { accounts: 256, other: None };
    const LEAST: u32 = 32;
    const MOST: u32 = 16_384;
    /// A slice most of whose time does not depend on its accounts grows until it takes so long.
    const LONGEST_AIM: Duration = Duration::from_millis(1_500);

    fn after(self, took: Duration) -> Self {
        let of_accounts = self.time_of_accounts(took);
        let is_mostly_fixed = of_accounts.is_some_and(|of_accounts| of_accounts < took / 2);
        // With twice the accounts.
        let doubled = took + of_accounts.unwrap_or(took);
        if took < SHORT_SLICE || (is_mostly_fixed && doubled <= Self::LONGEST_AIM) {
            self.change_to(self.accounts * 2, took)
        } else if took > LONG_SLICE {
            // Fewer accounts would not make it quicker, and would make more slices.
            if is_mostly_fixed { self } else { self.change_to(self.accounts / 2, took) }
        } else if of_accounts.is_none() {
            // The next slice shows which part of the time the accounts take.
            self.change_to(self.accounts * 2, took)
        } else {
            self
        }
    }

    fn after_timeout(self) -> Self {
        Self { other: None, ..self.change_to(self.accounts / 8, Duration::ZERO) }
    }

    fn change_to(self, accounts: u32, took: Duration) -> Self {
        let accounts = accounts.clamp(Self::LEAST, Self::MOST);
        let other = if accounts == self.accounts { self.other } else { Some((self.accounts, took)) };
        Self { accounts, other }
    }

    /// The part of a slice's time that its accounts take, by comparison with a slice of another size.
    fn time_of_accounts(self, took: Duration) -> Option<Duration> {
        let (accounts, of_other) = self.other?;
        let (more, less) = if self.accounts > accounts { (took, of_other) } else { (of_other, took) };
        let of_difference = more.saturating_sub(less);
        Some((of_difference * self.accounts / self.accounts.abs_diff(accounts)).min(took))
    }
}

/// Sums of several slices, by asset.
#[derive(Debug, Default)]
struct Sums(BTreeMap<String, Sum>);

#[derive(Debug, Default)]
struct Sum {
    posted: i128,
    held: i128,
    accounts: u64,
}

impl Sums {
    fn add(&mut self, slice: Vec<wire::AssetSum>) -> Result<(), Status> {
        let nonsense = || Status::internal("a sum that is no number");
        for more in slice {
            let number = |text: &str| text.parse::<i128>().map_err(|_| nonsense());
            let (posted, held) = (number(&more.posted)?, number(&more.held)?);
            let sum = self.0.entry(more.asset).or_default();
            sum.posted = sum.posted.checked_add(posted).ok_or_else(nonsense)?;
            sum.held = sum.held.checked_add(held).ok_or_else(nonsense)?;
            sum.accounts += more.accounts;
        }
        Ok(())
    }

    fn into_wire(self) -> Vec<wire::AssetSum> {
        let wire = |(asset, Sum { posted, held, accounts })| wire::AssetSum {
            asset,
            posted: posted.to_string(),
            held: held.to_string(),
            accounts,
        };
        self.0.into_iter().map(wire).collect()
    }
}

async fn owned_turn(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(turns).acquire_owned().await.map_err(|_| Status::unavailable("the node is closing"))
}

fn selection(prefix: &str, slots: &[wire::SlotRange]) -> Result<Selection, Status> {
    let prefix = AccountPrefix::new(prefix).map_err(|reason| Status::invalid_argument(reason.to_string()))?;
    let slots = wire::convert::slots_from_wire(slots).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Selection { prefix, slots })
}

#[cfg(test)]
mod tests {
    use shard_database::{Database, server::ServerFacts};
    use telemetry::Tasks;
    use tonic::Code;

    use super::*;
    use crate::{
        clock::NodeClock,
        config::LaneConfig,
        gate::Gate,
        lane::Lane,
        role::NodeRole,
        store::{
            memory::{self, Memory},
            read::Readable,
        },
        tail::Tail,
    };

    /// The service of a node without a lane that runs, on a store in memory.
    fn service(gate: &Gate, database: &memory::Database) -> Service {
        let (config, role, tasks) = (LaneConfig::default(), NodeRole::active(), Tasks::new());
        let (clock, tail) = (Arc::new(NodeClock::new(Duration::from_secs(1))), Tail::new(config.tail_bounds()));
        let store = Arc::new(Memory::new(database.clone(), gate.clone()));
        let lane =
            Lane::new(gate.clone(), Arc::clone(&clock), store, tail.clone(), role.clone(), tasks.clone(), &config);
        let from = Readable::Memory(database.clone());
        Service::new(gate.clone(), role, clock, lane.unwrap().1, from, tail, tasks)
    }

    #[tokio::test(start_paused = true)]
    async fn no_slice_of_a_sum_begins_after_the_gate_has_closed() {
        let database = memory::Database::new();
        let gate = Gate::open_for_tests(database.state());
        let service = service(&gate, &database);
        let others = owned_turn(&service.sums).await.unwrap();
        let waiting = async {
            let all = Arc::new(selection("", &[]).unwrap());
            service.sums_at(&all, 0, Instant::now() + LONGEST_SUM).await.map(|_| ()).unwrap_err()
        };
        let closes = async {
            // The sum waits for its turn when the database is replaced by an empty one.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let facts = ServerFacts::for_tests(7, 1);
            gate.decide(&facts, &Database::Uninitialised, &[], &gate.acknowledged()).unwrap_err();
            drop(others);
        };
        let (refused, ()) = tokio::join!(waiting, closes);
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(refused.message().contains("never initialised as a shard"), "{refused:?}");
    }

    /// The accounts that are read within 27 s, and the size at the end. A slice takes `fixed` and `each` for each of its accounts.
    fn reaches(fixed: Duration, each: Duration) -> (u32, u32) {
        let (mut size, mut accounts, mut spent) = (SliceSize::FIRST, 0, Duration::ZERO);
        while spent < Duration::from_secs(27) {
            let took = fixed + each * size.accounts;
            spent += took.min(LONGEST_SLICE);
            if took > LONGEST_SLICE {
                size = size.after_timeout();
            } else {
                accounts += size.accounts;
                size = size.after(took);
            }
        }
        (accounts, size.accounts)
    }

    #[test]
    fn slices_grow_while_they_are_quick_and_shrink_when_their_accounts_take_long() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        assert_eq!(reaches(ms(10), us(1)).1, SliceSize::MOST);
        // 64 accounts take 0.64 s, 128 more than a second.
        assert!([64, 128].contains(&reaches(Duration::ZERO, ms(10)).1));
        assert_eq!(reaches(Duration::ZERO, ms(100)).1, SliceSize::LEAST, "no slice is smaller");
        let mut size = SliceSize::FIRST;
        for _ in 0..20 {
            size = size.after_timeout();
        }
        assert_eq!(size.accounts, SliceSize::LEAST);
    }

    #[test]
    fn slices_whose_time_does_not_depend_on_their_accounts_grow() {
        let (ms, us) = (Duration::from_millis, Duration::from_micros);
        for (fixed, each, least) in [(400, 20, 400_000), (1_100, 20, 200_000), (1_100, 100, 20_000)] {
            let (accounts, size) = reaches(ms(fixed), us(each));
            assert!(accounts > least, "{fixed} ms, {each} us: {accounts} accounts, {size} in the last slice");
        }
    }

    #[test]
    fn sums_of_slices_add_up_by_asset() {
        let of = |asset: &str, posted: i128, held: i128, accounts| wire::AssetSum {
            asset: asset.to_owned(),
            posted: posted.to_string(),
            held: held.to_string(),
            accounts,
        };
        let large = i128::from(i64::MAX);
        let mut sums = Sums::default();
        sums.add(vec![of("USD", large, 5, 2), of("EUR", -3, 0, 1)]).unwrap();
        sums.add(vec![of("USD", large, -1, 1)]).unwrap();
        assert_eq!(sums.into_wire(), [of("EUR", -3, 0, 1), of("USD", 2 * large, 4, 3)]);
        let mut full = Sums::default();
        full.add(vec![of("USD", i128::MAX, 0, 1)]).unwrap();
        assert!(full.add(vec![of("USD", 1, 0, 1)]).is_err());
    }
}

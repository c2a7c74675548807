//! Several clients send requests about a few accounts of two shards at the same time. A serial order must explain every answer, and what
//! reads show of each account (`model::linearizability`). A stored refusal must follow from that order. A request that is answered 409
//! `undetermined` has no effect.
//!
//! `HISTORIES` is the number of histories that are played. `SEED` repeats the choices of a run, and `ONLY` those of one history.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, future::try_join_all, stream};
use model::{
    Asset, Capture, Changes, Ledger, Metadata, Named, NewAccount, NewHold, Payment, Release, Request, Reversal,
    Status,
    linearizability::{
        Call, End, Verdict, check,
        ledger::{Books, Change, Decisions, Reads, Said, Shown},
        parts,
    },
};
use serde_json::Value;
use testkit::{
    client::Client,
    cluster::{Cluster, Placement},
    seed::{Random, Seed},
};

use super::wire::{HttpRequest, Spelling};

/// The number of histories, unless the environment sets another.
const HISTORIES: usize = 40;
const AT_ONCE: usize = 6;
const CLIENTS: usize = 4;
const REQUESTS_EACH: usize = 7;
/// The number of steps after which the search for an order ends. The history counts as undecided then.
const MOST_STATES: usize = 100_000;
/// The share of histories, in percent, that may stay undecided.
const MOST_UNDECIDED_PERCENT: usize = 5;
/// The time limit of one attempt.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);
/// The time within which a request must have a definite answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The letters of the accounts with their shards. The first account only pays in the funds, and the last one is closed.
const ACCOUNTS: [(char, &str); 5] = [('A', "s0"), ('B', "s0"), ('C', "s0"), ('D', "s1"), ('E', "s1")];

type LedgerCall = Call<Request, Said>;

/// The accounts and requests of a history.
struct Plan {
    shard_of: BTreeMap<String, String>,
    accounts: Vec<String>,
    set_up: Vec<Request>,
    /// The requests of each client.
    requests: Vec<Vec<Request>>,
}

/// Payments and holds to which later requests of a plan refer.
#[derive(Default)]
struct Referred {
    /// The payments with their debit and credit accounts.
    payments: Vec<Payment>,
    holds: Vec<NewHold>,
    all: Vec<Request>,
}

impl Plan {
    fn new(number: usize, placement: &Placement, random: &mut Random) -> anyhow::Result<Self> {
        let name = |(letter, shard): (char, &str)| placement.account_on(shard, &format!("c{number}-{letter}"), 0);
        let accounts: Vec<String> = ACCOUNTS.into_iter().map(name).collect::<anyhow::Result<_>>()?;
        let shards = ACCOUNTS.iter().map(|(_, shard)| (*shard).to_owned());
        let shard_of = accounts.iter().cloned().zip(shards).collect();
        let mut set_up: Vec<Request> = accounts.iter().enumerate().map(|(n, id)| opening(n, id, random)).collect();
        for account in &accounts[1..4] {
            let amount = minor(random, 12);
            set_up.push(Request::Pay { order: payment(&accounts[0], account, amount, random), dry_run: false });
        }
        let closed = Changes { status: Some(Status::Closed), ..Changes::default() };
        set_up.push(Request::ChangeAccount { account: accounts[4].clone(), changes: closed });
        let mut requests = vec![Vec::new(); CLIENTS];
        let mut referred = Referred::default();
        for _ in 0..REQUESTS_EACH {
            for of_client in &mut requests {
                of_client.push(referred.next(&accounts, random));
            }
        }
        Ok(Self { shard_of, accounts, set_up, requests })
    }
}

fn opening(n: usize, id: &str, random: &mut Random) -> Request {
    let max_balance = (n > 0 && random.percent(25)).then_some(1_500);
    let overdraft = if n == 0 { None } else { Some(0) };
    let (id, asset, metadata) = (id.to_owned(), Asset::USD, Metadata::new());
    Request::OpenAccount(NewAccount { id, asset, overdraft, max_balance, metadata })
}

/// Draws an amount of whole dollars in minor units. `most` is the largest number of dollars.
fn minor(random: &mut Random, most: usize) -> i64 {
    100 * i64::try_from(1 + random.below(most)).unwrap_or(1)
}

fn payment(debit: &str, credit: &str, amount: i64, random: &mut Random) -> Payment {
    let (id, debit, credit) = (random.uuid().to_string(), debit.to_owned(), credit.to_owned());
    Payment { id, debit, credit, amount, asset: Asset::USD, metadata: Metadata::new() }
}

fn named(id: &str, debit: &str) -> Named {
    Named { id: id.to_owned(), debit: Some(debit.to_owned()) }
}

impl Referred {
    fn next(&mut self, accounts: &[String], random: &mut Random) -> Request {
        let request = self.choose(accounts, random);
        match &request {
            Request::Pay { order, .. } => self.payments.push(order.clone()),
            Request::Hold { order, .. } => self.holds.push(order.clone()),
            _ => {}
        }
        self.all.push(request.clone());
        request
    }

    fn choose(&self, accounts: &[String], random: &mut Random) -> Request {
        let kind = random.below(100);
        match kind {
            0..10 => Request::ShowAccount(random.choose(&accounts[1..4]).clone()),
            10..25 if !self.holds.is_empty() => {
                let hold = random.choose(&self.holds);
                let hold = named(&hold.id, &hold.debit);
                if random.percent(25) {
                    return Request::Release(Release { hold });
                }
                let (id, amount) = (random.uuid().to_string(), Some(minor(random, 6)));
                Request::Capture(Capture { hold, id, amount, is_final: random.percent(50) })
            }
            25..45 if !self.payments.is_empty() => {
                let original = random.choose(&self.payments);
                let transfer = named(&original.id, &original.debit);
                // Most requests ask for the whole amount, so that they compete.
                let amount = if random.percent(75) { original.amount } else { minor(random, 4) };
                Request::Reverse(Reversal { transfer, id: random.uuid().to_string(), amount: Some(amount) })
            }
            45..50 if !self.payments.is_empty() => {
                let shown = random.choose(&self.payments);
                Request::ShowTransfer(named(&shown.id, &shown.debit))
            }
            50..54 if !self.holds.is_empty() => {
                let shown = random.choose(&self.holds);
                Request::ShowHold(named(&shown.id, &shown.debit))
            }
            54..60 if !self.all.is_empty() => random.choose(&self.all).clone(),
            _ => {
                let debit = random.choose(&accounts[1..4]).clone();
                let others: Vec<&String> = accounts[1..].iter().filter(|id| **id != debit).collect();
                let credit = *random.choose(&others);
                let Payment { id, debit, credit, amount, asset, metadata } =
                    payment(&debit, credit, minor(random, 9), random);
                if (60..70).contains(&kind) {
                    let order = NewHold { id, debit, credit, amount, asset, expires_in_s: None, metadata };
                    return Request::Hold { order, dry_run: false };
                }
                let order = Payment { id, debit, credit, amount, asset, metadata };
                Request::Pay { order, dry_run: false }
            }
        }
    }
}

/// A history as it was played.
struct Played {
    initial: Ledger,
    calls: Vec<LedgerCall>,
    /// The balances that reads showed of an account while transfers were under way, in minor units.
    reads: Vec<(String, Call<Change, i64>)>,
}

/// What the client learned from an answer.
enum Told {
    Said(Said),
    /// The request had no effect, or the answer tells nothing about its effect.
    Nothing,
}

struct Player<'c> {
    client: &'c Client,
    begun: Instant,
}

impl Player<'_> {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    async fn play(&self, plan: &Plan) -> anyhow::Result<Played> {
        let mut ledger = Ledger::new(plan.shard_of.clone());
        for request in &plan.set_up {
            let expected = ledger.apply(request);
            let expected = Said::of(expected.status, &expected.body);
            match self.ask(0, request).await? {
                Told::Said(said) => ensure!(said == expected, "{request:?} was answered {said:?}"),
                Told::Nothing => anyhow::bail!("{request:?} was not executed"),
            }
        }
        let mut played = Played { initial: ledger, calls: Vec::new(), reads: Vec::new() };
        let clients = plan.requests.iter().enumerate().map(async |(client, requests)| {
            let mut calls = Vec::new();
            for request in requests {
                let invoked = self.now();
                let end = match self.ask(client, request).await? {
                    Told::Said(answer) => End::Answered { returned: self.now(), answer },
                    Told::Nothing => End::Failed,
                };
                calls.push(Call { client, operation: request.clone(), invoked, end });
            }
            anyhow::Ok(calls)
        });
        for call in try_join_all(clients).await?.into_iter().flatten() {
            match &call.operation {
                Request::ShowAccount(account) => played.reads.push((account.clone(), read_of(&call)?)),
                _ => played.calls.push(call),
            }
        }
        // All transfers have ended. The final balances belong to the history.
        for account in &plan.accounts {
            let (invoked, operation) = (self.now(), Request::ShowAccount(account.clone()));
            let Told::Said(answer) = self.ask(CLIENTS, &operation).await? else {
                anyhow::bail!("the final read of {account} has no answer");
            };
            let end = End::Answered { returned: self.now(), answer };
            let call = Call { client: CLIENTS, operation, invoked, end };
            played.reads.push((account.clone(), read_of(&call)?));
            played.calls.push(call);
        }
        Ok(played)
    }

    /// Repeats a request until its answer is definite.
    async fn ask(&self, client: usize, request: &Request) -> anyhow::Result<Told> {
        let HttpRequest { method, path, body } = HttpRequest::of(request, Spelling::Full, Asset::USD);
        let asked = Instant::now();
        // Whether an earlier attempt may have had an effect or may still have one.
        let mut is_open = false;
        for attempt in 0.. {
            let router = (client + attempt) % self.client.routers();
            match self.client.call(router, method.clone(), &path, body.as_ref()).await {
                Err(lost) => is_open |= !lost.not_sent,
                Ok(answer) => match answer.status {
                    429 | 503 => {}
                    202 | 500.. => is_open = true,
                    _ if answer.code() == "undetermined" && !is_open => return Ok(Told::Nothing),
                    _ if answer.code() == "undetermined" => {}
                    status => {
                        let body = answer.json()?;
                        let is_told = binds(request, &body);
                        return Ok(if is_told { Told::Said(Said::of(status, &body)) } else { Told::Nothing });
                    }
                },
            }
            ensure!(asked.elapsed() < PATIENCE, "{request:?} has no definite answer after {PATIENCE:?}");
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::bail!("unreachable: the range of attempts has no end")
    }
}

/// Whether the answer binds later ones. A transfer between two shards is decided before its source knows. Until then, the source shows the
/// transfer as pending, and its hold unchanged.
fn binds(request: &Request, body: &Value) -> bool {
    match request {
        Request::ShowTransfer(_) => body["status"] != "pending",
        Request::ShowHold(_) => body["status"] != "held",
        _ => true,
    }
}

fn read_of(call: &LedgerCall) -> anyhow::Result<Call<Change, i64>> {
    let End::Answered { returned, answer } = &call.end else { anyhow::bail!("a read without an answer") };
    let posted = &answer.balances.as_ref().context("a read of an account without a balance")?.0;
    let answer = posted.replace('.', "").parse().with_context(|| posted.clone())?;
    let end = End::Answered { returned: *returned, answer };
    Ok(Call { client: call.client, operation: Change::Read, invoked: call.invoked, end })
}

/// The debit account, the credit account, the amount and the id of a transfer.
type Moved = (String, String, i64, String);

impl Played {
    /// The transfer that a request orders. Captures and reversals take it from the hold or payment that they name.
    fn moved(&self, request: &Request) -> Option<Moved> {
        match request {
            Request::Pay { order, .. } => {
                Some((order.debit.clone(), order.credit.clone(), order.amount, order.id.clone()))
            }
            Request::Capture(capture) => self.calls.iter().find_map(|call| match &call.operation {
                Request::Hold { order, .. } if order.id == capture.hold.id => {
                    Some((order.debit.clone(), order.credit.clone(), capture.amount?, capture.id.clone()))
                }
                _ => None,
            }),
            Request::Reverse(reversal) => self.calls.iter().find_map(|call| match &call.operation {
                Request::Pay { order, .. } if order.id == reversal.transfer.id => {
                    Some((order.credit.clone(), order.debit.clone(), reversal.amount?, reversal.id.clone()))
                }
                _ => None,
            }),
            _ => None,
        }
    }

    /// The requests that concern one account, for the rules of reads. A request that was sent several times has its effect before its first
    /// answer.
    fn changes_of(&self, account: &str) -> Vec<Call<Change, i64>> {
        let mut transfers: HashMap<(String, String), (Moved, u64, u64, bool)> = HashMap::new();
        for call in &self.calls {
            let Some(moved) = self.moved(&call.operation) else { continue };
            let End::Answered { returned, answer } = &call.end else { continue };
            let is_posted = answer.word == "posted";
            // Nothing was reserved, because the debit side refused the request, or there is no such hold or original.
            if !is_posted && (answer.side.as_deref() == Some("debit") || answer.status == 404) {
                continue;
            }
            let key = (moved.0.clone(), moved.3.clone());
            let (_, invoked, first, _) =
                transfers.entry(key).or_insert_with(|| (moved, call.invoked, *returned, is_posted));
            *invoked = (*invoked).min(call.invoked);
            *first = (*first).min(*returned);
        }
        let mut changes = Vec::new();
        for (saga, ((debit, credit, amount, _), invoked, returned, is_posted)) in transfers.into_values().enumerate()
        {
            let certain =
                |operation| Call { client: CLIENTS, operation, invoked, end: End::Answered { returned, answer: 0 } };
            if is_posted && debit == account {
                changes.push(certain(Change::Posts(-amount)));
            } else if is_posted && credit == account {
                changes.push(certain(Change::Posts(amount)));
            } else if !is_posted && debit == account {
                changes.push(Call { end: End::Unknown, ..certain(Change::Takes { saga, amount }) });
                changes.push(certain(Change::GivesBack { saga, amount }));
            }
        }
        changes
    }

    /// Looks for a serial order. The error lists the answers that no order explains. `None` means that the history is undecided.
    fn judge(&self) -> Option<Result<(), String>> {
        for part in parts(&self.calls, |request| self.accounts_of(request)) {
            match check(&Decisions, &Books::of(self.initial.clone()), &part, MOST_STATES) {
                Verdict::Order(_) => {}
                Verdict::Impossible { longest } => return Some(Err(transcript(&part, &longest))),
                Verdict::TooManyStates | Verdict::TooLong => return None,
            }
        }
        for account in self.initial.accounts() {
            let mut calls = self.changes_of(&account.id);
            calls.extend(self.reads.iter().filter(|(of, _)| *of == account.id).map(|(_, call)| call.clone()));
            let initial = Shown { posted: account.posted, ..Shown::default() };
            match check(&Reads, &initial, &calls, MOST_STATES) {
                Verdict::Order(_) => {}
                Verdict::Impossible { longest } => {
                    let reads = transcript(&calls, &longest);
                    let all = transcript(&self.calls, &[]);
                    return Some(Err(format!(
                        "reads of {}, with {}:\n{reads}all requests:\n{all}",
                        account.id, account.posted
                    )));
                }
                Verdict::TooManyStates | Verdict::TooLong => return None,
            }
        }
        Some(Ok(()))
    }

    fn accounts_of(&self, request: &Request) -> Vec<String> {
        match request {
            Request::Hold { order, .. } => vec![order.debit.clone(), order.credit.clone()],
            Request::Release(Release { hold }) | Request::ShowHold(hold) => hold.debit.clone().into_iter().collect(),
            Request::ShowTransfer(named) => named.debit.clone().into_iter().collect(),
            Request::ShowAccount(account) => vec![account.clone()],
            // A capture of a hold that was not ordered and a reversal of no payment name the account as well.
            Request::Capture(Capture { hold: named, .. }) | Request::Reverse(Reversal { transfer: named, .. }) => {
                let moved = self.moved(request).map(|(debit, credit, ..)| [debit, credit]);
                moved.into_iter().flatten().chain(named.debit.clone()).collect()
            }
            _ => self.moved(request).map(|(debit, credit, ..)| vec![debit, credit]).unwrap_or_default(),
        }
    }
}

/// The calls in the order in which they were sent, one on each line: client, microseconds, request, answer. `#` is the place of the call in
/// the longest order that was found.
fn transcript<O: std::fmt::Debug, A: std::fmt::Debug>(calls: &[Call<O, A>], order: &[usize]) -> String {
    let mut text = String::new();
    let mut sorted: Vec<usize> = (0..calls.len()).collect();
    sorted.sort_by_key(|call| calls[*call].invoked);
    for index in sorted {
        let Call { client, operation, invoked, end } = &calls[index];
        let place = order.iter().position(|call| *call == index).map_or("-".to_owned(), |place| format!("#{place}"));
        let (until, answer) = match end {
            End::Answered { returned, answer } => ((returned / 1000).to_string(), format!("{answer:?}")),
            End::Failed => ("-".to_owned(), "no effect".to_owned()),
            End::Unknown => ("-".to_owned(), "unknown".to_owned()),
        };
        // Writing to a string cannot fail.
        let _ =
            writeln!(text, "{place:>4} client {client} {}..{until} {operation:?}\n       {answer}", invoked / 1000);
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_have_a_serial_order() -> anyhow::Result<()> {
    let seed = Seed::announce("concurrent requests");
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<usize>().ok());
    let numbers = match number("ONLY") {
        Some(only) => only..only + 1,
        None => 0..number("HISTORIES").unwrap_or(HISTORIES),
    };
    let all = numbers.len();
    let cluster = Cluster::start(2, 2).await?;
    let placement = cluster.placement()?;
    let client = cluster.client().with_timeout(ATTEMPT);
    let begun = Instant::now();
    let player = Player { client: &client, begun };
    let mut histories = stream::iter(numbers)
        .map(async |number| {
            let random_of = u64::try_from(number).unwrap_or(0).wrapping_mul(0x9e37_79b9);
            let mut random = Seed::of(seed.value().wrapping_add(random_of)).random();
            let plan = Plan::new(number, &placement, &mut random)?;
            let played = player.play(&plan).await.with_context(|| format!("history {number}"))?;
            let calls = played.calls.clone();
            let verdict = tokio::task::spawn_blocking(move || played.judge()).await?;
            anyhow::Ok((number, calls, verdict))
        })
        .buffer_unordered(AT_ONCE);
    let (mut undecided, mut answers) = (0, BTreeMap::<String, usize>::new());
    while let Some(history) = histories.next().await {
        let (number, calls, verdict) = history?;
        for call in &calls {
            let word = match &call.end {
                End::Answered { answer, .. } => format!("{} {}", answer.status, answer.word),
                End::Failed | End::Unknown => "no effect".to_owned(),
            };
            *answers.entry(word).or_default() += 1;
        }
        match verdict {
            Some(Ok(())) => {}
            None => undecided += 1,
            Some(Err(calls)) => {
                anyhow::bail!("history {number} has no serial order, seed {}:\n{calls}", seed.value())
            }
        }
    }
    drop(histories);
    eprintln!("{all} histories in {:.1?}, {undecided} undecided\n{answers:#?}", begun.elapsed());
    ensure!(undecided * 100 <= all * MOST_UNDECIDED_PERCENT, "{undecided} of {all} histories are undecided");
    cluster.verify_and_finish().await
}

//! Plays one sequence to the model and to the routers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use model::{Answer, Asset, HoldState, Ledger, Named, Request};
use serde_json::Value;
use testkit::{
    client::{self, Client},
    cluster::Placement,
};

use super::{
    command::{Command, Opening, Sequence},
    compare,
    script::{SOON_S, Script},
    tally::{EXPIRED_IN_TIME, EXPIRED_LATE, EXPIRED_LATE_IN_A_RUSH, INCOMPLETE, Tally},
    wire::{HttpRequest, Spelling, Transcript},
};

/// How often a request that was not executed is sent again, and after what pause.
const RESENT: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// The contract promises that the amount of a hold is available again within this time after its expiry.
const EXPIRY_GRACE: Duration = Duration::from_secs(1);
/// A machine that is not busy reads a hold within this time.
const AT_LEISURE: Duration = Duration::from_millis(100);
/// A hold expires within this time even on a busy machine.
const EXPIRED_AT_LAST: Duration = Duration::from_secs(20);
/// The sequence pauses this long before a hold expires, because the order of its requests and the expiry would be unknown.
const EXPIRY_MARGIN: Duration = Duration::from_secs(2);

/// The client and the counters that all sequences of a run share.
pub struct SharedState {
    pub client: Client,
    pub placement: Placement,
    pub shards: usize,
    pub tally: Tally,
    pub played: AtomicUsize,
}

/// The outcome of a sequence.
#[derive(Debug)]
pub enum Outcome {
    Agreed,
    /// The machine was so slow that the model cannot tell the right answers.
    Undecided(String),
    Differs(String),
}

/// The reason why a sequence ended early.
pub enum Stop {
    Undecided(String),
    Differs(String),
    /// The cluster cannot be reached, or its answer cannot be read.
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Stop {
    fn from(error: anyhow::Error) -> Self {
        Self::Broken(error)
    }
}

/// A sequence being played.
pub struct Play<'a> {
    pub shared: &'a SharedState,
    pub ledger: Ledger,
    pub script: Script,
    pub transcript: Transcript,
    /// The beginning of the ids of the sequence's accounts. No other account begins with it.
    pub prefix: String,
    /// The answers to the first request for each transfer and hold.
    first_answers: HashMap<(Stored, String, String), Value>,
    expiring: Vec<Expiring>,
    /// Transfers whose first request was a batch over several shards. See [`compare::Exactness`].
    pub overlapping: HashSet<(String, String)>,
    router: usize,
}

/// A hold that expires while the sequence is played, unless it ends before.
struct Expiring {
    hold: Named,
    earliest: Instant,
    latest: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    Transfer,
    Hold,
}

pub async fn play(shared: &SharedState, sequence: &Sequence) -> anyhow::Result<Outcome> {
    let number = shared.played.fetch_add(1, Relaxed);
    let mut play = Play::new(shared, number, &sequence.accounts)?;
    match play.run(sequence).await {
        Ok(()) => Ok(Outcome::Agreed),
        Err(Stop::Undecided(why)) => Ok(Outcome::Undecided(why)),
        Err(Stop::Differs(how)) => Ok(Outcome::Differs(format!("{}{how}", play.transcript))),
        Err(Stop::Broken(error)) => Err(error.context(play.transcript.to_string())),
    }
}

impl<'a> Play<'a> {
    fn new(shared: &'a SharedState, number: usize, accounts: &[Opening]) -> anyhow::Result<Self> {
        let sequence = format!("m{number}-");
        let shards = accounts.iter().map(|opening| opening.shard);
        let (mut names, mut transcript) = (Vec::new(), Transcript::default());
        // There are two accounts more than in the sequence: one pays the first funds, and one is not opened.
        for (index, shard) in [0].into_iter().chain(shards).chain([0]).enumerate() {
            let letter = char::from(b'A' + u8::try_from(index).unwrap_or(25));
            let shard = format!("s{}", shard % shared.shards);
            let name = shared.placement.account_on(&shard, &format!("{sequence}{letter}"), 0)?;
            transcript.call(&name, &format!("{letter}@{shard}"));
            names.push((name, shard));
        }
        let ledger = Ledger::new(names.iter().cloned().collect::<BTreeMap<_, _>>());
        let names = names.into_iter().map(|(name, _)| name).collect();
        Ok(Self {
            shared,
            ledger,
            script: Script::new(names),
            transcript,
            prefix: format!("{{{sequence}"),
            first_answers: HashMap::new(),
            expiring: Vec::new(),
            overlapping: HashSet::new(),
            router: number,
        })
    }

    async fn run(&mut self, sequence: &Sequence) -> Result<(), Stop> {
        for request in self.script.set_up(sequence) {
            self.exchange(&request, Spelling::Full).await?;
        }
        for command in &sequence.commands {
            let soon = Instant::now() + EXPIRY_MARGIN;
            if matches!(command, Command::Wait) || self.expiring.iter().any(|hold| hold.earliest < soon) {
                self.wait_for_expiry().await?;
            }
            if let Some((request, spelling)) = self.script.request(command, &self.ledger) {
                self.exchange(&request, spelling).await?;
            }
        }
        self.wait_for_expiry().await?;
        self.final_state().await
    }

    /// Checks that a hold expires in time. No request asks for the expiry.
    async fn wait_for_expiry(&mut self) -> Result<(), Stop> {
        let Some(last) = self.expiring.iter().map(|hold| hold.latest).max() else { return Ok(()) };
        tokio::time::sleep_until((last + EXPIRY_GRACE).into()).await;
        for Expiring { hold, .. } in std::mem::take(&mut self.expiring) {
            let is_open = self.ledger.hold(&hold).is_some_and(|hold| hold.state == HoldState::Held);
            if is_open {
                self.see_expired(&hold).await?;
                self.ledger.expire(&hold);
                self.transcript.note(&format!("{} has expired", hold.id));
            }
        }
        Ok(())
    }

    /// A busy machine may be late. The tally counts how often.
    async fn see_expired(&mut self, hold: &Named) -> Result<(), Stop> {
        let call = HttpRequest::of(&Request::ShowHold(hold.clone()), Spelling::Full, Asset::USD);
        let asked = Instant::now();
        if self.send(&call).await?.body["status"] != "held" {
            self.shared.tally.note(EXPIRED_IN_TIME);
            return Ok(());
        }
        // A machine that is too busy to read is too busy to expire holds in time.
        self.shared.tally.note(if asked.elapsed() < AT_LEISURE { EXPIRED_LATE } else { EXPIRED_LATE_IN_A_RUSH });
        let begun = Instant::now();
        while begun.elapsed() < EXPIRED_AT_LAST {
            tokio::time::sleep(PAUSE).await;
            if self.send(&call).await?.body["status"] != "held" {
                return Ok(());
            }
        }
        Err(Stop::Differs(format!("  hold {} does not expire\n", hold.id)))
    }

    /// Sends a request to the model and to the routers. The answers must be the same. Returns the routers' answer.
    pub async fn exchange(&mut self, request: &Request, spelling: Spelling) -> Result<Answer, Stop> {
        let call = HttpRequest::of(request, spelling, self.asset(request));
        // The script remembers the request before it is applied, because everything to which the request refers exists already.
        self.script.remember(request, &self.ledger);
        self.note_overlaps(request);
        let expected = self.ledger.apply(request);
        let sent = Instant::now();
        let mut found = self.send(&call).await?;
        for _ in 0..RESENT {
            if !compare::is_incomplete(&expected, &found) {
                break;
            }
            self.shared.tally.note(INCOMPLETE);
            tokio::time::sleep(PAUSE).await;
            found = self.send(&call).await?;
        }
        self.transcript.exchange(call.clone(), &expected, &found);
        self.shared.tally.count(&call, &expected);
        self.shared.tally.count_openings(request, &self.ledger);

        let answered = Instant::now();
        if self.expiring.iter().any(|hold| hold.earliest <= answered) {
            return Err(Stop::Undecided("a hold expired while something else was on its way".to_owned()));
        }
        if let Request::Hold { order, dry_run: false } = request
            && order.expires_in_s == Some(SOON_S)
            && expected.status == 201
        {
            let hold = Named { id: order.id.clone(), debit: Some(order.debit.clone()) };
            let life = Duration::from_secs(u64::from(SOON_S));
            // The shard read its clock between these two moments.
            self.expiring.push(Expiring { hold, earliest: sent + life, latest: answered + life });
        }
        let exact = self.exactness(&expected);
        let differences = compare::answers(&expected, &found, exact);
        if !differences.is_empty() {
            return Err(Stop::Differs(differences));
        }
        self.check_first_answer(request, &found, expected.replayed)?;
        Ok(found)
    }

    pub async fn send(&mut self, call: &HttpRequest) -> Result<Answer, Stop> {
        for _ in 0..RESENT {
            self.router += 1;
            let router = self.router % self.shared.client.routers();
            let answer = self.shared.client.call(router, call.method.clone(), &call.path, call.body.as_ref()).await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(lost) if lost.not_sent => {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                // The request may have been executed. If it were sent again, it might be a replay of itself.
                Err(lost) => return Err(Stop::Undecided(format!("{} {}: {lost}", call.method, call.path))),
            };
            match answer.status {
                // The request was not executed and may be sent again.
                503 => tokio::time::sleep(PAUSE).await,
                202 | 504 => return Err(Stop::Undecided(format!("answered {}: {}", answer.status, answer.text()))),
                status => return Ok(Answer { status, replayed: answer.is_replay(), body: answer.json()? }),
            }
        }
        Err(Stop::Undecided(format!("{} {} was never executed", call.method, call.path)))
    }

    /// Checks that a replay has the first answer, word for word.
    fn check_first_answer(&mut self, request: &Request, found: &Answer, replayed: bool) -> Result<(), Stop> {
        let Some(key) = self.stored_by(request, found) else { return Ok(()) };
        let body = compare::without_request(&found.body);
        match self.first_answers.get(&key) {
            Some(first) if replayed && *first != body => {
                Err(Stop::Differs(format!("  the first answer was {first}\n  and now it is     {body}\n")))
            }
            Some(_) => Ok(()),
            None if replayed => Ok(()),
            None => {
                self.first_answers.insert(key, body);
                Ok(())
            }
        }
    }

    /// The first answer about a transfer or hold, if it was requested alone.
    pub fn first_answer(&self, kind: Stored, named: &Named) -> Option<&Value> {
        self.first_answers.get(&(kind, named.debit.clone()?, named.id.clone()))
    }

    /// The transfer or hold that was stored, if the answer is about a stored one.
    fn stored_by(&self, request: &Request, found: &Answer) -> Option<(Stored, String, String)> {
        let (debit, id) = match request {
            Request::Pay { order, dry_run: false } => (order.debit.clone(), &order.id),
            Request::Hold { order, dry_run: false } => {
                let named = Named { id: order.id.clone(), debit: Some(order.debit.clone()) };
                let is_about = found.body["code"] != "idempotency_mismatch" && self.ledger.hold(&named).is_some();
                return is_about.then(|| (Stored::Hold, order.debit.clone(), order.id.clone()));
            }
            Request::Capture(capture) => (self.ledger.hold(&capture.hold)?.order.debit.clone(), &capture.id),
            Request::Reverse(reversal) => {
                (self.ledger.transfer(&reversal.transfer)?.order.credit.clone(), &reversal.id)
            }
            _ => return None,
        };
        let named = Named { id: id.clone(), debit: Some(debit.clone()) };
        let is_about = found.body["code"] != "idempotency_mismatch" && self.ledger.transfer(&named).is_some();
        is_about.then(|| (Stored::Transfer, debit, id.clone()))
    }

    fn note_overlaps(&mut self, request: &Request) {
        if let Request::PayBatch { items, atomic: false } = request
            && self.shared.shards > 1
        {
            let known = |key: &(String, String)| self.ledger.transfers().any(|transfer| transfer.order.key() == *key);
            let keys = items.iter().map(|item| (item.debit.clone(), item.id.clone())).filter(|key| !known(key));
            self.overlapping.extend(keys.collect::<Vec<_>>());
        }
    }

    fn exactness(&self, expected: &Answer) -> compare::Exactness {
        let text = |member: &str| expected.body[member].as_str().unwrap_or_default().to_owned();
        if self.overlapping.contains(&(text("debit"), text("id"))) {
            compare::Exactness::WithoutBalances
        } else {
            compare::Exactness::Whole
        }
    }

    /// The asset of the account or hold in the URL.
    fn asset(&self, request: &Request) -> Asset {
        let asset = match request {
            Request::ChangeAccount { account, .. } => self.ledger.account(account).map(|account| account.asset),
            Request::Capture(capture) => self.ledger.hold(&capture.hold).map(|hold| hold.order.asset),
            Request::Reverse(reversal) => {
                self.ledger.transfer(&reversal.transfer).map(|transfer| transfer.order.asset)
            }
            _ => None,
        };
        asset.unwrap_or(Asset::USD)
    }

    pub async fn get(&mut self, path: String) -> Result<Value, Stop> {
        let call = HttpRequest { method: http::Method::GET, path, body: None };
        let found = self.send(&call).await?;
        self.transcript.read(call.clone());
        match found.status {
            200 => Ok(found.body),
            _ => Err(Stop::Differs(format!("{} was answered {}: {}\n", call.path, found.status, found.body))),
        }
    }

    pub fn statement_path(account: &str) -> String {
        format!("{}/entries?order=asc&limit=500", client::account_path(account))
    }
}

//! Two sets of rules for histories of a ledger.
//!
//! [`Decisions`] judges what the ledger posted, held and refused. The money of a transfer between two shards leaves one account before it
//! comes to the other, so reads of several accounts need not show one moment. While a transfer is under way, [`Decisions`] therefore leaves
//! reads of accounts to [`Reads`], which judges one account at a time.

use std::hash::{Hash, Hasher};

use super::Rules;
use crate::{Answer, Fate, HoldState, Ledger, Named, Request, Status};

/// The rules of [`Ledger`] for the status or code of each answer, and for what reads of accounts show.
pub struct Decisions;

/// The rules of [`Decisions`], with holds that may expire.
pub struct DecisionsAndExpiries;

/// A request to a ledger, or the expiry of a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Asked(Request),
    /// The time of a hold is over. Give the call [`super::End::Unknown`], because the expiry need not come before a later request.
    Expired(Named),
}

/// A ledger that is compared by the parts on which later answers depend. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Books(Ledger);

/// The content of an answer, without versions and times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    /// The status of the object in the answer, or the code of the refusal.
    pub word: String,
    pub side: Option<String>,
    /// The posted and held amounts, if the answer shows an account.
    pub balances: Option<(String, String)>,
    /// The result of each item, if the answer is that of a batch.
    pub items: Vec<SaidOfItem>,
}

/// The result of one item of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaidOfItem {
    pub status: String,
    pub code: Option<String>,
    pub side: Option<String>,
}

impl Said {
    /// Reads an answer of the model or of a server. A replay has the same content as the first answer.
    pub fn of(status: u16, body: &serde_json::Value) -> Self {
        let text = |member: &str| body[member].as_str().map(str::to_owned);
        let word = text("code").or_else(|| text("status")).unwrap_or_default();
        let balances = text("posted").zip(text("held"));
        let of_item = |item: &serde_json::Value| {
            let text = |member: &str| item[member].as_str().map(str::to_owned);
            SaidOfItem { status: text("status").unwrap_or_default(), code: text("code"), side: text("side") }
        };
        let items = body["results"].as_array().into_iter().flatten().map(of_item).collect();
        Self { status: if status == 201 { 200 } else { status }, word, side: text("side"), balances, items }
    }
}

impl Books {
    pub fn of(ledger: Ledger) -> Self {
        Self(ledger)
    }

    fn accounts(&self) -> impl Iterator<Item = (&str, Status, i64, i64)> {
        self.0.accounts().map(|account| (account.id.as_str(), account.status, account.posted, account.held))
    }

    fn transfers(&self) -> impl Iterator<Item = (&str, &str, &str, i64)> {
        self.0.transfers().map(|transfer| {
            let fate = match &transfer.fate {
                Fate::Posted(_) => "posted",
                Fate::Refused(refusal) => refusal.code,
            };
            (transfer.order.id.as_str(), transfer.order.debit.as_str(), fate, transfer.reversed)
        })
    }

    fn holds(&self) -> impl Iterator<Item = (&str, &str, &str, i64)> {
        self.0.holds().map(|hold| {
            let state = match &hold.state {
                HoldState::Refused(refusal) => refusal.code,
                HoldState::Held => "held",
                HoldState::Captured => "captured",
                HoldState::Released => "released",
                HoldState::Expired => "expired",
            };
            (hold.order.id.as_str(), hold.order.debit.as_str(), state, hold.captured)
        })
    }
}

impl PartialEq for Books {
    fn eq(&self, other: &Self) -> bool {
        self.accounts().eq(other.accounts())
            && self.transfers().eq(other.transfers())
            && self.holds().eq(other.holds())
    }
}

impl Eq for Books {}

impl Hash for Books {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.accounts().for_each(|account| account.hash(state));
        self.transfers().for_each(|transfer| transfer.hash(state));
        self.holds().for_each(|hold| hold.hash(state));
    }
}

impl Rules for Decisions {
    type State = Books;
    type Operation = Request;
    type Answer = Said;

    fn apply(&self, books: &Books, request: &Request, said: Option<&Said>) -> Option<Books> {
        let fits = |Answer { status, body, .. }: &Answer| said.is_none_or(|said| *said == Said::of(*status, body));
        // A read changes nothing.
        if let Some(answer) = books.0.read(request) {
            return fits(&answer).then(|| books.clone());
        }
        let mut ledger = books.0.clone();
        fits(&ledger.apply(request)).then(|| Books::of(ledger))
    }
}

impl Rules for DecisionsAndExpiries {
    type State = Books;
    type Operation = Event;
    type Answer = Said;

    fn apply(&self, books: &Books, event: &Event, said: Option<&Said>) -> Option<Books> {
        match event {
            Event::Asked(request) => Decisions.apply(books, request, said),
            Event::Expired(named) => {
                books.0.hold(named).filter(|hold| hold.state == HoldState::Held)?;
                let mut ledger = books.0.clone();
                ledger.expire(named);
                Some(Books::of(ledger))
            }
        }
    }
}

/// The rules for what reads show of one account, in minor units. They leave out funds and limits.
pub struct Reads;

/// The posted balance of the account, and the sagas that have taken money from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Shown {
    pub posted: i64,
    pub taken: Vec<usize>,
    pub ended: Vec<usize>,
}

/// A change or a read of the account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A posted transfer changes the balance by this amount.
    Posts(i64),
    /// A transfer to another shard takes this amount and is refused in the end. Give the call [`super::End::Unknown`], because the transfer
    /// need not take the amount.
    Takes {
        saga: usize,
        amount: i64,
    },
    /// The refused transfer has given back what it took, if it took anything.
    GivesBack {
        saga: usize,
        amount: i64,
    },
    Read,
}

impl Rules for Reads {
    type State = Shown;
    type Operation = Change;
    /// The balance that a read shows.
    type Answer = i64;

    fn apply(&self, shown: &Shown, change: &Change, answer: Option<&i64>) -> Option<Shown> {
        let mut next = shown.clone();
        match change {
            Change::Read => return (answer.is_none_or(|posted| *posted == shown.posted)).then_some(next),
            Change::Posts(amount) => next.posted += amount,
            Change::Takes { saga, amount } => {
                if next.ended.contains(saga) || next.taken.contains(saga) {
                    return None;
                }
                next.posted -= amount;
                next.taken.push(*saga);
                next.taken.sort_unstable();
            }
            Change::GivesBack { saga, amount } => {
                if let Some(place) = next.taken.iter().position(|taken| taken == saga) {
                    next.taken.remove(place);
                    next.posted += amount;
                }
                next.ended.push(*saga);
                next.ended.sort_unstable();
            }
        }
        Some(next)
    }
}

//! The meaning of the numbers in commands while a sequence is played: its accounts, and the requests so far.

use model::{
    Account, Asset, Capture, Changes, Fate, Hold, HoldState, Id, Ledger, Metadata, Named, NewAccount, NewHold,
    Payment, Release, Request, Reversal, Status, Transfer,
};
use uuid::Uuid;

use super::{
    command::{
        Alteration, Among, Back, Change, Command, Content, Expiry, HUGE, IdChoice, Item, Nth, Reference, Sequence,
        ShownResource, Terms, UNOPENED,
    },
    wire::Spelling,
};

/// An expiry that is later than the end of any test.
const FAR_S: u32 = 86_400;
/// An expiry that comes while the test waits. A busy machine can still execute requests before it.
pub const SOON_S: u32 = 3;
/// The amount that is ordered instead of [`HUGE`] between two shards, because [`HUGE`] would fill the in-transit account of all sequences.
const NOT_HUGE: i64 = 300;

/// The meaning of the numbers in commands.
#[derive(Debug)]
pub struct Script {
    /// The first account pays in the first funds. Only a command opens the last one.
    accounts: Vec<String>,
    /// The requests that can be sent again.
    requests: Vec<Request>,
    /// The transfers that may be stored, with their debit accounts.
    transfers: Vec<Named>,
    holds: Vec<Named>,
}

impl Script {
    pub fn new(accounts: Vec<String>) -> Self {
        Self { accounts, requests: Vec::new(), transfers: Vec::new(), holds: Vec::new() }
    }

    pub fn transfers(&self) -> &[Named] {
        &self.transfers
    }

    pub fn holds(&self) -> &[Named] {
        &self.holds
    }

    /// The requests that open the accounts and pay in their funds from an account without limit.
    pub fn set_up(&self, sequence: &Sequence) -> Vec<Request> {
        let [bank, accounts @ ..] = &self.accounts[..] else { return Vec::new() };
        let openings = sequence.accounts.iter().zip(accounts);
        let mut opened: Vec<NewAccount> =
            openings.clone().map(|(opening, id)| new_account(id, &opening.terms)).collect();
        opened
            .push(new_account(bank, &Terms { asset: Asset::USD, overdraft: None, max_balance: None, tagged: false }));
        let funds: Vec<Payment> = openings
            .filter(|(opening, _)| opening.funds > 0 && opening.terms.asset == Asset::USD)
            .map(|(opening, id)| Payment {
                id: new_id(),
                debit: bank.clone(),
                credit: id.clone(),
                amount: opening.funds,
                asset: Asset::USD,
                metadata: Metadata::new(),
            })
            .collect();
        let mut requests = vec![Request::OpenAccounts(opened)];
        if !funds.is_empty() {
            requests.push(Request::PayBatch { items: funds, atomic: false });
        }
        requests
    }

    /// The request of a command. `None` if the thing to which the command refers does not exist.
    pub fn request(&self, command: &Command, ledger: &Ledger) -> Option<(Request, Spelling)> {
        let request = match command {
            Command::Wait => return None,
            Command::Again { request, alteration, spelt_shorter } => {
                let earlier = back(&self.requests, *request)?;
                let request = match alteration {
                    Some(alteration) => self.altered(earlier, *alteration),
                    None => earlier.clone(),
                };
                let spelling = if *spelt_shorter { Spelling::Shortest } else { Spelling::Full };
                return Some((tamed(request, ledger), spelling));
            }
            Command::Open { account, terms } => Request::OpenAccount(new_account(self.account(*account), terms)),
            Command::OpenAgain { account, contents } => {
                let there = ledger.account(self.account(*account))?;
                let mut again: Vec<NewAccount> =
                    contents.iter().map(|content| opened_again(there, *content)).collect();
                if again.len() == 1 { Request::OpenAccount(again.pop()?) } else { Request::OpenAccounts(again) }
            }
            Command::Change { account, change } => {
                Request::ChangeAccount { account: self.account(*account).to_owned(), changes: changes(change) }
            }
            Command::Pay { item, dry_run } => {
                Request::Pay { order: self.payment(item, None, ledger), dry_run: *dry_run }
            }
            Command::PayBatch { items, atomic, together } => {
                let first = self.account(items.first()?.debit);
                let near: Vec<String> = self
                    .accounts
                    .iter()
                    .filter(|id| ledger.shard_of(id) == ledger.shard_of(first))
                    .cloned()
                    .collect();
                let among = (*together && near.len() > 1).then_some(&near[..]);
                let items = items.iter().map(|item| self.payment(item, among, ledger)).collect();
                Request::PayBatch { items, atomic: *atomic }
            }
            Command::Hold { item, expiry, dry_run } => {
                let Payment { id, debit, credit, amount, asset, metadata } = self.payment(item, None, ledger);
                let expires_in_s = match expiry {
                    Expiry::Never => None,
                    Expiry::Far => Some(FAR_S),
                    Expiry::Soon => Some(SOON_S),
                };
                let order = NewHold { id, debit, credit, amount, asset, expires_in_s, metadata };
                Request::Hold { order, dry_run: *dry_run }
            }
            Command::Capture { hold, id, amount, is_final } => Request::Capture(Capture {
                hold: self.hold(*hold, ledger)?,
                id: self.id(*id),
                amount: *amount,
                is_final: *is_final,
            }),
            Command::Release { hold } => Request::Release(Release { hold: self.hold(*hold, ledger)? }),
            Command::Reverse { transfer, id, amount } => Request::Reverse(Reversal {
                transfer: self.transfer(*transfer, ledger)?,
                id: self.id(*id),
                amount: *amount,
            }),
            Command::Show { what: ShownResource::Account, of } => {
                Request::ShowAccount(self.account(of.back).to_owned())
            }
            Command::Show { what: ShownResource::Transfer, of } => Request::ShowTransfer(self.transfer(*of, ledger)?),
            Command::Show { what: ShownResource::Hold, of } => Request::ShowHold(self.hold(*of, ledger)?),
        };
        Some((tamed(request, ledger), Spelling::Full))
    }

    /// Keeps everything to which later commands may refer.
    pub fn remember(&mut self, request: &Request, ledger: &Ledger) {
        let transfer = |id: &Id, debit: &str| Named { id: id.clone(), debit: Some(debit.to_owned()) };
        match request {
            Request::Pay { order, dry_run: false } => self.transfers.push(transfer(&order.id, &order.debit)),
            Request::PayBatch { items, .. } => {
                self.transfers.extend(items.iter().map(|item| transfer(&item.id, &item.debit)));
            }
            Request::Capture(capture) => {
                let hold = ledger.hold(&capture.hold);
                self.transfers.extend(hold.map(|hold| transfer(&capture.id, &hold.order.debit)));
            }
            Request::Reverse(reversal) => {
                let original = ledger.transfer(&reversal.transfer);
                self.transfers.extend(original.map(|original| transfer(&reversal.id, &original.order.credit)));
            }
            Request::Hold { order, dry_run: false } => self.holds.push(transfer(&order.id, &order.debit)),
            _ => {}
        }
        if matches!(
            request,
            Request::OpenAccount(_)
                | Request::OpenAccounts(_)
                | Request::Pay { .. }
                | Request::PayBatch { .. }
                | Request::Hold { .. }
                | Request::Capture(_)
                | Request::Release(_)
                | Request::Reverse(_)
        ) {
            self.requests.push(request.clone());
        }
        self.transfers.sort_unstable();
        self.transfers.dedup();
        self.holds.sort_unstable();
        self.holds.dedup();
    }

    fn account(&self, nth: Nth) -> &str {
        let last = self.accounts.len() - 1;
        if nth == UNOPENED { &self.accounts[last] } else { &self.accounts[nth % last] }
    }

    fn payment(&self, item: &Item, among: Option<&[String]>, ledger: &Ledger) -> Payment {
        let [debit, credit] = match among {
            Some(among) => [item.debit, item.credit].map(|nth| among[nth % among.len()].as_str()),
            None => [item.debit, item.credit].map(|nth| self.account(nth)),
        };
        // Some payments are from an account to itself, but fewer than the equal numbers would give.
        let credit = if credit == debit && item.amount % 7 != 0 { self.other(debit) } else { credit };
        let asset = item.asset.or(ledger.account(debit).map(|account| account.asset)).unwrap_or(Asset::USD);
        Payment {
            id: self.id(item.id),
            debit: debit.to_owned(),
            credit: credit.to_owned(),
            amount: item.amount,
            asset,
            metadata: metadata(item.tagged),
        }
    }

    fn id(&self, choice: IdChoice) -> Id {
        let used = match choice {
            IdChoice::New => None,
            IdChoice::Used(steps) => {
                let used: Vec<&Named> = self.transfers.iter().chain(&self.holds).collect();
                back(&used, steps).map(|named| named.id.clone())
            }
        };
        used.unwrap_or_else(new_id)
    }

    fn altered(&self, request: &Request, alteration: Alteration) -> Request {
        let mut request = request.clone();
        match (&mut request, alteration) {
            (Request::Pay { order, .. }, alteration) => self.alter(order, alteration),
            (Request::PayBatch { items, .. }, alteration) => self.alter(&mut items[0], alteration),
            (Request::Hold { order, .. }, Alteration::Expiry) => {
                order.expires_in_s = if order.expires_in_s.is_none() { Some(FAR_S) } else { None };
            }
            (Request::Hold { order, .. }, Alteration::Credit) => {
                order.credit = self.third(&order.debit, &order.credit);
            }
            (Request::Hold { order, .. }, Alteration::Asset) => order.asset = other_asset(order.asset),
            (Request::Hold { order, .. }, Alteration::Tag) => order.metadata = toggled(&order.metadata),
            (Request::Hold { order, .. }, _) => order.amount = other_amount(order.amount),
            (Request::Capture(capture), Alteration::Final) => capture.is_final = !capture.is_final,
            (Request::Capture(Capture { amount, .. }) | Request::Reverse(Reversal { amount, .. }), alteration) => {
                *amount = match (*amount, alteration) {
                    (Some(_), Alteration::NoAmount) => None,
                    (Some(amount), _) => Some(other_amount(amount)),
                    (None, _) => Some(100),
                };
            }
            (Request::OpenAccount(account), alteration) => alter_account(account, alteration),
            _ => {}
        }
        request
    }

    fn alter(&self, order: &mut Payment, alteration: Alteration) {
        match alteration {
            Alteration::Credit => order.credit = self.third(&order.debit, &order.credit),
            Alteration::Asset => order.asset = other_asset(order.asset),
            Alteration::Tag => order.metadata = toggled(&order.metadata),
            Alteration::Amount | Alteration::NoAmount | Alteration::Expiry | Alteration::Final => {
                order.amount = other_amount(order.amount);
            }
        }
    }

    /// Another account.
    fn other<'a>(&'a self, than: &'a str) -> &'a str {
        self.accounts.iter().find(|account| *account != than).map_or(than, String::as_str)
    }

    /// An account that is neither of the two.
    fn third(&self, debit: &str, credit: &str) -> String {
        let third = self.accounts.iter().find(|account| *account != debit && *account != credit);
        third.map_or_else(|| credit.to_owned(), Clone::clone)
    }

    fn transfer(&self, reference: Reference, ledger: &Ledger) -> Option<Named> {
        refer(&self.transfers, reference, |named| {
            let is_posted = |transfer: &Transfer| matches!(transfer.fate, Fate::Posted(_));
            ledger.transfer(named).is_some_and(is_posted)
        })
    }

    fn hold(&self, reference: Reference, ledger: &Ledger) -> Option<Named> {
        refer(&self.holds, reference, |named| {
            let is_accepted = |hold: &Hold| !matches!(hold.state, HoldState::Refused(_));
            ledger.hold(named).is_some_and(is_accepted)
        })
    }
}

fn new_id() -> Id {
    Uuid::now_v7().to_string()
}

fn refer(known: &[Named], reference: Reference, is_accepted: impl Fn(&Named) -> bool) -> Option<Named> {
    let Reference { back: steps, among, tells_debit } = reference;
    let candidates: Vec<&Named> = match among {
        Among::Accepted => known.iter().filter(|named| is_accepted(named)).collect(),
        Among::All => known.iter().collect(),
        Among::None => return Some(Named { id: new_id(), debit: None }),
    };
    let named = *back(&candidates, steps)?;
    Some(Named { id: named.id.clone(), debit: named.debit.clone().filter(|_| tells_debit) })
}

/// The item that is this many before the last one.
fn back<T>(items: &[T], steps: Back) -> Option<&T> {
    items.iter().rev().nth(steps % items.len().max(1))
}

fn new_account(id: &str, terms: &Terms) -> NewAccount {
    NewAccount {
        id: id.to_owned(),
        asset: terms.asset,
        overdraft: terms.overdraft,
        max_balance: terms.max_balance,
        metadata: metadata(terms.tagged),
    }
}

fn opened_again(there: &Account, content: Content) -> NewAccount {
    let mut again = there.opening.clone();
    match content {
        Content::AsOpened => {}
        Content::AsItIs => {
            again.overdraft = there.overdraft;
            again.max_balance = there.max_balance;
            again.metadata = there.metadata.clone();
        }
        Content::Altered(alteration) => alter_account(&mut again, alteration),
    }
    again
}

fn alter_account(account: &mut NewAccount, alteration: Alteration) {
    match alteration {
        Alteration::Asset => account.asset = other_asset(account.asset),
        Alteration::Tag => account.metadata = toggled(&account.metadata),
        Alteration::Amount => account.overdraft = Some(700),
        _ => account.max_balance = Some(7_700),
    }
}

fn changes(change: &Change) -> Changes {
    let nothing = Changes::default();
    match change {
        Change::Status(status) => Changes { status: Some(*status), ..nothing },
        Change::Overdraft(limit) => Changes { overdraft: Some(*limit), ..nothing },
        Change::MaxBalance(limit) => Changes { max_balance: Some(*limit), ..nothing },
        Change::Tag(tagged) => Changes { metadata: Some(metadata(*tagged)), ..nothing },
        Change::Close { overdraft } => {
            Changes { status: Some(Status::Closed), overdraft: Some(Some(*overdraft)), ..nothing }
        }
    }
}

fn metadata(tagged: bool) -> Metadata {
    if tagged { Metadata::from([("tag".to_owned(), "ä\"1\"".to_owned())]) } else { Metadata::new() }
}

fn toggled(there: &Metadata) -> Metadata {
    metadata(there.is_empty())
}

fn other_asset(asset: Asset) -> Asset {
    if asset == Asset::USD { Asset::EUR } else { Asset::USD }
}

fn other_amount(amount: i64) -> i64 {
    if amount > 100 { amount - 100 } else { amount + 100 }
}

/// Changes a request so that it has one right answer and concerns no accounts of other sequences.
fn tamed(mut request: Request, ledger: &Ledger) -> Request {
    let tame = |debit: &str, credit: &str, amount: &mut i64| {
        if *amount > HUGE / 2 && ledger.shard_of(debit) != ledger.shard_of(credit) {
            *amount = NOT_HUGE;
        }
    };
    match &mut request {
        Request::Pay { order, .. } => tame(&order.debit, &order.credit, &mut order.amount),
        Request::Hold { order, .. } => tame(&order.debit, &order.credit, &mut order.amount),
        _ => {}
    }
    request
}

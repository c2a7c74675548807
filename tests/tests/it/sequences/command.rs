//! The parts of a sequence before it is played. It names accounts and earlier requests by numbers, so that a sequence is still valid after
//! parts of it are removed.

use model::{Asset, Status};
use proptest::{collection::vec, option, prelude::*};

/// The accounts of a sequence, and the commands.
#[derive(Debug, Clone)]
pub struct Sequence {
    pub accounts: Vec<Opening>,
    pub commands: Vec<Command>,
}

/// An account of the sequence.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The number of the shard, modulo the number of shards.
    pub shard: usize,
    pub terms: Terms,
    /// The money that is paid in before the commands begin.
    pub funds: i64,
}

/// The terms of a new account. A limit of `None` means that there is no limit.
#[derive(Debug, Clone)]
pub struct Terms {
    pub asset: Asset,
    pub overdraft: Option<i64>,
    pub max_balance: Option<i64>,
    pub tagged: bool,
}

/// The number of an account of the sequence, modulo the number of accounts. Account 0 pays in the first funds.
pub type Nth = usize;

/// The account that only a command opens.
pub const UNOPENED: Nth = usize::MAX;

/// How far back something earlier is, counted from now, modulo the number of all such things. The number keeps its meaning if earlier parts
/// of the sequence are removed.
pub type Back = usize;

#[derive(Debug, Clone)]
pub enum Command {
    Open {
        account: Nth,
        terms: Terms,
    },
    /// Opens an existing account again. Several contents go into one batch.
    OpenAgain {
        account: Nth,
        contents: Vec<Content>,
    },
    Change {
        account: Nth,
        change: Change,
    },
    Pay {
        item: Item,
        dry_run: bool,
    },
    /// With `together`, the payments are between accounts of one shard, if it has two.
    PayBatch {
        items: Vec<Item>,
        atomic: bool,
        together: bool,
    },
    Hold {
        item: Item,
        expiry: Expiry,
        dry_run: bool,
    },
    Capture {
        hold: Reference,
        id: IdChoice,
        amount: Option<i64>,
        is_final: bool,
    },
    Release {
        hold: Reference,
    },
    Reverse {
        transfer: Reference,
        id: IdChoice,
        amount: Option<i64>,
    },
    /// Sends an earlier request once more, unchanged or with one field changed.
    Again {
        request: Nth,
        alteration: Option<Alteration>,
        spelt_shorter: bool,
    },
    Show {
        what: ShownResource,
        of: Reference,
    },
    /// Waits until every hold that expires soon has expired.
    Wait,
}

/// The content with which an account is opened again.
#[derive(Debug, Clone, Copy)]
pub enum Content {
    AsOpened,
    AsItIs,
    /// The content of the first opening with this alteration.
    Altered(Alteration),
}

#[derive(Debug, Clone)]
pub enum Change {
    Status(Status),
    Overdraft(Option<i64>),
    MaxBalance(Option<i64>),
    Tag(bool),
    /// Closes the account and changes its overdraft in one request.
    Close {
        overdraft: i64,
    },
}

/// A payment or a hold.
#[derive(Debug, Clone)]
pub struct Item {
    pub id: IdChoice,
    pub debit: Nth,
    pub credit: Nth,
    pub amount: i64,
    pub asset: Option<Asset>,
    pub tagged: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum IdChoice {
    New,
    /// The id of an earlier transfer or hold.
    Used(Back),
}

/// An earlier transfer or hold.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    pub back: Back,
    pub among: Among,
    /// Whether the URL has `?debit=`.
    pub tells_debit: bool,
}

#[derive(Debug, Clone, Copy)]
pub enum Among {
    /// Only transfers or holds that were not refused.
    Accepted,
    All,
    /// An id that was never used.
    None,
}

#[derive(Debug, Clone, Copy)]
pub enum Expiry {
    Never,
    /// The hold expires long after the test.
    Far,
    /// The hold expires while the test waits.
    Soon,
}

#[derive(Debug, Clone, Copy)]
pub enum Alteration {
    Credit,
    Amount,
    NoAmount,
    Asset,
    Tag,
    Expiry,
    Final,
}

#[derive(Debug, Clone, Copy)]
pub enum ShownResource {
    Account,
    Transfer,
    Hold,
}

/// An amount that no account can receive twice.
pub const HUGE: i64 = i64::MAX;

/// The largest number of commands after the accounts are set up.
const LONGEST: usize = 14;

pub fn sequences() -> impl Strategy<Value = Sequence> {
    (vec(opening(), 2..=5), vec(command(), 1..=LONGEST))
        .prop_map(|(accounts, commands)| Sequence { accounts, commands })
}

fn opening() -> impl Strategy<Value = Opening> {
    let funds = prop_oneof![2 => Just(0), 5 => (2..=40_i64).prop_map(|n| n * 100)];
    (0..3_usize, terms(), funds).prop_map(|(shard, terms, funds)| Opening { shard, terms, funds })
}

fn terms() -> impl Strategy<Value = Terms> {
    (asset(), overdraft(), max_balance(), prop::bool::weighted(0.1))
        .prop_map(|(asset, overdraft, max_balance, tagged)| Terms { asset, overdraft, max_balance, tagged })
}

fn asset() -> impl Strategy<Value = Asset> {
    prop_oneof![14 => Just(Asset::USD), 1 => Just(Asset::EUR), 1 => Just(Asset::JPY)]
}

fn overdraft() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![5 => Just(Some(0)), 2 => (1..=5_i64).prop_map(|n| Some(n * 100)), 2 => Just(None)]
}

fn max_balance() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![5 => Just(None), 1 => (0..=20_i64).prop_map(|n| Some(n * 100))]
}

/// The amounts are few and small, so that requests often ask for too much, for less than there is, and for exactly all.
fn amount() -> impl Strategy<Value = i64> {
    prop_oneof![10 => (1..=10_i64).prop_map(|n| n * 100), 2 => 1..=1_000_i64]
}

fn command() -> impl Strategy<Value = Command> {
    let dry_run = || prop::bool::weighted(0.08);
    let huge = || prop_oneof![9 => amount(), 1 => Just(HUGE)];
    prop_oneof![
        1 => (nth(), terms()).prop_map(|(account, terms)| Command::Open { account, terms }),
        3 => (nth(), vec(content(), 1..=3)).prop_map(|(account, contents)| Command::OpenAgain { account, contents }),
        5 => (nth(), change()).prop_map(|(account, change)| Command::Change { account, change }),
        8 => (item(huge()), dry_run()).prop_map(|(item, dry_run)| Command::Pay { item, dry_run }),
        3 => (vec(item(amount()), 1..=4), prop::bool::weighted(0.4), prop::bool::weighted(0.6))
            .prop_map(|(items, atomic, together)| Command::PayBatch { items, atomic, together }),
        11 => (item(huge()), expiry(), dry_run())
            .prop_map(|(item, expiry, dry_run)| Command::Hold { item, expiry, dry_run }),
        16 => (reference(), id(), option::weighted(0.6, amount()), prop::bool::weighted(0.5))
            .prop_map(|(hold, id, amount, is_final)| Command::Capture { hold, id, amount, is_final }),
        3 => reference().prop_map(|hold| Command::Release { hold }),
        7 => (reference(), id(), option::weighted(0.6, amount()))
            .prop_map(|(transfer, id, amount)| Command::Reverse { transfer, id, amount }),
        6 => (back(), option::weighted(0.4, alteration()), any::<bool>()).prop_map(
            |(request, alteration, spelt_shorter)| Command::Again { request, alteration, spelt_shorter }),
        1 => (shown(), reference()).prop_map(|(what, of)| Command::Show { what, of }),
        1 => Just(Command::Wait),
    ]
}

fn nth() -> impl Strategy<Value = Nth> {
    prop_oneof![15 => 0..6_usize, 1 => Just(UNOPENED)]
}

fn back() -> impl Strategy<Value = Back> {
    prop_oneof![3 => 0..3_usize, 1 => 0..20_usize]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![3 => Just(Content::AsOpened), 1 => Just(Content::AsItIs), 1 => alteration().prop_map(Content::Altered)]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        3 => Just(Change::Status(Status::Open)),
        2 => Just(Change::Status(Status::Frozen)),
        2 => Just(Change::Status(Status::Closed)),
        2 => overdraft().prop_map(Change::Overdraft),
        2 => max_balance().prop_map(Change::MaxBalance),
        1 => any::<bool>().prop_map(Change::Tag),
        1 => (0..=3_i64).prop_map(|n| Change::Close { overdraft: n * 100 }),
    ]
}

fn item(amount: impl Strategy<Value = i64>) -> impl Strategy<Value = Item> {
    let asset = prop_oneof![20 => Just(None), 1 => Just(Some(Asset::EUR))];
    (id(), nth(), nth(), amount, asset, prop::bool::weighted(0.1))
        .prop_map(|(id, debit, credit, amount, asset, tagged)| Item { id, debit, credit, amount, asset, tagged })
}

fn id() -> impl Strategy<Value = IdChoice> {
    prop_oneof![7 => Just(IdChoice::New), 1 => back().prop_map(IdChoice::Used)]
}

fn reference() -> impl Strategy<Value = Reference> {
    let among = prop_oneof![14 => Just(Among::Accepted), 3 => Just(Among::All), 1 => Just(Among::None)];
    (back(), among, any::<bool>()).prop_map(|(back, among, tells_debit)| Reference { back, among, tells_debit })
}

fn expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![20 => Just(Expiry::Never), 4 => Just(Expiry::Far), 1 => Just(Expiry::Soon)]
}

fn alteration() -> impl Strategy<Value = Alteration> {
    prop_oneof![
        Just(Alteration::Credit),
        Just(Alteration::Amount),
        Just(Alteration::NoAmount),
        Just(Alteration::Asset),
        Just(Alteration::Tag),
        Just(Alteration::Expiry),
        Just(Alteration::Final),
    ]
}

fn shown() -> impl Strategy<Value = ShownResource> {
    prop_oneof![Just(ShownResource::Account), Just(ShownResource::Transfer), Just(ShownResource::Hold)]
}

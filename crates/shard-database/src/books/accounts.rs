//! The states of accounts, in little memory.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use ledger::{Account, AccountId, AccountStatus, AssetCode, Booking, Limit, Metadata, Position, booking::Leg};
use twox_hash::XxHash3_64;

/// States in one allocation. A growing vector of 10 million states would need them twice.
const CHUNK: usize = 1 << 16;
/// Of a limit that is none. Limits are not negative.
const UNLIMITED: i64 = -1;

/// A hash of 128 bits, which stands for what it is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64, u64);

impl Key {
    pub fn of(text: &str) -> Self {
        Self::of_bytes(text.as_bytes())
    }

    pub(super) fn of_parts<const N: usize>(text: &str, numbers: [i64; N]) -> Self {
        let mut bytes = Vec::with_capacity(text.len() + 8 * N);
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
        bytes.extend_from_slice(text.as_bytes());
        Self::of_bytes(&bytes)
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        Self(XxHash3_64::oneshot_with_seed(1, bytes), XxHash3_64::oneshot_with_seed(2, bytes))
    }
}

#[derive(Default)]
pub(super) struct Accounts {
    index: HashMap<Key, u32, RandomState>,
    chunks: Vec<Vec<State>>,
    assets: Vec<AssetCode>,
}

/// The place of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place(u32);

/// Whether an account's row is its state.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Compared {
    Equal,
    Different,
    /// The account has no row, or its row is of a later version.
    Elsewhere,
    /// The state is one version newer than the row.
    Passed {
        row_version: i64,
    },
}

/// An account without its id.
#[derive(Clone)]
pub(super) struct State {
    posted: i64,
    pub held: i64,
    overdraft: i64,
    max_balance: i64,
    /// 0: the row was read, and no booking opened the account so far.
    pub version: i64,
    head: i64,
    opened: i64,
    created_at_us: i64,
    updated_at_us: i64,
    /// A hash.
    /// A hash of the metadata in the journal.
    metadata: u32,
    /// A hash of the metadata in the row.
    row_metadata: u32,
    /// 0: there is no row.
    row_version: i64,
    row_digest: u64,
    asset: u16,
    status: AccountStatus,
    compared: bool,
    /// The booking that says what the account was opened with is missing or damaged, so the row cannot be compared.
    incomplete: bool,
}

/// What [`Accounts::states`] shows of a state.
pub(super) struct Shown {
    pub key: Key,
    pub held: i64,
    pub head: i64,
}

impl Accounts {
    pub fn len(&self) -> u64 {
        self.chunks.iter().flatten().filter(|state| state.version > 0).count() as u64
    }

    pub fn find(&self, id: &AccountId) -> Option<Place> {
        self.index.get(&Key::of(id.as_str())).copied().map(Place)
    }

    pub fn at(&self, place: Place) -> &State {
        &self.chunks[place.0 as usize / CHUNK][place.0 as usize % CHUNK]
    }

    fn at_mut(&mut self, place: Place) -> &mut State {
        &mut self.chunks[place.0 as usize / CHUNK][place.0 as usize % CHUNK]
    }

    /// Adds an account that is not there.
    pub fn insert(&mut self, id: &str) -> Place {
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let chunks = self.chunks.len() - 1;
        let chunk = &mut self.chunks[chunks];
        let place = u32::try_from(chunks * CHUNK + chunk.len()).unwrap_or(u32::MAX);
        assert!(place < u32::MAX, "too many accounts");
        chunk.push(State::EMPTY);
        self.index.insert(Key::of(id), place);
        Place(place)
    }

    /// Takes in a row, to be compared when the fold reaches its version.
    pub fn expect(&mut self, row: &Account) {
        let place = match self.find(&row.id) {
            Some(place) => place,
            None => self.insert(row.id.as_str()),
        };
        let mut as_row = State::EMPTY;
        as_row.set(row);
        as_row.set_attributes(row);
        as_row.set_opening(row);
        let digest = as_row.digest(row.asset);
        let state = self.at_mut(place);
        (state.row_version, state.row_digest, state.row_metadata) = (row.version, digest, as_row.metadata);
    }

    pub fn open(&mut self, place: Place, account: &Account) {
        let asset = self.asset_number(account.asset);
        let state = self.at_mut(place);
        state.asset = asset;
        state.set_opening(account);
        state.set(account);
        state.set_attributes(account);
    }

    /// The account, without its metadata.
    pub fn account(&self, place: Place, id: &AccountId) -> Account {
        let state = self.at(place);
        Account {
            id: id.clone(),
            asset: self.assets[usize::from(state.asset)],
            status: state.status,
            posted: state.posted,
            held: state.held,
            overdraft: limit(state.overdraft),
            max_balance: limit(state.max_balance),
            version: state.version,
            head: Position(state.head),
            opened: Position(state.opened),
            metadata: Metadata::empty(),
            created_at_us: state.created_at_us,
            updated_at_us: state.updated_at_us,
        }
    }

    /// Keeps what the fold made of [`Accounts::account`]. `with_attributes`: the booking sets the attributes, and with
    /// them the metadata.
    pub fn store(&mut self, place: Place, account: &Account, with_attributes: bool) {
        let state = self.at_mut(place);
        state.set(account);
        if with_attributes {
            state.set_attributes(account);
        }
    }

    /// Takes the state that a leg records, where it does not continue the state before it.
    pub fn continue_with(&mut self, place: Place, booking: &Booking, leg: &Leg) {
        let asset = self.asset_number(booking.asset);
        let state = self.at_mut(place);
        if state.version == 0 {
            state.asset = asset;
            state.incomplete = true;
        }
        state.posted = leg.posted;
        state.held = leg.held;
        state.overdraft = number(leg.overdraft);
        state.version = leg.version;
        state.head = booking.position.0;
        state.updated_at_us = state.updated_at_us.max(booking.at_us);
    }

    /// Compares the row of an account that has just changed.
    pub fn compare(&mut self, place: Place) -> Compared {
        let state = self.at(place);
        if state.row_version != 0 && state.version == state.row_version + 1 {
            return Compared::Passed { row_version: state.row_version };
        }
        if state.row_version != state.version || state.compared {
            return Compared::Elsewhere;
        }
        // The metadata may have been erased after the row was read. A fold that was under way may even have written it to the row again; the next
        // one writes the current metadata.
        let same_metadata =
            state.metadata == state.row_metadata || state.metadata == metadata_hash(&Metadata::erased());
        let is_equal = state.incomplete
            || (same_metadata && state.digest(self.assets[usize::from(state.asset)]) == state.row_digest);
        self.at_mut(place).compared = true;
        if is_equal { Compared::Equal } else { Compared::Different }
    }

    /// The rows whose versions were not reached.
    pub fn unreached(&self) -> HashMap<Key, i64> {
        let of = |key: &Key, place: u32| {
            let state = self.at(Place(place));
            (state.row_version != 0 && !state.compared).then_some((*key, state.row_version))
        };
        self.index.iter().filter_map(|(key, place)| of(key, *place)).collect()
    }

    pub fn states(&self) -> impl Iterator<Item = Shown> {
        self.index.iter().map(|(key, place)| {
            let state = self.at(Place(*place));
            Shown { key: *key, held: state.held, head: state.head }
        })
    }

    /// The sum of `posted`, by asset.
    pub fn sums(&self) -> BTreeMap<AssetCode, i128> {
        let mut sums = vec![0_i128; self.assets.len()];
        for state in self.chunks.iter().flatten().filter(|state| state.version > 0) {
            sums[usize::from(state.asset)] += i128::from(state.posted);
        }
        self.assets.iter().copied().zip(sums).collect()
    }

    fn asset_number(&mut self, asset: AssetCode) -> u16 {
        let place = self.assets.iter().position(|known| *known == asset).unwrap_or_else(|| {
            self.assets.push(asset);
            self.assets.len() - 1
        });
        let number = u16::try_from(place).unwrap_or(u16::MAX);
        assert!(number < u16::MAX, "too many assets");
        number
    }
}

impl State {
    const EMPTY: Self = Self {
        posted: 0,
        held: 0,
        overdraft: UNLIMITED,
        max_balance: UNLIMITED,
        version: 0,
        head: 0,
        opened: 0,
        created_at_us: 0,
        updated_at_us: 0,
        metadata: 0,
        row_metadata: 0,
        row_version: 0,
        row_digest: 0,
        asset: 0,
        status: AccountStatus::Open,
        compared: false,
        incomplete: false,
    };

    fn set(&mut self, account: &Account) {
        self.posted = account.posted;
        self.held = account.held;
        self.overdraft = number(account.overdraft);
        self.version = account.version;
        self.head = account.head.0;
        self.updated_at_us = account.updated_at_us;
    }

    fn set_attributes(&mut self, account: &Account) {
        self.status = account.status;
        self.max_balance = number(account.max_balance);
        self.metadata = metadata_hash(&account.metadata);
    }

    fn set_opening(&mut self, account: &Account) {
        self.opened = account.opened.0;
        self.created_at_us = account.created_at_us;
    }

    /// A hash of everything except the metadata, and the slot, which is no state.
    fn digest(&self, asset: AssetCode) -> u64 {
        let numbers = [
            self.posted,
            self.held,
            self.overdraft,
            self.max_balance,
            self.version,
            self.head,
            self.opened,
            self.created_at_us,
            self.updated_at_us,
            i64::from(self.status.code()),
        ];
        Key::of_parts(asset.as_str(), numbers).0
    }
}

/// 0 for none.
fn metadata_hash(metadata: &Metadata) -> u32 {
    let hash = if metadata.is_empty() { 0 } else { XxHash3_64::oneshot(metadata.as_str().as_bytes()) };
    u32::try_from(hash >> 32).unwrap_or(0)
}

fn number(limit: Limit) -> i64 {
    limit.to_nullable().unwrap_or(UNLIMITED)
}

fn limit(number: i64) -> Limit {
    if number == UNLIMITED { Limit::Unlimited } else { Limit::AtMost(number) }
}

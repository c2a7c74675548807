use ledger::{
    AccountStatus, Metadata, Refusal, Refused, TransferId,
    booking::{Attributes, Extra},
    operation::Purpose,
};
use uuid::Uuid;

use super::*;
use crate::journal::slot_column;

const SHARD: u16 = 0;

fn id(name: &str) -> AccountId {
    AccountId::any(name).unwrap()
}

fn number(n: u128) -> TransferId {
    TransferId(Uuid::from_u128(n))
}

fn leg(version: i64, previous: i64, posted: i64, held: i64, overdraft: Limit) -> Option<Leg> {
    Some(Leg { version, previous: Position(previous), posted, held, overdraft })
}

/// A booking from bank to alice under the id 1, without legs.
fn booking(position: i64, kind: BookingKind, amount: i64) -> Booking {
    Booking {
        ordered_by: None,
        position: Position(position),
        kind,
        id: Some(number(1)),
        payer: id("bank"),
        payee: Some(id("alice")),
        asset: AssetCode::new("USD").unwrap(),
        amount,
        at_us: position * 10,
        payer_leg: None,
        payee_leg: None,
        extra: None,
    }
}

fn opening(position: i64, name: &str, overdraft: Limit) -> Booking {
    let attributes = Attributes { status: AccountStatus::Open, max_balance: Limit::Unlimited };
    let metadata = Some(Metadata::from_canonical("{\"of\":\"test\"}"));
    let extra = Extra { metadata, attributes: Some(attributes), ..Extra::default() };
    Booking {
        id: None,
        payer: id(name),
        payee: None,
        payer_leg: leg(1, 0, 0, 0, overdraft),
        extra: Some(Box::new(extra)),
        ..booking(position, BookingKind::Opened, 0)
    }
}

fn extra(extra: Extra) -> Option<Box<Extra>> {
    Some(Box::new(extra))
}

fn capture(hold: u128) -> Option<Box<Extra>> {
    extra(Extra {
        purpose: Purpose::Capture { hold: number(hold), whole: false, finalize: false },
        ..Extra::default()
    })
}

/// bank pays alice 100, alice's hold of 60 is captured elsewhere, a cross-shard payment is refused and another is credited.
fn journal() -> Vec<Booking> {
    let unlimited = Limit::Unlimited;
    let of_hold =
        |booking: Booking| Booking { id: Some(number(7)), payer: id("alice"), payee: Some(id("shop")), ..booking };
    let of_capture = |booking: Booking| Booking { id: Some(number(2)), extra: capture(7), ..of_hold(booking) };
    let refused = Refused::credit(Refusal::AccountClosed);
    vec![
        opening(1, "bank", unlimited),
        opening(2, "alice", Limit::ZERO),
        Booking {
            payer_leg: leg(2, 1, -100, 0, unlimited),
            payee_leg: leg(2, 2, 100, 0, Limit::ZERO),
            ..booking(3, BookingKind::Posted, 100)
        },
        of_hold(Booking { payer_leg: leg(3, 3, 100, 60, Limit::ZERO), ..booking(4, BookingKind::HoldPlaced, 60) }),
        opening(5, "@in-transit:USD", unlimited),
        of_capture(Booking { payer_leg: leg(4, 4, 80, 40, Limit::ZERO), ..booking(6, BookingKind::Reserved, 20) }),
        of_capture(booking(7, BookingKind::Settled, 20)),
        Booking {
            id: Some(number(3)),
            payee: Some(id("far")),
            payer_leg: leg(3, 3, -105, 0, unlimited),
            ..booking(8, BookingKind::Reserved, 5)
        },
        Booking {
            id: Some(number(3)),
            payee: Some(id("far")),
            payer_leg: leg(4, 8, -100, 0, unlimited),
            extra: extra(Extra { refused: Some(refused), ..Extra::default() }),
            ..booking(9, BookingKind::Compensated, 5)
        },
        Booking {
            id: Some(number(4)),
            payer: id("far"),
            payee_leg: leg(5, 6, 100, 40, Limit::ZERO),
            ..booking(10, BookingKind::Credited, 20)
        },
        of_hold(Booking {
            payer_leg: leg(6, 10, 100, 0, Limit::ZERO),
            extra: extra(Extra { captured: Some(20), ..Extra::default() }),
            ..booking(11, BookingKind::HoldReleased, 40)
        }),
    ]
}

/// The rows of accounts as of a position.
fn rows(journal: &[Booking], at: i64) -> Vec<Account> {
    let mut accounts: HashMap<AccountId, Account> = HashMap::new();
    for booking in journal.iter().filter(|booking| booking.position.0 <= at) {
        if booking.kind == BookingKind::Opened {
            accounts.insert(booking.payer.clone(), fold::open_account(booking).unwrap());
            continue;
        }
        for (party, id, _) in booking.legs() {
            fold::apply_leg(accounts.get_mut(id).unwrap(), booking, party).unwrap();
        }
        if booking.kind.in_transit() != 0 {
            fold::apply_in_transit(accounts.get_mut(&id("@in-transit:USD")).unwrap(), booking).unwrap();
        }
    }
    accounts.into_values().collect()
}

/// Everything that is compared.
struct Shard {
    journal: Vec<Booking>,
    folded_before: i64,
    accounts: Vec<Account>,
    folded: i64,
    sagas: Vec<i64>,
    holds_at: i64,
    holds: HashMap<HoldKey, HoldRow>,
    waypoints: Vec<(&'static str, i64, i64, i64)>,
}

impl Shard {
    /// Folded up to `folded`, with the rows of accounts as of `rows_at`.
    fn healthy(folded: i64, rows_at: i64) -> Self {
        let journal = journal();
        let hold = HoldRow {
            position: Position(4),
            amount: 60,
            captured: if rows_at >= 7 { 20 } else { 0 },
            in_flight: (rows_at == 6).then(|| (number(2), 20)),
            expires_at_us: None,
        };
        let key = HoldKey { id: number(7), debit: id("alice") };
        Self {
            accounts: rows(&journal, rows_at),
            folded_before: folded,
            folded,
            sagas: [6, 8].into_iter().filter(|begun| folded == *begun).collect(),
            holds_at: rows_at,
            holds: HashMap::from_iter((4..11).contains(&rows_at).then_some((key, hold))),
            waypoints: Vec::new(),
            journal,
        }
    }

    fn check(self) -> (Vec<(Rule, String)>, Leftovers) {
        let mut books = Books::new(SHARD);
        books.expect_folded_before(Position(self.folded_before));
        self.accounts.iter().for_each(|row| books.expect_account(row));
        books.expect_holds(Position(self.holds_at), self.holds);
        books.expect_sagas(Position(self.folded), self.sagas.into_iter().map(Position).collect());
        for (account, version, position, at_us) in self.waypoints {
            books.expect_waypoint(account, version, Position(position), at_us);
        }
        let mut found = Vec::new();
        let mut report = |difference: Difference| found.push((difference.rule, difference.subject));
        for booking in &self.journal {
            books.apply(booking, &mut report);
        }
        let leftovers = books.finish(&mut report);
        (found, leftovers)
    }

    /// The rules that are broken, those of the leftovers included.
    fn broken(self) -> Vec<Rule> {
        let (found, leftovers) = self.check();
        let mut rules: Vec<Rule> = found.into_iter().map(|(rule, _)| rule).collect();
        rules.extend(leftovers.mismatched.iter().map(|_| Rule::AccountRow));
        rules.extend(leftovers.unreached.values().map(|_| Rule::AccountRow));
        rules.extend(leftovers.waypoints.iter().map(|_| Rule::WaypointRow));
        rules.sort();
        rules
    }

    fn at(&mut self, position: usize) -> &mut Booking {
        &mut self.journal[position - 1]
    }

    fn payer_leg(&mut self, position: usize) -> &mut Leg {
        self.at(position).payer_leg.as_mut().unwrap()
    }
}

#[test]
fn rows_may_be_as_far_behind_as_they_say() {
    for rows_at in 1..=11 {
        for folded in 0..=rows_at {
            let (found, leftovers) = Shard::healthy(folded, rows_at).check();
            assert_eq!(found, [], "folded up to {folded}, rows as of {rows_at}");
            assert!(leftovers.mismatched.is_empty() && leftovers.unreached.is_empty());
            let opened_later = [1, 2, 5].iter().filter(|opened| **opened > rows_at).count();
            assert_eq!(leftovers.without_row.len(), opened_later);
            let counts = Counts { accounts: 3, bookings: 11, entries: 15, transfers: 3, registers: 1 };
            assert_eq!(leftovers.counts, counts);
        }
    }
}

#[test]
fn each_damage_to_a_row_is_one_difference() {
    type Damage = fn(&mut Shard);
    let table: &[(&str, Damage, &[Rule])] = &[
        ("none", |_| {}, &[]),
        ("a cent too many", |it| it.accounts[0].posted += 1, &[Rule::AccountRow]),
        ("held", |it| it.accounts[0].held += 1, &[Rule::AccountRow]),
        ("limit", |it| it.accounts[0].max_balance = Limit::AtMost(7), &[Rule::AccountRow]),
        ("overdraft", |it| it.accounts[0].overdraft = Limit::AtMost(7), &[Rule::AccountRow]),
        ("status", |it| it.accounts[0].status = AccountStatus::Closed, &[Rule::AccountRow]),
        ("metadata", |it| it.accounts[0].metadata = Metadata::empty(), &[Rule::AccountRow]),
        ("head", |it| it.accounts[0].head = Position(99), &[Rule::AccountRow]),
        ("opened", |it| it.accounts[0].opened = Position(99), &[Rule::AccountRow]),
        ("times", |it| it.accounts[0].updated_at_us += 1, &[Rule::AccountRow]),
        ("a version ahead", |it| it.accounts[0].version = 99, &[Rule::AccountRow]),
        ("an account that was never opened", |it| it.accounts[0].id = id("nobody"), &[Rule::AccountRow]),
        ("older than the folded position", |it| it.accounts = rows(&it.journal, 2), &[Rule::AccountRow; 2]),
        ("a hold too many", |it| it.holds = Shard::healthy(9, 9).holds, &[Rule::HoldRow]),
        ("a saga too many", |it| it.sagas = vec![6], &[Rule::SagaRow]),
        ("a waypoint too many", |it| it.waypoints = vec![("alice", 64, 4, 40)], &[Rule::WaypointRow]),
        ("folded beyond the journal", |it| it.folded = 12, &[Rule::FoldState]),
    ];
    for (name, damage, expected) in table {
        let mut shard = Shard::healthy(11, 11);
        shard.accounts.sort_by(|a, b| a.id.cmp(&b.id));
        shard.accounts.rotate_left(1);
        damage(&mut shard);
        assert_eq!(shard.broken(), *expected, "{name}");
    }
    let mut shard = Shard::healthy(9, 9);
    shard.holds.clear();
    assert_eq!(shard.broken(), [Rule::HoldRow], "an open hold without a row");
    let mut shard = Shard::healthy(9, 9);
    shard.holds.values_mut().for_each(|row| row.captured = 0);
    assert_eq!(shard.broken(), [Rule::HoldRow], "another row");
    let mut shard = Shard::healthy(8, 9);
    shard.sagas.clear();
    assert_eq!(shard.broken(), [Rule::SagaRow], "a saga without a row");
}

#[test]
fn a_version_divisible_by_64_leaves_a_waypoint() {
    let mut shard = Shard { journal: vec![opening(1, "bank", Limit::Unlimited)], ..Shard::healthy(0, 0) };
    for version in 2..=128 {
        let attributes = Attributes { status: AccountStatus::Open, max_balance: Limit::AtMost(version) };
        shard.journal.push(Booking {
            id: None,
            payee: None,
            payer_leg: leg(version, version - 1, 0, 0, Limit::Unlimited),
            extra: extra(Extra { attributes: Some(attributes), ..Extra::default() }),
            ..booking(version, BookingKind::Updated, 0)
        });
    }
    for (folded, waypoints, expected) in [
        (63, vec![], &[][..]),
        (64, vec![("bank", 64, 64, 640)], &[]),
        (127, vec![("bank", 64, 64, 640)], &[]),
        (128, vec![("bank", 64, 64, 640), ("bank", 128, 128, 1280)], &[]),
        (128, vec![("bank", 64, 64, 640)], &[Rule::WaypointRow]),
        (63, vec![("bank", 64, 64, 640)], &[Rule::WaypointRow]),
        // A wrong one is missing and one too many.
        (64, vec![("bank", 64, 65, 640)], &[Rule::WaypointRow; 2]),
        (64, vec![("bank", 64, 64, 641)], &[Rule::WaypointRow; 2]),
    ] {
        let shard = Shard { journal: shard.journal.clone(), waypoints, ..Shard::healthy(folded, 0) };
        let shard = Shard { accounts: Vec::new(), holds: HashMap::new(), sagas: Vec::new(), ..shard };
        assert_eq!(shard.broken(), expected, "{folded}");
    }
}

#[test]
fn each_damage_to_the_journal_breaks_its_rule() {
    type Damage = fn(&mut Shard);
    let table: &[(&str, Damage, &[Rule])] = &[
        ("an amount", |it| it.at(3).amount = 99, &[Rule::Balance]),
        ("balances of a leg", |it| it.payer_leg(8).posted -= 1, &[Rule::Balance]),
        ("a version skipped", |it| it.payer_leg(8).version = 9, &[Rule::Chain]),
        ("a version twice", |it| it.payer_leg(8).version = 2, &[Rule::Chain]),
        ("the chain", |it| it.payer_leg(8).previous = Position(2), &[Rule::Chain]),
        ("an overdraft", |it| it.payer_leg(8).overdraft = Limit::AtMost(100), &[Rule::Floor, Rule::Content]),
        ("an asset", |it| it.at(4).asset = AssetCode::new("EUR").unwrap(), &[Rule::Hold, Rule::Content]),
        ("times", |it| it.at(9).at_us = 1, &[Rule::Chain]),
        ("no opening", |it| drop(it.journal.remove(1)), &[Rule::Chain]),
        ("opened twice", |it| it.at(5).payer = id("alice"), &[Rule::Chain]),
        ("compensated without the leg", |it| it.at(7).kind = BookingKind::Compensated, &[Rule::Sum, Rule::Hold]),
        ("a settlement of nothing", |it| it.at(9).id = Some(number(9)), &[Rule::Saga]),
        ("a settlement of another amount", |it| it.at(6).payee = Some(id("far")), &[Rule::Saga, Rule::Hold]),
        ("a hold's total", |it| it.at(11).extra = None, &[Rule::Hold]),
        ("a hold without end", |it| drop(it.journal.pop()), &[]),
    ];
    let mut wrong = Vec::new();
    for (name, damage, expected) in table {
        let mut shard = Shard::healthy(0, 0);
        damage(&mut shard);
        let mut rules = shard.broken();
        rules.dedup();
        if rules != *expected {
            wrong.push(format!("{name}: {rules:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// alice has 100 and bank -100 at shard 5; 5 of the bank's are in transit. Then alice's slot comes here, and pays 30 back.
#[test]
fn what_came_with_a_move_counts_with_what_is_booked_here() {
    let (alice, bank) = (id("alice"), id("bank"));
    let there = Position::first_of(5).0;
    let slot_of = |id: &AccountId| u16::try_from(slot_column(id)).unwrap();
    assert_ne!(slot_of(&alice), slot_of(&bank));
    let foreign = vec![
        opening(there, "bank", Limit::Unlimited),
        opening(there + 1, "alice", Limit::ZERO),
        Booking {
            payer_leg: leg(2, there, -100, 0, Limit::Unlimited),
            payee_leg: leg(2, there + 1, 100, 0, Limit::ZERO),
            ..booking(there + 2, BookingKind::Posted, 100)
        },
        Booking {
            id: Some(number(2)),
            payer: alice.clone(),
            payee: Some(id("far")),
            payer_leg: leg(3, there + 2, 95, 0, Limit::ZERO),
            ..booking(there + 3, BookingKind::Reserved, 5)
        },
    ];
    let foreign: Vec<Booking> = (1..).zip(foreign).map(|(at_us, booking)| Booking { at_us, ..booking }).collect();
    let usd = AssetCode::new("USD").unwrap();
    let of_move = |position, kind, amount| Booking::of_move(Position(position), kind, usd, amount, 50);
    let own = vec![
        opening(1, "@in-transit:USD", Limit::Unlimited),
        of_move(2, BookingKind::MovedIn, 95),
        of_move(3, BookingKind::SharesIn, 5),
        Booking {
            id: Some(number(3)),
            payer: alice.clone(),
            payee: Some(bank.clone()),
            payer_leg: leg(4, there + 3, 65, 0, Limit::ZERO),
            at_us: 60,
            ..booking(4, BookingKind::Reserved, 30)
        },
    ];
    let in_transit = |posted| Account {
        id: id("@in-transit:USD"),
        posted,
        version: 3,
        head: Position(4),
        ..fold::open_account(&own[0]).unwrap()
    };
    let check = |order: Vec<&Booking>, posted| {
        let mut books = Books::new(SHARD);
        books.expect_owned(OwnedSlots::new(1, [slot_of(&alice)]));
        books.expect_merged();
        // The saga that came with the slots has a row; the one that began after the fold has none yet.
        books.expect_sagas(Position(3), [Position(there + 3)].into());
        books.expect_account(&in_transit(posted));
        let mut found = Vec::new();
        let mut report = |difference: Difference| found.push((difference.rule, difference.subject));
        order.into_iter().for_each(|booking| books.apply(booking, &mut report));
        let leftovers = books.finish(&mut report);
        (found, leftovers)
    };
    let (found, leftovers) = check(foreign.iter().chain(&own).collect(), -65);
    assert_eq!(found, []);
    assert_eq!(leftovers.without_row, std::slice::from_ref(&alice), "the bank is not this shard's");
    assert_eq!((leftovers.counts.accounts, leftovers.counts.transfers), (2, 2));
    // A leg that comes before the one it follows waits for it.
    let (found, _) = check([&foreign[1], &own[0], &own[1], &own[2], &own[3], &foreign[2], &foreign[3]].into(), -65);
    assert_eq!(found, []);
    let (found, _) = check(foreign.iter().chain(&own).collect(), -64);
    assert_eq!(found, [(Rule::AccountRow, "@in-transit:USD".to_owned())]);
    // A booking that did not come.
    let (found, _) = check([&foreign[1], &foreign[2], &own[0], &own[1], &own[2], &own[3]].into(), -65);
    let rules: Vec<Rule> = found.into_iter().map(|(rule, _)| rule).collect();
    assert!(rules.contains(&Rule::Chain) && rules.contains(&Rule::AccountRow), "{rules:?}");
}

#[test]
fn the_sums_of_a_shard_and_its_reversals() {
    let mut shard = Shard::healthy(0, 0);
    // A posting whose second leg is missing.
    shard.at(3).payee_leg = None;
    shard.journal.truncate(3);
    assert_eq!(shard.broken(), [Rule::Sum]);

    let mut shard = Shard::healthy(0, 0);
    shard.journal.truncate(3);
    let of = number(1);
    let reversal = |position: i64, balances: (i64, i64), previous: (i64, i64), version: i64| Booking {
        id: Some(number(10 + u128::try_from(version).unwrap())),
        payer: id("alice"),
        payee: Some(id("bank")),
        payer_leg: leg(version, previous.0, balances.0, 0, Limit::ZERO),
        payee_leg: leg(version, previous.1, balances.1, 0, Limit::Unlimited),
        extra: extra(Extra { purpose: Purpose::Reversal { of, whole: false }, ..Extra::default() }),
        ..booking(position, BookingKind::Posted, 30)
    };
    shard.journal.push(reversal(4, (70, -70), (3, 3), 3));
    shard.journal.push(reversal(5, (40, -40), (4, 4), 4));
    let (found, leftovers) = shard.check();
    assert_eq!(found, []);
    let key = TransferKey { id: of, debit: id("bank") };
    assert_eq!(leftovers.reversals[&key], Reversed { sum: 60, payer: id("alice") });
}

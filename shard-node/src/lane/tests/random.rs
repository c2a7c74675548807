//! Random operations over two lanes, with random faults and folds. `SEED=…` plays one seed.

use std::ops::Range;

use super::*;

const SEEDS: Range<u64> = 1..41;
const ROUNDS: usize = 60;
const NAMES: [&str; 4] = ["bank", "alice", "bob", "shop"];

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_is_in_the_journal_once_whatever_fails() {
    let mut seen = Seen::default();
    if let Ok(seed) = std::env::var("SEED") {
        return World::new(seed.parse().unwrap()).await.play(&mut seen).await;
    }
    for seed in SEEDS {
        eprintln!("SEED={seed}");
        World::new(seed).await.play(&mut seen).await;
    }
    // A run without replays, refusals and doubt would prove little.
    eprintln!("{seen:?}");
    let Seen { answered, replayed, not_executed, unknown, crashes, generations } = seen;
    assert!(answered > 200 && replayed > 20 && not_executed > 5 && unknown > 0 && crashes > 5 && generations > 500);
}

#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    replayed: usize,
    not_executed: usize,
    unknown: usize,
    crashes: usize,
    /// Folds that have finished, and loads of a whole tail.
    generations: u64,
}

/// An operation that a client has handed in, with the transfer or hold that it is about.
struct Asked {
    of: u128,
    debit: &'static str,
    role: Role,
    operation: Operation,
}

struct World {
    seed: u64,
    random: u64,
    database: Database,
    nodes: Vec<Node>,
    /// The operations so far; each may be handed in again.
    asked: Vec<Asked>,
    /// By number of the operation: what its submissions were answered.
    waiting: Vec<(usize, JoinHandle<Vec<Reply>>)>,
}

impl World {
    async fn new(seed: u64) -> Self {
        let database = shard_with(&NAMES).await;
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
        let mut world = Self { seed, random, database, nodes: Vec::new(), asked: Vec::new(), waiting: Vec::new() };
        for _ in 0..2 {
            let node = world.start_node();
            world.nodes.push(node);
        }
        world
    }

    fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.random >> 33) % bound as u64).unwrap()
    }

    fn start_node(&mut self) -> Node {
        let config = LaneConfig { cache_bytes: [1, 1 << 20][self.below(2)], ..LaneConfig::default() };
        let mut node = Node::start_with(&self.database, &config);
        node.store.pause_by(1 + self.below(1 << 30) as u64);
        node.fold_every(Duration::from_millis(1 + self.below(60) as u64));
        node
    }

    // === the run ===

    async fn play(mut self, seen: &mut Seen) {
        for _ in 0..ROUNDS {
            for _ in 0..self.below(4) {
                self.submit();
            }
            if self.below(4) == 0 {
                self.go_wrong(seen).await;
            }
            if self.below(3) == 0 {
                // A crash that was ordered before may have come in the meantime.
                self.database.restart();
            }
            pause_ms(self.below(80) as u64).await;
        }
        self.settle_down().await;
        let replies = self.replies().await;
        self.check(&replies, seen);
        // What the lanes have in memory goes on from the journal.
        for node in 0..self.nodes.len() {
            for (name, of) in NAMES.into_iter().zip(1_000_000 + 10 * node as u128..) {
                let reply = self.nodes[node].one(pay(of, name, NAMES[(node + 1) % 4], 1)).await;
                assert!(matches!(reply, Reply::Outcome(_)), "seed {}: {reply:?}", self.seed);
            }
        }
        self.nodes[0].fold_everything().await;
        self.database.check_folded();
        for node in self.nodes {
            seen.generations += node.tail.generation().0;
            node.kill().await;
        }
    }

    fn submit(&mut self) {
        let node = self.below(self.nodes.len());
        let number = match self.asked.len() {
            asked if asked > 0 && self.below(5) == 0 => self.below(asked),
            asked => {
                let operation = self.operation(1 + asked as u128);
                self.asked.push(operation);
                asked
            }
        };
        let timeout_ms = [0, 0, 0, 40][self.below(4)];
        let operation = self.asked[number].operation.clone();
        self.waiting.push((number, self.nodes[node].submit_for(vec![operation], timeout_ms)));
    }

    fn operation(&mut self, of: u128) -> Asked {
        let amount = 1 + i64::try_from(self.below(60)).unwrap();
        let debit = NAMES[self.below(4)];
        let credited = NAMES.into_iter().find(|name| *name != debit && self.below(3) == 0);
        let credited = credited.unwrap_or(if debit == "shop" { "alice" } else { "shop" });
        let begun = |role: Role, asked: &Asked| asked.role == role;
        let earlier = |asked: &[Asked], role| -> Vec<(u128, &'static str, i64)> {
            let of_role = asked.iter().filter(|asked| begun(role, asked));
            of_role.map(|asked| (asked.of, asked.debit, amount_of(&asked.operation))).collect()
        };
        let (role, debit, of, operation) = match self.below(10) {
            0..4 => (Role::Transfer, debit, of, pay(of, debit, credited, amount)),
            4 => (Role::None, debit, of, reserve(of, debit, amount)),
            5 => {
                let reserved = earlier(&self.asked, Role::None);
                match reserved.get(self.below(reserved.len().max(1))) {
                    Some(&(of, debit, amount)) => {
                        let refused = Verdict::Refused(Refused::whole(Refusal::Cancelled));
                        // The register decides: one saga has one verdict.
                        let verdict = if of % 2 == 0 { Verdict::Credited } else { refused };
                        (Role::Settlement, debit, of, settle(of, debit, amount, verdict))
                    }
                    None => (Role::None, debit, of, reserve(of, debit, amount)),
                }
            }
            6 => (Role::Register, "elsewhere", of, credit(of, credited, amount)),
            7 => (Role::Hold, "alice", of, hold(of, "alice", amount)),
            8 => {
                let held = earlier(&self.asked, Role::Hold);
                match held.get(self.below(held.len().max(1))) {
                    Some(&(held, debit, _)) => (Role::Transfer, debit, of, capture(of, held, debit, amount)),
                    None => (Role::Hold, "alice", of, hold(of, "alice", amount)),
                }
            }
            _ => (Role::HoldEnd, "bob", of, update("bob", Some(Limit::AtMost(500 + amount)))),
        };
        Asked { of, debit, role, operation }
    }

    async fn go_wrong(&mut self, seen: &mut Seen) {
        let node = self.below(self.nodes.len());
        let after = self.below(3);
        let is_carried_out = self.below(2) == 0;
        let trouble = self.below(12);
        let store = &self.nodes[node].store;
        match trouble {
            0 => store.order([Fault::LoseAnswer]),
            1 => store.order([Fault::Swallow]),
            2 => store.order([Fault::Refuse]),
            3 => store.order([Fault::Fence, Fault::Fence]),
            4 => store.order([Fault::Warn]),
            5 => {
                store.order([Fault::Stall]);
                store.release();
            }
            6 | 7 => store.order_fold_fault(FoldFault { after, is_carried_out }),
            8 => {
                store.order([if is_carried_out { Fault::CrashAfter } else { Fault::Crash }]);
                seen.crashes += 1;
                pause_ms(100).await;
                self.database.restart();
            }
            9 => {
                self.database.crash();
                seen.crashes += 1;
                pause_ms(50).await;
                self.database.restart();
            }
            10 => self.database.change_ownership(),
            _ => {
                // The node dies, and another one starts in its place.
                let started = self.start_node();
                std::mem::replace(&mut self.nodes[node], started).kill().await;
            }
        }
    }

    async fn settle_down(&mut self) {
        for node in &self.nodes {
            node.store.calm();
        }
        self.database.restart();
        pause_ms(5_000).await;
    }

    async fn replies(&mut self) -> Vec<(usize, Reply)> {
        let mut replies = Vec::new();
        for (number, waiting) in std::mem::take(&mut self.waiting) {
            let done = tokio::time::timeout(Duration::from_secs(60), waiting).await;
            let replied = done.unwrap_or_else(|_| panic!("seed {}: an operation has no answer", self.seed));
            replies.push((number, replied.unwrap().remove(0)));
        }
        replies
    }

    // === what must be so ===

    fn check(&self, replies: &[(usize, Reply)], seen: &mut Seen) {
        let bookings = self.database.bookings();
        let mut journal = ledger::in_memory::Journal::default();
        journal.damage(|all| *all = bookings);
        let mut submissions: HashMap<usize, Vec<&Reply>> = HashMap::new();
        for (number, reply) in replies {
            submissions.entry(*number).or_default().push(reply);
        }
        for (number, replies) in submissions {
            let Asked { of, debit, role, operation } = &self.asked[number];
            let context = || format!("seed {}: {operation:?}: {replies:?}", self.seed);
            let key = key(*of, debit);
            let role = if *role == Role::None { Role::Transfer } else { *role };
            let mut firsts = 0;
            for reply in &replies {
                match reply {
                    Reply::Outcome(outcome) => {
                        seen.answered += 1;
                        let replayed = match outcome {
                            Outcome::Transfer(TransferOutcome::Done(answer)) => {
                                let stored = journal.transfer(&key).unwrap_or_else(|| panic!("{}", context()));
                                assert_eq!(answer.amount, stored.amount, "{}", context());
                                assert_eq!(answer.created_at_us, stored.created_at_us, "{}", context());
                                let is_as_stored = answer.state == stored.state;
                                let was_pending = answer.state == TransferState::Pending;
                                assert!(is_as_stored || was_pending, "{}: {stored:?}", context());
                                Some(answer.replayed)
                            }
                            Outcome::Decided(decided) => {
                                let stored = journal.register(&key).unwrap_or_else(|| panic!("{}", context()));
                                assert_eq!((decided.verdict, decided.at_us), (stored.verdict, stored.decided_at_us));
                                Some(decided.replayed)
                            }
                            Outcome::Settled(settled) => {
                                let stored = journal.transfer(&key).unwrap_or_else(|| panic!("{}", context()));
                                assert_eq!(settled.state, stored.state, "{}", context());
                                Some(settled.replayed)
                            }
                            Outcome::Hold(HoldOutcome::Placed(answer)) => {
                                let first = journal.answer(&key, Role::Hold);
                                let first = first.unwrap_or_else(|| panic!("{}", context()));
                                assert_eq!(answer.created_at_us, first.at_us, "{}", context());
                                Some(answer.replayed)
                            }
                            Outcome::Illegal(_) if role == Role::Settlement => {
                                // The reserve came later, or was refused.
                                None
                            }
                            Outcome::Illegal(why) => panic!("{why}: {}", context()),
                            _ => None,
                        };
                        firsts += usize::from(replayed == Some(false));
                        seen.replayed += usize::from(replayed == Some(true));
                    }
                    Reply::NotExecuted { .. } => seen.not_executed += 1,
                    Reply::Unknown => seen.unknown += 1,
                }
            }
            // Settlements of one saga may come as several operations with the same key.
            assert!(firsts <= 1, "{}", context());
            let none_executed = replies.iter().all(|reply| matches!(reply, Reply::NotExecuted { .. }));
            let is_sole = self.asked.iter().filter(|other| (other.of, other.debit) == (*of, *debit)).count() == 1;
            if none_executed && is_sole {
                assert!(journal.answer(&key, role).is_none(), "not executed, and booked: {}", context());
            }
        }
    }
}

fn amount_of(operation: &Operation) -> i64 {
    match operation {
        Operation::Transfer(transfer) => transfer.amount,
        Operation::PlaceHold(place) => place.amount,
        _ => 0,
    }
}

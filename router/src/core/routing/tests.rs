//! Routing as a whole: files, shards and their words together.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use ledger::outcome::NotOwner;
use shard_map::{Shard, ShardMap, Slot, SlotRange};
use telemetry::Tasks;
use wire::{GetOwnershipResponse, OwnedRange};

use super::{Reload, Routing, ownership::Merged};

const OWNED: u32 = 1;
const RELEASED: u32 = 2;
const INCOMING: u32 = 3;

/// A map that splits the slots evenly among `ids`; a shard's number is the one in its id.
const CLUSTER: &str = "0190d7c0-0000-7000-8000-00000000c1a5";

pub fn map_of(version: u64, ids: &[&str]) -> ShardMap {
    grown(version, ids, &[])
}

/// [`map_of`] with further shards that were added later and have no slots.
fn grown(version: u64, ids: &[&str], added: &[&str]) -> ShardMap {
    let slots = SlotRange::split_evenly(ids.len() as u16).map(|range| vec![range]);
    let shards = ids.iter().chain(added).zip(slots.chain(std::iter::repeat(vec![]))).map(|(id, slots)| {
        let number: u16 = id[1..].parse().expect("an id such as s1");
        Shard { id: (*id).to_owned(), number, nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)], slots }
    });
    ShardMap::new(CLUSTER.parse().expect("an id"), version, shards.collect()).expect("a valid map")
}

/// A folder of its own for one test, gone when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("shardledger-routing-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(unique);
        fs::create_dir_all(&folder).expect("a folder for the test");
        Self(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("shard-map.toml")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(file: &Path, map: &ShardMap) {
    fs::write(file, map.to_toml()).expect("the map is written");
}

fn opened(map: &ShardMap) -> (Folder, Routing) {
    let folder = Folder::new();
    write(&folder.file(), map);
    let routing = Routing::open(folder.file()).expect("the map is good");
    (folder, routing)
}

fn owner_of(routing: &Routing, slot: u16) -> String {
    let table = routing.load();
    table.shard_id(table.owner(Slot::new(slot).expect("a slot"))).to_string()
}

fn not_owner(slot: u16, state: u32, epoch: i64, owner: &str) -> NotOwner {
    NotOwner { slot, state: state as u8, epoch, owner: owner.to_owned() }
}

fn answer(shard: &str, ranges: &[(u32, u32, u32, i64, &str)]) -> (String, GetOwnershipResponse) {
    let ranges = ranges.iter().map(|(first, last, state, epoch, peer)| OwnedRange {
        first: *first,
        last: *last,
        state: *state,
        epoch: *epoch,
        peer: (*peer).to_owned(),
    });
    let response = GetOwnershipResponse { shard: shard.to_owned(), ranges: ranges.collect(), ..Default::default() };
    (shard.to_owned(), response)
}

#[test]
fn accounts_of_one_tag_go_to_one_shard_and_a_snapshot_stays_what_it_was() {
    let routing = Routing::fixed(map_of(1, &["s0", "s1", "s2", "s3"]));
    let before = routing.load();
    assert_eq!(before.route("{user42}:wallet"), before.route("{user42}:savings"));
    assert_eq!(before.route("{user42}:wallet"), before.route(&ledger::AccountId::client("user42").unwrap()));

    routing.learn_not_owners("s0", &[not_owner(0, RELEASED, 2, "s3")]);
    assert_eq!(before.shard_id(before.owner(Slot::FIRST)).as_ref(), "s0", "a request keeps its snapshot");
    assert_eq!(owner_of(&routing, 0), "s3");
    assert!(routing.load().generation() > before.generation());
}

#[test]
fn a_refusal_reroutes_what_it_can_and_nothing_else() {
    let routing = Routing::fixed(map_of(1, &["s0", "s1"]));
    let mut changes = routing.subscribe();
    let mut new_table = move || {
        let changed = changes.has_changed().expect("the routing lives");
        changes.mark_unchanged();
        changed
    };
    assert!(!new_table());
    let batch = [not_owner(7, RELEASED, 2, "s1"), not_owner(9, RELEASED, 2, "s1"), not_owner(7, RELEASED, 2, "s1")];
    routing.learn_not_owners("s0", &batch);
    assert!(new_table());
    assert_eq!([7, 8, 9].map(|slot| owner_of(&routing, slot)), ["s1", "s0", "s1"]);

    // The same again, for operations that were on their way: known already.
    routing.learn_not_owners("s0", &batch);
    // s1 has not taken over yet; the operation has to wait for it.
    routing.learn_not_owners("s1", &[not_owner(7, INCOMING, 2, "s0")]);
    // No shard was named, or none of the map; a slot that does not exist; a shard that is gone.
    routing.learn_not_owners("s0", &[not_owner(8, 0, 0, ""), not_owner(8, RELEASED, 2, "s77")]);
    routing.learn_not_owners("s0", &[not_owner(60_000, RELEASED, 2, "s1"), not_owner(8, OWNED, 2, "")]);
    routing.learn_not_owners("s77", &[not_owner(8, RELEASED, 2, "s1")]);
    assert!(!new_table());
    assert_eq!([7, 8, 9].map(|slot| owner_of(&routing, slot)), ["s1", "s0", "s1"]);
}

#[test]
fn the_shards_answers_rebuild_the_routing_of_a_wrong_map() {
    let routing = Routing::fixed(map_of(1, &["s0", "s1"]));
    let merged = routing.merge_ownership([
        answer("s0", &[(0, 99, RELEASED, 2, "s1"), (100, 8191, OWNED, 1, ""), (16_383, 16_383, OWNED, 3, "")]),
        answer("s1", &[(0, 99, OWNED, 2, "s0"), (8192, 16_382, OWNED, 1, ""), (16_383, 16_383, RELEASED, 3, "s0")]),
    ]);
    assert_eq!(merged, Merged { rerouted_slots: 101, adopted: None });
    assert_eq!((owner_of(&routing, 0), owner_of(&routing, 100)), ("s1".to_owned(), "s0".to_owned()));
    let overrides: Vec<_> = routing
        .status()
        .overrides
        .iter()
        .map(|o| format!("{} {}>{}@{}", o.slots, o.in_map, o.owner, o.epoch))
        .collect();
    assert_eq!(overrides, ["0-99 s0>s1@2", "16383 s1>s0@3"]);
    assert_eq!(routing.load().override_count(), 101);
    assert_eq!(routing.load().slots_of(routing.load().map().index_of("s1").unwrap()).len(), 2);

    // What a shard no longer lists, it no longer has.
    let merged = routing.merge_ownership([answer("s1", &[(8192, 16_382, OWNED, 1, "")])]);
    assert_eq!(merged.rerouted_slots, 100);
    assert_eq!(owner_of(&routing, 0), "s0");
}

#[test]
fn answers_of_the_wrong_shard_are_of_no_use() {
    let routing = Routing::fixed(map_of(1, &["s0", "s1"]));
    let (_, answer_of_s1) = answer("s1", &[(0, 16_383, OWNED, 9, "")]);
    assert_eq!(routing.merge_ownership([("s0", answer_of_s1)]), Merged::default());
    assert_eq!(routing.merge_ownership([answer("s5", &[(0, 16_383, OWNED, 9, "")])]), Merged::default());
    let nonsense = answer("s0", &[(5, 2, OWNED, 9, ""), (0, 99_999, OWNED, 9, ""), (9000, 9000, 77, 9, "")]);
    assert_eq!(routing.merge_ownership([nonsense]), Merged::default());
}

#[test]
fn a_newer_map_of_a_node_is_adopted_and_an_older_one_is_not() {
    let routing = Routing::fixed(map_of(3, &["s0", "s1"]));
    let offering = |version: u64, added: &[&str]| {
        let (id, mut response) = answer("s0", &[]);
        response.shard_map = grown(version, &["s0", "s1"], added).to_toml();
        response.shard_map_version = version as i64;
        (id, response)
    };
    assert_eq!(routing.merge_ownership([offering(2, &[])]).adopted, None);
    let merged = routing.merge_ownership([offering(5, &["s2"]), offering(4, &[])]);
    assert_eq!(merged.adopted, Some(5));
    assert_eq!(merged.rerouted_slots, 0, "a shard that is added has no slots");
    assert_eq!(routing.status().source, "shard s0");

    let (id, mut garbled) = offering(9, &[]);
    garbled.shard_map.truncate(30);
    assert_eq!(routing.merge_ownership([(id, garbled)]).adopted, None);
    assert_eq!(routing.load().map().version, 5);
    assert!(routing.status().refusal.is_some());
}

#[test]
fn a_router_does_not_start_without_a_good_map() {
    let folder = Folder::new();
    assert!(Routing::open(folder.file()).err().unwrap().to_string().contains("cannot read"));
    fs::write(folder.file(), format!("cluster = \"{CLUSTER}\"\nversion = 1\n")).unwrap();
    let error = Routing::open(folder.file()).err().unwrap().to_string();
    assert!(error.contains("shard-map.toml: slots 0-16383 belong to no shard"), "{error}");
}

#[test]
fn a_bad_file_is_refused_with_its_line_and_the_old_map_serves_on() {
    let old = map_of(3, &["s0", "s1"]);
    let (folder, routing) = opened(&old);
    let next = grown(4, &["s0", "s1"], &["s2"]).to_toml();
    let table: &[(String, &str)] = &[
        (String::new(), "missing field `version`"),
        (next[..next.len() / 2].to_owned(), "line "),
        (next.replace("number = 1", "number = 0"), "line 12: shard s1: number 0 is shard s0's (line 6)"),
        (next.replace("number = 1", "number = 9"), "line 12: shard s1 has number 9"),
        (next.replace("version = 4", "version = 3"), "line 2: version 3 is not greater than 3"),
        (next.replace("version = 4", "version = 2"), "line 2: version 2 is not greater than 3"),
        (next.replace("version", "verzion"), "line 2: unknown field `verzion`"),
    ];
    for (text, expected) in table {
        fs::write(folder.file(), text).unwrap();
        let error = routing.reload_file().unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?}, expected {expected:?}");
        let refusal = routing.status().refusal.expect("the refusal is kept");
        assert_eq!(refusal.reason, error);
        assert_eq!(routing.load().map().as_ref(), &old);
    }
    fs::write(folder.file(), b"\xff\xfe").unwrap();
    assert!(routing.reload_file().is_err(), "no UTF-8");
    fs::remove_file(folder.file()).unwrap();
    assert!(routing.reload_file().is_err(), "no file");

    // The file is what it was: nothing is the matter any more.
    write(&folder.file(), &old);
    assert_eq!(routing.reload_file().unwrap(), Reload::Unchanged { version: 3 });
    assert_eq!(routing.status().refusal, None);

    fs::write(folder.file(), next).unwrap();
    assert_eq!(routing.reload_file().unwrap(), Reload::Replaced { from: 3, to: 4 });
    assert_eq!(routing.load().shards().len(), 3);
    assert_eq!(routing.status().version, 4);
}

#[test]
fn what_a_shard_said_outlives_a_reload_that_says_otherwise() {
    let (folder, routing) = opened(&map_of(1, &["s0", "s1"]));
    routing.learn_not_owners("s0", &[not_owner(7, RELEASED, 2, "s1")]);
    let mut shards = grown(2, &["s0", "s1"], &["s2"]).shards;
    shards.reverse();
    write(&folder.file(), &ShardMap::new(CLUSTER.parse().unwrap(), 2, shards).unwrap());
    routing.reload_file().unwrap();
    assert_eq!(owner_of(&routing, 7), "s1", "the file says s0, the shards said s1");
    assert_eq!(owner_of(&routing, 8), "s0", "of this slot no shard has spoken");
}

/// A common first mistake: one more shard, with slots taken from the others.
#[test]
fn a_map_that_takes_slots_is_refused_until_the_shards_say_that_they_moved() {
    let (folder, routing) = opened(&map_of(1, &["s0", "s1"]));
    let mut shards = grown(2, &["s0", "s1"], &["s2"]).shards;
    shards[0].slots = vec!["8-8191".parse().unwrap()];
    shards[2].slots = vec!["0-7".parse().unwrap()];
    let taking = ShardMap::new(CLUSTER.parse().unwrap(), 2, shards).unwrap();
    write(&folder.file(), &taking);
    let error = routing.reload_file().unwrap_err().to_string();
    for named in ["slots 0-7 belong to shard s0", "shard s2", "only a move"] {
        assert!(error.contains(named), "{error}");
    }
    // Such a map from a node is refused like one from the file.
    let (id, mut offering) = answer("s1", &[]);
    (offering.shard_map, offering.shard_map_version) = (taking.to_toml(), 2);
    assert_eq!(routing.merge_ownership([(id, offering)]).adopted, None);
    assert_eq!((routing.load().map().version, owner_of(&routing, 0).as_str()), (1, "s0"));

    // The correct order: the shard without slots, the move, and then the map that follows the shards.
    write(&folder.file(), &grown(2, &["s0", "s1"], &["s2"]));
    routing.reload_file().unwrap();
    routing.merge_ownership([answer("s2", &[(0, 7, OWNED, 2, "s0")])]);
    write(&folder.file(), &ShardMap::new(taking.cluster, 3, taking.shards.clone()).unwrap());
    assert_eq!(routing.reload_file().unwrap(), Reload::Replaced { from: 2, to: 3 });
    assert_eq!(owner_of(&routing, 0), "s2");
}

#[tokio::test]
async fn a_map_is_judged_as_a_reload_would_and_not_taken() {
    let (folder, routing) = opened(&map_of(1, &["s0", "s1"]));
    let judged = async |map: &ShardMap| {
        let judgement = routing.check(map.to_toml()).await.unwrap();
        judgement.map_err(|error| error.to_string())
    };
    let mut shards = map_of(1, &["s0", "s1"]).shards;
    shards[0].slots = vec!["1-8191".parse().unwrap()];
    shards[1].slots = vec!["0".parse().unwrap(), "8192-16383".parse().unwrap()];
    let moved = ShardMap::new(CLUSTER.parse().unwrap(), 2, shards).unwrap();

    assert_eq!(judged(&map_of(1, &["s0", "s1"])).await, Ok(1), "it says what the map in use says");
    assert_eq!(judged(&map_of(5, &["s0", "s1"])).await, Ok(5));
    assert!(judged(&moved).await.unwrap_err().contains("only a move"));
    routing.merge_ownership([answer("s1", &[(0, 0, OWNED, 2, "s0"), (8192, 16383, OWNED, 1, "")])]);
    assert_eq!(judged(&moved).await, Ok(2));
    let nonsense = routing.check("version = 1\nnonsense".to_owned()).await.unwrap().unwrap_err();
    assert_eq!(nonsense.line(), Some(2));

    let status = routing.status();
    assert_eq!((status.version, status.refusal), (1, None), "nothing was taken, and nothing is reported");
    write(&folder.file(), &moved);
    assert_eq!(routing.reload_file().unwrap(), Reload::Replaced { from: 1, to: 2 });
}

/// Files are replaced in the ways people and machines do it; each is read without a request to do so.
#[tokio::test]
async fn changes_of_the_file_are_taken_in_however_it_is_written() {
    let (folder, routing) = opened(&map_of(1, &["s0"]));
    let tasks = Tasks::new();
    routing.watch(&tasks).unwrap();

    write(&folder.file(), &grown(2, &["s0"], &["s1"]));
    version_becomes(&routing, 2).await;

    let beside = folder.0.join(".shard-map.toml.tmp");
    write(&beside, &grown(3, &["s0"], &["s1"]));
    fs::rename(&beside, folder.file()).unwrap();
    version_becomes(&routing, 3).await;

    // Half of the file first, the rest later: the half is refused, the whole is taken.
    let text = grown(4, &["s0"], &["s1", "s2"]).to_toml();
    fs::write(folder.file(), &text[..text.len() / 2]).unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while routing.status().refusal.is_none() {
        assert!(tokio::time::Instant::now() < until, "half a map is never refused");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(routing.load().map().version, 3);
    fs::write(folder.file(), &text).unwrap();
    version_becomes(&routing, 4).await;
    assert_eq!(routing.status().refusal, None);

    assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
}

/// A ConfigMap: `shard-map.toml -> ..data/shard-map.toml`, `..data -> ..2026_01`, and the second link is swapped.
#[tokio::test]
async fn a_swapped_link_is_a_change() {
    use std::os::unix::fs::symlink;

    let folder = Folder::new();
    let generation = |name: &str, map: &ShardMap| {
        let target = folder.0.join(name);
        fs::create_dir(&target).unwrap();
        write(&target.join("shard-map.toml"), map);
    };
    generation("..2026_01", &map_of(1, &["s0"]));
    symlink("..2026_01", folder.0.join("..data")).unwrap();
    symlink("..data/shard-map.toml", folder.file()).unwrap();
    let routing = Routing::open(folder.file()).unwrap();
    let tasks = Tasks::new();
    routing.watch(&tasks).unwrap();

    generation("..2026_02", &grown(2, &["s0"], &["s1"]));
    symlink("..2026_02", folder.0.join("..data_tmp")).unwrap();
    fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
    version_becomes(&routing, 2).await;
    assert_eq!(tasks.shutdown(Duration::from_secs(5)).await, Ok(()));
}

async fn version_becomes(routing: &Routing, version: u64) {
    let mut changes = routing.subscribe();
    let reached = async {
        while routing.load().map().version != version {
            changes.changed().await.expect("the routing lives");
        }
    };
    let reached = tokio::time::timeout(Duration::from_secs(10), reached).await;
    assert!(reached.is_ok(), "still at version {}: {:?}", routing.load().map().version, routing.status().refusal);
}

#[test]
fn shards_that_claim_one_slot_are_known_until_they_agree() {
    let routing = Routing::fixed(map_of(1, &["s0", "s1"]));
    let (s0, s1) = (answer("s0", &[(0, 8191, OWNED, 1, "")]), answer("s1", &[(8191, 16_383, OWNED, 1, "")]));
    routing.merge_ownership([s0.clone(), s1]);
    assert_eq!(routing.disputed(), ["s0".into(), "s1".into()]);
    routing.merge_ownership([s0, answer("s1", &[(8192, 16_383, OWNED, 1, "")])]);
    assert!(routing.disputed().is_empty());
}

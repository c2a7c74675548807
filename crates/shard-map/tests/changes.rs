//! From one map to the next: what may follow, what differs, and that printing loses nothing.

use shard_map::{ClusterId, Endpoints, Reason, Shard, ShardMap, Slot, SlotRange};

const CLUSTER: &str = "0190d7c0-0000-7000-8000-00000000c1a5";

fn shard(id: &str, number: u16, slots: &[&str]) -> Shard {
    let slots = slots.iter().map(|range| range.parse().expect("a range")).collect();
    Shard { id: id.to_owned(), number, nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)], slots }
}

fn map(version: u64, shards: Vec<Shard>) -> ShardMap {
    ShardMap::new(CLUSTER.parse().expect("an id"), version, shards).expect("a valid map")
}

fn two() -> ShardMap {
    map(3, vec![shard("s0", 0, &["0-8191"]), shard("s1", 1, &["8192-16383"])])
}

#[test]
fn printing_loses_nothing() {
    let mut scattered = two().shards;
    scattered[0].slots = vec!["5".parse().unwrap(), "100-8191".parse().unwrap(), "0-4".parse().unwrap()];
    scattered[1].slots.push("6-99".parse().unwrap());
    scattered[1].nodes.push("http://[::1]:7501".to_owned());
    scattered.push(shard("waits", 4095, &[]));
    for map in [two(), map(u64::try_from(i64::MAX).unwrap(), scattered)] {
        assert_eq!(ShardMap::parse(&map.to_toml()).unwrap(), map);
    }
    let expected = "cluster = \"0190d7c0-0000-7000-8000-00000000c1a5\"\nversion = 3\n\n[[shard]]\nid = \"s0\"\nnumber = 0\nnodes = [\"http://127.0.0.1:7500\"]\nslots = [\"0-8191\"]\n";
    assert!(two().to_toml().starts_with(expected), "operators edit this form");
}

#[test]
fn the_version_must_grow() {
    let old = two();
    assert_eq!(old.check_successor(&map(4, old.shards.clone())), Ok(()));
    for version in [1, 2, 3] {
        let error = old.check_successor(&map(version, old.shards.clone())).unwrap_err();
        assert!(matches!(error.problems[0].reason, Reason::VersionNotGreater { current: 3, .. }), "{error}");
    }
}

#[test]
fn a_shard_keeps_its_number_and_no_other_shard_gets_it() {
    let old = two();
    let renumbered = map(4, vec![shard("s0", 2, &["0-8191"]), shard("s1", 1, &["8192-16383"])]);
    let error = old.check_successor(&renumbered).unwrap_err();
    assert!(
        error.to_string().contains("shard s0 has number 2") && error.to_string().contains("its number is 0"),
        "{error}"
    );

    let renamed = map(4, vec![shard("s0", 0, &["0-8191"]), shard("s1", 3, &["8192-16383"]), shard("s2", 1, &[])]);
    let error = old.check_successor(&renamed).unwrap_err();
    assert!(error.to_string().contains("shard s2 has number 1, which was shard s1's"), "{error}");

    let grown = map(4, vec![shard("s2", 2, &[]), shard("s0", 0, &["0-8191"]), shard("s1", 1, &["8192-16383"])]);
    assert_eq!(old.check_successor(&grown), Ok(()));
}

#[test]
fn a_refused_successor_names_the_line() {
    let old = two();
    let text = old.to_toml();
    let successor = |text: &str| ShardMap::parse_successor(text, &old, |_| None);
    assert_eq!(successor(&text), Ok(None));
    assert_eq!(successor(&format!("# a comment\n{text}")), Ok(None));

    let stale = text.replace(":7500", ":7599");
    let error = successor(&stale).unwrap_err().to_string();
    assert_eq!(error, "line 2: version 3 is not greater than 3, the version in use, and the content differs");

    let renumbered = text.replace("version = 3", "version = 4").replace("number = 1", "number = 9");
    let error = successor(&renumbered).unwrap_err();
    assert_eq!(error.line(), Some(12), "{error}");

    let other = text.replace(CLUSTER, &ClusterId::generate().to_string()).replace("version = 3", "version = 4");
    let error = successor(&other).unwrap_err();
    assert_eq!(error.line(), Some(1), "{error}");
    assert!(matches!(error.problems[0].reason, Reason::OtherCluster { .. }), "{error}");

    let newer = successor(&stale.replace("version = 3", "version = 4")).unwrap().unwrap();
    assert_eq!(newer.version, 4);
}

#[test]
fn a_slot_changes_shard_by_a_move_and_not_by_a_map() {
    let old = two();
    // A common first mistake: one more shard, with slots taken from the others.
    let mut shards = vec![shard("s0", 0, &["0-5000"]), shard("s1", 1, &["8192-12000"])];
    shards.push(shard("s2", 2, &["5001-8191", "12001-16383"]));
    let text = map(4, shards.clone()).to_toml();
    let expected = "line 20: slots 5001-8191 belong to shard s0, and the map gives them to shard s2: only a move changes the shard of \
                    a slot. Leave them with shard s0; a new shard begins with slots = []";
    let error = ShardMap::parse_successor(&text, &old, |_| None).unwrap_err().to_string();
    assert!(error.starts_with(expected) && error.contains("slots 12001-16383 belong to shard s1"), "{error}");
    assert!(old.check_successor(&map(4, shards)).is_err());

    // After the move the shards report the new owner, and a map may follow.
    let moved = |slot: Slot| {
        Some(match slot.index() {
            0..=5000 => "s0",
            8192..=12_000 => "s1",
            _ => "s2",
        })
    };
    assert!(ShardMap::parse_successor(&text, &old, moved).unwrap().is_some());
    // A map that lags behind the move is outdated, but not wrong.
    assert!(ShardMap::parse_successor(&map(4, old.shards.clone()).to_toml(), &old, moved).unwrap().is_some());
    // A single slot that no shard handed over is enough for a refusal.
    let error =
        ShardMap::parse_successor(&text, &old, |slot| if slot.index() == 6000 { Some("s0") } else { moved(slot) });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("slot 6000 belongs to shard s0, and the map gives it to shard s2"), "{error}");
}

#[test]
fn a_diff_says_which_slots_go_where() {
    let old = two();
    assert!(old.diff(&old).is_empty());
    assert!(old.diff(&map(9, old.shards.clone())).is_empty(), "the version is not content");

    let mut shards = vec![shard("s1", 1, &["8192-16000", "0-9"]), shard("s2", 2, &["10-19", "16001-16383"])];
    shards.push(shard("s0", 0, &["20-8191"]));
    shards[0].nodes = vec!["http://elsewhere:1".to_owned()];
    let diff = old.diff(&map(4, shards));
    let moves: Vec<_> = diff.moves.iter().map(|m| format!("{} {}>{}", m.slots, m.from, m.to)).collect();
    assert_eq!(moves, ["0-9 s0>s1", "10-19 s0>s2", "16001-16383 s1>s2"]);
    assert_eq!(diff.slots_moved(), 10 + 10 + 383);
    assert_eq!((diff.added, diff.removed), (vec!["s2".to_owned()], vec![]));
    let endpoints = Endpoints {
        shard: "s1".to_owned(),
        old: vec!["http://127.0.0.1:7501".to_owned()],
        new: vec!["http://elsewhere:1".to_owned()],
    };
    assert_eq!(diff.endpoints, [endpoints]);
}

#[test]
fn a_diff_names_shards_that_are_gone() {
    let one = map(4, vec![Shard { slots: vec![SlotRange::ALL], ..shard("s1", 1, &[]) }]);
    let diff = two().diff(&one);
    assert_eq!(diff.removed, ["s0"]);
    assert_eq!(diff.slots_moved(), 8192);
}

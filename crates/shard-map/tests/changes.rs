//! From one map to the next: what may follow, what differs, and that printing loses nothing.

use shard_map::{Endpoints, Reason, Shard, ShardMap, SlotRange};

fn shard(id: &str, number: u16, slots: &[&str]) -> Shard {
    let slots = slots.iter().map(|range| range.parse().expect("a range")).collect();
    Shard { id: id.to_owned(), number, nodes: vec![format!("http://127.0.0.1:{}", 7500 + number)], slots }
}

fn map(version: u64, shards: Vec<Shard>) -> ShardMap {
    ShardMap::new(version, shards).expect("a valid map")
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
    let expected = "version = 3\n\n[[shard]]\nid = \"s0\"\nnumber = 0\nnodes = [\"http://127.0.0.1:7500\"]\nslots = [\"0-8191\"]\n";
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
fn a_shard_keeps_its_number_and_nobody_else_gets_it() {
    let old = two();
    let renumbered = map(4, vec![shard("s0", 2, &["0-8191"]), shard("s1", 1, &["8192-16383"])]);
    let error = old.check_successor(&renumbered).unwrap_err();
    assert!(error.to_string().contains("shard s0 has number 2") && error.to_string().contains("its is 0"), "{error}");

    let renamed = map(4, vec![shard("s0", 0, &["0-8191"]), shard("s2", 1, &["8192-16383"])]);
    let error = old.check_successor(&renamed).unwrap_err();
    assert!(error.to_string().contains("shard s2 has number 1, which was shard s1's"), "{error}");

    let grown = map(4, vec![shard("s2", 2, &["0-8191"]), shard("s0", 0, &[]), shard("s1", 1, &["8192-16383"])]);
    assert_eq!(old.check_successor(&grown), Ok(()));
}

#[test]
fn a_refused_successor_names_the_line() {
    let old = two();
    let text = old.to_toml();
    assert_eq!(ShardMap::parse_successor(&text, &old), Ok(None));
    assert_eq!(ShardMap::parse_successor(&format!("# a comment\n{text}"), &old), Ok(None));

    let stale = text.replace("0-8191", "0-8000").replace("8192-", "8001-");
    let error = ShardMap::parse_successor(&stale, &old).unwrap_err().to_string();
    assert_eq!(error, "line 1: version 3 is not greater than 3, the version in use, and the content differs");

    let renumbered = text.replace("version = 3", "version = 4").replace("number = 1", "number = 9");
    let error = ShardMap::parse_successor(&renumbered, &old).unwrap_err();
    assert_eq!(error.line(), Some(11), "{error}");

    let newer = ShardMap::parse_successor(&stale.replace("version = 3", "version = 4"), &old).unwrap().unwrap();
    assert_eq!(newer.version, 4);
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

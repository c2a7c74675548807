//! Every way a map can be wrong, and what the operator reads.

use shard_map::{MAX_SHARD_NUMBER, Reason, ShardMap};

/// A good map of two shards; the lines are what the refusals below count.
const GOOD: &str = r#"cluster = "0190d7c0-0000-7000-8000-00000000c1a5"
version = 7

[[shard]]
id = "s0"
number = 0
nodes = ["http://127.0.0.1:7500"]
slots = ["0-8191"]

[[shard]]
id = "s1"
number = 1
nodes = [
    "http://node-1.example.com:7500",
    "http://[::1]:7501",
]
slots = ["8192-16382", "16383"]
"#;

/// Changes one place of the good map and returns the refusal.
fn refusal(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from:?} must occur once in the good map");
    ShardMap::parse(&GOOD.replace(from, to)).expect_err(to).to_string()
}

#[test]
fn a_good_map_is_taken() {
    let map = ShardMap::parse(GOOD).unwrap();
    assert_eq!(map.version, 7);
    assert_eq!(map.shards[1].nodes, ["http://node-1.example.com:7500", "http://[::1]:7501"]);
    assert_eq!(map.shards[1].slots.len(), 1, "neighbouring ranges are one");
}

#[test]
fn every_refusal_names_its_line_and_reason() {
    let longest = "x".repeat(65);
    let table: &[(&str, &str, &str)] = &[
        // The file as such.
        ("version = 7", "version = ", "line 2: "),
        ("version = 7\n", "", "missing field `version`"),
        (
            "version = 7",
            "version = 7\nowner = \"me\"",
            "line 3: unknown field `owner`, expected one of `cluster`, `version`, `shard`",
        ),
        ("version = 7", "version = 7\nversion = 8", "line 3: duplicate key"),
        ("version = 7", "version = \"7\"", "line 2: invalid type: string \"7\""),
        ("number = 1", "number = 1\nweight = 3", "line 13: unknown field `weight`"),
        ("number = 1\n", "", "line 10: missing field `number`"),
        ("id = \"s1\"", "id = \"s1", "line 11: "),
        ("slots = [\"0-8191\"]", "slots = \"0-8191\"", "line 8: invalid type"),
        ("slots = [\"0-8191\"]", "slots = [5]", "line 8: invalid type"),
        // The version.
        ("version = 7", "version = 0", "line 2: version 0 is below 1"),
        ("version = 7", "version = -7", "line 2: version -7 is below 1"),
        ("version = 7", "version = 7.5", "line 2: invalid type: floating point"),
        // The cluster.
        ("cluster = \"0190d7c0-0000-7000-8000-00000000c1a5\"\n", "", "the map names no cluster: add cluster ="),
        ("0190d7c0-0000-7000-8000-00000000c1a5", "mine", "line 1: cluster: \"mine\" is not a cluster id"),
        ("0190d7c0-0000-7000-8000-00000000c1a5", "00000000-0000-0000-0000-000000000000", "not all zeros"),
        // Identities.
        ("id = \"s1\"", "id = \"s0\"", "line 11: shard id \"s0\" is taken (line 5)"),
        ("id = \"s1\"", "id = \"\"", "line 11: shard id \"\" is not"),
        ("id = \"s1\"", "id = \"a/b\"", "line 11: shard id \"a/b\" is not 1 to 64 characters of"),
        ("id = \"s1\"", &format!("id = \"{longest}\""), "line 11: shard id"),
        ("number = 1", "number = 0", "line 12: shard s1: number 0 is shard s0's (line 6)"),
        ("number = 1", "number = 4096", "line 12: shard s1: number 4096 is not in 0 to 4095"),
        ("number = 1", "number = -1", "line 12: shard s1: number -1 is not in 0 to 4095"),
        // Nodes.
        ("[\"http://127.0.0.1:7500\"]", "[]", "line 7: shard s0 has no nodes"),
        (
            "http://127.0.0.1:7500",
            "127.0.0.1:7500",
            "line 7: shard s0: node \"127.0.0.1:7500\" does not begin with http://",
        ),
        ("http://127.0.0.1:7500", "https://127.0.0.1:7500", "does not begin with http://"),
        ("http://127.0.0.1:7500", "http://127.0.0.1", "names no port"),
        ("http://127.0.0.1:7500", "http://127.0.0.1:0", "does not end in a port"),
        ("http://127.0.0.1:7500", "http://127.0.0.1:70000", "does not end in a port"),
        ("http://127.0.0.1:7500", "http://127.0.0.1:7500/", "does not end in a port"),
        ("http://127.0.0.1:7500", "http://:7500", "has no host"),
        ("http://127.0.0.1:7500", "http://[::zz]:7500", "has no host"),
        ("http://127.0.0.1:7500", "http://me@host:7500", "has no host"),
        (
            "http://[::1]:7501",
            "http://127.0.0.1:7500",
            "line 15: shard s1: node \"http://127.0.0.1:7500\" is shard s0's (line 7)",
        ),
        // Slots.
        ("\"0-8191\"", "\"0-8192\"", "line 17: slot 8192 belongs to shard s1 and to shard s0 (line 8)"),
        ("\"8192-16382\"", "\"8000-16382\"", "line 17: slots 8000-8191 belong to shard s1 and to shard s0 (line 8)"),
        ("\"16383\"", "\"16000-16383\"", "line 17: slots 16000-16382 belong to shard s1 and to shard s1 (line 17)"),
        ("\"8192-16382\"", "\"8193-16382\"", "slot 8192 belongs to no shard"),
        ("\"8192-16382\", \"16383\"", "\"9000-9999\"", "slots 8192-8999, 10000-16383 belong to no shard"),
        (
            "\"16383\"",
            "\"16384\"",
            "line 17: shard s1: slots \"16384\": there is no slot 16384: slots are 0 to 16383",
        ),
        ("\"0-8191\"", "\"8191-0\"", "line 8: shard s0: slots \"8191-0\": ends before it begins"),
        ("\"0-8191\"", "\"all\"", "line 8: shard s0: slots \"all\": is neither a slot"),
    ];
    for (from, to, expected) in table {
        let refusal = refusal(from, to);
        assert!(refusal.contains(expected), "{to:?} was refused with {refusal:?}, expected {expected:?}");
    }
}

#[test]
fn all_that_is_wrong_is_said_at_once_in_order_of_lines() {
    let broken = GOOD
        .replace("number = 1", "number = 5000")
        .replace("\"0-8191\"", "\"0-8192\"")
        .replace("version = 7", "version = 0");
    let error = ShardMap::parse(&broken).unwrap_err();
    let lines: Vec<_> = error.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [Some(2), Some(12), Some(17)]);
    assert_eq!(error.line(), Some(2));
}

#[test]
fn an_overlap_is_reported_once_for_each_range_it_touches() {
    let three =
        GOOD.replace("\"0-8191\"", "\"0-99\", \"200-299\", \"300-8191\"").replace("\"8192-16382\"", "\"50-16382\"");
    let error = ShardMap::parse(&three).unwrap_err().to_string();
    for overlap in ["slots 50-99 belong to shard s1", "slots 200-299 belong", "slots 300-8191 belong"] {
        assert!(error.contains(overlap), "{error}");
    }
}

#[test]
fn after_a_bad_range_its_slots_are_not_reported_as_missing() {
    let error = ShardMap::parse(&GOOD.replace("\"0-8191\"", "\"0_8191\"")).unwrap_err();
    assert_eq!(error.problems.len(), 1);
    assert!(matches!(error.problems[0].reason, Reason::Range { .. }));
}

#[test]
fn a_file_cut_short_anywhere_is_refused_and_never_panics() {
    let whole = ShardMap::parse(GOOD).unwrap();
    for end in (0..GOOD.trim_end().len()).filter(|end| GOOD.is_char_boundary(*end)) {
        assert!(ShardMap::parse(&GOOD[..end]).is_err(), "cut after {end} bytes");
    }
    assert_eq!(ShardMap::parse(GOOD.trim_end()).unwrap(), whole);
    for garbage in [
        "",
        "\0",
        "\u{feff}",
        "shard = 3",
        "[[shard]]",
        "version = 1",
        "[shard]\n[[shard]]",
        "version = 1\nshard = []",
    ] {
        assert!(ShardMap::parse(garbage).is_err(), "{garbage:?}");
    }
}

#[test]
fn a_long_list_of_problems_stays_readable() {
    let shards: String = (0..=MAX_SHARD_NUMBER)
        .map(|n| format!("[[shard]]\nid = \"s{n}\"\nnumber = 9999\nnodes = []\nslots = []\n"))
        .collect();
    let error = ShardMap::parse(&format!("version = 1\n{shards}")).unwrap_err().to_string();
    assert!(error.len() < 2000 && error.contains("more"), "{error}");
}

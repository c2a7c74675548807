//! Compares nodes with the map and with each other, routers with the map, and remembered marks with present positions.

use std::{collections::BTreeSet, time::Duration};

use identity::{Disagreement, Expected, Mark, time::Judgement};
use shard_map::Shard;

use super::{
    ask::{ClusterSeen, NodeAnswer, NodeSeen, Override, RouterAnswer, RouterSeen},
    finding::{Finding, FindingList, FindingVerdict},
    slots,
};

/// Two clocks that differ by more than this are reported. Nodes refuse requests only from a difference of `clock.max_difference_ms` on.
const CLOCK_BOUND_MS: u16 = 1000;

/// Compares every fact of every place.
pub fn compare(seen: &ClusterSeen) -> Vec<Finding> {
    let mut findings = FindingList::default();
    for node in &seen.nodes {
        compare_node(seen, node, &mut findings);
    }
    for shard in &seen.map.shards {
        compare_shard(seen, shard, &mut findings);
    }
    for router in &seen.routers {
        compare_router(seen, router, &mut findings);
    }
    findings.extend(slots::compare(seen));
    compare_clocks(seen, &mut findings);
    unknown_shards(seen, &mut findings);
    findings.into_list()
}

// === nodes ===

fn compare_node(seen: &ClusterSeen, node: &NodeSeen, findings: &mut FindingList) {
    let place = node.place();
    let answer = match &node.answer {
        Ok(answer) => answer,
        Err(reason) => {
            let remedy = "start the node, or correct its address in the map";
            return findings.add(no_answer(&place, reason, remedy));
        }
    };
    findings.add(Finding::agrees(&place, "answer", "an answer"));
    compare_identity(seen, node, answer, findings);
    for (verdict, fact) in &answer.facts {
        findings.add(Finding::new(&place, *verdict, fact.clone()));
    }
    match &answer.ownership {
        Ok(ownership) => {
            let held = u64::try_from(ownership.map_version).unwrap_or_default();
            findings.add(map_version(&place, seen, held, "the newest map it was given"));
        }
        Err(reason) => {
            let remedy = "see the other facts of this node";
            let fact = Disagreement::new("slots", "a list of slots", reason, remedy);
            findings.add(Finding::new(&place, FindingVerdict::Disagrees, fact));
        }
    }
}

fn no_answer(place: &str, reason: &str, remedy: &str) -> Finding {
    Finding::new(place, FindingVerdict::Disagrees, Disagreement::new("answer", "an answer", reason, remedy))
}

fn compare_identity(seen: &ClusterSeen, node: &NodeSeen, answer: &NodeAnswer, findings: &mut FindingList) {
    let place = node.place();
    let number = seen.map.index_of(&node.shard).map(|index| seen.map.shard(index).number);
    let expected = Expected { cluster: seen.map.cluster, shard: node.shard.clone(), number };
    let mut disagreements = match &answer.identity {
        Some(identity) => expected.compare(identity, &node.url),
        None if answer.uninitialised => {
            let remedy = "initialise it if it is new (`shard-node init`), restore it if it held a ledger";
            vec![Disagreement::new("database", "a shard", "a database that was never initialised", remedy)]
        }
        None => {
            let remedy = "see the node's log; the node resumes by itself once it reaches its database";
            vec![Disagreement::new("database", "a shard", "a node that has not reached its database", remedy)]
        }
    };
    if let Some(identity) = &answer.identity {
        let known = |fact: &str| disagreements.iter().any(|disagreement| disagreement.fact == fact);
        let more: Vec<_> = answer.refused.iter().filter(|refused| !known(&refused.fact)).cloned().collect();
        disagreements.extend(more);
        let facts = [
            ("cluster", identity.cluster.to_string()),
            ("shard", identity.shard.clone()),
            ("shard number", identity.number.to_string()),
            ("routing", format!("{} slots with hash seed {:#x}", identity.routing.slots, identity.routing.hash_seed)),
        ];
        findings.compared(&place, &facts, disagreements);
    } else {
        findings.compared(&place, &[], disagreements);
    }
}

/// Map versions differ briefly after each change of the map; no request is misrouted because of it.
fn map_version(place: &str, seen: &ClusterSeen, found: u64, what: &str) -> Finding {
    let expected = seen.map.version;
    if found == expected {
        return Finding::agrees(place, "map version", found);
    }
    let remedy = if found > expected {
        format!(
            "{} is older than a map in use: fetch the newer one (`shardctl map show`) before the next change",
            seen.source
        )
    } else {
        "it follows within seconds; if it does not, look for a refused map and for routers that have another file"
            .to_owned()
    };
    let fact = Disagreement::new(
        "map version",
        format!("{expected}, as {}", seen.source),
        format!("{found}, {what}"),
        remedy,
    );
    Finding::new(place, FindingVerdict::Warning, fact)
}

// === shards ===

fn compare_shard(seen: &ClusterSeen, shard: &Shard, findings: &mut FindingList) {
    let place = format!("shard {}", shard.id);
    compare_servers(seen, shard, &place, findings);
    compare_position(seen, shard, &place, findings);
}

/// Nodes of one shard that reach different servers use two databases, and both databases would take payments.
fn compare_servers(seen: &ClusterSeen, shard: &Shard, place: &str, findings: &mut FindingList) {
    let mut servers = Vec::new();
    for (node, answer) in seen.answers(&shard.id).filter(|(_, answer)| answer.server_started_at_us != 0) {
        let system = answer.fact("system identifier").unwrap_or("unknown");
        let started = telemetry::clock::format_rfc3339(answer.server_started_at_us);
        servers.push((
            node.url.as_str(),
            format!("database {} of system {system} started at {started}", answer.database_oid),
        ));
    }
    let distinct: BTreeSet<&str> = servers.iter().map(|(_, server)| server.as_str()).collect();
    match (distinct.len(), servers.first()) {
        (0, _) | (_, None) => {}
        (1, Some((_, server))) => findings.add(Finding::agrees(place, "database server", server)),
        _ => {
            let found: Vec<String> = servers.iter().map(|(url, server)| format!("{url} has {server}")).collect();
            let remedy = "two databases under one shard: find out which one has everything (the higher position), and stop the node of the \
                          other before it takes payments";
            let fact = Disagreement::new("database server", "one server under all nodes", found.join("; "), remedy);
            findings.add(Finding::new(place, FindingVerdict::Disagrees, fact));
        }
    }
}

/// No participant may remember a higher mark of a shard than the shard has.
fn compare_position(seen: &ClusterSeen, shard: &Shard, place: &str, findings: &mut FindingList) {
    let marks: Vec<Mark> = seen
        .answers(&shard.id)
        // The position of another shard proves nothing about this one.
        .filter(|(_, answer)| answer.identity.as_ref().is_some_and(|identity| identity.shard == shard.id))
        .map(|(_, answer)| answer.mark)
        .collect();
    let mut remembered = Vec::new();
    for node in &seen.nodes {
        let Ok(answer) = &node.answer else { continue };
        let mark = answer.marks.of(shard.number);
        // The routers tell a shard the shard's own mark, and the shard reports it in its answer.
        let holder = if node.shard == shard.id { "a router".to_owned() } else { format!("shard {}", node.shard) };
        remembered.push((mark, holder));
    }
    // A node that does not commit looks at the database only once a second, so one up-to-date node is enough.
    let behind = |acknowledged: Mark| marks.iter().all(|mark| mark.is_behind(acknowledged));
    let Some(newest) = marks.iter().copied().reduce(Mark::merged) else { return };
    let lost =
        remembered.iter().filter(|(mark, _)| behind(*mark)).find_map(|(mark, holder)| newest.compare(*mark, holder));
    match lost {
        Some(fact) => findings.add(Finding::new(place, FindingVerdict::Disagrees, fact)),
        None => findings.add(Finding::agrees(place, "position", newest)),
    }
}

/// Reports shards that other shards know and the map lacks. These shards hold, or held, a part of the money.
fn unknown_shards(seen: &ClusterSeen, findings: &mut FindingList) {
    let removed = || seen.map.removed.iter();
    let in_map: BTreeSet<u16> =
        seen.map.shards.iter().map(|shard| shard.number).chain(removed().map(|shard| shard.number)).collect();
    for shard in &seen.map.shards {
        for (node, answer) in seen.answers(&shard.id) {
            for (number, mark) in answer.marks.iter().filter(|(number, _)| !in_map.contains(number)) {
                let remedy =
                    "unless the shard was removed from the cluster on purpose, add it to the map with its number";
                let fact = Disagreement::new(
                    format!("shard number {number}"),
                    "a shard of the map",
                    format!("known with {mark}"),
                    remedy,
                );
                findings.add(Finding::new(&node.place(), FindingVerdict::Warning, fact));
            }
            let Ok(ownership) = &answer.ownership else { continue };
            let peers: BTreeSet<&str> = ownership.ranges.iter().map(|listed| listed.peer.as_str()).collect();
            for peer in peers.into_iter().filter(|peer| {
                !peer.is_empty() && seen.map.index_of(peer).is_none() && removed().all(|shard| shard.id != *peer)
            }) {
                let remedy = "unless the shard was removed from the cluster on purpose, add it to the map";
                let fact = Disagreement::new(
                    format!("shard {peer}"),
                    "a shard of the map",
                    "the other end of a move",
                    remedy,
                );
                findings.add(Finding::new(&node.place(), FindingVerdict::Warning, fact));
            }
        }
    }
}

// === routers ===

fn compare_router(seen: &ClusterSeen, router: &RouterSeen, findings: &mut FindingList) {
    let place = format!("router {}", router.url);
    let RouterAnswer { status, reads, writes, cluster, map_version: version, refused, overrides, degraded } =
        match &router.answer {
            Ok(answer) => answer,
            Err(reason) => {
                return findings.add(no_answer(&place, reason, "start the router, or correct --admin-url"));
            }
        };
    findings.add(Finding::agrees(&place, "answer", "an answer"));
    let mut expect = |fact: &str, expected: &str, found: &str, remedy: &str| {
        let verdict = if expected == found { FindingVerdict::Agrees } else { FindingVerdict::Disagrees };
        findings.add(Finding::new(&place, verdict, Disagreement::new(fact, expected, found, remedy)));
    };
    expect("status", "ready", status, "a router that starts or drains takes no requests: wait, or start it again");
    expect("reads", "all", reads, "see the shards below and their nodes");
    expect("writes", "all", writes, "see the shards below and their nodes");
    let remedy =
        format!("the router serves another cluster than {}: correct its map.path, or --admin-url", seen.source);
    expect("cluster", &seen.map.cluster.to_string(), cluster, &remedy);
    let remedy = "correct the file (`shardctl map check FILE` names what is wrong); the map in use stays in use";
    expect("map file", "accepted", refused.as_deref().map_or("accepted", |reason| reason), remedy);
    findings.add(map_version(&place, seen, *version, "the map in use"));
    for Override { slots, in_map, owner } in overrides {
        let remedy = "requests go to the owner that the shards report: publish a map that names it";
        let fact = Disagreement::new(
            format!("slots {slots}"),
            format!("{owner}, as the shards say"),
            format!("{in_map} in its map"),
            remedy,
        );
        findings.add(Finding::new(&place, FindingVerdict::Warning, fact));
    }
    for shard in &seen.map.shards {
        let fact = format!("shard {}", shard.id);
        match degraded.iter().find(|(id, _)| *id == shard.id) {
            None => findings.add(Finding::agrees(&place, &fact, "served")),
            Some((_, reason)) => {
                let remedy = "see the nodes of this shard";
                findings.add(Finding::new(
                    &place,
                    FindingVerdict::Disagrees,
                    Disagreement::new(fact, "served", reason, remedy),
                ));
            }
        }
    }
}

// === clocks ===

/// A node compares its clock with those of its database and the routers. This comparison adds the machine of
/// `shardctl`, and nodes that no router reaches.
fn compare_clocks(seen: &ClusterSeen, findings: &mut FindingList) {
    const FACT: &str = "clock beside the other nodes'";
    let answers = seen.nodes.iter().filter_map(|node| Some((node.place(), node.answer.as_ref().ok()?.clock.clone())));
    let clocks: Vec<_> = answers.collect();
    let all: Vec<_> = clocks.iter().map(|(_, clock)| clock.clone()).collect();
    let middle_us = Judgement::of(&all, Duration::from_millis(CLOCK_BOUND_MS.into())).middle_ahead_us;
    for (place, clock) in clocks {
        let off_us = clock.ahead_us.saturating_sub(middle_us);
        let certain_us = off_us.saturating_abs().saturating_sub(clock.uncertainty_us);
        let (bound, found) = (format!("at most {} ms apart", CLOCK_BOUND_MS), format!("{} ms", off_us / 1000));
        let verdict = if certain_us > 1000 * i64::from(CLOCK_BOUND_MS) {
            FindingVerdict::Warning
        } else {
            FindingVerdict::Agrees
        };
        let fact = Disagreement::new(FACT, bound, found, "set the clocks of these machines (NTP)");
        findings.add(Finding::new(&place, verdict, fact));
    }
}

#[cfg(test)]
pub mod tests {
    use identity::{Marks, ShardIdentity, shard::RoutingFacts, time::OtherClock};
    use shard_map::{ClusterId, ShardMap, SlotRange};

    use super::*;
    use crate::doctor::ask::{ListedSlots, MapSource, Ownership, SlotState};

    const HOUR_US: i64 = 3_600_000_000;

    /// A consistent cluster with one node for each shard and one router.
    pub fn seen_of(ids: &[&str]) -> ClusterSeen {
        let ranges = SlotRange::split_evenly(u16::try_from(ids.len()).unwrap());
        let shards = ids.iter().zip(0_u16..).zip(ranges).map(|((id, number), range)| Shard {
            id: (*id).to_owned(),
            number,
            nodes: vec![format!("http://{id}:1")],
            slots: vec![range],
        });
        let map = ShardMap::new(ClusterId::generate(), 1, shards.collect()).unwrap();
        let nodes = map.shards.iter().map(|shard| NodeSeen {
            shard: shard.id.clone(),
            url: shard.nodes[0].clone(),
            answer: Ok(NodeAnswer {
                identity: Some(ShardIdentity {
                    cluster: map.cluster,
                    shard: shard.id.clone(),
                    number: shard.number,
                    routing: RoutingFacts::OWN,
                }),
                uninitialised: false,
                refused: Vec::new(),
                facts: vec![
                    (FindingVerdict::Agrees, Disagreement::new("system identifier", 7, 7, "")),
                    (FindingVerdict::Agrees, Disagreement::new("fsync", "on", "on", "")),
                ],
                marks: Marks::default(),
                mark: mark(100),
                clock: OtherClock { owner: String::new(), ahead_us: 0, uncertainty_us: 100 },
                server_started_at_us: 1,
                database_oid: 1,
                ownership: Ok(Ownership {
                    ranges: vec![ListedSlots {
                        slots: shard.slots[0],
                        state: SlotState::Owned,
                        epoch: 1,
                        peer: String::new(),
                    }],
                    map_version: 1,
                }),
            }),
        });
        let (nodes, cluster) = (nodes.collect(), map.cluster.to_string());
        let router = RouterAnswer {
            status: "ready".to_owned(),
            reads: "all".to_owned(),
            writes: "all".to_owned(),
            cluster,
            map_version: 1,
            refused: None,
            overrides: Vec::new(),
            degraded: Vec::new(),
        };
        let routers = vec![RouterSeen { url: "http://r:1".to_owned(), answer: Ok(router) }];
        ClusterSeen { map, source: MapSource::File("map.toml".to_owned()), nodes, routers }
    }

    pub fn answer(node: &mut NodeSeen) -> &mut NodeAnswer {
        node.answer.as_mut().unwrap()
    }

    fn router(seen: &mut ClusterSeen) -> &mut RouterAnswer {
        seen.routers[0].answer.as_mut().unwrap()
    }

    fn mark(position: i64) -> Mark {
        Mark { incarnation: 1, timeline: 1, position, ..Mark::default() }
    }

    fn second_node(seen: &mut ClusterSeen) -> &mut NodeAnswer {
        let mut node = seen.nodes[0].clone();
        node.url = "http://s0b:1".to_owned();
        seen.nodes.push(node);
        answer(seen.nodes.last_mut().unwrap())
    }

    #[test]
    fn a_clean_cluster_agrees_in_everything() {
        let mut seen = seen_of(&["s0", "s1"]);
        // A second node on the same server, slightly behind.
        second_node(&mut seen).mark = mark(90);
        for node in &mut seen.nodes {
            answer(node).marks = [(0, mark(100)), (1, mark(80))].into_iter().collect();
        }
        let findings = compare(&seen);
        let wrong: Vec<_> = findings.iter().filter(|finding| finding.verdict != FindingVerdict::Agrees).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        for fact in
            ["cluster", "fsync", "database server", "position", "map version", "map file", "owner of each slot"]
        {
            assert!(findings.iter().any(|finding| finding.fact == fact), "{fact} is not compared");
        }
    }

    #[test]
    fn each_disagreement_is_named_at_its_place() {
        use FindingVerdict::{Disagrees, Warning};
        type Change = fn(&mut ClusterSeen);
        /// Place, fact, verdict.
        type Named = (&'static str, &'static str, FindingVerdict);
        let cases: [(&str, Change, &[Named]); 20] = [
            (
                "a node is down",
                |seen| seen.nodes[1].answer = Err("refused".to_owned()),
                &[("shard s1 at http://s1:1", "answer", Disagrees)],
            ),
            (
                "a node of another cluster",
                |seen| answer(&mut seen.nodes[0]).identity.as_mut().unwrap().cluster = ClusterId::generate(),
                &[("shard s0 at http://s0:1", "cluster", Disagrees)],
            ),
            (
                "another number",
                |seen| answer(&mut seen.nodes[0]).identity.as_mut().unwrap().number = 9,
                &[("shard s0 at http://s0:1", "shard number", Disagrees)],
            ),
            (
                "an empty database",
                |seen| {
                    let node = answer(&mut seen.nodes[0]);
                    (node.identity, node.uninitialised) = (None, true);
                },
                &[("shard s0 at http://s0:1", "database", Disagrees)],
            ),
            (
                "what the node itself finds",
                |seen| {
                    answer(&mut seen.nodes[0]).facts[1] = (Disagrees, Disagreement::new("fsync", "on", "off", "r"))
                },
                &[("shard s0 at http://s0:1", "fsync", Disagrees)],
            ),
            (
                "what the node refuses its caller for",
                |seen| answer(&mut seen.nodes[0]).refused = vec![Disagreement::new("timeline", 2, 1, "r")],
                &[("shard s0 at http://s0:1", "timeline", Disagrees)],
            ),
            (
                "slots that cannot be listed",
                |seen| answer(&mut seen.nodes[0]).ownership = Err("unavailable".to_owned()),
                &[("shard s0 at http://s0:1", "slots", Disagrees)],
            ),
            (
                "two servers under one shard",
                |seen| second_node(seen).server_started_at_us = 2,
                &[("shard s0", "database server", Disagrees)],
            ),
            (
                "two databases of one server under one shard",
                |seen| second_node(seen).database_oid = 2,
                &[("shard s0", "database server", Disagrees)],
            ),
            (
                "two systems under one shard",
                |seen| second_node(seen).facts[0].1.found = "8".to_owned(),
                &[("shard s0", "database server", Disagrees)],
            ),
            (
                "a router remembers more",
                |seen| answer(&mut seen.nodes[0]).marks = [(0, mark(101))].into_iter().collect(),
                &[("shard s0", "position", Disagrees)],
            ),
            (
                "another shard remembers more",
                |seen| answer(&mut seen.nodes[1]).marks = [(0, mark(101))].into_iter().collect(),
                &[("shard s0", "position", Disagrees)],
            ),
            (
                "a shard that the map lacks",
                |seen| answer(&mut seen.nodes[1]).marks = [(7, mark(1))].into_iter().collect(),
                &[("shard s1 at http://s1:1", "shard number 7", Warning)],
            ),
            (
                "an older map at a node",
                |seen| answer(&mut seen.nodes[1]).ownership.as_mut().unwrap().map_version = 0,
                &[("shard s1 at http://s1:1", "map version", Warning)],
            ),
            (
                "a clock",
                |seen| {
                    seen.nodes.push(seen.nodes[1].clone());
                    answer(&mut seen.nodes[0]).clock.ahead_us = HOUR_US;
                },
                &[("shard s0 at http://s0:1", "clock beside the other nodes'", Warning)],
            ),
            (
                "a router is down",
                |seen| seen.routers[0].answer = Err("refused".to_owned()),
                &[("router http://r:1", "answer", Disagrees)],
            ),
            (
                "a refused map",
                |seen| router(seen).refused = Some("line 3".to_owned()),
                &[("router http://r:1", "map file", Disagrees)],
            ),
            (
                "a newer map at a router",
                |seen| router(seen).map_version = 2,
                &[("router http://r:1", "map version", Warning)],
            ),
            (
                "slots that go elsewhere",
                |seen| {
                    let [slots, in_map, owner] = ["0-3", "s0", "s1"].map(str::to_owned);
                    router(seen).overrides = vec![Override { slots, in_map, owner }];
                },
                &[("router http://r:1", "slots 0-3", Warning)],
            ),
            (
                "a shard that a router cannot use",
                |seen| {
                    let answer = router(seen);
                    answer.writes = "some".to_owned();
                    answer.degraded = vec![("s1".to_owned(), "scale of BTC".to_owned())];
                },
                &[("router http://r:1", "writes", Disagrees), ("router http://r:1", "shard s1", Disagrees)],
            ),
        ];
        for (name, change, expected) in cases {
            let mut seen = seen_of(&["s0", "s1"]);
            change(&mut seen);
            let findings = compare(&seen);
            let wrong = findings.iter().filter(|finding| finding.verdict != FindingVerdict::Agrees);
            let named: Vec<_> = wrong.map(|f| (f.place.as_str(), f.fact.as_str(), f.verdict)).collect();
            assert_eq!(named, expected, "{name}");
        }
    }
}

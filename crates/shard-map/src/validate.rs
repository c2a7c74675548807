//! The rules of a map, checked on a draft that records the position of each value in the text.

use std::{cell::OnceCell, collections::HashMap};

use crate::{
    cluster::ClusterId,
    error::{MapError, MapProblem, Reason},
    map::{MAX_SHARD_NUMBER, RemovedShard, Shard, ShardMap},
    slot::{InvalidSlotRange, SLOTS, Slot, SlotRange, merge_slots},
};

/// A map that has not been validated.
pub(crate) struct Draft {
    pub cluster: Option<At<String>>,
    pub version: At<i64>,
    pub shards: Vec<DraftShard>,
    pub removed: Vec<DraftRemoved>,
}

pub(crate) struct DraftRemoved {
    pub id: At<String>,
    pub number: At<i64>,
}

pub(crate) struct DraftShard {
    pub id: At<String>,
    pub number: At<i64>,
    pub nodes: Vec<At<String>>,
    pub nodes_offset: Option<usize>,
    pub slots: Vec<At<Result<SlotRange, (String, InvalidSlotRange)>>>,
}

/// A value and its offset in the text, if there is a text.
pub(crate) struct At<T> {
    pub value: T,
    pub offset: Option<usize>,
}

/// Finds the line of a byte offset. The text is scanned only for a refusal, so a valid map does not pay for it.
pub(crate) struct Lines<'a> {
    text: &'a str,
    starts: OnceCell<Vec<usize>>,
}

/// The offsets of values that [`ShardMap::parse_successor`] may report. Shards are in the map's order.
#[derive(Default)]
pub(crate) struct Places {
    pub cluster: Option<usize>,
    pub version: Option<usize>,
    pub numbers: Vec<Option<usize>>,
    pub slots: Vec<Vec<(SlotRange, Option<usize>)>>,
}

impl<'a> Lines<'a> {
    /// An empty text is that of a map made from parts: no value of it has an offset.
    pub fn of(text: &'a str) -> Self {
        Self { text, starts: OnceCell::new() }
    }

    /// The line of a byte offset, counted from 1.
    pub fn at(&self, offset: Option<usize>) -> Option<usize> {
        let starts = self.starts.get_or_init(|| {
            let newlines = self.text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
            std::iter::once(0).chain(newlines.map(|(place, _)| place + 1)).collect()
        });
        offset.map(|offset| starts.partition_point(|start| *start <= offset))
    }
}

impl Draft {
    pub fn from_parts(cluster: ClusterId, version: u64, shards: Vec<Shard>, removed: Vec<RemovedShard>) -> Self {
        fn at<T>(value: T) -> At<T> {
            At { value, offset: None }
        }
        let shards = shards.into_iter().map(|shard| DraftShard {
            id: at(shard.id),
            number: at(shard.number.into()),
            nodes: shard.nodes.into_iter().map(at).collect(),
            nodes_offset: None,
            slots: shard.slots.into_iter().map(|range| at(Ok(range))).collect(),
        });
        // A version that no i64 holds is refused like a negative one: shards store it as BIGINT.
        Self {
            cluster: Some(at(cluster.to_string())),
            version: at(i64::try_from(version).unwrap_or(-1)),
            shards: shards.collect(),
            removed: removed
                .into_iter()
                .map(|shard| DraftRemoved { id: at(shard.id), number: at(shard.number.into()) })
                .collect(),
        }
    }

    pub fn places(&self) -> Places {
        let slots = |shard: &DraftShard| {
            shard.slots.iter().filter_map(|range| Some((*range.value.as_ref().ok()?, range.offset))).collect()
        };
        Places {
            cluster: self.cluster.as_ref().and_then(|cluster| cluster.offset),
            version: self.version.offset,
            numbers: self.shards.iter().map(|shard| shard.number.offset).collect(),
            slots: self.shards.iter().map(slots).collect(),
        }
    }
}

/// Validates a draft: returns the map, or every problem.
pub(crate) fn validate(draft: Draft, lines: &Lines<'_>) -> Result<ShardMap, MapError> {
    let mut problems = Problems { lines, found: Vec::new() };
    let cluster = check_cluster(draft.cluster.as_ref(), &mut problems);
    if draft.version.value < 1 {
        problems.add(draft.version.offset, Reason::Version(draft.version.value));
    }
    check_identities(&draft.shards, &mut problems);
    check_removed(&draft.shards, &draft.removed, &mut problems);
    check_nodes(&draft.shards, &mut problems);
    check_slots(&draft.shards, &mut problems);

    let cluster = match cluster {
        Some(cluster) if problems.found.is_empty() => cluster,
        _ => return Err(MapError::new(problems.found)),
    };
    let shards = draft.shards.into_iter().map(|shard| {
        let mut slots: Vec<SlotRange> = shard.slots.into_iter().filter_map(|range| range.value.ok()).collect();
        slots.sort_unstable();
        Shard {
            id: shard.id.value,
            number: shard.number.value as u16, // checked above
            nodes: shard.nodes.into_iter().map(|node| node.value).collect(),
            slots: merge_slots(slots.into_iter().flat_map(SlotRange::slots)),
        }
    });
    let removed = draft.removed.into_iter().map(|shard| RemovedShard {
        id: shard.id.value,
        number: shard.number.value as u16, // checked above
    });
    Ok(ShardMap::assemble(cluster, draft.version.value.unsigned_abs(), shards.collect(), removed.collect()))
}

struct Problems<'a> {
    lines: &'a Lines<'a>,
    found: Vec<MapProblem>,
}

impl Problems<'_> {
    fn add(&mut self, offset: Option<usize>, reason: Reason) {
        self.found.push(MapProblem { line: self.lines.at(offset), reason });
    }
}

/// Returns `None` after adding a problem.
fn check_cluster(cluster: Option<&At<String>>, problems: &mut Problems<'_>) -> Option<ClusterId> {
    let Some(cluster) = cluster else {
        problems.add(None, Reason::NoCluster);
        return None;
    };
    cluster.value.parse().map_err(|reason| problems.add(cluster.offset, Reason::Cluster(reason))).ok()
}

fn check_identities(shards: &[DraftShard], problems: &mut Problems<'_>) {
    let mut ids: HashMap<&str, &DraftShard> = HashMap::with_capacity(shards.len());
    let mut numbers: HashMap<i64, &DraftShard> = HashMap::with_capacity(shards.len());
    for shard in shards {
        let (id, number) = (&shard.id.value, shard.number.value);
        if !is_shard_id(id) {
            problems.add(shard.id.offset, Reason::ShardId(id.clone()));
        }
        if let Some(first) = ids.get(id.as_str()) {
            let line = problems.lines.at(first.id.offset);
            problems.add(shard.id.offset, Reason::DuplicateId { id: id.clone(), line });
        } else {
            ids.insert(id, shard);
        }
        if !(0..=i64::from(MAX_SHARD_NUMBER)).contains(&number) {
            problems.add(shard.number.offset, Reason::Number { shard: id.clone(), number });
        }
        if let Some(first) = numbers.get(&number) {
            let (other, line) = (first.id.value.clone(), problems.lines.at(first.number.offset));
            problems.add(shard.number.offset, Reason::DuplicateNumber { shard: id.clone(), number, other, line });
        } else {
            numbers.insert(number, shard);
        }
    }
}

/// The ids and numbers of removed shards are valid, and no shard has one of them.
fn check_removed(shards: &[DraftShard], removed: &[DraftRemoved], problems: &mut Problems<'_>) {
    for gone in removed {
        let (id, number) = (&gone.id.value, gone.number.value);
        if !is_shard_id(id) {
            problems.add(gone.id.offset, Reason::ShardId(id.clone()));
        }
        if !(0..=i64::from(MAX_SHARD_NUMBER)).contains(&number) {
            problems.add(gone.number.offset, Reason::Number { shard: id.clone(), number });
        }
        for shard in shards {
            if shard.id.value == *id {
                problems.add(shard.id.offset, Reason::IdOfRemoved(id.clone()));
            }
            if shard.number.value == number {
                let (shard_id, removed) = (shard.id.value.clone(), id.clone());
                problems.add(shard.number.offset, Reason::NumberOfRemoved { shard: shard_id, number, removed });
            }
        }
    }
}

/// Ids appear in file names, metric labels and registers, so they must not need quoting.
fn is_shard_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// A node serves one shard. The same address under two shards would send one shard's money to the other.
fn check_nodes(shards: &[DraftShard], problems: &mut Problems<'_>) {
    let mut seen: HashMap<&str, (&DraftShard, &At<String>)> = HashMap::with_capacity(shards.len());
    for shard in shards {
        if shard.nodes.is_empty() {
            problems.add(shard.nodes_offset, Reason::NoNodes { shard: shard.id.value.clone() });
        }
        for node in &shard.nodes {
            let (id, url) = (|| shard.id.value.clone(), || node.value.clone());
            if let Err(reason) = check_node(&node.value) {
                problems.add(node.offset, Reason::Node { shard: id(), node: url(), reason });
            }
            if let Some((other, first)) = seen.get(node.value.as_str()) {
                let (other, line) = (other.id.value.clone(), problems.lines.at(first.offset));
                problems.add(node.offset, Reason::DuplicateNode { shard: id(), node: url(), other, line });
            } else {
                seen.insert(&node.value, (shard, node));
            }
        }
    }
}

/// `http://host:port` and nothing else.
fn check_node(url: &str) -> Result<(), &'static str> {
    let authority = url.strip_prefix("http://").ok_or("does not begin with http:// (nodes speak plain HTTP/2)")?;
    let (host, port) = authority.rsplit_once(':').ok_or("names no port")?;
    if !port.bytes().all(|b| b.is_ascii_digit()) || !matches!(port.parse::<u16>(), Ok(1..)) {
        return Err("does not end in a port, 1 to 65535");
    }
    let name =
        |host: &str| !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    let address = |host: &str| {
        host.strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok())
    };
    if name(host) || address(host) { Ok(()) } else { Err("has no host name or address before the port") }
}

fn check_slots(shards: &[DraftShard], problems: &mut Problems<'_>) {
    // By slot: the first range that has it.
    let mut claims: Vec<Option<(&DraftShard, Option<usize>)>> = vec![None; usize::from(SLOTS)];
    let mut ranges_are_good = true;
    for shard in shards {
        for range in &shard.slots {
            match &range.value {
                Ok(slots) => claim(shard, *slots, range.offset, &mut claims, problems),
                Err((text, reason)) => {
                    ranges_are_good = false;
                    let (shard, text) = (shard.id.value.clone(), text.clone());
                    problems.add(range.offset, Reason::Range { shard, text, reason: *reason });
                }
            }
        }
    }
    // After a malformed range, slots without an owner are only a consequence.
    if ranges_are_good {
        let unowned =
            merge_slots(Slot::all().zip(&claims).filter(|(_, claim)| claim.is_none()).map(|(slot, _)| slot));
        if !unowned.is_empty() {
            problems.add(None, Reason::Unowned(unowned));
        }
    }
}

/// Claims the slots of one range. Overlaps are reported as ranges.
fn claim<'d>(
    shard: &'d DraftShard,
    range: SlotRange,
    offset: Option<usize>,
    claims: &mut [Option<(&'d DraftShard, Option<usize>)>],
    problems: &mut Problems<'_>,
) {
    let mut overlap: Option<(SlotRange, &DraftShard, Option<usize>)> = None;
    let mut report = |overlap: Option<(SlotRange, &DraftShard, Option<usize>)>| {
        if let Some((slots, other, other_offset)) = overlap {
            let (shard, other) = (shard.id.value.clone(), other.id.value.clone());
            let line = problems.lines.at(other_offset);
            problems.add(offset, Reason::OwnedTwice { slots, shard, other, line });
        }
    };
    for slot in range.slots() {
        let place = &mut claims[usize::from(slot.index())];
        let Some((other, other_offset)) = *place else {
            *place = Some((shard, offset));
            report(overlap.take());
            continue;
        };
        overlap = match overlap {
            Some((run, run_of, run_offset)) if std::ptr::eq(run_of, other) && run_offset == other_offset => {
                SlotRange::new(run.first(), slot).ok().map(|longer| (longer, other, other_offset))
            }
            ended => {
                report(ended);
                SlotRange::new(slot, slot).ok().map(|run| (run, other, other_offset))
            }
        };
    }
    report(overlap);
}

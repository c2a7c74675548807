//! The problems of a map, each with its line.

use std::fmt;

use crate::{
    cluster::{ClusterId, InvalidClusterId},
    slot::{InvalidSlotRange, SlotRange},
};

/// All problems of a map, in order of lines. A map with any problem is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", Listed(.problems))]
pub struct MapError {
    pub problems: Vec<MapProblem>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapProblem {
    /// Counted from 1. `None` for a map that was built in memory, and for a problem of the map as a whole.
    pub line: Option<usize>,
    pub reason: Reason,
}

/// One reason to refuse a map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The text is not TOML, or does not have the fields of a map.
    #[error("{0}")]
    Form(String),
    #[error(
        "the map names no cluster: add cluster = \"…\" with the id that the cluster's databases have (shardctl doctor shows it); \
         for a new cluster, shardctl map new-cluster-id prints one"
    )]
    NoCluster,
    #[error("cluster: {0}")]
    Cluster(InvalidClusterId),
    #[error("version {0} is below 1")]
    Version(i64),
    #[error("shard id {0:?} is not 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    ShardId(String),
    #[error("shard id {id:?} is taken{}", InLine(.line))]
    DuplicateId { id: String, line: Option<usize> },
    #[error("shard {shard}: number {number} is not in 0 to {max}", max = crate::MAX_SHARD_NUMBER)]
    Number { shard: String, number: i64 },
    #[error("shard {shard}: number {number} is shard {other}'s{}", InLine(.line))]
    DuplicateNumber { shard: String, number: i64, other: String, line: Option<usize> },
    #[error("shard id {0:?} belonged to a removed shard: choose another id")]
    IdOfRemoved(String),
    #[error(
        "shard {shard}: number {number} belonged to the removed shard {removed}: choose a number that is not in the map"
    )]
    NumberOfRemoved { shard: String, number: i64, removed: String },
    #[error(
        "shard {shard} with number {number} is missing. `shardctl shard remove` takes an empty shard out of the map, and lists it under \
         [[removed]]"
    )]
    ShardMissing { shard: String, number: u16 },
    #[error(
        "the removed shard {shard} with number {number} is not listed any more: keep its entry under [[removed]]"
    )]
    RemovedForgotten { shard: String, number: u16 },
    #[error("shard {shard} has no nodes")]
    NoNodes { shard: String },
    #[error("shard {shard}: node {node:?} {reason}")]
    Node { shard: String, node: String, reason: &'static str },
    #[error("shard {shard}: node {node:?} is shard {other}'s{}", InLine(.line))]
    DuplicateNode { shard: String, node: String, other: String, line: Option<usize> },
    #[error("shard {shard}: slots {text:?}: {reason}")]
    Range { shard: String, text: String, reason: InvalidSlotRange },
    #[error("{} to shard {shard} and to shard {other}{}", Belong(std::slice::from_ref(.slots)), InLine(.line))]
    OwnedTwice { slots: SlotRange, shard: String, other: String, line: Option<usize> },
    #[error("{} to no shard", Belong(.0))]
    Unowned(Vec<SlotRange>),
    #[error("version {new} is not greater than {current}, the version in use, and the content differs")]
    VersionNotGreater { current: u64, new: u64 },
    #[error("the map is of cluster {new}, the map in use of cluster {current}: a cluster keeps its id")]
    OtherCluster { current: ClusterId, new: ClusterId },
    #[error(
        "{} to shard {from}, and the map gives {} to shard {to}: only a move changes the shard of a slot. Leave {} with shard {from}; \
         a new shard begins with slots = []",
        Belong(std::slice::from_ref(.slots)), Them(.slots), Them(.slots)
    )]
    SlotsReassigned { slots: SlotRange, from: String, to: String },
    #[error("shard {shard} has number {number}, but its number is {kept} and a shard keeps its number")]
    NumberChanged { shard: String, number: u16, kept: u16 },
    #[error("shard {shard} has number {number}, which was shard {before}'s: numbers are never reused")]
    NumberReused { shard: String, number: u16, before: String },
}

impl MapError {
    /// `problems` must not be empty.
    pub(crate) fn new(mut problems: Vec<MapProblem>) -> Self {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Self { problems }
    }

    /// The first line with a problem.
    pub fn line(&self) -> Option<usize> {
        self.problems.first().and_then(|problem| problem.line)
    }
}

impl fmt::Display for MapProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        fmt::Display::fmt(&self.reason, f)
    }
}

/// Messages list at most this many problems or ranges and count the rest.
const LISTED: usize = 8;

struct Listed<'a>(&'a [MapProblem]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, self.0, "; ")
    }
}

struct Belong<'a>(&'a [SlotRange]);

impl fmt::Display for Belong<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let single = self.0.len() == 1 && self.0[0].len() == 1;
        f.write_str(if single { "slot " } else { "slots " })?;
        list(f, self.0, ", ")?;
        f.write_str(if single { " belongs" } else { " belong" })
    }
}

struct Them<'a>(&'a SlotRange);

impl fmt::Display for Them<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.len() == 1 { "it" } else { "them" })
    }
}

struct InLine<'a>(&'a Option<usize>);

impl fmt::Display for InLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " (line {line})"))
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display], separator: &str) -> fmt::Result {
    for (place, item) in items.iter().take(LISTED).enumerate() {
        if place > 0 {
            f.write_str(separator)?;
        }
        write!(f, "{item}")?;
    }
    match items.len().saturating_sub(LISTED) {
        0 => Ok(()),
        more => write!(f, "{separator}and {more} more"),
    }
}

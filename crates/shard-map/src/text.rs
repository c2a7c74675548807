//! A map as text: parses and prints `shard-map.toml`. Spans are kept until the validation, so that every refusal names its line.

use std::fmt::Write;

use schemars::{JsonSchema, Schema, schema_for};
use serde::Deserialize;
use toml::Spanned;

use crate::{
    error::{MapError, MapProblem, Reason},
    map::ShardMap,
    slot::{Slot, SlotRange},
    validate::{self, At, Draft, DraftRemoved, DraftShard, Lines},
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    /// The cluster's id, a UUID: `shardctl map new-cluster-id` prints a new one. Databases and nodes of another cluster are refused.
    #[schemars(with = "String")]
    cluster: Option<Spanned<String>>,
    /// Grows with every change; at least 1.
    #[schemars(with = "i64")]
    version: Spanned<i64>,
    /// One table for each shard.
    #[serde(default, borrow)]
    #[schemars(with = "Vec<FileShard<'a>>")]
    shard: Vec<Spanned<FileShard<'a>>>,
    /// One table for each shard that the cluster had before. Its id and number are never given to another shard.
    #[serde(default)]
    removed: Vec<FileRemoved>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileRemoved {
    /// The id that the shard had.
    #[schemars(with = "String")]
    id: Spanned<String>,
    /// The number that the shard had.
    #[schemars(with = "i64")]
    number: Spanned<i64>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileShard<'a> {
    /// 1 to 64 characters of `A-Z a-z 0-9 . _ -`.
    #[schemars(with = "String")]
    id: Spanned<String>,
    /// 0 to 4095. It is part of every journal position of the shard, never changes, and is never given to another shard.
    #[schemars(with = "i64")]
    number: Spanned<i64>,
    /// Where the shard's nodes listen, in order of preference: `http://host:port`.
    #[schemars(with = "Vec<String>")]
    nodes: Spanned<Vec<Spanned<String>>>,
    /// Ranges such as `0-4095`, both ends included, or single slots. Every slot of 0 to 16383 belongs to exactly one shard.
    #[serde(borrow)]
    #[schemars(with = "Vec<String>")]
    slots: Vec<Spanned<std::borrow::Cow<'a, str>>>,
}

/// The schema of `shard-map.toml`, for the reference of its settings.
pub fn file_schema() -> Schema {
    schema_for!(File<'static>)
}

impl ShardMap {
    /// Parses a map. The map is taken or refused as a whole; a refusal lists every problem.
    pub fn parse(text: &str) -> Result<Self, MapError> {
        let lines = Lines::of(text);
        validate::validate(Draft::parse(text, &lines)?, &lines)
    }

    /// Parses the map that is to replace `current`. `None` means that its content equals `current`. In addition to
    /// what [`ShardMap::parse`] refuses, it refuses another cluster, a version that is not greater, a shard with a
    /// changed number, and a slot that changes its shard without a move. `owner_by_shards` returns the owner that the
    /// shards report, if it is known.
    pub fn parse_successor<'a>(
        text: &str,
        current: &Self,
        owner_by_shards: impl Fn(Slot) -> Option<&'a str>,
    ) -> Result<Option<Self>, MapError> {
        let lines = Lines::of(text);
        let draft = Draft::parse(text, &lines)?;
        let places = draft.places();
        let map = validate::validate(draft, &lines)?;
        if map == *current {
            return Ok(None);
        }
        let problems = current.succession_problems(&map, &places, &lines, owner_by_shards);
        if problems.is_empty() { Ok(Some(map)) } else { Err(MapError::new(problems)) }
    }
}

impl Draft {
    fn parse(text: &str, lines: &Lines<'_>) -> Result<Self, MapError> {
        let file: File<'_> = toml::from_str(text).map_err(|error| {
            let line = lines.at(error.span().map(|span| span.start));
            MapError::new(vec![MapProblem { line, reason: Reason::Form(error.message().to_owned()) }])
        })?;
        let shards = file.shard.into_iter().map(|table| {
            let shard = table.into_inner();
            DraftShard {
                id: shard.id.into(),
                number: shard.number.into(),
                nodes_offset: Some(shard.nodes.span().start),
                nodes: shard.nodes.into_inner().into_iter().map(At::from).collect(),
                slots: shard
                    .slots
                    .into_iter()
                    .map(|text| {
                        let offset = Some(text.span().start);
                        let text = text.into_inner();
                        At { value: text.parse::<SlotRange>().map_err(|reason| (text.into_owned(), reason)), offset }
                    })
                    .collect(),
            }
        });
        let removed = file.removed.into_iter().map(|it| DraftRemoved { id: it.id.into(), number: it.number.into() });
        Ok(Self {
            cluster: file.cluster.map(At::from),
            version: file.version.into(),
            shards: shards.collect(),
            removed: removed.collect(),
        })
    }
}

impl<T> From<Spanned<T>> for At<T> {
    fn from(spanned: Spanned<T>) -> Self {
        Self { offset: Some(spanned.span().start), value: spanned.into_inner() }
    }
}

impl ShardMap {
    /// The map as TOML. No value needs escaping: validation admits no character that would.
    pub fn to_toml(&self) -> String {
        let mut text = format!("cluster = \"{}\"\nversion = {}\n", self.cluster, self.version);
        for shard in &self.shards {
            let nodes: Vec<_> = shard.nodes.iter().map(|node| format!("\"{node}\"")).collect();
            let slots: Vec<_> = shard.slots.iter().map(|range| format!("\"{range}\"")).collect();
            let (id, number, nodes, slots) = (&shard.id, shard.number, nodes.join(", "), slots.join(", "));
            // Writing to a String cannot fail.
            let _ =
                write!(text, "\n[[shard]]\nid = \"{id}\"\nnumber = {number}\nnodes = [{nodes}]\nslots = [{slots}]\n");
        }
        for shard in &self.removed {
            let _ = write!(text, "\n[[removed]]\nid = \"{}\"\nnumber = {}\n", shard.id, shard.number);
        }
        text
    }
}

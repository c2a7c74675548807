//! Parses `shard-map.toml`. Spans are kept until the validation, so that every refusal names its line.

use serde::Deserialize;
use toml::Spanned;

use crate::{
    error::{MapError, MapProblem, Reason},
    map::ShardMap,
    slot::{Slot, SlotRange},
    validate::{self, At, Draft, DraftRemoved, DraftShard, Lines},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<'a> {
    cluster: Option<Spanned<String>>,
    version: Spanned<i64>,
    #[serde(default, borrow)]
    shard: Vec<Spanned<FileShard<'a>>>,
    #[serde(default)]
    removed: Vec<FileRemoved>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRemoved {
    id: Spanned<String>,
    number: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileShard<'a> {
    id: Spanned<String>,
    number: Spanned<i64>,
    nodes: Spanned<Vec<Spanned<String>>>,
    #[serde(borrow)]
    slots: Vec<Spanned<std::borrow::Cow<'a, str>>>,
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

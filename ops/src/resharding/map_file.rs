//! Reads the shard map from files and routers, and edits map files. An edit keeps comments and layout.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde_json::Value;
use shard_map::{ClusterId, RemovedShard, Shard, ShardMap, Slot, SlotRange, merge_slots};
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table, value};

use crate::{
    cluster::files::{self, Audience},
    http_client::HttpClient,
    output::items,
};

/// Reads the map in a file.
pub fn read(path: &Path) -> anyhow::Result<ShardMap> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ShardMap::parse(&text).with_context(|| path.display().to_string())
}

/// The map that a router uses, from its file or from a node.
pub async fn of_router(client: &HttpClient, url: &str) -> anyhow::Result<ShardMap> {
    let answer: Value = client.get(&format!("{url}/admin/shard-map")).await?;
    map_from(&answer).with_context(|| format!("the shard map of router {url}"))
}

/// Parses the answer of a router. The router lists each slot under the shard that gets its requests. The overrides name the slots that the
/// map assigns to another shard.
fn map_from(answer: &Value) -> anyhow::Result<ShardMap> {
    let text = |value: &Value| value.as_str().map(str::to_owned).context("a text is missing");
    let cluster: ClusterId = text(&answer["cluster"])?.parse()?;
    let mut owners: Vec<Option<String>> = vec![None; Slot::all().len()];
    for shard in items(&answer["shards"]) {
        for range in items(&shard["slots"]) {
            set_owner(&mut owners, &text(range)?, &text(&shard["id"])?)?;
        }
    }
    for slots in items(&answer["overrides"]) {
        set_owner(&mut owners, &text(&slots["slots"])?, &text(&slots["in_map"])?)?;
    }
    let shards = items(&answer["shards"]).iter().map(|shard| {
        let id = text(&shard["id"])?;
        let owned = Slot::all().zip(&owners).filter(|(_, owner)| owner.as_ref() == Some(&id)).map(|(slot, _)| slot);
        Ok(Shard {
            number: shard["number"].as_u64().and_then(|number| u16::try_from(number).ok()).context("no number")?,
            nodes: items(&shard["nodes"]).iter().map(text).collect::<anyhow::Result<_>>()?,
            slots: merge_slots(owned),
            id,
        })
    });
    let version = answer["version"].as_u64().context("no version")?;
    let mut map = ShardMap::new(cluster, version, shards.collect::<anyhow::Result<_>>()?)?;
    let removed = items(&answer["removed"]).iter().map(|shard| {
        let number = shard["number"].as_u64().and_then(|number| u16::try_from(number).ok()).context("no number")?;
        Ok(RemovedShard { id: text(&shard["id"])?, number })
    });
    map.removed = removed.collect::<anyhow::Result<_>>()?;
    Ok(map)
}

fn set_owner(owners: &mut [Option<String>], slots: &str, shard: &str) -> anyhow::Result<()> {
    for slot in slots.parse::<SlotRange>()?.slots() {
        owners[usize::from(slot.index())] = Some(shard.to_owned());
    }
    Ok(())
}

/// Writes a map to the file, unless the file has a newer map. Keeps the comments of the file.
pub fn write(newest: &ShardMap, file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    if ShardMap::parse(&text)?.version >= newest.version {
        return Ok(());
    }
    files::replace(file, &updated(&text, newest)?, Audience::Everyone)
}

/// The text with the slots, the version and the shards of `map`. Everything that is the same in both stays unchanged.
///
/// # Errors
/// The text is not a map, or is the map of another cluster.
fn updated(text: &str, map: &ShardMap) -> anyhow::Result<String> {
    let before = ShardMap::parse(text)?;
    if before.cluster != map.cluster {
        bail!("the file is of cluster {}, not of {}", before.cluster, map.cluster);
    }
    let mut document: DocumentMut = text.parse().context("the file is not TOML")?;
    set(document.as_table_mut(), "version", i64::try_from(map.version)?.into());
    let tables = document
        .entry("shard")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()))
        .as_array_of_tables_mut()
        .context("`shard` is not a list of tables")?;
    tables.retain(|table| map.shards.iter().any(|shard| Some(shard.id.as_str()) == id_of(table)));
    for shard in &map.shards {
        let place = tables.iter().position(|table| id_of(table) == Some(shard.id.as_str()));
        match place.and_then(|place| tables.get_mut(place)) {
            Some(table) => {
                let known = before.shards.iter().find(|it| it.id == shard.id);
                if known.is_none_or(|it| it.slots != shard.slots) {
                    set(table, "slots", slots(&shard.slots).into());
                }
                if known.is_none_or(|it| it.nodes != shard.nodes) {
                    set(table, "nodes", shard.nodes.iter().collect::<Array>().into());
                }
            }
            None => tables.push(table_of(shard)),
        }
    }
    update_removed(&mut document, map)?;
    let text = document.to_string();
    let written = ShardMap::parse(&text)?;
    let sorted = |map: &ShardMap| {
        let mut shards = map.shards.clone();
        shards.sort_by(|a, b| a.id.cmp(&b.id));
        (map.version, shards, map.removed.clone())
    };
    if sorted(&written) != sorted(map) {
        bail!("the edited file does not parse to version {} of the map", map.version);
    }
    Ok(text)
}

/// Adds the removed shards that the document does not list.
fn update_removed(document: &mut DocumentMut, map: &ShardMap) -> anyhow::Result<()> {
    if map.removed.is_empty() && document.get("removed").is_none() {
        return Ok(());
    }
    let tables = document
        .entry("removed")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()))
        .as_array_of_tables_mut()
        .context("`removed` is not a list of tables")?;
    tables.retain(|table| map.removed.iter().any(|shard| Some(shard.id.as_str()) == id_of(table)));
    for shard in &map.removed {
        if tables.iter().all(|table| id_of(table) != Some(shard.id.as_str())) {
            let mut table = Table::new();
            table.insert("id", value(&shard.id));
            table.insert("number", value(i64::from(shard.number)));
            tables.push(table);
        }
    }
    Ok(())
}

/// Replaces a value and keeps its decoration, including comments.
fn set(table: &mut Table, key: &str, new: toml_edit::Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(there) => {
            let decor = there.decor().clone();
            *there = new;
            *there.decor_mut() = decor;
        }
        None => {
            table.insert(key, value(new));
        }
    }
}

fn id_of(table: &Table) -> Option<&str> {
    table.get("id").and_then(Item::as_str)
}

fn slots(ranges: &[SlotRange]) -> Array {
    ranges.iter().map(ToString::to_string).collect()
}

fn table_of(shard: &Shard) -> Table {
    let mut table = Table::new();
    table.insert("id", value(&shard.id));
    table.insert("number", value(i64::from(shard.number)));
    table.insert("nodes", value(shard.nodes.iter().collect::<Array>()));
    table.insert("slots", value(slots(&shard.slots)));
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILE: &str = r#"# The map of the bank.
cluster = "0190d7c0-0000-7000-8000-00000000c1a5"
version = 3 # raised with each change

# In the cellar.
[[shard]]
id = "s0"
number = 0
nodes = ["http://a:1"] # one node
slots = ["0-16383"] # everything

# In the attic.
[[shard]]
id = "s1"
number = 1
nodes = ["http://b:1"]
slots = []
"#;

    #[test]
    fn a_routers_map_is_reconstructed_without_its_overrides() {
        let cluster = ClusterId::generate();
        let shard = |id: &str, number: u16, slots: &[&str]| json!({"id": id, "number": number, "nodes": [format!("http://{id}:1")], "slots": slots});
        let answer = json!({
            "cluster": cluster.to_string(), "version": 3,
            "shards": [shard("s0", 0, &["0-8190"]), shard("s1", 1, &["8191-16383"])],
            "overrides": [{"slots": "8191", "in_map": "s0", "owner": "s1", "epoch": 2}],
        });
        let map = map_from(&answer).unwrap();
        let slots: Vec<String> = map.shards.iter().map(|shard| shard.slots[0].to_string()).collect();
        assert_eq!(
            (map.version, map.cluster, slots),
            (3, cluster, vec!["0-8191".to_owned(), "8192-16383".to_owned()])
        );
        assert!(map_from(&json!({})).is_err());
    }

    #[test]
    fn comments_and_layout_stay() {
        let before = ShardMap::parse(FILE).unwrap();
        let mut shards = before.shards.clone();
        shards[0].slots = vec!["0-99".parse().unwrap(), "200-16383".parse().unwrap()];
        shards[1].slots = vec!["100-199".parse().unwrap()];
        shards.push(Shard {
            id: "s2".to_owned(),
            number: 2,
            nodes: vec!["http://c:1".to_owned()],
            slots: Vec::new(),
        });
        shards[1].nodes = vec!["http://d:1".to_owned()];
        let map = ShardMap::new(before.cluster, 4, shards).unwrap();
        let text = updated(FILE, &map).unwrap();
        assert!(text.contains("version = 4 # raised with each change"), "{text}");
        assert!(text.contains("slots = [\"0-99\", \"200-16383\"] # everything"), "{text}");
        assert!(text.contains("# In the attic.\n[[shard]]\nid = \"s1\""), "{text}");
        assert!(text.contains("nodes = [\"http://a:1\"] # one node"), "{text}");
        assert_eq!(ShardMap::parse(&text).unwrap(), map);
        let without = map.successor_without("s2").unwrap_or_else(|error| panic!("{error}"));
        let shorter = updated(&text, &without).unwrap();
        assert!(shorter.ends_with("[[removed]]\nid = \"s2\"\nnumber = 2\n"), "{shorter}");
        assert_eq!(updated(&shorter, &without).unwrap(), shorter);
        // The change back removes the shard again.
        assert_eq!(ShardMap::parse(&updated(&text, &before).unwrap()).unwrap(), before);
    }
}

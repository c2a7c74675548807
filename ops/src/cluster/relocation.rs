//! Adapts the files of a data folder that was moved or copied.
//!
//! A moved folder keeps everything, including its ports. A copy gets its own ports before anything in it starts, so that none of its
//! processes reaches the original. Operators edit these files, so only the values that must change are changed. Each edit sets a value
//! regardless of its previous value, and `cluster.json` is written last. After an interruption, `up` therefore repeats all edits.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use shard_map::ShardMap;
use toml_edit::{DocumentMut, TableLike, Value};

use super::{
    configuration::MAP_FROM_CONFIG,
    description::Description,
    files::{self, Audience},
    layout::Layout,
    ports::PortPlan,
    postgres::{
        home::{Home, is_same_file, own_elsewhere},
        server,
        stopped_server::{self, ControlFile},
    },
};

const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// A file with its new text.
#[derive(Debug)]
pub struct Edit {
    path: PathBuf,
    text: String,
    audience: Audience,
}

pub fn apply(edits: &[Edit]) -> anyhow::Result<()> {
    edits.iter().try_for_each(|edit| files::replace(&edit.path, &edit.text, edit.audience))
}

/// The edits of a moved folder: routers whose configuration contains the former path of the map.
pub fn edits_of_moved(layout: &Layout, description: &Description, from: &Path) -> anyhow::Result<Vec<Edit>> {
    let mut edits = Vec::new();
    for router in &description.routers {
        edits.extend(edit(layout.config(&router.name), Audience::Owner, |document| refer_to_map(document, from))?);
    }
    Ok(edits)
}

/// Gives a copy its own ports. Returns the edits without writing them.
pub fn edits_of_copy(
    layout: &Layout,
    description: &mut Description,
    of: &Path,
    port_base: Option<u16>,
) -> anyhow::Result<Vec<Edit>> {
    ensure!(
        description.shards.iter().all(|shard| shard.standby.is_none()),
        "the cluster has stand-bys, and this version starts no copy of such a cluster: restore the copy in the place of the original"
    );
    let taken: Vec<u16> = description.ports().into_iter().map(|(port, _)| port).collect();
    let (routers, shards) = (u16::try_from(description.routers.len())?, u16::try_from(description.shards.len())?);
    let plan = match port_base {
        Some(base) if base != 0 => PortPlan::block(base, routers, shards)?,
        _ => PortPlan::free_block_beside(&taken, routers, shards)?,
    };
    description.set_ports(&plan);
    description.copy_of = Some(of.to_owned());

    let mut edits = Vec::new();
    for shard in &description.shards {
        edits.extend(edit(layout.config(&shard.node_name()), Audience::Owner, |document| {
            replace(document, ["rpc", "listen"], |listen| with_port(listen, shard.rpc_port))?;
            replace(document, ["admin", "listen"], |listen| with_port(listen, shard.admin_port))?;
            replace(document, ["database", "url"], |url| database_url(url, shard.postgres_port))
        })?);
    }
    for router in &description.routers {
        let path = layout.config(&router.name);
        edits.extend(edit(path.clone(), Audience::Owner, |document| {
            replace(document, ["http", "listen"], |listen| with_port(listen, router.http_port))?;
            replace(document, ["admin", "listen"], |listen| with_port(listen, router.admin_port))?;
            refer_to_map(document, of)?;
            refuse_other_map(document, &path, layout)
        })?);
    }
    edits.extend(edit(layout.shard_map(), Audience::Everyone, |document| readdress_map(document, description))?);
    for map in edits.iter().filter(|edit| edit.path == layout.shard_map()) {
        ShardMap::parse(&map.text).with_context(|| map.path.display().to_string())?;
    }
    Ok(edits)
}

/// The edit of one file; `None` if the file needs no change, or is missing and will be written as for a new cluster.
fn edit(
    path: PathBuf,
    audience: Audience,
    change: impl FnOnce(&mut DocumentMut) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Edit>> {
    if !path.exists() {
        return Ok(None);
    }
    let edited = || {
        let before = fs::read_to_string(&path)?;
        let mut document: DocumentMut = before.parse()?;
        change(&mut document)?;
        let text = document.to_string();
        anyhow::Ok((text != before).then_some(text))
    };
    let text = edited().with_context(|| path.display().to_string())?;
    Ok(text.map(|text| Edit { path, text, audience }))
}

/// Replaces the text of one setting and keeps the comments beside it.
fn replace(
    document: &mut DocumentMut,
    [section, key]: [&str; 2],
    new: impl FnOnce(&str) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let value =
        document.get_mut(section).and_then(|section| section.get_mut(key)).and_then(|item| item.as_value_mut());
    let value = value.with_context(|| format!("the setting {section}.{key} is missing"))?;
    let old = value.as_str().with_context(|| format!("the setting {section}.{key} is no text"))?;
    let new = new(old).with_context(|| format!("the setting {section}.{key}"))?;
    set(value, new);
    Ok(())
}

fn set(value: &mut Value, new: impl Into<Value>) {
    let decor = value.decor().clone();
    *value = new.into();
    *value.decor_mut() = decor;
}

/// `HOST:PORT` with another port.
fn with_port(address: &str, port: u16) -> anyhow::Result<String> {
    let (host, old) = address.rsplit_once(':').with_context(|| format!("{address:?} has no port"))?;
    ensure!(old.parse::<u16>().is_ok(), "{address:?} has no port");
    Ok(format!("{host}:{port}"))
}

/// A loopback address with another port. Any other address would also be the original's.
fn loopback_with_port(address: &str, port: u16) -> anyhow::Result<String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    ensure!(
        LOOPBACK.contains(&host),
        "{address} is not an address of this copy, and the original uses it too: change it to an address of the copy"
    );
    with_port(address, port)
}

fn database_url(url: &str, port: u16) -> anyhow::Result<String> {
    let (scheme, rest) = url.split_once("://").context("it is no URL")?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (_, parameters) = path.split_once('?').unwrap_or_default();
    let overrides = |parameter: &str| ["host=", "hostaddr=", "port="].iter().any(|name| parameter.starts_with(name));
    // The URL contains a password, so no refusal shows it.
    ensure!(
        !parameters.split('&').any(overrides),
        "its parameters name a server: the copy and the original would share it"
    );
    let (credentials, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let address = loopback_with_port(address, port)?;
    let at = if credentials.is_empty() { "" } else { "@" };
    Ok(format!("{scheme}://{credentials}{at}{address}{path}"))
}

/// Makes the path of the map relative if it leads into the former folder.
fn refer_to_map(document: &mut DocumentMut, from: &Path) -> anyhow::Result<()> {
    replace(document, ["map", "path"], |path| {
        let is_former = Path::new(path) == Layout::at(from.to_owned()).shard_map();
        Ok(if is_former { MAP_FROM_CONFIG.to_owned() } else { path.to_owned() })
    })
}

/// Refuses a router of the copy that reads another map: it would send payments to the nodes of the original.
fn refuse_other_map(document: &DocumentMut, config: &Path, layout: &Layout) -> anyhow::Result<()> {
    let path = document.get("map").and_then(|map| map.get("path")).and_then(|path| path.as_str()).unwrap_or_default();
    let map = config.parent().unwrap_or(layout.root()).join(path);
    ensure!(
        is_same_file(&map, &layout.shard_map()) || !layout.shard_map().exists(),
        "the setting map.path names {path}, a shard map outside of this copy: change it to {MAP_FROM_CONFIG}"
    );
    Ok(())
}

/// Writes the ports of the nodes into the map and increments the version of the map.
fn readdress_map(document: &mut DocumentMut, description: &Description) -> anyhow::Result<()> {
    let mut changed = false;
    let mut tables: Vec<&mut dyn TableLike> = match document.get_mut("shard") {
        Some(toml_edit::Item::ArrayOfTables(tables)) => tables.iter_mut().map(|table| table as _).collect(),
        Some(toml_edit::Item::Value(Value::Array(tables))) => {
            tables.iter_mut().filter_map(|table| table.as_inline_table_mut().map(|table| table as _)).collect()
        }
        _ => Vec::new(),
    };
    for table in &mut tables {
        let id = table.get("id").and_then(|id| id.as_str()).context("a shard has no id")?.to_owned();
        let shard = description.shard(&id).with_context(|| format!("the cluster has no shard {id}"))?;
        let nodes = table.get_mut("nodes").and_then(|nodes| nodes.as_array_mut());
        let mut nodes = nodes.with_context(|| format!("shard {id} has no nodes"))?.iter_mut();
        let (Some(node), None) = (nodes.next(), nodes.next()) else {
            bail!("shard {id} must have exactly one node: a copy runs one node for each shard");
        };
        let old = node.as_str().context("a node that is no text")?.to_owned();
        let (scheme, address) = old.split_once("://").with_context(|| format!("{old} is no URL"))?;
        let new = loopback_with_port(address.trim_end_matches('/'), shard.rpc_port)
            .with_context(|| format!("node of shard {id}"))?;
        let new = format!("{scheme}://{new}");
        changed |= new != old;
        set(node, new);
    }
    if changed {
        let version =
            document.get_mut("version").and_then(|item| item.as_value_mut()).context("it has no version")?;
        let next = version.as_integer().context("its version is no number")? + 1;
        set(version, next);
    }
    Ok(())
}

/// Refuses a copy without databases, and a copy whose databases are incomplete.
pub fn check_copy(layout: &Layout, description: &Description, of: &Path) -> anyhow::Result<()> {
    let original = Layout::at(of.to_owned());
    let its = Description::peek(of).with_context(|| format!("cannot read {}", original.description().display()))?;
    refuse_uncopied(layout, description, of, &its)?;
    for folder in ["config", "log", "run", "secrets"].map(|name| layout.root().join(name)) {
        let theirs = of.join(folder.file_name().unwrap_or_default());
        refuse_shared(&folder, &theirs)?;
    }
    let mut unclean = Vec::new();
    for shard in &description.shards {
        let folder = description.database_folder(layout, shard);
        let theirs = its.database_folder(&original, shard);
        for inside in parts_of_database(&folder) {
            refuse_shared(&folder.join(&inside), &theirs.join(&inside))?;
        }
        unclean.extend(unclean_database(&folder)?.map(|why| format!("shard {}: {why}", shard.id)));
    }
    ensure!(
        unclean.is_empty(),
        "{}\n{} was copied while the databases of {} ran: the copied databases may be torn, or of different moments. Nothing was started. \
         Remove the copy, stop the original with `shardctl down --data-dir {}`, and copy it again",
        unclean.join("\n"),
        layout.root().display(),
        of.display(),
        of.display()
    );
    Ok(())
}

/// Refuses a copy of the data folder alone: databases elsewhere were not copied.
fn refuse_uncopied(layout: &Layout, description: &Description, of: &Path, its: &Description) -> anyhow::Result<()> {
    let Home::Elsewhere(theirs) = &its.postgres.home else { return Ok(()) };
    if !description.postgres.home.databases(layout).is_empty() {
        return Ok(());
    }
    let link = layout.postgres_link();
    let copy = match Home::choose(layout, description.postgres.user.as_ref())? {
        Home::Here => format!("rm -f {link} && cp -a {}/pg {link}", theirs.display(), link = link.display()),
        Home::Elsewhere(own) => format!("cp -a {} {}", theirs.display(), own.display()),
    };
    bail!(
        "{root} is a copy of {of} without databases: those lie in {theirs} and belong to {of}. Nothing was started. To copy them:\n  \
         shardctl down --data-dir {of}\n  {copy}\n  shardctl up --data-dir {root}",
        root = layout.root().display(),
        of = of.display(),
        theirs = theirs.display(),
    )
}

/// Refuses links and hard links that `cp` kept and that lead to the files of the original.
fn refuse_shared(ours: &Path, theirs: &Path) -> anyhow::Result<()> {
    ensure!(
        !is_same_file(ours, theirs),
        "{} and {} are one and the same because of a link, but a copy needs its own. Nothing was started. Replace the link with a copy of \
         its target",
        ours.display(),
        theirs.display()
    );
    Ok(())
}

/// The parts of a database folder that may be links: the folder itself, its write-ahead log and its tablespaces. The control file is included
/// because it reveals hard links.
fn parts_of_database(folder: &Path) -> Vec<PathBuf> {
    let mut parts = vec![PathBuf::new(), stopped_server::control_file(Path::new("")), "pg_wal".into()];
    let spaces = fs::read_dir(folder.join("pg_tblspc")).into_iter().flatten().flatten();
    parts.extend(spaces.map(|space| Path::new("pg_tblspc").join(space.file_name())));
    parts
}

/// Why the files of a stopped database may not contain all of it. A base backup (`pg_basebackup`) is refused too: the backups of the shards
/// are of different moments, so a payment between two shards may be in only one of them.
pub fn unclean_database(folder: &Path) -> anyhow::Result<Option<String>> {
    let pid_file = folder.join("postmaster.pid");
    if pid_file.exists() {
        return Ok(Some(format!("{} says that a server ran here", pid_file.display())));
    }
    let Some(control) = ControlFile::read(folder)? else { return Ok(None) };
    let control_file = stopped_server::control_file(folder);
    Ok((!control.is_shut_down())
        .then(|| format!("{} says that its server was not shut down", control_file.display())))
}

/// Refuses databases in a data folder that the user who runs PostgreSQL cannot reach. Finds them elsewhere after the
/// operator has moved them as the refusal says.
pub fn find_databases(layout: &Layout, description: &mut Description) -> anyhow::Result<()> {
    let (Home::Here, Some(user)) = (&description.postgres.home, &description.postgres.user) else { return Ok(()) };
    if server::can_reach(user, layout.root())? {
        return Ok(());
    }
    let own = own_elsewhere(layout)?;
    let home = Home::Elsewhere(own.clone());
    let link = layout.postgres_link();
    let is_real = fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir());
    ensure!(
        !is_real && !home.databases(layout).is_empty(),
        "PostgreSQL runs as user {user}, who cannot reach {root}. Move the folder to where that user can pass, or its \
         databases:\n  mkdir -p {own} && mv {link} {own}/pg\n  shardctl up --data-dir {root}",
        root = layout.root().display(),
        own = own.display(),
        link = link.display(),
    );
    description.postgres.home = home;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{configuration, postgres::database::ensure_passwords};

    /// The files of a cluster in a folder, and a copy of them.
    fn copied() -> (tempfile::TempDir, Layout, Description, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().canonicalize().unwrap().join("copy");
        let layout = Layout::create(&root).unwrap();
        let description = Description::for_tests(&layout);
        for shard in &description.shards {
            ensure_passwords(&layout, shard).unwrap();
        }
        configuration::write(&layout, &description).unwrap();
        let of = parent.path().join("original");
        (parent, layout, description, of)
    }

    fn change(path: &Path, from: &str, to: &str) {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    #[test]
    fn a_copy_gets_its_own_ports_and_keeps_an_operators_edits() {
        let (_parent, layout, mut description, of) = copied();
        let (map, node, router) = (layout.shard_map(), layout.config("s0"), layout.config("router-0"));
        change(&map, "id = \"s0\"", "id = \"s0\" # the first");
        change(&node, "[rpc]", "lane.max_batch_operations = 17\n\n[rpc] # keep me");
        let absolute = format!("'{}' # absolute", of.join("shard-map.toml").display());
        change(&router, "\"../shard-map.toml\"", &absolute);
        let before = description.clone();
        let edits = edits_of_copy(&layout, &mut description, &of, Some(21_000)).unwrap();
        apply(&edits).unwrap();

        assert_eq!(description.copy_of, Some(of));
        assert!(description.ports().iter().all(|(port, _)| (21_000..21_010).contains(port)));
        let read = |path: &Path| fs::read_to_string(path).unwrap();
        let (map, node, router) = (read(&map), read(&node), read(&router));
        let parsed = ShardMap::parse(&map).unwrap();
        assert_eq!((parsed.version, parsed.cluster), (2, before.cluster));
        for shard in &description.shards {
            assert_eq!(parsed.shard(parsed.index_of(&shard.id).unwrap()).nodes, [shard.node_url()]);
        }
        assert!(map.contains("# the first"), "{map}");
        let s0 = &description.shards[0];
        for part in [
            format!(":{}/shardledger", s0.postgres_port),
            format!("listen = \"127.0.0.1:{}\"", s0.rpc_port),
            format!("listen = \"127.0.0.1:{}\"", s0.admin_port),
            "lane.max_batch_operations = 17".to_owned(),
            "[rpc] # keep me".to_owned(),
        ] {
            assert!(node.contains(&part), "{part}: {node}");
        }
        assert!(router.contains("path = \"../shard-map.toml\" # absolute"), "{router}");
        for shard in &before.shards {
            let old = [shard.postgres_port, shard.rpc_port, shard.admin_port].map(|port| format!(":{port}"));
            assert!(!old.iter().any(|port| node.contains(port) || map.contains(port)), "{node} {map}");
        }
        // After an interruption before `cluster.json` was written, all edits are made again with other ports.
        apply(&edits_of_copy(&layout, &mut description, Path::new("/o"), Some(22_000)).unwrap()).unwrap();
        assert!(read(&layout.shard_map()).contains(&description.shards[1].node_url()));
    }

    #[test]
    fn a_setting_that_reaches_the_original_is_refused_by_name() {
        let refusal = |change_files: &dyn Fn(&Layout)| {
            let (_parent, layout, mut description, of) = copied();
            change_files(&layout);
            format!("{:#}", edits_of_copy(&layout, &mut description, &of, None).unwrap_err())
        };
        let node_elsewhere = refusal(&|layout| change(&layout.shard_map(), "127.0.0.1:7501", "db1:7501"));
        assert!(node_elsewhere.contains("node of shard s1: db1:7501 is not"), "{node_elsewhere}");
        let database_elsewhere = refusal(&|layout| change(&layout.config("s0"), "127.0.0.1:5510", "db1:5510"));
        assert!(database_elsewhere.contains("database.url: db1:5510 is not"), "{database_elsewhere}");
        let parameter = refusal(&|layout| change(&layout.config("s0"), "/shardledger\"", "/shardledger?port=5510\""));
        assert!(parameter.contains("database.url: its parameters name a server"), "{parameter}");
        let map = refusal(&|layout| change(&layout.config("router-0"), "../shard-map.toml", "/etc/hostname"));
        assert!(map.contains("map.path names /etc/hostname"), "{map}");
        let nodes = refusal(&|layout| {
            change(
                &layout.shard_map(),
                "\"http://127.0.0.1:7500\"",
                "\"http://127.0.0.1:7500\", \"http://127.0.0.1:7700\"",
            );
        });
        assert!(nodes.contains("shard s0 must have exactly one node"), "{nodes}");
    }

    #[test]
    fn a_moved_folder_changes_only_absolute_paths_of_the_map() {
        let (_parent, layout, description, from) = copied();
        assert!(edits_of_moved(&layout, &description, &from).unwrap().is_empty());
        let absolute = from.join("shard-map.toml");
        change(&layout.config("router-0"), "../shard-map.toml", &absolute.to_string_lossy());
        let edits = edits_of_moved(&layout, &description, &from).unwrap();
        assert_eq!(edits.len(), 1);
        assert!(edits[0].text.contains("path = \"../shard-map.toml\""), "{}", edits[0].text);
    }

    #[test]
    fn a_database_is_complete_if_its_server_was_shut_down() {
        let folder = tempfile::tempdir().unwrap();
        let control = stopped_server::control_file(folder.path());
        fs::create_dir_all(control.parent().unwrap()).unwrap();
        let with_state =
            |state: u8| fs::write(&control, [[0; 16].as_slice(), &[state, 0, 0, 0], &[0; 24]].concat()).unwrap();
        with_state(6);
        assert!(unclean_database(folder.path()).unwrap().unwrap().contains("pg_control says"));
        with_state(1);
        assert_eq!(unclean_database(folder.path()).unwrap(), None);
        fs::write(folder.path().join("postmaster.pid"), "1").unwrap();
        assert!(unclean_database(folder.path()).unwrap().unwrap().contains("postmaster.pid says"));
    }

    #[test]
    fn addresses_keep_their_host() {
        assert_eq!(with_port("0.0.0.0:8080", 9).unwrap(), "0.0.0.0:9");
        assert_eq!(with_port("[::1]:8080", 9).unwrap(), "[::1]:9");
        assert!(with_port("localhost", 9).is_err());
        assert_eq!(database_url("postgres://a:b@localhost:5/d?x=y", 9).unwrap(), "postgres://a:b@localhost:9/d?x=y");
    }
}

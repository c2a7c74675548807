//! Creates a cluster's files: databases, configurations and `cluster.json`. Repeating it changes nothing that exists. Adds a shard to a
//! cluster, and removes one.

use std::{path::PathBuf, thread};

use anyhow::{Context, anyhow, bail, ensure};

use super::{
    configuration,
    description::{Description, FoundDescription, PostgresPlace, Replication, ShardPlace},
    layout::Layout,
    place::FolderPlace,
    ports::{self, PortPlan},
    postgres::{
        database::{self, PreparedDatabase},
        home::Home,
        install::{self, ServerRequirements, Source},
        server,
    },
    relocation,
};
use crate::{
    authority::{self, AUTHORITY_DAYS, Authority, CERTIFICATE_DAYS, LOCAL_HOSTS, Purpose},
    output::note,
};

/// The default number of shards of a new cluster.
const SHARDS: u16 = 4;
const ROUTERS: u16 = 2;
/// `up` renews certificates that expire within this many days.
const RENEW_DAYS: i64 = 30;

/// The requested properties of the cluster. `None` keeps the present value, or selects the default for a new cluster.
#[derive(Debug)]
pub struct Request {
    pub shards: Option<u16>,
    pub routers: Option<u16>,
    /// The number of nodes of each shard: 1 or 2.
    pub nodes: Option<u16>,
    pub port_base: Option<u16>,
    pub standby: Option<Replication>,
    /// Whether the cluster uses HTTPS and mutual TLS.
    pub tls: bool,
    pub bin_dir: PathBuf,
    pub pg_bin: Option<PathBuf>,
    pub pg_source: Source,
}

/// Prepares the data folder for the start of its processes.
pub fn prepare(layout: &Layout, request: &Request) -> anyhow::Result<Description> {
    let mut description = match Description::find(layout)? {
        Some(found) => returning(layout, found, request)?,
        None => new(layout, request)?,
    };
    description.postgres.home.create(layout)?;
    description.postgres.home.claim(layout, description.cluster)?;
    for program in ["router", "shard-node"] {
        let path = description.bin_dir.join(program);
        ensure!(path.is_file(), "{} is missing: build it, or name its folder with --bin-dir", path.display());
    }
    for shard in &description.shards {
        database::ensure_passwords(layout, shard)?;
    }
    if description.has_tls() {
        ensure_certificates(layout)?;
    }
    configuration::write(layout, &description)?;
    // The description is saved before the databases are created, so that `down --wipe` can remove them if their creation fails.
    description.save(layout)?;
    make_databases(layout, &mut description)?;
    Ok(description)
}

fn new(layout: &Layout, request: &Request) -> anyhow::Result<Description> {
    let user = server::service_user()?;
    let home = Home::choose(layout, user.as_ref())?;
    refuse_lost_description(layout, &home)?;
    let server = install::ensure_server(&ServerRequirements {
        bin_dir: request.pg_bin.as_deref(),
        major: None,
        source: request.pg_source,
        home: &home.folder(layout),
    })?;
    // The package that was just installed may have created a user, which is preferred.
    let user = server::service_user()?;
    let (routers, shards) = (request.routers.unwrap_or(ROUTERS), request.shards.unwrap_or(SHARDS));
    let has_second_nodes = request.nodes == Some(2);
    let ports = match (request.port_base, has_second_nodes) {
        (Some(base), false) => PortPlan::block(base, routers, shards)?,
        (Some(base), true) => PortPlan::block_with_second_nodes(base, routers, shards)?,
        (None, false) => PortPlan::usual(routers, shards),
        (None, true) => PortPlan::usual_with_second_nodes(routers, shards),
    };
    let ports = if request.standby.is_some() { ports.with_standbys(request.port_base)? } else { ports };
    let postgres = PostgresPlace { bin_dir: server.bin_dir, major: server.major, home, user };
    let mut description = Description::new(layout, request.bin_dir.clone(), postgres, &ports);
    if let Some(mode) = request.standby {
        description.add_standbys(mode, &ports.standbys);
    }
    if request.tls {
        description.use_tls();
    }
    Ok(description)
}

/// Makes the missing authority and certificates. Renews certificates that expire soon or whose renewal was interrupted.
fn ensure_certificates(layout: &Layout) -> anyhow::Result<()> {
    let folder = layout.tls();
    if !Authority::exists(&folder) {
        Authority::create(&folder, AUTHORITY_DAYS)?;
    }
    let hosts = LOCAL_HOSTS.map(str::to_owned);
    for purpose in Purpose::ALL {
        let name = purpose.name();
        let is_good = authority::certificate_of(&folder, name).exists() && {
            let found = authority::describe(&folder, name)?;
            found.expires_in_days >= RENEW_DAYS && !found.key.needs_renewal()
        };
        if !is_good {
            Authority::open(&folder)?.issue(name, &purpose.subject(&hosts), CERTIFICATE_DAYS)?;
        }
    }
    Ok(())
}

/// Databases without `cluster.json` belong to a cluster that lost the file. A new cluster must not be created over
/// them.
fn refuse_lost_description(layout: &Layout, home: &Home) -> anyhow::Result<()> {
    let here = Home::Here.databases(layout);
    if let Some(database) = here.into_iter().chain(home.databases(layout)).next() {
        let mut remove = layout.root().display().to_string();
        if let Home::Elsewhere(elsewhere) = home {
            remove = format!("{remove} and {}", elsewhere.display());
        }
        bail!(
            "{} is missing, but {} holds a database of the cluster that was here: restore the file, or remove {remove} with all \
             payments to begin a new cluster",
            layout.description().display(),
            database.display()
        );
    }
    Ok(())
}

/// Prepares an existing cluster, which keeps its shards, routers and ports; programs and the data folder may have
/// moved. Nothing is written or installed before the databases are known to be whole and to belong to the cluster.
fn returning(layout: &Layout, found: FoundDescription, request: &Request) -> anyhow::Result<Description> {
    let FoundDescription { mut description, place } = found;
    let refused = || format!("the cluster in {} already exists", layout.root().display());
    description.refuse_other_size(request).with_context(refused)?;
    description.refuse_other_standbys(request).with_context(refused)?;
    description.refuse_other_tls(request).with_context(refused)?;
    relocation::find_databases(layout, &mut description)?;
    if let FolderPlace::Copied { of } = &place {
        relocation::check_copy(layout, &description, of)?;
    }
    database::check(layout, &description)?;
    let edits = match &place {
        FolderPlace::Same => Vec::new(),
        FolderPlace::Moved { from } => {
            note(&format!("the data folder was moved from {} to {}", from.display(), layout.root().display()));
            note_unclean(layout, &description)?;
            relocation::edits_of_moved(layout, &description, from)?
        }
        FolderPlace::Copied { of } => relocation::edits_of_copy(layout, &mut description, of, request.port_base)?,
    };
    description.refuse_other_ports(request).with_context(refused)?;
    description.root = layout.root().to_owned();
    let server = install::ensure_server(&ServerRequirements {
        bin_dir: request.pg_bin.as_deref(),
        major: Some(description.postgres.major),
        source: request.pg_source,
        home: &description.postgres.home.folder(layout),
    })?;
    description.postgres.bin_dir = server.bin_dir;
    description.bin_dir.clone_from(&request.bin_dir);
    relocation::apply(&edits)?;
    Ok(description)
}

/// Reports databases that were not shut down cleanly. After a crash and a move this is harmless, because they
/// recover. A copy taken while the databases ran looks the same if the original is on another machine.
fn note_unclean(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    for shard in &description.shards {
        if let Some(why) = relocation::unclean_database(&description.servers(layout, shard).primary.folder)? {
            note(&format!(
                "shard {}: {why}. If this folder is a copy that was taken while the cluster ran, its data may be torn: copy \
                 it again after `shardctl down`",
                shard.id
            ));
        }
    }
    Ok(())
}

impl Description {
    /// Slots belong to shards by their data, so the number of shards cannot change at a start.
    pub fn refuse_changes(&self, request: &Request) -> anyhow::Result<()> {
        self.refuse_other_size(request)?;
        self.refuse_other_standbys(request)?;
        self.refuse_other_tls(request)?;
        self.refuse_other_ports(request)
    }

    fn refuse_other_standbys(&self, request: &Request) -> anyhow::Result<()> {
        let has = self.shards.iter().find_map(|shard| shard.standby.as_ref()).map(|standby| standby.mode);
        match request.standby {
            Some(asked) if has != Some(asked) => bail!(
                "it was created {}, which this version does not change; use another --data-dir",
                has.map_or_else(|| "without stand-bys".to_owned(), |mode| format!("with --standby {}", mode.word()))
            ),
            _ => Ok(()),
        }
    }

    fn refuse_other_tls(&self, request: &Request) -> anyhow::Result<()> {
        ensure!(
            !request.tls || self.has_tls(),
            "it was created without TLS: use another --data-dir, or make certificates with `shardctl tls init` and name them in the configurations"
        );
        Ok(())
    }

    fn refuse_other_size(&self, request: &Request) -> anyhow::Result<()> {
        let refuse = |what: &str, has: usize, asked: Option<u16>| match asked {
            Some(asked) if usize::from(asked) != has => {
                bail!(
                    "it has {has} {what}, not {asked}; remove it with `shardctl down --wipe`, or use another --data-dir"
                )
            }
            _ => Ok(()),
        };
        refuse("shards", self.shards.len(), request.shards)?;
        refuse("routers", self.routers.len(), request.routers)?;
        let nodes = if self.shards.iter().any(|shard| shard.second_node.is_some()) { 2 } else { 1 };
        refuse("nodes for each shard", nodes, request.nodes)
    }

    fn refuse_other_ports(&self, request: &Request) -> anyhow::Result<()> {
        let first = self.routers.first().map(|router| router.http_port);
        match request.port_base {
            Some(base) if base != 0 && first != Some(base) => {
                bail!("the ports of an existing cluster cannot be changed")
            }
            _ => Ok(()),
        }
    }
}

/// Creates all databases at once, because most of the time is spent waiting for the disk. Each created database is
/// recorded, even if another one fails.
fn make_databases(layout: &Layout, description: &mut Description) -> anyhow::Result<()> {
    let before = description.clone();
    let made: Vec<anyhow::Result<PreparedDatabase>> = thread::scope(|scope| {
        let makers: Vec<_> = before
            .shards
            .iter()
            .map(|shard| scope.spawn(|| database::ensure_database(layout, &before, shard)))
            .collect();
        let panicked = |_| Err(anyhow!("making a database panicked"));
        makers.into_iter().map(|maker| maker.join().unwrap_or_else(panicked)).collect()
    });
    for (shard, made) in description.shards.iter_mut().zip(&made) {
        let Ok(made) = made else { continue };
        shard.system_identifier = Some(made.system_identifier);
        if let Some(standby) = &mut shard.standby {
            standby.pending = made.pending;
        }
    }
    if *description != before {
        description.save(layout)?;
    }
    made.into_iter().try_for_each(|made| made.map(drop))
}

/// Makes the database and the configuration of a new shard. The cluster's processes do not know of the shard yet. If the description already
/// names the shard, returns that shard.
///
/// # Errors
/// The database cannot be made.
pub fn prepare_shard(layout: &Layout, id: &str, number: u16) -> anyhow::Result<ShardPlace> {
    let mut description = Description::find(layout)?
        .map(|found| found.description)
        .ok_or_else(|| anyhow::anyhow!("there is no cluster in {}", layout.root().display()))?;
    if let Some(known) = description.shard(id) {
        return Ok(known.clone());
    }
    let taken: Vec<u16> = description.ports().into_iter().map(|(port, _)| port).collect();
    let ports = next_ports(&description, &taken)?;
    let mut shard = ShardPlace {
        id: id.to_owned(),
        number,
        postgres_port: ports.postgres,
        rpc_port: ports.rpc,
        admin_port: ports.admin,
        second_node: None,
        system_identifier: None,
        standby: None,
    };
    let folder = description.database_folder(layout, &shard);
    ensure!(
        !folder.exists(),
        "{} exists and belongs to no shard of the cluster: remove it if an earlier `shardctl shard add` failed",
        folder.display()
    );
    description.shards.push(shard.clone());
    database::ensure_passwords(layout, &shard)?;
    configuration::write_node(layout, &description, &shard)?;
    shard.system_identifier = Some(database::ensure_database(layout, &description, &shard)?.system_identifier);
    Ok(shard)
}

/// Writes the shard into the description, where the supervisor finds it.
///
/// # Errors
/// The description cannot be written.
pub fn announce_shard(layout: &Layout, shard: ShardPlace) -> anyhow::Result<()> {
    let found = Description::find(layout)?;
    let mut description = found
        .map(|found| found.description)
        .ok_or_else(|| anyhow::anyhow!("there is no cluster in {}", layout.root().display()))?;
    if description.shard(&shard.id).is_none() {
        description.shards.push(shard);
        description.save(layout)?;
    }
    Ok(())
}

/// Removes a shard from the description. The supervisor then stops the shard's processes. Returns the folder of the shard's database, which
/// stays.
///
/// # Errors
/// The description cannot be read or written.
pub fn forget_shard(layout: &Layout, id: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(found) = Description::find(layout)? else { return Ok(None) };
    let mut description = found.description;
    let Some(shard) = description.shard(id).cloned() else { return Ok(None) };
    let folder = description.database_folder(layout, &shard);
    description.shards.retain(|shard| shard.id != id);
    description.save(layout)?;
    Ok(Some(folder))
}

/// The ports after those of the last shard if they are free, or else a free block.
fn next_ports(description: &Description, taken: &[u16]) -> anyhow::Result<ports::ShardPorts> {
    if let Some(last) = description.shards.last() {
        let next = ports::ShardPorts {
            postgres: last.postgres_port.saturating_add(1),
            rpc: last.rpc_port.saturating_add(1),
            admin: last.admin_port.saturating_add(1),
        };
        let is_free = |port: u16| !taken.contains(&port) && ports::is_free(port);
        if is_free(next.postgres) && is_free(next.rpc) && is_free(next.admin) {
            return Ok(next);
        }
    }
    let plan = PortPlan::free_block_beside(taken, 0, 1)?;
    plan.shards.first().copied().ok_or_else(|| anyhow::anyhow!("there are no free ports"))
}

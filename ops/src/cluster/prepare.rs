//! Making a cluster's files: databases, configurations and `cluster.json`. Doing it again changes nothing that is there.

use std::{path::PathBuf, thread};

use anyhow::{Context, anyhow, bail, ensure};

use crate::cluster::{
    configuration,
    description::{Description, PostgresPlace},
    layout::Layout,
    ports::PortPlan,
    postgres::{
        database,
        install::{self, Source, Wanted},
        user,
    },
};

/// Shards of a new cluster, where nobody says how many.
const SHARDS: u16 = 4;
const ROUTERS: u16 = 2;

/// What was asked of the cluster; `None` leaves it as it is, or takes the default for a new one.
#[derive(Debug)]
pub struct Request {
    pub shards: Option<u16>,
    pub routers: Option<u16>,
    pub port_base: Option<u16>,
    pub bin_dir: PathBuf,
    pub pg_bin: Option<PathBuf>,
    pub pg_source: Source,
}

/// Brings the data folder to where its processes can be started.
pub fn prepare(layout: &Layout, request: &Request) -> anyhow::Result<Description> {
    let description = match Description::load(layout)? {
        Some(found) => returning(layout, found, request)?,
        None => new(layout, request)?,
    };
    for program in ["router", "shard-node"] {
        let path = description.bin_dir.join(program);
        ensure!(path.is_file(), "{} is missing: build it, or name its folder with --bin-dir", path.display());
    }
    for shard in &description.shards {
        database::ensure_passwords(layout, shard)?;
    }
    configuration::write(layout, &description)?;
    // Before the databases: should making them fail, `down --wipe` knows what to remove.
    description.save(layout)?;
    make_databases(layout, &description)?;
    Ok(description)
}

fn new(layout: &Layout, request: &Request) -> anyhow::Result<Description> {
    let user = user::service_user()?;
    let home = user::home_for(layout, user.as_ref())?;
    let server = install::ensure_server(&Wanted {
        bin_dir: request.pg_bin.as_deref(),
        major: None,
        source: request.pg_source,
        home: &home,
    })?;
    // A package may have brought its own user, better than the one there was.
    let user = user::service_user()?;
    let (routers, shards) = (request.routers.unwrap_or(ROUTERS), request.shards.unwrap_or(SHARDS));
    let ports = match request.port_base {
        Some(base) => PortPlan::block(base, routers, shards)?,
        None => PortPlan::usual(routers, shards),
    };
    let postgres = PostgresPlace { bin_dir: server.bin_dir, major: server.major, home, user };
    Ok(Description::new(request.bin_dir.clone(), postgres, &ports))
}

/// A cluster keeps its shards, routers and ports; programs may have moved.
fn returning(layout: &Layout, mut found: Description, request: &Request) -> anyhow::Result<Description> {
    found.refuse_changes(request).with_context(|| format!("the cluster in {} is there", layout.root().display()))?;
    let server = install::ensure_server(&Wanted {
        bin_dir: request.pg_bin.as_deref(),
        major: Some(found.postgres.major),
        source: request.pg_source,
        home: &found.postgres.home,
    })?;
    found.postgres.bin_dir = server.bin_dir;
    found.bin_dir.clone_from(&request.bin_dir);
    Ok(found)
}

impl Description {
    /// Slots belong to shards by their data, so a cluster cannot be given another size by starting it differently.
    pub fn refuse_changes(&self, request: &Request) -> anyhow::Result<()> {
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
        let first = self.routers.first().map(|router| router.http_port);
        match request.port_base {
            Some(base) if base != 0 && first != Some(base) => bail!("its ports are chosen and stay as they are"),
            _ => Ok(()),
        }
    }
}

/// All at once: most of the time goes into waiting for the disk.
fn make_databases(layout: &Layout, description: &Description) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let makers: Vec<_> = description
            .shards
            .iter()
            .map(|shard| scope.spawn(move || database::ensure_database(layout, description, shard)))
            .collect();
        for maker in makers {
            maker.join().map_err(|_| anyhow!("making a database panicked"))??;
        }
        Ok(())
    })
}

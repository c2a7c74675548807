//! Adds a shard to a cluster on this machine, and removes one.

use std::path::PathBuf;

use anyhow::ensure;

use crate::cluster::{
    configuration,
    description::{Description, ShardPlace},
    layout::Layout,
    ports::{self, PortPlan},
    postgres::database,
};

/// Makes the database and the configuration of a new shard. The cluster's processes do not know of the shard yet.
/// Returns a shard that the description already names.
///
/// # Errors
/// When the database cannot be made.
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
/// When the description cannot be written.
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

/// Takes a shard out of the description; the supervisor then stops its processes. Returns the folder of its database, which stays.
///
/// # Errors
/// When the description cannot be read or written.
pub fn forget_shard(layout: &Layout, id: &str) -> anyhow::Result<Option<PathBuf>> {
    let Some(found) = Description::find(layout)? else { return Ok(None) };
    let mut description = found.description;
    let Some(shard) = description.shard(id).cloned() else { return Ok(None) };
    let folder = description.database_folder(layout, &shard);
    description.shards.retain(|shard| shard.id != id);
    description.save(layout)?;
    Ok(Some(folder))
}

/// The ports after the last shard's, if they are free, or a free block.
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

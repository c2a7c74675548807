//! What a child process does not get from the environment of `shardctl`.

use std::{ffi::OsStr, process::Command};

/// The prefix of every variable that libpq, sqlx or the PostgreSQL server reads: `PGSSLMODE`, `PGOPTIONS`, `PGDATA` …
const POSTGRES_PREFIX: &[u8] = b"PG";
/// The node's own override of `database.url`. It names one database, and a cluster on this machine has one per shard.
const NODE_DATABASE: &str = "SHARD_NODE_DATABASE_URL";

/// Keeps variables that choose a database or a way to connect from the child. The processes of a cluster take both from their
/// configuration files alone; otherwise a variable in the operator's shell would change how the cluster runs.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if chooses_a_database(&name) {
            command.env_remove(name);
        }
    }
}

fn chooses_a_database(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(POSTGRES_PREFIX) || name == NODE_DATABASE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_postgresql_are_kept_out_and_others_are_not() {
        for name in ["PGSSLMODE", "PGOPTIONS", "PGDATABASE", "PGHOST", "PGDATA", "SHARD_NODE_DATABASE_URL"] {
            assert!(chooses_a_database(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "LANG", "LC_ALL", "HOME", "TZ", "SHARDLEDGER_PG_BIN", "RUST_LOG"] {
            assert!(!chooses_a_database(OsStr::new(name)), "{name}");
        }
    }
}

//! Removes variables from the environment that child processes inherit from `shardctl`.

use std::{ffi::OsStr, process::Command};

/// The prefix of every variable that libpq, sqlx or the PostgreSQL server reads: `PGSSLMODE`, `PGOPTIONS`, `PGDATA` …
const POSTGRES_PREFIX: &[u8] = b"PG";
/// The node's override of `database.url`. It names one database, but a cluster on this machine has one for each
/// shard.
const NODE_DATABASE: &str = "SHARD_NODE_DATABASE_URL";

/// Removes variables that choose a database or a way to connect. The processes of a cluster take both from their
/// configuration files; a variable in the operator's shell must not change how the cluster runs.
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
    fn only_variables_of_postgresql_are_removed() {
        for name in ["PGSSLMODE", "PGOPTIONS", "PGDATABASE", "PGHOST", "PGDATA", "SHARD_NODE_DATABASE_URL"] {
            assert!(chooses_a_database(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "LANG", "LC_ALL", "HOME", "TZ", "SHARDLEDGER_PG_BIN", "RUST_LOG"] {
            assert!(!chooses_a_database(OsStr::new(name)), "{name}");
        }
    }
}

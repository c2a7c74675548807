//! The settings of a shard's PostgreSQL. Durability comes first, and the sizes suit several servers on one machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The longest path of a folder for unix sockets, in bytes. The kernel accepts 107 bytes, and PostgreSQL appends `/.s.PGSQL.<port>.lock`.
const LONGEST_SOCKET_FOLDER: usize = 80;
const MIB: u64 = 1024 * 1024;

/// The lines that are appended to `postgresql.conf`: they include these settings, and then the settings of the operator.
pub const INCLUDES: &str = "
# Written by shardctl up, and written anew each time. Put your own settings into local.conf, which takes precedence.
include 'shardledger.conf'
include_if_exists 'local.conf'
";

/// The value is a constant, because a stand-by does not start with less than its primary was last started with.
pub const MAX_CONNECTIONS: u32 = 64;

/// Every connection needs a password, and must come from this machine.
pub const HOST_BASED_AUTHENTICATION: &str = "\
local all all scram-sha-256
host  all all 127.0.0.1/32 scram-sha-256
host  replication all 127.0.0.1/32 scram-sha-256
";

/// The settings that differ between servers.
#[derive(Debug)]
pub struct Settings {
    pub port: u16,
    /// `None`: no unix socket.
    pub socket_folder: Option<PathBuf>,
    pub shared_buffers_mib: u64,
    pub max_wal_size_gib: usize,
    /// The other server of the shard. Each of the two follows the other one while it is a stand-by.
    pub peer: Option<Peer>,
}

/// The name under which a stand-by follows its primary.
const STANDBY_NAME: &str = "shardledger_standby";

/// The other server of a shard.
#[derive(Debug)]
pub struct Peer {
    pub port: u16,
    pub user: &'static str,
    pub password: String,
    /// Whether a commit waits for the stand-by.
    pub is_synchronous: bool,
}

impl Peer {
    fn text(&self) -> String {
        let Self { port, user, password, is_synchronous } = self;
        let names = if *is_synchronous { STANDBY_NAME } else { "" };
        format!(
            "
# The connection to the other server of the shard, which this server uses while it is a stand-by. A password consists of letters and digits.
primary_conninfo = 'host=127.0.0.1 port={port} user={user} password={password} application_name={STANDBY_NAME}'
hot_standby = on
# A stand-by that was down for some time still finds the log that it needs.
wal_keep_size = 1GB
# With a name, a commit waits until the stand-by has received it. Only a stand-by uses the name; programs that copy the log do not.
synchronous_standby_names = '{names}'
"
        )
    }
}

impl Settings {
    pub fn for_server(port: u16, socket_folder: &Path, servers: usize) -> Self {
        Self {
            port,
            socket_folder: Some(socket_folder.to_owned()).filter(|f| f.as_os_str().len() <= LONGEST_SOCKET_FOLDER),
            shared_buffers_mib: shared_buffers_mib(memory_bytes(), servers),
            max_wal_size_gib: max_wal_size_gib(servers),
            peer: None,
        }
    }

    /// The text of `shardledger.conf`.
    pub fn text(&self) -> String {
        let socket_folder = self.socket_folder.as_ref().map(|f| f.display().to_string()).unwrap_or_default();
        let peer = self.peer.as_ref().map(Peer::text).unwrap_or_default();
        format!(
            "\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{socket_folder}'
password_encryption = 'scram-sha-256'
max_connections = {MAX_CONNECTIONS}

# An answered transfer survives power loss.
fsync = on
synchronous_commit = on
full_page_writes = on

# Random updates of a hot account table dirty many pages. Checkpoints are far apart and spread out, so that few full
# pages go to the log and no commit waits for a burst of writes.
shared_buffers = {shared_buffers}MB
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = {max_wal_size}GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9

# The account table is updated in place; vacuum keeps its pages short.
autovacuum_naptime = 15s
autovacuum_vacuum_cost_limit = 2000

# One lane writes short statements with known plans.
jit = off
random_page_cost = 1.1

# A session that leaves a transaction open must not hold back vacuum.
idle_in_transaction_session_timeout = '60s'
tcp_keepalives_idle = 30
tcp_keepalives_interval = 10
tcp_keepalives_count = 3

timezone = 'UTC'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %q%u@%d '
log_checkpoints = on
log_lock_waits = on
log_autovacuum_min_duration = '10s'
{peer}",
            port = self.port,
            socket_folder = socket_folder.replace('\'', "''"),
            shared_buffers = self.shared_buffers_mib,
            max_wal_size = self.max_wal_size_gib,
        )
    }
}

/// All servers together get an eighth of the memory, so that nodes, routers and the page cache have room.
fn shared_buffers_mib(memory_bytes: u64, servers: usize) -> u64 {
    let servers = u64::try_from(servers).unwrap_or(u64::MAX).max(1);
    (memory_bytes / MIB / 8 / servers).clamp(64, 1024)
}

/// The logs of all servers together stay near 8 GiB, because one laptop's disk may hold all of them.
fn max_wal_size_gib(servers: usize) -> usize {
    (8 / servers.max(1)).clamp(1, 4)
}

fn memory_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_shared_by_the_servers() {
        assert_eq!(shared_buffers_mib(16 * 1024 * MIB, 4), 512);
        assert_eq!(shared_buffers_mib(64 * 1024 * MIB, 1), 1024);
        assert_eq!(shared_buffers_mib(0, 4), 64);
    }

    #[test]
    fn so_is_the_disk() {
        assert_eq!([0, 1, 2, 4, 64].map(max_wal_size_gib), [4, 4, 4, 2, 1]);
    }

    #[test]
    fn a_socket_folder_too_long_for_the_kernel_is_left_out() {
        let long = PathBuf::from(format!("/{}", "x".repeat(LONGEST_SOCKET_FOLDER)));
        assert!(Settings::for_server(5510, &long, 1).text().contains("unix_socket_directories = ''"));
        let short = Settings::for_server(5510, Path::new("/tmp/it's"), 1).text();
        assert!(short.contains("unix_socket_directories = '/tmp/it''s'"), "{short}");
    }

    #[test]
    fn a_server_with_a_peer_follows_it_and_waits_for_it_if_synchronous() {
        let text = |is_synchronous| {
            let peer = Peer { port: 5610, user: "postgres", password: "hush".to_owned(), is_synchronous };
            Settings { peer: Some(peer), ..Settings::for_server(5510, Path::new("/tmp"), 1) }.text()
        };
        assert!(text(true).contains("port=5610 user=postgres password=hush application_name=shardledger_standby'\n"));
        assert!(text(true).contains("\nsynchronous_standby_names = 'shardledger_standby'\n"));
        assert!(text(false).contains("\nsynchronous_standby_names = ''\n"));
        let alone = Settings::for_server(5510, Path::new("/tmp"), 1).text();
        assert!(!alone.contains("synchronous_standby_names") && !alone.contains("primary_conninfo"));
    }

    #[test]
    fn commits_are_durable() {
        let text = Settings::for_server(5510, Path::new("/tmp"), 1).text();
        for line in
            ["fsync = on", "synchronous_commit = on", "full_page_writes = on", "listen_addresses = '127.0.0.1'"]
        {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
    }
}

//! The hosts of `database.url`, and which of them this node uses.
//!
//! [`Hosts::find`] chooses: the monitor calls it, and a node that starts. The lane, the fold and the pools connect to the chosen
//! host, so that all sessions of the node lead to one server. The gate compares each of them (`docs/adr/0013`).

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use shard_database::{
    DatabaseUrl,
    address::{Host, InvalidUrl},
    primary,
};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgPool},
};

use crate::{config::DatabaseConfig, store::StoreError};

/// Shared by every part of the node that connects to the database.
#[derive(Clone)]
pub struct Hosts(Arc<Shared>);

struct Shared {
    config: DatabaseConfig,
    url: DatabaseUrl,
    chosen: AtomicUsize,
    /// The pools that connect to the chosen host.
    pools: Mutex<Vec<PgPool>>,
}

impl Hosts {
    /// # Errors
    /// `database.url` is not usable. `Config::load` has checked it.
    pub fn new(config: &DatabaseConfig) -> Result<Self, InvalidUrl> {
        let url = DatabaseUrl::new(&config.url)?;
        let (chosen, pools) = Default::default();
        Ok(Self(Arc::new(Shared { config: config.clone(), url, chosen, pools })))
    }

    pub fn config(&self) -> &DatabaseConfig {
        &self.0.config
    }

    /// Whether the URL names several hosts.
    pub fn are_several(&self) -> bool {
        self.0.url.hosts().len() > 1
    }

    /// The options of a connection to the chosen host.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.chosen().map_or_else(PgConnectOptions::new_without_pgpass, Host::connect_options)
    }

    /// The options of a session of the lane to the chosen host.
    ///
    /// # Errors
    /// `pg-session` does not take the URL.
    pub fn session_options(&self) -> Result<pg_session::ConnectOptions, pg_session::InvalidOptions> {
        pg_session::ConnectOptions::from_url(self.chosen().map_or("", Host::url))
    }

    /// Connects to the primary, and chooses its host. A URL of one host is not asked for a primary: the gate refuses a stand-by by
    /// name. `prepare` adds the settings of the session; `limit` is the time limit for each host.
    ///
    /// # Errors
    /// The host does not answer, or none of several is a primary.
    pub async fn find(
        &self,
        limit: Duration,
        prepare: impl Fn(PgConnectOptions) -> PgConnectOptions,
    ) -> Result<PgConnection, StoreError> {
        if !self.are_several() {
            let options = prepare(self.connect_options());
            return match tokio::time::timeout(limit, PgConnection::connect_with(&options)).await {
                Ok(connected) => Ok(connected?),
                Err(_) => Err(StoreError::TimedOut(limit)),
            };
        }
        let primary = primary::find(&self.0.url, self.0.chosen.load(Relaxed), limit, prepare).await?;
        self.choose(primary.host);
        Ok(primary.connection)
    }

    /// Makes a pool connect to the chosen host from now on.
    pub fn lead(&self, pool: &PgPool) {
        let mut pools = self.pools();
        if let Some(host) = self.chosen() {
            redirect(pool, host);
        }
        pools.push(pool.clone());
    }

    fn choose(&self, index: usize) {
        // The lock keeps a pool from being added in between.
        let pools = self.pools();
        let former = self.0.chosen.swap(index, Relaxed);
        let Some(host) = self.chosen().filter(|_| former != index) else { return };
        let from = self.0.url.hosts().get(former).map_or("", Host::name);
        tracing::warn!(from, to = host.name(), "another host of database.url is the primary");
        pools.iter().for_each(|pool| redirect(pool, host));
    }

    fn chosen(&self) -> Option<&Host> {
        self.0.url.hosts().get(self.0.chosen.load(Relaxed))
    }

    fn pools(&self) -> MutexGuard<'_, Vec<PgPool>> {
        // No code panics while it holds the lock.
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Several hosts differ in nothing but host and port.
fn redirect(pool: &PgPool, host: &Host) {
    let to = host.connect_options();
    if to.get_socket().is_none() {
        let options = pool.connect_options().as_ref().clone();
        pool.set_connect_options(options.host(to.get_host()).port(to.get_port()));
    }
}

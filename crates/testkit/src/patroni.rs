//! A real Patroni cluster on one machine: etcd, and members with a PostgreSQL each.

use std::{
    fs::File,
    net::SocketAddr,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use http::Method;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::{
    client::Client,
    leash::{Leash, Leashed},
    node::Folder,
    process::Process,
    programs::{Service, free_port, in_path, postgres_programs, service_user},
    wait::until,
};

const ROLE: &str = "shardledger";
/// The time that a change of roles may take. It is longer than the leader's key lives in etcd (`TTL_S`), and longer than a member needs to
/// rewind.
const PATIENCE: Duration = Duration::from_secs(120);
/// The time that the leader's key lives in etcd. Patroni accepts no smaller value.
const TTL_S: u32 = 20;

/// The programs of Patroni and etcd.
#[derive(Debug, Clone)]
pub struct Programs {
    patroni: PathBuf,
    etcd: PathBuf,
}

impl Programs {
    /// Finds the programs in `PATH`. The error names the program that is missing.
    pub fn find() -> anyhow::Result<Self> {
        let named = |name: &str| in_path(name).with_context(|| format!("this machine has no {name}"));
        Ok(Self { patroni: named("patroni")?, etcd: named("etcd")? })
    }
}

/// A running etcd of one member.
#[derive(Debug)]
pub struct Etcd {
    address: SocketAddr,
    _running: Leashed,
}

impl Etcd {
    pub async fn start(programs: &Programs, folder: &Folder) -> anyhow::Result<Self> {
        let address = loopback()?;
        let (clients, peers) = (format!("http://{address}"), format!("http://{}", loopback()?));
        let log = File::create(folder.path().join("etcd.log"))?;
        let mut command = Command::new(&programs.etcd);
        command
            .arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let running = Leashed::spawn(command)?;
        until("etcd is healthy", PATIENCE, async || {
            let answer = Client::new(Vec::new()).request(Method::GET, &format!("{clients}/health"), None).await?;
            Ok((answer.status == 200).then_some(()))
        })
        .await?;
        Ok(Self { address, _running: running })
    }
}

/// A member of the Patroni cluster: a Patroni and its PostgreSQL. Dropping it ends both.
#[derive(Debug)]
pub struct PatroniMember {
    programs: Programs,
    name: String,
    user: Option<Service>,
    data: PathBuf,
    config: PathBuf,
    log: PathBuf,
    rest: SocketAddr,
    postgres: SocketAddr,
    running: Option<Leashed>,
    /// Ends the PostgreSQL, which is no child of this process. It is dropped after `running`, because a running Patroni would start its
    /// server again.
    _postgres_leash: Leash,
}

impl PatroniMember {
    /// Writes the configuration and starts Patroni, without waiting for it.
    pub fn start(programs: &Programs, folder: &Folder, name: &str, etcd: &Etcd) -> anyhow::Result<Self> {
        let user = service_user()?;
        let home = folder.path().join(name);
        std::fs::create_dir(&home)?;
        if let Some(user) = user {
            chown(&home, Some(user.uid), Some(user.gid))?;
        }
        let (data, config, log) =
            (home.join("data"), home.join("patroni.yml"), folder.path().join(format!("{name}.log")));
        let (rest, postgres) = (loopback()?, loopback()?);
        std::fs::write(&config, configuration(name, &home, etcd.address, rest, postgres)?)?;
        let leash = Leash::on_server(&data)?;
        let mut member = Self {
            programs: programs.clone(),
            name: name.to_owned(),
            user,
            data,
            config,
            log,
            rest,
            postgres,
            running: None,
            _postgres_leash: leash,
        };
        member.start_again()?;
        Ok(member)
    }

    /// Starts Patroni after it was killed.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.programs.patroni);
        let home = self.config.parent().unwrap_or(Path::new("/"));
        command.arg(&self.config).current_dir(home).env("HOME", home).env("LC_ALL", "C");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(Service { uid, gid }) = self.user {
            command.uid(uid).gid(gid);
        }
        self.running = Some(Leashed::spawn(command)?);
        Ok(())
    }

    /// Sends `kill -9` to Patroni and to the postmaster, in this order, so that Patroni notices nothing.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let patroni = self.running.take().context("Patroni does not run")?;
        patroni.process().kill().await?;
        self.postmaster()?.kill().await
    }

    fn postmaster(&self) -> anyhow::Result<Process> {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid"))?;
        let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).context("no process id")?;
        Process::of(pid).context("the postmaster does not run")
    }

    /// Waits until Patroni's health check of this path answers 200: `primary`, `synchronous` or `replica`.
    pub async fn becomes(&self, role: &str) -> anyhow::Result<()> {
        let url = format!("http://{}/{role}", self.rest);
        until(&format!("member {} is {role}", self.name), PATIENCE, async || {
            let answer = Client::new(Vec::new()).request(Method::GET, &url, None).await?;
            ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
            Ok(Some(()))
        })
        .await
        .with_context(|| std::fs::read_to_string(&self.log).unwrap_or_default())
    }

    pub fn address(&self) -> SocketAddr {
        self.postgres
    }

    /// Creates an empty database of the services' role.
    pub async fn create_database(&self, name: &str) -> anyhow::Result<()> {
        for sql in [format!("CREATE ROLE {ROLE} LOGIN"), format!("CREATE DATABASE \"{name}\" OWNER {ROLE}")] {
            let mut connection =
                PgConnection::connect(&format!("postgres://postgres@{}/postgres", self.postgres)).await?;
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
            connection.close().await?;
        }
        Ok(())
    }
}

/// The URL of a database with the hosts of all members, for the services.
pub fn url_of_all(members: &[&PatroniMember], database: &str) -> String {
    let hosts: Vec<String> = members.iter().map(|member| member.postgres.to_string()).collect();
    format!("postgres://{ROLE}@{}/{database}", hosts.join(","))
}

fn loopback() -> anyhow::Result<SocketAddr> {
    Ok(([127, 0, 0, 1], free_port()?).into())
}

/// The settings that `docs/operations/failover.md` recommends, with short times.
fn configuration(
    name: &str,
    home: &Path,
    etcd: SocketAddr,
    rest: SocketAddr,
    postgres: SocketAddr,
) -> anyhow::Result<String> {
    let (home, programs) = (home.display(), postgres_programs()?);
    Ok(format!(
        "\
scope: shardledger
name: {name}
restapi: {{listen: '{rest}', connect_address: '{rest}'}}
etcd3: {{hosts: '{etcd}'}}
bootstrap:
  dcs:
    ttl: {TTL_S}
    loop_wait: 2
    retry_timeout: 3
    synchronous_mode: true
    synchronous_mode_strict: true
    postgresql:
      use_pg_rewind: true
      parameters: {{wal_log_hints: 'on', max_connections: 64, shared_buffers: 32MB, synchronous_commit: 'on'}}
  initdb: [{{encoding: UTF8}}, {{locale: C}}, data-checksums]
  pg_hba: ['host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']
postgresql:
  listen: '{postgres}'
  connect_address: '{postgres}'
  data_dir: {home}/data
  bin_dir: {}
  pgpass: {home}/pgpass
  remove_data_directory_on_diverged_timelines: true
  remove_data_directory_on_rewind_failure: true
  authentication:
    superuser: {{username: postgres}}
    replication: {{username: postgres}}
    rewind: {{username: postgres}}
  parameters: {{unix_socket_directories: '.', timezone: UTC}}
watchdog: {{mode: 'off'}}
",
        programs.display()
    ))
}

//! One router process of the test's own.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use http::Method;
use serde_json::Value;

use crate::{
    client::{Answer, Client},
    leash::Leashed,
    node::Folder,
    process::Process,
    programs::{free_port, program},
    wait::until,
};

const START: Duration = Duration::from_secs(60);

/// The files and addresses of a router.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    http: SocketAddr,
    admin: SocketAddr,
    file: PathBuf,
    log: PathBuf,
}

impl RouterConfig {
    /// Writes the configuration into the folder under this name; `more` is further configuration, as TOML.
    pub fn write(folder: &Folder, name: &str, map: &Path, more: &str) -> anyhow::Result<Self> {
        let config = Self {
            http: ([127, 0, 0, 1], free_port()?).into(),
            admin: ([127, 0, 0, 1], free_port()?).into(),
            file: folder.path().join(format!("{name}.toml")),
            log: folder.path().join(format!("{name}.log")),
        };
        let text = format!(
            "[http]\nlisten = \"{}\"\n[admin]\nlisten = \"{}\"\n[map]\npath = \"{}\"\n{more}\n",
            config.http,
            config.admin,
            map.display()
        );
        std::fs::write(&config.file, text)?;
        Ok(config)
    }

    /// The URL at which the router takes requests.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Changes the text of the configuration.
    pub fn edit(&self, change: impl FnOnce(String) -> String) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(&self.file)?;
        Ok(std::fs::write(&self.file, change(text))?)
    }

    /// The router's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn command(&self) -> anyhow::Result<Command> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program("router")?);
        command.arg("--config").arg(&self.file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

/// A running router.
pub struct Router {
    config: RouterConfig,
    client: Client,
    leashed: Leashed,
}

impl Router {
    /// Starts the router and waits until it takes requests, even if it reaches no shard.
    pub async fn start(config: &RouterConfig) -> anyhow::Result<Self> {
        let mut leashed = Leashed::spawn(config.command()?)?;
        let client = Client::new(vec![config.url()]);
        let url = format!("http://{}/readyz", config.admin);
        let started = until("the router is ready", START, async || {
            if let Some(status) = leashed.ended()? {
                return Ok(Some(Err(status)));
            }
            let answer = client.request(Method::GET, &url, None).await?;
            Ok((answer.status == 200).then_some(Ok(())))
        })
        .await
        .with_context(|| config.log())?;
        if let Err(status) = started {
            bail!("the router ended by itself ({status}): {}", config.log());
        }
        Ok(Self { config: config.clone(), client, leashed })
    }

    /// Starts a router that must refuse to run. Returns its output.
    pub async fn start_refused(config: &RouterConfig) -> anyhow::Result<String> {
        let mut leashed = Leashed::spawn(config.command()?)?;
        let status = until("the router has refused to run", START, async || leashed.ended()).await?;
        ensure!(!status.success(), "the router should have failed: {}", config.log());
        Ok(config.log())
    }

    pub fn process(&self) -> Process {
        self.leashed.process()
    }

    /// The URL at which the router takes requests.
    pub fn url(&self) -> String {
        self.config.url()
    }

    /// A client of this router only.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Sends a request to the admin listener.
    pub async fn admin(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let url = format!("http://{}{path}", self.config.admin);
        Ok(self.client.request(method, &url, None).await?)
    }

    /// The answer of `/readyz?verbose`.
    pub async fn readiness(&self) -> anyhow::Result<Value> {
        self.admin(Method::GET, "/readyz?verbose").await?.json()
    }

    pub fn log(&self) -> String {
        self.config.log()
    }
}

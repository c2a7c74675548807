//! One shard-node process of the test's own, and a router's calls to it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use identity::shard::RoutingFacts;
use ledger::{
    AccountId, AssetCode, AssetRegistry, Limit, Metadata, Refusal, Refused, TransferId,
    operation::{CreateAccount, Decide, Operation, Purpose, Settle, Transfer, UpdateAccount, Verdict},
    outcome::Reply,
};
use shard_map::ClusterId;
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;
use wire::{
    convert::{assets_to_wire, operation_to_wire},
    shard_node_client::ShardNodeClient,
};

use crate::{
    history::{ASSET, Order},
    leash::{Leash, Leashed},
    process::Process,
    programs::{free_port, program},
    wait::until,
};

/// The time within which a node must start and migrate its database.
const START: Duration = Duration::from_secs(60);
/// The digest under which tests declare their assets.
const ASSETS: u64 = 1;
/// The state that a node reports while it takes requests.
const SERVING: &str = "serving";

/// The cluster of nodes that the test itself starts. A node of a cluster created by `shardctl` has that cluster's id.
pub const CLUSTER: &str = "0190d7c0-0000-7000-8000-00000000c1a5";

/// A folder for the files of a test. Dropping it removes the folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _leash: Leash,
}

impl Folder {
    pub fn create() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("shardledger-node-{}", uuid::Uuid::now_v7().simple()));
        let leash = Leash::on_folder(&path)?;
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, _leash: leash })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The fold interval. It is short, so that tests of single nodes meet accounts that are folded and accounts that are not.
pub const FOLD_INTERVAL: Duration = Duration::from_millis(200);

/// The configuration of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub cluster: ClusterId,
    pub shard: String,
    pub database_url: String,
    /// The time limit of a statement. After it, the node drops its connection.
    pub statement_timeout: Duration,
    rpc: SocketAddr,
    admin: SocketAddr,
    /// Variables added to the node's environment.
    pub environment: Vec<(String, String)>,
    file: PathBuf,
    log: PathBuf,
}

impl NodeConfig {
    /// Writes the configuration into the folder under this name.
    pub fn write(folder: &Folder, name: &str, shard: &str, database_url: &str) -> anyhow::Result<Self> {
        Self::write_in(folder, name, CLUSTER.parse()?, shard, database_url)
    }

    /// [`NodeConfig::write`] for a node of another cluster.
    pub fn write_in(
        folder: &Folder,
        name: &str,
        cluster: ClusterId,
        shard: &str,
        database_url: &str,
    ) -> anyhow::Result<Self> {
        let config = Self {
            cluster,
            shard: shard.to_owned(),
            database_url: database_url.to_owned(),
            // The limit is short, so that tests of a lost database do not wait, but longer than a busy disk needs to sync.
            statement_timeout: Duration::from_secs(4),
            rpc: ([127, 0, 0, 1], free_port()?).into(),
            admin: ([127, 0, 0, 1], free_port()?).into(),
            environment: Vec::new(),
            file: folder.path.join(format!("{name}.toml")),
            log: folder.path.join(format!("{name}.log")),
        };
        let text = format!(
            "[cluster]\nid = \"{cluster}\"\n[shard]\nid = \"{shard}\"\n\
             [database]\nurl = \"{database_url}\"\nstatement_timeout_ms = {}\n\
             [lane]\nfold_interval_ms = {}\n\
             [rpc]\nlisten = \"{}\"\n\
             [admin]\nlisten = \"{}\"\n",
            config.statement_timeout.as_millis(),
            FOLD_INTERVAL.as_millis(),
            config.rpc,
            config.admin,
        );
        std::fs::write(&config.file, text)?;
        Ok(config)
    }

    /// The first request of a router.
    pub fn identify(&self) -> anyhow::Result<wire::IdentifyRequest> {
        identify_request(self.cluster, &self.shard)
    }

    /// The node's URL, as a shard map has it.
    pub fn url(&self) -> String {
        format!("http://{}", self.rpc)
    }

    /// The node's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn command(&self) -> anyhow::Result<Command> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(program("shard-node")?);
        command.arg("--config").arg(&self.file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// Runs `shard-node init` with this map.
    pub fn init(&self, shard_map: &str) -> anyhow::Result<()> {
        let map = self.file.with_extension("map.toml");
        std::fs::write(&map, shard_map)?;
        self.run(&["init", "--map", &map.display().to_string()])?.successful()?;
        Ok(())
    }

    /// Runs a command of `shard-node` to its end.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let output = self.command()?.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output()?;
        let text = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        let command = format!("shard-node {} of shard {}", arguments.join(" "), self.shard);
        Ok(Said { command, succeeded: output.status.success(), text })
    }
}

/// The exit and the output of a command of `shard-node`, on both streams.
#[derive(Debug)]
pub struct Said {
    command: String,
    succeeded: bool,
    text: String,
}

impl Said {
    /// The output of a command that must succeed.
    pub fn successful(self) -> anyhow::Result<String> {
        ensure!(self.succeeded, "{} should succeed, but says: {}", self.command, self.text);
        Ok(self.text)
    }

    /// The output of a command that must fail.
    pub fn refused(self) -> anyhow::Result<String> {
        ensure!(!self.succeeded, "{} should be refused, but says: {}", self.command, self.text);
        Ok(self.text)
    }
}

/// A running node.
pub struct Node {
    config: NodeConfig,
    leashed: Leashed,
    rpc: ShardNodeClient<Channel>,
}

impl Node {
    /// Starts the node and waits until it serves.
    pub async fn start(config: &NodeConfig) -> anyhow::Result<Self> {
        Self::start_with(config, &[]).await
    }

    /// Starts the node with `--alone`, so that it serves without the word of another shard, and waits until it serves.
    pub async fn start_alone(config: &NodeConfig) -> anyhow::Result<Self> {
        Self::start_with(config, &["--alone"]).await
    }

    async fn start_with(config: &NodeConfig, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = config.command()?;
        command.args(arguments);
        let mut leashed = Leashed::spawn(command)?;
        let endpoint = Endpoint::from_shared(config.url())?.connect_timeout(Duration::from_secs(1));
        let rpc = until(&format!("the node of {} serves", config.shard), START, async || {
            if let Some(status) = leashed.ended()? {
                return Ok(Some(Err(status)));
            }
            let mut rpc = ShardNodeClient::new(endpoint.connect().await?);
            let status = rpc.status(wire::StatusRequest {}).await?.into_inner();
            if status.state != SERVING {
                return Ok(None);
            }
            let identified = rpc.identify(config.identify()?).await?.into_inner();
            ensure!(identified.refused.is_empty(), "the node refuses the test: {:?}", identified.refused);
            Ok(Some(Ok(rpc)))
        })
        .await
        .with_context(|| config.log())?;
        match rpc {
            Ok(rpc) => Ok(Self { config: config.clone(), leashed, rpc }),
            Err(status) => bail!("the node of {} ended by itself ({status}): {}", config.shard, config.log()),
        }
    }

    /// Starts the node and waits until it answers, even if it does not serve.
    pub async fn start_waiting(config: &NodeConfig) -> anyhow::Result<Self> {
        let leashed = Leashed::spawn(config.command()?)?;
        let endpoint = Endpoint::from_shared(config.url())?.connect_timeout(Duration::from_secs(1));
        let rpc =
            until("the node answers", START, async || Ok(Some(ShardNodeClient::new(endpoint.connect().await?))))
                .await;
        let rpc = rpc.with_context(|| config.log())?;
        Ok(Self { config: config.clone(), leashed, rpc })
    }

    /// The answer of `/readyz?verbose`.
    pub async fn readiness(&self) -> anyhow::Result<serde_json::Value> {
        let client = crate::client::Client::new(Vec::new());
        let url = format!("http://{}/readyz?verbose", self.config.admin);
        client.request(http::Method::GET, &url, None).await?.json()
    }

    /// Waits until reads and writes work, and identifies the test to the node.
    pub async fn becomes_ready(&self) -> anyhow::Result<()> {
        until("the node serves", START, async || {
            let readiness = self.readiness().await?;
            ensure!(readiness["status"] == "ready", "{readiness}");
            let identified = self.identify().await?;
            ensure!(identified.refused.is_empty(), "the node refuses the test: {:?}", identified.refused);
            Ok(Some(()))
        })
        .await
        .with_context(|| self.log())
    }

    /// Identifies the test as a router and returns the node's answer.
    pub async fn identify(&self) -> anyhow::Result<wire::IdentifyResponse> {
        Ok(self.rpc.clone().identify(self.config.identify()?).await?.into_inner())
    }

    /// Tells the node, as a router does, how far its shard had come when it acknowledged something.
    pub async fn is_told(&self, shard: u16, mark: identity::Mark) -> anyhow::Result<()> {
        let marks = vec![wire::convert::shard_mark_to_wire((shard, mark))];
        let request = wire::IdentifyRequest { marks, ..self.config.identify()? };
        self.rpc.clone().identify(request).await?;
        Ok(())
    }

    /// Starts a node that must refuse to serve. Returns its output.
    pub async fn start_refused(config: &NodeConfig) -> anyhow::Result<String> {
        let mut leashed = Leashed::spawn(config.command()?)?;
        let status = until("the node has refused to serve", START, async || leashed.ended()).await?;
        ensure!(!status.success(), "the node should have failed: {}", config.log());
        Ok(config.log())
    }

    pub fn process(&self) -> Process {
        self.leashed.process()
    }

    pub fn log(&self) -> String {
        self.config.log()
    }

    /// Executes operations and returns one reply for each.
    pub async fn execute(&self, operations: &[Operation]) -> anyhow::Result<Vec<Reply>> {
        let response = self.rpc.clone().execute(execute_request(operations)).await?.into_inner();
        let replies = response.results.into_iter().map(|result| Ok(Reply::try_from(result)?));
        replies.collect()
    }

    /// Repeats one operation until it has a definite answer, as routers do.
    pub async fn execute_until_definite(&self, operation: &Operation) -> anyhow::Result<ledger::outcome::Outcome> {
        until("the operation has a definite answer", START, async || {
            let reply = self.execute(std::slice::from_ref(operation)).await?.pop();
            Ok(match reply {
                Some(Reply::Outcome(outcome)) => Some(outcome),
                _ => None,
            })
        })
        .await
    }

    pub async fn account(&self, id: &str) -> anyhow::Result<wire::Account> {
        use wire::get_account_response::Outcome;
        let response =
            self.rpc.clone().get_account(wire::GetAccountRequest { id: id.to_owned() }).await?.into_inner();
        match response.outcome {
            Some(Outcome::Account(account)) => Ok(account),
            other => bail!("{id}: {other:?}"),
        }
    }

    /// Reads an account with a mark, as a router does.
    pub async fn account_at_least(
        &self,
        id: &str,
        at_least: identity::Mark,
    ) -> Result<wire::GetAccountResponse, tonic::Status> {
        let mut request = tonic::Request::new(wire::GetAccountRequest { id: id.to_owned() });
        let mark = wire::at_least_to_header(at_least);
        let mark = mark.parse().map_err(|_| tonic::Status::internal("a mark is no header"))?;
        request.metadata_mut().insert(wire::AT_LEAST, mark);
        Ok(self.rpc.clone().get_account(request).await?.into_inner())
    }

    /// The shard's mark.
    pub async fn mark(&self) -> anyhow::Result<identity::Mark> {
        Ok(self.identify().await?.mark.context("the node reports no mark")?.into())
    }

    /// The value that the node found for a fact that it compares, such as a setting.
    pub async fn found(&self, fact: &str) -> anyhow::Result<String> {
        let facts = self.rpc.clone().examine(wire::ExamineRequest {}).await?.into_inner().facts;
        let mut facts = facts.into_iter().filter_map(|compared| compared.fact);
        let fact = facts.find(|compared| compared.fact == fact).with_context(|| format!("{fact} is not compared"))?;
        Ok(fact.found)
    }

    pub async fn list_accounts(
        &self,
        request: wire::ListAccountsRequest,
    ) -> anyhow::Result<wire::ListAccountsResponse> {
        Ok(self.rpc.clone().list_accounts(request).await?.into_inner())
    }

    pub async fn sum_balances(&self, request: wire::SumBalancesRequest) -> anyhow::Result<wire::SumBalancesResponse> {
        Ok(self.rpc.clone().sum_balances(request).await?.into_inner())
    }

    pub async fn status(&self) -> anyhow::Result<wire::StatusResponse> {
        Ok(self.rpc.clone().status(wire::StatusRequest {}).await?.into_inner())
    }
}

/// The request with which a test, like a router, identifies itself to a node and declares its assets.
pub fn identify_request(cluster: ClusterId, shard: &str) -> anyhow::Result<wire::IdentifyRequest> {
    let assets = AssetRegistry::with_declared([])?;
    let scales = assets.all().map(|(asset, scale)| (asset.to_string(), scale)).collect();
    Ok(wire::IdentifyRequest {
        cluster: cluster.as_bytes().to_vec().into(),
        shard: shard.to_owned(),
        slots: RoutingFacts::OWN.slots,
        hash_seed: RoutingFacts::OWN.hash_seed,
        caller: "a test".to_owned(),
        assets: Some(assets_to_wire(ASSETS, &scales)),
        ..Default::default()
    })
}

/// The request with which a test that has identified itself executes operations.
pub fn execute_request(operations: &[Operation]) -> wire::ExecuteRequest {
    let operations = operations.iter().map(|operation| operation_to_wire(operation, 0, 0)).collect();
    wire::ExecuteRequest { operations, traces: Vec::new(), assets_digest: ASSETS, sent_at_us: 0 }
}

pub fn account(id: &str) -> anyhow::Result<AccountId> {
    AccountId::client(id).with_context(|| id.to_owned())
}

fn asset() -> anyhow::Result<AssetCode> {
    AssetCode::new(ASSET).context(ASSET)
}

/// The operation that opens an account, which may go below zero as far as `overdraft` allows.
pub fn open(id: &str, overdraft: Limit) -> anyhow::Result<Operation> {
    Ok(Operation::CreateAccount(CreateAccount {
        ordered_by: None,
        id: account(id)?,
        asset: asset()?,
        overdraft,
        max_balance: Limit::Unlimited,
        metadata: Metadata::empty(),
    }))
}

/// The operation that changes how far an account may go below zero.
pub fn limit(id: &str, overdraft: Limit) -> anyhow::Result<Operation> {
    Ok(Operation::UpdateAccount(UpdateAccount {
        ordered_by: None,
        id: account(id)?,
        status: None,
        overdraft: Some(overdraft),
        max_balance: None,
        metadata: None,
    }))
}

/// The operation for a local transfer, or for the first step of a saga.
pub fn transfer(order: &Order, cross_shard: bool) -> anyhow::Result<Operation> {
    Ok(Operation::Transfer(Transfer {
        ordered_by: None,
        id: TransferId(order.id),
        debit: account(&order.debit)?,
        credit: account(&order.credit)?,
        asset: asset()?,
        amount: order.amount,
        metadata: Metadata::empty(),
        purpose: Purpose::Payment,
        cross_shard,
        defer_insufficient: false,
        defer_limited: false,
    }))
}

/// The operation that writes the verdict on a saga. With `cancel` it cancels the saga.
pub fn decide(order: &Order, cancel: bool) -> anyhow::Result<Operation> {
    let (debit, credit) = (account(&order.debit)?, account(&order.credit)?);
    let id = TransferId(order.id);
    Ok(Operation::Decide(Decide {
        ordered_by: None,
        id,
        debit,
        credit,
        asset: asset()?,
        amount: order.amount,
        purpose: Purpose::Payment,
        presumed: cancel.then(|| Refused::whole(Refusal::Cancelled)),
        defer_limited: false,
        patient: false,
    }))
}

pub fn settle(order: &Order, verdict: Verdict) -> anyhow::Result<Operation> {
    let (debit, credit) = (account(&order.debit)?, account(&order.credit)?);
    let id = TransferId(order.id);
    Ok(Operation::Settle(Settle {
        id,
        debit,
        credit,
        asset: asset()?,
        amount: order.amount,
        purpose: Purpose::Payment,
        reserved: true,
        verdict,
    }))
}

/// An order under a new id.
pub fn order(debit: &str, credit: &str, amount: i64) -> Order {
    Order { id: Uuid::now_v7(), debit: debit.to_owned(), credit: credit.to_owned(), amount }
}

//! Mock nodes of many shards in one process. They answer every operation as executed and store nothing, so that a router can be measured with
//! 1,024 shards without 1,024 databases.

use std::{
    io::{BufRead, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use shard_map::SlotRange;
use telemetry::{Tasks, clock};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use wire::{
    operation::Kind,
    operation_result::Outcome,
    shard_node_server::{ShardNode, ShardNodeServer},
};

const POSTED: u32 = 2;
const PENDING: u32 = 1;
/// The number of addresses 127.0.x.y for each x.
const ADDRESSES: u16 = 250;

/// How much the mock nodes were asked.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct CallCounts {
    pub calls: u64,
    pub operations: u64,
}

#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    operations: AtomicU64,
}

/// The address of a shard's mock node. All mock nodes have the same port, and each has a loopback address of its own.
pub fn address(number: u16, port: u16) -> SocketAddr {
    let [x, y] = [1 + number / ADDRESSES, 1 + number % ADDRESSES];
    (Ipv4Addr::new(127, 0, x as u8, y as u8), port).into()
}

/// Serves until standard input ends. The first line of standard output is the port; each line of standard input is answered
/// with the number of calls and operations so far.
#[derive(clap::Args)]
pub struct MockNodesArgs {
    /// Shards to serve, each on a loopback address of its own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
}

pub async fn run(MockNodesArgs { shards }: MockNodesArgs) -> anyhow::Result<ExitCode> {
    let counters = Arc::new(Counters::default());
    let tasks = Tasks::new();
    let mut port = 0;
    for (number, slots) in (0..shards).zip(SlotRange::split_evenly(shards)) {
        let listener = tokio::net::TcpListener::bind(address(number, port)).await.context("a mock node's address")?;
        port = listener.local_addr()?.port();
        let node = MockNode { number, slots, counters: Arc::clone(&counters) };
        let server = tonic::transport::Server::builder().add_service(
            ShardNodeServer::new(node)
                .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
                .max_encoding_message_size(wire::MAX_MESSAGE_BYTES),
        );
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        tasks.spawn("mock node", server.serve_with_incoming(incoming));
    }
    tokio::task::spawn_blocking(move || answer_counts(port, &counters)).await??;
    Ok(ExitCode::SUCCESS)
}

fn answer_counts(port: u16, counters: &Counters) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{port}")?;
    output.flush()?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let counts = CallCounts {
            calls: counters.calls.load(Ordering::Relaxed),
            operations: counters.operations.load(Ordering::Relaxed),
        };
        writeln!(output, "{}", serde_json::to_string(&counts)?)?;
        output.flush()?;
    }
    Ok(())
}

struct MockNode {
    number: u16,
    slots: SlotRange,
    counters: Arc<Counters>,
}

fn executed(operation: wire::Operation, now_us: i64) -> wire::OperationResult {
    let unlimited = || Some(wire::Limit { unlimited: true, minor: 0 });
    let debit_after = Some(wire::DebitAfter { posted: 0, held: 0, overdraft: unlimited(), version: 2 });
    let outcome = match operation.kind {
        Some(Kind::CreateAccount(create)) => Outcome::Account(wire::AccountOutcome {
            account: Some(wire::Account {
                id: create.id,
                asset: create.asset,
                status: 1,
                overdraft: create.overdraft,
                max_balance: create.max_balance,
                version: 1,
                metadata: create.metadata,
                created_at_us: now_us,
                updated_at_us: now_us,
                ..Default::default()
            }),
            ..Default::default()
        }),
        Some(Kind::Transfer(transfer)) => Outcome::Transfer(wire::TransferOutcome {
            status: if transfer.cross_shard { PENDING } else { POSTED },
            cross_shard: transfer.cross_shard,
            debit_after,
            created_at_us: now_us,
            finished_at_us: if transfer.cross_shard { 0 } else { now_us },
            stored: true,
            amount: transfer.amount,
            ..Default::default()
        }),
        Some(Kind::Decide(_)) => {
            Outcome::Decide(wire::DecideOutcome { credited: true, decided_at_us: now_us, ..Default::default() })
        }
        Some(Kind::Settle(_)) => {
            Outcome::Settle(wire::SettleOutcome { status: POSTED, finished_at_us: now_us, ..Default::default() })
        }
        _ => Outcome::NotExecuted(wire::NotExecuted {
            reason: wire::not_executed::Reason::Internal.into(),
            detail: "a mock node does not know this operation".to_owned(),
        }),
    };
    wire::OperationResult { outcome: Some(outcome) }
}

fn unknown<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a mock node keeps nothing"))
}

#[tonic::async_trait]
impl ShardNode for MockNode {
    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        Ok(Response::new(wire::IdentifyResponse::agreeing_with(request.into_inner(), clock::now_us())))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let operations = request.into_inner().operations;
        self.counters.calls.fetch_add(1, Ordering::Relaxed);
        self.counters.operations.fetch_add(operations.len() as u64, Ordering::Relaxed);
        let now_us = clock::now_us();
        let results = operations.into_iter().map(|operation| executed(operation, now_us)).collect();
        Ok(Response::new(wire::ExecuteResponse { results, mark: None, after_doubt: false }))
    }

    async fn list_sagas(
        &self,
        _: Request<wire::ListSagasRequest>,
    ) -> Result<Response<wire::ListSagasResponse>, Status> {
        Ok(Response::new(wire::ListSagasResponse::default()))
    }

    async fn get_ownership(
        &self,
        _: Request<wire::GetOwnershipRequest>,
    ) -> Result<Response<wire::GetOwnershipResponse>, Status> {
        let owned = wire::OwnedRange {
            first: self.slots.first().index().into(),
            last: self.slots.last().index().into(),
            state: 1,
            epoch: 1,
            peer: String::new(),
        };
        Ok(Response::new(wire::GetOwnershipResponse {
            shard: format!("s{}", self.number),
            shard_number: self.number.into(),
            ranges: vec![owned],
            ..Default::default()
        }))
    }

    async fn offer_shard_map(
        &self,
        _: Request<wire::OfferShardMapRequest>,
    ) -> Result<Response<wire::OfferShardMapResponse>, Status> {
        Ok(Response::new(wire::OfferShardMapResponse { newest_version: 1 }))
    }

    async fn examine(&self, _: Request<wire::ExamineRequest>) -> Result<Response<wire::ExamineResponse>, Status> {
        unknown()
    }

    async fn get_account(
        &self,
        _: Request<wire::GetAccountRequest>,
    ) -> Result<Response<wire::GetAccountResponse>, Status> {
        unknown()
    }

    async fn list_entries(
        &self,
        _: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        unknown()
    }

    async fn balance_at(
        &self,
        _: Request<wire::BalanceAtRequest>,
    ) -> Result<Response<wire::BalanceAtResponse>, Status> {
        unknown()
    }

    async fn get_transfers(
        &self,
        _: Request<wire::GetTransfersRequest>,
    ) -> Result<Response<wire::GetTransfersResponse>, Status> {
        unknown()
    }

    async fn get_holds(&self, _: Request<wire::GetHoldsRequest>) -> Result<Response<wire::GetHoldsResponse>, Status> {
        unknown()
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        unknown()
    }

    async fn list_accounts(
        &self,
        _: Request<wire::ListAccountsRequest>,
    ) -> Result<Response<wire::ListAccountsResponse>, Status> {
        unknown()
    }

    async fn sum_balances(
        &self,
        _: Request<wire::SumBalancesRequest>,
    ) -> Result<Response<wire::SumBalancesResponse>, Status> {
        unknown()
    }

    async fn read_transfers(
        &self,
        _: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadTransfersResponse>, Status> {
        unknown()
    }

    async fn read_holds(
        &self,
        _: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadHoldsResponse>, Status> {
        unknown()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_many_nodes_has_an_address_of_its_own() {
        let addresses: std::collections::BTreeSet<SocketAddr> = (0..4_096).map(|number| address(number, 7)).collect();
        assert_eq!(addresses.len(), 4_096);
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
    }

    #[test]
    fn a_transfer_is_answered_as_executed() {
        let transfer = |cross_shard| wire::Transfer { amount: 7, cross_shard, ..Default::default() };
        for (cross_shard, status) in [(false, POSTED), (true, PENDING)] {
            let kind = Some(Kind::Transfer(transfer(cross_shard)));
            match executed(wire::Operation { kind, ..Default::default() }, 5).outcome {
                Some(Outcome::Transfer(outcome)) => assert_eq!((outcome.status, outcome.amount), (status, 7)),
                other => panic!("{other:?}"),
            }
        }
    }
}

//! The protocol of a fake node: what each call finds in its state.

use std::sync::atomic::Ordering;

use ledger::{AccountId, TransferKey, booking::Role, outcome::Reply};
use tonic::{Request, Response, Status};
use wire::{convert, shard_node_server::ShardNode};

use super::{FakeNode, Trouble, id, lock, usd};

#[tonic::async_trait]
impl ShardNode for FakeNode {
    async fn identify(
        &self,
        request: Request<wire::IdentifyRequest>,
    ) -> Result<Response<wire::IdentifyResponse>, Status> {
        let agreeing = wire::IdentifyResponse::agreeing_with(request.into_inner(), telemetry::clock::now_us());
        let sagas_due = lock(&self.state).pending().next().is_some();
        Ok(Response::new(wire::IdentifyResponse { sagas_due, ..agreeing }))
    }

    async fn examine(&self, _: Request<wire::ExamineRequest>) -> Result<Response<wire::ExamineResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let mut hung = self.hung.subscribe();
        hung.wait_for(|hung| !hung).await.map_err(|_| Status::unavailable("gone"))?;
        self.executions.fetch_add(1, Ordering::Relaxed);
        let wire::ExecuteRequest { operations, traces, .. } = request.into_inner();
        let shown = |trace: wire::Trace| format!("{}: {} from {}", trace.traceparent, trace.count, trace.first);
        lock(&self.traced).extend(traces.into_iter().map(shown));
        let trouble = lock(&self.trouble).pop_front();
        let results = match trouble {
            None => self.run(operations),
            Some(Trouble::LoseRequest) => return Err(Status::unavailable("lost before it was executed")),
            Some(Trouble::LoseAnswer) => {
                self.run(operations);
                return Err(Status::unavailable("lost after it was executed"));
            }
            Some(Trouble::Refuse(reason)) => {
                let refused = || Reply::NotExecuted { reason, detail: String::new() };
                operations.iter().map(|_| refused().into()).collect()
            }
            Some(Trouble::Unknown) => self.run(operations).iter().map(|_| Reply::Unknown.into()).collect(),
            Some(Trouble::RefuseFirst(reason)) => {
                let refused = Reply::NotExecuted { reason, detail: String::new() };
                let executed = self.run(operations.into_iter().skip(1).collect());
                let unknown = executed.into_iter().map(|_| Reply::Unknown.into());
                std::iter::once(refused.into()).chain(unknown).collect()
            }
        };
        Ok(Response::new(wire::ExecuteResponse { results, mark: None, after_doubt: false }))
    }

    async fn get_account(
        &self,
        request: Request<wire::GetAccountRequest>,
    ) -> Result<Response<wire::GetAccountResponse>, Status> {
        use wire::get_account_response::Outcome;
        let traceparent = request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
        lock(&self.traced).extend(traceparent.map(str::to_owned));
        let name = request.into_inner().id;
        let account = id(&name);
        let state = lock(&self.state);
        let there = state.names.contains(&account).then(|| state.accounts.get(&account)).flatten();
        let outcome = match (self.not_owner(&name), there) {
            (Some(not_owner), _) => Outcome::NotOwner(not_owner.into()),
            (None, Some(account)) => Outcome::Account(account.into()),
            (None, None) => Outcome::NotFound(wire::NotFound {}),
        };
        Ok(Response::new(wire::GetAccountResponse { outcome: Some(outcome) }))
    }

    async fn list_entries(
        &self,
        _: Request<wire::ListEntriesRequest>,
    ) -> Result<Response<wire::ListEntriesResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    /// As by a clock that is an hour ahead of the router's: what is there was written then.
    async fn balance_at(
        &self,
        request: Request<wire::BalanceAtRequest>,
    ) -> Result<Response<wire::BalanceAtResponse>, Status> {
        use wire::balance_at_response::Outcome;
        const HOUR_US: i64 = 3_600_000_000;
        let wire::BalanceAtRequest { account, at_us } = request.into_inner();
        let written_us = telemetry::clock::now_us() + HOUR_US;
        let state = lock(&self.state);
        let there = state.accounts.get(&id(&account)).filter(|_| at_us >= written_us);
        let (posted, version) = there.map_or((0, 0), |account| (account.posted, account.version));
        let overdraft = Some(ledger::Limit::ZERO.into());
        let balance = wire::BalanceAt { asset: usd().to_string(), posted, version, held: 0, overdraft };
        Ok(Response::new(wire::BalanceAtResponse { outcome: Some(Outcome::Balance(balance)) }))
    }

    async fn get_transfers(
        &self,
        request: Request<wire::GetTransfersRequest>,
    ) -> Result<Response<wire::GetTransfersResponse>, Status> {
        let wire::GetTransfersRequest { id, debit } = request.into_inner();
        if let Some(not_owner) = self.not_owner(&debit).filter(|_| !debit.is_empty()) {
            let response = wire::GetTransfersResponse { not_owner: Some(not_owner.into()), ..Default::default() };
            return Ok(Response::new(response));
        }
        let id = convert::id_from_wire(&id).unwrap();
        let state = lock(&self.state);
        let keys = |role| state.journal.keys(role).into_iter().filter(|key| key.id == id);
        let wanted = |key: &TransferKey| debit.is_empty() || key.debit.as_str() == debit;
        // The bookings of a moved account's transfers stay here, and bookings of others came with the account.
        let is_here = |account: &AccountId| self.not_owner(account.as_str()).is_none();
        let transfers = keys(Role::Transfer).filter(|key| wanted(key) && is_here(&key.debit));
        let transfers = transfers.filter_map(|key| Some(state.record(&key, &state.journal.transfer(&key)?)));
        let registers = keys(Role::Register).filter(&wanted);
        let registers = registers.filter_map(|key| state.journal.register(&key).map(|register| (key, register)));
        let registers = registers.filter(|(_, register)| is_here(&register.credit)).map(|(key, register)| {
            let (credited, refusal, side) = convert::verdict_to_wire(register.verdict);
            wire::RegisterRecord {
                id: convert::id_to_wire(key.id),
                debit: key.debit.to_string(),
                credit: register.credit.to_string(),
                credited,
                refusal,
                side,
                decided_at_us: register.decided_at_us,
            }
        });
        let elsewhere = keys(Role::Transfer).filter(|key| wanted(key) && !is_here(&key.debit));
        Ok(Response::new(wire::GetTransfersResponse {
            transfers: transfers.collect(),
            registers: registers.collect(),
            elsewhere: elsewhere
                .map(|key| wire::TransferRecord { debit: key.debit.to_string(), ..Default::default() })
                .collect(),
            ..Default::default()
        }))
    }

    async fn get_holds(
        &self,
        request: Request<wire::GetHoldsRequest>,
    ) -> Result<Response<wire::GetHoldsResponse>, Status> {
        let wire::GetHoldsRequest { id, debit } = request.into_inner();
        if let Some(not_owner) = self.not_owner(&debit).filter(|_| !debit.is_empty()) {
            let response = wire::GetHoldsResponse { not_owner: Some(not_owner.into()), ..Default::default() };
            return Ok(Response::new(response));
        }
        let id = convert::id_from_wire(&id).unwrap();
        let state = lock(&self.state);
        let keys = state.journal.keys(Role::Hold).into_iter();
        let wanted = keys.filter(|key| key.id == id && (debit.is_empty() || key.debit.as_str() == debit));
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            wanted.partition(|key| self.not_owner(key.debit.as_str()).is_none());
        let elsewhere = elsewhere.iter().map(|key| key.debit.to_string()).collect();
        let holds = here
            .into_iter()
            .filter_map(|key| state.journal.hold(&key).map(|hold| convert::hold_to_wire(&key, &hold)));
        Ok(Response::new(wire::GetHoldsResponse { holds: holds.collect(), not_owner: None, elsewhere }))
    }

    async fn list_sagas(
        &self,
        request: Request<wire::ListSagasRequest>,
    ) -> Result<Response<wire::ListSagasResponse>, Status> {
        let request = request.into_inner();
        let left_out_slots = convert::slots_from_wire(&request.left_out_slots).unwrap();
        let due_after = *lock(&self.saga_due_after);
        let state = lock(&self.state);
        let sagas = state
            .pending()
            .filter(|(key, _)| {
                let coordinated_until = state.coordinated_until.get(key);
                let is_due = coordinated_until.is_none_or(|until| until.elapsed() > due_after);
                self.not_owner(key.debit.as_str()).is_none() && (is_due || !request.claim_due)
            })
            .map(|(key, stored)| state.record(&key, &stored))
            .filter(|record| request.retry_id.is_empty() || record.id == request.retry_id);
        let is_left_out = |record: &wire::TransferRecord| {
            let slot = shard_map::slot_of(&record.credit);
            left_out_slots.iter().any(|range| range.contains(slot))
        };
        let (left_out, sagas): (Vec<_>, Vec<_>) = sagas.partition(is_left_out);
        let oldest_left_out_us = left_out.iter().map(|record| record.created_at_us).min().unwrap_or(0);
        let left_out = left_out.len() as u64;
        if request.claim_due {
            self.handed_over.fetch_add(sagas.len(), Ordering::Relaxed);
        }
        Ok(Response::new(wire::ListSagasResponse { sagas, left_out, oldest_left_out_us }))
    }

    async fn get_ownership(
        &self,
        request: Request<wire::GetOwnershipRequest>,
    ) -> Result<Response<wire::GetOwnershipResponse>, Status> {
        let wire::GetOwnershipRequest { wait_ms, newer_than } = request.into_inner();
        let mut news = self.arriving.subscribe();
        let patience = std::time::Duration::from_millis(wait_ms.into());
        let _ = tokio::time::timeout(patience, news.wait_for(|(_, version)| *version > newer_than)).await;
        let (arriving, version) = news.borrow().clone();
        let truth = lock(&self.truth);
        let own = (0..).zip(truth.iter()).filter(|(_, (owner, _))| *owner == self.number);
        let ranges = own
            .map(|(slot, (_, epoch))| {
                let from = u16::try_from(slot).ok().and_then(|slot| arriving.get(&slot));
                wire::OwnedRange {
                    first: slot,
                    last: slot,
                    state: if from.is_some() { 3 } else { 1 },
                    epoch: *epoch,
                    peer: from.cloned().unwrap_or_default(),
                }
            })
            .collect();
        Ok(Response::new(wire::GetOwnershipResponse {
            shard: self.id.clone(),
            shard_number: u32::try_from(self.number).unwrap(),
            ranges,
            ownership_version: version,
            ..Default::default()
        }))
    }

    async fn offer_shard_map(
        &self,
        _: Request<wire::OfferShardMapRequest>,
    ) -> Result<Response<wire::OfferShardMapResponse>, Status> {
        Ok(Response::new(wire::OfferShardMapResponse { newest_version: 1 }))
    }

    async fn status(&self, _: Request<wire::StatusRequest>) -> Result<Response<wire::StatusResponse>, Status> {
        Ok(Response::new(wire::StatusResponse { shard: self.id.clone(), ..Default::default() }))
    }

    async fn list_accounts(
        &self,
        request: Request<wire::ListAccountsRequest>,
    ) -> Result<Response<wire::ListAccountsResponse>, Status> {
        let wire::ListAccountsRequest { prefix, after, limit, slots, at_us } = request.into_inner();
        let not_owner = self.slots_not_owned(&slots);
        if !not_owner.is_empty() {
            return Ok(Response::new(wire::ListAccountsResponse { not_owner, ..Default::default() }));
        }
        let mut accounts = self.accounts_in(&slots, &prefix);
        accounts.retain(|account| account.id > after);
        accounts.sort_by(|one, other| one.id.cmp(&other.id));
        let has_more = accounts.len() > limit as usize;
        accounts.truncate(limit as usize);
        let last = accounts.last().map(|account| account.id.clone()).unwrap_or_default();
        if at_us.is_some() {
            // Nothing ever changes an account here.
            let of = |account: &wire::Account| wire::AccountAt {
                id: account.id.clone(),
                asset: account.asset.clone(),
                posted: account.posted,
                held: account.held,
                overdraft: account.overdraft,
                version: account.version,
                created_at_us: account.created_at_us,
                updated_at_us: account.updated_at_us,
            };
            let at = accounts.iter().map(of).collect();
            return Ok(Response::new(wire::ListAccountsResponse { at, has_more, last, ..Default::default() }));
        }
        Ok(Response::new(wire::ListAccountsResponse { accounts, has_more, not_owner, ..Default::default() }))
    }

    async fn sum_balances(
        &self,
        request: Request<wire::SumBalancesRequest>,
    ) -> Result<Response<wire::SumBalancesResponse>, Status> {
        let mut hung = self.hung.subscribe();
        hung.wait_for(|hung| !hung).await.map_err(|_| Status::unavailable("gone"))?;
        let wire::SumBalancesRequest { prefix, slots, .. } = request.into_inner();
        let not_owner = self.slots_not_owned(&slots);
        if !not_owner.is_empty() {
            return Ok(Response::new(wire::SumBalancesResponse { not_owner, ..Default::default() }));
        }
        let accounts = self.accounts_in(&slots, &prefix);
        let total = |of: fn(&wire::Account) -> i64| accounts.iter().map(of).sum::<i64>().to_string();
        let sums = vec![wire::AssetSum {
            asset: usd().to_string(),
            posted: total(|account| account.posted),
            held: total(|account| account.held),
            accounts: accounts.len() as u64,
        }];
        Ok(Response::new(wire::SumBalancesResponse { sums, not_owner }))
    }

    async fn read_transfers(
        &self,
        _: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadTransfersResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn read_holds(
        &self,
        _: Request<wire::ReadByKeysRequest>,
    ) -> Result<Response<wire::ReadHoldsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

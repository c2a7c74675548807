//! Pages of accounts and sums of balances.

use std::{sync::Arc, time::Duration};

use ledger::AccountPrefix;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tonic::Status;

use super::{MAX_PAGE, Service, read_failed};
use crate::reads::account_list::{self, AllOwned, Selection};

/// Largest page of accounts as of a time. Many pages make one answer, and each is a round trip to every shard.
const MAX_PAGE_AT: u32 = 2_000;
/// No client waits longer, whatever a router says.
const LONGEST_SUM: Duration = Duration::from_secs(30);

impl Service {
    pub(super) async fn page_of_accounts(
        &self,
        request: wire::ListAccountsRequest,
    ) -> Result<wire::ListAccountsResponse, Status> {
        let selection = selection(&request.prefix, &request.slots)?;
        let (reads, known) = (&self.reads, &self.ownership);
        let page = match request.at_us {
            None => {
                let limit = request.limit.clamp(1, MAX_PAGE).into();
                account_list::page(reads, known, &selection, &request.after, limit).await
            }
            Some(at_us) => {
                let limit = request.limit.clamp(1, MAX_PAGE_AT).into();
                account_list::page_at(reads, known, &selection, &request.after, limit, at_us).await
            }
        };
        Ok(match page.map_err(read_failed)? {
            AllOwned::Here(page) => page,
            AllOwned::NotHere(not_owner) => wire::ListAccountsResponse {
                not_owner: not_owner.into_iter().map(Into::into).collect(),
                ..Default::default()
            },
        })
    }

    pub(super) async fn sums_of_balances(
        &self,
        request: wire::SumBalancesRequest,
    ) -> Result<wire::SumBalancesResponse, Status> {
        let selection = selection(&request.prefix, &request.slots)?;
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms.into()).min(LONGEST_SUM);
        let turns = (owned_turn(&self.sums).await?, owned_turn(&self.turns).await?);
        let timeout = deadline.saturating_duration_since(Instant::now());
        if timeout < Duration::from_millis(1) {
            return Err(Status::deadline_exceeded("other sums took all the time there was"));
        }
        let pool = self.reads.from.pool().map_err(read_failed)?.clone();
        let ownership = self.ownership.clone();
        // In a task of its own: a router that hangs up does not end the statement, and its turns must last as long as it does.
        let work = self.tasks.spawn("sum of balances", async move {
            let _turns = turns;
            account_list::sums(&pool, &ownership, &selection, request.at_us, timeout).await
        });
        let sums = work.await.map_err(|_| Status::internal("the sum failed"))?;
        Ok(match sums.map_err(read_failed)? {
            AllOwned::Here(sums) => wire::SumBalancesResponse { sums, not_owner: Vec::new() },
            AllOwned::NotHere(not_owner) => wire::SumBalancesResponse {
                sums: Vec::new(),
                not_owner: not_owner.into_iter().map(Into::into).collect(),
            },
        })
    }
}

async fn owned_turn(turns: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(turns).acquire_owned().await.map_err(|_| Status::unavailable("the node is closing"))
}

fn selection(prefix: &str, slots: &[wire::SlotRange]) -> Result<Selection, Status> {
    let prefix = AccountPrefix::new(prefix).map_err(|reason| Status::invalid_argument(reason.to_string()))?;
    let slots = wire::convert::slots_from_wire(slots).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Selection { prefix, slots })
}

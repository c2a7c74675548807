//! `/v1/holds`

mod capture;
mod place;
mod release;
mod show;

pub use capture::{__path_capture, capture};
pub use place::{__path_place, place};
pub use release::{__path_release, release};
pub use show::{__path_show, show};

use ledger::{AccountId, TransferId};

use super::{Edge, access::Access, context::RequestDeadline, found, parse::FollowUp, problem::Problem};
use crate::core::reply::FoundHold;

/// The hold that a request is to act on. `capture`: what it wants of it.
async fn to_act_on(
    edge: &Edge,
    access: &Access,
    id: TransferId,
    debit: Option<&AccountId>,
    capture: Option<&FollowUp>,
    deadline: RequestDeadline,
) -> Result<FoundHold, Problem> {
    let found =
        edge.core.find_hold(id, debit, deadline.0).await.map_err(|error| Problem::from(error).with_hold(id.0))?;
    let found = access.in_sight(found);
    let found = match capture {
        Some(wanted) => found::begun_before(edge, wanted, found, deadline).await?,
        None => found,
    };
    found::to_act_on(id, debit.is_some(), found)
}

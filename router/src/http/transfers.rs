//! `/v1/transfers`

mod batch;
mod order;
mod show;

pub use batch::{__path_order_batch, order_batch};
pub use order::{__path_order, order};
pub use show::{__path_show, show};

//! `/v1/transfers`

mod answer;
mod batch;
mod order;
mod reverse;
mod show;

pub use answer::carry_out;
pub use batch::{__path_order_batch, order_batch};
pub use order::{__path_order, order};
pub use reverse::{__path_reverse, reverse};
pub use show::{__path_show, show};

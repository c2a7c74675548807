//! Runs the real code of routers and nodes in one thread, over databases in memory, a simulated network and virtual time.
//!
//! One seed is one [`run()`]: it draws the cluster, the clients' orders, the delays and the faults. [`faults`] says what goes wrong,
//! [`client`] what is ordered, [`moves`] which slots move, [`reader`] what is read, and [`audit`], [`serial_order`] and [`reads`] what must be true at the end. The same seed gives the same [`trace`]. What is
//! replaced, and why: `docs/adr/0012-simulate-the-cluster-on-virtual-time.md`.

pub mod audit;
pub mod client;
pub mod cluster;
pub mod faults;
pub mod moves;
pub mod network;
pub mod random;
pub mod reader;
pub mod reads;
pub mod record;
mod run;
pub mod serial_order;
pub mod trace;

pub use run::{Report, run, run_with_lies};

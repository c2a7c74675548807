//! The cluster as a whole: real processes, real PostgreSQL, real faults, and the same audit at the end of each.
//!
//! Each test prints its seed; `SEED=… cargo nextest run -p integration-tests` repeats a run.

mod first_transfer;

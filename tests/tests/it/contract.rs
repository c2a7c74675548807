//! Tests of the HTTP contract on live clusters. They test every code, the order in which codes are answered, and that no answer depends on
//! where accounts live.
//!
//! Most tests share one cluster and have accounts of their own on it ([`stage::Stage::shared`]). Each test ends with
//! [`stage::Stage::finish`]. [`api`] and [`openapi`] check every answer that a test gets.

mod accounts;
mod api;
mod atomic;
mod bad_input;
mod batches;
mod callers;
mod csv_tables;
pub mod description;
mod faults;
mod journals;
mod keys;
mod lists;
mod model;
mod openapi;
mod openings;
mod reports;
mod rulings;
mod scripts;
mod stage;
mod tenants;
mod transfers;

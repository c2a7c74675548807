//! The program `router`.

use std::process::ExitCode;

/// glibc's allocator takes a quarter of a router's processor time, and twice as much of it for each transfer where the router has many shards.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    router::main()
}

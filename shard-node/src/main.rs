//! The program `shard-node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    shard_node::main()
}

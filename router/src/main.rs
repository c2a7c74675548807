//! The program `router`.

use std::process::ExitCode;

fn main() -> ExitCode {
    router::main()
}

//! The `steward` binary: everything it does stands in `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main_entry()
}

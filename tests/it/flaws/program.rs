//! The program again, under a name of its own: for builds that are wrong on purpose.

use std::process::ExitCode;

use momail_api_keys::cli;

fn main() -> ExitCode {
    cli::main()
}

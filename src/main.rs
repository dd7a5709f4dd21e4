//! The program: hands the command line to [`cli`](momail_api_keys::cli) and leaves with its exit code.

use std::process::ExitCode;

use momail_api_keys::cli;

fn main() -> ExitCode {
    cli::main()
}

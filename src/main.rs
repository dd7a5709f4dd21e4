//! The program: hands the command line to [`cli`](momail_api_keys::cli) and leaves with its exit code.

use std::process::ExitCode;

use clap::Parser;
use momail_api_keys::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}

//! The program again, under a name of its own: for builds that are wrong on purpose.

use std::process::ExitCode;

use clap::Parser;
use momail_api_keys::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}

//! Where events go: to standard error, as JSON or for people.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::access_log::{Events, Form};
use crate::config::{Log, LogFormat};

/// Sends the process's events to standard error from now on. Calling it twice changes nothing.
pub fn init(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let human = access_form(log) == Form::Human;
    // A log that cannot be written has nobody to tell it to: what would be said of that on standard error ends in a panic there.
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Events).log_internal_errors(false);
    // A second call fails, which only a test can make.
    let _ = if human {
        events.with_ansi(io::stderr().is_terminal()).with_target(false).try_init()
    } else {
        events.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
}

/// The form of the access log, which is the form of all events.
pub fn access_form(log: &Log) -> Form {
    match log.format {
        LogFormat::Human => Form::Human,
        LogFormat::Auto if io::stderr().is_terminal() => Form::Human,
        LogFormat::Auto | LogFormat::Json => Form::Json,
    }
}

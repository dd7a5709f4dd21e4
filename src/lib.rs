//! MoMail's API-keys service: issues, lists and revokes API keys, and says for every request who is calling and whether that key
//! may go on.
//!
//! # Code map
//!
//! An arrow may be followed down only; nothing below `serve` knows the settings.
//!
//! ```text
//! main → cli → serve → upkeep, server → http → auth → store → key, account → secret, permission, id
//!                │                │ └→ limit, metrics
//!                │                ├→ access_log, seldom
//!                └→ tasks, config, telemetry → access_log
//! ```
//!
//! - [`secret`] is the text its holder has, [`key`] the thing in the database, [`auth::Caller`] the proof that a secret was shown,
//!   [`permission`] what a key may do.
//! - [`store`] alone knows SQL, [`http`] alone knows routes and status codes, [`server`] alone knows connections, [`limit`] alone
//!   counts requests, [`config`] alone reads the environment, and [`clock`] alone reads the time.
//! - There is no layer between a handler and the store: a handler is the use case.

#[cfg(all(feature = "flawed", not(debug_assertions)))]
compile_error!("a flawed build lets revoked keys in: it is for the tests of the tests only");

pub mod access_log;
pub mod account;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
mod digits;
pub mod event;
pub mod http;
pub mod id;
pub mod key;
pub mod limit;
pub mod metrics;
pub mod permission;
pub mod secret;
mod seldom;
pub mod serve;
pub mod server;
pub mod store;
pub mod tasks;
pub mod telemetry;
pub mod upkeep;

//! All integration tests, in one binary: through the whole router, on both stores, or over a real socket.
#![expect(clippy::unwrap_used, reason = "a failed helper is a failed test")]

mod support;

mod auth;
mod browsers;
mod cache;
mod cli;
mod cli_keys;
mod cli_usage;
mod clients;
mod cors;
mod durability;
mod events;

mod expiry;
mod flaws;
mod framing;
mod gateways;
mod growth;
mod handbook;
mod held_bodies;
mod hostile;
mod isolation;
mod keys;
mod last_use;
mod life;
mod limits;
mod lists;
mod memory;
mod migrations;
mod one_key;
mod openapi;
mod outages;
mod overload;
mod parity;
mod permissions;
mod protocol;
mod refusals;
mod register;
mod replicas;
mod retry;
mod rolling;
mod rotation;
mod secrets;
mod sessions;
mod shared_limits;
mod shutdown;
mod slow_clients;
mod tidy;
mod timing;
mod upkeep;
mod usage;
mod verify;

//! The texts of keys and ids.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| momail_api_keys::http::fuzzed::key(bytes));

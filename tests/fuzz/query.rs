//! The query of a list.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| momail_api_keys::http::fuzzed::query(bytes));

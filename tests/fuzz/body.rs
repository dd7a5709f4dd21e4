//! The body of a creation.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| momail_api_keys::http::fuzzed::body(bytes));

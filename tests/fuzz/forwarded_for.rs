//! The address that a request comes from.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| momail_api_keys::http::fuzzed::forwarded_for(bytes));

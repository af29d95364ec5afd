//! Bytes from a PostgreSQL client behind its login.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("router_after_login").read)(bytes));

//! Bytes from a PostgreSQL client that has not logged in.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("router_before_login").read)(bytes));

//! Bytes from a PostgreSQL server that answers anything.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("router_server").read)(bytes));

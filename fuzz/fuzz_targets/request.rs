//! Bytes as a request on a caller's stream.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("request").read)(bytes));

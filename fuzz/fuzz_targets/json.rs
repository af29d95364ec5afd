//! Bytes as the body of an HTTP request.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("json").read)(bytes));

//! Bytes as SQL, read by some rules.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (holdfast_chaos_tests::fuzzed::of("sql").read)(bytes));
